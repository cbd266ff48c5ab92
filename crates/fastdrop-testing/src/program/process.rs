//! A process: its environment, its signals, its end.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

pub(super) fn command(program_and_args: &[OsString]) -> Command {
    // A shell without job control starts what is in the background, these tests perhaps, with
    // SIGINT ignored.
    let ignored = Signals::ignored_by("self").contains("INT") || Signals::ignored_by("self").contains("HUP");
    let defaults = if ignored { args!["env", "--default-signal=INT,HUP"] } else { Vec::new() };
    let all = [&defaults[..], program_and_args].concat();
    let mut command = Command::new(&all[0]);
    command.args(&all[1..]);
    for (name, _) in std::env::vars_os() {
        if name.as_bytes().starts_with(b"FASTDROP_") {
            command.env_remove(name);
        }
    }
    // Nobody's own configuration takes part.
    command
        .env("HOME", "/nonexistent")
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("NO_COLOR")
        .env_remove("RUST_LOG");
    command
}

/// Signals of a process's status.
pub struct Signals(u64);

impl Signals {
    /// Those that a process ignores.
    pub fn ignored_by(process: impl std::fmt::Display) -> Self {
        Self::field("SigIgn:", process)
    }

    /// Those that a process has handlers for.
    pub fn caught_by(process: impl std::fmt::Display) -> Self {
        Self::field("SigCgt:", process)
    }

    fn field(name: &str, process: impl std::fmt::Display) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        Self(u64::from_str_radix(mask.trim(), 16).unwrap())
    }

    /// Returns true if the one with this name, such as `TERM`, is among them.
    pub fn contains(&self, signal: &str) -> bool {
        let number = match signal {
            "HUP" => 1,
            "INT" => 2,
            "TERM" => 15,
            "XFSZ" => 25,
            other => panic!("no number for {other}"),
        };
        self.0 >> (number - 1) & 1 == 1
    }
}

pub(super) fn signal_process(pid: u32, signal: &str) {
    // The shell's own, since not every machine has the program.
    let out = Command::new("sh").args(["-c", &format!("kill -s {signal} {pid}")]).output().unwrap();
    assert!(out.status.success(), "kill -s {signal}: {}", String::from_utf8_lossy(&out.stderr));
}

pub(super) fn wait_child(child: &mut Child, within: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + within;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

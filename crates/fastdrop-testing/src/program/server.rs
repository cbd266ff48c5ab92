//! A server.

use super::binary::Program;
use super::collected::Collected;
use super::process::{command, signal_process, wait_child};
use crate::place::scratch;
use crate::tree::{assert_same_file, write_file};
use crate::wait::{DEADLINE, eventually};
use crate::words::target;
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

impl Program {
    /// Serves `dir` at a free port.
    pub fn serve(self, dir: &Path, extra: &[&str]) -> Server {
        self.serve_through(dir, extra, Vec::new())
    }

    /// Serves through a command that runs the program in place of itself.
    pub fn serve_through(self, dir: &Path, extra: &[&str], wrapper: Vec<OsString>) -> Server {
        let server = self.try_serve_through(dir, extra, wrapper);
        server.unwrap_or_else(|| panic!("the server does not listen"))
    }

    /// The same where the wrapper may end the program during its start; then there is no server.
    pub fn try_serve_through(self, dir: &Path, extra: &[&str], wrapper: Vec<OsString>) -> Option<Server> {
        Server::launch(self, dir, extra.iter().map(OsString::from).collect(), wrapper)
    }
}

/// A serving program. Killed when dropped; what it printed is shown if the test fails.
pub struct Server {
    /// The served folder.
    pub dir: PathBuf,
    /// The port on which it listens, on 127.0.0.1.
    pub port: u16,
    program: Program,
    child: Child,
    stdout: Collected,
    stderr: Collected,
    extra: Vec<OsString>,
    wrapper: Vec<OsString>,
}

impl Server {
    fn launch(program: Program, dir: &Path, extra: Vec<OsString>, wrapper: Vec<OsString>) -> Option<Self> {
        let own = args![program.path, "serve", dir, "--port", "0", "--json"];
        let all = [wrapper.clone(), own, extra.clone()].concat();
        let mut child = command(&all)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {all:?}: {error}"));
        let stdout = Collected::of(child.stdout.take().unwrap());
        let stderr = Collected::of(child.stderr.take().unwrap());
        let port = stdout.wait_line(DEADLINE, |line| {
            let event: Value = serde_json::from_str(line).ok()?;
            (event["event"] == "listening").then(|| event["port"].as_u64().unwrap() as u16)
        });
        let mut server = Self { program, dir: dir.into(), port: 0, child, stdout, stderr, extra, wrapper };
        let Some(port) = port else {
            eprintln!("no listening event: {all:?}\n{}", server.stderr());
            return None;
        };
        assert_ne!(port, 0, "the server names the port that it really has");
        server.port = port;
        Some(server)
    }

    /// The server's address and a path, as an argument.
    pub fn target(&self, path: impl AsRef<OsStr>) -> OsString {
        target(self.port, path.as_ref())
    }

    /// The path of `name` in the served folder.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reports whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, signal: &str) {
        signal_process(self.pid(), signal);
    }

    /// Waits for its end, which must come within this time.
    #[track_caller]
    pub fn wait_within(&mut self, within: Duration) -> i32 {
        let status = wait_child(&mut self.child, within)
            .unwrap_or_else(|| panic!("the server lives after {within:?}"));
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
    }

    /// Asks it to end, and waits for that: at most 15 seconds.
    #[track_caller]
    pub fn term(&mut self) -> i32 {
        self.signal("TERM");
        self.wait_within(Duration::from_secs(15))
    }

    /// Ends it without a chance to tidy up.
    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts anew in the same folder with the same arguments, after killing what still runs. The
    /// port changes.
    pub fn restart_same_dir(&mut self) {
        self.kill9();
        let again = Self::launch(self.program, &self.dir, self.extra.clone(), self.wrapper.clone());
        *self = again.unwrap_or_else(|| panic!("the server does not listen again"));
    }

    /// The text that it has printed on standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits for a line on standard output of which `pick` makes something.
    pub fn wait_stdout<T>(&self, pick: impl FnMut(&str) -> Option<T>) -> Option<T> {
        self.stdout.wait_line(DEADLINE, pick)
    }

    /// The text that it has printed on standard output so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Sends a small file and fails unless it arrives.
    #[track_caller]
    pub fn assert_serves(&mut self, after: &str) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("still-serving-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = scratch();
        let source = dir.path().join(&name);
        write_file(&source, 3000, 99);
        assert!(self.is_running(), "the server died of: {after}\n{}", self.stderr());
        let out = self.program.client(args!["send", "--retries", "0", source, self.target("")]);
        assert_eq!(out.code(), 0, "no transfer works after: {after}\n{out}");
        assert_same_file(&source, &self.path(&name));
        std::fs::remove_file(self.path(&name)).unwrap();
    }

    /// Waits until the server has noticed the end of every transfer: no half-written state changes
    /// any more, because nobody is connected. Counts its sockets other than the listening one.
    pub fn wait_idle(&self) {
        let port = format!(":{:04X}", self.port);
        eventually("the server's connections to end", || {
            let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
            let established = table.lines().skip(1).any(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                // Local end at the server's port, in ESTABLISHED (01) or CLOSE_WAIT (08).
                fields[1].ends_with(&port) && (fields[3] == "01" || fields[3] == "08")
            });
            (!established).then_some(())
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("server stdout: {}\nserver stderr: {}", self.stdout.text(), self.stderr.text());
        }
    }
}

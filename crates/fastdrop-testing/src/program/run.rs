//! A run of the program, and what it came to.

use super::binary::Program;
use super::collected::Collected;
use super::process::{command, signal_process, wait_child};
use crate::wait::DEADLINE;
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

impl Program {
    /// A run with these arguments, to be put together.
    pub fn command(self, args: Vec<OsString>) -> Cmd {
        Cmd::new(self, args)
    }

    /// Runs a command with `--json` to its end.
    pub fn client(self, args: Vec<OsString>) -> Output {
        self.command(args).json().run()
    }

    /// Runs a command as a person would, without `--json`, to its end.
    pub fn plain(self, args: Vec<OsString>) -> Output {
        self.command(args).run()
    }
}

/// A run of the program that is being put together.
pub struct Cmd {
    program: Program,
    args: Vec<OsString>,
    wrapper: Vec<OsString>,
    stdin: Option<Vec<u8>>,
    cwd: Option<PathBuf>,
    envs: Vec<(OsString, OsString)>,
    json: bool,
    stdin_from: Option<Stdio>,
    stdout: Option<Stdio>,
}

impl Cmd {
    fn new(program: Program, args: Vec<OsString>) -> Self {
        Self {
            program,
            args,
            wrapper: Vec::new(),
            stdin: None,
            cwd: None,
            envs: Vec::new(),
            json: false,
            stdin_from: None,
            stdout: None,
        }
    }

    /// Adds `--json`, after the command's name.
    pub fn json(mut self) -> Self {
        self.args.insert(1, "--json".into());
        self.json = true;
        self
    }

    /// Sets the bytes that the program reads on its standard input; without this, nothing.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Standard input comes from there instead of from the test.
    pub fn stdin_from(mut self, from: Stdio) -> Self {
        self.stdin_from = Some(from);
        self
    }

    /// The folder to run in.
    pub fn cwd(mut self, dir: &Path) -> Self {
        self.cwd = Some(dir.into());
        self
    }

    /// A variable of the environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.envs.push((name.into(), value.as_ref().into()));
        self
    }

    /// A command that runs the program, in place of itself.
    pub fn wrapper(mut self, wrapper: Vec<OsString>) -> Self {
        self.wrapper = wrapper;
        self
    }

    /// A pipe whose reader has gone, as standard output.
    pub fn stdout_closed(self) -> Self {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        self.stdout_to(writer)
    }

    /// A device on which nothing can be written, as standard output.
    pub fn stdout_full(self) -> Self {
        self.stdout_to(std::fs::File::options().write(true).open("/dev/full").unwrap())
    }

    /// Standard output goes there instead of to the test.
    pub fn stdout_to(mut self, to: impl Into<Stdio>) -> Self {
        self.stdout = Some(to.into());
        self
    }

    /// Starts it.
    pub fn start(self) -> Running {
        let all = [self.wrapper, vec![self.program.path.into()], self.args].concat();
        let shown = all.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let mut command = command(&all);
        command.envs(self.envs).stdout(self.stdout.unwrap_or_else(Stdio::piped)).stderr(Stdio::piped());
        let stdin = if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() };
        command.stdin(self.stdin_from.unwrap_or(stdin));
        if let Some(dir) = self.cwd {
            command.current_dir(dir);
        }
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {shown}: {error}"));
        if let Some(bytes) = self.stdin {
            let mut stdin = child.stdin.take().unwrap();
            // The program may leave without having read all.
            std::thread::spawn(move || drop(stdin.write_all(&bytes)));
        }
        let stdout: Box<dyn Read + Send> = match child.stdout.take() {
            Some(stdout) => Box::new(stdout),
            None => Box::new(std::io::empty()),
        };
        let stdout = Collected::of(stdout);
        let stderr = Collected::of(child.stderr.take().unwrap());
        Running { child, stdout: Some(stdout), stderr: Some(stderr), shown, json: self.json }
    }

    /// Runs it to its end, which must come in time.
    pub fn run(self) -> Output {
        self.start().wait()
    }
}

/// A run of the program under way. Killed when dropped.
pub struct Running {
    child: Child,
    stdout: Option<Collected>,
    stderr: Option<Collected>,
    shown: String,
    json: bool,
}

impl Running {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, such as `TERM`.
    pub fn signal(&self, signal: &str) {
        signal_process(self.pid(), signal);
    }

    /// Reports whether it has not ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for a line on standard output of which `pick` makes something.
    pub fn stdout_line<T>(&self, pick: impl FnMut(&str) -> Option<T>) -> Option<T> {
        self.stdout.as_ref().unwrap().wait_line(DEADLINE, pick)
    }

    /// Waits for a line on standard error of which `pick` makes something.
    pub fn stderr_line<T>(&self, pick: impl FnMut(&str) -> Option<T>) -> Option<T> {
        self.stderr.as_ref().unwrap().wait_line(DEADLINE, pick)
    }

    /// Ends it without a chance to tidy up.
    pub fn kill9(mut self) -> Output {
        let _ = self.child.kill();
        self.wait()
    }

    /// Waits for its end.
    pub fn wait(self) -> Output {
        self.wait_within(DEADLINE)
    }

    /// Waits for its end, which must come within this time.
    pub fn wait_within(self, within: Duration) -> Output {
        let (output, in_time) = self.wait_or_kill(within);
        assert!(in_time, "did not end within {within:?}\n{output}");
        output
    }

    /// Waits for its end at most so long, and kills it then. The flag says whether it ended by
    /// itself.
    pub fn wait_or_kill(mut self, within: Duration) -> (Output, bool) {
        let ended = wait_child(&mut self.child, within);
        let in_time = ended.is_some();
        let status = ended.unwrap_or_else(|| {
            let _ = self.child.kill();
            self.child.wait().unwrap()
        });
        let stdout = self.stdout.take().unwrap().finish();
        let stderr = String::from_utf8_lossy(&self.stderr.take().unwrap().finish()).into_owned();
        let shown = self.shown.clone();
        let mut events = Vec::new();
        if self.json {
            // A killed program may leave half a line.
            let whole = stdout.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
            for line in whole {
                events.push(serde_json::from_slice(line).unwrap_or_else(|error| {
                    panic!(
                        "{shown}\nprinted a line that is not JSON ({error}): {}",
                        String::from_utf8_lossy(line)
                    )
                }));
            }
        }
        (Output { status, stdout, stderr, events, shown }, in_time)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The outcome of a run.
#[derive(Debug)]
pub struct Output {
    status: ExitStatus,
    /// All of standard output.
    pub stdout: Vec<u8>,
    /// All of standard error.
    pub stderr: String,
    /// The events of `--json`.
    pub events: Vec<Value>,
    shown: String,
}

impl Output {
    /// The exit code as a shell shows it: 128 and the signal for a process that was ended by one.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap())
    }

    /// Fails unless the exit code is this one, and in any case if the program panicked.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert!(!self.stderr.contains("panicked"), "{self}");
        assert!(self.code() == code, "exit code {} instead of {code}\n{self}", self.code());
        self
    }

    /// The last event, which is the summary.
    #[track_caller]
    pub fn summary(&self) -> &Value {
        let last = self.events.last().unwrap_or_else(|| panic!("no events\n{self}"));
        assert_eq!(last["event"], "summary", "the last event is not the summary\n{self}");
        last
    }

    /// A number of the summary.
    #[track_caller]
    pub fn number(&self, field: &str) -> u64 {
        self.summary()[field].as_u64().unwrap_or_else(|| panic!("the summary has no number {field}\n{self}"))
    }

    /// Fails unless the summary has these numbers.
    #[track_caller]
    pub fn expect_summary(self, fields: &[(&str, u64)]) -> Self {
        for (field, expected) in fields {
            assert_eq!(self.number(field), *expected, "{field} of the summary\n{self}");
        }
        assert!(
            self.summary()["seconds"].as_f64().is_some_and(|s| (0.0..600.0).contains(&s)),
            "seconds\n{self}"
        );
        self
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The `file` event of a path that ends like this.
    #[track_caller]
    pub fn file_event(&self, path_end: &str) -> &Value {
        self.events
            .iter()
            .find(|e| e["event"] == "file" && e["path"].as_str().is_some_and(|path| path.ends_with(path_end)))
            .unwrap_or_else(|| panic!("no file event for {path_end}\n{self}"))
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stdout = String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(4000)]);
        write!(f, "$ {}\n=> {}\nstdout: {stdout}\nstderr: {}", self.shown, self.status, self.stderr)
    }
}

//! The program as a process: server and client.

use super::{DEADLINE, eventually, scratch};
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_fastdrop");

#[derive(Default)]
struct Shared {
    /// The bytes so far, and whether that is all.
    bytes: Mutex<(Vec<u8>, bool)>,
    changed: Condvar,
}

/// What a process writes, collected by a thread so that it never blocks on a full pipe.
struct Collected {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Collected {
    fn of(mut from: impl Read + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            loop {
                let n = from.read(&mut buffer).unwrap_or(0);
                let mut state = for_thread.bytes.lock().unwrap();
                state.0.extend_from_slice(&buffer[..n]);
                state.1 |= n == 0;
                for_thread.changed.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
        Self { shared, thread: Some(thread) }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.shared.bytes.lock().unwrap().0).into_owned()
    }

    /// Waits for a whole line of which `pick` makes something; None if the stream ends or the time
    /// is over.
    fn wait_line<T>(&self, within: Duration, mut pick: impl FnMut(&str) -> Option<T>) -> Option<T> {
        let end = Instant::now() + within;
        let mut state = self.shared.bytes.lock().unwrap();
        loop {
            let text = String::from_utf8_lossy(&state.0).into_owned();
            let whole = if state.1 { text.len() } else { text.rfind('\n').map_or(0, |at| at + 1) };
            if let Some(found) = text[..whole].lines().find_map(&mut pick) {
                return Some(found);
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.1 || left.is_zero() {
                return None;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    fn finish(mut self) -> Vec<u8> {
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        std::mem::take(&mut self.shared.bytes.lock().unwrap().0)
    }
}

fn command(program_and_args: &[OsString]) -> Command {
    // A shell without job control starts what is in the background, these tests perhaps, with
    // SIGINT ignored.
    let ignored = Signals::ignored_by("self").contains("INT") || Signals::ignored_by("self").contains("HUP");
    let defaults = if ignored { crate::args!["env", "--default-signal=INT,HUP"] } else { Vec::new() };
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

fn signal_process(pid: u32, signal: &str) {
    // The shell's own, since not every machine has the program.
    let out = Command::new("sh").args(["-c", &format!("kill -s {signal} {pid}")]).output().unwrap();
    assert!(out.status.success(), "kill -s {signal}: {}", String::from_utf8_lossy(&out.stderr));
}

fn wait_child(child: &mut Child, within: Duration) -> Option<ExitStatus> {
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

/// A run of the program that is being put together.
pub struct Cmd {
    args: Vec<OsString>,
    wrapper: Vec<OsString>,
    stdin: Option<Vec<u8>>,
    cwd: Option<PathBuf>,
    envs: Vec<(OsString, OsString)>,
    json: bool,
    stdin_from: Option<Stdio>,
    stdout: Option<Stdio>,
}

/// A run of the program with these arguments.
pub fn fastdrop(args: Vec<OsString>) -> Cmd {
    Cmd {
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

/// Runs as an ordinary user, whom permissions stop; needs root.
pub fn as_nobody() -> Vec<OsString> {
    crate::args!["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
}

/// Makes that user the owner of all that is at `path`.
pub fn give_to_nobody(path: &Path) {
    super::tool("chown", crate::args!["-R", "65534:65534", path]);
}

/// Drops root's right to read and write everything, so that modes mean something.
pub fn as_if_not_root() -> Vec<OsString> {
    if rustix::process::geteuid().is_root() {
        crate::args!["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    } else {
        Vec::new()
    }
}

/// Runs a command with `--json` to its end.
pub fn client(args: Vec<OsString>) -> Output {
    fastdrop(args).json().run()
}

/// Runs a command as a person would, without `--json`, to its end.
pub fn plain(args: Vec<OsString>) -> Output {
    fastdrop(args).run()
}

impl Cmd {
    /// Adds `--json`, after the command's name.
    pub fn json(mut self) -> Self {
        self.args.insert(1, "--json".into());
        self.json = true;
        self
    }

    /// What the program reads on its standard input; without this, nothing.
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
        let all = [self.wrapper, vec![PROGRAM.into()], self.args].concat();
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

    /// Whether it has not ended.
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

/// What a run came to.
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

/// A serving program. Killed when dropped; what it printed is shown if the test fails.
pub struct Server {
    /// The served folder.
    pub dir: PathBuf,
    /// Where it listens, on 127.0.0.1.
    pub port: u16,
    child: Child,
    stdout: Collected,
    stderr: Collected,
    extra: Vec<OsString>,
    wrapper: Vec<OsString>,
}

impl Server {
    /// Serves `dir` at a free port.
    pub fn start(dir: &Path, extra: &[&str]) -> Self {
        Self::wrapped(dir, extra, Vec::new())
    }

    /// Serves through a command that runs the program in place of itself.
    pub fn wrapped(dir: &Path, extra: &[&str], wrapper: Vec<OsString>) -> Self {
        Self::try_wrapped(dir, extra, wrapper).unwrap_or_else(|| panic!("the server does not listen"))
    }

    /// The same where the wrapper may end the program during its start; then there is no server.
    pub fn try_wrapped(dir: &Path, extra: &[&str], wrapper: Vec<OsString>) -> Option<Self> {
        Self::launch(dir, extra.iter().map(OsString::from).collect(), wrapper)
    }

    fn launch(dir: &Path, extra: Vec<OsString>, wrapper: Vec<OsString>) -> Option<Self> {
        let own = crate::args![PROGRAM, "serve", dir, "--port", "0", "--json"];
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
        let mut server = Self { dir: dir.into(), port: 0, child, stdout, stderr, extra, wrapper };
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

    /// Where `name` lies in the served folder.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
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
        let again = Self::launch(&self.dir, self.extra.clone(), self.wrapper.clone());
        *self = again.unwrap_or_else(|| panic!("the server does not listen again"));
    }

    /// What it printed on standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits for a line on standard output of which `pick` makes something.
    pub fn wait_stdout<T>(&self, pick: impl FnMut(&str) -> Option<T>) -> Option<T> {
        self.stdout.wait_line(DEADLINE, pick)
    }

    /// What it printed on standard output so far.
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
        super::write_file(&source, 3000, 99);
        assert!(self.is_running(), "the server died of: {after}\n{}", self.stderr());
        let out = client(crate::args!["send", "--retries", "0", source, self.target("")]);
        assert_eq!(out.code(), 0, "no transfer works after: {after}\n{out}");
        super::assert_same_file(&source, &self.path(&name));
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

/// `127.0.0.1:port/path`.
pub(super) fn target(port: u16, path: &OsStr) -> OsString {
    let mut bytes = format!("127.0.0.1:{port}").into_bytes();
    if !path.is_empty() {
        bytes.push(b'/');
        bytes.extend_from_slice(path.as_bytes());
    }
    OsString::from_vec(bytes)
}

//! Runs a cell that moves files, and observes what it comes to.

use super::cell::{Cell, Command, End, Event, Obstacle, Oddity, Trouble};
use super::support::*;
use super::verdict::{Asked, Keeps, Observed, Tree};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest that a run may take on a busy machine before it counts as hanging.
pub(crate) const HANGS: Duration = Duration::from_secs(100);

/// Size of the file that is large enough for a transfer to be met in the middle.
const LARGE: u64 = 12 * MIB;
/// Size of the largest file elsewhere: three chunks and a bit.
const MEDIUM: u64 = 3 * MIB + 5;

/// The name of the source, and of what arrives.
const THING: &str = "thing";

/// Two folders, the server of one of them, and a way to it.
pub(crate) struct Job<'a> {
    cell: &'a Cell,
    planted: &'a [OsString],
    own: tempfile::TempDir,
    server: Option<Server>,
    port: u16,
    proxy: Option<Proxy>,
}

/// Runs `cell` through `planted`, a command that runs the program in place of itself. Gives what
/// was asked for and what was observed; a second pair of those where the same command was repeated
/// after an interruption. None where the trouble kept the other end from starting.
pub(crate) fn observe(cell: &Cell, planted: &[OsString]) -> Option<Vec<(Asked, Observed)>> {
    let own = scratch();
    let mut job = Job { cell, planted, own, server: None, port: 0, proxy: None };
    job.make_source();
    job.make_obstacle();
    if !job.start_server() {
        return None;
    }
    let mut source = vec![job.source_state()];
    let mut observed = job.run();
    source.push(job.source_state());
    if matches!(cell.command, Command::SendDry | Command::GetDry) {
        observed.real = job.again(real_of(cell.command)).code;
    }
    let mut found = vec![(job.asked(&source), observed)];
    if cell.trouble.interrupts() {
        let observed = job.again(cell.command);
        found.push((job.asked(&source[1..]), observed));
    }
    Some(found)
}

/// The port at which a server speaks this protocol.
fn port_of(server: &mut Server, protocol: &str) -> u16 {
    if protocol != "fastdownloader" {
        return server.port;
    }
    let found = server.wait_stdout(|line| {
        let event: serde_json::Value = serde_json::from_str(line).ok()?;
        (event["protocol"] == "fastdownloader").then(|| event["port"].as_u64()).flatten()
    });
    found.unwrap() as u16
}

/// A file, or a device, that takes what is printed.
pub(crate) fn written(path: &Path) -> fs::File {
    fs::OpenOptions::new().create(true).append(true).open(path).unwrap()
}

/// The source at a moment: its tree, and its bytes if it is a file.
#[derive(Debug, Clone, Default)]
struct State {
    tree: Tree,
    bytes: Vec<u8>,
}

fn real_of(command: Command) -> Command {
    match command {
        Command::SendDry => Command::SendTree,
        Command::GetDry => Command::GetTree,
        other => other,
    }
}

impl Job<'_> {
    fn from(&self) -> PathBuf {
        self.own.path().join("from")
    }

    fn to(&self) -> PathBuf {
        self.own.path().join("to")
    }

    fn source(&self) -> PathBuf {
        self.from().join(THING)
    }

    /// The large file of the source.
    fn large(&self) -> PathBuf {
        if self.cell.command.moves_a_tree() { self.source().join("large") } else { self.source() }
    }

    /// The place at which all of it should be afterwards; none, where the path must not be written
    /// to.
    fn place(&self) -> Option<PathBuf> {
        match self.cell.trouble {
            Trouble::Path(path) if path.split('/').any(|part| part == "..") => None,
            Trouble::Path(path) if !self.cell.command.is_get() => Some(self.to().join(path)),
            _ if self.cell.command == Command::SendStdin => Some(self.to().join("stdin")),
            _ => Some(self.to().join(THING)),
        }
    }

    fn make_source(&self) {
        fs::create_dir(self.from()).unwrap();
        fs::create_dir(self.to()).unwrap();
        let size = if matches!(self.cell.trouble, Trouble::Meanwhile(..)) { LARGE } else { MEDIUM };
        let source = self.source();
        let lists_tree = self.cell.command == Command::List && self.cell.protocol != "fastdownloader";
        if !self.cell.command.moves_a_tree() && !lists_tree {
            write_file(&source, size, 7);
            set_mode(&source, 0o640);
            set_mtime(&source, 1_234_567_890, 987_654_321);
        } else {
            write_file(&source.join("large"), size, 7);
            write_file(&source.join("chunk"), MIB, 8);
            write_file(&source.join("empty"), 0, 9);
            write_file(&source.join("deep/er/file"), 1000, 10);
            small_tree(&source.join("many"), 2, 17, 11);
            fs::create_dir(source.join("hollow")).unwrap();
            std::os::unix::fs::symlink("deep/er/file", source.join("link")).unwrap();
            set_mode(&source.join("chunk"), 0o751);
            set_mode(&source.join("hollow"), 0o700);
            set_mtime(&source.join("hollow"), 1_000_000_001, 5);
        }
        if let Trouble::Source(oddity) = self.cell.trouble {
            self.make_odd(oddity);
        }
    }

    fn make_odd(&self, oddity: Oddity) {
        let source = self.source();
        match oddity {
            Oddity::UnreadableFile => set_mode(&self.large(), 0),
            Oddity::UnreadableFolder => set_mode(&source.join("deep"), 0),
            Oddity::Pipe => tool("mkfifo", args![source.join("a-pipe")]),
            Oddity::LinkOutside => std::os::unix::fs::symlink("../../x", source.join("outside")).unwrap(),
            Oddity::LinkToNothing => std::os::unix::fs::symlink("no", source.join("dangling")).unwrap(),
            Oddity::OddNames => {
                let latin = OsStr::from_bytes(b"latin-\xe9");
                for name in ["back\\slash", "new\nline", " ", "~", "-n", "%41", "a:b*?\"<>|", "\u{e9}"] {
                    write_file(&source.join(name), 10, 1);
                }
                write_file(&source.join(latin).join(latin), 10, 2);
                std::os::unix::fs::symlink(latin, source.join("to-latin")).unwrap();
                std::os::unix::fs::symlink("back\\slash", source.join("to-back")).unwrap();
            }
            Oddity::OddTimes => {
                let times = [
                    (-1, 999_999_999),
                    (-20_000_000, 0),
                    (0, 0),
                    (0, 1),
                    (2_147_483_648, 1),
                    (4_294_967_296, 7),
                ];
                for (at, (seconds, nanos)) in times.into_iter().enumerate() {
                    let path = source.join(format!("time-{at}"));
                    write_file(&path, 10, 3);
                    set_mtime(&path, seconds, nanos);
                }
            }
            Oddity::Missing => fs::rename(&source, self.from().join("elsewhere")).unwrap(),
        }
    }

    fn make_obstacle(&self) {
        let Trouble::Obstacle(obstacle) = self.cell.trouble else { return };
        let tree = self.cell.command.moves_a_tree();
        let place = self.place().unwrap();
        let place = if tree { place.join("chunk") } else { place };
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        match obstacle {
            Obstacle::OtherFile => write_file(&place, 100, 12),
            Obstacle::Folder => write_file(&place.join("x"), 1, 1),
            Obstacle::Link => std::os::unix::fs::symlink("nowhere", &place).unwrap(),
            Obstacle::ReadOnlyFolder => set_mode(place.parent().unwrap(), 0o555),
        }
    }

    /// The commands that run the program of this end in place of itself.
    fn wrapper(&self, end: End) -> Vec<OsString> {
        let reads = (end == End::Client) != self.cell.command.is_get();
        match self.cell.trouble {
            Trouble::Source(Oddity::UnreadableFile | Oddity::UnreadableFolder) if reads => as_if_not_root(),
            Trouble::Obstacle(Obstacle::ReadOnlyFolder) if !reads => as_if_not_root(),
            Trouble::Limit(of, limit) if of == end => args!["prlimit", limit],
            Trouble::Inject(of, what, nth) if of == end => inject(what, &nth.to_string()),
            Trouble::InjectFrom(of, what, nth) if of == end => inject(what, &format!("{nth}+")),
            _ => Vec::new(),
        }
    }

    fn start_server(&mut self) -> bool {
        let dir = if self.cell.command.is_get() || self.cell.command == Command::List {
            self.from()
        } else {
            self.to()
        };
        let mut extra = Vec::new();
        if self.cell.protocol == "fastdownloader" {
            extra.push("--fastdownloader=0");
        }
        if let Trouble::Serves(args) = self.cell.trouble {
            extra.extend(args);
        }
        self.server = FASTDROP.try_serve_through(&dir, &extra, self.wrapper(End::Server));
        let Some(server) = &mut self.server else { return false };
        self.port = port_of(server, self.cell.protocol);
        if self.cell.trouble == Trouble::NobodyThere {
            server.kill9();
        }
        // Only where something happens on the way: a refusal is to be seen as it is.
        self.proxy = matches!(self.cell.trouble, Trouble::Meanwhile(..)).then(|| Proxy::to(self.port));
        true
    }

    fn target(&self, path: &str) -> OsString {
        let port = self.proxy.as_ref().map_or(self.port, Proxy::port);
        format!("127.0.0.1:{port}/{path}").into()
    }

    /// The command that moves the source to its place.
    fn command(&self, command: Command) -> Cmd {
        let given = match self.cell.trouble {
            Trouble::Path(path) => Some(path),
            _ => None,
        };
        let flags: &[&str] = match command {
            Command::SendDry | Command::GetDry => &["-n"],
            Command::SendZip | Command::GetZip => &["--compress", "zip"],
            Command::SendTarGz | Command::GetTarGz => &["--compress", "targz"],
            _ => &[],
        };
        let mut words = match command {
            Command::List => {
                let path = if self.cell.protocol == "fastdownloader" { "" } else { THING };
                args!["list", self.target(given.unwrap_or(path))]
            }
            Command::GetStdout => args!["get", self.target(given.unwrap_or(THING)), "-"],
            _ if command.is_get() => args!["get", self.target(given.unwrap_or(THING)), self.to()],
            Command::SendStdin => args!["send", "-", self.target(given.unwrap_or("stdin"))],
            _ => args!["send", self.source(), self.target(given.unwrap_or(""))],
        };
        words.extend(args!["--protocol", self.cell.protocol, "--retries", "1"]);
        words.extend(flags.iter().map(OsString::from));
        if command != Command::List {
            words.extend(args!["--progress", "none"]);
        }
        if let Trouble::Asks(args) = self.cell.trouble {
            words.extend(args.iter().map(OsString::from));
        }
        let mut cmd = FASTDROP.command(words);
        if command == Command::SendStdin {
            cmd = cmd.stdin(fs::read(self.source()).unwrap());
        }
        cmd
    }

    /// Runs the cell's command with all of its trouble.
    fn run(&mut self) -> Observed {
        let before = self.destination();
        let mut cmd = self.command(self.cell.command);
        let mut wrapper = self.planted.to_vec();
        wrapper.extend(self.wrapper(End::Client));
        cmd = cmd.wrapper(wrapper);
        let mut stdout_lost = false;
        match self.cell.trouble {
            Trouble::Output(End::Client, Some(file)) => {
                cmd = cmd.stdout_to(written(Path::new(file)));
                stdout_lost = true;
            }
            Trouble::Output(End::Client, None) => {
                cmd = cmd.stdout_closed();
                // Whoever closes a listing early has seen enough of it; bytes that were asked for
                // are another matter.
                stdout_lost = self.cell.command == Command::GetStdout;
            }
            _ => {}
        }
        if let (Trouble::Meanwhile(at, event), Some(proxy)) = (self.cell.trouble, &self.proxy) {
            proxy.cut_by_resets();
            match event {
                Event::Cut => proxy.cut_at(&[at]),
                Event::BitFlips => proxy.flip_at(&[at]),
                _ => proxy.hold_at(at),
            }
        }
        let mut running = cmd.start();
        if let Trouble::Meanwhile(at, event) = self.cell.trouble {
            let holds = !matches!(event, Event::Cut | Event::BitFlips);
            let start = Instant::now();
            let reached = |proxy: &Option<Proxy>| proxy.as_ref().is_none_or(|proxy| proxy.total() >= at);
            while holds && !reached(&self.proxy) && running.is_running() && start.elapsed() < HANGS {
                std::thread::sleep(Duration::from_millis(2));
            }
            let alive = running.is_running();
            self.happen(event, alive.then_some(&running));
            if let Some(proxy) = &self.proxy {
                proxy.resume();
            }
        }
        let (output, in_time) = running.wait_or_kill(HANGS);
        Observed {
            code: in_time.then(|| output.code()),
            stdout: output.stdout,
            stdout_lost,
            said: output.stderr,
            peer_said: self.server.as_ref().map(Server::stderr).unwrap_or_default(),
            before,
            arrived: self.destination(),
            ..Observed::default()
        }
    }

    fn happen(&mut self, event: Event, client: Option<&Running>) {
        let large = self.large();
        let server = self.server.as_mut().unwrap();
        match event {
            Event::SourceGrows => {
                use std::io::Write as _;
                let mut file = fs::OpenOptions::new().append(true).open(large).unwrap();
                file.write_all(&fill(1000, 13)).unwrap();
            }
            Event::SourceShrinks => {
                fs::OpenOptions::new().write(true).open(large).unwrap().set_len(LARGE / 2).unwrap();
            }
            Event::SourceRewritten => {
                // Neither size nor time tells.
                let time = fs::metadata(&large).unwrap().modified().unwrap();
                let mut file = fs::OpenOptions::new().write(true).open(large).unwrap();
                std::io::Write::write_all(&mut file, &fill(LARGE, 14)).unwrap();
                file.set_modified(time).unwrap();
            }
            Event::SourceVanishes => fs::remove_file(large).unwrap(),
            Event::Killed(End::Client) => client.into_iter().for_each(|client| client.signal("KILL")),
            Event::Killed(End::Server) => server.kill9(),
            Event::Signal(End::Client, signal) => client.into_iter().for_each(|client| client.signal(signal)),
            Event::Signal(End::Server, signal) => server.signal(signal),
            Event::Restarted => {
                server.restart_same_dir();
                self.port = port_of(server, self.cell.protocol);
                if let Some(proxy) = &self.proxy {
                    proxy.retarget(self.port);
                    proxy.cut_all();
                }
            }
            Event::Cut | Event::BitFlips => {}
        }
    }

    /// The same without trouble: the server started anew, and a command of this kind to its end.
    fn again(&mut self, command: Command) -> Observed {
        let before = self.destination();
        let server = self.server.as_mut().unwrap();
        let gone = !server.is_running() || self.cell.trouble.interrupts();
        if self.cell.trouble != Trouble::NobodyThere && gone {
            // Not through what made the trouble.
            server.kill9();
            let dir = server.dir.clone();
            let extra: &[&str] =
                if self.cell.protocol == "fastdownloader" { &["--fastdownloader=0"] } else { &[] };
            self.server = None;
            let mut server = FASTDROP.serve(&dir, extra);
            self.port = port_of(&mut server, self.cell.protocol);
            self.server = Some(server);
        }
        self.proxy = None;
        // A lie about a dry run is found by the truth about the real one.
        let dry = command != self.cell.command;
        let mut wrapper = if dry { Vec::new() } else { self.planted.to_vec() };
        if matches!(self.cell.trouble, Trouble::Source(_) | Trouble::Obstacle(_)) {
            wrapper.extend(self.wrapper(End::Client));
        }
        let (output, in_time) = self.command(command).wrapper(wrapper).start().wait_or_kill(HANGS);
        Observed {
            code: in_time.then(|| output.code()),
            stdout: output.stdout,
            said: output.stderr,
            peer_said: self.server.as_ref().map(Server::stderr).unwrap_or_default(),
            before,
            arrived: self.destination(),
            ..Observed::default()
        }
    }

    fn source_state(&self) -> State {
        let elsewhere = self.cell.trouble == Trouble::Source(Oddity::Missing);
        let source = if elsewhere { self.from().join("elsewhere") } else { self.source() };
        let Ok(_) = fs::symlink_metadata(&source) else { return State::default() };
        // The test itself may not be root either.
        let closed = match self.cell.trouble {
            Trouble::Source(Oddity::UnreadableFile) => Some((self.large(), 0o644)),
            Trouble::Source(Oddity::UnreadableFolder) => Some((self.source().join("deep"), 0o755)),
            _ => None,
        };
        if let Some((path, mode)) = &closed {
            set_mode(path, *mode);
        }
        let state = State { tree: snapshot(&source), bytes: fs::read(&source).unwrap_or_default() };
        if let Some((path, _)) = &closed {
            set_mode(path, 0);
        }
        state
    }

    fn destination(&self) -> Tree {
        let Some(place) = self.place() else { return Tree::new() };
        if fs::symlink_metadata(&place).is_ok() { snapshot(&place) } else { Tree::new() }
    }

    fn asked(&self, source: &[State]) -> Asked {
        let trees = source.iter().map(|state| state.tree.clone()).collect();
        match self.cell.command {
            Command::SendDry | Command::GetDry => Asked::Foretold,
            Command::GetStdout => Asked::Printed(source.iter().map(|state| state.bytes.clone()).collect()),
            Command::List if self.cell.protocol == "fastdownloader" => Asked::Named(vec![THING.into()]),
            Command::List => Asked::Named(names_in(&self.source())),
            // A stream has neither mode nor time.
            Command::SendStdin => Asked::Placed { source: trees, keeps: Keeps::Nothing },
            _ if self.cell.protocol == "fastdp" => Asked::Placed { source: trees, keeps: Keeps::Attributes },
            _ => Asked::Placed { source: trees, keeps: Keeps::Nothing },
        }
    }
}

pub(crate) fn inject(what: &str, when: &str) -> Vec<OsString> {
    let calls = what.split(':').next().unwrap();
    let trace = format!("trace={calls}");
    let inject = format!("inject={what}:when={when}");
    let mut strace = args!["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", trace, "-e", inject];
    // With --seccomp-bpf, which spares all other calls a stop, strace does not deliver signals.
    if !what.contains("signal") {
        strace.push("--seccomp-bpf".into());
    }
    strace
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        // Modes that keep the folder from being removed.
        let folders = [self.source().join("deep"), self.to(), self.to().join(THING)];
        for folder in folders.iter().filter(|folder| folder.is_dir()) {
            set_mode(folder, 0o755);
        }
    }
}

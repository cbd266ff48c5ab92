//! One seed: a tree, a destination that is kept, and some runs.

use super::claim::{Claim, Tree, state};
use super::options::Options;
use super::support::*;
use super::trees::{self, Choice};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Longest that a run may take on a busy machine before it counts as hanging.
const HANGS: Duration = Duration::from_secs(100);

/// An end of a run before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    None,
    ClientKilled,
    ClientTerm,
    ClientInt,
    ServerKilled,
    ServerTerm,
    ServerRestarted,
    Connection,
    /// The source is changed without a trace in size and time while the server restarts.
    ChangedMeanwhile,
}

const CUTS: [Cut; 8] = [
    Cut::ClientKilled,
    Cut::ClientTerm,
    Cut::ClientInt,
    Cut::ServerKilled,
    Cut::ServerTerm,
    Cut::ServerRestarted,
    Cut::Connection,
    Cut::ChangedMeanwhile,
];

/// The form of the command: the folder, or what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Folder,
    Contents,
}

struct Round {
    number: u64,
    form: Form,
    cut: Cut,
    at: u64,
    options: Options,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> =
            self.options.words().iter().map(|word| word.to_string_lossy().into_owned()).collect();
        write!(
            f,
            "round {}, {:?} at {}, {:?}, {}",
            self.number,
            self.cut,
            self.at,
            self.form,
            words.join(" ")
        )
    }
}

/// The world of one seed: two trees, and a server of one of them.
pub(crate) struct World {
    rng: Rng,
    own: tempfile::TempDir,
    sends: bool,
    outside: bool,
    server: Server,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let own = scratch();
        let sends = rng.one_in(2);
        // Most trees can be moved as a whole.
        let outside = rng.one_in(6);
        fs::create_dir_all(own.path().join("to/tree")).unwrap();
        trees::make(&mut rng, &own.path().join("from/tree"), outside);
        let served = own.path().join(if sends { "to" } else { "from" });
        let server = FASTDROP.serve(&served, &["--existing", "overwrite"]);
        Self { rng, own, sends, outside, server }
    }

    fn source(&self) -> PathBuf {
        self.own.path().join("from/tree")
    }

    fn arrived(&self) -> PathBuf {
        self.own.path().join("to/tree")
    }

    /// Plays all rounds. Gives how many of them said 0.
    pub(crate) fn play(mut self) -> Result<u64, String> {
        let mut claims = 0;
        let rounds = 2 + self.rng.below(3);
        let mut options = Options::random(&mut self.rng);
        let mut form = Form::Folder;
        for number in 0..=rounds {
            if number > 0 && !self.rng.one_in(3) {
                trees::change(&mut self.rng, &self.own.path().join("from/tree"), self.outside);
            }
            // The same command again, mostly.
            if self.rng.one_in(3) {
                options = Options::random(&mut self.rng);
                form = *self.rng.pick(&[Form::Folder, Form::Folder, Form::Contents]);
            }
            let last = number == rounds;
            if last {
                options = Options::plain();
            }
            let cut = if last || self.rng.one_in(4) { Cut::None } else { *self.rng.pick(&CUTS) };
            let most = if self.rng.one_in(3) { 20_000 } else { self.bytes() + 10_000 };
            let at = 300 + self.rng.below(most);
            let round = Round { number, form, cut, at, options: options.clone() };
            claims += u64::from(self.round(&round).map_err(|why| {
                let way = if self.sends { "send" } else { "get" };
                format!("{way}, {round}: {why}")
            })?);
        }
        Ok(claims)
    }

    fn bytes(&self) -> u64 {
        let sizes = snapshot(&self.source()).into_values();
        sizes.map(|entry| if let Kind::File(size, _) = entry.0 { size } else { 0 }).sum()
    }

    fn command(&self, round: &Round, proxy: &Proxy, extra: &[&str]) -> Cmd {
        let tree = if round.form == Form::Contents { "tree/" } else { "" };
        let mut words = if self.sends {
            let source = self.own.path().join(if tree.is_empty() { "from/tree" } else { "from/tree/" });
            args!["send", source, proxy.target(tree)]
        } else if round.form == Form::Contents {
            args!["get", proxy.target("tree/"), self.arrived()]
        } else {
            args!["get", proxy.target("tree"), self.own.path().join("to")]
        };
        words.extend(round.options.words());
        words.extend(extra.iter().map(OsString::from));
        words.extend(["--retries", "1", "--progress", "none"].map(OsString::from));
        FASTDROP.command(words)
    }

    /// The exit code of the dry run of a round, which must leave everything as it is.
    fn foretell(&self, round: &Round, before: &Tree) -> Result<i32, String> {
        let proxy = Proxy::to(self.server.port);
        let (output, in_time) = self.command(round, &proxy, &["-n"]).start().wait_or_kill(HANGS);
        drop(proxy);
        self.server.wait_idle();
        if !in_time || output.stderr.contains("panicked") {
            return Err(format!("a dry run that hangs or panics\n{output}"));
        }
        if state(&self.arrived()) != *before {
            return Err(format!("a dry run that changes something\n{output}"));
        }
        Ok(output.code())
    }

    fn round(&mut self, round: &Round) -> Result<bool, String> {
        let foretold = round.cut == Cut::None && self.rng.one_in(3);
        if foretold {
            // The server may still be naming what the round before had brought.
            self.server.kill9();
            self.server.restart_same_dir();
        }
        let before = state(&self.arrived());
        let source = state(&self.source());
        let foretold = if foretold { Some(self.foretell(round, &before)?) } else { None };
        let proxy = Proxy::to(self.server.port);
        match round.cut {
            Cut::None => {}
            Cut::Connection => proxy.cut_at(&[round.at]),
            _ => proxy.hold_at(round.at),
        }
        let mut running = self.command(round, &proxy, &[]).start();
        if !matches!(round.cut, Cut::None | Cut::Connection) {
            let start = Instant::now();
            while proxy.total() < round.at && running.is_running() && start.elapsed() < HANGS {
                std::thread::sleep(Duration::from_millis(1));
            }
            self.cut(round.cut, &mut running, &proxy);
            proxy.resume();
        }
        let (output, in_time) = running.wait_or_kill(HANGS);
        drop(proxy);
        if !self.server.is_running() {
            self.server.restart_same_dir();
        } else if matches!(round.cut, Cut::ClientKilled | Cut::ServerTerm) {
            // Only a transfer that has ended can be continued.
            self.server.wait_idle();
        }
        if !in_time {
            return Err(format!("it did not end in time\n{output}"));
        }
        if output.stderr.contains("panicked") || self.server.stderr().contains("panicked") {
            return Err(format!("a panic\n{output}\n{}", self.server.stderr()));
        }
        if foretold.is_some_and(|foretold| foretold != output.code()) {
            return Err(format!("the dry run had exit code {foretold:?}\n{output}"));
        }
        match output.code() {
            0 => {}
            10 => return Err(format!("fastdp can confirm\n{output}")),
            _ => return Ok(false),
        }
        let after = state(&self.source());
        let arrived = state(&self.arrived());
        let claim = Claim {
            options: &round.options,
            root: &self.source(),
            source: [&source, &after],
            before: &before,
            arrived: &arrived,
            contents: round.form == Form::Contents,
        };
        claim.check()?;
        // An archive has a hash of its own.
        let archive = matches!(round.options.compress, "zip" | "targz");
        let hashes = if archive { Ok(()) } else { check_hashes(&source, &after, &output) };
        hashes.or_else(|why| if crate::is_known(&why) { Ok(()) } else { Err(why) })?;
        Ok(true)
    }

    fn cut(&mut self, cut: Cut, client: &mut Running, proxy: &Proxy) {
        let mut signal = |signal| {
            if client.is_running() {
                client.signal(signal);
            }
        };
        match cut {
            Cut::None | Cut::Connection => {}
            Cut::ClientKilled => signal("KILL"),
            Cut::ClientTerm => signal("TERM"),
            Cut::ClientInt => signal("INT"),
            Cut::ServerKilled => self.server.kill9(),
            Cut::ServerTerm => self.server.signal("TERM"),
            Cut::ServerRestarted | Cut::ChangedMeanwhile => {
                self.server.kill9();
                if cut == Cut::ChangedMeanwhile {
                    self.change_unseen();
                }
                self.server.restart_same_dir();
                proxy.retarget(self.server.port);
                proxy.cut_all();
            }
        }
    }

    /// Gives the largest file other content.
    fn change_unseen(&mut self) {
        let files = snapshot(&self.source()).into_iter();
        let sizes = files.filter_map(|(path, entry)| match entry.0 {
            Kind::File(size, _) => Some((size, path)),
            _ => None,
        });
        if let Some((size, path)) = sizes.max() {
            let path = self.source().join(path);
            trees::rewrite_unseen(&mut self.rng, &path, size);
        }
    }
}

/// Each BLAKE3 that is printed is that of a file that was sent.
fn check_hashes(source: &Tree, after: &Tree, output: &Output) -> Result<(), String> {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let hashes = |tree: &Tree| -> Vec<String> {
        let kinds = tree.values().map(|entry| &entry.0);
        kinds
            .filter_map(|kind| match kind {
                Kind::File(_, hash) => Some(hash.to_hex().to_string()),
                _ => None,
            })
            .collect()
    };
    let known = [hashes(source), hashes(after)].concat();
    for line in said.lines() {
        if let Some((hash, name)) = line.split_once("  ")
            && hash.len() == 64
            && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
            && !known.iter().any(|known| known == hash)
        {
            return Err(format!("a BLAKE3 that no file has: {hash} {name}"));
        }
    }
    Ok(())
}

//! Journals that lie.

use crate::support::*;
use crate::{Job, SLACK, Victim, Way};
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// An interrupted transfer whose state can be copied, damaged and resumed many times.
struct Wreck {
    way: Way,
    job: Job,
    passed: u64,
}

impl Wreck {
    fn new(way: Way) -> Self {
        let mut job = Job::file(way, 32 * MIB + 99);
        let passed = job.interrupted(Victim::Client, 28 * MIB);
        job.interrupted_state_exists();
        Self { way, job, passed }
    }

    /// Copies the state, lets `damage` at its journal and its data, and resumes. Gives what had to
    /// be sent.
    #[track_caller]
    fn resumed_after(&self, what: &str, damage: impl FnOnce(&Path, &[PathBuf])) -> u64 {
        let to = scratch();
        tool("cp", args!["-a", "--sparse=always", self.job.to.path().join(".fastdrop"), to.path()]);
        let all: Vec<PathBuf> = leftovers(to.path()).into_iter().filter(|path| path.is_file()).collect();
        let (journals, data): (Vec<_>, Vec<_>) = all.into_iter().partition(|path| path.ends_with("journal"));
        assert_eq!(journals.len(), 1, "one transfer, one journal");
        damage(&journals[0], &data);
        let out = match self.way {
            Way::Send => {
                let server = serve(to.path(), &[]);
                client(args!["send", self.job.source(), server.target("")])
            }
            Way::Get => client(args!["get", self.job.server.target("thing"), to.path()]),
        };
        assert_eq!(out.code(), 0, "{what}\n{out}");
        let whole = digest_of(&self.job.source()) == digest_of(&to.path().join("thing"));
        assert!(whole, "{what}: the bytes are wrong\n{out}");
        out.number("bytes_sent")
    }
}

impl Job {
    fn interrupted_state_exists(&self) {
        assert!(
            !leftovers(self.to.path()).is_empty(),
            "an interrupted transfer leaves its state in .fastdrop"
        );
    }
}

fn resized(path: &Path, len: u64) {
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

fn flipped(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
}

/// Case 34: a journal cut anywhere counts as far as it is valid.
#[test]
fn case_34_a_cut_journal_counts_up_to_the_cut() {
    let wreck = Wreck::new(Way::Send);
    let total = wreck.job.total;
    let untouched = wreck.resumed_after("nothing", |_, _| ());
    assert!(
        untouched <= total - (wreck.passed - SLACK),
        "the copy of the state is no good: {untouched} bytes sent"
    );
    for part in [0, 5, 100, 300, 500, 700, 900, 990] {
        wreck.resumed_after(&format!("journal cut at {part} per mille"), |journal, _| {
            resized(journal, fs::metadata(journal).unwrap().len() * part / 1000);
        });
    }
    for bytes in [1, 3, 4, 8, 17, 64] {
        wreck.resumed_after(&format!("journal cut to {bytes} bytes"), |journal, _| resized(journal, bytes));
    }
    for bytes in [1, 2, 9, 30] {
        let sent = wreck.resumed_after(&format!("journal cut by {bytes} bytes"), |journal, _| {
            resized(journal, fs::metadata(journal).unwrap().len() - bytes);
        });
        assert!(sent < total, "{bytes} bytes less of the journal, and nothing of it counts");
    }
    wreck.resumed_after("no journal", |journal, _| fs::remove_file(journal).unwrap());
}

/// Case 35: a flipped bit, rubbish or zeros in the journal are found.
#[test]
fn case_35_a_damaged_journal_is_found() {
    let wreck = Wreck::new(Way::Send);
    for part in [0, 1, 20, 100, 333, 500, 750, 950, 999] {
        wreck.resumed_after(&format!("a flipped bit at {part} per mille"), |journal, _| {
            flipped(journal, fs::metadata(journal).unwrap().len() * part / 1000);
        });
    }
    for at in 0..24 {
        wreck.resumed_after(&format!("a flipped bit at {at}"), |journal, _| flipped(journal, at));
    }
    wreck.resumed_after("rubbish", |journal, _| fs::write(journal, fill(5000, 1)).unwrap());
    wreck.resumed_after("zeros", |journal, _| {
        let len = fs::metadata(journal).unwrap().len();
        fs::write(journal, vec![0; len as usize]).unwrap();
    });
    wreck.resumed_after("rubbish at the end", |journal, _| {
        fs::write(journal, [fs::read(journal).unwrap(), fill(333, 1)].concat()).unwrap();
    });
    wreck.resumed_after("twice", |journal, _| {
        fs::write(journal, fs::read(journal).unwrap().repeat(2)).unwrap()
    });
}

/// Case 36: the journal says yes, but the data is gone or not what it says.
#[test]
fn case_36_missing_or_wrong_data_is_found() {
    let wreck = Wreck::new(Way::Send);
    let each = |what: &str, damage: &dyn Fn(&Path)| {
        wreck.resumed_after(what, |_, data| {
            assert!(!data.is_empty(), "there is data beside the journal");
            data.iter().for_each(|path| damage(path));
        })
    };
    each("data deleted", &|path| fs::remove_file(path).unwrap());
    each("data empty", &|path| resized(path, 0));
    each("data cut in half", &|path| resized(path, fs::metadata(path).unwrap().len() / 2));
    each("data longer", &|path| resized(path, fs::metadata(path).unwrap().len() + 7));
    each("data zero", &|path| {
        let len = fs::metadata(path).unwrap().len();
        resized(path, 0);
        resized(path, len);
    });
    for at in [0, 1_000_000, 5 * MIB, 11 * MIB + 3] {
        each(&format!("a bit flipped at {at}"), &|path| {
            if fs::metadata(path).unwrap().len() > at {
                flipped(path, at);
            }
        });
    }
    each("data replaced by a link", &|path| {
        fs::remove_file(path).unwrap();
        std::os::unix::fs::symlink(wreck.job.source(), path).unwrap();
    });
    assert_eq!(
        fs::metadata(wreck.job.source()).unwrap().len(),
        wreck.job.total,
        "nothing was written through the link"
    );
}

/// Cases 34, 35 and 36 where the client is the receiver.
#[test]
fn case_36_a_client_distrusts_its_own_state_too() {
    let wreck = Wreck::new(Way::Get);
    let untouched = wreck.resumed_after("nothing", |_, _| ());
    assert!(untouched <= wreck.job.total - (wreck.passed - SLACK), "{untouched} bytes sent");
    wreck.resumed_after("journal cut", |journal, _| {
        resized(journal, fs::metadata(journal).unwrap().len() / 2)
    });
    wreck.resumed_after("journal flipped", |journal, _| {
        flipped(journal, fs::metadata(journal).unwrap().len() / 2)
    });
    wreck
        .resumed_after("data deleted", |_, data| data.iter().for_each(|path| fs::remove_file(path).unwrap()));
    wreck.resumed_after("data flipped", |_, data| data.iter().for_each(|path| flipped(path, 3 * MIB)));
}

/// Work that was abandoned long ago goes away.
#[test]
fn what_was_abandoned_expires() {
    let wreck = Wreck::new(Way::Send);
    let to = wreck.job.to.path();
    for path in leftovers(to).iter().rev() {
        tool("touch", args!["-h", "-d", "10 days ago", path]);
    }
    let mut server = serve(to, &["--expire", "7d"]);
    server.assert_serves("something abandoned");
    eventually("the abandoned transfer to be cleared away", || leftovers(to).is_empty().then_some(()));
}

/// Work that is not old does not.
#[test]
fn what_is_unfinished_survives_other_transfers_and_restarts() {
    let mut wreck = Wreck::new(Way::Send);
    wreck.job.server.assert_serves("an interruption");
    assert!(wreck.job.server.term() != 1);
    wreck.job.server.restart_same_dir();
    wreck.job.server.assert_serves("a restart");
    wreck.job.assert_resumes(wreck.passed);
}

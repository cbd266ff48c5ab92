//! Comparing a manifest with what is there already.

use crate::error::{Error, reason};
use crate::source::filter::Filter;
use crate::source::reader::content_of;
use crate::stop::Stop;
use crate::storage::mounts::Mounts;
use crate::storage::options::ReceiveOptions;
use crate::storage::placement::{
    Contents, DIFFERS, Placement, Rules, Verdict, clash, judge, needs_adjusting,
};
use crate::storage::root::{Dirs, Root, split};
use crate::transfer::inquiry::{ASKED_MAX, Inquiry};
use fastdrop_proto::fastdp::{
    Code, Entry, EntryKind, Failed, Manifest, Receiver, Refuse, RelPath, SkipReason,
};
use fastdrop_proto::units::EntryIndex;
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};

/// Paths that a refusal names.
const NAMED_MAX: usize = 20;
/// Bytes of those paths as they are encoded, three for each: a refusal must fit into one frame.
const NAMED_BYTES_MAX: usize = 48 << 10;

/// The outcome of a comparison. What need not come is skipped in the receiver.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    /// Entries that do not simply go to their place.
    pub(crate) exceptions: HashMap<EntryIndex, Verdict>,
    /// Entries that are there, but for their time or permissions.
    pub(crate) adjust: Vec<EntryIndex>,
    /// Entries that can have no place.
    pub(crate) failed: BTreeMap<EntryIndex, Failed>,
    /// Files that were there, or are left alone, and their bytes; how many of them differ and are
    /// left.
    pub(crate) skipped: u64,
    pub(crate) left: u64,
    pub(crate) bytes_skipped: u64,
}

/// Compares the manifest of `proto` with what is beneath `root`, and notes in `places` where what
/// is to come will live. Nothing is changed, but for permissions that are lent.
///
/// # Errors
///
/// 409 with the paths of what is in the way; an error of the system.
pub(crate) fn compare(
    proto: &mut Receiver,
    root: &Root,
    placement: &Placement,
    options: &ReceiveOptions,
    inquiry: Option<&mut Inquiry<'_>>,
    places: Places<'_>,
    stop: &Stop,
) -> Result<Compared, Error> {
    let contents = match inquiry.as_ref().is_some_and(|inquiry| inquiry.knows_contents()) {
        true if options.check => Contents::Always,
        true => Contents::Touched,
        false => Contents::Never,
    };
    let rules = Rules { existing: options.existing, times: options.times, mode: options.mode, contents };
    let manifest = std::sync::Arc::clone(proto.manifest());
    let mut comparing = Comparing {
        proto,
        manifest: &manifest,
        root,
        dirs: Dirs::default(),
        placement,
        rules,
        compared: Compared::default(),
        conflicts: Conflicts::default(),
        asked: Vec::new(),
        inquiry,
        mounts: places.mounts,
        stop,
    };
    for (index, entry) in manifest.iter() {
        if stop.is_stopped() {
            return Err(Error::Interrupted);
        }
        if !comparing.proto.is_needed(index) {
            continue;
        }
        let path = placement.of(entry.path);
        // In the folder into which it goes a path may become too long.
        if let Err(error) = RelPath::new(&path) {
            comparing.fail(index, &entry, error.to_string());
            continue;
        }
        let mut placed = comparing.judge(index, &entry, &path);
        if is_denied(&placed) && (places.lend)(split(&path).0)? {
            placed = comparing.judge(index, &entry, &path);
        }
        let verdict = match placed {
            // A folder into which this user may not look costs what would go there.
            Err(error) if error.errno() == Some(Errno::ACCESS) => {
                comparing.fail(index, &entry, reason(Errno::ACCESS));
                continue;
            }
            placed => placed?,
        };
        match verdict {
            Verdict::Ask => comparing.asked.push(index),
            verdict => comparing.settle(index, &entry, &path, verdict),
        }
        if comparing.asked.len() >= ASKED_MAX {
            comparing.compare_contents()?;
        }
    }
    comparing.compare_contents()?;
    comparing.conflicts.refuse(options.advice)?;
    Ok(comparing.compared)
}

/// Skips what is not wanted.
pub(super) fn skip_unwanted(proto: &mut Receiver, filter: &Filter) {
    let manifest = std::sync::Arc::clone(proto.manifest());
    let chosen = filter.choose_from(&manifest);
    for (index, _) in manifest.iter().filter(|(index, _)| !chosen.takes(*index)) {
        proto.skip(index, SkipReason::Policy);
    }
}

/// What is found out about the places of entries.
pub(crate) struct Places<'a> {
    /// The mounts that they are on.
    pub(crate) mounts: &'a mut Mounts,
    /// Lends a folder, into which this user may not look, the permission for that; whether it
    /// could.
    pub(crate) lend: &'a mut dyn FnMut(&[u8]) -> Result<bool, Error>,
}

fn is_denied<T>(result: &Result<T, Error>) -> bool {
    result.as_ref().is_err_and(|error| error.errno() == Some(Errno::ACCESS))
}

struct Comparing<'a, 'b> {
    proto: &'a mut Receiver,
    manifest: &'a Manifest,
    root: &'a Root,
    dirs: Dirs,
    placement: &'a Placement,
    rules: Rules,
    compared: Compared,
    conflicts: Conflicts,
    /// Files of which only the contents tell whether they are there.
    asked: Vec<EntryIndex>,
    inquiry: Option<&'a mut Inquiry<'b>>,
    mounts: &'a mut Mounts,
    stop: &'a Stop,
}

impl Comparing<'_, '_> {
    /// Compares an entry with what is at its place, and notes where it will live.
    fn judge(&mut self, index: EntryIndex, entry: &Entry<'_>, path: &[u8]) -> Result<Verdict, Error> {
        let verdict = judge(self.root, &mut self.dirs, path, entry, &self.rules)?;
        self.place(index, entry, path, &verdict)?;
        Ok(verdict)
    }

    /// Notes where an entry will live, in the order of the manifest.
    fn place(
        &mut self,
        index: EntryIndex,
        entry: &Entry<'_>,
        path: &[u8],
        verdict: &Verdict,
    ) -> Result<(), Error> {
        let is_staged = match (entry.kind, verdict) {
            (_, Verdict::Conflict(_)) => return Ok(()),
            (EntryKind::Directory, _) => false,
            (EntryKind::Link { .. }, _) => matches!(verdict, Verdict::Replace | Verdict::Renamed),
            // What is asked for may turn out to be needed.
            _ => matches!(verdict, Verdict::New | Verdict::Replace | Verdict::Renamed | Verdict::Ask),
        };
        self.mounts.note(self.root, &mut self.dirs, index, path, is_staged)
    }

    /// Gives up an entry that can have no place.
    fn fail(&mut self, index: EntryIndex, entry: &Entry<'_>, message: String) {
        self.proto.skip(index, SkipReason::Policy);
        let path = entry.path.as_bytes().to_vec();
        self.compared.failed.insert(index, Failed { path, code: Code::Forbidden, message });
    }

    fn settle(&mut self, index: EntryIndex, entry: &Entry<'_>, path: &[u8], verdict: Verdict) {
        match verdict {
            Verdict::New => {}
            Verdict::Identical | Verdict::Adjust if entry.kind == EntryKind::Directory => {}
            Verdict::Identical | Verdict::Adjust | Verdict::Ask | Verdict::Left => {
                let left = verdict == Verdict::Left;
                self.proto.skip(index, if left { SkipReason::Policy } else { SkipReason::Identical });
                self.compared.skipped += 1;
                self.compared.left += u64::from(left);
                self.compared.bytes_skipped += entry.size();
                if verdict == Verdict::Adjust {
                    self.compared.adjust.push(index);
                }
            }
            Verdict::Replace | Verdict::Renamed => {
                self.compared.exceptions.insert(index, verdict);
            }
            Verdict::Conflict(why) => self.conflicts.add(entry, path, why),
        }
    }

    /// Has the sender say the BLAKE3 of the files that are asked for, and
    /// compares it with that of what is there.
    fn compare_contents(&mut self) -> Result<(), Error> {
        let asked = std::mem::take(&mut self.asked);
        let (false, Some(inquiry)) = (asked.is_empty(), self.inquiry.as_mut()) else { return Ok(()) };
        inquiry.ask(&asked)?;
        // While the sender reads its files, this end reads its own.
        let own = |index: EntryIndex| {
            let entry = self.manifest.get(index)?;
            let fd = self.root.open_file(&self.placement.of(entry.path)).ok()?;
            content_of(&fd, entry.size(), self.stop)
        };
        let own: Vec<_> = asked.iter().map(|&index| own(index)).collect();
        let theirs = inquiry.answers(&asked)?;
        if self.stop.is_stopped() {
            return Err(Error::Interrupted);
        }
        for (index, own) in asked.into_iter().zip(own) {
            let Some(entry) = self.manifest.get(index) else { continue };
            let path = self.placement.of(entry.path);
            let same = own.is_some() && theirs.get(&index) == Some(&own);
            let stat = self.dirs.stat(self.root, &path).ok().flatten();
            let verdict = match stat {
                Some(stat) if same && needs_adjusting(&entry, &stat, &self.rules) => Verdict::Adjust,
                Some(_) if same => Verdict::Identical,
                _ => clash(self.root, &mut self.dirs, &path, &entry, &self.rules),
            };
            self.settle(index, &entry, &path, verdict);
        }
        Ok(())
    }
}

/// What is in the way.
#[derive(Debug, Default)]
struct Conflicts {
    named: Vec<(Vec<u8>, &'static str)>,
    count: u64,
    bytes: usize,
}

impl Conflicts {
    fn add(&mut self, entry: &Entry<'_>, path: &[u8], why: &'static str) {
        self.count += 1;
        self.bytes += 3 * path.len();
        if self.named.len() < NAMED_MAX && (self.bytes < NAMED_BYTES_MAX || self.named.is_empty()) {
            self.named.push((entry.path.as_bytes().to_vec(), why));
        }
    }

    fn refuse(self, advice: &str) -> Result<(), Error> {
        let Some(&(_, why)) = self.named.first() else { return Ok(()) };
        let message = match self.count {
            1 => format!("{why}; nothing was sent"),
            count => format!("{count} files are in the way ({why}); nothing was sent"),
        };
        let avoidable = !advice.is_empty() && self.named.iter().any(|(_, why)| *why == DIFFERS);
        let message = if avoidable { format!("{message} ({advice})") } else { message };
        let paths = self.named.into_iter().map(|(path, _)| path).collect();
        Err(Error::Refused(Refuse { code: Code::Conflict, message, paths }))
    }
}

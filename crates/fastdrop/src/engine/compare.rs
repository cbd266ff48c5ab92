//! Comparing a manifest with what is there already.

use super::files::ReceiveOptions;
use super::inquiry::{ASKED_MAX, Inquiry};
use super::mounts::Mounts;
use super::place::{Contents, DIFFERS, Placement, Rules, Verdict, clash, judge, needs_adjusting};
use crate::error::Error;
use crate::root::{Dirs, Root};
use crate::source::content_of;
use crate::stop::Stop;
use fastdrop_proto::fastdp::{Entry, EntryKind, Manifest, Receiver, Refuse, SkipReason};
use fastdrop_proto::units::EntryIndex;
use std::collections::HashMap;

/// Paths that a refusal names.
const NAMED_MAX: usize = 20;
/// Bytes of those paths as they are encoded, three for each: a refusal must fit into one frame.
const NAMED_BYTES_MAX: usize = 48 << 10;

/// The outcome of a comparison. What need not come is skipped in the receiver.
#[derive(Debug, Default)]
pub(super) struct Compared {
    /// Entries that do not simply go to their place.
    pub(super) exceptions: HashMap<EntryIndex, Verdict>,
    /// Entries that are there, but for their time or permissions.
    pub(super) adjust: Vec<EntryIndex>,
    /// Files that were there, or are left alone, and their bytes; how many of them differ and are left.
    pub(super) skipped: u64,
    pub(super) left: u64,
    pub(super) bytes_skipped: u64,
}

/// Compares the manifest of `machine` with what is beneath `root`, and notes in `mounts` where what is to come will live. Nothing is
/// changed.
///
/// # Errors
///
/// 409 with the paths of what is in the way; an error of the system.
pub(super) fn compare(
    machine: &mut Receiver,
    root: &Root,
    placement: &Placement,
    options: &ReceiveOptions,
    inquiry: Option<&mut Inquiry<'_>>,
    mounts: &mut Mounts,
    stop: &Stop,
) -> Result<Compared, Error> {
    let contents = match inquiry.as_ref().is_some_and(|inquiry| inquiry.knows_contents()) {
        true if options.check => Contents::Always,
        true => Contents::Touched,
        false => Contents::Never,
    };
    let rules = Rules { existing: options.existing, times: options.times, mode: options.mode, contents };
    let manifest = std::sync::Arc::clone(machine.manifest());
    let mut comparing = Comparing {
        machine,
        manifest: &manifest,
        root,
        dirs: Dirs::default(),
        placement,
        rules,
        compared: Compared::default(),
        conflicts: Conflicts::default(),
        asked: Vec::new(),
        inquiry,
        mounts,
        stop,
    };
    let chosen = options.filter.choose_from(&manifest);
    for (index, entry) in manifest.iter() {
        if stop.is_stopped() {
            return Err(Error::Interrupted);
        }
        if !chosen.takes(index) {
            comparing.machine.skip(index, SkipReason::Policy);
            continue;
        }
        let path = placement.of(entry.path);
        let verdict = judge(root, &mut comparing.dirs, &path, &entry, &comparing.rules)?;
        comparing.place(index, &entry, &path, &verdict)?;
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

struct Comparing<'a, 'b> {
    machine: &'a mut Receiver,
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

    fn settle(&mut self, index: EntryIndex, entry: &Entry<'_>, path: &[u8], verdict: Verdict) {
        match verdict {
            Verdict::New => {}
            Verdict::Identical | Verdict::Adjust if entry.kind == EntryKind::Directory => {}
            Verdict::Identical | Verdict::Adjust | Verdict::Ask | Verdict::Left => {
                let left = verdict == Verdict::Left;
                self.machine.skip(index, if left { SkipReason::Policy } else { SkipReason::Identical });
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

    /// Has the sender say the BLAKE3 of the files that are asked for, and compares it with that of what is there.
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
        Err(Error::Refused(Refuse { code: 409, message, paths }))
    }
}

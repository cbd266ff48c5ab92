//! The receiver's answer to the manifest: what it skips, has, claims to have, asks and needs.

use super::chunks::ChunkState;
use super::{LeftOut, Outcome, Sender};
use crate::checksum::Checksum;
use crate::fastdp::Violation;
use crate::fastdp::frame::Control;
use crate::fastdp::manifest::EntryKind;
use crate::fastdp::need::{Held, NeedTotals, SkipReason, SkipRun};
use crate::units::{ChunkIndex, EntryIndex};

impl Sender {
    /// Chunks in one SAME frame.
    const SAME_MAX: usize = 4096;

    pub(super) fn answering(&self) -> Result<(), Violation> {
        match self.needed {
            None => Ok(()),
            Some(_) => Err(Violation::protocol("an answer after its end")),
        }
    }

    pub(super) fn handle_skip(&mut self, runs: &[SkipRun]) -> Result<(), Violation> {
        self.answering()?;
        // Small files come without a checksum: whether they are those that are here, nobody knows.
        if !self.config.identity && runs.iter().any(|run| run.reason == SkipReason::Held) {
            self.end(Outcome::StartOver);
        }
        for run in runs {
            let end = run.first.0.checked_add(run.count).map(|end| end as usize);
            let range = end.and_then(|end| self.left_out.get_mut(run.first.at()..end));
            let range = range.ok_or_else(|| Violation::protocol("skipped entries that do not exist"))?;
            range.fill(Some(LeftOut::Skipped(run.reason)));
        }
        Ok(())
    }

    /// Takes questions for the contents of files: each file once, before the answer is complete.
    pub(super) fn handle_ask(&mut self, entries: &[EntryIndex]) -> Result<(), Violation> {
        self.answering()?;
        self.was_asked.resize(self.manifest.len() as usize, false);
        for &entry in entries {
            let is_file =
                self.manifest.get(entry).is_some_and(|entry| matches!(entry.kind, EntryKind::File { .. }));
            // Twice would cost the reading of a whole file each time, and the receiver nothing.
            match self.was_asked.get_mut(entry.at()) {
                Some(was_asked @ false) if is_file => *was_asked = true,
                _ => {
                    let why = "contents asked for that are not in the manifest, or twice";
                    return Err(Violation::protocol(why));
                }
            }
            self.asked.push_back(entry);
        }
        Ok(())
    }

    /// A file whose BLAKE3 the receiver wants; answered by CONTENT.
    pub fn poll_asked(&mut self) -> Option<EntryIndex> {
        self.asked.pop_front().filter(|_| self.outcome.is_none())
    }

    /// Takes chunks that the receiver has: those that have to be `compared` are its claims only.
    pub(super) fn handle_held(&mut self, held: &Held, compared: bool) -> Result<(), Violation> {
        self.answering()?;
        if compared && self.algorithm.is_empty() {
            return match self.config.identity {
                true => Err(Violation::protocol("chunks to be compared without checksums")),
                false => {
                    self.end(Outcome::StartOver);
                    Ok(())
                }
            };
        }
        let len = self.algorithm.len();
        let sums: Vec<Checksum> = match len {
            0 => vec![Checksum::default()],
            _ => held.checksums.chunks_exact(len).map(Checksum::from_slice).collect(),
        };
        if sums.len() * len != held.checksums.len() {
            return Err(Violation::protocol("held checksums of another length"));
        }
        for (at, sum) in (held.first.at()..).zip(&sums) {
            let chunk = ChunkIndex(at as u32);
            let taken = match compared {
                true => self.chunks.take_claim(chunk, sum),
                false => self.chunks.take_held(chunk, sum),
            };
            if !taken {
                return Err(Violation::protocol("held chunks that do not exist"));
            }
        }
        Ok(())
    }

    pub(super) fn handle_need(&mut self, said: NeedTotals) -> Result<(), Violation> {
        self.answering()?;
        let mut totals = NeedTotals { chunks: 0, bytes: 0 };
        for chunk in (0..self.chunks.count()).map(ChunkIndex) {
            if self.chunks.state(chunk) != Some(ChunkState::Queued) {
                continue;
            }
            let bytes = self.plain_len(chunk);
            if bytes == 0 {
                self.chunks.drop_unneeded(chunk);
            } else {
                totals.chunks += 1;
                totals.bytes += bytes;
            }
        }
        if totals != said {
            return Err(Violation::protocol(
                "the receiver needs something else than follows from its answer",
            ));
        }
        self.needed = Some(totals);
        Ok(())
    }

    // ---- what the receiver claims to have ----

    /// A chunk to be read and compared with what the receiver has; followed by
    /// [`Self::handle_compared`] or [`Self::handle_unreadable`]. None before the receiver has
    /// answered, and when there is no other.
    pub fn poll_compare(&mut self) -> Option<ChunkIndex> {
        if self.outcome.is_some() {
            return None;
        }
        self.needed?;
        self.chunks.next_claim()
    }

    /// Returns true if [`Self::poll_compare`] or [`Self::poll_asked`] has something now.
    pub fn wants_reading(&self) -> bool {
        let compare = self.needed.is_some() && self.chunks.has_claims();
        self.outcome.is_none() && (compare || !self.asked.is_empty())
    }

    /// Takes the checksum of a chunk that was read to be compared. Another one than the receiver's,
    /// and the chunk is sent.
    pub fn handle_compared(&mut self, chunk: ChunkIndex, checksum: &Checksum) {
        let Some(is_same) = self.chunks.take_compared(chunk, checksum) else { return };
        if is_same {
            if self.config.identity {
                match self.control_queue.back_mut() {
                    Some(Control::Same(chunks)) if chunks.len() < Self::SAME_MAX => chunks.push(chunk),
                    _ => self.control_queue.push_back(Control::Same(vec![chunk])),
                }
            }
        } else if self.config.identity {
            let bytes = self.plain_len(chunk);
            if let Some(needed) = &mut self.needed {
                needed.chunks += 1;
                needed.bytes += bytes;
            }
        } else {
            // A receiver that does not know identities takes no other version of a chunk that it
            // has.
            self.end(Outcome::StartOver);
        }
    }
}

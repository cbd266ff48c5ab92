//! The chunks of a transfer, as the sending end knows them: which must go, and their checksums.

use crate::checksum::{Algorithm, Checksum, ChecksumTable};
use crate::fastdp::Violation;
use crate::units::ChunkIndex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChunkState {
    /// The receiver has it or does not want it.
    Unneeded,
    /// Waits for a stream.
    Queued,
    /// On at least one stream, not confirmed.
    Flying,
    /// Waits until the receiver knows that one of its entries is left out.
    Blocked,
    /// The receiver has a chunk that may be of another version of the file: waits to be read and
    /// compared.
    Claimed,
    /// Is being read and compared.
    Comparing,
    Confirmed,
}

/// The state and the checksum of every chunk, and the queue of those that must go.
#[derive(Debug)]
pub(super) struct Chunks {
    states: Vec<ChunkState>,
    checksums: ChecksumTable,
    /// Needed chunks whose checksum is not known yet.
    unknown: u32,
    /// Packs that lost a slice, so that their checksum will be another than the one known.
    stale: BTreeSet<ChunkIndex>,
    /// Chunks below have been queued and taken once.
    cursor: u32,
    returned: VecDeque<ChunkIndex>,
    /// Checksums of the receiver's claimed chunks.
    claims: BTreeMap<ChunkIndex, Checksum>,
    /// Claimed chunks that wait to be compared.
    to_compare: VecDeque<ChunkIndex>,
}

impl Chunks {
    /// `count` chunks, all of which must go.
    pub(super) fn new(algorithm: Algorithm, count: u32) -> Self {
        let len = count as usize;
        Self {
            states: vec![ChunkState::Queued; len],
            checksums: ChecksumTable::new(algorithm, len),
            unknown: count,
            stale: BTreeSet::new(),
            cursor: 0,
            returned: VecDeque::new(),
            claims: BTreeMap::new(),
            to_compare: VecDeque::new(),
        }
    }

    pub(super) fn count(&self) -> u32 {
        self.states.len() as u32
    }

    pub(super) fn state(&self, chunk: ChunkIndex) -> Option<ChunkState> {
        self.states.get(chunk.at()).copied()
    }

    pub(super) fn checksum(&self, chunk: ChunkIndex) -> Option<Checksum> {
        self.checksums.get(chunk.at())
    }

    /// Returns true if a chunk waits for a stream.
    pub(super) fn has_queued(&self) -> bool {
        self.states.contains(&ChunkState::Queued)
    }

    /// Adds one more chunk, which must go.
    pub(super) fn push(&mut self) {
        self.states.push(ChunkState::Queued);
        self.checksums.grow(self.states.len());
        self.unknown += 1;
    }

    // ---- what the receiver has ----

    /// Takes that the receiver has a queued chunk, with this checksum; false for any other chunk.
    pub(super) fn take_held(&mut self, chunk: ChunkIndex, checksum: &Checksum) -> bool {
        let Some(state @ ChunkState::Queued) = self.states.get_mut(chunk.at()) else { return false };
        *state = ChunkState::Confirmed;
        self.checksums.set(chunk.at(), checksum);
        self.unknown -= 1;
        true
    }

    /// Takes that the receiver claims to have a queued chunk; false for any other chunk.
    pub(super) fn take_claim(&mut self, chunk: ChunkIndex, checksum: &Checksum) -> bool {
        let Some(state @ ChunkState::Queued) = self.states.get_mut(chunk.at()) else { return false };
        *state = ChunkState::Claimed;
        self.claims.insert(chunk, *checksum);
        self.to_compare.push_back(chunk);
        true
    }

    /// Returns true if a claimed chunk waits to be compared, or has waited and was dropped since.
    pub(super) fn has_claims(&self) -> bool {
        !self.to_compare.is_empty()
    }

    /// The next claimed chunk, which is being compared from now on.
    pub(super) fn next_claim(&mut self) -> Option<ChunkIndex> {
        while let Some(chunk) = self.to_compare.pop_front() {
            if let Some(state @ ChunkState::Claimed) = self.states.get_mut(chunk.at()) {
                *state = ChunkState::Comparing;
                return Some(chunk);
            }
        }
        None
    }

    /// Takes the checksum of a chunk that was compared: true if it is the receiver's, so that it is
    /// confirmed; false if it must go; None if nobody waits for it any more.
    pub(super) fn take_compared(&mut self, chunk: ChunkIndex, checksum: &Checksum) -> Option<bool> {
        let claimed = self.claims.remove(&chunk)?;
        let Some(state @ ChunkState::Comparing) = self.states.get_mut(chunk.at()) else { return None };
        let is_same = claimed == *checksum;
        if is_same {
            *state = ChunkState::Confirmed;
            self.checksums.set(chunk.at(), checksum);
            self.unknown -= 1;
        } else {
            *state = ChunkState::Queued;
            self.returned.push_back(chunk);
        }
        Some(is_same)
    }

    // ---- the way of a chunk ----

    /// The next chunk that must go, which flies from now on.
    pub(super) fn next_queued(&mut self) -> Option<ChunkIndex> {
        while let Some(chunk) = self.returned.pop_front() {
            if let Some(state @ ChunkState::Queued) = self.states.get_mut(chunk.at()) {
                *state = ChunkState::Flying;
                return Some(chunk);
            }
        }
        while let Some(state) = self.states.get_mut(self.cursor as usize) {
            let chunk = ChunkIndex(self.cursor);
            self.cursor += 1;
            if *state == ChunkState::Queued {
                *state = ChunkState::Flying;
                return Some(chunk);
            }
        }
        None
    }

    /// Notes the checksum of a chunk that is about to be sent; false if another one is known and it
    /// may not change.
    pub(super) fn note_read(&mut self, chunk: ChunkIndex, checksum: &Checksum, may_change: bool) -> bool {
        // Its file was given up while it was read.
        if self.state(chunk) == Some(ChunkState::Unneeded) {
            return true;
        }
        self.stale.remove(&chunk);
        match self.checksum(chunk) {
            None => {
                self.checksums.set(chunk.at(), checksum);
                self.unknown -= 1;
                true
            }
            Some(known) if known == *checksum => true,
            Some(_) if may_change => {
                self.checksums.set(chunk.at(), checksum);
                true
            }
            Some(_) => false,
        }
    }

    /// Takes a confirmation; false if it comes again, or for what is not needed.
    pub(super) fn confirm(&mut self, chunk: ChunkIndex) -> Result<bool, Violation> {
        let known = self.checksum(chunk).is_some();
        match self.states.get_mut(chunk.at()) {
            Some(ChunkState::Unneeded | ChunkState::Confirmed) => Ok(false),
            Some(_) if !known => Err(Violation::protocol("a confirmation of a chunk that was never sent")),
            Some(state) => {
                *state = ChunkState::Confirmed;
                self.stale.remove(&chunk);
                Ok(true)
            }
            None => Err(Violation::protocol("a confirmation of a chunk that does not exist")),
        }
    }

    /// Puts back a chunk that flies no more.
    pub(super) fn requeue(&mut self, chunk: ChunkIndex) {
        if let Some(state @ ChunkState::Flying) = self.states.get_mut(chunk.at()) {
            *state = ChunkState::Queued;
            self.returned.push_back(chunk);
        }
    }

    // ---- what cannot be read ----

    /// Keeps back a chunk that could not be read.
    pub(super) fn block_read(&mut self, chunk: ChunkIndex) {
        if let Some(state @ (ChunkState::Flying | ChunkState::Comparing)) = self.states.get_mut(chunk.at()) {
            *state = ChunkState::Blocked;
        }
    }

    /// Keeps back a chunk that nobody reads yet.
    pub(super) fn block_waiting(&mut self, chunk: ChunkIndex) {
        if let Some(state @ (ChunkState::Queued | ChunkState::Claimed)) = self.states.get_mut(chunk.at()) {
            *state = ChunkState::Blocked;
        }
    }

    /// Queues what remains of a pack that lost a slice.
    pub(super) fn queue_rest(&mut self, chunk: ChunkIndex) {
        let known = self.checksum(chunk).is_some();
        let Some(state) = self.states.get_mut(chunk.at()) else { return };
        *state = ChunkState::Queued;
        self.returned.push_back(chunk);
        if known {
            self.stale.insert(chunk);
        }
    }

    /// Drops a chunk of which nothing is needed.
    pub(super) fn drop_unneeded(&mut self, chunk: ChunkIndex) {
        let known = self.checksum(chunk).is_some();
        let Some(state) = self.states.get_mut(chunk.at()) else { return };
        self.stale.remove(&chunk);
        if !known && *state != ChunkState::Unneeded {
            self.unknown -= 1;
        }
        *state = ChunkState::Unneeded;
    }

    // ---- what is proven to the receiver ----

    /// Returns true if the checksum of every needed chunk is known, and will not be another one.
    pub(super) fn all_known(&self) -> bool {
        self.unknown == 0 && self.stale.is_empty()
    }

    /// One past the last of the chunks from `first` on that need nothing more.
    pub(super) fn settled_from(&self, first: u32) -> u32 {
        let states = self.states.iter().skip(first as usize);
        let settled = |state: &&ChunkState| matches!(state, ChunkState::Confirmed | ChunkState::Unneeded);
        first + states.take_while(settled).count() as u32
    }

    /// The confirmed chunks from `first` up to `end`, with their checksums.
    pub(super) fn confirmed(
        &self,
        first: u32,
        end: u32,
    ) -> impl Iterator<Item = (ChunkIndex, Checksum)> + '_ {
        let chunks = (first..end).map(ChunkIndex);
        let confirmed = chunks.filter(|chunk| self.state(*chunk) == Some(ChunkState::Confirmed));
        confirmed.filter_map(|chunk| Some((chunk, self.checksum(chunk)?)))
    }

    /// All needed chunks whose checksums are known, with these.
    pub(super) fn needed(&self) -> impl Iterator<Item = (ChunkIndex, Checksum)> + '_ {
        let chunks = (0..self.count()).map(ChunkIndex);
        let needed = chunks.filter(|chunk| self.state(*chunk) != Some(ChunkState::Unneeded));
        needed.filter_map(|chunk| Some((chunk, self.checksum(chunk)?)))
    }
}

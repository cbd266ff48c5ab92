//! Entries that are given up because they cannot be read any more.

use super::chunks::ChunkState;
use super::streams::StreamId;
use super::{LeftOut, Outcome, Sender};
use crate::fastdp::Violation;
use crate::fastdp::frame::Control;
use crate::fastdp::table::ChunkContent;
use crate::fastdp::{Code, Failure};
use crate::units::{ChunkIndex, EntryIndex};

impl Sender {
    /// Records that `chunk` cannot be read because of `entry`. `id` is the stream that was to send
    /// it; None if it was to be compared.
    pub fn handle_unreadable(
        &mut self,
        id: Option<StreamId>,
        chunk: ChunkIndex,
        entry: EntryIndex,
        code: Code,
        reason: &str,
    ) {
        if let Some(stream) = id.and_then(|id| self.streams.get_mut(id)) {
            stream.sending = None;
            stream.flying.remove(&chunk);
        }
        // Confirmed after all, on its way or on another stream: then its bytes may be gone here.
        if matches!(self.chunks.state(chunk), Some(ChunkState::Confirmed | ChunkState::Unneeded)) {
            return;
        }
        if self.is_left_out(entry) {
            // Another stream found it first, and the receiver has answered meanwhile: what remains
            // of a pack still goes.
            self.requeue(chunk);
            return;
        }
        self.chunks.block_read(chunk);
        if self.table.stream().is_some_and(|(stream, _)| stream == entry) {
            self.end(Outcome::Failed(Failure::new(code, reason)));
            return;
        }
        // It was read once, and the digest in END has it: the next attempt can leave it out, this
        // one cannot.
        if self.end_sent {
            self.end(Outcome::Lost(format!("a file could not be read again: {reason}")));
            return;
        }
        if self.abandoning.insert(entry) {
            self.control_queue.push_back(Control::Abandon { entry, code, reason: reason.into() });
            // The other pieces of the file need not go any more.
            if let Some((first, count)) = self.table.chunks_of(entry) {
                for other in (first.0..first.0 + count).map(ChunkIndex) {
                    self.chunks.block_waiting(other);
                }
            }
        }
    }

    pub(super) fn handle_abandoned(&mut self, entry: EntryIndex) -> Result<(), Violation> {
        if !self.abandoning.remove(&entry) {
            return Err(Violation::protocol("ABANDONED without ABANDON"));
        }
        let Some((first, count)) = self.table.chunks_of(entry) else { return Ok(()) };
        let chunks = (first.0..first.0 + count).map(ChunkIndex);
        let mut states = chunks.clone().map(|chunk| self.chunks.state(chunk));
        if states.all(|state| state == Some(ChunkState::Confirmed)) {
            return Ok(());
        }
        if let Some(left_out) = self.left_out.get_mut(entry.at()) {
            *left_out = Some(LeftOut::Abandoned);
        }
        for chunk in chunks {
            let is_pack = matches!(self.table.content(chunk), Some(ChunkContent::Pack { .. }));
            let remains = is_pack && !self.slices(chunk).is_empty();
            let blocked = remains
                && self
                    .abandoning
                    .iter()
                    .any(|other| self.table.chunks_of(*other).is_some_and(|(of, _)| of == chunk));
            if blocked {
                continue;
            }
            if remains {
                self.chunks.queue_rest(chunk);
            } else {
                self.chunks.drop_unneeded(chunk);
                self.streams.forget(chunk);
            }
        }
        Ok(())
    }
}

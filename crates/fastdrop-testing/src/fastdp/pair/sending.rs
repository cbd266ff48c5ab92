//! The sender's end of a pair: its program, and what leaves and comes on each connection.

use super::{Checked, Event, Pair};
use crate::fastdp::pipe::{MILLI, SECOND};
use crate::fastdp::plan::Fault;
use crate::fastdp::world::ONE;
use fastdrop_proto::fastdp::{
    Action, ChunkContent, Code, Control, Do, FrameHeader, FrameKind, Header, Open, StreamId, Transcript,
};
use fastdrop_proto::units::ChunkIndex;

impl Pair {
    /// Reads what the receiver claims to have, and compares it.
    pub(super) fn compare(&mut self) -> bool {
        let mut moved = false;
        while let Some(chunk) = self.attempt.sender.poll_compare() {
            moved = true;
            let shape = self.world.sender_shape(&self.attempt.sender, chunk);
            match self.world.read(&shape) {
                Ok(bytes) => {
                    let sum = shape.checksum(self.plan.algorithm, &bytes);
                    let same = self.world.pieces[chunk.at()].is_some_and(|(held, _)| held == sum);
                    self.stats.same += u32::from(same);
                    self.stats.differing += u32::from(!same);
                    self.attempt.explained += u32::from(!same);
                    self.attempt.sender.handle_compared(chunk, &sum);
                }
                Err(entry) => {
                    self.attempt.sender.handle_unreadable(None, chunk, entry, Code::NotFound, "it is gone");
                }
            }
        }
        moved
    }

    pub(super) fn pump_sender(&mut self, at: usize) -> Result<bool, String> {
        let mut moved = false;
        let id = StreamId(at as u32);
        loop {
            let (base, time) = (self.instant(), self.now);
            let conn = &mut self.attempt.conns[at];
            if !conn.sender_open {
                return Ok(moved);
            }
            if conn.out_at < conn.out.len() {
                let (taken, arrives) = conn.forward.push(time, &conn.out[conn.out_at..]);
                conn.out_at += taken;
                conn.sent += taken as u64;
                let rest = conn.out.len() - conn.out_at;
                if taken > 0 {
                    moved = true;
                    if conn.sending.is_some() {
                        conn.progress_at = time;
                    }
                    self.attempt.sender.handle_progress(id, base);
                }
                if let Some(arrives) = arrives {
                    self.schedule_at(arrives, Event::ToReceiver(at));
                }
                if rest > 0 {
                    return Ok(moved);
                }
            }
            let conn = &mut self.attempt.conns[at];
            conn.out.clear();
            conn.out_at = 0;
            if let Some(bytes) = conn.sending.take() {
                self.attempt.sender.handle_sent(id, bytes, base);
            }
            let conn = &mut self.attempt.conns[at];
            if conn.reading.is_some() {
                return Ok(moved);
            }
            if let Some(copy) = conn.extra.pop() {
                conn.out = copy;
                continue;
            }
            match self.attempt.sender.poll_stream(id, base) {
                Action::Send(chunk) => {
                    moved = true;
                    self.begin_send(at, chunk)?;
                }
                Action::Control(frame) => {
                    moved = true;
                    self.say(at, &frame);
                }
                Action::Close => {
                    self.trace(|| format!("{id:?} closes"));
                    let conn = &mut self.attempt.conns[at];
                    conn.sender_open = false;
                    self.attempt.explained += conn.unconfirmed.len() as u32;
                    conn.unconfirmed.clear();
                    let end = conn.forward.close(time);
                    self.schedule_at(end, Event::ToReceiver(at));
                    return Ok(true);
                }
                Action::Wait => return Ok(moved),
            }
        }
    }

    fn say(&mut self, at: usize, frame: &Control) {
        self.trace(|| format!("sender, {at}: {frame:?}"));
        match frame {
            Control::End(_) if self.plan.lose_end => {
                self.plan.lose_end = false;
                self.happened(Fault::LoseEnd);
                let keep = self.attempt.conns[0].forward.queued();
                self.cut(0, keep, 0);
            }
            Control::Checkpoint => {
                self.stats.checkpoints += 1;
                self.stats.carrying_at_checkpoint.push(self.attempt.sender.data_streams());
                self.attempt.conns[at].retiring = true;
            }
            _ => {}
        }
        self.attempt.conns[at].out = frame.encode();
    }

    fn begin_send(&mut self, at: usize, chunk: ChunkIndex) -> Checked {
        self.stats.sends += 1;
        self.attempt.sends += 1;
        self.trace(|| format!("sender, {at}: {chunk:?}"));
        let shape = self.world.sender_shape(&self.attempt.sender, chunk);
        let forbidden = match shape.content {
            ChunkContent::Piece { .. } => self.attempt.forbidden_pieces[chunk.at()],
            ChunkContent::Pack { .. } => {
                shape.slices.iter().any(|(entry, _)| self.attempt.forbidden_smalls[entry.at()])
            }
            ChunkContent::Stream { .. } => false,
        };
        if forbidden {
            return Err(format!("{chunk:?} was confirmed before this attempt and is sent again"));
        }
        self.attempt.conns[at].unconfirmed.insert(chunk);
        self.attempt.conns[at].progress_at = self.now;
        let delay = self.between(self.plan.read);
        if delay == 0 {
            self.finish_read(at, chunk)?;
        } else {
            self.attempt.conns[at].reading = Some(chunk);
            self.schedule(delay, Event::Read(at));
        }
        self.faults()
    }

    pub(super) fn finish_read(&mut self, at: usize, chunk: ChunkIndex) -> Checked {
        let shape = self.world.sender_shape(&self.attempt.sender, chunk);
        if matches!(shape.content, ChunkContent::Pack { .. }) && shape.slices.is_empty() {
            // Abandoned while it was to be read; there is nothing to send.
            self.attempt.sender.handle_sent(StreamId(at as u32), 0, self.instant());
            return Ok(());
        }
        let id = StreamId(at as u32);
        match self.world.read(&shape) {
            Ok(bytes) => {
                let sum = shape.checksum(self.plan.algorithm, &bytes);
                self.attempt.sender.handle_read(chunk, &sum);
                let sparse = self.plan.sparse && matches!(shape.content, ChunkContent::Piece { .. });
                let zstd = self.plan.zstd && chunk.0.is_multiple_of(2);
                let (mut frame, flippable) = self.world.encode(chunk, &bytes, &sum, sparse, zstd);
                self.stats.encoded += u32::from(is_encoded(&frame));
                let copy = frame.clone();
                if self.flip_next > 0 && flippable < frame.len() {
                    self.flip_next -= 1;
                    self.happened(Fault::Flip);
                    let byte = flippable + self.rng.below(frame.len() - flippable);
                    frame[byte] ^= 1 << self.rng.below(8);
                }
                if self.duplicate_next > 0 {
                    self.duplicate_next -= 1;
                    self.happened(Fault::Duplicate);
                    let others: Vec<_> = self.data_conns().into_iter().filter(|&other| other != at).collect();
                    let to =
                        if others.is_empty() || self.rng.percent(50) { at } else { self.rng.pick(&others) };
                    self.attempt.conns[to].extra.push(copy);
                }
                let conn = &mut self.attempt.conns[at];
                conn.sending = Some(frame.len() as u64);
                conn.out = frame;
                conn.out_at = 0;
            }
            Err(entry) => {
                self.trace(|| format!("sender, {at}: {chunk:?} cannot be read because of {entry:?}"));
                self.attempt.explained += 1;
                self.attempt.conns[at].unconfirmed.remove(&chunk);
                self.attempt.sender.handle_unreadable(Some(id), chunk, entry, Code::NotFound, "it is gone");
            }
        }
        Ok(())
    }

    pub(super) fn fill_stream(&mut self) {
        if self.attempt.sender.wants_stream() != Some(true) {
            return;
        }
        while self.attempt.sender.poll_stream_freed().is_some() {
            self.attempt.freed += 1;
        }
        let Some(entry) = self.world.stream() else { return };
        let size = self.world.source.data[entry.at()].len();
        while self.attempt.stream_at < size && self.attempt.filled < self.attempt.freed + 8 {
            self.attempt.sender.handle_stream_filled();
            self.attempt.stream_at = (self.attempt.stream_at + ONE as usize).min(size);
            self.attempt.filled += 1;
        }
        if self.attempt.stream_at == size && !self.attempt.stream_done {
            self.attempt.stream_done = true;
            self.attempt.sender.handle_stream_ended(size as u64);
        }
    }

    pub(super) fn sender_receive(&mut self, at: usize) -> Checked {
        if self.attempt.sender_dead || !self.attempt.conns[at].sender_open {
            return Ok(());
        }
        let conn = &mut self.attempt.conns[at];
        let mut bytes = std::mem::take(&mut conn.sender_in);
        conn.back.take(self.now, &mut bytes);
        let mut rest = &bytes[..];
        if at == 0
            && self.attempt.server_header_seen.is_none()
            && let Some((_, text, used)) = Header::decode(rest).map_err(|error| error.to_string())?
        {
            self.attempt.server_header_seen = Some(text.to_vec());
            rest = &rest[used..];
        }
        if at != 0 || self.attempt.server_header_seen.is_some() {
            while let Some((head, after)) = rest.split_first_chunk::<8>() {
                let header = FrameHeader::decode(*head).map_err(|error| error.to_string())?;
                let FrameKind::Control(kind) = header.kind else {
                    return Err("a chunk from the receiver".into());
                };
                let Some((payload, after)) = after.split_at_checked(header.size as usize) else { break };
                let frame = Control::decode(kind, payload).map_err(|error| error.to_string())?;
                rest = after;
                self.sender_frame(at, frame, payload);
            }
        }
        let left = rest.to_vec();
        let conn = &mut self.attempt.conns[at];
        conn.sender_in = left;
        if conn.back.ended(self.now) {
            self.lose(at);
        }
        Ok(())
    }

    fn sender_frame(&mut self, at: usize, frame: Control, payload: &[u8]) {
        let now = self.instant();
        match &frame {
            Control::Grant(_) => {
                let seen = self.attempt.server_header_seen.clone().unwrap_or_default();
                let (client, open) = self.hello();
                self.attempt.sender.set_transcript(Transcript::new(&client, &open, &seen, payload));
                return;
            }
            Control::Need(totals) => {
                self.attempt.needed = Some(totals.chunks);
                self.stats.needed.push(totals.chunks);
            }
            Control::Confirm(chunks) => {
                self.attempt.conns[at].progress_at = self.now;
                for conn in &mut self.attempt.conns {
                    chunks.iter().for_each(|chunk| _ = conn.unconfirmed.remove(chunk));
                }
            }
            Control::Again(chunks) => {
                self.attempt.explained += chunks.len() as u32;
                self.stats.again += chunks.len() as u32;
            }
            // What remains of its pack is sent anew.
            Control::Abandoned(_) => {
                self.attempt.explained += 1;
                self.stats.abandoned += 1;
            }
            Control::Refuse(_) if at != 0 => self.stats.stream_refused += 1,
            _ => {}
        }
        self.attempt.sender.handle_frame(StreamId(at as u32), frame, now);
    }

    /// Header and OPEN as the sender sent them.
    fn hello(&self) -> (Vec<u8>, Vec<u8>) {
        let manifest = &self.world.source.manifest;
        let header =
            Header::new(self.world.table.one_chunk(), self.world.table.count(), manifest.bytes(), "files");
        let open =
            Open { checksum: self.plan.algorithm, streams: self.plan.config.granted, ..Open::new(Do::Put) };
        (header.encode()[4..].to_vec(), Control::Open(open).encode()[8..].to_vec())
    }

    /// The sender's end of a connection is gone.
    pub(super) fn lose(&mut self, at: usize) {
        let conn = &mut self.attempt.conns[at];
        if !conn.sender_open || self.attempt.sender_dead {
            return;
        }
        conn.sender_open = false;
        self.attempt.explained += conn.unconfirmed.len() as u32;
        conn.unconfirmed.clear();
        let end = conn.forward.close(self.now);
        self.schedule_at(end, Event::ToReceiver(at));
        self.trace(|| format!("the sender lost {at}"));
        self.attempt.sender.handle_stream_lost(StreamId(at as u32), self.instant());
    }

    /// The sender closes a connection that stalled.
    pub(super) fn abort(&mut self, at: usize) {
        let conn = &mut self.attempt.conns[at];
        conn.sender_open = false;
        self.attempt.explained += conn.unconfirmed.len() as u32;
        conn.unconfirmed.clear();
        let keep = self.rng.below(conn.forward.queued() + 1);
        let end = conn.forward.cut(self.now, keep);
        self.schedule_at(end, Event::ToReceiver(at));
    }

    /// The sender's attempt is over; what is on its way may still arrive before the next one.
    pub(super) fn sender_dies(&mut self, orderly: bool) {
        self.attempt.sender_dead = true;
        for at in 0..self.attempt.conns.len() {
            let conn = &mut self.attempt.conns[at];
            conn.sender_open = false;
            let queued = conn.forward.queued();
            let keep = if orderly { queued } else { self.rng.below(queued + 1) };
            let end = conn.forward.cut(self.now, keep);
            self.schedule_at(end, Event::ToReceiver(at));
        }
        let pause = self.rng.range(MILLI, 8 * SECOND);
        self.schedule(pause, Event::NewAttempt);
    }
}

/// Returns true if a frame is a chunk in an encoding.
fn is_encoded(frame: &[u8]) -> bool {
    let header = frame.first_chunk().map(|header| FrameHeader::decode(*header));
    matches!(header, Some(Ok(FrameHeader { kind: FrameKind::EncodedChunk(_), .. })))
}

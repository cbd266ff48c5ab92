//! The receiver's end of a pair: its program, its disk, and what it confirms.

use super::{Checked, Event, Pair, Writing};
use crate::fastdp::pipe::SECOND;
use crate::fastdp::plan::{Bug, Fault};
use crate::fastdp::world::Shape;
use fastdrop_proto::checksum::Checksum;
use fastdrop_proto::fastdp::{
    ChunkContent, ChunkVerdict, Code, Completed, Control, Do, Done, Encoding, Expected, FrameHeader,
    FrameKind, Grant, Header, Open, Place, Receiver, Refuse, Transcript, Violation,
};
use fastdrop_proto::units::{ChunkIndex, ChunkSize, EntryIndex, TransferId};
use std::sync::Arc;

impl Pair {
    pub(super) fn reply(&mut self, at: usize, frame: &Control) {
        self.trace(|| format!("receiver, {at}: {frame:?}"));
        if matches!(frame, Control::Done(_)) && self.plan.lose_done {
            self.plan.lose_done = false;
            self.happened(Fault::LoseDone);
            self.cut(0, 0, 0);
        }
        let conn = &mut self.attempt.conns[at];
        if conn.receiver_open {
            conn.back_out.extend(frame.encode());
        }
    }

    pub(super) fn pump_receiver(&mut self, at: usize) -> bool {
        let conn = &mut self.attempt.conns[at];
        if conn.back_at == conn.back_out.len() {
            return false;
        }
        let (taken, arrives) = conn.back.push(self.now, &conn.back_out[conn.back_at..]);
        conn.back_at += taken;
        if conn.back_at == conn.back_out.len() {
            conn.back_out.clear();
            conn.back_at = 0;
        }
        if let Some(arrives) = arrives {
            self.schedule_at(arrives, Event::ToSender(at));
        }
        taken > 0
    }

    pub(super) fn receive(&mut self, at: usize) -> Checked {
        if self.attempt.receiver_dead {
            return Ok(());
        }
        let conn = &mut self.attempt.conns[at];
        if conn.writing.is_none() && conn.receiver_open {
            conn.forward.take(self.now, &mut conn.receiver_in);
        }
        while self.attempt.conns[at].receiver_open && self.attempt.conns[at].writing.is_none() {
            match self.receive_one(at) {
                Ok(true) => {}
                Ok(false) => break,
                Err(Failure::Check(error)) => return Err(error),
                Err(Failure::Violation(violation)) => {
                    if at == 0 {
                        return Err(format!("the receiver refused: {violation}"));
                    }
                    self.trace(|| format!("the receiver refuses {at}: {violation}"));
                    // Only one thing can explain that: the shape of a pack changed while it was on
                    // its way.
                    let packs =
                        |chunk| matches!(self.world.table.content(chunk), Some(ChunkContent::Pack { .. }));
                    let chunk = self.attempt.conns[at].receiver_in.get(self.attempt.conns[at].receiver_at..);
                    let chunk =
                        chunk.and_then(|rest| rest.first_chunk::<4>()).map(|n| u32::from_be_bytes(*n));
                    let lost_slice = chunk.is_some_and(|chunk| {
                        packs(ChunkIndex(chunk)) && self.pack_lost_a_slice(ChunkIndex(chunk))
                    });
                    if violation.code != Code::BadRequest || !lost_slice {
                        return Err(format!("the receiver refused stream {at}: {violation}"));
                    }
                    let Violation { code, message, .. } = violation;
                    self.reply(at, &Control::Refuse(Refuse { code, message, paths: vec![] }));
                    self.pump_receiver(at);
                    let conn = &mut self.attempt.conns[at];
                    conn.receiver_open = false;
                    let end = conn.back.close(self.now);
                    self.schedule_at(end, Event::ToSender(at));
                }
            }
        }
        let conn = &mut self.attempt.conns[at];
        conn.receiver_in.drain(..conn.receiver_at);
        conn.receiver_at = 0;
        if conn.writing.is_none() {
            self.confirm(at);
            let conn = &mut self.attempt.conns[at];
            if conn.receiver_open && conn.forward.ended(self.now) {
                conn.receiver_open = false;
                let end = conn.back.close(self.now);
                self.schedule_at(end, Event::ToSender(at));
                if at == 0 {
                    self.trace(|| "the receiver's attempt is over".into());
                    self.receiver_over();
                }
            }
        }
        Ok(())
    }

    fn pack_lost_a_slice(&self, chunk: ChunkIndex) -> bool {
        let Some(ChunkContent::Pack { from, to }) = self.world.table.content(chunk) else { return false };
        let Some(receiver) = &self.attempt.receiver else { return false };
        (from.0..to.0).any(|entry| receiver.is_abandoned(EntryIndex(entry)))
    }

    /// Takes one header or frame: whether there was a whole one.
    fn receive_one(&mut self, at: usize) -> Result<bool, Failure> {
        let conn = &self.attempt.conns[at];
        let rest = &conn.receiver_in[conn.receiver_at..];
        if at == 0 && self.attempt.client_header.is_none() {
            let Some((_, text, used)) = Header::decode(rest)? else { return Ok(false) };
            self.attempt.client_header = Some(text.to_vec());
            self.attempt.conns[at].receiver_at += used;
            return Ok(true);
        }
        if let Some((expected, shape, size)) = conn.expected.clone() {
            let Some(payload) = rest.get(..size) else { return Ok(false) };
            let payload = payload.to_vec();
            let conn = &mut self.attempt.conns[at];
            conn.receiver_at += size;
            conn.expected = None;
            self.receive_chunk(at, &expected, shape, &payload)?;
            return Ok(true);
        }
        let Some((head, after)) = rest.split_first_chunk::<8>() else { return Ok(false) };
        let header = FrameHeader::decode(*head)?;
        if let FrameKind::Control(kind) = header.kind {
            let Some(payload) = after.get(..header.size as usize) else { return Ok(false) };
            let payload = payload.to_vec();
            self.attempt.conns[at].receiver_at += 8 + payload.len();
            let frame = Control::decode(kind, &payload)?;
            self.receive_control(at, frame, payload)?;
        } else {
            let Some(receiver) = &mut self.attempt.receiver else {
                return Err(Failure::Check("a chunk before the answer".into()));
            };
            let expected = receiver.expect(header.kind, header.size)?;
            let shape = self.world.receiver_shape(receiver, expected.chunk);
            let conn = &mut self.attempt.conns[at];
            conn.receiver_at += 8;
            conn.expected = Some((expected, shape, header.size as usize));
        }
        Ok(true)
    }

    fn receive_control(&mut self, at: usize, frame: Control, payload: Vec<u8>) -> Result<(), Failure> {
        let Some(receiver) = &mut self.attempt.receiver else {
            match frame {
                Control::Open(_) => self.attempt.open = Some(payload),
                Control::Manifest(part) => {
                    let builder = self.attempt.builder.as_mut().ok_or("a manifest after its end")?;
                    builder.handle_part(&part).map_err(|error| error.to_string())?;
                }
                Control::ManifestEnd(end) => {
                    let builder = self.attempt.builder.take().ok_or("two ends of a manifest")?;
                    let manifest = builder.handle_end(&end).map_err(|error| error.to_string())?;
                    self.answer(Arc::new(manifest));
                }
                Control::Identity(_) => {}
                _ => return Err(Failure::Check(format!("{frame:?} before the answer"))),
            }
            return Ok(());
        };
        let answers = match frame {
            Control::End(digest) => {
                receiver.handle_end(digest)?;
                Vec::new()
            }
            Control::Identity(_) => Vec::new(),
            Control::Proven(proven) => {
                self.stats.proven += proven.count;
                receiver.handle_proven(&proven)?;
                Vec::new()
            }
            Control::Same(chunks) => {
                for chunk in chunks {
                    self.same(chunk)?;
                }
                Vec::new()
            }
            Control::Size { entry, size } => {
                receiver.handle_size(entry, size)?;
                Vec::new()
            }
            Control::Abandon { entry, .. } => receiver.handle_abandon(entry)?,
            Control::Checkpoint => {
                self.confirm(at);
                vec![Control::Checkpointed]
            }
            Control::Alive => Vec::new(),
            _ => return Err(Failure::Check(format!("{frame:?} from the sender"))),
        };
        answers.iter().for_each(|answer| self.reply(at, answer));
        self.poll_finish()?;
        Ok(())
    }

    /// A chunk that is held is that of the sender: from here on it counts, under its file's new
    /// identity.
    fn same(&mut self, chunk: ChunkIndex) -> Result<(), Failure> {
        let receiver = self.attempt.receiver.as_mut().ok_or("SAME before the answer")?;
        let shape = self.world.receiver_shape(receiver, chunk);
        if let Some((sum, completed)) = receiver.handle_same(chunk)? {
            self.world.journal(&shape, &[], &sum);
            self.count(chunk)?;
            self.promise(&shape);
            if let Completed::File(entry) = completed {
                self.complete(entry)?;
            }
        }
        Ok(())
    }

    fn answer(&mut self, manifest: Arc<fastdrop_proto::fastdp::Manifest>) {
        let table = fastdrop_proto::fastdp::Table::new(&manifest, ChunkSize::MIN).unwrap();
        let mut receiver = Receiver::new(manifest, table, self.plan.algorithm);
        if self.plan.bug != Some(Bug::ForgetJournal) {
            self.world.resume(&mut receiver, self.plan.bug == Some(Bug::JournalEarly));
        }
        let header = Header::new(ChunkSize::MIN, receiver.table().count(), 0, "files").encode();
        let grant = Control::Grant(Grant {
            transfer: Some(TransferId(*b"0123456789abcdef")),
            streams: self.plan.config.granted,
            checksum: self.plan.algorithm,
            durability: Open::new(Do::Put).durability,
            place: Place::Into,
            checkpoint: self.plan.config.checkpoint,
            keeps_archive: false,
            capabilities: vec!["sparse".into()],
        })
        .encode();
        let client_header = self.attempt.client_header.clone().unwrap_or_default();
        let mut open = self.attempt.open.clone().unwrap_or_default();
        if self.plan.alter_transcript {
            open.push(b' ');
        }
        receiver.set_transcript(Transcript::new(&client_header, &open, &header[4..], &grant[8..]));
        let conn = &mut self.attempt.conns[0];
        conn.back_out.extend(&header);
        conn.back_out.extend(&grant);
        self.trace(|| "receiver, 0: header, GRANT".into());
        for frame in receiver.answer() {
            self.reply(0, &frame);
        }
        let chunks = self.world.table.count();
        self.attempt.initially_held =
            (0..chunks).map(|n| receiver.checksum(ChunkIndex(n)).is_some()).collect();
        self.attempt.receiver = Some(receiver);
    }

    fn receive_chunk(
        &mut self,
        at: usize,
        expected: &Expected,
        shape: Shape,
        payload: &[u8],
    ) -> Result<(), Failure> {
        let (data, sum) = payload.split_at(expected.data_len as usize);
        let mut expected = *expected;
        let expected = &mut expected;
        let bytes = if expected.encoded {
            let (encoding, mut data) = Encoding::decode(data, &shape.content, expected.plain_len)?;
            if data.len() != encoding.data_len() as usize {
                return Err(Failure::Check("data of another length than was said".into()));
            }
            expected.plain_len = encoding.plain_len;
            let mut bytes = vec![0; expected.plain_len as usize];
            match encoding.extents {
                None => bytes.copy_from_slice(data),
                Some(extents) => {
                    for (offset, len) in extents.iter() {
                        let (extent, after) = data.split_at(len as usize);
                        bytes[offset as usize..(offset + len) as usize].copy_from_slice(extent);
                        data = after;
                    }
                }
            }
            bytes
        } else {
            data.to_vec()
        };
        let sent = Checksum::from_slice(sum);
        let mut computed = shape.checksum(self.plan.algorithm, &bytes);
        if self.plan.bug == Some(Bug::TrustChecksum) {
            computed = sent;
        }
        let receiver = self.attempt.receiver.as_mut().ok_or("a chunk before the answer")?;
        let verdict = receiver.check(expected, &sent, &computed)?;
        self.trace(|| format!("receiver, {at}: {:?} {verdict:?}", expected.chunk));
        match verdict {
            ChunkVerdict::Write => {
                let others = self.attempt.conns.iter().filter_map(|conn| conn.writing.as_ref());
                // Another version of a pack, with a slice that was given up, may be on its way to
                // the disk yet.
                let same = |writing: &&Writing| {
                    writing.shape.chunk == shape.chunk && writing.shape.slices == shape.slices
                };
                if others.filter(same).count() > 0 {
                    return Err(Failure::Check(format!("two writers of {:?}", expected.chunk)));
                }
                if self.plan.bug == Some(Bug::ConfirmEarly) {
                    self.promise(&shape);
                }
                if self.plan.bug == Some(Bug::JournalEarly) {
                    self.world.journal(&shape, &bytes, &computed);
                }
                let slow = self.rng.percent(self.plan.slow_writes);
                let delay =
                    if slow { self.rng.range(SECOND, 9 * SECOND) } else { self.between(self.plan.write) };
                self.attempt.conns[at].writing = Some(Writing { shape, bytes, sum: computed });
                if delay == 0 {
                    self.finish_write(at)?;
                } else {
                    self.schedule(delay, Event::Written(at));
                }
            }
            ChunkVerdict::Confirm => {
                if self.plan.bug == Some(Bug::CountTwice) {
                    self.count(expected.chunk)?;
                }
                self.attempt.conns[at].to_confirm.push(expected.chunk);
            }
            ChunkVerdict::Ignore => {}
            ChunkVerdict::Again => {
                self.confirm(at);
                self.reply(at, &Control::Again(vec![expected.chunk]));
            }
        }
        Ok(())
    }

    fn count(&mut self, chunk: ChunkIndex) -> Checked {
        if self.attempt.counted.len() <= chunk.at() {
            self.attempt.counted.resize(chunk.at() + 1, 0);
        }
        self.attempt.counted[chunk.at()] += 1;
        if self.attempt.counted[chunk.at()] > 1 {
            return Err(format!("{chunk:?} is counted twice"));
        }
        Ok(())
    }

    fn complete(&mut self, entry: EntryIndex) -> Checked {
        self.attempt.completed[entry.at()] += 1;
        if self.attempt.completed[entry.at()] > 1 {
            return Err(format!("{entry:?} is complete twice"));
        }
        if !self.world.is_whole(entry) {
            return Err(format!("{entry:?} is said to be complete and is not"));
        }
        Ok(())
    }

    pub(super) fn finish_write(&mut self, at: usize) -> Checked {
        if self.attempt.receiver_dead {
            return Ok(());
        }
        let Some(Writing { shape, bytes, sum }) = self.attempt.conns[at].writing.take() else {
            return Ok(());
        };
        self.world.write(&shape, &bytes, bytes.len());
        self.world.journal(&shape, &bytes, &sum);
        let Some(receiver) = &mut self.attempt.receiver else {
            return Err("a write without a receiver".into());
        };
        if matches!(shape.content, ChunkContent::Stream { .. }) {
            receiver.handle_stream_bytes(bytes.len() as u32);
        }
        let before = receiver.checksum(shape.chunk).is_some();
        let completed = receiver.handle_written(shape.chunk, &sum);
        let held = receiver.checksum(shape.chunk).is_some();
        if held && !before {
            self.count(shape.chunk)?;
        }
        match completed {
            Completed::Nothing => {}
            Completed::File(entry) => self.complete(entry)?,
            Completed::Pack(..) => {
                for &(entry, _) in &shape.slices {
                    let abandoned = self.attempt.receiver.as_ref().is_some_and(|r| r.is_abandoned(entry));
                    if !abandoned {
                        self.complete(entry)?;
                    }
                }
            }
        }
        if held {
            self.attempt.conns[at].to_confirm.push(shape.chunk);
            self.promise(&shape);
        }
        self.poll_finish()
    }

    /// From here on the sender may rely on it: it is confirmed, or will be.
    fn promise(&mut self, shape: &Shape) {
        match shape.content {
            ChunkContent::Piece { .. } => self.promised_pieces[shape.chunk.at()] = true,
            ChunkContent::Pack { .. } => {
                shape.slices.iter().for_each(|(entry, _)| self.promised_smalls[entry.at()] = true);
            }
            ChunkContent::Stream { .. } => {}
        }
    }

    fn confirm(&mut self, at: usize) {
        let chunks = std::mem::take(&mut self.attempt.conns[at].to_confirm);
        if chunks.is_empty() {
            return;
        }
        let on = if self.plan.confirm_on_control { 0 } else { at };
        self.reply(on, &Control::Confirm(chunks));
    }

    fn poll_finish(&mut self) -> Checked {
        let Some(receiver) = &mut self.attempt.receiver else { return Ok(()) };
        let finish = match self.plan.bug {
            Some(Bug::NameAtEnd) if !self.attempt.finished => Some(Ok(())),
            _ => receiver.poll_finish(),
        };
        match finish {
            None => Ok(()),
            Some(Err(violation)) => Err(format!("the receiver does not finish: {violation}")),
            Some(Ok(())) => self.finish(),
        }
    }

    /// The receiver gives names: everything must be there.
    fn finish(&mut self) -> Checked {
        if std::mem::replace(&mut self.attempt.finished, true) {
            return Err("finished twice".into());
        }
        let Some(receiver) = &self.attempt.receiver else { return Err("finished without a receiver".into()) };
        for at in 0..self.world.named.len() {
            let entry = EntryIndex(at as u32);
            if self.world.existing[at].is_some() {
                continue;
            }
            if receiver.is_abandoned(entry) {
                if self.world.unreadable[at].is_none() {
                    return Err(format!("{entry:?} was given up for no reason"));
                }
                continue;
            }
            if !self.world.is_whole(entry) {
                return Err(format!("{entry:?} gets its name and is not what was sent"));
            }
            self.world.named[at] = true;
        }
        for at in 0..self.world.table.count() {
            let chunk = ChunkIndex(at);
            let needed = match self.world.table.content(chunk) {
                Some(ChunkContent::Piece { entry, .. }) => receiver.is_needed(entry),
                _ => receiver.slices(chunk).next().is_some(),
            };
            let counted = self.attempt.counted.get(at as usize) == Some(&1);
            if needed && counted == self.attempt.initially_held[at as usize] {
                return Err(format!("{chunk:?} is not counted once"));
            }
        }
        self.confirm(0);
        let done = Control::Done(self.done());
        self.reply(0, &done);
        Ok(())
    }

    pub(super) fn done(&self) -> Done {
        Done { files: 1, bytes: self.world.source.manifest.bytes(), ..Done::default() }
    }

    /// The receiving program dies, or its attempt is over: what is being written gets torn.
    pub(super) fn receiver_over(&mut self) {
        self.attempt.receiver_dead = true;
        for at in 0..self.attempt.conns.len() {
            let conn = &mut self.attempt.conns[at];
            conn.receiver_open = false;
            if let Some(Writing { shape, bytes, .. }) = conn.writing.take() {
                let upto = self.rng.below(bytes.len() + 1);
                self.world.write(&shape, &bytes, upto);
            }
        }
    }
}

/// A reason for the receiver to stop: it refuses, or the check of a pair fails.
enum Failure {
    Violation(Violation),
    Check(String),
}

impl From<Violation> for Failure {
    fn from(violation: Violation) -> Self {
        Failure::Violation(violation)
    }
}

impl From<String> for Failure {
    fn from(error: String) -> Self {
        Failure::Check(error)
    }
}

impl From<&str> for Failure {
    fn from(error: &str) -> Self {
        Failure::Check(error.into())
    }
}

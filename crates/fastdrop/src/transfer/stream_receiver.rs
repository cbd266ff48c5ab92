//! Taking chunks off one stream: receive, check, write, journal, confirm.

use crate::admission::turns::{PATIENCE, Turn};
use crate::codec::decode::zstd_exact;
use crate::error::Error;
use crate::lock::lock;
use crate::net::connection::{Connection, Ended, FrameReader};
use crate::storage::io::write_all_at;
use crate::storage::journal::{FileKey, Record};
use crate::storage::writer::{Ready, TransferWriter};
use crate::transfer::receive::{ReceiveTransfer, Sink};
use fastdrop_proto::checksum::{Algorithm, Checksum, PackChecksum};
use fastdrop_proto::fastdp::{
    ChunkContent, ChunkVerdict, Completed, Control, Encoding, EntryKind, Expected, Extents, FrameHeader,
    FrameKind,
};
use fastdrop_proto::units::{ChunkIndex, EntryIndex};
use rustix::fs::FallocateFlags;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Takes chunks off one stream, with buffers of its own.
pub(crate) struct StreamReceiver<'a> {
    pub(crate) reception: &'a ReceiveTransfer,
    pub(crate) plain: Vec<u8>,
    pub(crate) payload: Vec<u8>,
    /// For compressed chunks, once there has been one.
    pub(crate) decoder: Option<zstd::bulk::Decompressor<'static>>,
}

impl<'a> StreamReceiver<'a> {
    pub(crate) fn new(reception: &'a ReceiveTransfer) -> Self {
        Self { reception, plain: Vec::new(), payload: Vec::new(), decoder: None }
    }

    /// Receives, checks, writes, journals and confirms one chunk.
    pub(crate) fn chunk(
        &mut self,
        reader: &mut FrameReader,
        header: FrameHeader,
        clock: &mut Instant,
    ) -> Result<(), Error> {
        let reception = self.reception;
        let clocks = &reception.observer.clocks;
        let connection = Arc::clone(reader.connection());
        let (mut expected, content, slices) = {
            let mut machine = lock(&reception.machine);
            let expected = machine.expect(header.kind, header.size)?;
            let content = machine.table().content(expected.chunk);
            (expected, content, machine.slices(expected.chunk).collect::<Vec<_>>())
        };
        let Some(content) = content else { return Err(Error::with_code(400, "there is no such chunk")) };
        let buffer = if expected.encoded { &mut self.payload } else { &mut self.plain };
        buffer.resize(expected.data_len as usize, 0);
        reception.fill(reader, buffer)?;
        let mut sent = vec![0; reception.algorithm.len()];
        reader.fill(&mut sent).map_err(inside)?;
        let sent = Checksum::from_slice(&sent);
        *clock = clocks.wait.since(*clock);
        let mut extents = None;
        if expected.encoded {
            let (plain_len, decoded) = self.decode(&content, expected.plain_len)?;
            expected.plain_len = plain_len;
            extents = decoded;
        }
        let (computed, slice_sums) =
            checksum(reception.algorithm, &self.plain, &content, &slices, &expected, || {
                lock(&reception.machine).table().one_chunk().bytes()
            });
        *clock = clocks.cpu.since(*clock);
        reception.observer.bytes_moved.fetch_add(self.plain.len() as u64, Ordering::Relaxed);
        reception.observer.bytes_wire.fetch_add(expected.data_len.into(), Ordering::Relaxed);
        let verdict = lock(&reception.machine).check(&expected, &sent, &computed);
        let answer = match verdict {
            Ok(ChunkVerdict::Write) => {
                let written =
                    self.write(&expected, &content, &slices, &slice_sums, extents.as_ref(), &computed);
                if written.is_err() {
                    lock(&reception.machine).handle_write_failed(expected.chunk);
                }
                reception.or_fail(written)?;
                // Given up, or shortened, while it was being written: then it is not held.
                let held = lock(&reception.machine).checksum(expected.chunk).is_some();
                held.then(|| Control::Confirm(vec![expected.chunk]))
            }
            Ok(ChunkVerdict::Confirm) => Some(Control::Confirm(vec![expected.chunk])),
            Ok(ChunkVerdict::Again) => Some(Control::Again(vec![expected.chunk])),
            Ok(ChunkVerdict::Ignore) => None,
            Err(violation) if violation.code == 422 => return reception.or_fail(Err(violation.into())),
            Err(violation) => return Err(violation.into()),
        };
        *clock = clocks.write.since(*clock);
        if let Some(answer) = answer {
            connection.send_control(&answer)?;
        }
        Ok(())
    }

    /// Decodes the payload into the plain bytes: how many they are,
    /// and where there is data among zeros.
    fn decode(&mut self, content: &ChunkContent, len: u32) -> Result<(u32, Option<Extents>), Error> {
        let (encoding, data) = Encoding::decode(&self.payload, content, len)?;
        let plain = &mut self.plain;
        let extents = encoding.extents.as_ref();
        let mut unpacked = Vec::new();
        let mut data = data;
        if encoding.zstd {
            if self.decoder.is_none() {
                let decoder = zstd::bulk::Decompressor::new();
                self.decoder = Some(decoder.map_err(|error| Error::with_code(500, error.to_string()))?);
            }
            let out = if extents.is_some() { &mut unpacked } else { &mut *plain };
            out.resize(encoding.data_len() as usize, 0);
            if let Some(decoder) = &mut self.decoder {
                zstd_exact(decoder, data, out).map_err(|error| Error::with_code(400, error.to_string()))?;
            }
            data = &unpacked;
        }
        if let Some(extents) = extents {
            plain.clear();
            plain.resize(encoding.plain_len as usize, 0);
            for (at, len) in extents.iter() {
                let (part, rest) = data.split_at(len as usize);
                plain[at as usize..(at + len) as usize].copy_from_slice(part);
                data = rest;
            }
        }
        Ok((encoding.plain_len, encoding.extents))
    }

    pub(crate) fn write(
        &mut self,
        expected: &Expected,
        content: &ChunkContent,
        slices: &[(EntryIndex, u32)],
        slice_sums: &[Checksum],
        extents: Option<&Extents>,
        checksum: &Checksum,
    ) -> Result<(), Error> {
        let reception = self.reception;
        let completed = match &reception.sink {
            Sink::Output(output) => {
                output.write(expected.chunk, *checksum, &self.plain)?;
                lock(&reception.machine).handle_written(expected.chunk, checksum)
            }
            Sink::Files(sink) => {
                let _working = sink.working.read().unwrap_or_else(PoisonError::into_inner);
                let mut temps = Vec::new();
                match *content {
                    ChunkContent::Piece { entry, offset, .. } | ChunkContent::Stream { entry, offset } => {
                        self.write_piece(sink, entry, offset, extents, checksum)?;
                    }
                    ChunkContent::Pack { .. } => temps = self.write_pack(sink, slices, slice_sums)?,
                }
                let completed = {
                    let mut machine = lock(&reception.machine);
                    if matches!(content, ChunkContent::Stream { .. }) {
                        machine.handle_stream_bytes(expected.plain_len);
                    }
                    machine.handle_written(expected.chunk, checksum)
                };
                self.complete(sink, completed, temps)?;
                completed
            }
        };
        if matches!(completed, Completed::File(_)) && matches!(reception.sink, Sink::Output(_)) {
            reception.observer.files_done.fetch_add(1, Ordering::Relaxed);
        }
        reception.observer.bytes_done.fetch_add(self.plain.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn write_piece(
        &mut self,
        sink: &TransferWriter,
        index: EntryIndex,
        offset: u64,
        extents: Option<&Extents>,
        checksum: &Checksum,
    ) -> Result<(), Error> {
        let Some(entry) = self.reception.manifest.get(index) else { return Ok(()) };
        let system = |errno| sink.system(&entry, errno);
        let end = offset + self.plain.len() as u64;
        if sink.options.size_max.is_some_and(|max| end > max) {
            return Err(Error::with_code(413, "more bytes than one transfer may have here"));
        }
        let staged = sink.staged(index, &entry).map_err(system)?;
        match extents {
            None => {
                write_all_at(staged.fd.as_fd(), &self.plain, offset).map_err(system)?;
                sink.stage.begin_writeback(staged.fd.as_fd(), offset, self.plain.len() as u64);
            }
            Some(extents) => {
                if staged.dirty {
                    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    let punched = rustix::fs::fallocate(&staged.fd, flags, offset, self.plain.len() as u64);
                    if punched.is_err() {
                        write_all_at(staged.fd.as_fd(), &self.plain, offset).map_err(system)?;
                    }
                }
                for (at, len) in extents.iter() {
                    let part = &self.plain[at as usize..(at + len) as usize];
                    write_all_at(staged.fd.as_fd(), part, offset + u64::from(at)).map_err(system)?;
                }
            }
        }
        if matches!(entry.kind, EntryKind::File { .. }) {
            let one = u64::from(lock(&self.reception.machine).table().one_chunk().bytes());
            let record =
                Record::Piece { temp: staged.temp, piece: (offset / one) as u32, checksum: *checksum };
            sink.stage
                .journal()
                .append(&[record])
                .map_err(|errno| Error::system("writing the journal", errno))?;
        }
        Ok(())
    }

    pub(crate) fn write_pack(
        &mut self,
        sink: &TransferWriter,
        slices: &[(EntryIndex, u32)],
        sums: &[Checksum],
    ) -> Result<Vec<Ready>, Error> {
        let mut made = Vec::with_capacity(slices.len());
        self.make_slices(sink, slices, sums, &mut made).inspect_err(|_| {
            // What is not in the journal is of no use to anybody.
            made.iter().for_each(|ready: &Ready| sink.stage.remove_temp(ready.temp));
        })?;
        Ok(made)
    }

    /// Makes the files of a pack, and notes them in the journal.
    fn make_slices(
        &self,
        sink: &TransferWriter,
        slices: &[(EntryIndex, u32)],
        sums: &[Checksum],
        made: &mut Vec<Ready>,
    ) -> Result<(), Error> {
        let mut rest = &self.plain[..];
        let mut records = Vec::with_capacity(slices.len());
        for (&(index, size), &checksum) in slices.iter().zip(sums) {
            let (bytes, after) = rest.split_at(size as usize);
            rest = after;
            let Some(entry) = self.reception.manifest.get(index) else { continue };
            let temp = sink.make_small(index, &entry, bytes).map_err(|errno| sink.system(&entry, errno))?;
            made.push(Ready { entry: index, temp });
            let key = FileKey::new(sink.placement.of(entry.path), size.into(), entry.mtime);
            let identity = sink.identity(index);
            records.push(Record::Small { temp, identity, checksum, key });
            if let Ok(hash) = <[u8; 32]>::try_from(checksum.as_bytes()) {
                lock(&self.reception.hashes).insert(index, hash);
            }
        }
        sink.stage.journal().append(&records).map_err(|errno| Error::system("writing the journal", errno))
    }

    /// Readies what has become complete for its name.
    pub(crate) fn complete(
        &mut self,
        sink: &TransferWriter,
        completed: Completed,
        small: Vec<Ready>,
    ) -> Result<(), Error> {
        match completed {
            Completed::Nothing => {
                // A pack that was given up while it was being written.
                for ready in &small {
                    sink.stage.remove_temp(ready.temp);
                }
                return Ok(());
            }
            Completed::File(index) => {
                let Some(entry) = self.reception.manifest.get(index) else { return Ok(()) };
                let staged = lock(&sink.open).remove(&index);
                if let Some(staged) = staged {
                    let system = |errno| sink.system(&entry, errno);
                    sink.set_file_attributes(&staged.fd, &entry, true).map_err(system)?;
                    lock(&sink.ready).push(Ready { entry: index, temp: staged.temp });
                }
            }
            Completed::Pack(..) => lock(&sink.ready).extend(small),
        }
        Ok(())
    }

    /// Takes a chunk that is held from an earlier transfer and that the sender has found to be its
    /// own.
    pub(crate) fn same(&mut self, chunk: ChunkIndex) -> Result<(), Error> {
        let reception = self.reception;
        let Sink::Files(sink) = &reception.sink else {
            // What has been written cannot be taken back, nor is there anything to remember of it.
            lock(&reception.machine).handle_same(chunk)?;
            return Ok(());
        };
        let _working = sink.working.read().unwrap_or_else(PoisonError::into_inner);
        let (same, content) = {
            let mut machine = lock(&reception.machine);
            (machine.handle_same(chunk)?, machine.table().content(chunk))
        };
        let (Some((checksum, completed)), Some(ChunkContent::Piece { entry, offset, .. })) = (same, content)
        else {
            return Ok(());
        };
        // It is of the file that the sender has now; if that is all of
        // it, there is nothing more to remember.
        let staged = lock(&sink.open).get(&entry).map(|staged| staged.temp);
        if let (Some(temp), Completed::Nothing) = (staged, completed) {
            let one = u64::from(lock(&reception.machine).table().one_chunk().bytes());
            let record = Record::Piece { temp, piece: (offset / one) as u32, checksum };
            let appended = sink.stage.journal().append(&[record]);
            reception.or_fail(appended.map_err(|errno| Error::system("writing the journal", errno)))?;
        }
        reception.or_fail(self.complete(sink, completed, Vec::new()))
    }
}

impl ReceiveTransfer {
    /// Fills `buffer` from a chunk, at the pace that was set.
    fn fill(&self, reader: &mut FrameReader, buffer: &mut [u8]) -> Result<(), Error> {
        let Some(throttle) = self.throttle.get() else { return reader.fill(buffer).map_err(inside) };
        for part in buffer.chunks_mut(throttle.piece_max()) {
            let mut left = throttle.book(part.len(), Instant::now());
            while !left.is_zero() && !self.stop.is_stopped() && !self.ending() {
                let nap = left.min(Duration::from_millis(100));
                std::thread::sleep(nap);
                left -= nap;
            }
            reader.fill(part).map_err(inside)?;
        }
        Ok(())
    }

    /// Serves one data stream to its end.
    pub(super) fn data_stream(self: &Arc<Self>, reader: FrameReader) {
        let connection = Arc::clone(reader.connection());
        let result = self.serve(reader, None, &|| {});
        match result {
            Ok(()) | Err(Error::Network(_) | Error::Interrupted) => {}
            // It breaks the rules, or what it brings contradicts what is
            // here: that connection ends.
            Err(error) => {
                tracing::warn!(%error, "a data stream was ended");
                let _ = connection.send_control(&Control::Refuse(error.refusal()));
                connection.finish_writing();
            }
        }
        connection.close();
        lock(&self.connections).retain(|other| !Arc::ptr_eq(other, &connection));
    }

    /// Reads frames until the stream ends. `control` is the connection
    /// itself if this is the control stream.
    pub(super) fn serve(
        self: &Arc<Self>,
        mut reader: FrameReader,
        control: Option<&Arc<Connection>>,
        more: &(dyn Fn() + Sync),
    ) -> Result<(), Error> {
        let connection = Arc::clone(reader.connection());
        self.stop.watch(&connection);
        if control.is_none() {
            let mut connections = lock(&self.connections);
            // Whoever ends the transfer closes what is in the list; a stream
            // that comes later sees that by itself.
            if self.ending() {
                return Ok(());
            }
            connections.push(Arc::clone(&connection));
            self.observer.set_streams(connections.len() as u64 - 1);
        }
        let mut turn = Turn::new(self.turns.get().filter(|_| connection.is_shortest()).cloned());
        let mut worker = StreamReceiver::new(self);
        let mut clock = Instant::now();
        loop {
            if lock(&self.error).is_some() {
                return Ok(());
            }
            if turn.is_taken() && !reader.comes_within(PATIENCE) {
                turn.give_back();
            }
            let header = match reader.header() {
                Ok(header) => header,
                Err(Error::Network(_)) if self.is_done() => return Ok(()),
                Err(Error::Interrupted) if !self.stop.is_stopped() => return Ok(()),
                Err(error) => return Err(error),
            };
            match header.kind {
                FrameKind::Control(kind) => {
                    let frame = reader.control(kind, header.size)?;
                    match (frame, control) {
                        (Control::Alive, _) => {}
                        (Control::Checkpoint, None) => {
                            clock = self.observer.clocks.wait.since(clock);
                            if let Sink::Files(sink) = &self.sink {
                                self.or_fail(self.checkpoint(sink))?;
                            }
                            connection.send_control(&Control::Checkpointed)?;
                            self.observer.clocks.write.since(clock);
                        }
                        (Control::Size { entry, size }, Some(_)) => {
                            lock(&self.machine).handle_size(entry, size)?
                        }
                        (Control::Abandon { entry, code, reason }, Some(_)) => {
                            let answer = lock(&self.machine).handle_abandon(entry)?;
                            self.drop_abandoned(entry, code, reason);
                            connection.send_controls(&answer)?;
                        }
                        (Control::Identity(part), Some(_)) => match (&self.sink, part.identities.first()) {
                            (Sink::Files(sink), _) => lock(&sink.identities).handle(&part)?,
                            (Sink::Output(sink), Some(&identity)) => sink.set_identity(identity),
                            (Sink::Output(_), None) => {}
                        },
                        (Control::Same(chunks), Some(_)) => {
                            clock = self.observer.clocks.wait.since(clock);
                            chunks.into_iter().try_for_each(|chunk| worker.same(chunk))?;
                            self.observer.clocks.write.since(clock);
                        }
                        (Control::Proven(proven), Some(_)) => {
                            let handled = lock(&self.machine).handle_proven(&proven);
                            self.or_fail(handled.map_err(Error::from))?;
                            clock = self.observer.clocks.wait.since(clock);
                            self.or_fail(self.name_proven())?;
                            self.observer.clocks.write.since(clock);
                        }
                        (Control::End(digest), Some(_)) => lock(&self.machine).handle_end(digest)?,
                        (Control::Spent(spent), Some(_)) => *lock(&self.spent) = spent,
                        (Control::More, Some(_)) => more(),
                        (Control::Refuse(refuse), _) => return Err(Error::Refused(refuse)),
                        (_, _) => {
                            return Err(Error::with_code(
                                400,
                                "a frame that a sender does not send, or not here",
                            ));
                        }
                    }
                    clock = Instant::now();
                }
                _ => {
                    turn.wait();
                    worker.chunk(&mut reader, header, &mut clock)?;
                }
            }
            self.finish_if_complete()?;
        }
    }
}

pub(crate) fn inside(ended: Ended) -> Error {
    match ended {
        Ended::Closed => Ended::Broken("it ended inside a frame".into()).into(),
        other => other.into(),
    }
}

/// The checksum of a chunk, and of its slices if it is a pack.
pub(crate) fn checksum(
    algorithm: Algorithm,
    plain: &[u8],
    content: &ChunkContent,
    slices: &[(EntryIndex, u32)],
    expected: &Expected,
    one_chunk: impl Fn() -> u32,
) -> (Checksum, Vec<Checksum>) {
    match *content {
        ChunkContent::Piece { offset, whole, .. } => (algorithm.of_piece(plain, offset, whole), Vec::new()),
        ChunkContent::Stream { offset, .. } => {
            let whole = offset == 0 && expected.plain_len < one_chunk();
            (algorithm.of_piece(plain, offset, whole), Vec::new())
        }
        ChunkContent::Pack { .. } => {
            let mut pack = PackChecksum::new(algorithm);
            let mut rest = plain;
            let mut sums = Vec::with_capacity(slices.len());
            for &(_, size) in slices {
                let (bytes, after) = rest.split_at((size as usize).min(rest.len()));
                rest = after;
                let sum = algorithm.of(bytes);
                pack.push(&sum);
                sums.push(sum);
            }
            (pack.finish(), sums)
        }
    }
}

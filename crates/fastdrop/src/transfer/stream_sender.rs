//! Sending the chunks of one stream: ask for the next, read, compress, send.

use crate::admission::turns::Turn;
use crate::net::connection::{Connection, Ended};
use crate::net::throttle::Throttle;
use crate::observe::Phase;
use crate::source::reader::{ChunkPlan, ChunkReader, ReadChunk};
use crate::transfer::compress::ChunkCompressor;
use crate::transfer::supply::{ChunkSupply, TICK};
use fastdrop_proto::fastdp::{Action, Control, Encoding, FrameHeader, FrameKind, Refuse, Spent, StreamId};
use fastdrop_proto::units::ChunkIndex;
use std::io::IoSlice;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Sends what is to be sent on one stream, with buffers of its own.
pub(super) struct StreamSender<'a> {
    supply: &'a ChunkSupply,
    id: StreamId,
    connection: &'a Connection,
    throttle: Option<&'a Throttle>,
    /// Data streams that the receiver is yet to be asked for, on the control stream.
    asked: &'a AtomicU32,
    turn: Turn,
    compressor: Option<ChunkCompressor>,
    chunks: ChunkReader<'a>,
    chunk: ReadChunk,
}

impl<'a> StreamSender<'a> {
    pub(super) fn new(
        supply: &'a ChunkSupply,
        id: StreamId,
        connection: &'a Connection,
        throttle: Option<&'a Throttle>,
        asked: &'a AtomicU32,
        turn: Turn,
        compressor: Option<ChunkCompressor>,
    ) -> Self {
        let (chunks, chunk) = (supply.chunks(), ReadChunk::default());
        Self { supply, id, connection, throttle, asked, turn, compressor, chunks, chunk }
    }

    /// Sends until the transfer or the stream ends.
    pub(super) fn run(mut self) {
        let (supply, id, connection) = (self.supply, self.id, self.connection);
        loop {
            if id == StreamId::CONTROL
                && let Err(ended) = self.ask()
            {
                return self.lose(ended);
            }
            let mut proto = supply.proto();
            let action = loop {
                if id == StreamId::CONTROL
                    && let Some(refusal) = supply.refusal(&proto)
                {
                    drop(proto);
                    if let Err(ended) = say_refusal(connection, refusal) {
                        self.lose(ended);
                    }
                    return;
                }
                let now = Instant::now();
                match proto.poll_stream(id, now) {
                    Action::Wait if id == StreamId::CONTROL && self.asked.load(Ordering::Relaxed) > 0 => {
                        break Action::Wait;
                    }
                    Action::Wait => {
                        self.turn.give_back();
                        let until = proto.poll_timeout().map_or(TICK, |at| at.saturating_duration_since(now));
                        proto = supply.wait(proto, until.clamp(Duration::from_millis(1), TICK));
                    }
                    action => break action,
                }
            };
            let sent = match action {
                Action::Send(index) => {
                    let plan = ChunkPlan::new(&proto, index);
                    drop(proto);
                    let Some(plan) = plan else { return };
                    self.turn.wait();
                    self.send_chunk(index, &plan)
                }
                Action::Control(frame) => {
                    drop(proto);
                    let mut spent = Ok(());
                    if matches!(frame, Control::End(_)) {
                        supply.observer.set_phase(Phase::Finishing);
                        let clocks = &supply.observer.clocks;
                        let (read, cpu) = (clocks.read.micros(), clocks.cpu.micros());
                        let told = Spent { read, cpu, send: clocks.send.micros() };
                        spent = connection.send_control(&Control::Spent(told));
                    }
                    spent.and_then(|()| connection.send_control(&frame))
                }
                Action::Close => {
                    drop(proto);
                    // The control stream is still read: the receiver may say why it ended.
                    if id != StreamId::CONTROL {
                        connection.close();
                    }
                    supply.notify();
                    return;
                }
                Action::Wait => continue,
            };
            if let Err(ended) = sent {
                return self.lose(ended);
            }
        }
    }

    /// Asks the receiver for the data streams that are wanted.
    fn ask(&self) -> Result<(), Ended> {
        let asked = self.asked.swap(0, Ordering::Relaxed);
        (0..asked).try_for_each(|_| self.connection.send_control(&Control::More))
    }

    /// Leaves a stream over which nothing can be sent.
    fn lose(&self, ended: Ended) {
        if matches!(ended, Ended::Broken(_)) {
            // What the receiver said before it closed can still be read, why it did so above all:
            // the reading side comes to the end of that, and then the stream is lost.
            return self.connection.finish_writing();
        }
        self.supply.proto().handle_stream_lost(self.id, Instant::now());
        self.connection.close();
        self.supply.notify();
    }

    fn send_chunk(&mut self, index: ChunkIndex, plan: &ChunkPlan) -> Result<(), Ended> {
        let (supply, id, connection) = (self.supply, self.id, self.connection);
        let Self { chunks, chunk, compressor, throttle, .. } = self;
        if let Err(unreadable) = chunks.read(plan, chunk) {
            supply.give_up(Some(id), index, unreadable);
            return Ok(());
        }
        supply.proto().handle_read(index, &chunk.checksum);
        if !chunk.hashes.is_empty() {
            supply.note_hashes(chunk.hashes.drain(..));
        }
        let chunk = &*chunk;
        let clocks = &supply.observer.clocks;
        let frame = compressor.as_mut().and_then(|compressor| compressor.compress(chunk, &clocks.cpu));
        let start = Instant::now();
        let checksum = chunk.checksum.as_bytes();
        let mut last_progress = start;
        let piece_max = throttle.map_or(usize::MAX, Throttle::piece_max);
        let mut progress = |bytes: usize| {
            let now = Instant::now();
            if bytes > 0 {
                return throttle.map_or(Duration::ZERO, |throttle| throttle.book(bytes, now));
            }
            // Once a chunk is enough for a fast stream; a slow one has to show that it moves.
            if now - last_progress > Duration::from_millis(200) {
                last_progress = now;
                supply.proto().handle_progress(id, now);
            }
            Duration::ZERO
        };
        let moved = chunk.bytes.len();
        let encoding =
            Encoding { plain_len: moved as u32, extents: chunk.extents.clone(), zstd: frame.is_some() };
        let head = encoding.encode();
        let kind = if head.is_empty() { FrameKind::Chunk(index) } else { FrameKind::EncodedChunk(index) };
        let data = encoding.data_len() as usize;
        let sent = frame.map_or(data, <[u8]>::len);
        let size = (head.len() + sent + checksum.len()) as u32;
        let header = FrameHeader { kind, size }.encode();
        let mut parts = vec![IoSlice::new(&header), IoSlice::new(&head)];
        match (frame, &chunk.extents) {
            (Some(frame), _) => parts.push(IoSlice::new(frame)),
            (None, None) => parts.push(IoSlice::new(&chunk.bytes)),
            (None, Some(extents)) => {
                let part =
                    |(at, len): (u32, u32)| IoSlice::new(&chunk.bytes[at as usize..(at + len) as usize]);
                parts.extend(extents.iter().map(part));
            }
        }
        parts.push(IoSlice::new(checksum));
        connection.send(&mut parts, piece_max, &mut progress)?;
        supply.observer.bytes_moved.fetch_add(moved as u64, Ordering::Relaxed);
        supply.observer.bytes_wire.fetch_add(sent as u64, Ordering::Relaxed);
        let now = clocks.send.since(start);
        if let Some(compressor) = compressor {
            compressor.handle_sent(data, sent, now - start);
        }
        supply.proto().handle_sent(id, moved as u64, now);
        Ok(())
    }
}

/// Tells the receiver why nothing more comes. Blocks as long as the connection takes nothing.
pub(super) fn say_refusal(control: &Connection, refusal: Refuse) -> Result<(), Ended> {
    control.send_control(&Control::Refuse(refusal))?;
    control.finish_writing();
    Ok(())
}

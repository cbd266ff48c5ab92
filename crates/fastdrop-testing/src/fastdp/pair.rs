//! A sender and a receiver, and the faults that happen to them.

use super::pipe::{MICRO, MILLI, Pipe, SECOND, Time};
use super::rng::Rng;
use super::world::{ONE, Shape, Source, World};
use fastdrop_proto::checksum::{Algorithm, Checksum};
use fastdrop_proto::fastdp::{
    Action, ChunkContent, ChunkVerdict, Completed, Control, Do, Done, Encoding, Expected, FrameHeader,
    FrameKind, Grant, Header, ManifestBuilder, Open, Outcome, Place, Receiver, Refuse, Sender, SenderConfig,
    SkipReason, StreamId, Streams, Transcript, Violation,
};
use fastdrop_proto::units::{ChunkIndex, ChunkSize, EntryIndex, TransferId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// A data stream ends at an arbitrary byte, in both directions.
    CutData,
    /// The control stream does, and with it the attempt.
    CutControl,
    /// A data stream goes dark without ending.
    Stall,
    /// The control stream does.
    StallControl,
    /// A chunk frame arrives twice, on one stream or on two.
    Duplicate,
    /// One bit of a chunk or its checksum is another on arrival.
    Flip,
    /// The receiving program dies; what it was writing is torn.
    CrashReceiver,
    /// The sending program dies.
    CrashSender,
    /// A file can no longer be read.
    Unreadable,
    /// The connection breaks so that END does not arrive.
    LoseEnd,
    /// The connection breaks so that DONE does not arrive.
    LoseDone,
}

/// A mistake planted in the drivers, that the checks must notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The receiver confirms before it writes.
    ConfirmEarly,
    /// The receiver counts a chunk again that it holds already.
    CountTwice,
    /// The receiver takes the checksum of the frame for that of the bytes.
    TrustChecksum,
    /// The receiver gives names as soon as END is there.
    NameAtEnd,
    /// The receiver journals before it writes, and trusts its journal.
    JournalEarly,
    /// The receiver does not look into its journal.
    ForgetJournal,
}

/// What a run is made of. `random` has all of it from a seed.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub source: Source,
    pub algorithm: Algorithm,
    pub config: SenderConfig,
    pub existing: Vec<(EntryIndex, SkipReason)>,
    /// Faults, each with the number of chunks after which it happens.
    pub faults: Vec<(u32, Fault)>,
    pub lose_end: bool,
    pub lose_done: bool,
    /// What is on its way on a stream that is cut may be unreadable when it is to be sent again.
    pub lose_what_flies: bool,
    pub sparse: bool,
    /// Every second chunk says that it is compressed; what stands for a compressor leaves it as it
    /// is.
    pub zstd: bool,
    /// Confirmations go on the control stream.
    pub confirm_on_control: bool,
    /// Bounds of buffer bytes, and of nanoseconds: latency, per byte, join, read and write.
    pub capacity: (u64, u64),
    pub latency: (u64, u64),
    pub per_byte: (u64, u64),
    pub join: (u64, u64),
    pub read: (u64, u64),
    pub write: (u64, u64),
    /// Percent of joins that fail, and of writes that take seconds.
    pub join_fails: u64,
    pub slow_writes: u64,
    /// Percent of files that are others, of the same size, when another attempt begins.
    pub changes: u64,
    /// The receiver sees another OPEN than was sent.
    pub alter_transcript: bool,
    pub bug: Option<Bug>,
}

impl Plan {
    /// No faults, a quick path, so many streams.
    pub fn quiet(seed: u64, source: Source, streams: u16) -> Self {
        Self {
            seed,
            source,
            algorithm: Algorithm::Xxh3,
            config: SenderConfig {
                streams: Streams::Fixed(streams),
                granted: streams,
                data_streams_from: 0,
                identity: true,
                proof: true,
                ..SenderConfig::default()
            },
            existing: Vec::new(),
            faults: Vec::new(),
            lose_end: false,
            lose_done: false,
            lose_what_flies: false,
            sparse: false,
            zstd: false,
            confirm_on_control: false,
            capacity: (4096, 4097),
            latency: (MILLI, MILLI + 1),
            per_byte: (100, 101),
            join: (4 * MILLI, 4 * MILLI + 1),
            read: (0, 1),
            write: (0, 1),
            join_fails: 0,
            slow_writes: 0,
            changes: 0,
            alter_transcript: false,
            bug: None,
        }
    }

    pub fn random(seed: u64) -> Self {
        let rng = &mut Rng::new(seed);
        let source = Source::random(rng, 205);
        let streams = rng.range(1, 9) as u16;
        let mut plan = Self::quiet(seed, source, streams);
        plan.algorithm = rng.pick(&[Algorithm::Xxh3, Algorithm::Xxh3, Algorithm::Blake3, Algorithm::None]);
        let latency = rng.pick(&[50 * MICRO, MILLI, 10 * MILLI, 50 * MILLI]);
        plan.latency = (latency / 2, latency * 2);
        let per_byte = rng.pick(&[10, 100, 1000, 5000]);
        plan.per_byte = (per_byte, per_byte * rng.pick(&[2, 10]));
        plan.capacity = rng.pick(&[(300, 3000), (1000, 9000), (8000, 30_000)]);
        plan.join = (4 * latency, rng.pick(&[6 * latency, 8 * latency, SECOND]).max(5 * latency));
        if rng.percent(50) {
            plan.read = (0, rng.pick(&[100 * MICRO, 20 * MILLI, 300 * MILLI]));
        }
        if rng.percent(50) {
            plan.write = (0, rng.pick(&[100 * MICRO, 20 * MILLI, 300 * MILLI]));
            plan.slow_writes = rng.pick(&[0, 0, 1, 8]);
        }
        plan.join_fails = rng.pick(&[0, 0, 10]);
        plan.sparse = rng.percent(50);
        plan.zstd = seed.is_multiple_of(3);
        plan.confirm_on_control = rng.percent(25);
        plan.config.rtt = Duration::from_nanos(latency * 2);
        plan.config.cores = rng.range(1, 5) as u16;
        if rng.percent(25) {
            plan.config.streams = Streams::Auto;
        }
        // Confirmations that CHECKPOINTED overtakes make chunks go twice, without end if the
        // control stream is dark.
        if !plan.confirm_on_control && rng.percent(50) {
            plan.config.checkpoint = Some(rng.range(4, 80) * 1024);
        }
        if rng.percent(4) {
            plan.config.data_streams_from = 1 << 30;
        }
        let expendable = plan.source.expendable.clone();
        if rng.percent(50) {
            for &entry in &expendable {
                if rng.percent(20) {
                    plan.existing.push((entry, rng.pick(&[SkipReason::Identical, SkipReason::Policy])));
                }
            }
        }
        let flips = plan.algorithm != Algorithm::None;
        for _ in 0..rng.range(5, 9) {
            let fault = match rng.range(0, 100) {
                0..=24 => Fault::CutData,
                25..=34 => Fault::CutControl,
                35..=44 => Fault::Stall,
                45..=46 => Fault::StallControl,
                47..=64 => Fault::Duplicate,
                65..=82 if flips => Fault::Flip,
                65..=82 => Fault::CutData,
                83..=91 => Fault::CrashReceiver,
                _ => Fault::CrashSender,
            };
            plan.faults.push((rng.range(1, 170) as u32, fault));
        }
        for _ in 0..rng.pick(&[0, 0, 0, 1, 2, 3]) {
            plan.faults.push((rng.range(1, 220) as u32, Fault::Unreadable));
        }
        plan.changes = rng.pick(&[0, 0, 20, 60]);
        plan.lose_what_flies = rng.percent(30);
        plan.faults.sort();
        plan.lose_end = rng.percent(8);
        plan.lose_done = rng.percent(8);
        plan
    }
}

/// What happened in a run.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    pub happened: BTreeMap<Fault, u32>,
    pub attempts: u32,
    /// Chunks that were needed in the first attempt, without the stream's.
    pub needed: Vec<u32>,
    /// Chunks that were sent, in all attempts.
    pub sends: u32,
    pub again: u32,
    pub taken_over: u32,
    pub stream_refused: u32,
    pub checkpoints: u32,
    pub abandoned: u32,
    pub encoded: u32,
    /// Chunks that were held and compared: those that were the same, and those that were not.
    pub same: u32,
    pub differing: u32,
    /// Chunks that were proven.
    pub proven: u32,
    pub ended_at: Time,
    /// Bytes that went out on each data stream of the last attempt, and whether it retired by a
    /// checkpoint.
    pub stream_bytes: Vec<(u64, bool)>,
    /// Of each checkpoint of the last attempt: data streams that carried when it was sent, but for
    /// the retiring one.
    pub carrying_at_checkpoint: Vec<usize>,
}

impl Stats {
    pub fn faults(&self) -> u32 {
        self.happened.iter().filter(|(fault, _)| **fault != Fault::Unreadable).map(|(_, count)| count).sum()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    ToReceiver(usize),
    ToSender(usize),
    Joined,
    OpenFailed,
    Read(usize),
    Written(usize),
    /// The sender's end notices that the connection is gone.
    Lost(usize),
    ReceiverTick,
    NewAttempt,
}

#[derive(Debug)]
struct Writing {
    shape: Shape,
    bytes: Vec<u8>,
    sum: Checksum,
}

#[derive(Debug)]
struct Conn {
    forward: Pipe,
    back: Pipe,
    // The sender's end.
    sender_open: bool,
    out: Vec<u8>,
    out_at: usize,
    /// A chunk in `out`, and how many bytes its frame has.
    sending: Option<u64>,
    reading: Option<ChunkIndex>,
    /// Copies of frames that go out between others.
    extra: Vec<Vec<u8>>,
    sender_in: Vec<u8>,
    unconfirmed: BTreeSet<ChunkIndex>,
    progress_at: Time,
    sent: u64,
    retiring: bool,
    cut: bool,
    // The receiver's end.
    receiver_open: bool,
    receiver_in: Vec<u8>,
    receiver_at: usize,
    expected: Option<(Expected, Shape, usize)>,
    writing: Option<Writing>,
    to_confirm: Vec<ChunkIndex>,
    back_out: Vec<u8>,
    back_at: usize,
}

struct Attempt {
    sender: Sender,
    sender_dead: bool,
    server_header_seen: Option<Vec<u8>>,
    receiver: Option<Receiver>,
    receiver_dead: bool,
    builder: Option<ManifestBuilder>,
    /// Payloads of header and OPEN as the receiver saw them.
    client_header: Option<Vec<u8>>,
    open: Option<Vec<u8>>,
    conns: Vec<Conn>,
    needed: Option<u32>,
    sends: u32,
    filled: u32,
    freed: u32,
    stream_at: usize,
    stream_done: bool,
    /// Chunks that may be sent once more, each for a reason.
    explained: u32,
    counted: Vec<u8>,
    initially_held: Vec<bool>,
    completed: Vec<u8>,
    finished: bool,
    /// What was confirmed in earlier attempts.
    forbidden_pieces: Vec<bool>,
    forbidden_smalls: Vec<bool>,
}

/// The pair and everything between its ends.
pub struct Pair {
    plan: Plan,
    rng: Rng,
    world: World,
    base: Instant,
    now: Time,
    events: BinaryHeap<Reverse<(Time, u64, u32, Event)>>,
    sequence: u64,
    generation: u32,
    attempt: Attempt,
    promised_pieces: Vec<bool>,
    promised_smalls: Vec<bool>,
    waiting_faults: Vec<(u32, Fault)>,
    next_fault: usize,
    flip_next: u32,
    duplicate_next: u32,
    trace: bool,
    stats: Stats,
}

type Checked = Result<(), String>;

/// Longer than any run that makes progress.
const VIRTUAL_LIMIT: Time = 3 * 3600 * SECOND;
const STEPS_LIMIT: u32 = 1_000_000;
/// Sends until a fault that finds nothing to happen to is replaced by another.
const FAULT_PATIENCE: u32 = 12;

impl Pair {
    /// Runs a plan to its end.
    pub fn run(plan: Plan) -> Result<Stats, String> {
        let mut pair = Self::new(plan);
        pair.go().map_err(|error| {
            format!("at {:.6} s, attempt {}: {error}", pair.now as f64 / 1e9, pair.generation)
        })?;
        Ok(pair.stats)
    }

    fn new(plan: Plan) -> Self {
        let mut world = World::new(plan.source.clone(), plan.algorithm);
        for &(entry, reason) in &plan.existing {
            world.existing[entry.at()] = Some(reason);
        }
        let rng = Rng::new(plan.seed ^ 0xabcd_ef01);
        let base = Instant::now();
        let attempt = Self::attempt(&plan, &world, base, &[], &[]);
        let (pieces, smalls) = (vec![false; world.pieces.len()], vec![false; world.smalls.len()]);
        let mut pair = Self {
            rng,
            base,
            now: 0,
            events: BinaryHeap::new(),
            sequence: 0,
            generation: 0,
            attempt,
            promised_pieces: pieces,
            promised_smalls: smalls,
            waiting_faults: Vec::new(),
            next_fault: 0,
            flip_next: 0,
            duplicate_next: 0,
            trace: std::env::var_os("FASTDROP_TRACE").is_some(),
            stats: Stats::default(),
            plan,
            world,
        };
        pair.begin();
        pair
    }

    fn attempt(plan: &Plan, world: &World, now: Instant, pieces: &[bool], smalls: &[bool]) -> Attempt {
        let manifest = Arc::clone(&world.source.manifest);
        let mut sender = Sender::new(plan.config.clone(), manifest, world.table.clone(), plan.algorithm, now);
        sender.set_identities(world.identities.clone());
        Attempt {
            sender,
            sender_dead: false,
            server_header_seen: None,
            receiver: None,
            receiver_dead: false,
            builder: Some(ManifestBuilder::new(100_000)),
            client_header: None,
            open: None,
            conns: Vec::new(),
            needed: None,
            sends: 0,
            filled: 0,
            freed: 0,
            stream_at: 0,
            stream_done: false,
            explained: 0,
            counted: Vec::new(),
            initially_held: Vec::new(),
            completed: vec![0; world.source.data.len()],
            finished: false,
            forbidden_pieces: pieces.to_vec(),
            forbidden_smalls: smalls.to_vec(),
        }
    }

    fn begin(&mut self) {
        self.generation += 1;
        self.stats.attempts += 1;
        self.stats.stream_bytes.clear();
        self.stats.carrying_at_checkpoint.clear();
        if self.generation > 1 {
            self.change();
        }
        let (pieces, smalls) = (self.promised_pieces.clone(), self.promised_smalls.clone());
        let now = self.instant();
        self.attempt = Self::attempt(&self.plan, &self.world, now, &pieces, &smalls);
        self.trace(|| "a new attempt".into());
        self.connect();
        let manifest = Arc::clone(&self.world.source.manifest);
        let header =
            Header::new(self.world.table.one_chunk(), self.world.table.count(), manifest.bytes(), "files");
        let open =
            Open { checksum: self.plan.algorithm, streams: self.plan.config.granted, ..Open::new(Do::Put) };
        let mut out = header.encode();
        out.extend(Control::Open(open).encode());
        for part in manifest.parts(700) {
            out.extend(Control::Manifest(part.to_vec()).encode());
        }
        out.extend(Control::ManifestEnd(manifest.end()).encode());
        self.attempt.conns[0].out = out;
        self.schedule(5 * SECOND, Event::ReceiverTick);
    }

    /// Puts other versions in the place of some files: what was confirmed of them is sent again
    /// where it differs.
    fn change(&mut self) {
        for at in 0..self.world.named.len() {
            let entry = EntryIndex(at as u32);
            if !self.rng.percent(self.plan.changes) || !self.world.change(&mut self.rng, entry) {
                continue;
            }
            self.promised_smalls[at] = false;
            if let Some((first, count)) = self.world.table.chunks_of(entry)
                && matches!(self.world.table.content(first), Some(ChunkContent::Piece { .. }))
            {
                self.promised_pieces[first.at()..first.at() + count as usize].fill(false);
            }
        }
    }

    fn connect(&mut self) {
        let plan = &self.plan;
        let rng = &mut self.rng;
        let mut pipe = || {
            Pipe::new(
                rng.range(plan.capacity.0, plan.capacity.1) as usize,
                rng.range(plan.latency.0, plan.latency.1),
                rng.range(plan.per_byte.0, plan.per_byte.1),
            )
        };
        let (forward, back) = (pipe(), pipe());
        self.attempt.conns.push(Conn {
            forward,
            back,
            sender_open: true,
            out: Vec::new(),
            out_at: 0,
            sending: None,
            reading: None,
            extra: Vec::new(),
            sender_in: Vec::new(),
            unconfirmed: BTreeSet::new(),
            progress_at: self.now,
            sent: 0,
            retiring: false,
            cut: false,
            receiver_open: true,
            receiver_in: Vec::new(),
            receiver_at: 0,
            expected: None,
            writing: None,
            to_confirm: Vec::new(),
            back_out: Vec::new(),
            back_at: 0,
        });
    }

    fn instant(&self) -> Instant {
        self.base + Duration::from_nanos(self.now)
    }

    fn schedule(&mut self, after: Time, event: Event) {
        self.schedule_at(self.now + after, event);
    }

    fn schedule_at(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence, self.generation, event)));
    }

    fn trace(&self, text: impl FnOnce() -> String) {
        if self.trace {
            println!("{:12.6} {}", self.now as f64 / 1e9, text());
        }
    }

    fn between(&mut self, bounds: (u64, u64)) -> Time {
        self.rng.range(bounds.0, bounds.1)
    }

    // ---- the loop ----

    fn go(&mut self) -> Checked {
        self.drive()?;
        for _ in 0..STEPS_LIMIT {
            if self.attempt.sender.outcome() == Some(&Outcome::Done(self.done())) {
                return self.verify_end();
            }
            let event = self.events.peek().map(|Reverse((at, ..))| *at);
            let timer = if self.attempt.sender_dead { None } else { self.attempt.sender.poll_timeout() };
            let timer = timer.map(|at| at.saturating_duration_since(self.base).as_nanos() as Time);
            let Some(next) = event.into_iter().chain(timer).min() else {
                return Err("nothing will ever happen".into());
            };
            self.now = self.now.max(next);
            if self.now > VIRTUAL_LIMIT {
                return Err(format!("not done in time: {}", self.state()));
            }
            if event == Some(next) {
                let Some(Reverse((_, _, generation, event))) = self.events.pop() else { continue };
                if generation == self.generation {
                    self.handle(event)?;
                }
            } else {
                // Chunks on a control stream that stalls are taken back without the connection
                // being closed.
                let control = &mut self.attempt.conns[0];
                if self.now >= control.progress_at + 5 * SECOND {
                    self.attempt.explained += control.unconfirmed.len() as u32;
                }
                let now = self.instant();
                self.attempt.sender.handle_timeout(now);
                self.drive()?;
                if self.attempt.sender.poll_timeout().is_some_and(|at| at <= now) && !self.attempt.sender_dead
                {
                    return Err(format!("the timer is due again at once: {}", self.state()));
                }
                continue;
            }
            self.drive()?;
        }
        Err(format!("too many steps: {}", self.state()))
    }

    /// The part of the sender's state that fits a page.
    fn state(&self) -> String {
        let text = format!("{:?}", self.attempt.sender);
        let parts = ["unknown:", "streams: {"]
            .map(|part| text.rsplit_once(part).map_or(0, |(before, _)| before.len()));
        parts
            .iter()
            .map(|&at| text[at..].chars().take(900).collect::<String>())
            .collect::<Vec<_>>()
            .join(" … ")
    }

    fn handle(&mut self, event: Event) -> Checked {
        match event {
            Event::ToReceiver(at) => self.receive(at)?,
            Event::ToSender(at) => self.sender_receive(at)?,
            Event::Joined if !self.attempt.sender_dead => {
                let id = self.attempt.sender.handle_stream_joined(self.instant());
                self.connect();
                if id.0 as usize + 1 != self.attempt.conns.len() {
                    return Err("streams are not numbered one after the other".into());
                }
                self.trace(|| format!("{id:?} joined"));
            }
            Event::OpenFailed if !self.attempt.sender_dead => {
                self.attempt.sender.handle_open_failed(self.instant());
            }
            Event::Read(at) => {
                if let Some(chunk) = self.attempt.conns[at].reading.take()
                    && self.attempt.conns[at].sender_open
                    && !self.attempt.sender_dead
                {
                    self.finish_read(at, chunk)?;
                }
            }
            Event::Written(at) => {
                self.finish_write(at)?;
                self.receive(at)?;
            }
            Event::Lost(at) => self.lose(at),
            Event::ReceiverTick => {
                if self.attempt.receiver.is_some() && !self.attempt.receiver_dead {
                    self.reply(0, &Control::Alive);
                }
                self.schedule(5 * SECOND, Event::ReceiverTick);
            }
            Event::NewAttempt => {
                self.end_attempt(true)?;
                self.begin();
            }
            Event::Joined | Event::OpenFailed => {}
        }
        Ok(())
    }

    fn drive(&mut self) -> Checked {
        loop {
            let now = self.instant();
            let mut moved = false;
            if !self.attempt.sender_dead {
                while self.attempt.sender.poll_open(now) {
                    let fails = self.rng.percent(self.plan.join_fails);
                    let after = self.between(self.plan.join);
                    self.schedule(after, if fails { Event::OpenFailed } else { Event::Joined });
                }
                while let Some(id) = self.attempt.sender.poll_close() {
                    self.stats.taken_over += 1;
                    self.trace(|| format!("{id:?} is closed by the sender"));
                    self.abort(id.0 as usize);
                }
                self.fill_stream();
                moved |= self.compare();
                for at in 0..self.attempt.conns.len() {
                    moved |= self.pump_sender(at)?;
                }
            }
            for at in 0..self.attempt.conns.len() {
                moved |= self.pump_receiver(at);
            }
            if let Some(outcome) = self.attempt.sender.outcome()
                && !self.attempt.sender_dead
            {
                match outcome {
                    Outcome::Done(_) => return Ok(()),
                    Outcome::Lost(why) => {
                        let why = why.clone();
                        self.trace(|| format!("lost: {why}"));
                        self.sender_dies(true);
                    }
                    other => return Err(format!("{other:?}")),
                }
            }
            if !moved {
                return Ok(());
            }
        }
    }

    // ---- the sender's end ----

    /// Reads what the receiver claims to have, and compares it.
    fn compare(&mut self) -> bool {
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
                    self.attempt.sender.handle_unreadable(None, chunk, entry, 404, "it is gone");
                }
            }
        }
        moved
    }

    fn pump_sender(&mut self, at: usize) -> Result<bool, String> {
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

    fn finish_read(&mut self, at: usize, chunk: ChunkIndex) -> Checked {
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
                self.stats.encoded += u32::from(frame[0] & 0x40 != 0);
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
                self.attempt.sender.handle_unreadable(Some(id), chunk, entry, 404, "it is gone");
            }
        }
        Ok(())
    }

    fn fill_stream(&mut self) {
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

    fn sender_receive(&mut self, at: usize) -> Checked {
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
    fn lose(&mut self, at: usize) {
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
    fn abort(&mut self, at: usize) {
        let conn = &mut self.attempt.conns[at];
        conn.sender_open = false;
        self.attempt.explained += conn.unconfirmed.len() as u32;
        conn.unconfirmed.clear();
        let keep = self.rng.below(conn.forward.queued() + 1);
        let end = conn.forward.cut(self.now, keep);
        self.schedule_at(end, Event::ToReceiver(at));
    }

    /// The sender's attempt is over; what is on its way may still arrive before the next one.
    fn sender_dies(&mut self, orderly: bool) {
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

    // ---- the receiver's end ----

    fn reply(&mut self, at: usize, frame: &Control) {
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

    fn pump_receiver(&mut self, at: usize) -> bool {
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

    fn receive(&mut self, at: usize) -> Checked {
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
                    if violation.code != 400 || !lost_slice {
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

    fn finish_write(&mut self, at: usize) -> Checked {
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

    fn done(&self) -> Done {
        Done { files: 1, bytes: self.world.source.manifest.bytes(), ..Done::default() }
    }

    /// The receiving program dies, or its attempt is over: what is being written gets torn.
    fn receiver_over(&mut self) {
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

    fn end_attempt(&mut self, again: bool) -> Checked {
        if !self.attempt.receiver_dead {
            self.receiver_over();
        }
        for conn in self.attempt.conns.iter().skip(1) {
            self.stats.stream_bytes.push((conn.sent, conn.retiring));
        }
        let attempt = &self.attempt;
        let bound = attempt.needed.unwrap_or(0) + attempt.filled + attempt.explained;
        if attempt.sends > bound {
            let Attempt { sends, needed, filled, explained, .. } = attempt;
            return Err(format!(
                "{sends} chunks sent; {needed:?} and {filled} needed, {explained} explained"
            ));
        }
        self.trace(|| format!("the attempt ends, another one follows: {again}"));
        Ok(())
    }

    fn verify_end(&mut self) -> Checked {
        self.end_attempt(false)?;
        if !self.attempt.finished {
            return Err("done, and the receiver did not finish".into());
        }
        for at in 0..self.world.named.len() {
            let entry = EntryIndex(at as u32);
            let accounted = self.world.existing[at].is_some()
                || (self.world.named[at] && self.world.is_whole(entry))
                || (!self.world.named[at] && self.world.unreadable[at].is_some());
            if !accounted {
                return Err(format!("{entry:?} is neither there nor given up"));
            }
        }
        self.stats.ended_at = self.now;
        Ok(())
    }

    // ---- faults ----

    fn happened(&mut self, fault: Fault) {
        self.trace(|| format!("!!! {fault:?}"));
        *self.stats.happened.entry(fault).or_default() += 1;
    }

    /// Data streams to which something can happen.
    fn data_conns(&self) -> Vec<usize> {
        let live = |conn: &Conn| {
            conn.sender_open && conn.receiver_open && !conn.cut && !conn.retiring && !conn.forward.is_dark()
        };
        (1..self.attempt.conns.len()).filter(|&at| live(&self.attempt.conns[at])).collect()
    }

    fn faults(&mut self) -> Checked {
        while let Some(&(after, fault)) = self.plan.faults.get(self.next_fault) {
            if after > self.stats.sends {
                break;
            }
            self.next_fault += 1;
            self.waiting_faults.push((self.stats.sends, fault));
        }
        for (since, fault) in std::mem::take(&mut self.waiting_faults) {
            if self.apply(fault) {
                continue;
            }
            if self.stats.sends < since + FAULT_PATIENCE {
                self.waiting_faults.push((since, fault));
            } else {
                self.duplicate_next += 1;
            }
        }
        Ok(())
    }

    /// Lets a fault happen; false if there is nothing now to which it could.
    fn apply(&mut self, fault: Fault) -> bool {
        let alive = !self.attempt.sender_dead && !self.attempt.receiver_dead;
        match fault {
            Fault::Duplicate => self.duplicate_next += 1,
            Fault::Flip => self.flip_next += 1,
            Fault::Unreadable => {
                let all = self.world.source.expendable.clone();
                self.make_unreadable(&all);
            }
            _ if !alive => return false,
            Fault::CutData | Fault::Stall => {
                let conns = self.data_conns();
                if conns.is_empty() {
                    return false;
                }
                let at = self.rng.pick(&conns);
                self.happened(fault);
                self.trace(|| format!("on {at}"));
                if fault == Fault::CutData {
                    if self.plan.lose_what_flies && self.rng.percent(50) {
                        let flying = self.flying_expendable(at);
                        self.make_unreadable(&flying);
                    }
                    let keep = self.rng.below(self.attempt.conns[at].forward.queued() + 1);
                    let keep_back = self.rng.below(self.attempt.conns[at].back.queued() + 1);
                    self.cut(at, keep, keep_back);
                } else {
                    self.attempt.conns[at].forward.darken();
                    self.attempt.conns[at].back.darken();
                }
            }
            _ if self.attempt.conns[0].cut => return false,
            Fault::CutControl | Fault::LoseEnd | Fault::LoseDone => {
                self.happened(fault);
                let keep = self.rng.below(self.attempt.conns[0].forward.queued() + 1);
                let keep_back = self.rng.below(self.attempt.conns[0].back.queued() + 1);
                self.cut(0, keep, keep_back);
            }
            Fault::StallControl => {
                if self.attempt.conns[0].forward.is_dark() {
                    return false;
                }
                self.happened(fault);
                self.attempt.conns[0].forward.darken();
                self.attempt.conns[0].back.darken();
            }
            Fault::CrashReceiver => {
                self.happened(fault);
                self.receiver_over();
                for at in 0..self.attempt.conns.len() {
                    self.cut(at, 0, 0);
                }
            }
            Fault::CrashSender => {
                self.happened(fault);
                self.sender_dies(false);
            }
        }
        true
    }

    fn make_unreadable(&mut self, among: &[EntryIndex]) {
        let left = |entry: &&EntryIndex| {
            !self.world.named[entry.at()] && self.world.unreadable[entry.at()].is_none()
        };
        let left: Vec<_> = among.iter().filter(left).copied().collect();
        if left.is_empty() {
            return;
        }
        let entry = self.rng.pick(&left);
        let size = self.world.source.data[entry.at()].len();
        let from = if self.rng.percent(50) { 0 } else { self.rng.below(size) };
        self.world.unreadable[entry.at()] = Some(from as u64);
        self.happened(Fault::Unreadable);
    }

    /// Files that may get lost, and of which something is on its way on this stream.
    fn flying_expendable(&self, at: usize) -> Vec<EntryIndex> {
        let flies = |entry: &&EntryIndex| {
            let chunks = self.world.table.chunks_of(**entry);
            chunks.is_some_and(|(first, count)| {
                let last = ChunkIndex(first.0 + count);
                self.attempt.conns[at].unconfirmed.range(first..last).next().is_some()
            })
        };
        self.world.source.expendable.iter().filter(flies).copied().collect()
    }

    /// Breaks a connection; so many bytes of what is on its way arrive yet.
    fn cut(&mut self, at: usize, keep: usize, keep_back: usize) {
        let conn = &mut self.attempt.conns[at];
        conn.cut = true;
        let end = conn.forward.cut(self.now, keep);
        conn.back.cut(self.now, keep_back);
        self.schedule_at(end, Event::ToReceiver(at));
        let seen = self.rng.range(0, 50 * MILLI);
        self.schedule(seen, Event::Lost(at));
    }
}

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

//! A sender and a receiver, and the loop that drives them.

use super::pipe::{Pipe, SECOND, Time};
use super::rng::Rng;
use super::world::{Shape, World};
use fastdrop_proto::checksum::Checksum;
use fastdrop_proto::fastdp::{
    ChunkContent, Control, Do, Expected, Header, ManifestBuilder, Open, Outcome, Receiver, Sender,
};
use fastdrop_proto::units::{ChunkIndex, EntryIndex};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::{Duration, Instant};

mod faults;
mod receiving;
mod sending;

pub use super::plan::{Bug, Fault, Plan};
pub use super::stats::Stats;

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
}

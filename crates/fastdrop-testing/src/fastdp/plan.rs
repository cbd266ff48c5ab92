//! The plan of a run: what is sent, over which path, and what goes wrong.

use super::pipe::{MICRO, MILLI, SECOND};
use super::rng::Rng;
use super::world::Source;
use fastdrop_proto::checksum::Algorithm;
use fastdrop_proto::fastdp::{SenderConfig, SkipReason, Streams};
use fastdrop_proto::units::EntryIndex;
use std::time::Duration;

/// A fault.
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

/// The ingredients of a run. `random` has all of it from a seed.
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
    /// A chunk that is on its way on a stream that is cut may be unreadable when it is to be sent
    /// again.
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

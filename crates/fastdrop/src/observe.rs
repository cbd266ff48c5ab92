//! What a transfer tells about itself while it runs and when it is over.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a transfer is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// Looking for what there is to send.
    Walking,
    /// Reaching the peer and agreeing with it.
    Connecting,
    /// Moving chunks.
    Moving,
    /// Everything has been moved; it is being synced and named.
    Finishing,
    /// Waiting to try again after a loss.
    Waiting,
}

/// Something that went wrong without ending the transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// About which file; empty if about none.
    pub path: Vec<u8>,
    /// What.
    pub message: String,
}

/// Counters that a transfer keeps while it runs; read them at any time from any thread.
#[derive(Debug, Default)]
pub struct Observer {
    phase: AtomicU8,
    /// Bytes that have to be moved in this run.
    pub bytes_total: AtomicU64,
    /// Bytes moved and confirmed so far.
    pub bytes_done: AtomicU64,
    /// Bytes of contents that were sent or taken, chunks sent again included.
    pub bytes_moved: AtomicU64,
    /// What they came to on the connections: less, where holes were left out or chunks compressed.
    pub bytes_wire: AtomicU64,
    /// Files of the transfer.
    pub files_total: AtomicU64,
    /// Files that are complete, or were there.
    pub files_done: AtomicU64,
    /// Data streams now.
    pub streams: AtomicU64,
    /// The most that there were at once.
    pub streams_peak: AtomicU64,
    pub(crate) clocks: Clocks,
}

impl Observer {
    /// What is going on.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Walking,
            1 => Phase::Connecting,
            2 => Phase::Moving,
            3 => Phase::Finishing,
            _ => Phase::Waiting,
        }
    }

    pub(crate) fn set_streams(&self, streams: u64) {
        self.streams.store(streams, Ordering::Relaxed);
        self.streams_peak.fetch_max(streams, Ordering::Relaxed);
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        let code = match phase {
            Phase::Walking => 0,
            Phase::Connecting => 1,
            Phase::Moving => 2,
            Phase::Finishing => 3,
            Phase::Waiting => 4,
        };
        self.phase.store(code, Ordering::Relaxed);
    }
}

/// How the streams of one end spent their time, added up, in microseconds.
#[derive(Debug, Default)]
pub(crate) struct Clocks {
    pub(crate) read: Clock,
    pub(crate) cpu: Clock,
    /// Blocked in sending.
    pub(crate) send: Clock,
    /// Waiting for bytes to arrive.
    pub(crate) wait: Clock,
    /// Writing and syncing.
    pub(crate) write: Clock,
}

/// One of them.
#[derive(Debug, Default)]
pub(crate) struct Clock(AtomicU64);

impl Clock {
    /// Adds what has passed since `start`, and returns the time now.
    pub(crate) fn since(&self, start: Instant) -> Instant {
        let now = Instant::now();
        self.add(now.saturating_duration_since(start));
        now
    }

    pub(crate) fn add(&self, time: Duration) {
        self.0.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn micros(&self) -> u64 {
        self.0.load(Ordering::Relaxed) / 1000
    }
}

/// What limited a transfer, in shares that add up to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shares {
    /// Reading the source.
    pub reading: f64,
    /// Computing checksums and compressing.
    pub cpu: f64,
    /// The way between the two machines, or a limit that was set.
    pub network: f64,
    /// Writing, syncing and naming.
    pub writing: f64,
}

/// What both ends measured, in microseconds of stream time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// The sender read.
    pub read: u64,
    /// The sender computed.
    pub send_cpu: u64,
    /// The sender waited for its connection to take bytes.
    pub send: u64,
    /// The receiver waited for bytes.
    pub wait: u64,
    /// The receiver computed.
    pub receive_cpu: u64,
    /// The receiver wrote and synced.
    pub write: u64,
}

impl Limits {
    /// The shares. While the sender waits for its connection, what the receiver does
    /// meanwhile is what holds it up: writing, computing, or waiting in turn, which
    /// is the network. But the receiver also waits while the sender reads and
    /// computes, and that is not the network's.
    pub fn shares(&self) -> Shares {
        // Half of these are the peer's word: sums of them may not fit into an integer.
        let wait = self.wait.saturating_sub(self.read.saturating_add(self.send_cpu));
        let receiver = (wait as f64 + self.receive_cpu as f64 + self.write as f64).max(1.0);
        let send = self.send as f64;
        let blame = |part: u64| send * part as f64 / receiver;
        let reading = self.read as f64;
        let cpu = self.send_cpu as f64 + blame(self.receive_cpu);
        let (network, writing) = (blame(wait), blame(self.write));
        let total = reading + cpu + network + writing;
        if total <= 0.0 {
            return Shares { reading: 0.0, cpu: 0.0, network: 1.0, writing: 0.0 };
        }
        Shares {
            reading: reading / total,
            cpu: cpu / total,
            network: network / total,
            writing: writing / total,
        }
    }
}

impl Shares {
    /// The shares with their names, the largest first.
    pub fn ranked(&self) -> [(&'static str, f64); 4] {
        let mut all = [
            ("reading", self.reading),
            ("cpu", self.cpu),
            ("network", self.network),
            ("writing", self.writing),
        ];
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(limits: Limits) -> &'static str {
        let shares = limits.shares();
        let sum = shares.reading + shares.cpu + shares.network + shares.writing;
        assert!((sum - 1.0).abs() < 1e-9);
        shares.ranked()[0].0
    }

    #[test]
    fn the_slow_part_is_named_and_shares_add_up() {
        assert_eq!(first(Limits { read: 90, send: 10, wait: 95, write: 5, ..Limits::default() }), "reading");
        assert_eq!(first(Limits { read: 5, send: 95, wait: 5, write: 95, ..Limits::default() }), "writing");
        assert_eq!(first(Limits { read: 5, send: 95, wait: 95, write: 5, ..Limits::default() }), "network");
        assert_eq!(
            first(Limits { send_cpu: 60, send: 40, wait: 10, receive_cpu: 90, ..Limits::default() }),
            "cpu"
        );
        first(Limits::default());
    }

    #[test]
    fn waiting_for_the_senders_own_work_is_not_the_network() {
        let shares =
            Limits { read: 30, send_cpu: 20, send: 50, wait: 50, receive_cpu: 25, write: 25 }.shares();
        assert_eq!(shares.network, 0.0);
        // Whatever the peer claims.
        let most = u64::MAX;
        first(Limits { read: most, send_cpu: most, send: most, wait: most, receive_cpu: most, write: most });
        assert!((shares.cpu - 0.45).abs() < 1e-9);
        assert!((shares.writing - 0.25).abs() < 1e-9);
    }
}

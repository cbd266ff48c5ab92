//! Whether a chunk is worth compressing: a sender decides for each stream by what it measures there.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How a sender compresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compress {
    /// Not at all.
    #[default]
    None,
    /// Each chunk with Zstandard where that is faster than to send it as it is.
    Auto,
    /// Each chunk that becomes shorter with Zstandard.
    Zstd,
    /// As one ZIP archive (section 12).
    Zip,
    /// As one gzipped tar archive.
    TarGz,
}

/// What an archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archive {
    /// ZIP, deflated.
    Zip,
    /// tar, gzipped.
    TarGz,
}

impl Archive {
    /// What its name ends in.
    pub fn extension(self) -> &'static str {
        match self {
            Archive::Zip => ".zip",
            Archive::TarGz => ".tar.gz",
        }
    }
}

impl Compress {
    /// The archive as which everything is sent, if it is sent as one.
    pub fn archive(self) -> Option<Archive> {
        match self {
            Compress::Zip => Some(Archive::Zip),
            Compress::TarGz => Some(Archive::TarGz),
            Compress::None | Compress::Auto | Compress::Zstd => None,
        }
    }
}

/// What to do with the next chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Send it as it is.
    Plain,
    /// Compress so many bytes of it, and tell [`Compressor::handle_sample`].
    Sample(usize),
    /// Compress it, and tell [`Compressor::handle_compressed`].
    Compress,
}

/// Bytes that tell enough of a chunk.
const SAMPLE: usize = 16 << 10;
/// Weight of the newest measurement.
const NEWEST: f64 = 0.3;
/// Samples may cost so much of the time that the chunks between them take.
const SAMPLES_SHARE: f64 = 0.002;
/// To begin with, compressing must promise to be so much faster.
const MARGIN: f64 = 1.05;
/// While a chunk is compressed, what went before it is still on its way, in a buffer or on other streams: of the shorter
/// of both times only so much counts.
const NOT_OVERLAPPED: f64 = 0.25;
/// Looking what the connection could do without compressing may cost so much of the time; more where nothing is known of it yet.
const EXPLORING_SHARE: f64 = 0.02;
const FIRST_EXPLORING_SHARE: f64 = 0.25;
/// Chunks that tell: a buffer takes the first of them at once, however slow the connection is.
const EXPLORED_CHUNKS: u32 = 3;
/// What a connection is taken for before anything has been sent on it: 100 Mbit/s.
const LINK_UNKNOWN: f64 = 80.0;

/// Decides for the chunks of one stream.
///
/// What a byte costs to compress, what remains of it, and what it costs to send are
/// measured, in time as it passes: so a processor that others use too, or a connection shared by many streams, counts for what it is.
#[derive(Debug, Clone)]
pub struct Compressor {
    always: bool,
    /// Nanoseconds that the connection takes for a byte, when it has more to do than it can.
    link: f64,
    /// What it took for the last two chunks that were sent as they are.
    last: [f64; 2],
    /// Nanoseconds to compress a byte.
    cost: f64,
    /// What remains of a byte.
    ratio: f64,
    compressing: bool,
    /// Whether anything is known of the connection but what everybody is taken for.
    known: bool,
    /// Chunks until the next sample.
    skip: u32,
    /// How long the sample of this chunk took, in nanoseconds.
    sampled: f64,
    /// How long the last chunk took to compress, in nanoseconds.
    compressed: f64,
    /// Chunks in a row on which the connection did not wait.
    idle: u32,
    /// What has passed since a chunk was sent as it is, in nanoseconds.
    since_plain: f64,
    /// Chunks that are yet to be sent as they are, to see how long that takes.
    exploring: u32,
}

impl Compressor {
    /// For a stream whose connection lets `bytes_per_second` pass, as far as is known; none if `compress` is none of `auto` and `zstd`.
    pub fn new(compress: Compress, bytes_per_second: Option<f64>) -> Option<Self> {
        let always = match compress {
            Compress::Zstd => true,
            Compress::Auto => false,
            Compress::None | Compress::Zip | Compress::TarGz => return None,
        };
        let link = bytes_per_second.map_or(LINK_UNKNOWN, |rate| 1e9 / rate);
        Some(Self {
            always,
            link,
            last: [link; 2],
            cost: 0.0,
            ratio: 1.0,
            compressing: false,
            known: bytes_per_second.is_some(),
            skip: 0,
            sampled: 0.0,
            compressed: 0.0,
            idle: 0,
            since_plain: 0.0,
            exploring: 0,
        })
    }

    fn pays(&self) -> bool {
        // One chunk that was held up is not a slow connection yet.
        let (margin, link) = match self.compressing {
            true => (1.0, self.link),
            false => (MARGIN, self.last.iter().fold(self.link, |least, &link| least.min(link))),
        };
        let send = self.ratio * link;
        let both = self.cost.max(send) + NOT_OVERLAPPED * self.cost.min(send);
        both * margin < link
    }

    /// Whether to look what the connection could do: it has waited for the compressor for a while, and some chunks as they are
    /// cost little of that time.
    fn explores(&self, len: usize) -> bool {
        // As it has waited, it is faster than what has been measured once.
        let link = self.link.min(self.cost / self.ratio.max(1e-6));
        let share = if self.known { EXPLORING_SHARE } else { FIRST_EXPLORING_SHARE };
        self.idle >= 2 && self.since_plain * share > link * len as f64 * f64::from(EXPLORED_CHUNKS)
    }

    /// What to do with the next chunk, which has `len` bytes.
    pub fn poll_chunk(&mut self, len: usize) -> Plan {
        if self.always {
            return Plan::Compress;
        }
        if self.compressing {
            if self.exploring == 0 && self.explores(len) {
                self.exploring = EXPLORED_CHUNKS;
            }
            return if self.exploring > 0 { Plan::Plain } else { Plan::Compress };
        }
        if self.skip > 0 {
            self.skip -= 1;
            return Plan::Plain;
        }
        Plan::Sample(len.min(SAMPLE))
    }

    /// Takes what became of a sample; whether to compress the chunk.
    pub fn handle_sample(&mut self, plain: usize, compressed: usize, took: Duration) -> bool {
        let plain = plain.max(1) as f64;
        self.sampled = nanos(took);
        self.cost = self.sampled / plain;
        self.ratio = (compressed as f64 / plain).min(1.0);
        self.compressing = self.pays();
        self.idle = 0;
        self.compressing
    }

    /// Takes what became of a chunk; whether to send it so.
    pub fn handle_compressed(&mut self, plain: usize, compressed: usize, took: Duration) -> bool {
        let ratio = compressed as f64 / plain.max(1) as f64;
        self.compressed = nanos(took);
        self.cost = mix(self.cost, self.compressed / plain.max(1) as f64);
        self.ratio = mix(self.ratio, ratio.min(1.0));
        self.compressing = self.pays();
        compressed < plain
    }

    /// Takes how long the connection took for a chunk of `plain` bytes, of which `sent` went over it.
    pub fn handle_sent(&mut self, plain: usize, sent: usize, took: Duration) {
        let took = nanos(took);
        let link = took / sent.max(1) as f64;
        if sent >= plain {
            // What is looked for is what it is now, not what it was.
            self.link = if self.exploring > 0 { link } else { mix(self.link, link) };
            self.last = [self.last[1], link];
            self.since_plain = 0.0;
            if self.exploring > 0 {
                self.exploring -= 1;
                if self.exploring == 0 {
                    self.known = true;
                    self.idle = 0;
                    self.compressing = self.pays();
                }
            }
            let sampled = std::mem::take(&mut self.sampled);
            if !self.compressing && sampled > 0.0 {
                // Rarely where a chunk takes not much longer than a sample, always where it takes ages.
                self.skip = (sampled / (SAMPLES_SHARE * took.max(1.0))).min(1024.0) as u32;
            }
            return;
        }
        self.since_plain += self.compressed + took;
        if took > self.compressed / 2.0 || link > self.link {
            self.link = mix(self.link, link);
            self.known = true;
            self.idle = 0;
            self.compressing = self.pays();
        } else {
            // It waited for the compressor, and would have taken more: how much more, this does not tell.
            self.idle += 1;
        }
    }
}

fn nanos(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}

fn mix(old: f64, new: f64) -> f64 {
    old + NEWEST * (new - old)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: usize = 4 << 20;

    /// A world in which bytes take so many nanoseconds to compress, to send, and shrink to this ratio.
    struct World {
        cost: f64,
        link: f64,
        ratio: f64,
    }

    impl World {
        fn time(nanos: f64) -> Duration {
            Duration::from_secs_f64(nanos / 1e9)
        }

        /// Sends so many chunks; the time that takes, in nanoseconds a byte.
        fn send(&self, compressor: &mut Compressor, chunks: u32) -> f64 {
            let mut total = 0.0;
            // What the connection still holds of earlier chunks, in nanoseconds: up to 2 MiB wait in its buffer.
            let mut behind: f64 = 0.0;
            for _ in 0..chunks {
                let shrunk = |bytes: usize| (bytes as f64 * self.ratio) as usize;
                let mut spend = |time: f64, behind: &mut f64| {
                    total += time;
                    *behind = (*behind - time).max(0.0);
                };
                let mut compress = false;
                match compressor.poll_chunk(CHUNK) {
                    Plan::Plain => {}
                    Plan::Compress => compress = true,
                    Plan::Sample(bytes) => {
                        let took = bytes as f64 * self.cost;
                        spend(took, &mut behind);
                        compress = compressor.handle_sample(bytes, shrunk(bytes), Self::time(took));
                    }
                }
                let mut sent = CHUNK;
                if compress {
                    let took = CHUNK as f64 * self.cost;
                    spend(took, &mut behind);
                    if compressor.handle_compressed(CHUNK, shrunk(CHUNK), Self::time(took)) {
                        sent = shrunk(CHUNK);
                    }
                }
                behind += sent as f64 * self.link;
                let took = (behind - (2 << 20) as f64 * self.link).max(0.0);
                spend(took, &mut behind);
                compressor.handle_sent(CHUNK, sent, Self::time(took));
            }
            (total + behind) / (f64::from(chunks) * CHUNK as f64)
        }

        /// How long 1,000 chunks take with each policy: none, zstd, auto.
        fn policies(&self) -> [f64; 3] {
            // The engine knows which paths are no longer than the machine.
            let known = (self.link < 1.0).then_some(1e10);
            let auto = self.send(&mut Compressor::new(Compress::Auto, known).unwrap(), 1000);
            let zstd = self.send(&mut Compressor::new(Compress::Zstd, known).unwrap(), 1000);
            [self.link, zstd, auto]
        }
    }

    #[test]
    fn auto_is_as_fast_as_the_better_of_none_and_zstd_within_5_percent() {
        for cost in [0.3, 1.0, 3.0] {
            for link in [0.1, 0.5, 1.0, 4.0, 10.0, 80.0, 1000.0] {
                for ratio in [0.01, 0.2, 0.3, 0.4, 0.6, 0.9, 1.0] {
                    let [none, zstd, auto] = World { cost, link, ratio }.policies();
                    let what = format!("{cost} {link} {ratio}: {none} {zstd} {auto}");
                    // A look at the alternative costs more where almost nothing or almost everything vanishes, and what a
                    // fast way can do has to be found out first.
                    let most = match ratio {
                        _ if link == 1.0 && cost > 1.0 => 1.7,
                        0.1..0.9 | 1.0 => 1.05,
                        _ => 1.25,
                    };
                    assert!(auto <= none.min(zstd) * most, "{what}");
                }
            }
        }
    }

    #[test]
    fn what_changes_on_the_way_is_noticed() {
        let mut compressor = Compressor::new(Compress::Auto, None).unwrap();
        let random = World { cost: 1.0, link: 80.0, ratio: 1.0 };
        let text = World { cost: 3.0, link: 80.0, ratio: 0.3 };
        let fast = World { cost: 3.0, link: 0.5, ratio: 0.3 };
        assert!(random.send(&mut compressor, 100) < 81.0);
        assert!(text.send(&mut compressor, 100) < 30.0);
        assert!(random.send(&mut compressor, 100) < 82.0);
        assert!(text.send(&mut compressor, 100) < 30.0);
        // The connection became faster than the compressor: looking for that is rare.
        fast.send(&mut compressor, 1000);
        assert!(fast.send(&mut compressor, 300) < 0.8);
        assert!(text.send(&mut compressor, 300) < 30.0);
    }

    #[test]
    fn one_chunk_that_was_held_up_is_not_a_slow_connection() {
        let mut compressor = Compressor::new(Compress::Auto, Some(1e10)).unwrap();
        let fast = World { cost: 2.0, link: 0.5, ratio: 0.3 };
        fast.send(&mut compressor, 100);
        compressor.handle_sent(CHUNK, CHUNK, Duration::from_secs(1));
        while compressor.poll_chunk(CHUNK) == Plan::Plain {}
        assert!(!compressor.handle_sample(SAMPLE, SAMPLE / 3, Duration::from_micros(60)));
        // Two are.
        compressor.handle_sent(CHUNK, CHUNK, Duration::from_secs(1));
        compressor.handle_sent(CHUNK, CHUNK, Duration::from_secs(1));
        assert!(compressor.handle_sample(SAMPLE, SAMPLE / 3, Duration::from_micros(60)));
    }

    #[test]
    fn zstd_compresses_everything_that_shrinks_and_none_nothing() {
        let mut compressor = Compressor::new(Compress::Zstd, None).unwrap();
        for (shrunk, taken) in [(10, true), (CHUNK, false), (CHUNK + 10, false), (CHUNK - 1, true)] {
            assert_eq!(compressor.poll_chunk(CHUNK), Plan::Compress);
            assert_eq!(compressor.handle_compressed(CHUNK, shrunk, Duration::from_millis(9)), taken);
            compressor.handle_sent(CHUNK, shrunk.min(CHUNK), Duration::ZERO);
        }
        for compress in [Compress::None, Compress::Zip, Compress::TarGz] {
            assert!(Compressor::new(compress, None).is_none());
        }
    }
}

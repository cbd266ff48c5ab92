//! Challenges that an address answers to prove itself, without memory of them
//! (docs/protocol/vstp.md, section 7).

use super::frame::{Flags, FrameError, FrameRef, FrameType, HeadersBuf};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// The header of a PING that asks an address to prove itself.
pub(super) const CHALLENGE: &str = "challenge";

/// The challenges of an endpoint: a keyed hash of the address and the time, so that the answer
/// proves the address even if nothing is remembered of it.
#[derive(Clone)]
pub(super) struct Challenges {
    key: [u8; blake3::KEY_LEN],
    /// The beginning of the first epoch.
    start: Option<Instant>,
    credit: f64,
    credited_at: Option<Instant>,
}

impl Challenges {
    /// An answer is taken in the epoch of its challenge and the next.
    const EPOCH: Duration = Duration::from_secs(30);
    /// Answers a second to addresses of which nothing is remembered. None of them has more bytes
    /// than what it answers.
    const RATE: f64 = 200_000.0;
    /// So many may leave at once.
    const BURST: f64 = 10_000.0;

    /// The seed must be unguessable.
    pub(super) fn new(seed: [u8; 16]) -> Self {
        let key = blake3::derive_key("fastdrop 2026 vstp challenges", &seed);
        Self { key, start: None, credit: Self::BURST, credited_at: None }
    }

    /// The challenge for an address.
    pub(super) fn token(&mut self, now: Instant, address: SocketAddr) -> u64 {
        let start = *self.start.get_or_insert(now);
        self.hash(address, Self::epoch(start, now))
    }

    /// Returns true if somebody at this address has received a challenge of late.
    pub(super) fn is_answered(&self, now: Instant, address: SocketAddr, payload: &[u8]) -> bool {
        let (Some(start), Some(token)) = (self.start, payload.first_chunk()) else { return false };
        let epoch = Self::epoch(start, now);
        let token = u64::from_be_bytes(*token);
        payload.len() == size_of::<u64>()
            && [Some(epoch), epoch.checked_sub(1)]
                .into_iter()
                .flatten()
                .any(|epoch| token == self.hash(address, epoch))
    }

    /// Returns true if one more address of which nothing is remembered may be answered now.
    pub(super) fn may_answer(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.credited_at.unwrap_or(now));
        self.credit = passed.as_secs_f64().mul_add(Self::RATE, self.credit).min(Self::BURST);
        self.credited_at = Some(now);
        let may = self.credit >= 1.0;
        self.credit -= f64::from(u8::from(may));
        may
    }

    fn epoch(start: Instant, now: Instant) -> u64 {
        now.saturating_duration_since(start).as_secs() / Self::EPOCH.as_secs()
    }

    fn hash(&self, address: SocketAddr, epoch: u64) -> u64 {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        match address.ip() {
            IpAddr::V4(ip) => hasher.update(&ip.octets()),
            IpAddr::V6(ip) => hasher.update(&ip.octets()),
        };
        hasher.update(&address.port().to_be_bytes()).update(&epoch.to_be_bytes());
        hasher.finalize().as_bytes().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
    }
}

impl std::fmt::Debug for Challenges {
    /// Never the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Challenges").field("start", &self.start).finish_non_exhaustive()
    }
}

/// A PING that only whoever receives it can answer.
pub(super) fn write_challenge(token: u64, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let headers = HeadersBuf::default().with(CHALLENGE, 1);
    let payload = token.to_be_bytes();
    let flags = Flags::empty();
    FrameRef { typ: FrameType::Ping, flags, headers: headers.as_headers(), payload: &payload }.encode(out)
}

/// The answer to a challenge; None if it is none.
pub(super) fn answer_challenge(challenge: &FrameRef<'_>) -> Option<Vec<u8>> {
    if challenge.payload.len() != size_of::<u64>() {
        return None;
    }
    let headers = HeadersBuf::default().with(CHALLENGE, 1);
    let answer = FrameRef { typ: FrameType::Pong, headers: headers.as_headers(), ..*challenge };
    let mut pong = Vec::new();
    answer.encode(&mut pong).ok().map(|()| pong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_125_a_challenge_is_answered_by_its_address_and_in_time_alone() {
        let now = Instant::now();
        let mut challenges = Challenges::new([3; 16]);
        let [one, other] = [7, 8].map(|port| SocketAddr::from(([192, 0, 2, 1], port)));
        let token = challenges.token(now, one).to_be_bytes();
        for (address, after, expected) in
            [(one, 0, true), (one, 30, true), (one, 59, true), (one, 60, false), (other, 0, false)]
        {
            let later = now + Duration::from_secs(after);
            assert_eq!(challenges.is_answered(later, address, &token), expected, "{address} {after}");
        }
        assert!(!Challenges::new([4; 16]).is_answered(now, one, &token));
        assert!(!challenges.is_answered(now, one, &token[..7]));
    }

    #[test]
    fn answers_to_strangers_are_bounded_in_rate() {
        let now = Instant::now();
        let mut challenges = Challenges::new([3; 16]);
        let answered =
            (0..1_000_000).filter(|n| challenges.may_answer(now + Duration::from_micros(*n))).count() as f64;
        assert!(answered >= Challenges::RATE, "{answered}");
        assert!(answered <= Challenges::RATE + Challenges::BURST + 1.0, "{answered}");
    }
}

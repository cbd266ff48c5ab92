//! Buffers to receive datagrams in.

use quinn_udp::RecvMeta;
use std::time::{Duration, Instant};

/// Room for what one call receives: one buffer at first, more while they are filled, and one again
/// when they have not been for a while.
#[derive(Debug)]
pub(crate) struct Room {
    pub(super) buffers: Vec<Vec<u8>>,
    pub(super) metas: Vec<RecvMeta>,
    /// The time at which a call last filled more than half of the buffers.
    used_at: Instant,
}

impl Room {
    /// Buffers a call fills at most.
    const BUFFERS_MAX: usize = 8;
    /// The most that the system puts together of the datagrams of one sender.
    const BUFFER: usize = 65_536;
    /// The time after which buffers that are not used are given back.
    const UNUSED_MAX: Duration = Duration::from_secs(1);

    pub(crate) fn new() -> Self {
        let used_at = Instant::now();
        Self { buffers: vec![vec![0; Self::BUFFER]], metas: vec![RecvMeta::default()], used_at }
    }

    /// A call has filled so many buffers, and its datagrams have been taken.
    pub(super) fn on_filled(&mut self, count: usize) {
        let buffers = self.buffers.len();
        if count >= buffers && buffers < Self::BUFFERS_MAX {
            self.resize(2 * buffers);
        }
        if 2 * count > buffers {
            self.used_at = Instant::now();
        }
    }

    /// The time at which [`Self::give_back`] has something to do.
    pub(crate) fn give_back_at(&self) -> Option<Instant> {
        (self.buffers.len() > 1).then(|| self.used_at + Self::UNUSED_MAX)
    }

    /// Gives back what has not been used for a while.
    pub(crate) fn give_back(&mut self, now: Instant) {
        if self.give_back_at().is_some_and(|at| at <= now) {
            self.resize(1);
        }
    }

    fn resize(&mut self, buffers: usize) {
        self.buffers.resize_with(buffers, || vec![0; Self::BUFFER]);
        self.metas.resize(buffers, RecvMeta::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_grows_while_it_is_filled_and_is_given_back() {
        let mut room = Room::new();
        assert_eq!((room.buffers.len(), room.give_back_at()), (1, None));
        let mut seen = Vec::new();
        for _ in 0..5 {
            room.on_filled(room.buffers.len());
            seen.push(room.buffers.len());
        }
        assert_eq!(seen, [2, 4, 8, 8, 8]);
        let at = room.give_back_at().unwrap();
        room.on_filled(4);
        assert_eq!(room.give_back_at(), Some(at), "half of it would do");
        room.on_filled(5);
        let later = room.give_back_at().unwrap();
        assert!(later >= at);
        room.give_back(later - Duration::from_millis(1));
        assert_eq!(room.buffers.len(), 8);
        room.give_back(later);
        assert_eq!((room.buffers.len(), room.metas.len(), room.give_back_at()), (1, 1, None));
    }
}

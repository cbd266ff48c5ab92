//! Buffers to receive datagrams in.

use quinn_udp::RecvMeta;

/// Room for what one call receives: one buffer at first, and more while they are filled.
#[derive(Debug)]
pub(crate) struct Room {
    pub(super) buffers: Vec<Vec<u8>>,
    pub(super) metas: Vec<RecvMeta>,
    /// Calls in a row that filled no more than half of the buffers.
    unused: u32,
}

impl Room {
    /// Buffers a call fills at most.
    const BUFFERS_MAX: usize = 8;
    /// The most that the system puts together of the datagrams of one sender.
    const BUFFER: usize = 65_536;
    /// Calls after which buffers that are not used are given back.
    const UNUSED_MAX: u32 = 256;

    pub(crate) fn new() -> Self {
        Self { buffers: vec![vec![0; Self::BUFFER]], metas: vec![RecvMeta::default()], unused: 0 }
    }

    /// Bytes of all buffers.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.buffers.iter().map(Vec::capacity).sum()
    }

    /// A call has filled so many buffers, and its datagrams have been taken.
    pub(super) fn on_filled(&mut self, count: usize) {
        let buffers = self.buffers.len();
        if count >= buffers {
            self.unused = 0;
            self.resize((2 * buffers).min(Self::BUFFERS_MAX));
        } else if 2 * count > buffers {
            self.unused = 0;
        } else {
            self.unused += 1;
            if self.unused >= Self::UNUSED_MAX {
                self.unused = 0;
                self.resize((buffers / 2).max(1));
            }
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
        let sizes = |room: &Room| room.bytes() / Room::BUFFER;
        assert_eq!(sizes(&room), 1);
        let mut seen = Vec::new();
        for _ in 0..5 {
            room.on_filled(room.buffers.len());
            seen.push(sizes(&room));
        }
        assert_eq!(seen, [2, 4, 8, 8, 8]);
        for _ in 0..3 * Room::UNUSED_MAX {
            room.on_filled(5);
        }
        assert_eq!(sizes(&room), 8, "more than half of it is used");
        for _ in 0..3 * Room::UNUSED_MAX {
            room.on_filled(0);
        }
        assert_eq!(sizes(&room), 1);
    }
}

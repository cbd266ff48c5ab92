//! What can be set alike at both ends.

/// The methods of a builder that has a `config` and a `packet_max`.
macro_rules! options_of_both_ends {
    () => {
        /// Bytes of a packet's payload. Default 64 KiB, by UDP 1,024; at most 16 MiB, by UDP
        /// 65,000.
        pub fn packet_max(mut self, bytes: usize) -> Self {
            self.packet_max = Some(bytes);
            self
        }

        /// The time that silence may last, from 100 ms to an hour, with a peer that knows
        /// keep-alives; None for none. Default 15 seconds.
        pub fn keep_alive(mut self, interval: Option<Duration>) -> Self {
            self.config.keep_alive = interval;
            self
        }

        /// How long a handshake may take, at a client's end with connecting. Default 10 seconds.
        pub fn handshake_timeout(mut self, time: Duration) -> Self {
            self.config.handshake_timeout = time;
            self
        }

        /// How long a packet that has begun to come by TCP may pause. Default 30 seconds.
        pub fn packet_timeout(mut self, time: Duration) -> Self {
            self.config.packet_timeout = time;
            self
        }

        /// How long the peer may be silent while something waits for it. Default 60 seconds.
        pub fn gone_after(mut self, time: Duration) -> Self {
            self.config.gone_after = time;
            self
        }

        /// The time between a packet that nothing answers and data behind it, towards a program of
        /// the field that may read both together and take them for one packet. Default 50 ms, at
        /// most a second; 0 where every peer reads packets by their lengths.
        pub fn unanswered_pause(mut self, pause: Duration) -> Self {
            self.config.unanswered_pause = pause;
            self
        }

        /// How often in a row nothing may come back until the peer is taken for gone. Default 15.
        pub fn timeouts_max(mut self, count: u32) -> Self {
            self.config.timeouts_max = count;
            self
        }
    };
}

pub(super) use options_of_both_ends;

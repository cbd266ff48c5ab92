//! Bounds of what unfinished messages may take (docs/protocol/vstp.md, section 3).

use std::time::Duration;

/// Bounds of what unfinished messages take.
#[derive(Debug, Clone)]
pub struct ReassemblyLimits {
    /// Bytes of one message. Default 256 MiB.
    pub message_bytes_max: usize,
    /// Unfinished messages of one address. Default 256.
    pub peer_messages_max: usize,
    /// Bytes of all of one address. Default 256 MiB.
    pub peer_bytes_max: usize,
    /// Unfinished messages of all addresses. Default 1,000.
    pub messages_max: usize,
    /// Bytes of all addresses, with what the application has not taken yet. Default 512 MiB.
    pub bytes_max: usize,
    /// A message that gets nothing new for so long is dropped. Default 30 seconds.
    pub age_max: Duration,
}

impl Default for ReassemblyLimits {
    fn default() -> Self {
        Self {
            message_bytes_max: 256 << 20,
            peer_messages_max: 256,
            peer_bytes_max: 256 << 20,
            messages_max: 1000,
            bytes_max: 512 << 20,
            age_max: Duration::from_secs(30),
        }
    }
}

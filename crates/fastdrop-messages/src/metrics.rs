//! Counts of what servers and clients do, for whoever exports them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of one server or client, or of several that were given the same. Clones count together.
///
/// ```
/// use fastdrop_messages::Metrics;
/// use fastdrop_messages::vstp::tcp::TcpConfig;
/// use fastdrop_messages::vstp::{Frame, FrameType, VstpTcpClient, VstpTcpServer};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), fastdrop_messages::vstp::VstpError> {
/// let metrics = Metrics::default();
/// let config = TcpConfig { metrics: metrics.clone(), ..TcpConfig::default() };
/// let server = VstpTcpServer::bind_with_config("127.0.0.1:0", config).await?;
/// let mut client = VstpTcpClient::connect(&server.local_addr()?.to_string()).await?;
/// client.send(Frame::new(FrameType::Data)).await?;
/// server.accept().await?.recv().await?;
/// assert_eq!((metrics.counts().joined, metrics.counts().messages_received), (1, 1));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<[AtomicU64; Count::KINDS]>);

/// Counts since the beginning, as they were at one moment. What a transport does not have is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Connections by TCP and sessions of CNP that began.
    pub joined: u64,
    /// Of them, those that ended.
    pub gone: u64,
    /// Of those, the ones that ended because they were silent, or took nothing, for too long: each
    /// counts once.
    pub timed_out: u64,
    /// Connections and sessions whose place was given to others; connections whose handshake of TLS
    /// failed, which have not joined, or whose token was refused, which have; by UDP sessions and
    /// messages for which there was no room. Not counted: connections that a
    /// [`Port`](crate::port::Port) closes before it knows their protocol, or of which too many wait
    /// to be accepted.
    pub refused: u64,
    /// Messages that came whole: frames and messages that are handed to the application by VSTP,
    /// messages of CNP. Acknowledgements are none, nor by TCP are the words that a call is
    /// cancelled, and the WELCOME to a client that has shown its token.
    pub messages_received: u64,
    /// Messages that the application has sent and that had their outcome: one that was to be
    /// acknowledged has been, any other one has left. Those of CNP are always acknowledged. By TCP
    /// a BYE counts, and answers that this end gives by itself do not, nor does the HELLO that
    /// shows a token.
    pub messages_sent: u64,
    /// Messages of VSTP that did not arrive, or were not acknowledged, as far as their sender
    /// knows; by TCP also those that still waited for their turn when their connection ended.
    pub messages_failed: u64,
    /// Messages that came again and were not handed on: by UDP, and by TCP of clients that
    /// connected again; packets of CNP.
    pub duplicates: u64,
    /// Packets of CNP that left again; frames of VSTP that left again on another
    /// connection.
    pub retransmissions: u64,
    /// Connections that took the place of one that broke.
    pub reconnects: u64,
    /// Things that came by VSTP and were no frame of this version, after which a connection by TCP
    /// ends; packets of CNP with a wrong checksum.
    pub malformed: u64,
    /// Bytes that came: of connections by TCP (of TLS, what it carried), or in datagrams by UDP.
    pub bytes_received: u64,
    /// Bytes that left.
    pub bytes_sent: u64,
    /// Datagrams that came; for CNP packets, by TCP too.
    pub packets_received: u64,
    /// Datagrams that left; for CNP packets, by TCP too.
    pub packets_sent: u64,
}

/// A kind of event that is counted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Count {
    Joined,
    Gone,
    TimedOut,
    Refused,
    MessagesReceived,
    MessagesSent,
    MessagesFailed,
    Duplicates,
    Retransmissions,
    Malformed,
    BytesReceived,
    BytesSent,
    PacketsReceived,
    PacketsSent,
    Reconnects,
}

impl Count {
    const KINDS: usize = Self::Reconnects as usize + 1;
}

impl Metrics {
    /// The counts as they are now. Each is exact; one may be newer than another.
    pub fn counts(&self) -> Counts {
        let of = |count: Count| self.0.get(count as usize).map_or(0, |value| value.load(Ordering::Relaxed));
        Counts {
            joined: of(Count::Joined),
            gone: of(Count::Gone),
            timed_out: of(Count::TimedOut),
            refused: of(Count::Refused),
            messages_received: of(Count::MessagesReceived),
            messages_sent: of(Count::MessagesSent),
            messages_failed: of(Count::MessagesFailed),
            duplicates: of(Count::Duplicates),
            retransmissions: of(Count::Retransmissions),
            reconnects: of(Count::Reconnects),
            malformed: of(Count::Malformed),
            bytes_received: of(Count::BytesReceived),
            bytes_sent: of(Count::BytesSent),
            packets_received: of(Count::PacketsReceived),
            packets_sent: of(Count::PacketsSent),
        }
    }

    pub(crate) fn add(&self, count: Count, more: u64) {
        if more > 0
            && let Some(value) = self.0.get(count as usize)
        {
            value.fetch_add(more, Ordering::Relaxed);
        }
    }

    pub(crate) fn on(&self, count: Count) {
        self.add(count, 1);
    }
}

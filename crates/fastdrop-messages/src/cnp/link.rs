//! What carries a session: a TCP connection, a UDP socket of its own, or a part of a server's.

use super::clock;
use super::tally::Traffic;
use super::wire::{End, Wire};
use crate::datagrams::{Path, Room, Socket, Transmit};
use crate::places::Place;
use crate::tls::Fingerprint;
use bytes::{Buf, BytesMut};
use fastdrop_proto::cnp::{PathChallenge, Session};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::sync::mpsc;

/// One way to the peer, and what is on its way through it.
pub(super) enum Link {
    /// TCP.
    Stream(Box<Stream>),
    /// UDP.
    Datagrams(Box<Datagrams>),
}

pub(super) struct Stream {
    wire: Wire,
    read: BytesMut,
    /// The bytes that came last.
    last: usize,
    /// When the last byte came.
    read_at: Instant,
    /// When a packet that has begun, and of which more would be read, must have gone on.
    stalls_at: Option<Instant>,
    out: Vec<u8>,
    written: usize,
    broken: Option<End>,
    /// The place that it holds at a server.
    place: Option<Arc<Place>>,
    traffic: Traffic,
}

pub(super) struct Datagrams {
    socket: Arc<Socket>,
    path: Path,
    /// A new address of the peer that has to prove itself, and the question to it.
    candidate: Option<(Path, PathChallenge)>,
    source: Source,
    out: Vec<u8>,
    /// Whether the system has said that nobody is there.
    refused: bool,
    traffic: Traffic,
    /// Where the next datagram in `out` begins, and the lengths of those that have not left.
    sent: usize,
    lengths: VecDeque<usize>,
}

/// A datagram, and where it came from.
pub(super) type Received = (Path, Vec<u8>);

pub(super) enum Source {
    /// The socket is this session's alone.
    Own(Room),
    /// Somebody else receives, and hands on what is from the peer.
    Inbox(mpsc::Receiver<Received>, Option<Received>),
}

impl Link {
    /// Bytes that are read at once.
    const READ: usize = 256 << 10;
    /// No more are expected than came last.
    const FEW: usize = 1 << 10;
    /// Bytes that are written at once.
    const WRITE: usize = 128 << 10;
    /// Calls to receive before what came is answered.
    const RECEIVES: usize = 8;
    /// How long a peer has to close its side, so that what was said last is not lost in a reset.
    const FAREWELL: Duration = Duration::from_secs(1);

    pub(super) fn stream(wire: Wire, place: Option<Arc<Place>>) -> Self {
        Self::Stream(Box::new(Stream {
            wire,
            read: BytesMut::new(),
            last: 0,
            read_at: clock::now(),
            stalls_at: None,
            out: Vec::new(),
            written: 0,
            broken: None,
            place,
            traffic: Traffic::default(),
        }))
    }

    pub(super) fn datagrams(socket: Arc<Socket>, path: Path, source: Source) -> Self {
        let (out, lengths) = (Vec::new(), VecDeque::new());
        let (refused, traffic) = (false, Traffic::default());
        Self::Datagrams(Box::new(Datagrams {
            socket,
            path,
            candidate: None,
            source,
            out,
            refused,
            traffic,
            sent: 0,
            lengths,
        }))
    }

    /// The fingerprint of the certificate that the peer has shown.
    pub(super) fn fingerprint(&self) -> Option<Fingerprint> {
        match self {
            Self::Stream(link) => link.wire.fingerprint(),
            Self::Datagrams(_) => None,
        }
    }

    /// Bytes that came and left.
    pub(super) fn traffic(&self) -> Traffic {
        match self {
            Self::Stream(link) => link.traffic,
            Self::Datagrams(link) => link.traffic,
        }
    }

    /// Gives the session what has come, as far as it wants it.
    pub(super) fn receive(&mut self, now: Instant, session: &mut Session) {
        match self {
            Self::Stream(link) => link.receive(now, session),
            Self::Datagrams(link) => link.receive(now, session),
        }
    }

    /// Takes from the session what is to leave, if nothing waits already.
    pub(super) fn take_output(&mut self, now: Instant, session: &mut Session) {
        match self {
            Self::Stream(link) => {
                if link.written == link.out.len() {
                    link.out.clear();
                    link.written = 0;
                    session.poll_transmit(now, &mut link.out, Self::WRITE);
                }
            }
            Self::Datagrams(link) => {
                if link.lengths.is_empty() {
                    link.out.clear();
                    link.sent = 0;
                    while link.lengths.len() < link.socket.segments().max(1) {
                        let before = link.out.len();
                        if !session.poll_transmit(now, &mut link.out, 0) {
                            break;
                        }
                        link.lengths.push_back(link.out.len() - before);
                    }
                }
            }
        }
    }

    /// Whether something waits to leave.
    pub(super) fn has_output(&self) -> bool {
        match self {
            Self::Stream(link) => link.written < link.out.len() || link.wire.wants_write(),
            Self::Datagrams(link) => !link.lengths.is_empty(),
        }
    }

    /// The address of the peer, if it may change.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        match self {
            Self::Stream(_) => None,
            Self::Datagrams(link) => Some(link.path.remote),
        }
    }

    /// Sends as much as there is room for.
    pub(super) fn send(&mut self) {
        match self {
            Self::Stream(link) => link.send(),
            Self::Datagrams(link) => link.send(),
        }
    }

    /// Waits until something can be received (if that is wanted), or something that waits can
    /// leave.
    pub(super) async fn ready(&mut self, wants_input: bool) {
        let writes = self.has_output();
        match self {
            Self::Stream(link) => {
                let interest = match (wants_input && link.broken.is_none(), writes) {
                    (true, true) => Interest::READABLE | Interest::WRITABLE,
                    (true, false) => Interest::READABLE,
                    (false, true) => Interest::WRITABLE,
                    (false, false) => return std::future::pending().await,
                };
                if link.wire.ready(interest).await.is_err() {
                    link.broken.get_or_insert(End::Stream);
                }
            }
            Self::Datagrams(link) => {
                let Datagrams { socket, source, refused, .. } = &mut **link;
                let came = async {
                    match source {
                        Source::Own(_) => *refused |= socket.refused_or_readable().await,
                        Source::Inbox(inbox, next) => {
                            if next.is_none() {
                                *next = inbox.recv().await;
                            }
                        }
                    }
                };
                tokio::select! {
                    () = came, if wants_input => {}
                    _ = socket.writable(), if writes => {}
                    else => std::future::pending().await,
                }
            }
        }
    }

    /// When a packet that has begun has not gone on for too long, or what is not used can be given
    /// back.
    pub(super) fn stalls_at(&self) -> Option<Instant> {
        match self {
            Self::Stream(link) => link.stalls_at,
            Self::Datagrams(link) => match &link.source {
                Source::Own(room) => room.give_back_at(),
                Source::Inbox(..) => None,
            },
        }
    }

    /// The session is over, and everything has left.
    pub(super) async fn farewell(self) {
        let Self::Stream(mut link) = self else { return };
        if !matches!(tokio::time::timeout(Self::FAREWELL, link.wire.farewell()).await, Ok(Ok(()))) {
            tracing::debug!("the peer has not closed its side");
        }
    }
}

impl Stream {
    fn receive(&mut self, now: Instant, session: &mut Session) {
        for _ in 0..Link::RECEIVES {
            if !self.give(now, session) || self.broken.is_some() {
                break;
            }
            let few = self.read.is_empty() && self.last < Link::FEW;
            self.read.reserve(if few { Link::FEW } else { Link::READ });
            match self.wire.try_read_buf(&mut self.read) {
                Ok(Some(count)) => {
                    self.traffic.received += count as u64;
                    (self.read_at, self.last) = (now, count);
                    if let Some(place) = &self.place {
                        place.on_heard(now);
                    }
                }
                Ok(None) => {
                    if self.read.is_empty() && self.read.capacity() > Link::FEW {
                        // It may be long until something comes.
                        (self.read, self.last) = (BytesMut::new(), 0);
                    }
                    break;
                }
                Err(end) => self.broken = Some(end),
            }
        }
        if let Some(end) = self.broken.as_ref().filter(|_| session.wants_input()) {
            match end {
                End::Stream => session.handle_end(),
                End::Truncated => session.handle_truncation(),
                End::Tls(words) => session.handle_tls_failure(words),
            }
        } else if self.stalls_at.is_some_and(|at| at <= now) {
            session.handle_stalled();
        }
    }

    /// Gives the session the packets that are complete; false if it wants no more.
    fn give(&mut self, now: Instant, session: &mut Session) -> bool {
        self.stalls_at = None;
        while session.wants_input() {
            match session.parse_head(&self.read) {
                Ok(Some(head)) if self.read.len() >= head.packet_len() => {
                    session.handle_packet(now, &head, head.payload(&self.read));
                    self.read.advance(head.packet_len());
                }
                Ok(_) => {
                    let within = !self.read.is_empty();
                    self.stalls_at = within.then(|| self.read_at + session.packet_timeout());
                    return true;
                }
                Err(error) => {
                    session.handle_bad_packet(&error);
                    self.read.clear();
                    return false;
                }
            }
        }
        false
    }

    fn send(&mut self) {
        while let Some(rest) = self.out.get(self.written..).filter(|rest| !rest.is_empty()) {
            match self.wire.try_write(rest) {
                Ok(written) => {
                    self.traffic.sent += written as u64;
                    self.written += written;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // What the peer had said before may still be there to be read, and then the
                    // end.
                    tracing::debug!(%error, "nothing can be written any more");
                    self.written = self.out.len();
                }
            }
        }
        if let Err(error) = self.wire.try_flush() {
            tracing::trace!(%error, "not all has left");
        }
    }
}

/// A datagram of the peer came from a new address: that is asked for its proof, in a datagram that
/// is shorter than the one that came, until it has given it. Then everything goes there.
fn prove(
    socket: &Socket,
    path: &mut Path,
    candidate: &mut Option<(Path, PathChallenge)>,
    from: Path,
    answered: Option<PathChallenge>,
    session: &Session,
) {
    let asked = candidate.filter(|(asked, _)| asked.remote == from.remote);
    if let Some((_, challenge)) = asked
        && answered == Some(challenge)
    {
        tracing::debug!(before = %path.remote, now = %from.remote, "the peer has another address");
        *path = from;
        *candidate = None;
        return;
    }
    let challenge = match asked {
        Some((_, challenge)) => challenge,
        None => {
            let mut bytes = [0; 8];
            if getrandom::fill(&mut bytes).is_err() {
                return;
            }
            PathChallenge(bytes)
        }
    };
    *candidate = Some((from, challenge));
    if let Some(question) = session.path_challenge(challenge) {
        // One that does not leave is sent for the next datagram.
        let _ = socket.try_send_one(from, &question);
    }
}

impl Datagrams {
    fn receive(&mut self, now: Instant, session: &mut Session) {
        match &mut self.source {
            Source::Own(room) => {
                for _ in 0..Link::RECEIVES {
                    let (peer, traffic) = (self.path.remote, &mut self.traffic);
                    let received = self.socket.try_recv(room, |path, bytes| {
                        if path.remote == peer {
                            traffic.received += bytes.len() as u64;
                            session.handle_datagram(now, bytes);
                        }
                    });
                    match received {
                        Ok(()) => {}
                        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                            self.refused = true;
                        }
                        Err(_) => break,
                    }
                }
                room.give_back(now);
                if std::mem::take(&mut self.refused) {
                    session.handle_unreachable();
                }
            }
            Source::Inbox(inbox, next) => {
                let mut count = 0;
                while let Some((path, datagram)) = next.take().or_else(|| inbox.try_recv().ok()) {
                    self.traffic.received += datagram.len() as u64;
                    session.handle_datagram(now, &datagram);
                    if path.remote != self.path.remote && session.is_from_peer(&datagram) {
                        let answered = session.poll_path_response();
                        prove(&self.socket, &mut self.path, &mut self.candidate, path, answered, session);
                    }
                    count += 1;
                    if count >= 64 * Link::RECEIVES {
                        break;
                    }
                }
                if inbox.is_closed() && inbox.is_empty() {
                    // Another session has taken this one's place, or the server is gone.
                    session.handle_end();
                }
            }
        }
    }

    /// Sends datagrams of one size together.
    fn send(&mut self) {
        while let Some(&datagram) = self.lengths.front() {
            let (mut count, mut bytes) = (0, 0);
            for &length in &self.lengths {
                if length > datagram || bytes + length > usize::from(u16::MAX) - 1000 && count > 0 {
                    break;
                }
                bytes += length;
                count += 1;
                if length < datagram {
                    break;
                }
            }
            let together = self.out.get(self.sent..self.sent + bytes).unwrap_or_default();
            if self.socket.try_send(Transmit { path: self.path, datagram }, together).is_err() {
                return;
            }
            self.traffic.sent += bytes as u64;
            self.sent += bytes;
            self.lengths.drain(..count);
        }
    }
}

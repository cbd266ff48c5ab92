//! The handshakes that come to a UDP socket: who asks, and who has shown that its address is its
//! own (docs/protocol/cnp.md, section 2).

use super::checksum::Checksum;
use super::config::SessionConfig;
use super::handshake::{
    Agreed, HANDSHAKE_PAYLOAD_MAX, HANDSHAKE_TYPES, Syn, read_ack, write_refusal, write_unauthorized,
};
use super::header::{HEAD_BYTES, Head, Layout, TYPE_AT};
use super::packet::{PacketType, append};
use super::params::SessionId;
use super::seq::Seq;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// What to do about a datagram from an address without a session, or a SYN from one with a session.
#[derive(Debug)]
pub enum Accepted {
    /// Nothing.
    Nothing,
    /// Send this to where it came from.
    Answer(Vec<u8>),
    /// The handshake is over. The datagram that said so is the session's first.
    Session(Handshake),
}

/// A handshake by datagrams that is over.
#[derive(Debug)]
pub struct Handshake {
    pub(super) agreed: Agreed,
    /// The payload of the SYN, which may come again.
    pub(super) syn: Box<[u8]>,
}

impl Handshake {
    /// What was agreed on.
    pub fn agreed(&self) -> &Agreed {
        &self.agreed
    }
}

#[derive(Debug)]
struct Waiting {
    since: Instant,
    handshake: Handshake,
    answer: Vec<u8>,
}

/// Those who have asked for a session and have not confirmed its id.
#[derive(Debug)]
pub struct Acceptor {
    config: SessionConfig,
    waiting: HashMap<SocketAddr, Waiting>,
    /// In the order in which they asked; those that are not there any more are passed over.
    order: VecDeque<(Instant, SocketAddr)>,
    by_ip: HashMap<IpAddr, usize>,
}

impl Acceptor {
    const WAITING_MAX: usize = 4096;
    const WAITING_MAX_BY_IP: usize = 64;
    const WAITING_TIME: Duration = Duration::from_secs(10);
    /// An address that has not proved itself gets at most so many times what came from it.
    const AMPLIFICATION_MAX: usize = 3;

    /// Agrees to what `config` says.
    pub fn new(config: SessionConfig) -> Self {
        Self { config, waiting: HashMap::new(), order: VecDeque::new(), by_ip: HashMap::new() }
    }

    /// Bytes of the longest datagram that can be of any use.
    pub fn datagram_max(&self) -> usize {
        (HEAD_BYTES + HANDSHAKE_PAYLOAD_MAX).max(SessionConfig::datagram(self.config.packet_max))
    }

    /// How many have asked and not confirmed.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Reports whether a datagram can be a packet of a handshake; everything else need not be shown
    /// to [`Self::handle_datagram`].
    pub fn is_handshake(datagram: &[u8]) -> bool {
        let is_type = datagram.get(TYPE_AT).is_some_and(|typ| HANDSHAKE_TYPES.contains(typ));
        is_type && datagram.get(HEAD_BYTES) == Some(&b'{')
    }

    /// A datagram came. `new_id` makes an id that nobody can guess.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
        new_id: impl FnOnce() -> Option<SessionId>,
    ) -> Accepted {
        self.forget_old(now);
        let Ok(Some(head)) = Head::parse(datagram, HANDSHAKE_PAYLOAD_MAX) else { return Accepted::Nothing };
        let Some(payload) = datagram.get(HEAD_BYTES..head.packet_len()) else { return Accepted::Nothing };
        if head.seq != Seq(0) || !Checksum::Md5.verify(&head, 0, payload) {
            return Accepted::Nothing;
        }
        match PacketType::of(head.typ) {
            Some(PacketType::Data) => self.handle_syn(now, from, payload, datagram.len(), new_id),
            Some(PacketType::Ack | PacketType::Error) => self.handle_ack(from, payload),
            _ => Accepted::Nothing,
        }
    }

    fn handle_syn(
        &mut self,
        now: Instant,
        from: SocketAddr,
        payload: &[u8],
        bytes: usize,
        new_id: impl FnOnce() -> Option<SessionId>,
    ) -> Accepted {
        let answer = |packet: Vec<u8>| {
            let bearable = packet.len() <= bytes * Self::AMPLIFICATION_MAX;
            if bearable { Accepted::Answer(packet) } else { Accepted::Nothing }
        };
        if let Some(waiting) = self.waiting.get(&from).filter(|waiting| *waiting.handshake.syn == *payload) {
            return answer(waiting.answer.clone());
        }
        let syn = match Syn::parse(payload, Layout::Plain) {
            Ok(syn) => syn,
            Err(error) => return answer(syn_ack(&write_refusal(&error.to_string()))),
        };
        if syn.cuts_characters() {
            return answer(syn_ack(&write_refusal("by TCP alone")));
        }
        if let Err(why) = syn.authorize(&self.config) {
            return answer(syn_ack(&write_unauthorized(&why)));
        }
        self.forget(from);
        if self.by_ip.get(&from.ip()).is_some_and(|count| *count >= Self::WAITING_MAX_BY_IP) {
            return Accepted::Nothing;
        }
        if self.order.len() >= 2 * Self::WAITING_MAX {
            let waiting = &self.waiting;
            self.order.retain(|(at, from)| waiting.get(from).is_some_and(|one| one.since == *at));
        }
        while self.waiting.len() >= Self::WAITING_MAX {
            self.forget_oldest();
        }
        let Some(id) = new_id() else { return Accepted::Nothing };
        let (agreed, payload_of_answer) = syn.answer(&self.config, id);
        let packet = syn_ack(&payload_of_answer);
        if packet.len() > bytes * Self::AMPLIFICATION_MAX {
            return Accepted::Nothing;
        }
        let handshake = Handshake { agreed, syn: payload.into() };
        let waiting = Waiting { since: now, handshake, answer: packet.clone() };
        self.waiting.insert(from, waiting);
        self.order.push_back((now, from));
        *self.by_ip.entry(from.ip()).or_default() += 1;
        Accepted::Answer(packet)
    }

    fn handle_ack(&mut self, from: SocketAddr, payload: &[u8]) -> Accepted {
        let id = read_ack(payload).ok();
        match self.waiting.get(&from) {
            Some(waiting) if id.as_ref() == Some(&waiting.handshake.agreed.id) => {
                self.forget(from).map_or(Accepted::Nothing, |waiting| Accepted::Session(waiting.handshake))
            }
            _ => Accepted::Nothing,
        }
    }

    fn forget(&mut self, from: SocketAddr) -> Option<Waiting> {
        let waiting = self.waiting.remove(&from)?;
        if let Some(count) = self.by_ip.get_mut(&from.ip()) {
            *count -= 1;
            if *count == 0 {
                self.by_ip.remove(&from.ip());
            }
        }
        Some(waiting)
    }

    /// Forgets whoever asked first, if it still waits.
    fn forget_oldest(&mut self) {
        let Some((at, from)) = self.order.pop_front() else { return };
        if self.waiting.get(&from).is_some_and(|waiting| waiting.since == at) {
            self.forget(from);
        }
    }

    fn forget_old(&mut self, now: Instant) {
        let is_old = |at: Instant| now.saturating_duration_since(at) >= Self::WAITING_TIME;
        while self.order.front().is_some_and(|(at, _)| is_old(*at)) {
            self.forget_oldest();
        }
    }
}

fn syn_ack(payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    append(&mut packet, PacketType::Ack.byte(), Seq(0), 0, &Checksum::Md5, payload);
    packet
}

#[cfg(test)]
mod tests {
    use super::super::config::Carrier;
    use super::super::handshake::{write_ack, write_syn};
    use super::*;

    fn datagram(typ: PacketType, payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        append(&mut packet, typ.byte(), Seq(0), 0, &Checksum::Md5, payload);
        packet
    }

    fn id(n: u8) -> impl FnOnce() -> Option<SessionId> {
        move || Some(SessionId::from_random([n; 16]))
    }

    fn address(ip: u32, port: u16) -> SocketAddr {
        (IpAddr::from(ip.to_be_bytes()), port).into()
    }

    #[test]
    fn case_70_an_address_that_has_not_confirmed_gets_at_most_three_times_what_it_sent() {
        let mut acceptor = Acceptor::new(SessionConfig::server(Carrier::Datagrams));
        let now = Instant::now();
        let syn = write_syn(&SessionConfig::client(Carrier::Datagrams));
        for payload in
            [&syn[..], br#"{"protocol":"sr"}"#, br#"{"x":1}"#, b"{", b"{\"operation_mode\":\"burst\"}"]
        {
            for _ in 0..3 {
                let came = datagram(PacketType::Data, payload);
                let got = acceptor.handle_datagram(now, address(1, 1), &came, id(1));
                let Accepted::Answer(answer) = got else { continue };
                assert!(answer.len() <= 3 * came.len(), "{} for {}", answer.len(), came.len());
            }
        }
    }

    #[test]
    fn only_who_says_the_right_id_from_the_right_address_has_a_session() {
        let mut acceptor = Acceptor::new(SessionConfig::server(Carrier::Datagrams));
        let now = Instant::now();
        let syn = datagram(PacketType::Data, &write_syn(&SessionConfig::client(Carrier::Datagrams)));
        let ack = |n: u8| datagram(PacketType::Error, &write_ack(&SessionId::from_random([n; 16])));
        let mut give = |at: Instant, from, bytes: &[u8], n| acceptor.handle_datagram(at, from, bytes, id(n));
        let Accepted::Answer(first) = give(now, address(1, 1), &syn, 1) else { panic!("no answer") };
        let Accepted::Answer(second) = give(now, address(1, 1), &syn, 2) else { panic!("no answer") };
        assert_eq!(first, second, "the same SYN has the same answer");
        assert!(matches!(give(now, address(2, 1), &ack(1), 3), Accepted::Nothing));
        assert!(matches!(give(now, address(1, 1), &ack(2), 3), Accepted::Nothing));
        assert!(matches!(give(now, address(1, 1), &ack(1), 3), Accepted::Session(_)));
        // Not a second time, and not too late.
        assert!(matches!(give(now, address(1, 1), &ack(1), 3), Accepted::Nothing));
        give(now, address(1, 1), &syn, 4);
        assert!(matches!(give(now + Duration::from_secs(10), address(1, 1), &ack(4), 3), Accepted::Nothing));
    }

    #[test]
    fn case_73_a_million_that_ask_and_do_not_confirm_are_bounded() {
        let mut acceptor = Acceptor::new(SessionConfig::server(Carrier::Datagrams));
        let now = Instant::now();
        let syn = datagram(PacketType::Data, &write_syn(&SessionConfig::client(Carrier::Datagrams)));
        for n in 0..1000 {
            acceptor.handle_datagram(now, address(1, n), &syn, id(1));
        }
        assert_eq!(acceptor.waiting(), Acceptor::WAITING_MAX_BY_IP);
        for n in 0..20_000 {
            acceptor.handle_datagram(now + Duration::from_millis(n), address(n as u32, 7), &syn, id(1));
            assert!(
                acceptor.waiting() <= Acceptor::WAITING_MAX
                    && acceptor.order.len() <= 2 * Acceptor::WAITING_MAX
            );
        }
        acceptor.handle_datagram(now + Duration::from_secs(60), address(9, 9), b"", id(1));
        assert_eq!((acceptor.waiting(), acceptor.by_ip.len(), acceptor.order.len()), (0, 0, 0));
    }
}

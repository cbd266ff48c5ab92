//! Version 1.0.0: nobody answers, and connections end in between.

use crate::context::client::ClientContext;
use crate::context::client::connect::new_key;
use crate::context::client::summary::Delivery;
use crate::error::Error;
use crate::legacy::fastdp1::sending::{
    END_TIMEOUT, Payload, UNABLE, chunks, exchange_headers, refused, send_chunk,
};
use crate::legacy::sending::{refused_by_reset, send_all};
use crate::legacy::source_file::SourceFile;
use crate::net::connection::Ended;
use crate::net::frames::FrameReader;
use crate::net::throttle::Throttle;
use crate::observe::Phase;
use fastdrop_proto::fastdp::v1::{ChunkPrefix, FAILURE, RECONNECT, RECONNECT_EVERY, SUCCESS, parse_failure};
use fastdrop_proto::fastdp::{Code, UpgradeRequest, Version};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes that may have been sent and not have reached the other program: what both kernels hold.
const IN_FLIGHT_MAX: u64 = 16 << 20;
/// Connections of one file, beside those that its size demands.
const CONNECTIONS_MAX: u64 = 64;
/// Empty chunks that are sent at once.
const FILLING: u64 = 1024;

/// The chunks that the receiver may lack.
struct Lacking {
    /// For each of them, how far from the beginning of a connection it was sent at best; what was
    /// sent early has arrived rather than what was sent late.
    best: BTreeMap<u64, u64>,
}

impl Lacking {
    fn all(count: u64) -> Self {
        Self { best: (0..count).map(|index| (index, u64::MAX)).collect() }
    }

    /// Nothing is lacking, as far as anybody can tell.
    fn is_empty(&self) -> bool {
        self.best.is_empty()
    }

    /// Each of them has been sent before.
    fn are_all_sent(&self) -> bool {
        self.best.values().all(|&best| best < u64::MAX)
    }

    /// The order in which to send: the least certain first, so that each connection brings
    /// something new, however soon it ends.
    fn order(&self) -> Vec<u64> {
        let mut order: Vec<_> = self.best.iter().map(|(&index, &best)| (Reverse(best), index)).collect();
        order.sort_unstable();
        order.into_iter().map(|(_, index)| index).collect()
    }

    /// Those that count as delivered, of `count`: a receiver that forgets lacks them all the same.
    fn delivered(&self, count: u64) -> impl Iterator<Item = u64> {
        (0..count).filter(|index| !self.best.contains_key(index))
    }

    /// Takes account of the chunks that a connection carried, each with its end; true if
    /// the receiver may have something new.
    fn note_sent(&mut self, sent: &[(u64, u64)], asked_again: bool) -> bool {
        let before = self.best.len();
        let mut is_new = false;
        let position = sent.last().map_or(0, |&(_, end)| end);
        for (number, &(index, end)) in sent.iter().enumerate() {
            // A receiver that asks for another connection has read something of this one.
            if end + IN_FLIGHT_MAX <= position || (number == 0 && asked_again) {
                self.best.remove(&index);
            } else if let Some(best) = self.best.get_mut(&index) {
                is_new |= *best == u64::MAX;
                *best = end.min(*best);
            }
        }
        is_new || self.best.len() < before
    }
}

/// The account of one connection.
#[derive(Debug, Default)]
struct Sent {
    /// Chunks that were lacking, each with its end.
    chunks: Vec<(u64, u64)>,
    /// Everything that was lacking has been sent.
    all: bool,
    /// Something beyond that was sent: to somebody who has the file, it is in vain.
    surplus: bool,
}

/// Sends over one connection: what is lacking; all others too, if the receiver may have `forgotten`
/// them; and, unless it is a FastDrop, empty chunks up to the number that the header announces.
fn send_over(
    client: &ClientContext,
    source: &SourceFile,
    payload: &Payload,
    reader: &FrameReader,
    lacking: &Lacking,
    (is_fastdrop, has_forgotten): (bool, bool),
    throttle: Option<&Throttle>,
) -> (Sent, Result<(), Error>) {
    let mut sent = Sent::default();
    let connection = reader.connection();
    let count = chunks(payload);
    let mut run = || {
        let mut position = 0;
        let send = |index| {
            if index + 1 == count {
                source.check()?;
            }
            send_chunk(client, connection, payload, index, throttle)
        };
        for index in lacking.order() {
            if reader.comes_within(Duration::ZERO) {
                return Ok(());
            }
            position += send(index)?;
            sent.chunks.push((index, position));
        }
        if is_fastdrop {
            sent.all = true;
            return Ok(());
        }
        let forgotten = lacking.delivered(count).take_while(|_| has_forgotten);
        for index in forgotten {
            if reader.comes_within(Duration::ZERO) {
                return Ok(());
            }
            send(index)?;
        }
        sent.all = true;
        fill_up(client, reader, count, payload.header.full_chunk(), &mut sent.surplus)
    };
    let outcome = run();
    (sent, outcome)
}

/// Sends empty chunks from `count` on, up to the number of chunks that was announced: a receiver
/// may wait for so many. Sets `surplus` as soon as some have been sent.
fn fill_up(
    client: &ClientContext,
    reader: &FrameReader,
    count: u64,
    announced: u64,
    surplus: &mut bool,
) -> Result<(), Error> {
    let mut next = count;
    while next < announced && !reader.comes_within(Duration::ZERO) {
        if client.stop.is_stopped() {
            return Err(Error::Interrupted);
        }
        let end = announced.min(next + FILLING);
        // Numbers begin at 1.
        let empty =
            |index: u64| u32::try_from(index + 1).map(|number| ChunkPrefix { number, size: 0 }.encode());
        let bytes: Result<Vec<_>, _> = (next..end).map(empty).collect();
        let bytes =
            bytes.map_err(|_| Error::failed(Code::OverLimit, "more chunks than there are numbers"))?;
        send_all(reader.connection(), &bytes.concat())?;
        *surplus = true;
        next = end;
    }
    Ok(())
}

pub(super) fn send(
    client: &ClientContext,
    source: &SourceFile,
    payload: &Payload,
    throttle: Option<&Throttle>,
) -> Result<Delivery, Error> {
    // By it the receiver knows the connections of this file.
    let request = UpgradeRequest::new(new_key()?, Version::V1_0);
    let count = chunks(payload);
    let mut lacking = Lacking::all(count);
    // A FastDrop ends a connection in good order only when it has the file.
    let mut is_fastdrop = false;
    // Whoever asks for another connection may have kept what it has, and wants the rest.
    let mut has_asked = false;
    let mut in_vain = 0;
    let most = CONNECTIONS_MAX + 2 * payload.file.size.div_ceil(RECONNECT_EVERY);
    for _ in 0..most {
        if client.stop.is_stopped() {
            return Err(Error::Interrupted);
        }
        let were_all_sent = lacking.are_all_sent();
        let was_nothing_lacking = lacking.is_empty();
        let opened = client.connect_as(&request).and_then(|upgraded| {
            is_fastdrop = upgraded.is_fastdrop;
            let connection = Arc::clone(&upgraded.connection);
            exchange_headers(client, payload, upgraded).map_err(|error| match error {
                Error::Network(_) if is_fastdrop && connection.was_reset() => refused_by_reset(),
                error => error,
            })
        });
        let (mut reader, confirms) = match opened {
            Ok(opened) => opened,
            // A receiver that is gone may have what it wanted.
            Err(Error::Network(_)) if count > 0 && were_all_sent && !is_fastdrop => {
                return Ok(Delivery::Unconfirmed);
            }
            Err(error) => {
                in_vain += 1;
                if in_vain > client.options.retries || !client.is_worth_a_retry(&error) {
                    return Err(error);
                }
                client.pause(in_vain)?;
                continue;
            }
        };
        let connection = Arc::clone(reader.connection());
        let kind = (is_fastdrop, !is_fastdrop && !has_asked);
        let (sent, outcome) = send_over(client, source, payload, &reader, &lacking, kind, throttle);
        match outcome {
            // How the receiver ended it follows.
            Ok(()) | Err(Error::Network(_)) => {}
            Err(error) => {
                connection.reset_now();
                return Err(error);
            }
        }
        if sent.all {
            client.observer.set_phase(Phase::Finishing);
            connection.finish_writing();
        }
        let farewell = farewell(client, &mut reader, confirms)?;
        let asks_again = farewell == Farewell::Reconnect;
        has_asked |= asks_again;
        let is_broken = farewell == Farewell::Broken;
        let has_gained = lacking.note_sent(&sent.chunks, asks_again);
        match farewell {
            Farewell::Confirmed => return Ok(Delivery::Confirmed),
            Farewell::Failed(code, reason) => return Err(refused(code, reason)),
            // It would have said so. Somebody between has ended the connection.
            Farewell::Closed if confirms => {}
            Farewell::Closed if is_fastdrop => return Ok(Delivery::Confirmed),
            // Everything has been sent, and taken without a word; or there was
            // nothing new in it: who closes has it all.
            Farewell::Closed if sent.all || were_all_sent => return Ok(Delivery::Unconfirmed),
            // One that closes with unread bytes cannot end in good order.
            Farewell::Broken if (were_all_sent || sent.surplus) && !is_fastdrop => {
                return Ok(Delivery::Unconfirmed);
            }
            // It had everything before: it forgets what it has when it asks for a connection.
            Farewell::Reconnect if was_nothing_lacking && count > 0 && !is_fastdrop => {
                return Ok(Delivery::Unconfirmed);
            }
            Farewell::Closed | Farewell::Broken | Farewell::Reconnect => {}
        }
        // Bytes that were sent are progress only where the receiver keeps them: a FastDrop does,
        // and one that asks for the rest says so.
        if asks_again || (has_gained && !sent.all && is_fastdrop) {
            in_vain = 0;
            continue;
        }
        in_vain += 1;
        if in_vain > client.options.retries {
            return Err(if is_broken && is_fastdrop {
                refused_by_reset()
            } else {
                Error::Network(format!("the receiver ends the connection again and again; {}", UNABLE))
            });
        }
        if is_fastdrop && sent.all {
            // It lacks something that was taken for delivered: it has been started anew, say.
            lacking = Lacking::all(count);
        }
        client.pause(in_vain)?;
    }
    Err(Error::Network("the receiver reconnects again and again".into()))
}

/// The end of a connection, as the receiver made it.
#[derive(Debug, PartialEq, Eq)]
enum Farewell {
    /// It asks for another connection.
    Reconnect,
    /// It says that it has the file.
    Confirmed,
    /// It says that it does not have the file, and why.
    Failed(Code, String),
    /// In good order.
    Closed,
    /// By a reset, or by silence.
    Broken,
}

/// Waits for the end of a connection.
fn farewell(client: &ClientContext, reader: &mut FrameReader, confirms: bool) -> Result<Farewell, Error> {
    let until = Instant::now() + END_TIMEOUT;
    let mut said = Vec::new();
    while Instant::now() < until && said.len() < 4096 {
        if client.stop.is_stopped() {
            return Err(Error::Interrupted);
        }
        if !reader.comes_within(Duration::from_millis(500)) {
            continue;
        }
        let mut buffer = [0; 256];
        match reader.read_some(&mut buffer) {
            Ok(count) if count > 0 => said.extend_from_slice(&buffer[..count]),
            _ if said.windows(RECONNECT.len()).any(|window| window == RECONNECT) => {
                return Ok(Farewell::Reconnect);
            }
            _ if confirms && said == SUCCESS.as_bytes() => return Ok(Farewell::Confirmed),
            _ if confirms && said.starts_with(FAILURE.as_bytes()) => {
                let text = String::from_utf8_lossy(&said);
                let (code, reason) = parse_failure(&text).unwrap_or((Code::BadRequest, &text));
                return Ok(Farewell::Failed(code, reason.to_owned()));
            }
            // What looks like an end in good order is none if a write has
            // been told of a reset before.
            Ok(_) if reader.connection().was_reset() => return Ok(Farewell::Broken),
            Ok(_) => return Ok(Farewell::Closed),
            Err(Ended::Stopped) => return Err(Error::Interrupted),
            Err(_) => return Ok(Farewell::Broken),
        }
    }
    Err(Error::Network("the receiver did not close the connection".into()))
}

//! fastdp 1.0.0 and 1.1.0: sends one file; of 1.1.0, over one connection, and with an answer.

use crate::context::client::ClientContext;
use crate::context::client::connect::new_key;
use crate::context::client::summary::Delivery;
use crate::error::Error;
use crate::legacy::fastdp1::client_v1_0;
use crate::legacy::fastdp1::sending::{
    END_TIMEOUT, Payload, UNABLE, chunks, exchange_headers, make_payload, refused, send_chunk,
};
use crate::legacy::source_file::SourceFile;
use crate::net::frames::FrameReader;
use crate::net::throttle::Throttle;
use crate::observe::Phase;
use fastdrop_proto::fastdp::v1::{SUCCESS, parse_failure};
use fastdrop_proto::fastdp::{UpgradeRequest, Version};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) fn send(
    client: &ClientContext,
    file: &SourceFile,
    version: Version,
    throttle: Option<&Throttle>,
) -> Result<Delivery, Error> {
    let payload = make_payload(client, file, version)?;
    if version == Version::V1_1 {
        client.with_attempts(|| send_once(client, file, &payload, throttle))?;
        Ok(Delivery::Confirmed)
    } else {
        client_v1_0::send(client, file, &payload, throttle)
    }
}

fn send_once(
    client: &ClientContext,
    source: &SourceFile,
    payload: &Payload,
    throttle: Option<&Throttle>,
) -> Result<(), Error> {
    let request = UpgradeRequest::new(new_key()?, Version::V1_1);
    let (mut reader, _) = exchange_headers(client, payload, client.connect_as(&request)?)?;
    let connection = Arc::clone(reader.connection());
    let count = chunks(payload);
    let sent = (0..count).try_for_each(|index| {
        if index + 1 == count {
            source.check()?;
        }
        if reader.comes_within(Duration::ZERO) {
            return Err(Error::Network("the receiver has answered before everything was sent".into()));
        }
        send_chunk(client, &connection, payload, index, throttle).map(|_| ())
    });
    match sent {
        Ok(()) => client.observer.set_phase(Phase::Finishing),
        // The receiver may have said why it does not listen any more.
        Err(Error::Network(_)) => {}
        Err(error) => {
            connection.close();
            return Err(error);
        }
    }
    connection.finish_writing();
    let (text, sent) = match (answer(client, &mut reader), sent) {
        (Ok(text), sent) if !text.is_empty() => (text, sent),
        // All that it says is the end of the connection, in good order or not.
        (Ok(_), _) => return Err(silent()),
        (Err(Error::Network(_)), _) if connection.was_reset() => return Err(silent()),
        (Err(error), _) => return Err(error),
    };
    match parse_failure(&text) {
        Some((code, reason)) => Err(refused(code, reason.to_owned())),
        None if text == SUCCESS => Ok(()),
        None => match sent {
            Err(error) => Err(error),
            Ok(()) => Err(Error::Foreign(format!("the receiver says {:?}", crate::shown(text.as_bytes())))),
        },
    }
}

/// A receiver that has ended the connection without its text.
fn silent() -> Error {
    Error::Network(format!("the receiver ended the connection without a word; {UNABLE}"))
}

/// Reads what the receiver says until it closes.
fn answer(client: &ClientContext, reader: &mut FrameReader) -> Result<String, Error> {
    let until = Instant::now() + END_TIMEOUT;
    let mut text = Vec::new();
    let mut buffer = [0; 1024];
    while Instant::now() < until && text.len() < 4096 {
        if client.stop.is_stopped() {
            return Err(Error::Interrupted);
        }
        if !reader.comes_within(Duration::from_millis(500)) {
            continue;
        }
        match reader.read_some(&mut buffer) {
            Ok(0) => break,
            Ok(count) => text.extend_from_slice(&buffer[..count]),
            Err(_) if !text.is_empty() => break,
            Err(ended) => return Err(ended.into()),
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

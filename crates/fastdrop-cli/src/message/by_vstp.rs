//! Messages as frames of VSTP.

use super::Send;
use super::printer::{Origin, Printer};
use super::send::{BATCH, Sent};
use fastdrop::{Stop, shown};
use fastdrop_messages::vstp::tcp::tls::Trust;
use fastdrop_messages::vstp::tcp::{Ending, TcpConfig, VstpTcpClient, VstpTcpConnection};
use fastdrop_messages::vstp::types::{Frame, FrameType, VstpError};
use fastdrop_messages::vstp::udp::{VstpUdpClient, VstpUdpServer};
use serde_json::{Map, Value};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// How long a listener may take to read what it was sent.
const LISTENER_ENDS: Duration = Duration::from_secs(30);

/// Prints what one client sends by TCP.
pub(super) async fn serve(
    mut client: VstpTcpConnection,
    mut ending: Ending,
    printer: Printer,
    size_max: usize,
) {
    let session = async {
        loop {
            let frame = tokio::select! {
                frame = client.recv() => frame?,
                () = ending.wait() => None,
            };
            let Some(frame) = frame else { return client.close().await };
            let id = client.session_id().to_string();
            if let Some(echo) = take(printer, frame, "tcp", &id, client.peer_addr(), size_max) {
                client.send(echo).await?;
            }
        }
    };
    if let Err(error) = session.await {
        tracing::info!("{}: {}", client.peer_addr(), shown(error.to_string().as_bytes()));
    }
}

/// Prints what comes by UDP.
pub(super) async fn serve_datagrams(
    udp: VstpUdpServer,
    stop: &Stop,
    printer: Printer,
    size_max: usize,
) -> Result<(), VstpError> {
    let udp = Arc::new(udp);
    let mut echoes = tokio::task::JoinSet::new();
    loop {
        while echoes.try_join_next().is_some() {}
        let (frame, from) = tokio::select! {
            received = udp.recv_bytes() => received?,
            () = stop.wait() => return Ok(()),
        };
        udp.answer(&frame, from).await;
        if let Some(echo) = take(printer, frame.into(), "udp", &from.to_string(), from, size_max) {
            let udp = Arc::clone(&udp);
            if echoes.len() >= ECHOES_MAX {
                echoes.join_next().await;
            }
            echoes.spawn(async move {
                if let Err(error) = udp.send(echo, from).await {
                    tracing::info!("{from}: {}", shown(error.to_string().as_bytes()));
                }
            });
        }
    }
}

/// Echoes that may be under way.
const ECHOES_MAX: usize = 256;

/// Prints a frame if it is a message, and gives back what is to be sent back.
fn take(
    printer: Printer,
    frame: Frame,
    transport: &str,
    session: &str,
    from: SocketAddr,
    size_max: usize,
) -> Option<Frame> {
    if frame.typ != FrameType::Data {
        return None;
    }
    let frame = match frame.decompressed(size_max) {
        Ok(frame) => frame,
        Err(error) => {
            tracing::info!("{from}: {}", shown(error.to_string().as_bytes()));
            return None;
        }
    };
    let headers: Map<String, Value> = frame
        .headers
        .iter()
        .map(|header| (text_of(&header.key), Value::String(text_of(&header.value))))
        .collect();
    printer.print(Origin { protocol: "vstp", transport, session, from }, headers, &frame.payload);
    printer.echo.then(|| {
        let mut echo = Frame::new(FrameType::Data).with_payload(frame.payload);
        echo.headers = frame.headers.into_iter().filter(|header| header.key != b"msg-id").collect();
        echo
    })
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap_or_else(|_| bytes.escape_ascii().to_string())
}

impl Send {
    fn frame(&self, message: Vec<u8>) -> Result<Frame, VstpError> {
        let mut frame = Frame::new(FrameType::Data).with_payload(message);
        for (key, value) in &self.header {
            frame = frame.with_header(key, value);
        }
        if self.zstd { frame.compressed() } else { Ok(frame) }
    }
}

pub(super) async fn by_tcp(
    send: &Send,
    address: &str,
    mut messages: mpsc::Receiver<std::io::Result<Vec<u8>>>,
    sent: &mut Sent,
) -> Result<(), VstpError> {
    let trust = match (send.pin, &send.ca) {
        (Some(pin), _) => Some(Trust::Pinned(pin)),
        (None, Some(ca)) => Some(Trust::from_pem(ca)?),
        (None, None) => None,
    };
    let mut client = match &trust {
        Some(trust) => VstpTcpClient::connect_tls(address, trust, TcpConfig::default()).await?,
        None => VstpTcpClient::connect(address).await?,
    };
    let mut batch = Vec::new();
    while messages.recv_many(&mut batch, BATCH).await > 0 {
        let mut frames = Vec::with_capacity(batch.len());
        for message in batch.drain(..) {
            let message = message?;
            sent.bytes += message.len() as u64;
            frames.push(send.frame(message)?);
        }
        let count = frames.len() as u64;
        if send.ack {
            client.send_all_with_ack(frames).await?;
            sent.acknowledged += count;
        } else {
            for frame in frames {
                client.feed(frame).await?;
            }
            client.flush().await?;
        }
        sent.messages += count;
    }
    client.close().await?;
    // The listener closes when it has read everything; an ERR on the way says that it did not.
    let read_on = async {
        while let Some(frame) = client.recv().await? {
            if frame.typ == FrameType::Err {
                return Err(VstpError::ServerError(
                    frame.get_header("reason").unwrap_or("no reason given").into(),
                ));
            }
        }
        Ok(())
    };
    tokio::time::timeout(LISTENER_ENDS, read_on).await.unwrap_or(Err(VstpError::Timeout))
}

pub(super) async fn by_udp(
    send: &Send,
    address: &str,
    mut messages: mpsc::Receiver<std::io::Result<Vec<u8>>>,
    sent: &mut Sent,
) -> Result<(), VstpError> {
    let to = tokio::net::lookup_host(address).await?.next().ok_or(VstpError::InvalidAddress)?;
    let client = VstpUdpClient::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).await?;
    let client = Arc::new(client);
    let mut under_way = JoinSet::new();
    let counted = |outcome: Result<Result<(), VstpError>, tokio::task::JoinError>, sent: &mut Sent| {
        outcome.unwrap_or(Err(VstpError::ConnectionClosed))?;
        sent.messages += 1;
        sent.acknowledged += u64::from(send.ack);
        Ok::<(), VstpError>(())
    };
    while let Some(message) = messages.recv().await {
        let message = message?;
        sent.bytes += message.len() as u64;
        let frame = send.frame(message)?;
        let (client, ack) = (Arc::clone(&client), send.ack);
        under_way.spawn(async move {
            let frame = frame.try_into()?;
            if ack { Ok(client.deliver(frame, to).await?) } else { client.send_bytes(frame, to).await }
        });
        if under_way.len() >= BATCH
            && let Some(outcome) = under_way.join_next().await
        {
            counted(outcome, sent)?;
        }
    }
    while let Some(outcome) = under_way.join_next().await {
        counted(outcome, sent)?;
    }
    Ok(())
}

//! Messages as frames of VSTP.

use super::failure::Failure;
use super::printer::{NotWritten, Origin, Printer};
use super::sent::{BATCH, Sent};
use crate::args::message::Send;
use bytes::Bytes;
use fastdrop::{Stop, shown};
use fastdrop_messages::ShutdownSignal;
use fastdrop_messages::vstp::tcp::{TcpConfig, VstpTcpClient, VstpTcpConnection};
use fastdrop_messages::vstp::types::{ErrorCode, Frame, FrameType, Header, VstpError};
use fastdrop_messages::vstp::udp::{self, UdpConfig, VstpUdpClient, VstpUdpServer};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// The time that a listener may take to read what it was sent.
const LISTENER_ENDS: Duration = Duration::from_secs(30);

/// The longest time for telling a client that the listener ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// Prints what one client sends by TCP.
pub(super) async fn serve(
    mut client: VstpTcpConnection,
    mut ending: ShutdownSignal,
    printer: Printer,
    size_max: usize,
) {
    let session = async {
        while handle_next(&mut client, &printer, size_max).await? {}
        Ok::<(), Failure>(())
    };
    let ended = tokio::select! {
        // A message that waits to be written is refused before the end is told.
        biased;
        ended = session => ended,
        () = ending.wait() => Ok(()),
    };
    let farewell = async {
        match ended {
            Err(Failure::NotWritten(error)) => client.send(refusal(&error)).await?,
            Err(error) => return Err(error),
            Ok(()) => {}
        }
        Ok(client.close().await?)
    };
    if let Ok(Err(error)) = tokio::time::timeout(FAREWELL, farewell).await {
        tracing::info!("{}: {}", client.peer_addr(), shown(error.to_string().as_bytes()));
    }
}

/// Prints the next message and acknowledges it, in this order; false at the end.
async fn handle_next(
    client: &mut VstpTcpConnection,
    printer: &Printer,
    size_max: usize,
) -> Result<bool, Failure> {
    let (id, from) = (client.session_id().to_string(), client.peer_addr());
    let Some(delivery) = client.recv_delivery().await? else { return Ok(false) };
    let message = match Message::of(delivery.to_frame(), size_max) {
        Ok(message) => message,
        Err(error) => {
            delivery.refuse(ErrorCode::TooLarge, &error.to_string()).await?;
            return Err(error.into());
        }
    };
    if let Some(message) = &message {
        message
            .print(
                printer,
                Origin { protocol: "vstp", transport: "tcp", session: &id, from, generation: None },
            )
            .await?;
    }
    delivery.acknowledge().await?;
    if let Some(message) = message.filter(|_| printer.echo) {
        client.send(message.echo()).await?;
    }
    Ok(true)
}

/// Prints what comes by UDP.
pub(super) async fn serve_datagrams(
    udp: VstpUdpServer,
    stop: &Stop,
    printer: Printer,
    size_max: usize,
) -> Result<(), Failure> {
    let udp = Arc::new(udp);
    let mut echoes = JoinSet::new();
    loop {
        while echoes.try_join_next().is_some() {}
        let delivery = tokio::select! {
            delivery = udp.recv_delivery() => delivery?,
            () = stop.wait() => return Ok(()),
        };
        let from = delivery.from();
        udp.answer(delivery.frame(), from);
        let message = match Message::of(delivery.to_frame(), size_max) {
            Ok(message) => message,
            Err(error) => {
                tracing::info!("{from}: {}", shown(error.to_string().as_bytes()));
                delivery.refuse(ErrorCode::TooLarge, &error.to_string());
                continue;
            }
        };
        if let Some(message) = &message {
            let session = from.to_string();
            let origin =
                Origin { protocol: "vstp", transport: "udp", session: &session, from, generation: None };
            if let Err(error) = message.print(&printer, origin).await {
                // The listener ends.
                delivery.refuse(ErrorCode::Unhandled, &error.to_string());
                return Ok(());
            }
        }
        delivery.acknowledge();
        if let Some(message) = message.filter(|_| printer.echo) {
            let (udp, echo) = (Arc::clone(&udp), message.echo());
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

/// Bytes of a frame that a sender reads at most, one at a time, and drops.
const ECHO_MAX: usize = 256 << 20;

/// Echoes that may be under way.
const ECHOES_MAX: usize = 256;

fn refusal(error: &NotWritten) -> Frame {
    let code = ErrorCode::Unhandled.as_str();
    Frame::new(FrameType::Err).with_header("code", code).with_header("reason", &error.to_string())
}

/// A message that came in a frame.
struct Message {
    headers: Vec<Header>,
    payload: Bytes,
}

impl Message {
    /// The message in a frame, decompressed; None if there is none in it.
    fn of(frame: Frame, size_max: usize) -> Result<Option<Self>, VstpError> {
        if frame.typ != FrameType::Data {
            return Ok(None);
        }
        let frame = frame.decompressed(size_max)?;
        Ok(Some(Self { headers: frame.headers, payload: frame.payload.into() }))
    }

    async fn print(&self, printer: &Printer, origin: Origin<'_>) -> Result<(), NotWritten> {
        let text = |header: &Header| (text_of(&header.key), Value::String(text_of(&header.value)));
        let headers: Map<String, Value> = self.headers.iter().map(text).collect();
        printer.print(origin, headers, &self.payload).await
    }

    /// The frame that sends it back.
    fn echo(self) -> Frame {
        let mut echo = Frame::new(FrameType::Data).with_payload(self.payload.into());
        echo.headers = self.headers.into_iter().filter(|header| header.key != b"msg-id").collect();
        echo
    }
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
    messages: mpsc::Receiver<std::io::Result<Vec<u8>>>,
    sent: &mut Sent,
) -> Result<(), Failure> {
    // A listener may echo whatever it takes.
    let config = TcpConfig { frame_max: ECHO_MAX, token: send.token()?, ..TcpConfig::default() };
    let connected = VstpTcpClient::connect_to(address, send.tls()?, config).await;
    let mut client = connected.map_err(|not| match not.error {
        VstpError::ServerError(reason) if not.unauthorized => Failure::Unauthorized(reason),
        error => error.into(),
    })?;
    let result = send_all(send, &mut client, messages, sent).await;
    result.map_err(|error| match error {
        VstpError::ServerError(reason) if client.is_unauthorized() => Failure::Unauthorized(reason),
        error => error.into(),
    })
}

/// Sends messages, and waits until the listener has read them.
async fn send_all(
    send: &Send,
    client: &mut VstpTcpClient,
    mut messages: mpsc::Receiver<std::io::Result<Vec<u8>>>,
    sent: &mut Sent,
) -> Result<(), VstpError> {
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

/// The time that a machine has to say that nobody listens there, where nothing is acknowledged.
const REFUSAL: Duration = Duration::from_millis(50);

pub(super) async fn by_udp(
    send: &Send,
    address: &str,
    mut messages: mpsc::Receiver<std::io::Result<Vec<u8>>>,
    sent: &mut Sent,
) -> Result<(), VstpError> {
    let (client, to) = VstpUdpClient::connect(address, UdpConfig::default()).await?;
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
            let sent = if ack { client.deliver(frame, to).await } else { client.dispatch(frame, to).await };
            sent.map_err(|failure| match failure {
                udp::Failure::TooLarge => {
                    let words = "it takes no message of this size by UDP, or is not there; \
                                 without --udp the message goes by TCP";
                    VstpError::ServerError(words.into())
                }
                other => other.into(),
            })
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
    if !send.ack {
        client.check(to, REFUSAL).await?;
    }
    Ok(())
}

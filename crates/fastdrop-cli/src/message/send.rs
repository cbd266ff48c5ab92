//! Sends messages.

use super::Send;
use crate::output::Output;
use crate::run::Refused;
use crate::units::bytes;
use fastdrop::{Stop, Target};
use fastdrop_messages::vstp::tcp::tls::Trust;
use fastdrop_messages::vstp::tcp::{TcpConfig, VstpTcpClient};
use fastdrop_messages::vstp::types::{Frame, FrameType, VstpError};
use fastdrop_messages::vstp::udp::VstpUdpClient;
use serde_json::json;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Lines that are read ahead, and messages that wait for their acknowledgements together.
const BATCH: usize = 256;
/// How long a listener may take to read what it was sent.
const LISTENER_ENDS: Duration = Duration::from_secs(30);

/// What was sent.
#[derive(Default)]
struct Sent {
    messages: u64,
    bytes: u64,
    acknowledged: u64,
}

pub(super) async fn send(send: Send, output: Output, stop: &Stop) -> Result<Result<(), VstpError>, Refused> {
    let mut words = send.words.clone();
    let target = words.pop().unwrap_or_default();
    let target = Target::parse(&target, 6969).map_err(|error| Refused::Usage(error.to_string()))?;
    if !target.path.is_empty() {
        return Err(Refused::Usage("messages go to a host, not to a path".into()));
    }
    if !words.is_empty() && send.file.is_some() {
        return Err(Refused::Usage("messages come from the arguments or from --file, not from both".into()));
    }
    let start = Instant::now();
    let messages =
        messages(words.into_iter().map(OsStringExt::into_vec).collect(), send.file.clone(), send.whole);
    let mut sent = Sent::default();
    let work = async {
        if send.udp {
            by_udp(&send, &target.authority(), messages, &mut sent).await
        } else {
            by_tcp(&send, &target.authority(), messages, &mut sent).await
        }
    };
    let result = tokio::select! {
        result = work => result,
        () = stop.wait() => Ok(()),
    };
    let Sent { messages, bytes: count, acknowledged } = sent;
    let seconds = start.elapsed().as_secs_f64();
    output.event(
        "summary",
        json!({ "messages": messages, "bytes": count, "acknowledged": acknowledged, "seconds": seconds }),
    );
    let acknowledged = if send.ack { format!(", {acknowledged} acknowledged") } else { String::new() };
    output.say(&format!("sent {messages} messages, {}{acknowledged}", bytes(count)));
    Ok(result)
}

/// Messages as they come: from the arguments, or line by line from a thread that may wait for its input for ever.
fn messages(
    words: Vec<Vec<u8>>,
    file: Option<PathBuf>,
    whole: bool,
) -> mpsc::Receiver<std::io::Result<Vec<u8>>> {
    let (give, take) = mpsc::channel(BATCH);
    std::thread::spawn(move || {
        let read = || -> std::io::Result<()> {
            if file.is_none() && !words.is_empty() {
                // A receiver that is gone wants no more.
                words.into_iter().all(|word| give.blocking_send(Ok(word)).is_ok());
                return Ok(());
            }
            let mut input: Box<dyn Read> = match file.filter(|file| file.as_os_str() != "-") {
                Some(file) => Box::new(std::fs::File::open(file)?),
                None => Box::new(std::io::stdin()),
            };
            if whole {
                let mut message = Vec::new();
                input.read_to_end(&mut message)?;
                let _ = give.blocking_send(Ok(message));
                return Ok(());
            }
            for line in BufReader::new(input).split(b'\n') {
                let mut line = line?;
                line.pop_if(|last| *last == b'\r');
                if give.blocking_send(Ok(line)).is_err() {
                    break;
                }
            }
            Ok(())
        };
        if let Err(error) = read() {
            let _ = give.blocking_send(Err(error));
        }
    });
    take
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

async fn by_tcp(
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

async fn by_udp(
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

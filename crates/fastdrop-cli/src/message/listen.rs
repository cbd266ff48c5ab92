//! Prints the messages that come.

use super::Listen;
use crate::output::Output;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fastdrop::{Stop, shown};
use fastdrop_messages::vstp::tcp::tls::Identity;
use fastdrop_messages::vstp::tcp::{Ending, TcpConfig, VstpTcpConnection, VstpTcpServer};
use fastdrop_messages::vstp::types::{Frame, FrameType, VstpError};
use fastdrop_messages::vstp::udp::{ReassemblyLimits, VstpUdpServer};
use serde_json::{Map, Value, json};
use std::net::SocketAddr;
use std::sync::Arc;

/// How a frame is printed, and whether it goes back.
#[derive(Debug, Clone, Copy)]
struct Printer {
    output: Output,
    echo: bool,
    size_max: usize,
}

pub(super) async fn listen(listen: Listen, output: Output, stop: &Stop) -> Result<(), VstpError> {
    // Datagrams are not encrypted: where that is asked for, there are none.
    let encrypts = listen.tls || listen.cert.is_some();
    let takes_tcp = listen.tcp || !listen.udp;
    let takes_udp = listen.udp || !(listen.tcp || encrypts);
    let mut address = SocketAddr::new(listen.bind, listen.port);
    let size_max = listen.max_size.map(|size| usize::try_from(size).unwrap_or(usize::MAX));
    let printer = Printer { output, echo: listen.echo, size_max: size_max.unwrap_or(MESSAGE_MAX) };
    let tcp = if takes_tcp { Some(bind_tcp(&listen, address, size_max, output).await?) } else { None };
    if let Some(tcp) = &tcp {
        // If a port was picked, it is one for both.
        address = tcp.local_addr()?;
        say_listening(output, "tcp", address);
    }
    let udp = if takes_udp { Some(bind_udp(address, size_max).await?) } else { None };
    if let Some(udp) = &udp {
        say_listening(output, "udp", udp.local_addr()?);
    }
    let tcp = async {
        match tcp {
            Some(tcp) => tcp.serve(stop.wait(), move |client, ending| serve(client, ending, printer)).await,
            None => {
                let _: () = stop.wait().await;
                Ok(())
            }
        }
    };
    let udp = async {
        match udp {
            Some(udp) => serve_datagrams(udp, stop, printer).await,
            None => {
                let _: () = stop.wait().await;
                Ok(())
            }
        }
    };
    tokio::try_join!(tcp, udp).map(|_| ())
}

/// What a compressed message may become, if nothing else is said.
const MESSAGE_MAX: usize = 256 << 20;

async fn bind_tcp(
    listen: &Listen,
    address: SocketAddr,
    size_max: Option<usize>,
    output: Output,
) -> Result<VstpTcpServer, VstpError> {
    let mut config = TcpConfig::default();
    config.frame_max = size_max.unwrap_or(config.frame_max);
    let identity = match (&listen.cert, &listen.key) {
        (Some(cert), Some(key)) => Identity::from_pem(cert, key)?,
        _ if listen.tls => Identity::generate(&["localhost"])?,
        _ => return VstpTcpServer::bind_with_config(address, config).await,
    };
    let fingerprint = identity.fingerprint().to_string();
    output.event("certificate", json!({ "fingerprint": fingerprint }));
    output.say(&format!("certificate {fingerprint}"));
    VstpTcpServer::bind_tls(address, &identity, config).await
}

async fn bind_udp(address: SocketAddr, size_max: Option<usize>) -> Result<VstpUdpServer, VstpError> {
    let mut limits = ReassemblyLimits::default();
    if let Some(size_max) = size_max {
        limits.message_bytes_max = size_max;
        // A message larger than the usual bounds is wanted: room for two.
        limits.peer_bytes_max = limits.peer_bytes_max.max(size_max.saturating_mul(2));
        limits.bytes_max = limits.bytes_max.max(limits.peer_bytes_max);
    }
    VstpUdpServer::bind_with_limits(&address.to_string(), limits).await
}

fn say_listening(output: Output, transport: &str, address: SocketAddr) {
    let (ip, port) = (address.ip().to_string(), address.port());
    output.event(
        "listening",
        json!({ "protocol": "vstp", "transport": transport, "address": ip, "port": port }),
    );
    output.say(&format!("listening on {address} for vstp by {transport}"));
}

async fn serve(mut client: VstpTcpConnection, mut ending: Ending, printer: Printer) {
    let session = async {
        loop {
            let frame = tokio::select! {
                frame = client.recv() => frame?,
                () = ending.wait() => None,
            };
            let Some(frame) = frame else { return client.close().await };
            let id = client.session_id().to_string();
            if let Some(echo) = printer.take(frame, "tcp", &id, client.peer_addr()) {
                client.send(echo).await?;
            }
        }
    };
    if let Err(error) = session.await {
        tracing::info!("{}: {}", client.peer_addr(), shown(error.to_string().as_bytes()));
    }
}

async fn serve_datagrams(udp: VstpUdpServer, stop: &Stop, printer: Printer) -> Result<(), VstpError> {
    let udp = Arc::new(udp);
    let mut echoes = tokio::task::JoinSet::new();
    loop {
        while echoes.try_join_next().is_some() {}
        let (frame, from) = tokio::select! {
            received = udp.recv_bytes() => received?,
            () = stop.wait() => return Ok(()),
        };
        udp.answer(&frame, from).await;
        if let Some(echo) = printer.take(frame.into(), "udp", &from.to_string(), from) {
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

impl Printer {
    /// Prints a frame if it is a message, and gives back what is to be sent back.
    fn take(&self, frame: Frame, transport: &str, session: &str, from: SocketAddr) -> Option<Frame> {
        if frame.typ != FrameType::Data {
            return None;
        }
        let frame = match frame.decompressed(self.size_max) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::info!("{from}: {}", shown(error.to_string().as_bytes()));
                return None;
            }
        };
        let text = std::str::from_utf8(&frame.payload);
        self.output.event("message", {
            let headers: Map<String, Value> = frame
                .headers
                .iter()
                .map(|header| (text_of(&header.key), Value::String(text_of(&header.value))))
                .collect();
            let mut fields = json!({
                "protocol": "vstp", "transport": transport, "session": session, "from": from.to_string(), "headers": headers,
            });
            match text {
                Ok(text) => fields["text"] = text.into(),
                Err(_) => fields["base64"] = STANDARD.encode(&frame.payload).into(),
            }
            fields
        });
        self.output.result(&shown(&frame.payload));
        self.echo.then(|| {
            let mut echo = Frame::new(FrameType::Data).with_payload(frame.payload);
            echo.headers = frame.headers.into_iter().filter(|header| header.key != b"msg-id").collect();
            echo
        })
    }
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap_or_else(|_| bytes.escape_ascii().to_string())
}

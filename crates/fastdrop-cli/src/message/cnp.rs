//! Messages of CNP.

use super::failure::Failure;
use super::printer::{Origin, Printer};
use super::sent::{Sent, Stats};
use crate::args::message::{Checksum, Listen, OperationMode, Repeat, Send};
use fastdrop::{Stop, shown};
use fastdrop_messages::TokenSet;
use fastdrop_messages::cnp::{
    ChecksumKind, Client, ClientBuilder, Config, Delivery, Ending, Error, MessageLimits, Mode, Protocol,
    Server, ServerBuilder,
};
use fastdrop_messages::tls::ServerTls;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

/// The settings with which a listener takes sessions.
pub(super) fn server(
    listen: &Listen,
    tcp: bool,
    udp: bool,
    tls: Option<ServerTls>,
    tokens: Option<TokenSet>,
) -> ServerBuilder {
    let mut config = Config::default();
    if let Some(size) = listen.max_size {
        config = config.packet_max(usize::try_from(size).unwrap_or(usize::MAX));
    }
    if let Some(size) = listen.max_message {
        let message_max = usize::try_from(size).unwrap_or(usize::MAX);
        let limits = MessageLimits { message_max, ..MessageLimits::default() };
        config = config.limits(limits);
    }
    if let Some(pause) = listen.packet_pause {
        config = config.unanswered_pause(pause);
    }
    let mut server = Server::builder().tcp(tcp).udp(udp).config(config);
    if let Some(tokens) = tokens {
        server = server.authorize(tokens);
    }
    match tls {
        Some(tls) => server.tls(tls),
        None => server,
    }
}

/// Prints what clients send.
pub(super) async fn serve(server: Server, stop: &Stop, printer: Printer) {
    let waiting = printer.clone();
    let end = async move {
        stop.wait().await;
        // What waits to be written is refused before the sessions are closed.
        waiting.give_up();
    };
    let handler = move |delivery: Delivery| {
        let printer = printer.clone();
        async move {
            let session = delivery.session().clone();
            let id = session.agreed().id.text().into_owned();
            let (from, transport) = (session.peer_addr(), session.transport());
            let generation = Some(session.generation().as_str());
            let origin = Origin { protocol: "cnp", transport, session: &id, from, generation };
            let (message, headers) = (delivery.message().clone(), serde_json::Map::new());
            // What is not written is not acknowledged, and then the listener ends.
            if !printer.echo {
                let _ = printer.print_and(origin, headers, &message, || delivery.acknowledge()).await;
                return;
            }
            let (tell, written) = oneshot::channel();
            let tell = move || drop(tell.send(delivery));
            let queued = printer.print_and(origin, headers, &message, tell).await;
            if queued.is_ok()
                && let Ok(delivery) = written.await
            {
                delivery.acknowledge();
                if let Err(error) = session.submit(message).await {
                    tracing::info!("{from}: {}", shown(error.to_string().as_bytes()));
                }
            }
        }
    };
    server.serve_until(end, handler).await;
}

fn client(send: &Send) -> ClientBuilder {
    let (mut client, mut config) = (Client::builder(), Config::default());
    if send.udp {
        client = client.udp();
    }
    if send.operation_mode == Some(OperationMode::StepByStep) {
        client = client.mode(Mode::StepByStep);
    }
    if let Some(window) = send.window {
        config = config.window(window);
    }
    if send.repeat == Some(Repeat::All) {
        client = client.protocol(Protocol::GoBackN);
    }
    if let Some(size) = send.max_size {
        config = config.packet_max(usize::try_from(size).unwrap_or(usize::MAX));
    }
    if send.packet_checksum == Some(Checksum::Md5) {
        client = client.checksum(ChecksumKind::Md5);
    }
    if let Some(id) = &send.client_id {
        client = client.client_id(id.clone());
    }
    if let Some(pause) = send.packet_pause {
        config = config.unanswered_pause(pause);
    }
    client.config(config)
}

async fn connect(builder: ClientBuilder, send: &Send, address: &str) -> Result<Client, Failure> {
    let connected = match send.tls()? {
        Some(tls) => builder.connect_tls(address, tls).await,
        None => builder.connect(address).await,
    };
    connected.map_err(|error| match error {
        Error::Ended(Ending::Unauthorized(why)) => Failure::Unauthorized(why),
        error => error.into(),
    })
}

/// Takes what the listener says, so that nothing gets stuck, and drops it.
async fn take(client: &Client) -> std::convert::Infallible {
    while client.recv().await.is_ok_and(|message| message.is_some()) {}
    std::future::pending().await
}

/// Sends the first message, and tells whether the connection was ended upon it, unacknowledged.
async fn is_lost_with(client: &Client, message: &[u8]) -> bool {
    tokio::select! {
        result = client.send(message.to_vec()) => matches!(result, Err(Error::Ended(Ending::ConnectionLost))),
        never = take(client) => match never {},
    }
}

/// Sends messages, and waits until all of them have been acknowledged.
pub(super) async fn send(
    send: &Send,
    address: &str,
    mut messages: mpsc::Receiver<std::io::Result<Vec<u8>>>,
    sent: &mut Sent,
) -> Result<(), Failure> {
    let mut builder = client(send);
    if let Some(token) = send.token()? {
        builder = builder.token(token);
    }
    let mut client = connect(builder.clone(), send, address).await?;
    let mut begin = Instant::now();
    // It finds out which type of data the listener takes, and is sent alone.
    let mut first = None;
    if client.agreed().is_first_or_second() {
        first = messages.recv().await.transpose()?;
    }
    if let Some(message) = &first {
        if is_lost_with(&client, message).await {
            tracing::info!("lost with data of the second generation: once more with those of the first");
            client = connect(builder.first_generation(), send, address).await?;
            begin = Instant::now();
            client.submit(message.clone()).await?;
        }
        sent.messages += 1;
        sent.bytes += message.len() as u64;
    }
    let count = async {
        while let Some(message) = messages.recv().await {
            let message = message?;
            let bytes = message.len() as u64;
            client.submit(message).await?;
            sent.messages += 1;
            sent.bytes += bytes;
        }
        client.flush().await?;
        Ok::<_, Failure>(begin.elapsed())
    };
    // What the listener says is not waited for, but it is taken, so that nothing gets stuck.
    let mut take = std::pin::pin!(take(&client));
    let result = tokio::select! {
        result = count => result,
        never = &mut take => match never {},
    };
    let stats = client.stats();
    let time = *result.as_ref().unwrap_or(&begin.elapsed());
    sent.acknowledged = stats.counters.messages_acknowledged;
    sent.generation = Some(client.generation().as_str());
    sent.stats = Some(Stats { rtt: stats.rtt, rtt_min: stats.rtt_min, counters: stats.counters, time });
    result.map(drop)?;
    let closed = tokio::select! {
        closed = client.close() => closed,
        never = &mut take => match never {},
    };
    match closed {
        // Everything is acknowledged: how the listener takes leave is its own affair.
        Err(Error::Ended(Ending::ConnectionLost | Ending::PeerClosed)) => Ok(()),
        closed => Ok(closed?),
    }
}

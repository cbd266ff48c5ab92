//! Listens, and prints the messages that come.

use super::credentials::Source;
use super::failure::Failure;
use super::printer::{NotWritten, Printer};
use super::vstp;
use crate::address::Address;
use crate::args::message::{Listen, Protocol, Spoken};
use crate::begin::Refused;
use crate::output::Output;
use fastdrop::{Stop, shown};
use fastdrop_messages::TokenSet;
use fastdrop_messages::cnp;
use fastdrop_messages::port::{Port, PortConfig, Sorting};
use fastdrop_messages::tls::{Identity, ServerTls};
use fastdrop_messages::vstp::tcp::{TcpConfig, VstpTcpServer};
use fastdrop_messages::vstp::udp::{ReassemblyLimits, VstpUdpServer};
use serde_json::json;
use std::net::SocketAddr;
use std::time::Duration;

/// What listens.
#[derive(Default)]
struct Servers {
    vstp_tcp: Option<VstpTcpServer>,
    vstp_udp: Option<VstpUdpServer>,
    cnp: Option<cnp::Server>,
    /// Looks at what comes, as long as it is kept.
    _sorting: Option<Sorting>,
}

/// What a compressed message may become, if nothing else is said.
const MESSAGE_MAX: usize = 256 << 20;

pub(super) async fn listen(
    listen: Listen,
    output: Output,
    stop: &Stop,
) -> Result<Result<(), Failure>, Refused> {
    if let Some(why) = listen.cannot_decide() {
        return Err(Refused::Usage(why.into()));
    }
    let end = Stop::new();
    let (printer, mut lost) = Printer::start(output, listen.echo, end.clone());
    let mut work = std::pin::pin!(listen_and_print(&listen, printer, &end));
    let ended = tokio::select! {
        biased;
        Some(error) = lost.recv() => {
            // Nothing is acknowledged any more, and senders are told as far as they listen.
            end.stop();
            let _ = tokio::time::timeout(FAREWELL, work).await;
            return Ok(Err(error.into()));
        }
        () = stop.wait() => {
            end.stop();
            work.as_mut().await
        }
        ended = &mut work => ended,
    };
    if let Ok(error) = lost.try_recv() {
        return Ok(Err(error.into()));
    }
    Ok(match ended {
        // The signal came before everything was said that is said at the start.
        Err(Failure::NotWritten(_)) => Ok(()),
        ended => ended,
    })
}

/// The longest time for telling clients that the output is lost.
const FAREWELL: Duration = Duration::from_secs(1);

async fn listen_and_print(listen: &Listen, printer: Printer, stop: &Stop) -> Result<(), Failure> {
    let spoken = listen.protocol;
    // Datagrams are not encrypted, and by them VSTP lets in everybody.
    let needs_tcp = listen.encrypts() || (spoken != Spoken::Cnp && listen.tokens().is_some());
    let tcp = listen.tcp || !listen.udp;
    let udp = listen.udp || !(listen.tcp || needs_tcp);
    let size_max = size_max(listen).unwrap_or(MESSAGE_MAX);
    let servers = bind(listen, spoken, tcp, udp, &printer).await?;
    let vstp_tcp = async {
        if let Some(server) = servers.vstp_tcp {
            let printer = printer.clone();
            let serve = move |client, ending| vstp::serve(client, ending, printer.clone(), size_max);
            server.serve(stop.wait(), serve).await?;
        }
        Ok::<(), Failure>(())
    };
    let vstp_udp = async {
        if let Some(server) = servers.vstp_udp {
            vstp::serve_datagrams(server, stop, printer.clone(), size_max).await?;
        }
        Ok(())
    };
    let cnp = async {
        if let Some(server) = servers.cnp {
            super::cnp::serve(server, stop, printer.clone()).await;
        }
        Ok(())
    };
    tokio::try_join!(vstp_tcp, vstp_udp, cnp).map(|_| ())
}

async fn bind(
    listen: &Listen,
    spoken: Spoken,
    tcp: bool,
    udp: bool,
    printer: &Printer,
) -> Result<Servers, Failure> {
    let default = if spoken == Spoken::Cnp { Protocol::Cnp } else { Protocol::Vstp };
    let mut address = listen.bind.with_port(listen.port.unwrap_or(default.default_port()));
    let mut servers = Servers::default();
    let tls = tls(listen, printer).await?;
    let tokens = listen.tokens().map(|source| source.set()).transpose()?;
    if tokens.is_some() && tls.is_none() && !address.ip().is_loopback() {
        tracing::warn!("tokens can be read on the way where there is no TLS (--tls or --cert)");
    }
    match spoken {
        Spoken::Vstp => {
            if tcp {
                let config = tcp_config(listen, tokens);
                let server = match tls {
                    Some(tls) => VstpTcpServer::bind_tls(address, tls, config).await?,
                    None => VstpTcpServer::bind_with_config(address, config).await?,
                };
                // If a port was picked, it is one for both.
                address = server.local_addr()?;
                servers.vstp_tcp = Some(server);
            }
            if udp {
                let server =
                    VstpUdpServer::bind_with_limits(&address.to_string(), udp_limits(listen)).await?;
                address = server.local_addr()?;
                servers.vstp_udp = Some(server);
            }
        }
        Spoken::Cnp => {
            let server = super::cnp::server(listen, tcp, udp, tls, tokens).bind(address).await?;
            address = server.local_addr();
            servers.cnp = Some(server);
        }
        Spoken::All => {
            let cnp = super::cnp::server(listen, tcp, udp, tls, tokens.clone());
            let (vstp_tcp, vstp_udp) = (tcp_config(listen, tokens), udp_limits(listen).into());
            let config = PortConfig { vstp_tcp, vstp_udp, cnp };
            let port = Port::bind(address, config).await?;
            address = port.address;
            let Port { vstp_tcp, vstp_udp, cnp, sorting, .. } = port;
            servers = Servers { vstp_tcp, vstp_udp, cnp: Some(cnp), _sorting: Some(sorting) };
        }
    }
    let names = [("vstp", spoken != Spoken::Cnp), ("cnp", spoken != Spoken::Vstp)];
    for (protocol, _) in names.into_iter().filter(|(_, speaks)| *speaks) {
        for (transport, _) in [("tcp", tcp), ("udp", udp)].into_iter().filter(|(_, listens)| *listens) {
            say_listening(printer, protocol, transport, address, listen.tokens().as_ref()).await?;
        }
    }
    Ok(servers)
}

fn size_max(listen: &Listen) -> Option<usize> {
    listen.max_size.map(|size| usize::try_from(size).unwrap_or(usize::MAX))
}

fn tcp_config(listen: &Listen, tokens: Option<TokenSet>) -> TcpConfig {
    let mut config = TcpConfig { authorize: tokens.map(Into::into), ..TcpConfig::default() };
    config.frame_max = size_max(listen).unwrap_or(config.frame_max);
    config
}

/// The TLS, if there is to be encryption; the fingerprint of the certificate is printed.
async fn tls(listen: &Listen, printer: &Printer) -> Result<Option<ServerTls>, Failure> {
    let identity = match (&listen.cert, &listen.key) {
        (Some(cert), Some(key)) => Identity::from_pem(cert, key)?,
        _ if listen.tls => Identity::generate(&["localhost"])?,
        _ => return Ok(None),
    };
    let tls = listen.tls(&identity)?;
    let fingerprint = identity.fingerprint().to_string();
    let text = format!("certificate {fingerprint}");
    printer.say("certificate", json!({ "fingerprint": fingerprint }), &text).await?;
    Ok(Some(tls))
}

fn udp_limits(listen: &Listen) -> ReassemblyLimits {
    let mut limits = ReassemblyLimits::default();
    if let Some(size_max) = size_max(listen) {
        limits.message_bytes_max = size_max;
        // A message larger than the usual bounds is wanted: room for two.
        limits.peer_bytes_max = limits.peer_bytes_max.max(size_max.saturating_mul(2));
        limits.bytes_max = limits.bytes_max.max(limits.peer_bytes_max);
    }
    limits
}

async fn say_listening(
    printer: &Printer,
    protocol: &str,
    transport: &str,
    address: SocketAddr,
    tokens: Option<&Source>,
) -> Result<(), NotWritten> {
    let (ip, port) = (Address::from(address).to_string(), address.port());
    let mut fields = json!({ "protocol": protocol, "transport": transport, "address": ip, "port": port });
    let mut text = format!("listening on {address} for {protocol} by {transport}");
    if let Some(source) = tokens {
        // A variable may be set where nobody thinks of it.
        fields["tokens"] = source.name().into();
        let name = shown(source.name().as_bytes());
        text = format!("{text}, from clients with a token ({name})");
    }
    printer.say("listening", fields, &text).await
}

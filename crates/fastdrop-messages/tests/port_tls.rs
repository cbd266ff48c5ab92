//! One port for VSTP and CNP inside TLS 1.3.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use fastdrop_messages::cnp::{self, Client, Ending, Error, Server, Session};
use fastdrop_messages::port::{Port, PortConfig, PortError, Sorting};
use fastdrop_messages::tls::{ClientTls, Fingerprint, Identity, ServerTls, Trust};
use fastdrop_messages::vstp::tcp::TcpConfig;
use fastdrop_messages::vstp::{Frame, FrameType, VstpError, VstpTcpClient, encode_frame};
use rustls::pki_types::ServerName;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("in time")
}

fn identity() -> Identity {
    Identity::generate(&["localhost", "127.0.0.1"]).unwrap()
}

fn pin(identity: &Identity) -> Trust {
    Trust::Pinned(identity.fingerprint())
}

fn data(payload: &[u8]) -> Frame {
    Frame::new(FrameType::Data).with_payload(payload.to_vec())
}

/// A port that echoes, until this is dropped.
struct Echo {
    address: SocketAddr,
    _sorting: Sorting,
    _serving: JoinSet<()>,
}

async fn echo(tls: impl Into<ServerTls>) -> Echo {
    let config = PortConfig { cnp: Server::builder().tls(tls), ..PortConfig::default() };
    let port = Port::bind("127.0.0.1:0", config).await.unwrap();
    assert!(port.vstp_udp.is_none(), "TLS is for TCP");
    let mut serving = JoinSet::new();
    let vstp = port.vstp_tcp.unwrap();
    serving.spawn(async move {
        let echo = |peer: fastdrop_messages::vstp::tcp::Peer, frame: Frame| async move {
            if frame.typ == FrameType::Data {
                let shown =
                    peer.peer_fingerprint().map_or_else(|| "nobody".into(), |shown| shown.to_string());
                let _ = peer.send(frame.with_header("from", &shown)).await;
            }
        };
        vstp.run_with_peers(std::future::pending(), echo).await.unwrap();
    });
    serving.spawn(port.cnp.run(|session: Session, message| async move {
        let _ = session.submit(message).await;
    }));
    Echo { address: port.address, _sorting: port.sorting, _serving: serving }
}

async fn by_vstp(address: SocketAddr, tls: impl Into<ClientTls>) -> Result<Frame, VstpError> {
    let mut client = VstpTcpClient::connect_tls(&address.to_string(), tls, TcpConfig::default()).await?;
    client.send(data(b"by VSTP")).await?;
    client.recv().await?.ok_or(VstpError::ConnectionClosed)
}

async fn by_cnp(address: SocketAddr, tls: impl Into<ClientTls>) -> Result<(Client, bytes::Bytes), Error> {
    let client = Client::builder().connect_tls(&address.to_string(), tls).await?;
    client.send("by CNP").await?;
    let echoed = client.recv().await?.unwrap();
    Ok((client, echoed))
}

/// A connection inside TLS that names these protocols, whatever is spoken inside.
async fn raw(address: SocketAddr, names: &[&[u8]]) -> std::io::Result<TlsStream<TcpStream>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap();
    let mut config = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        .with_no_client_auth();
    config.alpn_protocols = names.iter().map(|name| name.to_vec()).collect();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// Trusts anybody: what is tested here is what is said inside.
#[derive(Debug)]
struct Anyone(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, known)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test]
async fn clients_of_either_protocol_are_served_inside_tls_on_one_port() {
    let identity = identity();
    let port = echo(&identity).await;
    let (vstp, cnp) = soon(async {
        tokio::join!(by_vstp(port.address, pin(&identity)), by_cnp(port.address, pin(&identity)))
    })
    .await;
    assert_eq!(vstp.unwrap().payload(), b"by VSTP");
    let (client, echoed) = cnp.unwrap();
    assert_eq!(&echoed[..], b"by CNP");
    assert_eq!(client.peer_fingerprint(), Some(identity.fingerprint()));
    soon(client.close()).await.unwrap();
    // Another certificate is trusted by nobody.
    let other = Trust::Pinned(Fingerprint([0; 32]));
    assert!(soon(by_vstp(port.address, &other)).await.is_err());
    assert!(soon(by_cnp(port.address, &other)).await.is_err());
}

#[tokio::test]
async fn a_client_certificate_is_asked_of_either_and_known_to_the_handlers() {
    let (identity, client) = (identity(), identity());
    let port = echo(ServerTls::new(&identity).require_clients(pin(&client))).await;
    let tls = ClientTls::new(pin(&identity)).identity(&client);
    let echoed = soon(by_vstp(port.address, &tls)).await.unwrap();
    assert_eq!(echoed.get_header("from"), Some(&client.fingerprint().to_string()[..]));
    assert!(soon(by_cnp(port.address, &tls)).await.is_ok());
    assert!(soon(by_vstp(port.address, pin(&identity))).await.is_err());
    assert!(soon(by_cnp(port.address, pin(&identity))).await.is_err());
}

#[tokio::test]
async fn what_is_named_decides_and_of_who_names_nothing_the_first_byte() {
    let identity = identity();
    let port = echo(&identity).await;
    let frame = encode_frame(&data(b"x")).unwrap();
    for names in [&[&b"vstp"[..]][..], &[b"cnp", b"vstp"], &[b"h2", b"vstp"], &[]] {
        let mut stream = soon(raw(port.address, names)).await.unwrap();
        stream.write_all(&frame).await.unwrap();
        let mut heard = [0; 2];
        soon(stream.read_exact(&mut heard)).await.unwrap();
        assert_eq!(&heard, b"VT", "{names:?}");
    }
    // A SYN of CNP, and what answers it, begin with 00.
    let syn = syn_of_cnp().await;
    for names in [&[&b"cnp"[..]][..], &[]] {
        let mut stream = soon(raw(port.address, names)).await.unwrap();
        stream.write_all(&syn).await.unwrap();
        let mut heard = [0xff];
        soon(stream.read_exact(&mut heard)).await.unwrap();
        assert_eq!(heard, [0], "{names:?}");
    }
    // What was named decides, whatever is said then: VSTP says that this is no frame.
    let mut stream = soon(raw(port.address, &[b"vstp"])).await.unwrap();
    stream.write_all(&syn).await.unwrap();
    let mut heard = [0; 2];
    soon(stream.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"VT");
    // One that names others alone is refused in the handshake.
    let error = soon(raw(port.address, &[b"h2"])).await.unwrap_err();
    assert!(error.to_string().to_lowercase().contains("application"), "{error}");
    // Nothing that is spoken here.
    let mut stream = soon(raw(port.address, &[])).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut heard = Vec::new();
    let _ = soon(stream.read_to_end(&mut heard)).await;
    assert!(heard.is_empty());
}

/// The first packet of a client of CNP.
async fn syn_of_cnp() -> Vec<u8> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let asking = tokio::spawn(Client::connect(listener.local_addr().unwrap()));
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut syn = vec![0; 4096];
    let len = soon(stream.read(&mut syn)).await.unwrap();
    syn.truncate(len);
    asking.abort();
    syn
}

#[tokio::test]
async fn plain_clients_of_a_port_with_tls_are_refused_in_words_and_nothing_is_taken() {
    let identity = identity();
    let port = echo(&identity).await;
    let mut plain = VstpTcpClient::connect(&port.address.to_string()).await.unwrap();
    let error = soon(plain.send_with_ack(data(b"x"))).await.unwrap_err();
    assert!(matches!(&error, VstpError::ServerError(why) if why.contains("TLS")), "{error}");
    let error = soon(Client::connect(port.address)).await.unwrap_err();
    assert!(matches!(&error, Error::Ended(Ending::Refused(why)) if why.contains("TLS")), "{error}");
    // As a server of VSTP alone does.
    let server =
        fastdrop_messages::vstp::VstpTcpServer::bind_tls("127.0.0.1:0", &identity, TcpConfig::default());
    let server = server.await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let (accepted, error) = soon(async {
        let mut plain = VstpTcpClient::connect(&address).await.unwrap();
        tokio::join!(server.accept(), plain.send_with_ack(data(b"x")))
    })
    .await;
    assert!(accepted.is_err());
    let error = error.unwrap_err();
    assert!(matches!(&error, VstpError::ServerError(why) if why.contains("TLS")), "{error}");
}

#[tokio::test]
async fn a_port_with_tls_has_no_udp() {
    let builder = Server::builder().tls(&identity()).udp(true);
    let refused = Port::bind("127.0.0.1:0", PortConfig { cnp: builder, ..PortConfig::default() }).await;
    assert!(matches!(refused.err(), Some(PortError::Cnp(cnp::Error::Config(_)))));
}

#[tokio::test]
async fn clients_that_do_not_finish_a_handshake_keep_no_others_out() {
    let identity = identity();
    let port = echo(&identity).await;
    let mut stuck = Vec::new();
    for n in 0..300 {
        let mut stream = TcpStream::connect(port.address).await.unwrap();
        // A record that never ends, or nothing at all.
        if n % 2 == 0 {
            stream.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
        }
        stuck.push(stream);
    }
    assert!(soon(by_vstp(port.address, pin(&identity))).await.is_ok());
    assert!(soon(by_cnp(port.address, pin(&identity))).await.is_ok());
}

//! CNP over TLS 1.3.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use fastdrop_messages::cnp::{Client, Config, Ending, Error, Fault, Mode, Server, Session};
use fastdrop_messages::tls::{ClientTls, Fingerprint, Identity, ServerTls, TlsError, Trust};
use fastdrop_messages::vstp::VstpTcpClient;
use fastdrop_messages::vstp::tcp::{TcpConfig, VstpTcpServer};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

fn identity() -> Identity {
    Identity::generate(&["localhost", "127.0.0.1"]).unwrap()
}

/// A server that echoes, and its address.
async fn echo(tls: impl Into<ServerTls>) -> SocketAddr {
    let server = Server::builder().tls(tls).bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr();
    tokio::spawn(server.run(|session: Session, message| async move {
        let _ = session.submit(message).await;
    }));
    address
}

async fn connect(address: SocketAddr, tls: impl Into<ClientTls>) -> Result<Client, Error> {
    soon(Client::builder().connect_tls(&address.to_string(), tls)).await
}

/// The echo of a message, or what there is instead.
async fn echoed(client: &Client, message: &[u8]) -> Result<Option<bytes::Bytes>, Error> {
    soon(client.send(message.to_vec())).await?;
    soon(client.recv()).await
}

fn pin(identity: &Identity) -> Trust {
    Trust::Pinned(identity.fingerprint())
}

#[tokio::test]
async fn messages_of_any_size_pass_through_tls_in_both_modes_and_both_ends_close() {
    let identity = identity();
    let address = echo(&identity).await;
    for mode in [Mode::Burst, Mode::StepByStep] {
        let client = Client::builder().mode(mode);
        let client = soon(client.connect_tls(&address.to_string(), pin(&identity))).await.unwrap();
        assert_eq!(client.peer_fingerprint(), Some(identity.fingerprint()));
        for size in [0, 1, 1000, 70_000, 3 << 20] {
            let message: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
            assert_eq!(echoed(&client, &message).await.unwrap().unwrap(), message, "{size} bytes");
        }
        soon(client.close()).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_far_more_than_a_socket_holds_passes_through_tls_in_order() {
    let identity = identity();
    let server = Server::builder().tls(&identity).bind("127.0.0.1:0");
    let mut server = server.await.unwrap();
    let client = connect(server.local_addr(), pin(&identity)).await.unwrap();
    let session = soon(server.accept()).await.unwrap();
    let sending = tokio::spawn(async move {
        for n in 0..2000_u32 {
            client.submit([n.to_be_bytes().to_vec(), vec![n as u8; 20_000]].concat()).await.unwrap();
        }
        client.close().await.unwrap();
    });
    for n in 0..2000_u32 {
        let message = soon(session.recv()).await.unwrap().unwrap();
        assert_eq!((&message[..4], message.len()), (&n.to_be_bytes()[..], 20_004));
    }
    assert_eq!(soon(session.recv()).await.unwrap(), None);
    soon(sending).await.unwrap();
}

#[tokio::test]
async fn case_61_a_server_with_another_certificate_or_name_is_not_spoken_to() {
    let identity = identity();
    let address = echo(&identity).await;
    for wrong in [
        Trust::Pinned(Fingerprint([0; 32])),
        Trust::AnyPinned([].into()),
        Trust::Authorities(std::sync::Arc::new(rustls::RootCertStore::empty())),
    ] {
        let error = connect(address, wrong).await.unwrap_err();
        assert!(matches!(error, Error::Tls(TlsError::Untrusted(_))), "{error}");
        assert_eq!(error.fault(), Fault::Peer);
    }
    let one_of = Trust::AnyPinned([Fingerprint([0; 32]), identity.fingerprint()].into());
    assert!(connect(address, one_of).await.is_ok());
}

#[tokio::test]
async fn case_61_a_plain_client_is_told_that_the_port_speaks_tls_and_nothing_is_taken() {
    let identity = identity();
    let address = echo(&identity).await;
    let error = soon(Client::connect(address)).await.unwrap_err();
    assert!(matches!(&error, Error::Ended(Ending::Refused(why)) if why.contains("TLS")), "{error}");
    // Whoever speaks something else altogether gets no session either.
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    let _ = soon(stream.read_to_end(&mut said)).await;
    assert!(said.len() < 100, "an alert at most");
}

#[tokio::test]
async fn case_61_a_client_with_tls_says_nothing_in_plain_text_to_a_plain_server() {
    let server = Server::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr();
    tokio::spawn(server.run(|_, _| async {}));
    let error = connect(address, pin(&identity())).await.unwrap_err();
    assert!(matches!(error, Error::Tls(TlsError::NotTls)), "{error:?}");
    assert!(error.to_string().contains("plain text"), "{error}");
    // What such a server reads is no SYN, and says no word of the client.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let watched = listener.local_addr().unwrap();
    let reading = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut first = [0];
        stream.read_exact(&mut first).await.unwrap();
        drop(stream);
        (first, tokio::time::timeout(Duration::from_millis(300), listener.accept()).await.is_ok())
    });
    connect(watched, pin(&identity())).await.unwrap_err();
    assert_eq!(soon(reading).await.unwrap(), ([22], false), "one attempt, of TLS");
}

#[tokio::test]
async fn case_13_a_tls_handshake_that_does_not_go_on_is_ended() {
    let brief = Config::default().handshake_timeout(Duration::from_millis(200));
    let server = Server::builder().tls(&identity()).config(brief).bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr();
    tokio::spawn(server.run(|_, _| async {}));
    for bytes in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01\x00"] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let _ = soon(stream.read_to_end(&mut Vec::new())).await;
    }
    // And a server that does not go on is given up.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = listener.local_addr().unwrap();
    let client = Client::builder().config(Config::default().handshake_timeout(Duration::from_millis(200)));
    let error = soon(client.connect_tls(&silent.to_string(), pin(&identity()))).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Network);
}

#[tokio::test]
async fn a_server_lets_in_only_clients_whose_certificate_it_trusts() {
    let (server, known, other) = (identity(), identity(), identity());
    let required = ServerTls::new(&server).require_clients(pin(&known));
    let asked = ServerTls::new(&server).ask_clients(pin(&known));
    for (tls, nameless) in [(required, false), (asked, true)] {
        let address = echo(tls).await;
        let trust = ClientTls::new(pin(&server));
        let shown = connect(address, trust.clone().identity(&known)).await.unwrap();
        assert_eq!(echoed(&shown, b"x").await.unwrap().unwrap(), "x");
        // The client learns why, and asks in no other way.
        let error = connect(address, trust.clone().identity(&other)).await.unwrap_err();
        assert!(matches!(&error, Error::Ended(Ending::Tls(why)) if why.contains("certificate")), "{error:?}");
        match connect(address, trust).await {
            Ok(client) => assert!(nameless && echoed(&client, b"y").await.is_ok()),
            Err(error) => assert!(!nameless && error.to_string().contains("certificate"), "{error}"),
        }
    }
}

/// An identity whose certificate and key are in files, with these parameters; signed by another if
/// there is one. Also the file with the certificate.
fn in_files(
    dir: &Path,
    name: &str,
    is_ca: rcgen::IsCa,
    issuer: Option<&rcgen::Issuer<'_, rcgen::KeyPair>>,
) -> (Identity, PathBuf) {
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = is_ca;
    let own = rcgen::KeyPair::generate().unwrap();
    let made = match issuer {
        Some(issuer) => params.signed_by(&own, issuer).unwrap(),
        None => params.self_signed(&own).unwrap(),
    };
    let (cert, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    std::fs::write(&cert, made.pem()).unwrap();
    std::fs::write(&key, own.serialize_pem()).unwrap();
    (Identity::from_pem(&cert, &key).unwrap(), cert)
}

#[tokio::test]
async fn a_certificate_in_the_file_is_trusted_itself_also_if_it_signs_others_or_others_signed_it() {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let dir = tempfile::tempdir().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = Issuer::new(params, KeyPair::generate().unwrap());
    let signed = in_files(dir.path(), "signed", IsCa::NoCa, Some(&issuer));
    let signs = in_files(dir.path(), "signs", IsCa::Ca(BasicConstraints::Unconstrained), None);
    let other = in_files(dir.path(), "other", IsCa::NoCa, Some(&issuer)).0;
    for (listed, file) in [signed, signs] {
        // A client's.
        let server = identity();
        for mandatory in [true, false] {
            let (tls, trust) = (ServerTls::new(&server), Trust::from_pem(&file).unwrap());
            let tls = if mandatory { tls.require_clients(trust) } else { tls.ask_clients(trust) };
            let address = echo(tls).await;
            let shows = |shown| ClientTls::new(pin(&server)).identity(shown);
            let client = connect(address, shows(&listed)).await.unwrap();
            assert_eq!(echoed(&client, b"x").await.unwrap().unwrap(), "x");
            assert!(connect(address, shows(&other)).await.is_err());
            let nobody = connect(address, pin(&server)).await;
            assert_eq!(nobody.is_ok(), !mandatory);
        }
        // A server's, for another name than was dialled.
        let address = echo(&listed).await;
        let client = connect(address, Trust::from_pem(&file).unwrap()).await.unwrap();
        assert_eq!(echoed(&client, b"x").await.unwrap().unwrap(), "x");
        let address = echo(&other).await;
        let error = connect(address, Trust::from_pem(&file).unwrap()).await.unwrap_err();
        assert!(matches!(error, Error::Tls(TlsError::Untrusted(_))), "{error}");
    }
}

#[tokio::test]
async fn a_server_knows_whose_certificate_was_shown() {
    let (own, known) = (identity(), identity());
    let tls = ServerTls::new(&own).require_clients(pin(&known));
    let mut server = Server::builder().tls(tls.clone()).bind("127.0.0.1:0").await.unwrap();
    let shows = ClientTls::new(pin(&own)).identity(&known);
    let client = connect(server.local_addr(), &shows).await.unwrap();
    let session = soon(server.accept()).await.unwrap();
    assert_eq!(session.peer_fingerprint(), Some(known.fingerprint()));
    drop(client);
    // VSTP does the same.
    let server = VstpTcpServer::bind_tls("127.0.0.1:0", tls, TcpConfig::default()).await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let (client, connection) = tokio::join!(
        soon(VstpTcpClient::connect_tls(&address, &shows, TcpConfig::default())),
        soon(server.accept()),
    );
    client.unwrap();
    assert_eq!(connection.unwrap().peer_fingerprint(), Some(known.fingerprint()));
    let trust = pin(&own);
    let (client, connection) = tokio::join!(
        soon(VstpTcpClient::connect_tls(&address, &trust, TcpConfig::default())),
        soon(server.accept()),
    );
    assert!(connection.is_err());
    let refused = match client {
        Ok(mut client) => soon(client.recv()).await.map(drop).unwrap_err(),
        Err(error) => error,
    };
    assert!(refused.to_string().contains("Certificate"), "{refused}");
}

#[tokio::test]
async fn a_client_of_vstp_has_no_session_of_cnp() {
    let identity = identity();
    let address = echo(&identity).await.to_string();
    let trust = pin(&identity);
    assert!(soon(VstpTcpClient::connect_tls(&address, &trust, TcpConfig::default())).await.is_err());
}

/// Case 62: the connection is cut where TLS has said nothing of an end.
#[tokio::test]
async fn case_62_an_end_without_close_notify_is_a_lost_connection() {
    let identity = identity();
    let mut server = Server::builder().tls(&identity).bind("127.0.0.1:0").await.unwrap();
    let (address, relay) = (server.local_addr(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let front = relay.local_addr().unwrap();
    let (cut, cutting) = tokio::sync::oneshot::channel();
    let relaying = tokio::spawn(async move {
        let (mut one, _) = relay.accept().await.unwrap();
        let mut two = TcpStream::connect(address).await.unwrap();
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut one, &mut two) => panic!("it ended by itself"),
            _ = cutting => {}
        }
    });
    let client = connect(front, pin(&identity)).await.unwrap();
    let session = soon(server.accept()).await.unwrap();
    let (sent, received) = tokio::join!(soon(client.send("x")), soon(session.recv()));
    sent.unwrap();
    assert_eq!(received.unwrap().unwrap(), "x");
    cut.send(()).unwrap();
    relaying.await.unwrap();
    assert_eq!(soon(session.ended()).await, Ending::ConnectionLost);
    assert_eq!(soon(client.ended()).await, Ending::ConnectionLost);
}

#[tokio::test]
async fn tls_by_udp_is_refused_before_anything_is_sent() {
    let tls = ServerTls::new(&identity());
    let error = Server::builder().tls(tls).udp(true).bind("127.0.0.1:0").await.unwrap_err();
    assert_eq!(error.fault(), Fault::Caller);
    let client = Client::builder().udp().connect_tls("127.0.0.1:9", pin(&identity()));
    assert_eq!(client.await.unwrap_err().fault(), Fault::Caller);
}

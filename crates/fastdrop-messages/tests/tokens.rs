//! Tokens with which clients are let in, by either protocol.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use fastdrop_messages::cnp::{self, Client, Ending, Error, Fault, Server};
use fastdrop_messages::tls::{Identity, Trust};
use fastdrop_messages::vstp::tcp::{TcpConfig, VstpTcpServer};
use fastdrop_messages::vstp::{Frame, FrameType, VstpError, VstpTcpClient};
use fastdrop_messages::{Authorize, Token, TokenSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

fn token(text: &str) -> Token {
    Token::new(text).unwrap()
}

fn tokens() -> TokenSet {
    TokenSet::new(["the right one", "another right one"])
}

#[tokio::test]
async fn cnp_lets_in_who_shows_a_token_of_the_set_and_tells_others_why_not() {
    let server = Server::builder().authorize(tokens()).bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr();
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&taken);
    tokio::spawn(server.run(move |_, _| {
        counted.fetch_add(1, Ordering::Relaxed);
        async {}
    }));
    for udp in [false, true] {
        let builder = || if udp { Client::builder().udp() } else { Client::builder() };
        for right in ["the right one", "another right one"] {
            let client = soon(builder().token(token(right)).connect(address)).await.unwrap();
            soon(client.send("x")).await.unwrap();
        }
        let wrong =
            [builder(), builder().token(token("a wrong one")), builder().token(token("the right on"))];
        for builder in wrong {
            let error = soon(builder.connect(address)).await.unwrap_err();
            assert!(
                matches!(&error, Error::Ended(Ending::Unauthorized(why)) if why.contains("token")),
                "udp {udp}: {error:?}"
            );
            assert_eq!(error.fault(), Fault::Peer);
        }
    }
    assert_eq!(taken.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn cnp_asks_a_function_of_the_application_which_knows_the_name_as_well() {
    let authorize = Authorize::new(|credentials| match (credentials.name, credentials.token) {
        (Some("sensor 7"), Some("7")) => Ok(()),
        (name, _) => Err(format!("{} has no place here", name.unwrap_or("somebody"))),
    });
    let server = Server::builder().authorize(authorize).bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr();
    tokio::spawn(server.run(|_, _| async {}));
    let connect = |name: &str| Client::builder().client_id(name).token(token("7")).connect(address);
    assert!(soon(connect("sensor 7")).await.is_ok());
    let error = soon(connect("sensor 8")).await.unwrap_err();
    assert!(error.to_string().contains("sensor 8 has no place here"), "{error}");
}

#[tokio::test]
async fn cnp_shows_a_token_inside_tls_and_to_a_server_that_asks_for_none() {
    let identity = Identity::generate(&["localhost"]).unwrap();
    let trust = Trust::Pinned(identity.fingerprint());
    let server = Server::builder().tls(&identity).authorize(tokens()).bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().to_string();
    tokio::spawn(server.run(|_, _| async {}));
    for (shown, right) in [("the right one", true), ("a wrong one", false)] {
        let client = Client::builder().token(token(shown)).connect_tls(&address, &trust);
        assert_eq!(soon(client).await.is_ok(), right, "{shown}");
    }
    let server = cnp::Server::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr();
    tokio::spawn(server.run(|_, _| async {}));
    assert!(soon(Client::builder().token(token("of no use")).connect(address)).await.is_ok());
}

fn shows(shown: Option<&str>) -> TcpConfig {
    TcpConfig { token: shown.map(token), ..TcpConfig::default() }
}

#[tokio::test]
async fn vstp_lets_in_who_shows_a_token_of_the_set_and_hands_on_nothing_of_others() {
    let identity = Identity::generate(&["localhost"]).unwrap();
    let trust = Trust::Pinned(identity.fingerprint());
    for tls in [false, true] {
        let config = TcpConfig { authorize: Some(tokens().into()), ..TcpConfig::default() };
        let server = match tls {
            true => VstpTcpServer::bind_tls("127.0.0.1:0", &identity, config).await.unwrap(),
            false => VstpTcpServer::bind_with_config("127.0.0.1:0", config).await.unwrap(),
        };
        let address = server.local_addr().unwrap().to_string();
        let (frames, mut came) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(server.run(move |_, frame: Frame| {
            frames.send(frame).unwrap();
            async {}
        }));
        let connect = async |config| match tls {
            true => soon(VstpTcpClient::connect_tls(&address, &trust, config)).await,
            false => soon(VstpTcpClient::connect_with_config(&address, config)).await,
        };
        let data = || Frame::new(FrameType::Data).with_payload(b"x".to_vec());
        let mut client = connect(shows(Some("the right one"))).await.unwrap();
        soon(client.send_with_ack(data())).await.unwrap();
        let error = connect(shows(Some("a wrong one"))).await.unwrap_err();
        assert!(matches!(&error, VstpError::ServerError(why) if why.contains("not known")), "{error:?}");
        // Who says no HELLO is told what is missing.
        let mut nameless = connect(shows(None)).await.unwrap();
        let error = soon(nameless.send_with_ack(data())).await.unwrap_err();
        assert!(matches!(&error, VstpError::ServerError(why) if why.contains("token")), "{error:?}");
        drop(client);
        assert_eq!(came.recv().await.unwrap().payload, b"x");
        assert!(came.try_recv().is_err(), "a frame of somebody who was not let in, or the HELLO");
    }
}

#[tokio::test]
async fn vstp_shows_a_token_to_a_server_that_asks_for_none_and_the_error_has_a_code() {
    let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    tokio::spawn(server.run(|_, _| async {}));
    let client = VstpTcpClient::connect_with_config(&address, shows(Some("of no use")));
    assert!(soon(client).await.is_ok());
    let config = TcpConfig { authorize: Some(tokens().into()), ..TcpConfig::default() };
    let server = VstpTcpServer::bind_with_config("127.0.0.1:0", config).await.unwrap();
    let address = server.local_addr().unwrap();
    tokio::spawn(server.run(|_, _| async {}));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let hello = fastdrop_messages::vstp::encode_frame(&Frame::new(FrameType::Hello)).unwrap();
    stream.write_all(&hello).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut said = Vec::new();
    soon(stream.read_to_end(&mut said)).await.unwrap();
    assert!(said.windows(12).any(|bytes| bytes == b"unauthorized"), "{said:?}");
}

#[tokio::test]
async fn vstp_tells_a_refusal_of_the_token_from_every_other() {
    for (code, unauthorized) in [("unauthorized", true), ("busy", false), ("timeout", false), ("x", false)] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let refusing = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let frame = Frame::new(FrameType::Err).with_header("code", code).with_header("reason", "not now");
            stream.write_all(&fastdrop_messages::vstp::encode_frame(&frame).unwrap()).await.unwrap();
            stream.shutdown().await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let refused =
            soon(VstpTcpClient::connect_to(&address, None, shows(Some("a token")))).await.unwrap_err();
        assert!(matches!(&refused.error, VstpError::ServerError(why) if why == "not now"), "{refused}");
        assert_eq!(refused.unauthorized, unauthorized, "{code}");
        refusing.abort();
    }
}

//! Reading and writing at the same time, and many callers on one connection.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use fastdrop_messages::tls::{ClientTls, Identity, Trust};
use fastdrop_messages::vstp::tcp::TcpConfig;
use fastdrop_messages::vstp::{
    Flags, Frame, FrameType, VstpClient, VstpError, VstpServer, VstpTcpClient, VstpTcpServer,
};
use std::time::Duration;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

fn data(payload: Vec<u8>) -> Frame {
    Frame::new(FrameType::Data).with_payload(payload)
}

/// A server that sends back every frame before it reads the next one, and a way to it.
struct Echo {
    address: String,
    tls: Option<ClientTls>,
    serving: JoinHandle<()>,
}

impl Echo {
    async fn start(encrypted: bool) -> Self {
        let (server, tls) = if encrypted {
            let identity = Identity::generate(&["localhost"]).unwrap();
            let tls = ClientTls::from(&Trust::Pinned(identity.fingerprint()));
            let server = VstpTcpServer::bind_tls("127.0.0.1:0", &identity, TcpConfig::default()).await;
            (server.unwrap(), Some(tls))
        } else {
            (VstpTcpServer::bind("127.0.0.1:0").await.unwrap(), None)
        };
        let address = server.local_addr().unwrap().to_string();
        let serving = tokio::spawn(async move {
            let echo = server.serve(std::future::pending(), |mut connection, _| async move {
                while let Ok(Some(frame)) = connection.recv().await {
                    if frame.typ == FrameType::Data && connection.send(frame).await.is_err() {
                        return;
                    }
                }
                let _ = connection.close().await;
            });
            echo.await.unwrap();
        });
        Self { address, tls, serving }
    }

    async fn connect(&self, config: TcpConfig) -> VstpTcpClient {
        match &self.tls {
            None => VstpTcpClient::connect_with_config(&self.address, config).await.unwrap(),
            Some(tls) => VstpTcpClient::connect_tls(&self.address, tls.clone(), config).await.unwrap(),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn payload(n: usize, size: usize) -> Vec<u8> {
    (0..size).map(|at| (at / 8 + n) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_126_echoes_of_any_size_are_all_sent_before_one_is_received() {
    for (count, size) in [(64, 1 << 20), (5_000, 1_000), (12, 8_000_000), (300, 70_000)] {
        for encrypted in [false, true] {
            for driven in [false, true] {
                let echo = Echo::start(encrypted).await;
                let keep_alive = driven.then_some(Duration::from_secs(60));
                let config = TcpConfig { keep_alive, ..TcpConfig::default() };
                let mut client = echo.connect(config).await;
                for n in 0..count {
                    soon(client.send(data(payload(n, size)))).await.unwrap();
                }
                for n in 0..count {
                    let back = soon(client.recv()).await.unwrap().unwrap();
                    assert!(back.payload == payload(n, size), "{n} of {count} of {size}, {encrypted}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_126_two_halves_send_and_receive_beside_each_other() {
    for encrypted in [false, true] {
        let echo = Echo::start(encrypted).await;
        let (sends, mut receives) = echo.connect(TcpConfig::default()).await.into_split();
        let sending = tokio::spawn(async move {
            for n in 0..200 {
                sends.send(data(payload(n, 1 << 20))).await.unwrap();
            }
            sends.close().await.unwrap();
        });
        for n in 0..200 {
            let back = soon(receives.recv()).await.unwrap().unwrap();
            assert!(back.payload == payload(n, 1 << 20), "{n}");
        }
        soon(sending).await.unwrap();
        assert_eq!(soon(receives.recv()).await.unwrap().unwrap().typ, FrameType::Bye);
        assert_eq!(soon(receives.recv()).await.unwrap(), None);
    }
}

/// The end of an encrypted stream comes behind BYE: left unread by the one who closes, it would
/// have the connection reset, and the other lose what it has not read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sent_before_the_end_is_not_lost_by_a_reset() {
    const COUNT: usize = 16;
    for encrypted in [false, true] {
        let echo = Echo::start(encrypted).await;
        for round in 0..100 {
            let mut client = echo.connect(TcpConfig::default()).await;
            for n in 0..COUNT {
                client.send(data(payload(n, 100_000))).await.unwrap();
            }
            soon(client.close()).await.unwrap();
            for n in 0..COUNT {
                let back = soon(client.recv()).await;
                let back = back.unwrap_or_else(|error| panic!("{round}, {encrypted}: {error}")).unwrap();
                assert!(back.payload == payload(n, 100_000), "{n}");
            }
            assert_eq!(soon(client.recv()).await.unwrap().unwrap().typ, FrameType::Bye);
            assert_eq!(soon(client.recv()).await.unwrap(), None);
        }
    }
}

/// Both ends send many megabytes before they receive anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_126_both_ends_write_first_and_read_then() {
    let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        let mut connection = server.accept().await.unwrap();
        for n in 0..64 {
            connection.send(data(payload(n, 1 << 20))).await.unwrap();
        }
        for n in 0..64 {
            assert!(connection.recv().await.unwrap().unwrap().payload == payload(n, 1 << 20));
        }
        connection
    });
    let mut client = VstpTcpClient::connect(&address).await.unwrap();
    for n in 0..64 {
        soon(client.send(data(payload(n, 1 << 20)))).await.unwrap();
    }
    for n in 0..64 {
        assert!(soon(client.recv()).await.unwrap().unwrap().payload == payload(n, 1 << 20));
    }
    soon(serving).await.unwrap();
}

#[tokio::test]
async fn case_126_an_acknowledgement_behind_many_unread_frames_is_seen() {
    for (count, size) in [(17, 10), (1_000, 10), (17, 200_000)] {
        for driven in [false, true] {
            let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
            let address = server.local_addr().unwrap().to_string();
            let serving = tokio::spawn(async move {
                let mut connection = server.accept().await.unwrap();
                for n in 0..count {
                    connection.send(data(payload(n, size))).await.unwrap();
                }
                // Its acknowledgement stands behind all of that.
                connection.recv().await.unwrap().unwrap();
                connection
            });
            let keep_alive = driven.then_some(Duration::from_secs(60));
            let config = TcpConfig { keep_alive, ..TcpConfig::default() };
            let mut client = VstpTcpClient::connect_with_config(&address, config).await.unwrap();
            soon(client.send_with_ack(data(b"x".to_vec()))).await.unwrap();
            for n in 0..count {
                assert_eq!(soon(client.recv()).await.unwrap().unwrap().payload, payload(n, size));
            }
            drop(soon(serving).await.unwrap());
        }
    }
    // And by the easy client, whose receiver comes late.
    let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        let mut connection = server.accept().await.unwrap();
        for n in 0..100 {
            connection.send(data(payload(n, 10))).await.unwrap();
        }
        connection.recv().await.unwrap().unwrap();
        connection
    });
    let client = VstpClient::connect_tcp(address).await.unwrap();
    soon(client.send_with_ack("x")).await.unwrap();
    for n in 0..100 {
        assert_eq!(soon(client.receive_raw()).await.unwrap().payload, payload(n, 10));
    }
    drop(soon(serving).await.unwrap());
}

/// The bound is in bytes, and said when it is reached.
#[tokio::test]
async fn case_126_beyond_the_bound_nothing_is_read_and_the_error_names_it() {
    let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        let mut connection = server.accept().await.unwrap();
        for n in 0..100 {
            if connection.send(data(payload(n, 100_000))).await.is_err() {
                return;
            }
        }
    });
    let config = TcpConfig { unread_max: Some(1 << 20), ..TcpConfig::default() };
    let mut client = VstpTcpClient::connect_with_config(&address, config).await.unwrap();
    let error = soon(client.send_with_ack(data(b"x".to_vec()))).await.unwrap_err();
    assert!(error.to_string().contains("unread_max"), "{error}");
    // Nothing was lost by that.
    for n in 0..100 {
        assert!(soon(client.recv()).await.unwrap().unwrap().payload == payload(n, 100_000), "{n}");
    }
    soon(serving).await.unwrap();
}

#[tokio::test]
async fn case_96_keep_alive_works_while_the_application_does_not_receive() {
    // Generous, as a busy machine may stand still for seconds.
    const INTERVAL: Duration = Duration::from_secs(2);
    let config = TcpConfig { keep_alive: Some(INTERVAL), ..TcpConfig::default() };
    let server = VstpTcpServer::bind_with_config("127.0.0.1:0", config.clone()).await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let mut client = VstpTcpClient::connect_with_config(&address, config).await.unwrap();
    let mut connection = soon(server.accept()).await.unwrap();
    client.send_hello().await.unwrap();
    assert_eq!(soon(connection.recv()).await.unwrap().unwrap().typ, FrameType::Hello);
    assert_eq!(soon(client.recv()).await.unwrap().unwrap().typ, FrameType::Welcome);
    // More than the time after which a peer that says nothing is gone.
    tokio::time::sleep(INTERVAL * 7 / 2).await;
    client.send(data(b"still here".to_vec())).await.unwrap();
    assert_eq!(soon(connection.recv()).await.unwrap().unwrap().payload, b"still here");
    connection.send(data(b"so am I".to_vec())).await.unwrap();
    assert_eq!(soon(client.recv()).await.unwrap().unwrap().payload, b"so am I");
}

/// The task that drives a connection knows nothing of what its caller had before.
#[tokio::test]
async fn what_was_read_before_a_session_began_is_received_by_it() {
    for split in [false, true] {
        let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap().to_string();
        let serving = tokio::spawn(async move {
            let mut connection = server.accept().await.unwrap();
            for n in 0..3 {
                connection.send(data(vec![n])).await.unwrap();
            }
            // Its acknowledgement stands behind these, and then nothing comes.
            connection.recv().await.unwrap().unwrap();
            connection
        });
        let mut client = VstpTcpClient::connect(&address).await.unwrap();
        soon(client.send_with_ack(data(b"x".to_vec()))).await.unwrap();
        // Whatever the acknowledgement needs is written; nothing wakes the task afterwards.
        let connection = soon(serving).await.unwrap();
        if split {
            let (_sends, mut receives) = client.into_split();
            for n in 0..3 {
                assert_eq!(soon(receives.recv()).await.unwrap().unwrap().payload, [n]);
            }
        } else {
            let session = client.into_session();
            for n in 0..3 {
                assert_eq!(soon(session.recv()).await.unwrap().unwrap().payload, [n]);
            }
        }
        drop(connection);
    }
}

#[tokio::test]
async fn what_was_to_be_answered_before_a_session_began_is_answered_by_it() {
    for split in [false, true] {
        let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap().to_string();
        let mut client = VstpTcpClient::connect(&address).await.unwrap();
        client.send_hello().await.unwrap();
        let mut connection = soon(server.accept()).await.unwrap();
        assert_eq!(soon(connection.recv()).await.unwrap().unwrap().typ, FrameType::Hello);
        let receiving = if split {
            let (sends, mut receives) = connection.into_split();
            tokio::spawn(async move { (receives.recv().await, drop(sends)).0 })
        } else {
            let session = connection.into_session();
            tokio::spawn(async move { session.recv().await })
        };
        assert_eq!(soon(client.recv()).await.unwrap().unwrap().typ, FrameType::Welcome);
        client.send(data(b"thanks".to_vec())).await.unwrap();
        assert_eq!(soon(receiving).await.unwrap().unwrap().unwrap().payload, b"thanks");
    }
}

/// Both halves hear of it when a peer is gone, and so does everybody who waits.
#[tokio::test]
async fn a_session_whose_peer_is_gone_tells_everybody() {
    let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let session = VstpTcpClient::connect(&address).await.unwrap().into_session();
    let connection = soon(server.accept()).await.unwrap();
    let waiting: Vec<_> = (0..10)
        .map(|n| {
            let session = session.clone();
            tokio::spawn(async move {
                match n % 3 {
                    0 => session.recv().await.map(|frame| assert_eq!(frame, None)),
                    1 => session.send_with_ack(data(vec![1]), PATIENCE).await,
                    _ => session.call(data(vec![2])).await.map(|_| ()),
                }
            })
        })
        .collect();
    tokio::task::yield_now().await;
    drop(connection);
    for (n, waiting) in waiting.into_iter().enumerate() {
        let ended = soon(waiting).await.unwrap();
        assert_eq!(ended.is_err(), n % 3 != 0, "{n}: {ended:?}");
    }
    let error = soon(session.send(data(vec![3]))).await.unwrap_err();
    assert!(matches!(error, VstpError::ConnectionClosed), "{error}");
}

#[tokio::test]
async fn an_easy_server_acknowledges_before_it_answers() {
    let server = VstpServer::bind_tcp("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let serving = tokio::spawn(server.serve(|n: u32| async move { Ok(n + 1) }));
    let mut client = VstpTcpClient::connect(&address).await.unwrap();
    for n in 0..200_u32 {
        let frame = data(n.to_string().into_bytes()).with_flag(Flags::REQ_ACK);
        client.send(frame.with_header("msg-id", &n.to_string())).await.unwrap();
        assert_eq!(soon(client.recv()).await.unwrap().unwrap().typ, FrameType::Ack, "{n}");
        assert_eq!(soon(client.recv()).await.unwrap().unwrap().payload, (n + 1).to_string().as_bytes());
    }
    serving.abort();
}

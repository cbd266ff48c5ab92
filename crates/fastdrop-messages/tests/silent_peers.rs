//! Peers by TCP that say nothing, crawl, or take every place.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use fastdrop_messages::cnp::{Client, Config, Ending, Server};
use fastdrop_messages::port::{Port, PortConfig};
use fastdrop_messages::vstp::tcp::{TcpConfig, VstpTcpConnection};
use fastdrop_messages::vstp::{
    Frame, FrameType, SessionId, VstpError, VstpTcpClient, VstpTcpServer, encode_frame,
};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

const SHORT: Option<Duration> = Some(Duration::from_millis(500));

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time")
}

fn data(len: usize) -> Frame {
    Frame::new(FrameType::Data).with_payload(vec![7; len])
}

/// Connects from one of this machine's addresses.
async fn connect_from(local: [u8; 4], server: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((IpAddr::from(local), 0).into())?;
    socket.connect(server).await
}

async fn listening(config: TcpConfig) -> (VstpTcpServer, SocketAddr) {
    let server = VstpTcpServer::bind_with_config("127.0.0.1:0", config).await.unwrap();
    let address = server.local_addr().unwrap();
    (server, address)
}

/// Bytes that are read until the end, and the error of the server.
async fn end_of(mut connection: VstpTcpConnection, mut stream: TcpStream) -> (String, VstpError) {
    let (ended, heard) = tokio::join!(
        async {
            loop {
                match connection.recv().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("the peer has not ended"),
                    Err(error) => {
                        drop(connection);
                        return error;
                    }
                }
            }
        },
        async {
            let mut heard = Vec::new();
            let _ = stream.read_to_end(&mut heard).await;
            heard
        }
    );
    (String::from_utf8_lossy(&heard).into_owned(), ended)
}

#[tokio::test]
async fn a_client_has_so_long_for_its_first_frame_and_is_told_so() {
    let config = TcpConfig { first_frame_timeout: SHORT, ..TcpConfig::default() };
    let (server, address) = listening(config).await;
    let bytes = encode_frame(&data(100)).unwrap();
    for begun in [0, 5, 50] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&bytes[..begun]).await.unwrap();
        let connection = server.accept().await.unwrap();
        let (heard, error) = soon(end_of(connection, stream)).await;
        assert!(heard.contains("timeout") && heard.contains("first_frame_timeout"), "{begun}: {heard}");
        assert!(error.to_string().contains("first_frame_timeout"), "{begun}: {error}");
    }
    // Crawling does not help: each byte comes in time, the frame does not.
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut connection = server.accept().await.unwrap();
    let crawling = async {
        for byte in bytes.iter().cycle().take(10_000) {
            if stream.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let error = tokio::select! { () = crawling => panic!("taken"), ended = soon(connection.recv()) => ended };
    assert!(error.unwrap_err().to_string().contains("first_frame_timeout"));
    // Who has sent one may be silent for as long as it likes.
    let mut client = VstpTcpClient::connect(&address.to_string()).await.unwrap();
    let mut connection = server.accept().await.unwrap();
    client.send(data(1)).await.unwrap();
    soon(connection.recv()).await.unwrap().unwrap();
    assert!(tokio::time::timeout(2 * SHORT.unwrap(), connection.recv()).await.is_err());
}

#[tokio::test]
async fn a_silent_connection_ends_at_either_end_if_that_was_set_and_frames_put_it_off() {
    const IDLE: Duration = Duration::from_secs(2);
    let config = TcpConfig { idle_timeout: Some(IDLE), ..TcpConfig::default() };
    let (server, address) = listening(config.clone()).await;
    let stream = TcpStream::connect(address).await.unwrap();
    let connection = server.accept().await.unwrap();
    let (heard, error) = soon(end_of(connection, stream)).await;
    assert!(heard.contains("idle_timeout") && error.to_string().contains("idle_timeout"), "{heard} {error}");
    // A frame in either direction is a sign of life; the end that waits for one is the client.
    let mut client = VstpTcpClient::connect_with_config(&address.to_string(), config).await.unwrap();
    let mut connection = server.accept().await.unwrap();
    let begun = Instant::now();
    let mut to_server = false;
    while begun.elapsed() < IDLE + IDLE / 4 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        to_server = !to_server;
        if to_server {
            client.send(data(1)).await.unwrap();
            soon(connection.recv()).await.unwrap().unwrap();
        } else {
            connection.send(data(1)).await.unwrap();
            soon(client.recv()).await.unwrap().unwrap();
        }
    }
    let error = soon(client.recv()).await.unwrap_err();
    assert!(error.to_string().contains("idle_timeout"), "{error}");
}

#[tokio::test]
async fn a_peer_that_takes_nothing_ends_the_connection_and_one_that_is_slow_does_not() {
    let config = TcpConfig { write_timeout: Some(Duration::from_secs(1)), ..TcpConfig::default() };
    let (server, address) = listening(config).await;
    let _silent = TcpStream::connect(address).await.unwrap();
    let mut connection = server.accept().await.unwrap();
    let write = async {
        loop {
            if let Err(error) = connection.send(data(1 << 20)).await {
                return error;
            }
        }
    };
    let error = soon(write).await;
    assert!(error.to_string().contains("write_timeout"), "{error}");
    let mut slow = TcpStream::connect(address).await.unwrap();
    let mut connection = server.accept().await.unwrap();
    let reading = tokio::spawn(async move {
        let mut taken = 0;
        let mut buffer = vec![0; 2 << 20];
        while taken < 16 << 20 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            taken += slow.read(&mut buffer).await.unwrap();
        }
    });
    for _ in 0..16 {
        soon(connection.send(data(1 << 20))).await.unwrap();
    }
    soon(reading).await.unwrap();
}

/// Keeps pushing connections from one address that say nothing, more than there are places; tells
/// when all places are taken.
async fn push_silent(server: SocketAddr, places: usize, full: oneshot::Sender<()>) {
    let mut held = std::collections::VecDeque::new();
    let mut full = Some(full);
    loop {
        match connect_from([127, 0, 0, 66], server).await {
            Ok(stream) => held.push_back(stream),
            Err(_) => tokio::task::yield_now().await,
        }
        if held.len() > 2 * places {
            held.pop_front();
            if let Some(full) = full.take() {
                full.send(()).unwrap();
            }
        }
    }
}

/// While one address pushes silent connections as fast as it can, whoever comes from another is
/// served within seconds, and stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_client_is_served_while_one_address_takes_every_place() {
    const PLACES: usize = 100;
    let config = TcpConfig { connections_max: PLACES, ..TcpConfig::default() };
    let (server, address) = listening(config).await;
    let answering = tokio::spawn(server.run(|_: SessionId, _| async {}));
    let (full, is_full) = oneshot::channel();
    let flood = tokio::spawn(push_silent(address, PLACES, full));
    soon(is_full).await.unwrap();
    let mut clients = Vec::new();
    for _ in 0..5 {
        let begun = Instant::now();
        // This one comes from 127.0.0.1.
        let mut client = VstpTcpClient::connect(&address.to_string()).await.unwrap();
        soon(client.send_with_ack(data(10))).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5));
        clients.push(client);
    }
    for client in &mut clients {
        soon(client.send_with_ack(data(10))).await.unwrap();
    }
    flood.abort();
    answering.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_client_of_cnp_is_served_while_one_address_takes_every_place() {
    const PLACES: usize = 50;
    let alone = Server::builder().udp(false).sessions_max(PLACES).bind("127.0.0.1:0").await.unwrap();
    let config =
        PortConfig { cnp: Server::builder().udp(false).sessions_max(PLACES), ..PortConfig::default() };
    let port = Port::bind("127.0.0.1:0", config).await.unwrap();
    let addresses = [alone.local_addr(), port.address];
    let servers = [alone, port.cnp].map(|server| tokio::spawn(server.run(|_, _| async {})));
    for address in addresses {
        let (full, is_full) = oneshot::channel();
        let flood = tokio::spawn(push_silent(address, PLACES, full));
        soon(is_full).await.unwrap();
        let begun = Instant::now();
        let client = soon(Client::connect(address)).await.unwrap();
        soon(client.send("hello")).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5), "{address}");
        flood.abort();
    }
    servers.into_iter().for_each(|server| server.abort());
}

/// A program of the field that has its session, and is never heard of again.
#[tokio::test]
async fn a_silent_session_of_cnp_ends_if_that_was_set() {
    let idle = Some(Duration::from_secs(1));
    let server = Server::builder().udp(false).idle_timeout(idle).bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr();
    let serving = tokio::spawn(server.run(|_, _| async {}));
    let config = Config::default().keep_alive(None);
    let client = soon(Client::builder().config(config).connect(address)).await.unwrap();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1500) {
        soon(client.send("still here")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let ended = soon(client.ended()).await;
    assert!(matches!(&ended, Ending::PeerError(error) if error.to_string().contains("too long")), "{ended}");
    serving.abort();
}

#[tokio::test]
async fn a_connection_that_loses_its_place_is_told_so() {
    let config = TcpConfig { connections_max: 2, ..TcpConfig::default() };
    let (server, address) = listening(config).await;
    let first = connect_from([127, 0, 0, 66], address).await.unwrap();
    let evicted = server.accept().await.unwrap();
    let _second = connect_from([127, 0, 0, 66], address).await.unwrap();
    let _kept = server.accept().await.unwrap();
    let _third = TcpStream::connect(address).await.unwrap();
    let _served = soon(server.accept()).await.unwrap();
    let (heard, error) = soon(end_of(evicted, first)).await;
    assert!(heard.contains("busy"), "{heard}");
    assert!(error.to_string().contains("too many connections"), "{error}");
}

/// Programs of version 0.2 may connect and listen: as long as there is room, they stay; and where
/// there is none, those of one address wait for each other.
#[tokio::test]
async fn silent_clients_stay_and_others_wait_where_nobody_takes_more_than_its_share() {
    let config = TcpConfig { connections_max: 1, ..TcpConfig::default() };
    let (server, address) = listening(config).await;
    let mut first = TcpStream::connect(address).await.unwrap();
    let mut connection = server.accept().await.unwrap();
    first.write_all(&encode_frame(&data(1)).unwrap()).await.unwrap();
    soon(connection.recv()).await.unwrap().unwrap();
    let _second = TcpStream::connect(address).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(1500), server.accept()).await.is_err());
    connection.send(data(1)).await.unwrap();
    drop(connection);
    soon(server.accept()).await.unwrap();
}

#[tokio::test]
async fn an_address_has_so_many_connections_and_no_more() {
    let config = TcpConfig { connections_per_address: 2, ..TcpConfig::default() };
    let (server, address) = listening(config).await;
    let mut held = Vec::new();
    for n in 0..3 {
        let mut stream = connect_from([127, 0, 0, 66], address).await.unwrap();
        stream.write_all(&encode_frame(&data(1)).unwrap()).await.unwrap();
        if n < 2 {
            let mut connection = soon(server.accept()).await.unwrap();
            soon(connection.recv()).await.unwrap().unwrap();
            held.push(connection);
        }
        std::mem::forget(stream);
    }
    assert!(tokio::time::timeout(Duration::from_millis(300), server.accept()).await.is_err());
    // Others are served past the one that waits.
    let _other = TcpStream::connect(address).await.unwrap();
    assert_eq!(soon(server.accept()).await.unwrap().peer_addr().ip(), IpAddr::from([127, 0, 0, 1]));
    held.pop();
    assert_eq!(soon(server.accept()).await.unwrap().peer_addr().ip(), IpAddr::from([127, 0, 0, 66]));
}

/// Times that no clock reaches are never over.
#[tokio::test]
async fn the_longest_times_are_never_over() {
    let longest = Some(Duration::MAX);
    let config = TcpConfig {
        first_frame_timeout: longest,
        idle_timeout: longest,
        write_timeout: longest,
        ..TcpConfig::default()
    };
    let (server, address) = listening(config.clone()).await;
    let mut client = VstpTcpClient::connect_with_config(&address.to_string(), config).await.unwrap();
    let mut connection = soon(server.accept()).await.unwrap();
    for len in [1, 1 << 20] {
        let (sent, received) = soon(async { tokio::join!(client.send(data(len)), connection.recv()) }).await;
        sent.unwrap();
        assert_eq!(received.unwrap().unwrap().payload.len(), len);
    }
    // One that cannot be written at once.
    let write = async { while connection.send(data(1 << 20)).await.is_ok() {} };
    assert!(tokio::time::timeout(Duration::from_millis(100), write).await.is_err());
}

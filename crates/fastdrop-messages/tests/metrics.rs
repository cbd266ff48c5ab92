//! Counts of servers and clients, by each protocol and transport.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use fastdrop_messages::cnp::{Client, Server};
use fastdrop_messages::vstp::tcp::TcpConfig;
use fastdrop_messages::vstp::{
    Frame, FrameType, VstpTcpClient, VstpTcpServer, VstpUdpClient, VstpUdpServer, encode_frame,
};
use fastdrop_messages::{Counts, Metrics};
use std::time::Duration;
use tokio::net::{TcpStream, UdpSocket};

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("in time")
}

/// Waits for counts that follow from what has happened, in a task that nobody waits for.
async fn until(metrics: &Metrics, reached: impl Fn(&Counts) -> bool) -> Counts {
    soon(async {
        loop {
            let counts = metrics.counts();
            if reached(&counts) {
                return counts;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

fn data(len: usize) -> Frame {
    Frame::new(FrameType::Data).with_payload(vec![7; len])
}

#[tokio::test]
async fn vstp_by_tcp_counts_connections_frames_and_bytes_at_both_ends() {
    let (of_server, of_client) = (Metrics::default(), Metrics::default());
    let config = TcpConfig { metrics: of_server.clone(), connections_max: 2, ..TcpConfig::default() };
    let server = VstpTcpServer::bind_with_config("127.0.0.1:0", config).await.unwrap();
    assert_eq!(server.metrics().counts(), Counts::default());
    let address = server.local_addr().unwrap().to_string();
    let config = TcpConfig { metrics: of_client.clone(), ..TcpConfig::default() };
    let mut client = VstpTcpClient::connect_with_config(&address, config).await.unwrap();
    let mut connection = server.accept().await.unwrap();
    let sizes = [0, 10, 100_000];
    for size in sizes {
        client.send(data(size)).await.unwrap();
        soon(connection.recv()).await.unwrap().unwrap();
    }
    connection.send(data(50)).await.unwrap();
    soon(client.recv()).await.unwrap().unwrap();
    let bytes: usize = sizes.iter().map(|size| encode_frame(&data(*size)).unwrap().len()).sum();
    let (server_counts, client_counts) = (of_server.counts(), of_client.counts());
    assert_eq!((server_counts.joined, server_counts.gone, server_counts.messages_received), (1, 0, 3));
    assert_eq!((client_counts.joined, client_counts.messages_received), (1, 1));
    assert_eq!(server_counts.bytes_received, bytes as u64);
    assert_eq!(client_counts.bytes_sent, bytes as u64);
    assert_eq!(server_counts.bytes_sent, client_counts.bytes_received);
    // One that has said nothing gives its place to another of the same address.
    let _silent = TcpStream::connect(&address).await.unwrap();
    let mut silent = soon(server.accept()).await.unwrap();
    let _other = TcpStream::connect(&address).await.unwrap();
    let _place = soon(server.accept()).await.unwrap();
    soon(silent.recv()).await.unwrap_err();
    drop((silent, connection, client));
    let counts = until(&of_server, |counts| counts.gone == 2).await;
    assert_eq!((counts.joined, counts.refused, counts.timed_out), (3, 1, 0));
    assert_eq!(until(&of_client, |counts| counts.gone == 1).await.joined, 1);
}

#[tokio::test]
async fn vstp_by_udp_counts_datagrams_messages_and_their_outcomes() {
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let to = server.local_addr().unwrap();
    let client = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    let (of_server, of_client) = (server.metrics(), client.metrics());
    let receiving = tokio::spawn(async move {
        for _ in 0..3 {
            soon(server.recv()).await.unwrap();
        }
        server
    });
    client.send_with_ack(data(10), to).await.unwrap();
    client.send_with_ack(data(50_000), to).await.unwrap();
    client.send(data(10), to).await.unwrap();
    let server = receiving.await.unwrap();
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    client.send_with_ack(data(10), closed).await.unwrap_err();
    let counts = of_client.counts();
    assert_eq!((counts.messages_sent, counts.messages_failed, counts.messages_received), (3, 1, 0));
    let received = until(&of_server, |counts| counts.messages_received == 3).await;
    assert!(counts.bytes_sent > 50_000 && counts.packets_sent > 3, "{counts:?}");
    assert!(received.bytes_received > 50_000 && received.packets_received > 3, "{received:?}");
    let noise = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    noise.send_to(b"VT is no frame", to).await.unwrap();
    assert_eq!(until(&of_server, |counts| counts.malformed > 0).await.malformed, 1);
    drop(server);
}

#[tokio::test]
async fn cnp_counts_sessions_messages_and_packets_at_both_ends() {
    for udp in [false, true] {
        let (of_server, of_client) = (Metrics::default(), Metrics::default());
        let server = Server::builder().tcp(!udp).udp(udp).metrics(of_server.clone());
        let server = server.bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr();
        let serving = tokio::spawn(server.run(|_, _| async {}));
        let builder = Client::builder().metrics(of_client.clone());
        let client = soon(if udp { builder.udp() } else { builder }.connect(address)).await.unwrap();
        for len in [1, 1000, 100_000] {
            soon(client.send(vec![7; len])).await.unwrap();
        }
        let counts = until(&of_server, |counts| counts.messages_received == 3).await;
        assert_eq!((counts.joined, counts.gone), (1, 0), "udp: {udp}");
        assert!(counts.bytes_received > 101_000 && counts.packets_received > 3, "udp: {udp}: {counts:?}");
        soon(client.close()).await.unwrap();
        drop(client);
        let counts = until(&of_client, |counts| counts.gone == 1).await;
        assert_eq!((counts.joined, counts.messages_sent), (1, 3), "udp: {udp}");
        assert!(counts.bytes_sent > 101_000 && counts.packets_sent > 3, "udp: {udp}: {counts:?}");
        until(&of_server, |counts| counts.gone == 1).await;
        serving.abort();
    }
}

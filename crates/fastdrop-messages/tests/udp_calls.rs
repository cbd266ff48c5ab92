//! Calls over UDP: each caller gets its own reply, whatever the way loses or doubles.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use fastdrop_messages::vstp::{
    Call, Frame, FrameType, VstpClient, VstpError, VstpServer, VstpUdpClient, VstpUdpServer,
};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::sync::{Semaphore, mpsc, oneshot};

const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

fn data(payload: &[u8]) -> Frame {
    Frame::new(FrameType::Data).with_payload(payload.to_vec())
}

async fn serve<F, Fut>(handler: F) -> SocketAddr
where
    F: Fn(Call) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Frame, VstpError>> + Send + 'static,
{
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    tokio::spawn(server.serve_calls(std::future::pending(), handler));
    address
}

async fn client() -> Arc<VstpUdpClient> {
    Arc::new(VstpUdpClient::bind("127.0.0.1:0").await.unwrap())
}

fn number(frame: &Frame) -> u32 {
    u32::from_be_bytes(frame.payload[..4].try_into().unwrap())
}

/// Calls with each number, from so many tasks, and looks at every reply.
async fn call_all(client: &Arc<VstpUdpClient>, to: SocketAddr, callers: u32, calls: u32) {
    let callers = (0..callers).map(|caller| {
        let client = Arc::clone(client);
        tokio::spawn(async move {
            for n in (caller..calls).step_by(callers as usize) {
                let reply = client.call_within(data(&n.to_be_bytes()), to, PATIENCE).await.unwrap();
                assert_eq!(number(&reply), n + 1);
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        soon(caller).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_127_twenty_thousand_calls_by_udp_of_64_callers_get_their_own_replies() {
    let to = serve(|call| async move {
        let n = number(&call.into_frame());
        // Handlers take turns of different lengths, so that replies come in another order.
        for _ in 0..n.wrapping_mul(2_654_435_761) % 50 {
            tokio::task::yield_now().await;
        }
        Ok(data(&(n + 1).to_be_bytes()))
    })
    .await;
    let client = client().await;
    call_all(&client, to, 64, 20_000).await;
    assert_eq!(client.unknown_replies(), 0);
}

/// Passes datagrams on between one client and a server, and loses, doubles and delays some.
async fn bad_way(server: SocketAddr) -> SocketAddr {
    let front = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = front.local_addr().unwrap();
    let back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    tokio::spawn(async move {
        let (mut buffer, mut count, mut client) = (vec![0; 65_536], 0_u64, None);
        let mut late: Option<(bool, Vec<u8>)> = None;
        loop {
            let mut other = vec![0; 65_536];
            let (forth, bytes) = tokio::select! {
                got = front.recv_from(&mut buffer) => {
                    let (len, from) = got.unwrap();
                    client = Some(from);
                    (true, buffer[..len].to_vec())
                }
                got = back.recv_from(&mut other) => {
                    other.truncate(got.unwrap().0);
                    (false, other)
                }
            };
            count += 1;
            let times = match count.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 60 {
                0 | 1 => 0,
                2 => 2,
                3 => {
                    let before = late.replace((forth, bytes));
                    let Some((forth, bytes)) = before else { continue };
                    send(&front, &back, forth, &bytes, client, server).await;
                    continue;
                }
                _ => 1,
            };
            for _ in 0..times {
                send(&front, &back, forth, &bytes, client, server).await;
            }
        }
    });
    address
}

async fn send(
    front: &UdpSocket,
    back: &UdpSocket,
    forth: bool,
    bytes: &[u8],
    client: Option<SocketAddr>,
    server: SocketAddr,
) {
    match client {
        _ if forth => _ = back.send_to(bytes, server).await,
        Some(client) => _ = front.send_to(bytes, client).await,
        None => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_127_on_a_bad_way_each_call_is_handled_once_and_has_its_reply() {
    let handled = Arc::new(Mutex::new(HashSet::new()));
    let seen = Arc::clone(&handled);
    let server = serve(move |call| {
        let n = number(&call.into_frame());
        assert!(seen.lock().unwrap().insert(n), "{n} was handled twice");
        async move { Ok(data(&(n + 1).to_be_bytes())) }
    })
    .await;
    let to = bad_way(server).await;
    call_all(&client().await, to, 16, 400).await;
    assert_eq!(handled.lock().unwrap().len(), 400);
}

/// Tells when it is dropped.
struct Dropped(mpsc::UnboundedSender<()>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[tokio::test]
async fn case_127_a_call_by_udp_that_is_given_up_or_late_ends_its_handler() {
    let (begins, mut began) = mpsc::unbounded_channel();
    let (drops, mut dropped) = mpsc::unbounded_channel();
    let to = serve(move |call| {
        let (begins, dropped) = (begins.clone(), Dropped(drops.clone()));
        async move {
            begins.send(call.remaining()).unwrap();
            let _dropped = dropped;
            std::future::pending().await
        }
    })
    .await;
    let client = client().await;
    // Dropped by its caller.
    let calling = tokio::spawn({
        let client = Arc::clone(&client);
        async move { client.call(data(b"never"), to).await }
    });
    let remaining = soon(began.recv()).await.unwrap().unwrap();
    assert!(remaining <= VstpUdpClient::CALL_TIME && !remaining.is_zero());
    calling.abort();
    soon(dropped.recv()).await.unwrap();
    // Late.
    let late = client.call_within(data(b"late"), to, Duration::from_millis(200)).await;
    assert!(matches!(late, Err(VstpError::Timeout)), "{late:?}");
    soon(dropped.recv()).await.unwrap();
}

#[tokio::test]
async fn case_127_whatever_goes_wrong_with_a_call_by_udp_its_caller_is_told() {
    let to = serve(|call| async move {
        match &call.frame().payload[..] {
            b"error" => Err(VstpError::Protocol("unlucky".into())),
            b"panic" => panic!("as it should"),
            b"large" => Ok(data(&vec![7; 3_000_000])),
            b"large error" => {
                let error = Frame::new(FrameType::Err).with_header("reason", "unlucky");
                Ok(error.with_payload(vec![7; 50_000]))
            }
            b"other" => Ok(Frame::new(FrameType::Ping)),
            b"headers" => {
                let long = "x".repeat(255);
                Ok((0..255).fold(data(b""), |frame, _| frame.with_header(&long, &long)))
            }
            other => Ok(data(other)),
        }
    })
    .await;
    let client = client().await;
    let said = |said: Result<Frame, VstpError>| match said {
        Err(VstpError::ServerError(reason)) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(said(soon(client.call(data(b"error"), to)).await), "unlucky");
    assert_eq!(said(soon(client.call(data(b"large error"), to)).await), "unlucky");
    assert!(said(soon(client.call(data(b"other"), to)).await).contains("neither"));
    assert_eq!(said(soon(client.call(data(b"panic"), to)).await), "the handler has failed");
    assert!(said(soon(client.call(data(b"headers"), to)).await).contains("header"));
    assert_eq!(soon(client.call(data(b"large"), to)).await.unwrap().payload.len(), 3_000_000);
    let large = vec![3; 2_000_000];
    assert_eq!(soon(client.call(data(&large), to)).await.unwrap().payload, large);
    // Nobody listens there.
    let closed = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = soon(client.call(data(b"x"), closed)).await.unwrap_err();
    assert!(matches!(&error, VstpError::Io(error) if error.kind() == std::io::ErrorKind::ConnectionRefused));
}

#[tokio::test]
async fn case_127_calls_by_udp_beyond_the_bound_wait_for_their_turn() {
    let (begins, mut began) = mpsc::unbounded_channel();
    let go = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&go);
    let to = serve(move |call| {
        let (begins, gate) = (begins.clone(), Arc::clone(&gate));
        async move {
            begins.send(()).unwrap();
            gate.acquire().await.unwrap().forget();
            // As it came, with its number.
            Ok(call.into_frame())
        }
    })
    .await;
    let client = client().await;
    let calls = (0..1_500_u32).map(|n| {
        let client = Arc::clone(&client);
        tokio::spawn(async move { client.call_within(data(&n.to_be_bytes()), to, PATIENCE).await })
    });
    let calls: Vec<_> = calls.collect();
    for _ in 0..1_024 {
        soon(began.recv()).await.unwrap();
    }
    assert!(began.try_recv().is_err());
    go.add_permits(1_500);
    for (n, call) in calls.into_iter().enumerate() {
        assert_eq!(number(&soon(call).await.unwrap().unwrap()), u32::try_from(n).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_127_clones_of_an_easy_client_by_udp_call_and_receive_beside_each_other() {
    let server = VstpServer::bind_udp("127.0.0.1:0").await.unwrap();
    let to = server.local_addr().unwrap();
    let (end, ended) = oneshot::channel::<()>();
    let serving =
        tokio::spawn(server.serve_until(async { ended.await.unwrap_or(()) }, |n: u32| async move {
            if n == 13 { Err(VstpError::Protocol("unlucky".into())) } else { Ok(n + 1) }
        }));
    let client = VstpClient::connect_udp(to.to_string()).await.unwrap();
    let callers = (0..64_u32).map(|n| {
        let client = client.clone();
        tokio::spawn(async move {
            for n in (0..10).map(|round| 100 * round + n + 14) {
                assert_eq!(client.call::<_, u32>(n).await.unwrap(), n + 1);
            }
        })
    });
    let callers: Vec<_> = callers.collect();
    client.send(1_000_000_u32).await.unwrap();
    assert_eq!(soon(client.receive::<u32>()).await.unwrap(), 1_000_001);
    for caller in callers {
        soon(caller).await.unwrap();
    }
    let error = soon(client.call::<_, u32>(13_u32)).await.unwrap_err();
    assert!(matches!(&error, VstpError::ServerError(reason) if reason.contains("unlucky")), "{error}");
    end.send(()).unwrap();
    assert_eq!(soon(serving).await.unwrap().unwrap().unhandled, 0);
}

#[tokio::test]
async fn case_128_a_server_by_udp_that_ends_replies_to_the_calls_that_it_has_begun() {
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let to = server.local_addr().unwrap();
    let (begins, mut began) = mpsc::unbounded_channel();
    let go = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&go);
    let (end, ended) = oneshot::channel::<()>();
    let serving = tokio::spawn(server.serve_calls(async { ended.await.unwrap_or(()) }, move |call| {
        let (begins, gate) = (begins.clone(), Arc::clone(&gate));
        async move {
            begins.send(()).unwrap();
            gate.acquire().await.unwrap().forget();
            Ok(call.into_frame())
        }
    }));
    let client = client().await;
    let begun = tokio::spawn({
        let client = Arc::clone(&client);
        async move { client.call(data(b"begun"), to).await }
    });
    soon(began.recv()).await.unwrap();
    end.send(()).unwrap();
    let late = client.call_within(data(b"late"), to, Duration::from_millis(300)).await;
    assert!(late.is_err() && began.try_recv().is_err());
    go.add_permits(1);
    assert_eq!(soon(begun).await.unwrap().unwrap().payload, b"begun");
    assert_eq!(soon(serving).await.unwrap().unwrap().unhandled, 0);
}

/// A frame that is sent back as it came, with its number and its wish for an acknowledgement, is a
/// frame like any other.
#[tokio::test]
async fn what_is_sent_back_as_it_came_is_acknowledged() {
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let to = server.local_addr().unwrap();
    let client = client().await;
    for len in [1, 5_000] {
        let sent = data(&vec![5; len]);
        let (sending, back) = (client.send_with_ack(sent.clone(), to), async {
            let (frame, from) = server.recv().await.unwrap();
            server.send_with_ack(frame, from).await
        });
        let (sent_there, sent_back, got) =
            soon(async { tokio::join!(sending, back, client.recv_bytes()) }).await;
        sent_there.unwrap();
        assert!(matches!(sent_back, Ok(())), "{sent_back:?}");
        assert_eq!(got.unwrap().0.payload, sent.payload);
    }
}

/// An error is a reply like any other, and is not sent again and again.
#[tokio::test]
async fn the_reply_that_is_an_error_is_acknowledged() {
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let (to, metrics) = (server.local_addr().unwrap(), server.metrics());
    let fail = |_| async { Err(VstpError::Protocol("unlucky".into())) };
    tokio::spawn(server.serve_calls(std::future::pending(), fail));
    assert!(soon(client().await.call(data(b"x"), to)).await.is_err());
    soon(async {
        while metrics.counts().messages_sent == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

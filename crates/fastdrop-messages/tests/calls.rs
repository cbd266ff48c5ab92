//! Calls over VSTP: each caller gets its own reply, and handlers of calls that are over end.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use fastdrop_messages::vstp::tcp::{Session, TcpConfig};
use fastdrop_messages::vstp::udp::UdpConfig;
use fastdrop_messages::vstp::{
    Call, Flags, Frame, FrameType, VstpClient, VstpError, VstpServer, VstpTcpClient, VstpTcpServer,
    VstpUdpClient, VstpUdpServer,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};

const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

fn data(payload: &[u8]) -> Frame {
    Frame::new(FrameType::Data).with_payload(payload.to_vec())
}

async fn serve<F, Fut>(config: TcpConfig, handler: F) -> Session
where
    F: Fn(Call) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Frame, VstpError>> + Send + 'static,
{
    let server = VstpTcpServer::bind_with_config("127.0.0.1:0", config).await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    tokio::spawn(server.serve_calls(std::future::pending(), handler));
    VstpTcpClient::connect(&address).await.unwrap().into_session()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_127_twenty_thousand_calls_of_64_callers_get_their_own_replies() {
    const CALLERS: u32 = 64;
    const CALLS: u32 = 20_000;
    let session = serve(TcpConfig::default(), |call| async move {
        let number = u32::from_be_bytes(call.frame().payload[..].try_into().unwrap());
        // Handlers take turns of different lengths, so that replies come in another order.
        for _ in 0..number.wrapping_mul(2_654_435_761) % 50 {
            tokio::task::yield_now().await;
        }
        Ok(data(&(number + 1).to_be_bytes()))
    })
    .await;
    let callers = (0..CALLERS).map(|caller| {
        let session = session.clone();
        tokio::spawn(async move {
            for number in (caller..CALLS).step_by(CALLERS as usize) {
                let reply = session.call(data(&number.to_be_bytes())).await.unwrap();
                assert_eq!(reply.payload, (number + 1).to_be_bytes());
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        soon(caller).await.unwrap();
    }
    assert_eq!(session.unknown_replies(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_127_clones_of_an_easy_client_call_and_receive_beside_each_other() {
    let server = VstpServer::bind_tcp("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    tokio::spawn(server.serve(|n: u32| async move {
        for _ in 0..n % 7 {
            tokio::task::yield_now().await;
        }
        if n == 13 { Err(VstpError::Protocol("unlucky".into())) } else { Ok(n + 1) }
    }));
    let client = VstpClient::connect_tcp(address).await.unwrap();
    let callers = (0..64_u32).map(|n| {
        let client = client.clone();
        tokio::spawn(async move {
            for round in 0..20 {
                let n = 100 * round + n + 14;
                assert_eq!(client.call::<_, u32>(n).await.unwrap(), n + 1);
            }
        })
    });
    let callers: Vec<_> = callers.collect();
    // What is no reply to a call goes to whoever receives, and in order.
    for n in 1_000..1_100_u32 {
        client.send(n).await.unwrap();
    }
    for n in 1_000..1_100_u32 {
        assert_eq!(soon(client.receive::<u32>()).await.unwrap(), n + 1);
    }
    for caller in callers {
        soon(caller).await.unwrap();
    }
    let error = soon(client.call::<_, u32>(13_u32)).await.unwrap_err();
    assert!(matches!(&error, VstpError::ServerError(reason) if reason.contains("unlucky")), "{error}");
}

/// Tells when it is dropped.
struct Dropped(mpsc::UnboundedSender<()>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[tokio::test]
async fn case_127_a_call_that_is_dropped_ends_its_handler_and_its_late_reply_is_nobodys() {
    let (begins, mut began) = mpsc::unbounded_channel();
    let (drops, mut dropped) = mpsc::unbounded_channel();
    let session = serve(TcpConfig::default(), move |call| {
        let (begins, dropped) = (begins.clone(), Dropped(drops.clone()));
        async move {
            if call.frame().payload.is_empty() {
                return Ok(data(b"quick"));
            }
            begins.send(call.remaining()).unwrap();
            let _dropped = dropped;
            std::future::pending().await
        }
    })
    .await;
    while let Ok(()) = dropped.try_recv() {}
    // Dropped by its caller.
    let calling = tokio::spawn({
        let session = session.clone();
        async move { session.call(data(b"never")).await }
    });
    let remaining = soon(began.recv()).await.unwrap().unwrap();
    assert!(remaining <= Session::CALL_TIME && remaining > Session::CALL_TIME / 2, "{remaining:?}");
    calling.abort();
    soon(dropped.recv()).await.unwrap();
    // Its time is over.
    let late = session.call_within(data(b"never"), Duration::from_millis(50)).await;
    assert!(matches!(late, Err(VstpError::Timeout)), "{late:?}");
    soon(began.recv()).await.unwrap();
    soon(dropped.recv()).await.unwrap();
    assert_eq!(soon(session.call(data(b""))).await.unwrap().payload, b"quick");
    // The server may have said at the same time that it is late.
    assert!(session.unknown_replies() <= 1);
}

#[tokio::test]
async fn case_127_replies_of_unknown_calls_are_counted_and_nobody_receives_them() {
    let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let session = VstpTcpClient::connect(&address).await.unwrap().into_session();
    let mut connection = server.accept().await.unwrap();
    for n in 0..3 {
        connection.send(data(b"stray").with_header("vstp-reply", &n.to_string())).await.unwrap();
    }
    connection.send(data(b"plain")).await.unwrap();
    assert_eq!(soon(session.recv()).await.unwrap().unwrap().payload, b"plain");
    assert_eq!(session.unknown_replies(), 3);
}

#[tokio::test]
async fn case_127_a_server_that_is_gone_ends_every_call_that_waits() {
    let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let session = VstpTcpClient::connect(&address).await.unwrap().into_session();
    let mut connection = server.accept().await.unwrap();
    let calls: Vec<_> = (0..64)
        .map(|_| {
            let session = session.clone();
            tokio::spawn(async move { session.call(data(b"?")).await })
        })
        .collect();
    for _ in 0..64 {
        assert!(soon(connection.recv()).await.unwrap().unwrap().get_header("vstp-call").is_some());
    }
    drop(connection);
    for call in calls {
        let ended = soon(call).await.unwrap();
        assert!(matches!(ended, Err(VstpError::ConnectionClosed)), "{ended:?}");
    }
}

#[tokio::test]
async fn case_127_calls_beyond_the_bound_wait_here_and_are_refused_there() {
    // Here: more callers than calls that may be outstanding.
    let running = Arc::new(Semaphore::new(0));
    let handler = {
        let running = Arc::clone(&running);
        move |_| {
            let running = Arc::clone(&running);
            async move {
                running.acquire().await.unwrap().forget();
                Ok(data(b"done"))
            }
        }
    };
    let server =
        VstpTcpServer::bind_with_config("127.0.0.1:0", TcpConfig { calls_max: 4, ..TcpConfig::default() });
    let server = server.await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    tokio::spawn(server.serve_calls(std::future::pending(), handler));
    let few = TcpConfig { calls_max: 4, ..TcpConfig::default() };
    let session = VstpTcpClient::connect_with_config(&address, few).await.unwrap().into_session();
    let calls: Vec<_> = (0..32)
        .map(|_| {
            let session = session.clone();
            tokio::spawn(async move { session.call(data(b"?")).await })
        })
        .collect();
    running.add_permits(32);
    for call in calls {
        assert_eq!(soon(call).await.unwrap().unwrap().payload, b"done");
    }
    // There: a client that knows no such bound.
    let session = VstpTcpClient::connect(&address).await.unwrap().into_session();
    let calls: Vec<_> = (0..5)
        .map(|_| {
            let session = session.clone();
            tokio::spawn(async move { session.call(data(b"?")).await })
        })
        .collect();
    let mut ends = tokio::task::JoinSet::new();
    calls.into_iter().for_each(|call| drop(ends.spawn(call)));
    let refused = soon(ends.join_next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(&refused, Err(VstpError::ServerError(why)) if why.contains("4 calls")), "{refused:?}");
    running.add_permits(4);
    while let Some(call) = soon(ends.join_next()).await {
        call.unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
async fn case_128_a_server_that_ends_replies_to_the_calls_that_it_has_begun() {
    let (begins, mut began) = mpsc::unbounded_channel();
    let (go, goes) = oneshot::channel::<()>();
    let goes = Arc::new(tokio::sync::Mutex::new(Some(goes)));
    let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let (end, ended) = oneshot::channel::<()>();
    let serving = tokio::spawn(server.serve_calls(async { ended.await.unwrap_or(()) }, move |_| {
        let (begins, goes) = (begins.clone(), Arc::clone(&goes));
        async move {
            begins.send(()).unwrap();
            if let Some(goes) = goes.lock().await.take() {
                goes.await.unwrap();
            }
            Ok(data(b"done"))
        }
    }));
    let session = VstpTcpClient::connect(&address).await.unwrap().into_session();
    let calling = tokio::spawn({
        let session = session.clone();
        async move { session.call(data(b"?")).await }
    });
    soon(began.recv()).await.unwrap();
    end.send(()).unwrap();
    go.send(()).unwrap();
    assert_eq!(soon(calling).await.unwrap().unwrap().payload, b"done");
    soon(serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn case_128_what_was_acknowledged_and_not_handled_is_reported() {
    for (finishes, unhandled) in [(true, 0), (false, 1)] {
        // As long as it takes, where the handler finishes.
        let drain = if finishes { PATIENCE } else { Duration::from_millis(100) };
        let config = TcpConfig { drain, ..TcpConfig::default() };
        let server = VstpTcpServer::bind_with_config("127.0.0.1:0", config).await.unwrap();
        let address = server.local_addr().unwrap().to_string();
        let (begins, mut began) = mpsc::unbounded_channel();
        let (go, (end, ended)) = (Arc::new(Semaphore::new(0)), oneshot::channel::<()>());
        let ended = async { ended.await.unwrap_or(()) };
        let gate = Arc::clone(&go);
        let running = tokio::spawn(server.run_until_drained(ended, move |_, frame| {
            let (begins, gate) = (begins.clone(), Arc::clone(&gate));
            async move {
                begins.send(frame).unwrap();
                gate.acquire().await.unwrap().forget();
            }
        }));
        let mut client = VstpTcpClient::connect(&address).await.unwrap();
        soon(client.send_with_ack(data(b"1"))).await.unwrap();
        soon(began.recv()).await.unwrap();
        end.send(()).unwrap();
        go.add_permits(usize::from(finishes));
        let drained = soon(running).await.unwrap().unwrap();
        assert_eq!(drained.unhandled, unhandled);
        // Nothing is acknowledged any more.
        assert!(soon(client.send_with_ack(data(b"2"))).await.is_err());
        assert!(began.try_recv().is_err());
    }
}

#[tokio::test]
async fn case_128_by_udp_what_was_acknowledged_and_not_handled_is_reported() {
    for (finishes, unhandled) in [(true, 0), (false, 3)] {
        let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
        let to = server.local_addr().unwrap();
        let (begins, mut began) = mpsc::unbounded_channel();
        let (go, (end, ended)) = (Arc::new(Semaphore::new(0)), oneshot::channel::<()>());
        let ended = async { ended.await.unwrap_or(()) };
        let drain = if finishes { PATIENCE } else { Duration::from_millis(100) };
        let gate = Arc::clone(&go);
        let running = tokio::spawn(server.run_until_drained(ended, drain, move |_, frame| {
            let (begins, gate) = (begins.clone(), Arc::clone(&gate));
            async move {
                begins.send(frame).unwrap();
                gate.acquire().await.unwrap().forget();
            }
        }));
        let client = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
        for _ in 0..3 {
            soon(client.send_with_ack(data(b"1"), to)).await.unwrap();
            soon(began.recv()).await.unwrap();
        }
        end.send(()).unwrap();
        go.add_permits(if finishes { 3 } else { 0 });
        assert_eq!(soon(running).await.unwrap().unwrap().unhandled, unhandled);
        // Nothing is acknowledged any more.
        let ack_timeout = Duration::from_millis(500);
        let config = UdpConfig { max_retries: 0, ack_timeout, ..UdpConfig::default() };
        let impatient = VstpUdpClient::bind_with_config("127.0.0.1:0", config).await.unwrap();
        assert!(soon(impatient.send_with_ack(data(b"2"), to)).await.is_err());
        assert!(began.try_recv().is_err());
    }
}

/// Frames that are no calls wait for their turn in a queue, which is no handler.
#[tokio::test]
async fn case_128_a_frame_that_is_no_call_is_acknowledged_when_its_handler_begins() {
    let (begins, mut began) = mpsc::unbounded_channel();
    let go = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&go);
    let server = VstpTcpServer::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let (end, ended) = oneshot::channel::<()>();
    let serving = tokio::spawn(server.serve_calls(async { ended.await.unwrap_or(()) }, move |call| {
        let (begins, gate) = (begins.clone(), Arc::clone(&gate));
        async move {
            if call.frame().payload.is_empty() {
                return Ok(data(b"reply"));
            }
            begins.send(call.frame().payload.to_vec()).unwrap();
            gate.acquire().await.unwrap().forget();
            Ok(data(b"done"))
        }
    }));
    let mut client = VstpTcpClient::connect(&address).await.unwrap();
    for n in ["1", "2", "3", "4", "5"] {
        let frame = data(n.as_bytes()).with_flag(Flags::REQ_ACK).with_header("msg-id", n);
        client.send(frame).await.unwrap();
    }
    soon(began.recv()).await.unwrap();
    // When this has its reply, all the others have been taken.
    client.send(data(b"").with_header("vstp-call", "9")).await.unwrap();
    let mut acknowledged = Vec::new();
    loop {
        let frame = soon(client.recv()).await.unwrap().unwrap();
        match frame.typ {
            FrameType::Ack => acknowledged.push(frame.get_header("msg-id").unwrap().to_owned()),
            _ => break assert_eq!(frame.get_header("vstp-reply"), Some("9")),
        }
    }
    assert_eq!(acknowledged, ["1"]);
    // A server that ends acknowledges nothing more.
    end.send(()).unwrap();
    go.add_permits(5);
    while let Some(frame) = soon(client.recv()).await.unwrap() {
        match frame.typ {
            FrameType::Ack => acknowledged.push(frame.get_header("msg-id").unwrap().to_owned()),
            FrameType::Data => assert_eq!(frame.payload, b"done"),
            typ => assert_eq!(typ, FrameType::Bye),
        }
    }
    soon(serving).await.unwrap().unwrap();
    let begun = 1 + std::iter::from_fn(|| began.try_recv().ok()).count();
    // The word may have been heard later than the next turn came; each turn is one that is told.
    assert_eq!(acknowledged.len(), begun);
}

#[tokio::test]
async fn case_93_a_handler_that_panics_on_a_frame_that_is_no_call_ends_its_session_in_words() {
    let session = serve(TcpConfig::default(), |call| async move {
        assert!(call.frame().payload[..] != b"panic"[..], "as it should");
        Ok(data(b"fine"))
    })
    .await;
    soon(session.send(data(b"first"))).await.unwrap();
    assert_eq!(soon(session.recv()).await.unwrap().unwrap().payload, b"fine");
    soon(session.send(data(b"panic"))).await.unwrap();
    let told = soon(session.recv()).await.unwrap().unwrap();
    assert_eq!((told.typ, told.get_header("code")), (FrameType::Err, Some("unhandled")));
    let error = soon(session.send_with_ack(data(b"another"), 2 * PATIENCE)).await.unwrap_err();
    assert!(!matches!(error, VstpError::Timeout), "{error}");
}

//! Calls of CNP: each has its own reply, whatever else is under way.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use bytes::Bytes;
use fastdrop_messages::cnp::{
    CallError, CallRefusal, Client, ClientBuilder, Config, Error, Request, Server, Session,
};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

const PATIENCE: Duration = Duration::from_secs(120);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

fn builder(udp: bool) -> ClientBuilder {
    if udp { Client::builder().udp() } else { Client::builder() }
}

async fn client(udp: bool, server: SocketAddr) -> Client {
    soon(builder(udp).connect(server)).await.unwrap()
}

/// A client and the server's end of its session.
async fn ends(udp: bool, config: Config) -> (Client, Session, Server) {
    let mut server = Server::builder().config(config).bind("127.0.0.1:0").await.unwrap();
    let client = client(udp, server.local_addr()).await;
    let session = soon(server.accept()).await.unwrap();
    (client, session, server)
}

async fn echo(request: Request) -> Result<Bytes, String> {
    Ok(request.body)
}

/// Numbers that are random enough to shuffle what happens.
fn mixed(n: u64) -> u64 {
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_127_twenty_thousand_calls_64_at_once_have_each_their_own_reply() {
    for udp in [false, true] {
        let server = Server::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr();
        tokio::spawn(server.run_calls(64, |request| async move {
            let n = u64::from_be_bytes(request.body[..].try_into().unwrap());
            match mixed(n) % 4 {
                0 => {}
                1 => tokio::task::yield_now().await,
                _ => tokio::time::sleep(Duration::from_micros(mixed(n) % 2000)).await,
            }
            Ok(Bytes::from(format!("the reply to {n}")))
        }));
        let client = client(udp, address).await;
        let next = Arc::new(AtomicUsize::new(0));
        let mut callers = JoinSet::new();
        for _ in 0..64 {
            let (session, next) = (Session::clone(&client), Arc::clone(&next));
            callers.spawn(async move {
                let mut own = 0;
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed) as u64;
                    if n >= 20_000 {
                        return own;
                    }
                    let reply = session.call(n.to_be_bytes().to_vec()).await.unwrap();
                    assert_eq!(reply, format!("the reply to {n}"));
                    own += 1;
                }
            });
        }
        let own: usize = soon(callers.join_all()).await.into_iter().sum();
        assert_eq!(own, 20_000, "udp: {udp}");
        soon(client.close()).await.unwrap();
    }
}

#[tokio::test]
async fn a_call_to_a_program_that_knows_none_is_an_error_before_anything_is_sent() {
    // A server of the first generation.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = oneshot::channel();
    tokio::spawn(async move {
        use fastdrop_proto::cnp::{Checksum, Seq, packet::append};
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut syn = vec![0; 4096];
        let _ = stream.read(&mut syn).await.unwrap();
        let mut answer = Vec::new();
        let ok = br#"{"status":"ok","session_id":"1","operation_mode":"burst","max_packet_size":1024}"#;
        append(&mut answer, 2, Seq(0), 0, &Checksum::Md5, ok);
        stream.write_all(&answer).await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        tell.send(rest).unwrap();
    });
    let old = soon(Client::connect(address)).await.unwrap();
    assert!(matches!(soon(old.call("x")).await, Err(CallError::NotKnown)));
    old.abort(fastdrop_messages::cnp::ErrorCode::Shutdown, "enough");
    let said = String::from_utf8_lossy(&soon(told).await.unwrap()).into_owned();
    assert!(said.contains("session_id") && !said.contains('x'), "{said}");
    // A FastDrop that was told to know none.
    for (ours, theirs) in [(None, Some(10)), (Some(10), None)] {
        let (config, other) = (Config::default().calls(ours), Config::default().calls(theirs));
        let mut server = Server::builder().config(other).bind("127.0.0.1:0").await.unwrap();
        let client = builder(false).config(config).connect(server.local_addr());
        let client = soon(client).await.unwrap();
        let session = soon(server.accept()).await.unwrap();
        assert!(matches!(soon(client.call("x")).await, Err(CallError::NotKnown)));
        assert!(matches!(soon(session.call("x")).await, Err(CallError::NotKnown)));
    }
}

#[tokio::test]
async fn a_deadline_travels_and_ends_the_handler() {
    for udp in [false, true] {
        let (client, session, _server) = ends(udp, Config::default()).await;
        let (tell, mut told) = mpsc::unbounded_channel();
        let serving = tokio::spawn(async move {
            let handler = move |request: Request| {
                let tell = tell.clone();
                async move {
                    struct Dropped(mpsc::UnboundedSender<Option<Duration>>);
                    impl Drop for Dropped {
                        fn drop(&mut self) {
                            self.0.send(None).unwrap();
                        }
                    }
                    let left = request.deadline.map(|at| at.saturating_duration_since(Instant::now()));
                    let _dropped = Dropped(tell.clone());
                    tell.send(Some(left.unwrap_or(Duration::MAX))).unwrap();
                    std::future::pending::<Result<Bytes, String>>().await
                }
            };
            session.serve_calls(8, handler).await;
        });
        let begin = Instant::now();
        let time = Duration::from_secs(3);
        let late = soon(client.call_within("x", time)).await;
        assert!(matches!(late, Err(CallError::Timeout)), "{late:?}");
        assert!(begin.elapsed() >= time);
        let left = soon(told.recv()).await.unwrap().unwrap();
        assert!(left <= time + Duration::from_millis(1) && left > Duration::from_millis(1), "{left:?}");
        assert_eq!(soon(told.recv()).await.unwrap(), None, "the handler is dropped");
        // Without a deadline: whoever gives up cancels.
        let call = tokio::spawn({
            let session = Session::clone(&client);
            async move { session.call("y").await }
        });
        assert_eq!(soon(told.recv()).await.unwrap(), Some(Duration::MAX));
        call.abort();
        assert_eq!(soon(told.recv()).await.unwrap(), None, "the handler is dropped");
        soon(client.close()).await.unwrap();
        soon(serving).await.unwrap();
    }
}

#[tokio::test]
async fn handlers_run_beside_each_other_up_to_their_bound_and_callers_up_to_what_was_agreed() {
    let (client, session, _server) = ends(false, Config::default().calls(Some(6))).await;
    assert_eq!(client.agreed().calls, Some(6));
    let running = Arc::new(AtomicUsize::new(0));
    let (most, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    tokio::spawn({
        let (most, go) = (Arc::clone(&most), Arc::clone(&go));
        async move {
            let handler = move |request: Request| {
                let (running, most, go) = (Arc::clone(&running), Arc::clone(&most), Arc::clone(&go));
                async move {
                    let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(now, Ordering::SeqCst);
                    go.acquire().await.unwrap().forget();
                    running.fetch_sub(1, Ordering::SeqCst);
                    Ok(request.body)
                }
            };
            session.serve_calls(3, handler).await;
        }
    });
    let mut callers = JoinSet::new();
    for n in 0..40_u8 {
        let session = Session::clone(&client);
        callers.spawn(async move { assert_eq!(session.call(vec![n]).await.unwrap(), vec![n]) });
    }
    let full = async {
        while most.load(Ordering::SeqCst) < 3 {
            tokio::task::yield_now().await;
        }
    };
    soon(full).await;
    go.add_permits(40);
    // None is refused: those that the server would not take wait at their callers.
    soon(callers.join_all()).await;
    assert_eq!(most.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn calls_of_both_ends_and_of_handlers_pass_each_other_and_messages() {
    for udp in [false, true] {
        let (client, session, _server) = ends(udp, Config::default()).await;
        // Each end answers by asking the other one back, until the number is 0.
        let countdown = |request: Request| async move {
            let Some(n) = request.body.first().copied() else { return Err("nothing asked".into()) };
            if n == 0 {
                return Ok(Bytes::from_static(b"."));
            }
            let back = request.session.call(vec![n - 1]).await.map_err(|error| error.to_string())?;
            Ok([&back[..], &[b'0' + n]].concat().into())
        };
        for end in [Session::clone(&client), session.clone()] {
            tokio::spawn(async move { end.serve_calls(1000, countdown).await });
        }
        let mut callers = JoinSet::new();
        for n in 0..100_u8 {
            let end = if n % 2 == 0 { Session::clone(&client) } else { session.clone() };
            callers.spawn(async move {
                assert_eq!(end.call(vec![n % 8]).await.unwrap().len(), usize::from(n % 8) + 1);
                end.send(vec![n]).await.unwrap();
            });
        }
        let mut came = 0;
        let receive = async {
            while came < 100 {
                tokio::select! {
                    message = client.recv() => assert_eq!(message.unwrap().unwrap()[0] % 2, 1),
                    message = session.recv() => assert_eq!(message.unwrap().unwrap()[0] % 2, 0),
                }
                came += 1;
            }
        };
        soon(async { tokio::join!(receive, callers.join_all()) }).await;
        let error = soon(client.call("")).await.unwrap_err();
        assert!(
            matches!(&error, CallError::Refused { refusal: CallRefusal::Failed, words } if words == "nothing asked")
        );
    }
}

#[tokio::test]
async fn what_is_not_handled_is_refused_in_words_and_a_panic_is_the_end_of_one_call() {
    let server = Server::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr();
    tokio::spawn(server.run(|_, _| async {}));
    let messages = client(false, address).await;
    let error = soon(messages.call("x")).await.unwrap_err();
    assert!(error.to_string().contains("nobody handles calls here"), "{error}");
    soon(messages.send("but messages")).await.unwrap();
    let server = Server::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr();
    tokio::spawn(server.run_calls(8, |request| async move {
        assert_ne!(request.body, "panic", "as was asked");
        echo(request).await
    }));
    let calls = client(true, address).await;
    let error = soon(calls.call("panic")).await.unwrap_err();
    assert!(matches!(error, CallError::Refused { refusal: CallRefusal::Unhandled, .. }), "{error:?}");
    assert_eq!(soon(calls.call("and goes on")).await.unwrap(), "and goes on");
    // A message is for nobody there.
    assert!(soon(calls.send("x")).await.is_err());
    assert!(matches!(soon(calls.call("x")).await, Err(CallError::Session(Error::Ended(_)))));
}

#[tokio::test]
async fn a_large_call_passes_and_one_that_is_too_large_is_an_error_of_its_own() {
    let server = Server::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr();
    tokio::spawn(server.run_calls(8, |request| async move {
        if request.body == "much" { Ok(vec![7; 17 << 20].into()) } else { echo(request).await }
    }));
    let client = client(false, address).await;
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    assert_eq!(soon(client.call(large.clone())).await.unwrap(), large);
    let error = soon(client.call(vec![0; (16 << 20) + 1])).await.unwrap_err();
    assert!(matches!(error, CallError::Session(Error::TooLarge(_))), "{error:?}");
    let error = soon(client.call("much")).await.unwrap_err();
    assert!(matches!(error, CallError::Refused { .. }), "{error:?}");
    assert_eq!(soon(client.call("and goes on")).await.unwrap(), "and goes on");
}

#[tokio::test]
async fn a_server_that_ends_finishes_the_calls_that_run_and_refuses_the_others() {
    for udp in [false, true] {
        let server = Server::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr();
        let (begun, go, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()), Arc::new(Notify::new()));
        let serving = tokio::spawn({
            let (begun, go, end) = (Arc::clone(&begun), Arc::clone(&go), Arc::clone(&end));
            let handler = move |request| {
                let (begun, go) = (Arc::clone(&begun), Arc::clone(&go));
                async move {
                    begun.notify_one();
                    go.notified().await;
                    echo(request).await
                }
            };
            server.run_calls_until(async move { end.notified().await }, 1, handler)
        });
        let client = client(udp, address).await;
        let call = |text: &'static str| {
            let session = Session::clone(&client);
            tokio::spawn(async move { session.call(text).await })
        };
        let runs = call("runs");
        soon(begun.notified()).await;
        let waits = call("waits");
        end.notify_one();
        let refused = soon(waits).await.unwrap().unwrap_err();
        assert!(refused.to_string().contains("the server ends"), "{refused}");
        go.notify_one();
        assert_eq!(soon(runs).await.unwrap().unwrap(), "runs");
        soon(serving).await.unwrap();
        soon(client.ended()).await;
    }
}

#[tokio::test]
async fn clones_that_receive_share_the_messages_and_each_comes_to_one_of_them() {
    let (client, session, _server) = ends(false, Config::default()).await;
    let mut receivers = JoinSet::new();
    for _ in 0..16 {
        let session = session.clone();
        receivers.spawn(async move {
            let mut own = Vec::new();
            while let Some(message) = session.recv().await.unwrap() {
                own.push(u32::from_be_bytes(message[..].try_into().unwrap()));
                tokio::task::yield_now().await;
            }
            own
        });
    }
    for n in 0..5000_u32 {
        soon(client.submit(n.to_be_bytes().to_vec())).await.unwrap();
    }
    soon(client.close()).await.unwrap();
    let all = soon(receivers.join_all()).await;
    assert!(all.iter().all(|own| own.is_sorted()), "each in order");
    let mut all = all.concat();
    all.sort_unstable();
    assert_eq!(all, (0..5000).collect::<Vec<_>>());
}

/// Calls of more bytes than are kept wait for a handler at their callers, and none is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_127_callers_of_large_calls_wait_for_handlers_and_none_is_refused() {
    for udp in [false, true] {
        let server = Server::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr();
        tokio::spawn(server.run_calls(4, echo));
        let client = client(udp, address).await;
        let mut callers = JoinSet::new();
        for n in 0..64_u8 {
            let session = Session::clone(&client);
            callers.spawn(async move {
                let body = vec![n; 256 << 10];
                assert_eq!(session.call(body.clone()).await.unwrap(), body);
            });
        }
        while let Some(done) = soon(callers.join_next()).await {
            done.unwrap();
        }
        soon(client.close()).await.unwrap();
    }
}

/// Calls that wait beyond the bytes that are kept are refused when none is taken any more, and the
/// session goes on.
#[tokio::test]
async fn large_calls_that_wait_are_refused_when_calls_are_closed_and_cost_no_session() {
    let (client, session, _server) = ends(false, Config::default()).await;
    let mut callers = JoinSet::new();
    for _ in 0..64 {
        let session = Session::clone(&client);
        callers.spawn(async move { session.call(vec![7; 256 << 10]).await });
    }
    let first = soon(session.next_call()).await.unwrap();
    session.close_calls("no more");
    while let Some(refused) = soon(callers.join_next()).await {
        let refused = refused.unwrap().unwrap_err();
        let is_refused = matches!(&refused, CallError::Refused { words, .. } if words == "no more");
        assert!(is_refused, "{refused}");
        if callers.len() == 1 {
            break;
        }
    }
    soon(first.reply("taken")).await;
    assert_eq!(soon(callers.join_next()).await.unwrap().unwrap().unwrap(), "taken");
    let (sent, received) = tokio::join!(soon(client.send("on")), soon(session.recv()));
    sent.unwrap();
    assert_eq!(received.unwrap().unwrap(), "on");
}

/// Times that no clock reaches are never over.
#[tokio::test]
async fn the_longest_times_are_never_over() {
    let server = Server::builder().idle_timeout(Some(Duration::MAX)).drain(Duration::MAX);
    let server = server.bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr();
    let (end, ended) = oneshot::channel::<()>();
    let end_of = async { drop(ended.await) };
    let serving = tokio::spawn(server.run_calls_until(end_of, 1, echo));
    for udp in [false, true] {
        let client = client(udp, address).await;
        assert_eq!(soon(client.call_within("x", Duration::MAX)).await.unwrap(), "x");
        soon(client.close()).await.unwrap();
    }
    end.send(()).unwrap();
    soon(serving).await.unwrap();
}

//! Clients that connect again (docs/protocol/vstp.md, section 11).

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

mod cutter;
mod refusals;

use cutter::Cutter;
use fastdrop_messages::vstp::tcp::{
    ClientSessionLimits, DeliverError, ReconnectConfig, Reconnecting, Session, State, TcpConfig,
};
use fastdrop_messages::vstp::{Frame, FrameType, VstpError, VstpTcpServer};
use fastdrop_messages::{Metrics, Token, TokenSet};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(120);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

fn data(text: &str) -> Frame {
    Frame::new(FrameType::Data).with_payload(text.into())
}

/// Tries again at once.
fn eager() -> ReconnectConfig {
    let ms = Duration::from_millis;
    ReconnectConfig {
        backoff_first: ms(1),
        backoff_max: ms(5),
        tcp: TcpConfig::default(),
        ..ReconnectConfig::default()
    }
}

async fn bind(config: TcpConfig) -> (VstpTcpServer, SocketAddr) {
    let server = VstpTcpServer::bind_with_config("127.0.0.1:0", config).await.unwrap();
    let address = server.local_addr().unwrap();
    (server, address)
}

/// Gives the connections that come, each driven by a task.
fn sessions(server: VstpTcpServer) -> mpsc::UnboundedReceiver<Session> {
    let (gives, given) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            // One whose HELLO does not come is nobody's.
            if let Ok(connection) = server.accept().await
                && gives.send(connection.into_session()).is_err()
            {
                return;
            }
        }
    });
    given
}

fn deliver(client: &Reconnecting, text: &str) -> JoinHandle<Result<(), DeliverError>> {
    let (client, frame) = (client.clone(), data(text));
    tokio::spawn(async move { client.deliver(frame).await })
}

fn text(frame: &[u8]) -> String {
    String::from_utf8_lossy(frame).into_owned()
}

/// The ways in which a server handles frames.
#[derive(Debug, Clone, Copy)]
enum Handling {
    Run,
    ServeCalls,
    /// Acknowledged in any order, later than others are taken.
    Deliveries,
}

const SENDERS: usize = 4;
const EACH: usize = 500;

async fn every_frame_is_handled_once_and_in_order(handling: Handling) {
    let metrics = Metrics::default();
    let config = TcpConfig { metrics: metrics.clone(), ..TcpConfig::default() };
    let (server, address) = bind(config).await;
    let (saw, mut sees) = mpsc::unbounded_channel();
    let serving = tokio::spawn(async move {
        match handling {
            Handling::Run => {
                let handler = move |_, frame: Frame| {
                    let saw = saw.clone();
                    async move { saw.send(text(frame.payload())).unwrap() }
                };
                server.run(handler).await.unwrap();
            }
            Handling::ServeCalls => {
                let handler = move |call: fastdrop_messages::vstp::Call| {
                    let saw = saw.clone();
                    async move {
                        saw.send(text(&call.frame().payload)).unwrap();
                        Ok(data("done"))
                    }
                };
                server.serve_calls(std::future::pending(), handler).await.unwrap();
            }
            Handling::Deliveries => {
                let mut connections = sessions(server);
                while let Some(session) = connections.recv().await {
                    let saw = saw.clone();
                    tokio::spawn(async move {
                        while let Ok(Some(delivery)) = session.recv_delivery().await {
                            saw.send(text(&delivery.frame().payload)).unwrap();
                            // The connection may be gone by then.
                            tokio::spawn(async move {
                                tokio::task::yield_now().await;
                                let _ = delivery.acknowledge().await;
                            });
                        }
                    });
                }
            }
        }
    });
    let cutter = Cutter::start(address).await;
    cutter.break_after(12_000);
    let client_metrics = Metrics::default();
    let tcp = TcpConfig { metrics: client_metrics.clone(), ..TcpConfig::default() };
    let client = Reconnecting::start(&cutter.address, ReconnectConfig { tcp, ..eager() }).unwrap();
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut under_way = VecDeque::new();
                for n in 0..EACH {
                    let padding = "x".repeat(n * 7 % 120);
                    under_way.push_back(deliver(&client, &format!("{sender} {n} {padding}")));
                    if under_way.len() > 20 {
                        under_way.pop_front().unwrap().await.unwrap().unwrap();
                    }
                }
                for one in under_way {
                    one.await.unwrap().unwrap();
                }
            })
        })
        .collect();
    for sender in senders {
        soon(sender).await.unwrap();
    }
    let mut next = HashMap::new();
    for _ in 0..SENDERS * EACH {
        let frame = soon(sees.recv()).await.unwrap();
        let mut words = frame.split(' ');
        let mut number = || words.next().unwrap().parse::<usize>().unwrap();
        let (sender, n) = (number(), number());
        let expected = next.entry(sender).or_insert(0);
        assert_eq!(n, *expected, "of sender {sender}");
        *expected += 1;
    }
    assert!(sees.try_recv().is_err(), "nothing comes twice");
    assert!(cutter.connections() > 20, "{} connections", cutter.connections());
    let counts = client_metrics.counts();
    assert!(counts.reconnects > 10 && counts.retransmissions > 0, "{counts:?}");
    // With a HELLO for each connection.
    let sent = (SENDERS * EACH) as u64;
    assert!((sent..=sent + cutter.connections()).contains(&counts.messages_sent), "{counts:?}");
    assert!(metrics.counts().duplicates > 0, "{:?}", metrics.counts());
    client.close().await;
    serving.abort();
}

#[tokio::test]
async fn frames_survive_connections_that_break_anywhere_where_a_handler_takes_them() {
    every_frame_is_handled_once_and_in_order(Handling::Run).await;
}

#[tokio::test]
async fn frames_survive_connections_that_break_anywhere_beside_calls() {
    every_frame_is_handled_once_and_in_order(Handling::ServeCalls).await;
}

#[tokio::test]
async fn frames_survive_connections_that_break_anywhere_with_late_acknowledgements() {
    every_frame_is_handled_once_and_in_order(Handling::Deliveries).await;
}

#[tokio::test]
async fn a_server_that_was_started_anew_is_not_given_again_what_another_may_have_handled() {
    for at_least_once in [false, true] {
        let (first, address) = bind(TcpConfig::default()).await;
        let mut first = sessions(first);
        let cutter = Cutter::start(address).await;
        let client =
            Reconnecting::start(&cutter.address, ReconnectConfig { at_least_once, ..eager() }).unwrap();
        let one = deliver(&client, "one");
        let old = soon(first.recv()).await.unwrap();
        let in_hand = soon(old.recv_delivery()).await.unwrap().unwrap();
        let (second, address) = bind(TcpConfig::default()).await;
        let mut second = sessions(second);
        cutter.lead_to(Some(address));
        cutter.cut();
        let new = soon(second.recv()).await.unwrap();
        if at_least_once {
            assert_eq!(soon(new.recv()).await.unwrap().unwrap().payload(), b"one");
            soon(one).await.unwrap().unwrap();
        } else {
            // The server says so when it reads.
            let two = deliver(&client, "two");
            assert_eq!(soon(new.recv()).await.unwrap().unwrap().payload(), b"two");
            soon(two).await.unwrap().unwrap();
            let error = soon(one).await.unwrap().unwrap_err();
            assert!(matches!(error, DeliverError::OutcomeUnknown(_)), "{error}");
        }
        drop(in_hand);
    }
}

#[tokio::test]
async fn a_server_that_remembers_nothing_is_not_given_again_what_it_may_have_handled() {
    let client_sessions = ClientSessionLimits { sessions_max: 0, ..ClientSessionLimits::default() };
    let (server, address) = bind(TcpConfig { client_sessions, ..TcpConfig::default() }).await;
    let mut connections = sessions(server);
    let cutter = Cutter::start(address).await;
    let client = Reconnecting::start(&cutter.address, eager()).unwrap();
    let one = deliver(&client, "one");
    let old = soon(connections.recv()).await.unwrap();
    // Its WELCOME goes out when it reads, as with programs of version 0.2.
    assert_eq!(soon(old.recv()).await.unwrap().unwrap().typ, FrameType::Hello);
    let in_hand = soon(old.recv_delivery()).await.unwrap().unwrap();
    assert_eq!(&in_hand.frame().payload[..], b"one");
    assert!(matches!(client.state(), State::Connected { remembers: false, .. }));
    cutter.cut();
    let new = soon(connections.recv()).await.unwrap();
    let reads = tokio::spawn(async move { while let Ok(Some(_)) = new.recv().await {} });
    let error = soon(one).await.unwrap().unwrap_err();
    assert!(matches!(error, DeliverError::OutcomeUnknown(_)), "{error}");
    reads.abort();
}

/// The old connection is not known to be dead at the server, and has frames that nobody has taken.
#[tokio::test]
async fn a_new_connection_takes_over_from_one_that_is_half_dead() {
    let (server, address) = bind(TcpConfig::default()).await;
    let mut connections = sessions(server);
    let cutter = Cutter::start(address).await;
    let client = Reconnecting::start(&cutter.address, eager()).unwrap();
    let (one, two, three) = (deliver(&client, "one"), deliver(&client, "two"), deliver(&client, "three"));
    let old = soon(connections.recv()).await.unwrap();
    let first = soon(old.recv_delivery()).await.unwrap().unwrap();
    let second = soon(old.recv_delivery()).await.unwrap().unwrap();
    assert_eq!((&first.frame().payload[..], &second.frame().payload[..]), (&b"one"[..], &b"two"[..]));
    cutter.half_cut();
    let new = soon(connections.recv()).await.unwrap();
    let third = soon(new.recv_delivery()).await.unwrap().unwrap();
    assert_eq!(&third.frame().payload[..], b"three");
    // Nothing more is handed on by the old one.
    assert!(!matches!(soon(old.recv_delivery()).await, Ok(Some(_))));
    // What it had in hand is acknowledged on the new one, or refused where it is dropped.
    let _ = first.acknowledge().await;
    soon(one).await.unwrap().unwrap();
    drop(second);
    let error = soon(two).await.unwrap().unwrap_err();
    assert!(matches!(error, DeliverError::Refused(_)), "{error}");
    soon(third.acknowledge()).await.unwrap();
    soon(three).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_acknowledgement_that_is_given_between_two_connections_counts() {
    let (server, address) = bind(TcpConfig::default()).await;
    let mut connections = sessions(server);
    let cutter = Cutter::start(address).await;
    let client = Reconnecting::start(&cutter.address, eager()).unwrap();
    let one = deliver(&client, "one");
    let old = soon(connections.recv()).await.unwrap();
    let first = soon(old.recv_delivery()).await.unwrap().unwrap();
    cutter.lead_to(None);
    cutter.cut();
    assert!(!matches!(soon(old.recv()).await, Ok(Some(_))), "it has ended");
    let _ = first.acknowledge().await;
    assert!(!one.is_finished());
    cutter.lead_to(Some(address));
    let new = soon(connections.recv()).await.unwrap();
    let receiving = tokio::spawn(async move { new.recv().await });
    soon(one).await.unwrap().unwrap();
    receiving.abort();
}

#[tokio::test]
async fn a_client_is_told_when_it_was_forgotten_for_another() {
    let client_sessions = ClientSessionLimits { sessions_max: 1, ..ClientSessionLimits::default() };
    let (server, address) = bind(TcpConfig { client_sessions, ..TcpConfig::default() }).await;
    let metrics = server.metrics();
    let mut connections = sessions(server);
    let cutter = Cutter::start(address).await;
    let client = Reconnecting::start(&cutter.address, eager()).unwrap();
    let one = deliver(&client, "one");
    let old = soon(connections.recv()).await.unwrap();
    let in_hand = soon(old.recv_delivery()).await.unwrap().unwrap();
    cutter.lead_to(None);
    cutter.cut();
    assert!(!matches!(soon(old.recv()).await, Ok(Some(_))), "it has ended");
    drop((in_hand, old));
    soon(async {
        while metrics.counts().gone == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let other = Reconnecting::start(&address.to_string(), eager()).unwrap();
    let two = deliver(&other, "two");
    let its = soon(connections.recv()).await.unwrap();
    assert_eq!(soon(its.recv()).await.unwrap().unwrap().payload(), b"two");
    soon(two).await.unwrap().unwrap();
    // While that is connected it is remembered, and there is no room for another.
    cutter.lead_to(Some(address));
    let new = soon(connections.recv()).await.unwrap();
    let reads = tokio::spawn(async move { while let Ok(Some(_)) = new.recv().await {} });
    let error = soon(one).await.unwrap().unwrap_err();
    assert!(matches!(error, DeliverError::OutcomeUnknown(_)), "{error}");
    assert!(matches!(client.state(), State::Connected { remembers: false, .. }));
    reads.abort();
}

#[tokio::test]
async fn callers_wait_where_the_queue_is_full() {
    for by_bytes in [false, true] {
        let (server, address) = bind(TcpConfig::default()).await;
        let mut connections = sessions(server);
        let config = match by_bytes {
            false => ReconnectConfig { queue_frames_max: 2, ..eager() },
            // Two of 400 bytes fit, and a third does not.
            true => ReconnectConfig { queue_bytes_max: 1400, ..eager() },
        };
        let client = Reconnecting::start(&address.to_string(), config).unwrap();
        let padded = |text: &str| format!("{text}{}", "x".repeat(400));
        let sent = ["1", "2", "3"].map(|text| deliver(&client, &padded(text)));
        let session = soon(connections.recv()).await.unwrap();
        let first = soon(session.recv_delivery()).await.unwrap().unwrap();
        let second = soon(session.recv_delivery()).await.unwrap().unwrap();
        // What is sent later overtakes the third, which therefore waits.
        soon(client.send(data("probe"))).await.unwrap();
        assert_eq!(soon(session.recv()).await.unwrap().unwrap().payload(), b"probe");
        soon(first.acknowledge()).await.unwrap();
        let third = soon(session.recv_delivery()).await.unwrap().unwrap();
        assert!(third.frame().payload.starts_with(b"3"));
        soon(second.acknowledge()).await.unwrap();
        soon(third.acknowledge()).await.unwrap();
        for one in sent {
            soon(one).await.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn a_caller_that_does_not_wait_any_more_has_its_frame_forgotten() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let config = ReconnectConfig { queue_frames_max: 1, ..eager() };
    let client = Reconnecting::start(&closed.to_string(), config).unwrap();
    for _ in 0..3 {
        // Each has the only place until it is given up.
        let one = deliver(&client, "one");
        tokio::task::yield_now().await;
        one.abort();
        assert!(one.await.unwrap_err().is_cancelled());
    }
    let server = VstpTcpServer::bind(closed).await;
    // Somebody else may have the port now.
    let Ok(server) = server else { return };
    let mut connections = sessions(server);
    let two = deliver(&client, "two");
    let session = soon(connections.recv()).await.unwrap();
    assert_eq!(soon(session.recv()).await.unwrap().unwrap().payload(), b"two");
    soon(two).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_gives_up_in_time_and_says_that_nothing_was_sent() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let config = ReconnectConfig { give_up: Some(Duration::from_millis(100)), ..eager() };
    let client = Reconnecting::start(&closed.to_string(), config).unwrap();
    let mut states = client.states();
    let waited = tokio::spawn(async move {
        let mut has_waited = false;
        while let Some(state) = states.changed().await {
            has_waited |= matches!(state, State::Waiting { .. });
        }
        has_waited
    });
    let error = soon(client.deliver(data("one"))).await.unwrap_err();
    assert!(matches!(error, DeliverError::NotSent(_)), "{error}");
    assert!(soon(waited).await.unwrap());
    assert!(matches!(client.state(), State::Ended { .. }));
    assert_eq!(soon(client.recv()).await, None);
    assert!(matches!(soon(client.send(data("two"))).await, Err(VstpError::ConnectionClosed)));
    let error = soon(client.deliver(data("two"))).await.unwrap_err();
    assert!(matches!(error, DeliverError::NotSent(_)), "{error}");
}

#[tokio::test]
async fn what_the_server_sends_comes_on_whichever_connection() {
    let (server, address) = bind(TcpConfig::default()).await;
    let mut connections = sessions(server);
    let cutter = Cutter::start(address).await;
    let client = Reconnecting::start(&cutter.address, eager()).unwrap();
    for n in 0..3 {
        let session = soon(connections.recv()).await.unwrap();
        let reads = session.clone();
        let reading = tokio::spawn(async move { while let Ok(Some(_)) = reads.recv().await {} });
        soon(session.send(data(&n.to_string()))).await.unwrap();
        assert_eq!(soon(client.recv()).await.unwrap().payload(), n.to_string().as_bytes());
        cutter.cut();
        soon(reading).await.unwrap();
    }
    client.close().await;
    assert_eq!(soon(client.recv()).await, None);
}

#[tokio::test]
async fn a_call_that_is_outstanding_when_the_connection_breaks_fails_and_later_ones_do_not() {
    let (server, address) = bind(TcpConfig::default()).await;
    let (began, mut begins) = mpsc::unbounded_channel();
    let serving = tokio::spawn(server.serve_calls(std::future::pending(), move |call| {
        let began = began.clone();
        async move {
            if &call.frame().payload[..] == b"never" {
                began.send(()).unwrap();
                std::future::pending::<()>().await;
            }
            Ok(call.into_frame())
        }
    }));
    let cutter = Cutter::start(address).await;
    let client = Reconnecting::start(&cutter.address, eager()).unwrap();
    let caller = client.clone();
    let never = tokio::spawn(async move { caller.call(data("never")).await });
    soon(begins.recv()).await.unwrap();
    cutter.cut();
    let error = soon(never).await.unwrap().unwrap_err();
    assert!(matches!(error, VstpError::ConnectionClosed | VstpError::Io(_)), "{error}");
    assert_eq!(soon(client.call(data("now"))).await.unwrap().payload(), b"now");
    serving.abort();
}

#[tokio::test]
async fn a_frame_that_is_larger_than_the_server_takes_is_told_so_and_holds_nobody_up() {
    let (server, address) = bind(TcpConfig { frame_max: 1000, ..TcpConfig::default() }).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sees = Arc::clone(&seen);
    let serving = tokio::spawn(server.run(move |_, frame| {
        sees.lock().unwrap().push(text(frame.payload()));
        async {}
    }));
    let client = Reconnecting::start(&address.to_string(), eager()).unwrap();
    let large = "x".repeat(5000);
    let sent = ["1", &large, "2"].map(|text| deliver(&client, text));
    let [one, large, two] = sent;
    soon(one).await.unwrap().unwrap();
    let error = soon(large).await.unwrap().unwrap_err();
    assert!(matches!(error, DeliverError::Refused(_)), "{error}");
    soon(two).await.unwrap().unwrap();
    assert_eq!(*seen.lock().unwrap(), ["1", "2"]);
    let config = ReconnectConfig { frame_max: 100, ..eager() };
    let client = Reconnecting::start(&address.to_string(), config).unwrap();
    let error = soon(client.deliver(data(&"x".repeat(100)))).await.unwrap_err();
    assert!(matches!(error, DeliverError::NotSent(_)), "{error}");
    serving.abort();
}

#[tokio::test]
async fn what_no_server_acknowledges_is_not_sent_and_holds_nobody_up() {
    let (server, address) = bind(TcpConfig::default()).await;
    let serving = tokio::spawn(server.run(|_, _| async {}));
    let client = Reconnecting::start(&address.to_string(), eager()).unwrap();
    let others = FrameType::ALL.into_iter().filter(|typ| *typ != FrameType::Data).map(Frame::new);
    let parts = ["vstp-call", "vstp-reply"].map(|key| data("part").with_header(key, "7"));
    for frame in others.chain(parts) {
        let error = soon(client.deliver(frame)).await.unwrap_err();
        assert!(matches!(error, DeliverError::NotSent(_)), "{error}");
    }
    soon(client.deliver(data("one"))).await.unwrap();
    serving.abort();
}

#[tokio::test]
async fn a_frame_is_not_refused_for_a_larger_one_that_was_sent_beside_it() {
    let (server, address) = bind(TcpConfig { frame_max: 1000, ..TcpConfig::default() }).await;
    let mut connections = sessions(server);
    let client = Reconnecting::start(&address.to_string(), eager()).unwrap();
    let one = deliver(&client, "one");
    let old = soon(connections.recv()).await.unwrap();
    let in_hand = soon(old.recv_delivery()).await.unwrap().unwrap();
    let _ = soon(client.send(data(&"x".repeat(5000)))).await;
    let new = soon(connections.recv()).await.unwrap();
    let _ = in_hand.acknowledge().await;
    let reads = tokio::spawn(async move { while let Ok(Some(_)) = new.recv().await {} });
    soon(one).await.unwrap().unwrap();
    reads.abort();
}

#[tokio::test]
async fn acknowledgements_that_nobody_waits_for_are_not_received() {
    let (server, address) = bind(TcpConfig::default()).await;
    let mut connections = sessions(server);
    let client = Reconnecting::start(&address.to_string(), eager()).unwrap();
    let session = soon(connections.recv()).await.unwrap();
    for typ in [FrameType::Ack, FrameType::Err] {
        soon(session.send(Frame::new(typ).with_header("msg-id", "99"))).await.unwrap();
    }
    soon(session.send(data("news"))).await.unwrap();
    assert_eq!(soon(client.recv()).await.unwrap().payload(), b"news");
}

#[tokio::test]
async fn a_server_that_has_remembered_and_is_silent_is_tried_again() {
    let (server, address) = bind(TcpConfig::default()).await;
    let mut connections = sessions(server);
    let cutter = Cutter::start(address).await;
    let config = ReconnectConfig { welcome_timeout: Duration::from_secs(3), ..eager() };
    let client = Reconnecting::start(&cutter.address, config).unwrap();
    let one = deliver(&client, "one");
    let old = soon(connections.recv()).await.unwrap();
    let in_hand = soon(old.recv_delivery()).await.unwrap().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut states = client.states();
    cutter.lead_to(Some(silent.local_addr().unwrap()));
    cutter.cut();
    loop {
        if let State::Waiting { reason, .. } = soon(states.changed()).await.unwrap()
            && reason.contains("nobody answered in time")
        {
            break;
        }
    }
    cutter.lead_to(Some(address));
    let _ = in_hand.acknowledge().await;
    let new = soon(connections.recv()).await.unwrap();
    let reads = tokio::spawn(async move { while let Ok(Some(_)) = new.recv().await {} });
    soon(one).await.unwrap().unwrap();
    reads.abort();
}

#[tokio::test]
async fn what_is_no_address_starts_no_client() {
    for addr in ["", "localhost", ":80", "localhost:", "localhost:http", "localhost:65536"] {
        let error = Reconnecting::start(addr, eager()).unwrap_err();
        assert!(matches!(error, VstpError::InvalidAddress), "{addr}: {error}");
    }
}

#[tokio::test]
async fn a_token_is_shown_on_every_connection_and_a_wrong_one_ends_the_client() {
    let authorize = Some(TokenSet::new(["right"]).into());
    let (server, address) = bind(TcpConfig { authorize, ..TcpConfig::default() }).await;
    let serving = tokio::spawn(server.run(|_, _| async {}));
    let cutter = Cutter::start(address).await;
    let with = |token: &str| {
        let tcp = TcpConfig { token: Some(Token::new(token).unwrap()), ..TcpConfig::default() };
        Reconnecting::start(&cutter.address, ReconnectConfig { tcp, ..eager() }).unwrap()
    };
    let client = with("right");
    for _ in 0..3 {
        soon(client.deliver(data("one"))).await.unwrap();
        cutter.cut();
    }
    let refused = with("wrong");
    let error = soon(refused.deliver(data("one"))).await.unwrap_err();
    assert!(matches!(&error, DeliverError::NotSent(why) if why.contains("not known here")), "{error}");
    let error = soon(refused.send(data("one"))).await.unwrap_err();
    assert!(matches!(&error, VstpError::ServerError(why) if why.contains("not known here")), "{error}");
    assert_eq!(soon(refused.recv()).await, None);
    assert!(matches!(refused.state(), State::Ended { reason } if reason.contains("not known here")));
    let error = soon(refused.deliver(data("two"))).await.unwrap_err();
    assert!(matches!(&error, DeliverError::NotSent(why) if why.contains("not known here")), "{error}");
    let tcp = TcpConfig { token: Some(Token::new("wrong").unwrap()), ..TcpConfig::default() };
    let config = ReconnectConfig { tcp, retry_refused: true, ..eager() };
    let wrong = Reconnecting::start(&cutter.address, config).unwrap();
    let mut states = wrong.states();
    loop {
        if let State::Waiting { reason, .. } = soon(states.changed()).await.unwrap()
            && reason.contains("not known here")
        {
            break;
        }
    }
    serving.abort();
}

//! Clients of CNP that connect again (docs/protocol/cnp.md, section 15).

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

#[path = "reconnect/cutter.rs"]
mod cutter;

use cutter::Cutter;
use fastdrop_messages::cnp::{
    Client, ClientSessionLimits, ReconnectConfig, ReconnectingClient, SendFailure, Server, ServerBuilder,
    Session, State,
};
use fastdrop_messages::{Token, TokenSet};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(120);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

/// Tries again at once.
fn eager() -> ReconnectConfig {
    let ms = Duration::from_millis;
    ReconnectConfig { backoff_first: ms(1), backoff_max: ms(5), ..ReconnectConfig::default() }
}

fn start(address: &str, config: ReconnectConfig) -> ReconnectingClient {
    ReconnectingClient::start(address, Client::builder(), config).unwrap()
}

async fn bind(builder: ServerBuilder) -> (Server, SocketAddr) {
    let server = builder.udp(false).bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr();
    (server, address)
}

/// Gives the sessions that come.
fn sessions(mut server: Server) -> mpsc::UnboundedReceiver<Session> {
    let (gives, given) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(session) = server.accept().await {
            if gives.send(session).is_err() {
                return;
            }
        }
    });
    given
}

fn send(client: &ReconnectingClient, text: &str) -> JoinHandle<Result<(), SendFailure>> {
    let (client, text) = (client.clone(), text.to_owned());
    tokio::spawn(async move { client.send(text).await })
}

async fn outcome(sending: JoinHandle<Result<(), SendFailure>>) -> Result<(), SendFailure> {
    soon(sending).await.unwrap()
}

async fn reaches(client: &ReconnectingClient, is_it: impl Fn(&State) -> bool) -> State {
    let mut states = client.states();
    soon(async {
        let mut state = client.state();
        while !is_it(&state) {
            state = states.changed().await.expect("another state");
        }
        state
    })
    .await
}

const MESSAGES: usize = 2000;

/// The connection is cut again and again, each time after another number of bytes.
#[tokio::test]
async fn each_of_2000_messages_is_handed_on_once_and_in_order_over_a_path_that_breaks() {
    let (server, address) = bind(Server::builder()).await;
    let (saw, mut sees) = mpsc::unbounded_channel();
    tokio::spawn(server.run(move |_, message| {
        let saw = saw.clone();
        async move { saw.send(message).unwrap() }
    }));
    let path = Cutter::start(address).await;
    path.break_after(12_000);
    let client = start(&path.address, eager());
    let sending: Vec<_> = (0..MESSAGES).map(|n| send(&client, &format!("message {n:050}"))).collect();
    for one in sending {
        assert_eq!(outcome(one).await, Ok(()));
    }
    soon(client.close()).await;
    for n in 0..MESSAGES {
        assert_eq!(sees.recv().await.unwrap(), format!("message {n:050}"));
    }
    assert!(sees.try_recv().is_err());
    assert!(path.connections() > 20, "{}", path.connections());
}

/// Each place of a short session, in both directions.
#[tokio::test]
async fn wherever_the_connection_is_cut_nothing_comes_twice_or_is_lost() {
    let (server, address) = bind(Server::builder()).await;
    let (saw, mut sees) = mpsc::unbounded_channel();
    tokio::spawn(server.run(move |_, message| {
        let saw = saw.clone();
        async move { saw.send(message).unwrap() }
    }));
    for up in [true, false] {
        for at in (0..700).step_by(3) {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let client = start(&listener.local_addr().unwrap().to_string(), eager());
            tokio::spawn(async move {
                let mut is_first = true;
                while let Ok((mut near, _)) = listener.accept().await {
                    let mut far = tokio::net::TcpStream::connect(address).await.unwrap();
                    if std::mem::replace(&mut is_first, false) {
                        let (mut near_reads, mut near_writes) = near.split();
                        let (mut far_reads, mut far_writes) = far.split();
                        let max = |is_cut: bool| if is_cut { at } else { u64::MAX };
                        let (mut ups, mut downs) =
                            ((&mut near_reads).take(max(up)), (&mut far_reads).take(max(!up)));
                        tokio::select! {
                            _ = tokio::io::copy(&mut ups, &mut far_writes) => {}
                            _ = tokio::io::copy(&mut downs, &mut near_writes) => {}
                        }
                    } else {
                        tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
                    }
                }
            });
            let sending: Vec<_> = (0..5).map(|n| send(&client, &format!("{n}"))).collect();
            for one in sending {
                assert_eq!(outcome(one).await, Ok(()), "cut at {at}, up: {up}");
            }
            soon(client.close()).await;
            for n in 0..5 {
                assert_eq!(sees.recv().await.unwrap(), format!("{n}"), "cut at {at}, up: {up}");
            }
            assert!(sees.try_recv().is_err(), "cut at {at}, up: {up}");
        }
    }
}

/// A message is in the hands of a server when its connection breaks, and another waits there.
async fn broken_under_way(
    first: ServerBuilder,
    second: Option<ServerBuilder>,
) -> (Result<(), SendFailure>, Result<(), SendFailure>, Vec<String>) {
    let (server, address) = bind(first).await;
    let mut given = sessions(server);
    let path = Cutter::start(address).await;
    let client = start(&path.address, eager());
    let one = send(&client, "one");
    let session = soon(given.recv()).await.unwrap();
    let mut seen = vec![];
    let in_hand = soon(session.recv_delivery()).await.unwrap().unwrap();
    seen.push(String::from_utf8(in_hand.message().to_vec()).unwrap());
    let two = send(&client, "two");
    let received = || session.stats().counters.messages_received == 2;
    soon(async {
        while !received() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let mut others = None;
    if let Some(second) = second {
        let (server, address) = bind(second).await;
        others = Some(sessions(server));
        path.lead_to(Some(address));
    }
    path.half_cut();
    let next = soon(others.as_mut().unwrap_or(&mut given).recv()).await.unwrap();
    let three = send(&client, "three");
    // The older connection hands on nothing any more where the session is known.
    let collects = async {
        loop {
            let message = soon(next.recv()).await.unwrap().unwrap();
            seen.push(String::from_utf8(message.to_vec()).unwrap());
            if message == "three" {
                return;
            }
        }
    };
    collects.await;
    assert_eq!(outcome(three).await, Ok(()));
    let outcomes = (outcome(one).await, outcome(two).await);
    if others.is_none() {
        assert!(soon(session.recv()).await.is_err(), "the older connection has ended");
    }
    in_hand.acknowledge();
    (outcomes.0, outcomes.1, seen)
}

#[tokio::test]
async fn what_an_older_connection_has_and_has_not_handed_on_comes_again_on_the_next() {
    let (one, two, seen) = broken_under_way(Server::builder(), None).await;
    assert!(matches!(one, Err(SendFailure::OutcomeUnknown(_))), "in hand: {one:?}");
    assert_eq!((two, seen), (Ok(()), vec!["one".into(), "two".into(), "three".into()]));
}

#[tokio::test]
async fn after_a_server_that_was_started_anew_senders_are_told_and_nothing_goes_again() {
    let (one, two, seen) = broken_under_way(Server::builder(), Some(Server::builder())).await;
    assert!(matches!(one, Err(SendFailure::OutcomeUnknown(_))), "{one:?}");
    assert!(matches!(two, Err(SendFailure::OutcomeUnknown(_))), "{two:?}");
    assert_eq!(seen, ["one", "three"]);
}

/// As a program that knows nothing of it does.
#[tokio::test]
async fn a_server_that_remembers_nothing_gets_nothing_twice() {
    let none = || {
        let limits = ClientSessionLimits { sessions_max: 0, ..ClientSessionLimits::default() };
        Server::builder().client_sessions(limits)
    };
    let (one, two, seen) = broken_under_way(none(), Some(none())).await;
    assert!(matches!(one, Err(SendFailure::OutcomeUnknown(_))), "{one:?}");
    assert!(matches!(two, Err(SendFailure::OutcomeUnknown(_))), "{two:?}");
    assert_eq!(seen, ["one", "three"]);
}

#[tokio::test]
async fn a_session_that_is_idle_for_long_is_forgotten_and_its_client_told() {
    let forgets = ClientSessionLimits { kept_for: Duration::ZERO, ..ClientSessionLimits::default() };
    let (server, address) = bind(Server::builder().client_sessions(forgets)).await;
    let mut given = sessions(server);
    let path = Cutter::start(address).await;
    let client = start(&path.address, eager());
    let one = send(&client, "one");
    let session = soon(given.recv()).await.unwrap();
    let in_hand = soon(session.recv_delivery()).await.unwrap().unwrap();
    path.lead_to(None);
    path.cut();
    // The server knows of the end before the client comes again.
    soon(session.ended()).await;
    in_hand.acknowledge();
    path.lead_to(Some(address));
    assert!(matches!(outcome(one).await, Err(SendFailure::OutcomeUnknown(_))));
}

#[tokio::test]
async fn what_was_handled_after_the_connection_broke_is_acknowledged_by_the_next() {
    let (server, address) = bind(Server::builder()).await;
    let mut given = sessions(server);
    let path = Cutter::start(address).await;
    let client = start(&path.address, eager());
    let one = send(&client, "one");
    let session = soon(given.recv()).await.unwrap();
    let in_hand = soon(session.recv_delivery()).await.unwrap().unwrap();
    path.lead_to(None);
    path.cut();
    soon(session.ended()).await;
    in_hand.acknowledge();
    path.lead_to(Some(address));
    assert_eq!(outcome(one).await, Ok(()));
}

#[tokio::test]
async fn a_full_queue_keeps_senders_waiting() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    for config in [
        ReconnectConfig { queue_messages_max: 2, ..eager() },
        ReconnectConfig { queue_bytes_max: 8, ..eager() },
    ] {
        let path = Cutter::start(address.parse().unwrap()).await;
        path.lead_to(None);
        let client = start(&path.address, config);
        let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(client.send("four"))).collect();
        for one in &mut waiting {
            assert!(futures_poll(one.as_mut()).await.is_none());
        }
        // The third has not been given: it is not there when the client has gone away.
        waiting.pop();
        let (server, address) = bind(Server::builder()).await;
        let mut given = sessions(server);
        path.lead_to(Some(address));
        let both = async { (waiting.remove(0).await, waiting.remove(0).await) };
        let takes = async {
            let session = given.recv().await.unwrap();
            for _ in 0..2 {
                assert_eq!(session.recv().await.unwrap().unwrap(), "four");
            }
            session
        };
        let (sent, session) = soon(async { tokio::join!(both, takes) }).await;
        assert_eq!(sent, (Ok(()), Ok(())));
        soon(client.close()).await;
        assert!(matches!(soon(session.recv()).await, Ok(None)));
    }
}

/// One poll.
async fn futures_poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(match future.as_mut().poll(cx) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test]
async fn a_wrong_token_is_the_end_with_the_reason() {
    let right = || Token::new("right").unwrap();
    let tokens = TokenSet::new(["right"]);
    let (server, address) = bind(Server::builder().authorize(tokens)).await;
    tokio::spawn(server.run(|_, _| async {}));
    let path = Cutter::start(address).await;
    let builder = Client::builder().token(Token::new("wrong").unwrap());
    let client = ReconnectingClient::start(&path.address, builder, eager()).unwrap();
    let sent = soon(client.send("x")).await;
    assert!(matches!(&sent, Err(SendFailure::NotSent(why)) if why.contains("not let in")), "{sent:?}");
    let state = reaches(&client, |state| matches!(state, State::Ended { .. })).await;
    assert!(matches!(&state, State::Ended { reason } if reason.contains("not let in")), "{state:?}");
    assert_eq!(path.connections(), 1);
    let client = ReconnectingClient::start(&path.address, Client::builder().token(right()), eager()).unwrap();
    assert_eq!(soon(client.send("x")).await, Ok(()));
}

#[tokio::test]
async fn attempts_are_bounded_where_that_was_set() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = gone.local_addr().unwrap().to_string();
    drop(gone);
    let client = start(&address, ReconnectConfig { attempts_max: NonZeroU32::new(3), ..eager() });
    assert!(matches!(soon(client.send("x")).await, Err(SendFailure::NotSent(_))));
    reaches(&client, |state| matches!(state, State::Ended { .. })).await;
}

#[tokio::test]
async fn closing_waits_until_everything_has_its_outcome_and_takes_nothing_more() {
    let (server, address) = bind(Server::builder()).await;
    let mut given = sessions(server);
    let path = Cutter::start(address).await;
    path.lead_to(None);
    let client = start(&path.address, eager());
    let sending: Vec<_> = (0..10).map(|n| send(&client, &n.to_string())).collect();
    tokio::task::yield_now().await;
    let mut closes = Box::pin(client.close());
    assert!(futures_poll(closes.as_mut()).await.is_none());
    let late = send(&client, "late");
    assert!(matches!(outcome(late).await, Err(SendFailure::NotSent(_))));
    path.lead_to(Some(address));
    let takes = async {
        let session = given.recv().await.unwrap();
        for n in 0..10 {
            assert_eq!(session.recv().await.unwrap().unwrap(), n.to_string());
        }
        assert!(session.recv().await.unwrap().is_none());
    };
    soon(async { tokio::join!(closes, takes) }).await;
    for one in sending {
        assert_eq!(outcome(one).await, Ok(()));
    }
}

//! The end of a server of CNP, and what an acknowledgement means then.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use fastdrop_messages::cnp::{Client, Config, Delivery, Ending, Mode, Receipt, Server, Session};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};

const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

async fn client(udp: bool, mode: Mode, server: SocketAddr) -> Client {
    let builder = Client::builder().mode(mode);
    soon(if udp { builder.udp() } else { builder }.connect(server)).await.unwrap()
}

/// Messages that are under way, and which of them are acknowledged in the end.
async fn submit(client: &Client, count: usize) -> Vec<(String, Receipt)> {
    let mut receipts = Vec::new();
    for n in 0..count {
        let message = format!("message {n}");
        receipts.push((message.clone(), soon(client.submit_with_receipt(message)).await.unwrap()));
    }
    receipts
}

async fn acknowledged(receipts: Vec<(String, Receipt)>) -> BTreeSet<String> {
    let mut acknowledged = BTreeSet::new();
    for (message, receipt) in receipts {
        if soon(receipt.acknowledged()).await.is_ok() {
            acknowledged.insert(message);
        }
    }
    acknowledged
}

type Handled = Arc<Mutex<BTreeSet<String>>>;

/// Whatever is under way, in either way to acknowledge: what was acknowledged is what was handled,
/// and nothing is taken after the word to end.
#[tokio::test]
async fn case_128_what_is_acknowledged_has_been_handled_and_a_server_that_ends_takes_nothing_more() {
    for udp in [false, true] {
        for (mode, manual) in [(Mode::Burst, false), (Mode::Burst, true), (Mode::StepByStep, true)] {
            let server = Server::bind("127.0.0.1:0").await.unwrap();
            let address = server.local_addr();
            let (handled, begun) = (Handled::default(), Arc::new(Semaphore::new(0)));
            let (go, end) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
            let ending = Arc::clone(&end);
            let ended = async move { ending.notified().await };
            let work = {
                let (handled, begun, go) = (Arc::clone(&handled), Arc::clone(&begun), Arc::clone(&go));
                move |session: Session, message: bytes::Bytes| {
                    let (handled, begun, go) = (Arc::clone(&handled), Arc::clone(&begun), Arc::clone(&go));
                    async move {
                        begun.add_permits(1);
                        go.acquire().await.unwrap().forget();
                        // A handler at work may still say something.
                        session.submit("done").await.unwrap();
                        handled.lock().unwrap().insert(String::from_utf8(message.to_vec()).unwrap());
                    }
                }
            };
            let serving = match manual {
                false => tokio::spawn(async move {
                    let report = server.run_until(ended, work).await;
                    assert_eq!(report.unfinished, []);
                }),
                true => tokio::spawn(server.serve_until(ended, move |delivery: Delivery| {
                    let work = work(delivery.session().clone(), delivery.message().clone());
                    async move {
                        work.await;
                        delivery.acknowledge();
                    }
                })),
            };
            let client = client(udp, mode, address).await;
            let receipts = submit(&client, 200).await;
            go.add_permits(7);
            soon(begun.acquire_many(8)).await.unwrap().forget();
            // The eighth is at work, and the others have arrived or are under way.
            end.notify_one();
            let more = tokio::spawn({
                let client = client.clone();
                async move { while client.submit("after the end").await.is_ok() {} }
            });
            tokio::task::yield_now().await;
            go.add_permits(1000);
            let received = tokio::spawn({
                let client = client.clone();
                async move {
                    let mut count = 0;
                    while client.recv().await.is_ok_and(|message| message.is_some()) {
                        count += 1;
                    }
                    count
                }
            });
            soon(serving).await.unwrap();
            let acknowledged = acknowledged(receipts).await;
            let handled = handled.lock().unwrap().clone();
            assert_eq!(acknowledged, handled, "udp: {udp}, {mode:?}, manual: {manual}");
            assert!((8..=9).contains(&handled.len()), "{} were handled", handled.len());
            assert_eq!(soon(received).await.unwrap(), handled.len(), "what handlers said");
            soon(more).await.unwrap();
        }
    }
}

#[tokio::test]
async fn case_128_what_was_acknowledged_and_not_finished_in_time_is_reported() {
    for udp in [false, true] {
        let server = Server::builder().drain(Duration::from_millis(200)).bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr();
        let (begun, end) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
        let serving = tokio::spawn({
            let (begun, end) = (Arc::clone(&begun), Arc::clone(&end));
            server.run_until(async move { end.notified().await }, move |_, message| {
                let begun = Arc::clone(&begun);
                async move {
                    begun.add_permits(1);
                    if message == "for ever" {
                        std::future::pending::<()>().await;
                    }
                    assert_ne!(message, "a panic", "as was asked");
                }
            })
        });
        let (stuck, fine) =
            (client(udp, Mode::Burst, address).await, client(udp, Mode::Burst, address).await);
        let panics = client(udp, Mode::Burst, address).await;
        soon(panics.submit("a panic")).await.unwrap();
        soon(fine.send("soon done")).await.unwrap();
        soon(stuck.send("for ever")).await.unwrap();
        soon(begun.acquire_many(3)).await.unwrap().forget();
        end.notify_one();
        let report = soon(serving).await.unwrap();
        let unfinished: Vec<_> = report.unfinished.iter().map(|one| &one.message[..]).collect();
        assert_eq!(unfinished, [b"for ever"], "udp: {udp}");
        assert_eq!(report.unfinished[0].peer.ip(), address.ip());
        // Its client is told, and need not find out by silence.
        let ended = soon(stuck.ended()).await;
        assert!(matches!(ended, Ending::PeerClosed | Ending::PeerError(_)), "{ended:?}");
    }
}

#[tokio::test]
async fn case_128_a_delivery_in_hand_is_waited_for_and_one_in_the_queue_is_not_acknowledged() {
    for udp in [false, true] {
        let mut server = Server::builder().config(Config::default()).bind("127.0.0.1:0").await.unwrap();
        let client = client(udp, Mode::Burst, server.local_addr()).await;
        let session = soon(server.accept()).await.unwrap();
        let receipts = submit(&client, 3).await;
        let first = soon(session.recv_delivery()).await.unwrap().unwrap();
        let closing = tokio::spawn(server.close());
        // When the server's word reaches the session, nothing more is handed out.
        let mut in_hand = vec![first];
        while let Some(delivery) = soon(session.recv_delivery()).await.unwrap() {
            in_hand.push(delivery);
        }
        assert!(soon(session.recv()).await.unwrap().is_none());
        assert!(!closing.is_finished());
        soon(session.submit("an answer")).await.unwrap();
        let handed: BTreeSet<_> =
            in_hand.iter().map(|delivery| String::from_utf8(delivery.message().to_vec()).unwrap()).collect();
        in_hand.into_iter().rev().for_each(Delivery::acknowledge);
        assert_eq!(soon(client.recv()).await.unwrap().unwrap(), "an answer");
        soon(closing).await.unwrap();
        assert_eq!(acknowledged(receipts).await, handed, "udp: {udp}");
    }
}

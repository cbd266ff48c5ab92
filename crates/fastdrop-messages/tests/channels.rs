//! Channels over UDP, through real sockets.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use fastdrop_messages::vstp::udp::{Channel, Priority, SendOptions};
use fastdrop_messages::vstp::{FrameBytes, FrameType, HeadersBuf, VstpUdpClient, VstpUdpServer};
use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

fn numbered(n: u32) -> FrameBytes {
    FrameBytes::new(FrameType::Data, HeadersBuf::default(), n.to_string().into())
}

fn number(frame: &FrameBytes) -> u32 {
    std::str::from_utf8(&frame.payload).unwrap().parse().unwrap()
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.expect("within a minute")
}

/// The outputs of futures that begin in this order, and go on beside each other.
async fn all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    poll_fn(|context| {
        for (future, output) in futures.iter_mut().filter(|(_, output)| output.is_none()) {
            if let Poll::Ready(ready) = future.as_mut().poll(context) {
                *output = Some(ready);
            }
        }
        let is_over = futures.iter().all(|(_, output)| output.is_some());
        if is_over { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    futures.into_iter().filter_map(|(_, output)| output).collect()
}

#[tokio::test]
async fn states_come_in_order_and_the_last_one_comes() {
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let client = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    let to = server.local_addr().unwrap();
    for n in 1..300 {
        client.post_state(numbered(n), to, 7).unwrap();
    }
    let options = SendOptions::sequenced(7);
    let last = in_time(client.send_on(numbered(300), to, &options));
    let come = async {
        let mut newest = 0;
        while newest < 300 {
            let (frame, _) = server.recv_bytes().await.unwrap();
            assert_eq!(Channel::of(&frame), Some(Channel::Sequenced(7)));
            assert!(number(&frame) > newest, "{} after {newest}", number(&frame));
            newest = number(&frame);
        }
    };
    let (last, ()) = tokio::join!(last, in_time(come));
    assert_eq!(last, Ok(()));
}

#[tokio::test]
async fn words_come_in_order_beside_a_file_that_has_its_cap() {
    const FILE: usize = 600_000;
    let server = VstpUdpServer::bind("127.0.0.1:0").await.unwrap();
    let client = VstpUdpClient::bind("127.0.0.1:0").await.unwrap();
    let to = server.local_addr().unwrap();
    client.set_bulk_rate(Some(2_000_000));
    let file = FrameBytes::new(FrameType::Data, HeadersBuf::default(), vec![0; FILE].into());
    let bulk = SendOptions::acknowledged().with_priority(Priority::Bulk);
    let began_at = Instant::now();
    let file = async {
        client.send_on(file, to, &bulk).await.unwrap();
        began_at.elapsed()
    };
    let options = [1, 2].map(|channel| SendOptions::ordered(channel).with_priority(Priority::High));
    let words = all((0..400).map(|n| client.send_on(numbered(n), to, &options[n as usize % 2])));
    let come = async {
        let (mut next, mut files) = ([0, 1], 0);
        while next != [400, 401] || files == 0 {
            let (frame, _) = server.recv_bytes().await.unwrap();
            match Channel::of(&frame) {
                Some(Channel::Ordered(channel)) => {
                    let next = &mut next[channel as usize - 1];
                    assert_eq!(number(&frame), *next);
                    *next += 2;
                }
                _ => files += 1,
            }
        }
    };
    let (took, words, ()) = in_time(async { tokio::join!(file, words, come) }).await;
    assert!(words.len() == 400 && words.iter().all(Result::is_ok));
    // A cap is never exceeded, however slow the machine is.
    assert!(took >= Duration::from_millis(280), "{took:?}");
}

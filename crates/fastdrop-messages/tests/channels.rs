//! Channels over UDP, through real sockets.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "helpers of tests")]

use fastdrop_messages::vstp::udp::{Channel, SendOptions};
use fastdrop_messages::vstp::{FrameBytes, FrameType, HeadersBuf, VstpUdpClient, VstpUdpServer};
use std::time::Duration;

fn numbered(n: u32) -> FrameBytes {
    FrameBytes::new(FrameType::Data, HeadersBuf::default(), n.to_string().into())
}

fn number(frame: &FrameBytes) -> u32 {
    std::str::from_utf8(&frame.payload).unwrap().parse().unwrap()
}

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.expect("within a minute")
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

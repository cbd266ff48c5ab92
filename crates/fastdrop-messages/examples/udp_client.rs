//! Sends by UDP: a datagram, one that is acknowledged, and 20 MB: `cargo run -p fastdrop-messages
//! --example udp_client [ADDRESS]`.

#![allow(clippy::print_stdout, reason = "an example")]

use fastdrop_messages::vstp::{Frame, FrameType, VstpError, VstpUdpClient};
use std::time::Instant;

#[tokio::main]
async fn main() -> Result<(), VstpError> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:6969".into());
    let server = address.parse().map_err(|_| VstpError::InvalidAddress)?;
    let client = VstpUdpClient::bind("0.0.0.0:0").await?;
    let data = |payload: &[u8]| {
        Frame::new(FrameType::Data).with_header("from", "udp_client").with_payload(payload.into())
    };
    client.send(data(b"hello by UDP"), server).await?;
    client.send_with_ack(data(b"are you sure?"), server).await?;
    println!("acknowledged");
    let start = Instant::now();
    client.send_with_ack(data(&vec![7; 20_000_000]), server).await?;
    println!("20 MB in {:.3} s", start.elapsed().as_secs_f64());
    Ok(())
}

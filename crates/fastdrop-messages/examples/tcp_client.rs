//! Says HELLO by TCP, sends a frame, one more until it is acknowledged, and BYE: `cargo run -p fastdrop-messages --example tcp_client [ADDRESS]`.

#![allow(clippy::print_stdout, reason = "an example")]

use fastdrop_messages::vstp::{Flags, Frame, FrameType, VstpError, VstpTcpClient};

#[tokio::main]
async fn main() -> Result<(), VstpError> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:6969".into());
    let mut client = VstpTcpClient::connect(&address).await?;
    client.send_hello().await?;
    if let Some(welcome) = client.recv().await? {
        println!("{:?}, session {}", welcome.typ, welcome.get_header("session").unwrap_or("unknown"));
    }
    let frame = Frame::new(FrameType::Data)
        .with_header("content-type", "text/plain")
        .with_payload(b"hello by TCP".to_vec())
        .with_flag(Flags::CRC);
    client.send(frame.clone()).await?;
    client.send_with_ack(frame).await?;
    println!("acknowledged");
    client.close().await?;
    // What the server still has to say; here, nothing.
    while let Some(frame) = client.recv().await? {
        println!("{:?}", frame.typ);
    }
    Ok(())
}

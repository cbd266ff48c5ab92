//! Prints every frame that comes by TCP: `cargo run -p fastdrop-messages --example tcp_server [ADDRESS]`.

#![allow(clippy::print_stdout, reason = "an example")]

use fastdrop_messages::vstp::{Frame, SessionId, VstpError, VstpTcpServer};

#[tokio::main]
async fn main() -> Result<(), VstpError> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:6969".into());
    let server = VstpTcpServer::bind(address).await?;
    println!("listening on {}", server.local_addr()?);
    server.run(show).await
}

async fn show(session: SessionId, frame: Frame) {
    println!(
        "session {session}: {:?}, {} headers, {} bytes",
        frame.typ,
        frame.headers.len(),
        frame.payload.len()
    );
    if let Ok(text) = std::str::from_utf8(frame.payload()) {
        println!("  {text:?}");
    }
}

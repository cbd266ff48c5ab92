//! Prints every message that comes by UDP: `cargo run -p fastdrop-messages --example udp_server [ADDRESS]`.

#![allow(clippy::print_stdout, reason = "an example")]

use fastdrop_messages::vstp::{Frame, VstpError, VstpUdpServer};
use std::net::SocketAddr;

#[tokio::main]
async fn main() -> Result<(), VstpError> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:6969".into());
    let server = VstpUdpServer::bind(&address).await?;
    println!("listening on {}", server.local_addr()?);
    server.run(show).await
}

async fn show(from: SocketAddr, frame: Frame) {
    println!("{from}: {:?}, {} headers, {} bytes", frame.typ, frame.headers.len(), frame.payload.len());
}

//! Prints every message of CNP that comes by TCP or UDP, and sends it back: `cargo run -p fastdrop-messages --example cnp_server [ADDRESS]`.

#![allow(clippy::print_stdout, reason = "an example")]

use fastdrop_messages::cnp::{Error, Server, Session};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:5000".into());
    let server = Server::bind(address).await?;
    println!("listening on {}", server.local_addr());
    server
        .run(|session: Session, message| async move {
            let (from, transport) = (session.peer_addr(), session.transport());
            println!("{from} by {transport}: {:?}", String::from_utf8_lossy(&message));
            if let Err(error) = session.submit(message).await {
                println!("{from}: {error}");
            }
        })
        .await;
    Ok(())
}

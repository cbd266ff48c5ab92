//! Sends messages of CNP, and prints what comes back: `cargo run -p fastdrop-messages --example cnp_client ADDRESS MESSAGE...`.

#![allow(clippy::print_stdout, reason = "an example")]

use fastdrop_messages::cnp::{Client, Config, Error, Mode};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut words = std::env::args().skip(1);
    let address = words.next().unwrap_or_else(|| "127.0.0.1:5000".into());
    let messages: Vec<String> = words.collect();
    let client =
        Client::builder().mode(Mode::Burst).config(Config::default().window(64)).connect(address).await?;
    println!("session {}", client.agreed().id);
    for message in &messages {
        client.submit(message.clone()).await?;
    }
    client.flush().await?;
    println!("{} messages have arrived", messages.len());
    for _ in &messages {
        if let Some(answer) = client.recv().await? {
            println!("{:?}", String::from_utf8_lossy(&answer));
        }
    }
    println!("round trips: {:?}", client.stats().rtt);
    client.close().await
}

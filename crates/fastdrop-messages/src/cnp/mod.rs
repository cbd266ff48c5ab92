//! CNP: acknowledged messages over TCP and UDP.
//!
//! A message that was sent has arrived when [`Session::send`] returns. Messages arrive once and in
//! order, whatever carries them. What stands on the wire is in `docs/protocol/cnp.md`.
//!
//! ```
//! use fastdrop_messages::cnp::{Client, Server};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), fastdrop_messages::cnp::Error> {
//! let server = Server::bind("127.0.0.1:0").await?;
//! let address = server.local_addr();
//! tokio::spawn(server.run(|session, message| async move {
//!     if let Err(error) = session.send(message).await {
//!         eprintln!("no echo for {}: {error}", session.peer_addr());
//!     }
//! }));
//! let client = Client::connect(address).await?;
//! client.send("hello").await?;
//! assert_eq!(client.recv().await?.as_deref(), Some(&b"hello"[..]));
//! client.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Many messages are faster when nobody waits for each: [`Session::submit`] takes a message when
//! there is room for it, and [`Session::flush`] waits until all of them have arrived.
//!
//! ```
//! # use fastdrop_messages::cnp::{Client, Config, Mode, Protocol, Server};
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), fastdrop_messages::cnp::Error> {
//! # let server = Server::builder().tcp(false).bind("127.0.0.1:0").await?;
//! # let address = server.local_addr();
//! # tokio::spawn(server.run(|_, _| async {}));
//! let client = Client::builder()
//!     .udp()
//!     .mode(Mode::Burst)
//!     .protocol(Protocol::GoBackN)
//!     .config(Config::default().window(1024))
//!     .connect(address)
//!     .await?;
//! for n in 0..1000 {
//!     client.submit(format!("message {n}")).await?;
//! }
//! client.flush().await?;
//! assert_eq!(client.stats().counters.messages_acknowledged, 1000);
//! client.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! An application that has to do something with a message before it may be acknowledged takes a
//! [`Delivery`]: [`Session::recv_delivery`], [`Server::serve_until`].

mod call_table;
mod calls;
mod client;
mod clock;
mod config;
mod delivery;
mod drain;
mod driver;
mod error;
mod in_hand;
mod link;
mod listener;
#[cfg(test)]
mod one_read;
mod server;
mod session;
mod sessions;
mod tally;
mod wire;

pub use calls::{Call, CallError, Request};
pub use client::{Client, ClientBuilder};
pub use config::Config;
pub use delivery::Delivery;
pub use drain::{DrainReport, Unfinished};
pub use error::{Error, Fault};
pub use fastdrop_proto::cnp::{
    Agreed, CallRefusal, ChecksumKind, ConfigError, Counters, Ending, ErrorCode, Generation, MessageLimits,
    Mode, PeerError, Protocol, SessionId, WINDOW_MAX,
};
pub use server::{Server, ServerBuilder};
pub use session::{Messages, Receipt, Session, Stats, TrySendError};

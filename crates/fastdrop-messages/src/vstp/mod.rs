//! VSTP: frames over TCP, TLS 1.3 and UDP.
//!
//! The names are those of the crate `vstp` 0.2: a program that was written for it changes its
//! dependency, adds `use fastdrop_messages::vstp;`, and runs. What stands on the wire, and what
//! this crate adds to it, is in `docs/protocol/vstp.md`.
//!
//! ```
//! use fastdrop_messages::vstp::{Frame, FrameType, VstpTcpClient, VstpTcpServer};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), fastdrop_messages::vstp::VstpError> {
//! let server = VstpTcpServer::bind("127.0.0.1:0").await?;
//! let address = server.local_addr()?;
//! let echo = tokio::spawn(async move {
//!     let mut connection = server.accept().await?;
//!     while let Some(frame) = connection.recv().await? {
//!         if frame.typ == FrameType::Data {
//!             connection.send(frame).await?;
//!         }
//!     }
//!     Ok::<_, fastdrop_messages::vstp::VstpError>(())
//! });
//! let mut client = VstpTcpClient::connect(&address.to_string()).await?;
//! let frame = Frame::new(FrameType::Data).with_header("n", "1").with_payload(b"hello".to_vec());
//! client.send(frame.clone()).await?;
//! assert_eq!(client.recv().await?, Some(frame));
//! client.close().await?;
//! echo.await.expect("the server does not panic")
//! # }
//! ```
//!
//! A game sends states of which only the newest counts, words that have to come in order, and a
//! file that must disturb neither:
//!
//! ```
//! use fastdrop_messages::vstp::udp::{Channel, Priority, SendOptions};
//! use fastdrop_messages::vstp::{FrameBytes, FrameType, HeadersBuf, VstpUdpClient, VstpUdpServer};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # fn frame(text: &'static str) -> FrameBytes {
//! #     FrameBytes::new(FrameType::Data, HeadersBuf::default(), text.into())
//! # }
//! const PLACES: u32 = 1;
//! const WORDS: u32 = 2;
//! let server = VstpUdpServer::bind("127.0.0.1:0").await?;
//! let to = server.local_addr()?;
//! let player = tokio::spawn(async move {
//!     let (mut words, mut has_file) = (Vec::new(), false);
//!     while words.len() < 2 || !has_file {
//!         let (frame, _) = server.recv_bytes().await?;
//!         match Channel::of(&frame) {
//!             Some(Channel::Sequenced(PLACES)) => println!("now at {:?}", frame.payload),
//!             Some(Channel::Ordered(WORDS)) => words.push(frame.payload),
//!             _ => has_file = true,
//!         }
//!     }
//!     Ok::<_, fastdrop_messages::vstp::VstpError>(words)
//! });
//! let client = VstpUdpClient::bind("127.0.0.1:0").await?;
//! client.set_bulk_rate(Some(1_000_000));
//! let file = FrameBytes::new(FrameType::Data, HeadersBuf::default(), vec![0; 50_000].into());
//! let bulk = SendOptions::acknowledged().with_priority(Priority::Bulk);
//! let words = SendOptions::ordered(WORDS);
//! // Nothing waits for this to leave: a newer place would replace it.
//! client.post_state(frame("12 7"), to, PLACES)?;
//! tokio::try_join!(
//!     client.send_on(file, to, &bulk),
//!     client.send_on(frame("hello"), to, &words),
//!     client.send_on(frame("all"), to, &words),
//! )?;
//! assert_eq!(player.await??, ["hello", "all"]);
//! # Ok(())
//! # }
//! ```
//!
//! | who wants | takes |
//! | --- | --- |
//! | frames over TCP | [`VstpTcpServer`], [`VstpTcpClient`] |
//! | frames over UDP, of any size, acknowledged where wanted | [`VstpUdpServer`], [`VstpUdpClient`] |
//! | states, orders and bulk over UDP that do not hold up each other | the same with [`udp::SendOptions`] |
//! | one connection for many tasks, and calls | [`tcp::Session`], [`VstpTcpServer::serve_calls`] |
//! | to send to clients from anywhere | [`VstpTcpServer::run_with_peers`], [`VstpUdpServer::run_with_peers`] |
//! | a client that connects again, and frames that are handled once all the same | [`tcp::Reconnecting`] |
//! | typed messages as JSON over either | [`VstpServer`], [`VstpClient`] |
//! | no copies | [`FrameBytes`], and the methods that end in `_bytes` |
//! | a codec alone | [`encode_frame`], [`try_decode_frame`], [`VstpFrameCodec`] |
//!
#![doc = include_str!("programs.md")]

mod call;
/// A codec for `tokio_util`.
pub mod codec;
/// Typed messages over either transport.
#[cfg(feature = "json")]
pub mod easy;
/// Frames to bytes and back.
pub mod frame;
mod held;
/// Frames over TCP and TLS.
pub mod tcp;
/// Frames, headers, errors.
pub mod types;
/// Frames and messages over UDP.
pub mod udp;

pub use call::Call;
pub use codec::VstpFrameCodec;
#[cfg(feature = "json")]
pub use easy::{VstpClient, VstpServer};
pub use fastdrop_proto::vstp::{FrameBytes, HeadersBuf};
pub use frame::{encode_frame, try_decode_frame};
pub use tcp::{VstpTcpClient, VstpTcpServer};
pub use types::{Flags, Frame, FrameType, Header, SessionId, VSTP_MAGIC, VSTP_VERSION, VstpError};
pub use udp::{VstpUdpClient, VstpUdpServer};

//! Moving files: the transfer engine of FastDrop, its client and its server.
//!
//! The protocol's decisions are made in `fastdrop-proto`; this crate gives
//! them sockets, files, threads and time.

mod admission;
mod client;
mod codec;
mod context;
mod error;
mod gate;
mod legacy;
mod lock;
mod net;
mod observe;
mod protocol;
mod random;
mod server;
mod source;
mod stop;
mod storage;
mod thread;
mod transfer;

pub use client::{Client, GetOptions, Put, PutOptions};
pub use context::client::asked::{Asked, Flag};
pub use context::client::destination::Destination;
pub use context::client::flags::{Action, Setting};
pub use context::client::options::{ClientOptions, Compress};
pub use context::client::summary::{Listed, ListedKind, Listing, Summary};
pub use context::client::target::{Target, TargetError};
pub use context::password::Password;
pub use context::server::options::{NextDpCompression, ServerOptions};
pub use error::{Error, ErrorKind};
pub use fastdrop_proto::checksum::Algorithm;
pub use fastdrop_proto::fastdownloader::Dialect as FastDownloaderDialect;
pub use fastdrop_proto::fastdp::{
    Code, Durability, Existing, Failed, Failure, Links, Refuse, Streams, Violation,
};
pub use observe::{Limits, Observer, Phase, Shares, Warning};
pub use protocol::{Accept, Protocol, UnknownProtocol};
pub use server::{Server, ServerError};
pub use source::filter::{Filter, FilterError};
pub use stop::Stop;

/// Shows a name that came from elsewhere: what could steer a terminal or break a line is escaped.
pub fn shown(name: &[u8]) -> String {
    let mut out = String::with_capacity(name.len());
    for part in name.utf8_chunks() {
        for char in part.valid().chars() {
            // Beside control characters, those that reorder or hide text.
            let hidden = matches!(char, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}');
            if char.is_control() || hidden || char == '\\' {
                out.extend(char.escape_default());
            } else {
                out.push(char);
            }
        }
        for byte in part.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn case_57_a_shown_name_cannot_steer_a_terminal() {
        let shown = super::shown("a\x1b[2J\r\n\u{202e}ü\\".as_bytes());
        assert_eq!(shown, "a\\u{1b}[2J\\r\\n\\u{202e}ü\\\\");
        assert_eq!(super::shown(b"\xff."), "\\xff.");
    }
}

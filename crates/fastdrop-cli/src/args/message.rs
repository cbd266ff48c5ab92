//! The command line of `fastdrop message` as it is typed.

use crate::address::Address;
use crate::units::{parse_duration, parse_size};
use clap::builder::FalseyValueParser;
use clap::{Args, Subcommand, ValueEnum};
use fastdrop_messages::cnp::WINDOW_MAX;
use fastdrop_messages::tls::Fingerprint;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Send and receive messages
#[derive(Debug, Subcommand)]
pub(crate) enum Message {
    /// Print the messages that come
    Listen(Listen),
    /// Send messages
    #[command(override_usage = "fastdrop message send [OPTIONS] [MESSAGE]... <TARGET>")]
    Send(Send),
}

/// Protocols that a listener understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Spoken {
    /// Binary frames
    Vstp,
    /// Acknowledged messages
    Cnp,
    /// Both, told apart by the first byte, or by what the client names inside TLS
    All,
}

/// The protocol that a sender speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// Binary frames
    Vstp,
    /// Acknowledged messages
    Cnp,
}

impl Protocol {
    /// The port of a target that names none.
    pub(crate) fn default_port(self) -> u16 {
        match self {
            Self::Vstp => 6969,
            Self::Cnp => 5000,
        }
    }
}

/// The number of messages that may be unacknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OperationMode {
    /// One
    StepByStep,
    /// A window of them
    Burst,
}

/// Messages that are sent again after a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Repeat {
    /// Only the packets that were lost (Selective Repeat)
    Lost,
    /// The packets that were lost and all after them (Go-Back-N)
    All,
}

/// The checksum that covers packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Checksum {
    /// CRC-32C of header and payload
    Crc32c,
    /// MD5 of the payload
    Md5,
}

#[derive(Debug, Args)]
pub(crate) struct Listen {
    /// The protocol
    #[arg(long, value_enum, default_value = "all", value_name = "NAME")]
    pub(crate) protocol: Spoken,
    /// Listen on this address; 0.0.0.0 or :: for every one of this machine; a link-local one with
    /// its zone, as fe80::1%eth0
    #[arg(long, alias = "host", default_value = "127.0.0.1", value_name = "ADDR", value_parser = str::parse::<Address>)]
    pub(crate) bind: Address,
    /// Listen on this port; 0 picks one [default: 6969; for cnp alone 5000]
    #[arg(short, long)]
    pub(crate) port: Option<u16>,
    /// By TCP; without --tcp and --udp, by both, but with --tls or --cert by TCP alone, and so with
    /// tokens where vstp is spoken
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub(crate) tcp: bool,
    /// By UDP
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub(crate) udp: bool,
    /// vstp: bytes of a message, by TCP with its headers, 8M unless said, by UDP 256M; cnp: bytes
    /// of a packet, 64K unless said
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) max_size: Option<u64>,
    /// cnp: bytes of a message that comes in fragments, 16M unless said
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) max_message: Option<u64>,
    /// cnp: the pause between a packet that nothing answers and data behind it, towards programs
    /// that take one packet a read [default: 50ms]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) packet_pause: Option<Duration>,
    /// Send each message back
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub(crate) echo: bool,
    /// Encrypt with a certificate made for this run; its fingerprint is printed for --pin
    #[arg(long, conflicts_with = "udp", value_parser = FalseyValueParser::new())]
    pub(crate) tls: bool,
    /// Encrypt with this certificate chain (PEM)
    #[arg(long, alias = "tls-cert", value_name = "FILE", requires = "key", conflicts_with_all = ["tls", "udp"])]
    pub(crate) cert: Option<PathBuf>,
    /// The certificate's key (PEM)
    #[arg(long, alias = "tls-key", value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
    /// With --tls or --cert, let in only clients whose certificate is one of these, or is signed by
    /// one of these (PEM)
    #[arg(long, value_name = "FILE")]
    pub(crate) client_ca: Option<PathBuf>,
    /// Let in only clients with one of the tokens in this file, one a line; or with the one in the
    /// variable FASTDROP_TOKEN, as the line `listening` then says. vstp has none by UDP
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Send {
    /// Messages, then host[:port]; without messages, each line of standard input is one
    #[arg(required = true, num_args = 1.., value_names = ["MESSAGE", "TARGET"])]
    pub(crate) words: Vec<OsString>,
    /// The protocol
    #[arg(long, value_enum, default_value = "vstp", value_name = "NAME")]
    pub(crate) protocol: Protocol,
    /// By TCP (this is the default)
    #[arg(long, conflicts_with = "udp", value_parser = FalseyValueParser::new())]
    pub(crate) tcp: bool,
    /// By UDP
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub(crate) udp: bool,
    /// cnp: how many messages may be unacknowledged [default: burst]
    #[arg(long, value_enum, value_name = "MODE")]
    pub(crate) operation_mode: Option<OperationMode>,
    /// cnp: packets that may be unacknowledged in burst mode [default: 256]
    #[arg(long, value_name = "PACKETS", value_parser = clap::value_parser!(u16).range(1..=i64::from(WINDOW_MAX)))]
    pub(crate) window: Option<u16>,
    /// cnp: what is sent again after a loss [default: lost]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) repeat: Option<Repeat>,
    /// cnp: bytes of a packet [default: 64K, by UDP 1K]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) max_size: Option<u64>,
    /// cnp: what packets are covered with [default: crc32c, if the listener knows it]
    #[arg(long, value_enum, value_name = "NAME")]
    pub(crate) packet_checksum: Option<Checksum>,
    /// cnp: how this end calls itself
    #[arg(long, value_name = "NAME")]
    pub(crate) client_id: Option<String>,
    /// cnp: the pause between a packet that nothing answers and data behind it, towards programs
    /// that take one packet a read [default: 50ms]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) packet_pause: Option<Duration>,
    /// cnp: say at the end how long round trips took, what was sent again, and how much arrived a
    /// second
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub(crate) stats: bool,
    /// vstp: a header of every message
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_header)]
    pub(crate) header: Vec<(String, String)>,
    /// Wait until each message has been acknowledged, which a listener does when it has written it
    /// out; cnp always waits
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub(crate) ack: bool,
    /// Each line of this file is a message; `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// The file as a whole is one message
    #[arg(long, requires = "file", value_parser = FalseyValueParser::new())]
    pub(crate) whole: bool,
    /// vstp: compress with Zstandard what becomes smaller; only FastDrop decompresses it
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub(crate) zstd: bool,
    /// By TCP, encrypt, and trust the listener whose certificate has this fingerprint
    /// (SHA-256)
    #[arg(long, value_name = "HEX", conflicts_with_all = ["ca", "udp"], value_parser = parse_fingerprint)]
    pub(crate) pin: Option<Fingerprint>,
    /// By TCP, encrypt, and trust listeners whose certificate is one of these, or is signed by one
    /// of these for the host that is named (PEM)
    #[arg(long, value_name = "FILE", conflicts_with = "udp")]
    pub(crate) ca: Option<PathBuf>,
    /// With --pin or --ca, show the listener this certificate chain (PEM)
    #[arg(long, value_name = "FILE", requires = "client_key", conflicts_with = "udp")]
    pub(crate) client_cert: Option<PathBuf>,
    /// The certificate's key (PEM)
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    pub(crate) client_key: Option<PathBuf>,
    /// Show the listener the token in the first line of this file, or else the one in the variable
    /// FASTDROP_TOKEN; to another machine only with --pin or --ca. vstp has none by UDP
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("not KEY=VALUE")?;
    if key.len() > 255 || value.len() > 255 {
        return Err("more than 255 bytes".into());
    }
    Ok((key.into(), value.into()))
}

fn parse_fingerprint(text: &str) -> Result<Fingerprint, String> {
    Fingerprint::from_hex(text).ok_or_else(|| "not 64 hexadecimal digits".into())
}

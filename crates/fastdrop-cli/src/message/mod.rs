//! `fastdrop message`: messages as lines.

use crate::args::Common;
use crate::exit::ExitCode;
use crate::output::{Output, complain};
use crate::run::{Refused, begin};
use crate::units::parse_size;
use clap::builder::FalseyValueParser;
use clap::{Args, Subcommand, ValueEnum};
use fastdrop_messages::vstp::VstpError;
use fastdrop_messages::vstp::tcp::tls::Fingerprint;
use serde_json::json;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

mod listen;
mod send;

/// What is done with messages.
#[derive(Debug, Subcommand)]
pub(crate) enum Message {
    /// Print the messages that come
    Listen(Listen),
    /// Send messages
    #[command(override_usage = "fastdrop message send [OPTIONS] [MESSAGE]... <TARGET>")]
    Send(Send),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Spoken {
    /// Binary frames
    Vstp,
    /// All of them
    All,
}

#[derive(Debug, Args)]
pub(crate) struct Listen {
    /// The protocol
    #[arg(long, value_enum, default_value = "all", value_name = "NAME")]
    pub(crate) protocol: Spoken,
    /// Listen on this address; 0.0.0.0 or :: for every one of this machine
    #[arg(long, alias = "host", default_value = "127.0.0.1", value_name = "ADDR")]
    pub(crate) bind: IpAddr,
    /// Listen on this port; 0 picks one
    #[arg(short, long, default_value_t = 6969)]
    pub(crate) port: u16,
    /// By TCP; without --tcp and --udp, by both, but with --tls or --cert by TCP alone
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub(crate) tcp: bool,
    /// By UDP
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub(crate) udp: bool,
    /// Bytes of a message: by TCP with its headers, 8M unless said; by UDP 256M
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) max_size: Option<u64>,
    /// Send each message back
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub(crate) echo: bool,
    /// Encrypt with a certificate made for this run; its fingerprint is printed for --pin
    #[arg(long, conflicts_with = "udp", value_parser = FalseyValueParser::new())]
    pub(crate) tls: bool,
    /// Encrypt with this certificate chain (PEM)
    #[arg(long, value_name = "FILE", requires = "key", conflicts_with_all = ["tls", "udp"])]
    pub(crate) cert: Option<PathBuf>,
    /// The certificate's key (PEM)
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub(crate) key: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Send {
    /// Messages, then host[:port]; without messages, each line of standard input is one
    #[arg(required = true, num_args = 1.., value_names = ["MESSAGE", "TARGET"])]
    pub(crate) words: Vec<OsString>,
    /// The protocol
    #[arg(long, value_enum, default_value = "vstp", value_name = "NAME")]
    pub(crate) protocol: Spoken,
    /// By TCP (this is the default)
    #[arg(long, conflicts_with = "udp", value_parser = FalseyValueParser::new())]
    pub(crate) tcp: bool,
    /// By UDP
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub(crate) udp: bool,
    /// A header of every message
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_header)]
    pub(crate) header: Vec<(String, String)>,
    /// Wait until each message has been acknowledged
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub(crate) ack: bool,
    /// Each line of this file is a message; `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// The file as a whole is one message
    #[arg(long, requires = "file", value_parser = FalseyValueParser::new())]
    pub(crate) whole: bool,
    /// Compress with Zstandard what becomes smaller; only FastDrop decompresses it
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub(crate) zstd: bool,
    /// By TCP, encrypt, and trust the listener whose certificate has this fingerprint (SHA-256)
    #[arg(long, value_name = "HEX", conflicts_with_all = ["ca", "udp"], value_parser = parse_fingerprint)]
    pub(crate) pin: Option<Fingerprint>,
    /// By TCP, encrypt, and trust listeners whose certificate is signed by one of these (PEM)
    #[arg(long, value_name = "FILE", conflicts_with = "udp")]
    pub(crate) ca: Option<PathBuf>,
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

/// Does what the arguments say.
pub(crate) fn run(common: &Common, message: Message) -> Result<ExitCode, Refused> {
    let default_level = if matches!(message, Message::Listen(_)) { "info" } else { "warn" };
    let (stop, signals) = begin(common, default_level)?;
    let output = Output { json: common.json, quiet: common.quiet, data_on_stdout: false };
    // Tasks start in the order in which they are made, so that datagrams leave in the order of their messages.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from)?;
    let result = match message {
        Message::Listen(listen) => runtime.block_on(listen::listen(listen, output, &stop)),
        Message::Send(send) => runtime.block_on(send::send(send, output, &stop))?,
    };
    if let Err(error) = &result {
        let code = code_of(error);
        output.event("error", json!({ "message": error.to_string(), "exit": code.number() }));
        complain(&error.to_string());
        return Ok(code);
    }
    Ok(signals.seen().map_or(ExitCode::Done, ExitCode::Signal))
}

fn code_of(error: &VstpError) -> ExitCode {
    use std::io::ErrorKind;
    match error {
        VstpError::Io(error) => match error.kind() {
            ErrorKind::NotFound => ExitCode::NotFound,
            ErrorKind::InvalidData => ExitCode::Authentication,
            _ => ExitCode::Network,
        },
        VstpError::Timeout | VstpError::ConnectionClosed => ExitCode::Network,
        VstpError::CrcMismatch { .. } => ExitCode::Integrity,
        VstpError::FrameTooLarge { .. } | VstpError::ServerError(_) => ExitCode::Policy,
        _ => ExitCode::Other,
    }
}

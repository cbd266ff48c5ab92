//! The command line as it is typed.

use crate::address::Address;
use crate::units::{Checkpoint, parse_checkpoint, parse_duration, parse_rate, parse_size, parse_timeout};
use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use fastdrop::{Accept, Algorithm, Durability, Existing, FastDownloaderDialect, Links, Protocol, Streams};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) mod message;

/// Moves files and messages between machines: fast, verified, resumable, over one port.
#[derive(Debug, Parser)]
#[command(
    name = "fastdrop",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Debug, Args)]
pub(crate) struct Common {
    /// More about what happens; twice for much more
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
    /// Only errors
    #[arg(short, long, global = true, value_parser = FalseyValueParser::new())]
    pub(crate) quiet: bool,
    /// One JSON event a line on standard output
    #[arg(long, global = true, value_parser = FalseyValueParser::new())]
    pub(crate) json: bool,
    /// Whether messages are coloured
    #[arg(long, value_enum, default_value = "auto", global = true, value_name = "WHEN")]
    pub(crate) color: Color,
    /// How progress is shown
    #[arg(long, value_enum, default_value = "auto", global = true, value_name = "HOW")]
    pub(crate) progress: Progress,
    /// Take defaults from this file (TOML, one table a command)
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Progress {
    /// A bar on a terminal, lines elsewhere
    Auto,
    /// A bar
    Bar,
    /// Lines
    Plain,
    /// Nothing
    None,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a folder
    Serve(Serve),
    /// Push files and folders
    #[command(override_usage = "fastdrop send [OPTIONS] <PATH>... <TARGET>")]
    Send(Send),
    /// Pull files and folders
    Get(Get),
    /// Show what is there
    #[command(alias = "ls")]
    List(List),
    /// Receive and send messages
    #[command(subcommand)]
    Message(message::Message),
    /// Print a completion script
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// The folder
    #[arg(default_value = ".")]
    pub(crate) dir: PathBuf,
    /// Listen on these addresses: 0.0.0.0 is every one of IPv4, :: every one; fe80::1%eth0 has a
    /// zone
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDR", value_delimiter = ',', value_parser = str::parse::<Address>)]
    pub(crate) bind: Vec<Address>,
    /// Listen on this port; 0 picks one
    #[arg(short, long, default_value_t = 8888)]
    pub(crate) port: u16,
    /// The protocols that are answered on the port: all, or some of fastdp, fastdp1.0, fastdp1.1,
    /// ultradp, nextdp, fastdownloader
    #[arg(long, default_value = "all", value_name = "LIST", value_parser = str::parse::<Accept>)]
    pub(crate) accept: Accept,
    /// Serve fastdownloader too, on a port of its own
    #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true, default_missing_value = "1337")]
    pub(crate) fastdownloader: Option<u16>,
    /// The form of fastdownloader's chunks, which its clients have to expect
    #[arg(long, value_enum, default_value = "document", value_name = "DIALECT")]
    pub(crate) fastdownloader_dialect: Dialect,
    /// Time for a client of fastdp1.0 or fastdp1.1 to send its header: it may compress first
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_timeout)]
    pub(crate) header_timeout: Duration,
    /// Compression of senders of nextdp, which their requests do not tell
    #[arg(long, value_enum, default_value = "none", value_name = "HOW")]
    pub(crate) nextdp_compression: NextDpCompression,
    /// The same as --nextdp-compression gzip
    #[arg(long, conflicts_with = "nextdp_compression", value_parser = FalseyValueParser::new())]
    pub(crate) nextdp_gzip: bool,
    /// Take ultradp's secured variant too, by the password in this file, which should be readable
    /// by its owner alone (0600): encrypted, not authenticated
    #[arg(long, value_name = "FILE")]
    pub(crate) ultradp_password_file: Option<PathBuf>,
    /// Keep the archives that clients send with --compress zip or targz instead of unpacking them
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub(crate) keep_archive: bool,
    /// Only give
    #[arg(long, conflicts_with = "write_only", value_parser = FalseyValueParser::new())]
    pub(crate) read_only: bool,
    /// Only take
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub(crate) write_only: bool,
    /// The most that clients may do with files that exist and differ
    #[arg(long, value_enum, default_value = "error", value_name = "POLICY")]
    pub(crate) existing: Ceiling,
    /// Data streams of one transfer, 1 to 64
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) max_streams: u16,
    /// Bytes of one transfer
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) max_size: Option<u64>,
    /// Bytes that must stay free
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = parse_size)]
    pub(crate) min_free: u64,
    /// Leave after one transfer
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub(crate) once: bool,
    /// Sync and reconnect after so many bytes on a stream, at least so often as this
    #[arg(long, value_name = "SIZE|off", default_value = "512M", value_parser = parse_checkpoint)]
    pub(crate) checkpoint: Checkpoint,
    /// Remove unfinished work that nobody came back for after this time
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = parse_duration)]
    pub(crate) expire: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dialect {
    /// As the protocol's document has it: ordinal, space, bytes
    Document,
    /// As the published program V1.0 has it: with $SEPARATOR$
    V1,
}

impl From<Dialect> for FastDownloaderDialect {
    fn from(dialect: Dialect) -> Self {
        match dialect {
            Dialect::Document => FastDownloaderDialect::Document,
            Dialect::V1 => FastDownloaderDialect::V1,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Ceiling {
    /// They stay: clients may skip them, or fail
    Error,
    /// They stay: the new ones may get another name
    Rename,
    /// They may be replaced
    Overwrite,
}

impl From<Ceiling> for Existing {
    fn from(ceiling: Ceiling) -> Self {
        match ceiling {
            Ceiling::Error => Existing::Error,
            Ceiling::Rename => Existing::Rename,
            Ceiling::Overwrite => Existing::Overwrite,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NextDpCompression {
    /// Each chunk is one gzip member
    Gzip,
    /// Each chunk is one Zstandard frame
    Zstd,
    /// Not at all
    None,
}

impl From<NextDpCompression> for fastdrop::NextDpCompression {
    fn from(compression: NextDpCompression) -> Self {
        match compression {
            NextDpCompression::Gzip => fastdrop::NextDpCompression::Gzip,
            NextDpCompression::Zstd => fastdrop::NextDpCompression::Zstd,
            NextDpCompression::None => fastdrop::NextDpCompression::None,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Send {
    /// Files and folders (with a slash at the end: what is in the folder; `-` or a pipe: a stream,
    /// alone), then host[:port][/path] or http://host[:port][/path]
    #[arg(required = true, num_args = 1.., value_names = ["PATH", "TARGET"])]
    pub(crate) paths: Vec<OsString>,
    /// With ultradp: encrypt by the password in this file, which should be readable by its owner
    /// alone (0600): encrypted, not authenticated
    #[arg(long, value_name = "FILE")]
    pub(crate) ultradp_password_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) transfer: Transfer,
}

#[derive(Debug, Args)]
pub(crate) struct Get {
    /// host[:port][/path], or as a URL with http; with a slash at the end: what is in the folder
    pub(crate) target: OsString,
    /// Into this folder, or as this name; `-` for standard output
    #[arg(default_value = ".")]
    pub(crate) dest: PathBuf,
    /// With --compress zip or targz: keep the archive instead of unpacking it
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub(crate) keep_archive: bool,
    #[command(flatten)]
    pub(crate) transfer: Transfer,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// host[:port][/path], or as a URL with http
    pub(crate) target: OsString,
    /// Exit with 0 instead of 10 when the server is too old to say whether that is all
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub(crate) unconfirmed_ok: bool,
    /// Attempts after a loss
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub(crate) retries: u32,
    /// The protocol: fastdp or fastdownloader
    #[arg(long, default_value = "fastdp", value_name = "NAME", value_parser = str::parse::<Protocol>)]
    pub(crate) protocol: Protocol,
}

#[derive(Debug, Args)]
pub(crate) struct Transfer {
    /// Data streams: auto, or 1 to 64
    #[arg(short = 'j', long, default_value = "auto", value_name = "auto|N", value_parser = parse_streams)]
    pub(crate) streams: Streams,
    /// What happens to files that exist and differ; identical ones are never sent
    #[arg(long, value_enum, default_value = "error", value_name = "POLICY")]
    pub(crate) existing: Policy,
    /// Compare contents instead of size and time: identical is what has the same BLAKE3 at both
    /// ends
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub(crate) check: bool,
    /// Start over instead of continuing what was interrupted
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub(crate) no_resume: bool,
    /// How every chunk is checked
    #[arg(long, value_enum, default_value = "xxh3", value_name = "HOW")]
    pub(crate) checksum: Checksum,
    /// Compression on the way; zip and targz are archives
    #[arg(long, value_enum, default_value = "auto", value_name = "HOW")]
    pub(crate) compress: Compress,
    /// Whether done means synced
    #[arg(long, value_enum, default_value = "commit", value_name = "HOW")]
    pub(crate) durability: Durable,
    /// What is kept beside names and contents: times, mode, both, or none
    #[arg(long, default_value = "times,mode", value_name = "LIST", value_parser = parse_preserve)]
    pub(crate) preserve: Preserve,
    /// Symbolic links
    #[arg(long, value_enum, default_value = "copy", value_name = "HOW")]
    pub(crate) links: LinkPolicy,
    /// Sync and reconnect after so many bytes on a stream
    #[arg(long, value_name = "SIZE|off", default_value = "512M", value_parser = parse_checkpoint)]
    pub(crate) checkpoint: Checkpoint,
    /// Leave out what matches, as in a .gitignore; the match nearest to a file decides: its own,
    /// then that of its folder
    #[arg(long, value_name = "GLOB")]
    pub(crate) exclude: Vec<String>,
    /// Take what matches, also from a folder that was excluded; a folder means all in it; without
    /// --exclude, take nothing else
    #[arg(long, value_name = "GLOB")]
    pub(crate) include: Vec<String>,
    /// Take only the paths in this file, one a line, relative to the one folder that is named, and
    /// what is in them; `-` for standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) files_from: Option<PathBuf>,
    /// Ask the other side, and say exactly what would be done
    #[arg(short = 'n', long, value_parser = FalseyValueParser::new())]
    pub(crate) dry_run: bool,
    /// Exit with 0 instead of 10 when the other end cannot confirm that all of it has been moved
    #[arg(long, value_parser = FalseyValueParser::new())]
    pub(crate) unconfirmed_ok: bool,
    /// Bytes a second at most
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub(crate) bwlimit: Option<u64>,
    /// Attempts after a loss, without anything gained in between
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub(crate) retries: u32,
    /// The protocol: fastdp, fastdp1.0, fastdp1.1, ultradp, nextdp, fastdownloader
    #[arg(long, default_value = "fastdp", value_name = "NAME", value_parser = str::parse::<Protocol>)]
    pub(crate) protocol: Protocol,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Policy {
    /// The existing one stays, and the new one is not sent
    Skip,
    /// Nothing at all is sent
    Error,
    /// The new one gets another name
    Rename,
    /// The new one replaces it
    Overwrite,
}

impl From<Policy> for Existing {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Skip => Existing::Skip,
            Policy::Error => Existing::Error,
            Policy::Rename => Existing::Rename,
            Policy::Overwrite => Existing::Overwrite,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Checksum {
    /// Against corruption, at memory speed
    Xxh3,
    /// Cryptographic; each file's BLAKE3 is printed
    Blake3,
    /// Only TCP's own
    None,
}

impl From<Checksum> for Algorithm {
    fn from(checksum: Checksum) -> Self {
        match checksum {
            Checksum::Xxh3 => Algorithm::Xxh3,
            Checksum::Blake3 => Algorithm::Blake3,
            Checksum::None => Algorithm::None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Compress {
    /// Where it makes the transfer faster; not at all with the older protocols
    Auto,
    /// Not at all
    None,
    /// With Zstandard, whatever becomes shorter
    Zstd,
    /// As a ZIP archive, unpacked where it arrives
    Zip,
    /// As a gzipped tar archive, unpacked where it arrives
    Targz,
    /// As gzip members, with nextdp only: the server has to be told
    Gzip,
}

impl From<Compress> for fastdrop::Compress {
    fn from(compress: Compress) -> Self {
        match compress {
            Compress::Auto => fastdrop::Compress::Auto,
            Compress::None => fastdrop::Compress::None,
            Compress::Zstd => fastdrop::Compress::Zstd,
            Compress::Zip => fastdrop::Compress::Zip,
            Compress::Targz => fastdrop::Compress::TarGz,
            Compress::Gzip => fastdrop::Compress::Gzip,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Durable {
    /// Synced before it is done
    Commit,
    /// Left to the kernel
    None,
}

impl From<Durable> for Durability {
    fn from(durable: Durable) -> Self {
        match durable {
            Durable::Commit => Durability::Commit,
            Durable::None => Durability::None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LinkPolicy {
    /// Copied as links; one that would lead outside of the folder in which it arrives is an error
    Copy,
    /// The same, but one that would lead outside is left out with a warning
    Safe,
    /// What they point to is sent
    Follow,
    /// Left out
    Skip,
}

impl From<LinkPolicy> for Links {
    fn from(policy: LinkPolicy) -> Self {
        match policy {
            LinkPolicy::Copy => Links::Copy,
            LinkPolicy::Safe => Links::Safe,
            LinkPolicy::Follow => Links::Follow,
            LinkPolicy::Skip => Links::Skip,
        }
    }
}

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Preserve {
    pub(crate) times: bool,
    pub(crate) mode: bool,
}

fn parse_preserve(text: &str) -> Result<Preserve, String> {
    let mut preserve = Preserve { times: false, mode: false };
    for item in text.split(',').filter(|item| !item.is_empty() && *item != "none") {
        match item {
            "times" => preserve.times = true,
            "mode" => preserve.mode = true,
            _ => return Err("not times, mode or none".into()),
        }
    }
    Ok(preserve)
}

fn parse_streams(text: &str) -> Result<Streams, String> {
    if text == "auto" {
        return Ok(Streams::Auto);
    }
    match text.parse() {
        Ok(streams @ 1..=64) => Ok(Streams::Fixed(streams)),
        _ => Err("not auto or 1 to 64".into()),
    }
}

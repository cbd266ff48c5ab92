//! The settings of a client, and which protocol can keep which of their values: one table.
//!
//! A value that was asked for and cannot be kept is refused before anything is sent. A default that
//! cannot be kept is said in the summary. A new setting needs a [`Flag`], its value in
//! [`Request::value`], and a row in [`ROWS`].

use crate::context::client::asked::Flag;
use crate::context::client::options::{ClientOptions, Compress};
use crate::error::Error;
use crate::protocol::Protocol;
use fastdrop_proto::checksum::Algorithm;
use fastdrop_proto::fastdp::{Durability, Existing, Links, Streams};
use std::fmt;

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// It sends.
    Put,
    /// It fetches.
    Get,
    /// It lists.
    List,
}

/// The values of a flag that a protocol keeps.
#[derive(Debug, Clone, Copy)]
enum Keeps {
    /// Every one.
    All,
    /// These, for a reason.
    Only(&'static [&'static str], &'static str),
}

/// A flag in a put, and in a get or a list, by protocol.
struct Row {
    flag: Flag,
    /// In a put by one of the older protocols,
    put: Keeps,
    /// but by these.
    but: &'static [(Protocol, Keeps)],
    /// FastDownloader.
    get: Keeps,
}

use Keeps::{All, Only};

const NO_ANSWER: Keeps = Only(&["no"], "it cannot tell what a receiver would do");
const RECEIVER_DECIDES: Keeps = Only(&[], "the receiver alone decides about files that exist");
const NO_CHECKSUM: Keeps = Only(&["none"], "it carries no checksums");
const NO_WORD_OF_SYNCING: Keeps = Only(&["none"], "it does not tell whether the receiver has synced");
const BARE: Keeps = Only(&["none"], "it carries names and contents alone");
const NO_LINKS: Keeps = Only(&["follow", "skip"], "it carries files, not links");
const NO_CONTENTS: Keeps = Only(&["no"], "the other end cannot say what its contents are");
const NO_RESUMING: Keeps = Only(&["yes"], "it cannot continue what an earlier run left");
const NO_CHECKPOINTS: Keeps = Only(&["off"], "it has no checkpoints");
const ONE_STREAM: Keeps = Only(&["auto", "1"], "it has one stream");
const ONE_FILE: Keeps = Only(&["none"], "it fetches one file, by its name");
const NO_COMPRESSION: Keeps = Only(&["auto", "none"], "it does not compress");
const NO_PASSWORD: Keeps = Only(&["none"], "it does not encrypt with a password");
const ARCHIVES: Keeps =
    Only(&["auto", "none", "zstd", "zip", "targz"], "it does not compress with gzip alone; targz does");

/// All flags. The native protocol keeps every value of each but `--compress gzip`, and has no
/// password.
const ROWS: [Row; 18] = [
    Row { flag: Flag::Existing, put: RECEIVER_DECIDES, but: &[], get: All },
    Row {
        flag: Flag::Checksum,
        put: NO_CHECKSUM,
        but: &[(Protocol::FastDp11, Only(&["none"], "its only checksum is SHA-256"))],
        get: NO_CHECKSUM,
    },
    Row { flag: Flag::Durability, put: NO_WORD_OF_SYNCING, but: &[], get: All },
    Row { flag: Flag::Preserve, put: BARE, but: &[], get: BARE },
    Row { flag: Flag::Links, put: NO_LINKS, but: &[], get: Only(&[], "its servers give files alone") },
    Row { flag: Flag::Check, put: NO_CONTENTS, but: &[], get: NO_CONTENTS },
    Row { flag: Flag::NoResume, put: NO_RESUMING, but: &[], get: NO_RESUMING },
    Row { flag: Flag::Checkpoint, put: NO_CHECKPOINTS, but: &[], get: NO_CHECKPOINTS },
    Row {
        flag: Flag::Streams,
        put: ONE_STREAM,
        but: &[(Protocol::NextDp, All)],
        get: Only(&["auto"], "the server decides how many there are"),
    },
    Row {
        flag: Flag::Compress,
        put: NO_COMPRESSION,
        but: &[
            (Protocol::FastDp, ARCHIVES),
            (Protocol::FastDp10, ARCHIVES),
            (Protocol::FastDp11, ARCHIVES),
            (
                Protocol::UltraDp,
                Only(&["auto", "none", "zstd"], "it compresses with Zstandard or not at all"),
            ),
            (
                Protocol::NextDp,
                Only(
                    &["auto", "none", "gzip", "zstd"],
                    "it compresses with gzip, with Zstandard or not at all",
                ),
            ),
        ],
        get: NO_COMPRESSION,
    },
    Row { flag: Flag::Exclude, put: All, but: &[], get: ONE_FILE },
    Row { flag: Flag::Include, put: All, but: &[], get: ONE_FILE },
    Row { flag: Flag::FilesFrom, put: All, but: &[], get: ONE_FILE },
    Row { flag: Flag::Bwlimit, put: All, but: &[], get: All },
    Row {
        flag: Flag::UltradpPasswordFile,
        put: NO_PASSWORD,
        but: &[(Protocol::FastDp, NO_PASSWORD), (Protocol::UltraDp, All)],
        get: NO_PASSWORD,
    },
    Row { flag: Flag::Retries, put: All, but: &[], get: All },
    Row { flag: Flag::DryRun, put: NO_ANSWER, but: &[], get: All },
    Row { flag: Flag::KeepArchive, put: All, but: &[], get: Only(&["no"], "it carries no archives") },
];

impl Row {
    fn keeps(&self, protocol: Protocol) -> Keeps {
        let but = self.but.iter().find(|(other, _)| *other == protocol);
        match (protocol, but) {
            (_, Some((_, keeps))) => *keeps,
            (Protocol::FastDp, None) => All,
            (Protocol::FastDownloader, None) => self.get,
            (_, None) => self.put,
        }
    }
}

impl Flag {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Flag> {
        ROWS.iter().map(|row| row.flag)
    }

    /// Its name, as users type it, without the dashes.
    pub fn name(self) -> &'static str {
        match self {
            Flag::Existing => "existing",
            Flag::Checksum => "checksum",
            Flag::Durability => "durability",
            Flag::Preserve => "preserve",
            Flag::Links => "links",
            Flag::Check => "check",
            Flag::NoResume => "no-resume",
            Flag::Checkpoint => "checkpoint",
            Flag::Streams => "streams",
            Flag::Compress => "compress",
            Flag::Exclude => "exclude",
            Flag::Include => "include",
            Flag::FilesFrom => "files-from",
            Flag::Bwlimit => "bwlimit",
            Flag::UltradpPasswordFile => "ultradp-password-file",
            Flag::Retries => "retries",
            Flag::DryRun => "dry-run",
            Flag::KeepArchive => "keep-archive",
        }
    }

    /// Its default promises something that whoever does not get it should know. What is
    /// no promise is how the work is done.
    fn is_promise(self) -> bool {
        matches!(self, Flag::Existing | Flag::Checksum | Flag::Durability | Flag::Preserve)
    }
}

/// A flag with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The flag.
    pub flag: Flag,
    /// The value, as users type it.
    pub value: String,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{}", self.flag.name())?;
        match &self.value[..] {
            "yes" => Ok(()),
            value => write!(f, " {value}"),
        }
    }
}

/// Everything that a client was told to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) action: Action,
    pub(crate) options: &'a ClientOptions,
    pub(crate) dry_run: bool,
    pub(crate) keep_archive: bool,
}

impl Request<'_> {
    /// Refuses what was asked for and cannot be kept. Returns the defaults that cannot be kept.
    pub(crate) fn check(&self) -> Result<Vec<Setting>, Error> {
        let protocol = self.options.protocol;
        let can = match self.action {
            Action::Put => protocol != Protocol::FastDownloader,
            Action::Get | Action::List => {
                matches!(protocol, Protocol::FastDp | Protocol::FastDownloader)
            }
        };
        if !can {
            let what = match self.action {
                Action::Put => "nothing can be sent",
                Action::Get => "nothing can be fetched",
                Action::List => "nothing can be listed",
            };
            return Err(Error::Unsupported(format!("{what} with {protocol}")));
        }
        let defaults = ClientOptions::default();
        let untouched = Request { options: &defaults, dry_run: false, keep_archive: false, ..*self };
        let mut unkept = Vec::new();
        for row in &ROWS {
            let value = self.value(row.flag);
            let Only(values, why) = row.keeps(protocol) else { continue };
            if values.contains(&&value[..]) {
                continue;
            }
            let is_asked = self.options.asked.contains(&row.flag) || value != untouched.value(row.flag);
            let setting = Setting { flag: row.flag, value };
            if is_asked {
                return Err(Error::Unsupported(format!("{protocol} cannot keep {setting}: {why}")));
            }
            if row.flag.is_promise() {
                unkept.push(setting);
            }
        }
        Ok(unkept)
    }

    /// The value of a flag, as users type it; `none`, `no` or `off` for what was not given.
    fn value(&self, flag: Flag) -> String {
        let options = self.options;
        let yes_or_no = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
        match flag {
            Flag::Existing => match options.existing {
                Existing::Skip => "skip",
                Existing::Error => "error",
                Existing::Rename => "rename",
                Existing::Overwrite => "overwrite",
            }
            .into(),
            Flag::Checksum => match options.checksum {
                Algorithm::Xxh3 => "xxh3",
                Algorithm::Blake3 => "blake3",
                Algorithm::None => "none",
            }
            .into(),
            Flag::Durability => match options.durability {
                Durability::Commit => "commit",
                Durability::None => "none",
            }
            .into(),
            Flag::Preserve => match (options.times, options.mode) {
                (true, true) => "times,mode",
                (true, false) => "times",
                (false, true) => "mode",
                (false, false) => "none",
            }
            .into(),
            Flag::Links => match options.links {
                Links::Copy => "copy",
                Links::Safe => "safe",
                Links::Follow => "follow",
                Links::Skip => "skip",
            }
            .into(),
            Flag::Check => yes_or_no(options.check),
            Flag::NoResume => yes_or_no(!options.resume),
            Flag::Checkpoint => options.checkpoint.map_or("off".into(), |bytes| bytes.to_string()),
            Flag::Streams => match options.streams {
                Streams::Auto => "auto".into(),
                Streams::Fixed(count) => count.to_string(),
            },
            Flag::Compress => match options.compress {
                Compress::Auto => "auto",
                Compress::None => "none",
                Compress::Zstd => "zstd",
                Compress::Zip => "zip",
                Compress::TarGz => "targz",
                Compress::Gzip => "gzip",
            }
            .into(),
            Flag::Exclude | Flag::Include | Flag::FilesFrom => self.filter(flag),
            Flag::Bwlimit => options.bytes_per_second_max.map_or("none".into(), |rate| rate.to_string()),
            // Of the password nothing is shown.
            Flag::UltradpPasswordFile => {
                if options.ultradp_password.is_some() { "yes" } else { "none" }.into()
            }
            Flag::Retries => options.retries.to_string(),
            Flag::DryRun => yes_or_no(self.dry_run),
            Flag::KeepArchive => yes_or_no(self.keep_archive),
        }
    }

    /// A filter is one value, whatever it was made of; it is named by what was asked for.
    fn filter(&self, flag: Flag) -> String {
        let filters = [Flag::Exclude, Flag::Include, Flag::FilesFrom];
        let is_named = filters.iter().any(|filter| self.options.asked.contains(filter));
        let is_this = self.options.asked.contains(&flag) || (!is_named && flag == Flag::Exclude);
        if is_this && !self.options.filter.is_empty() { "yes" } else { "none" }.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::client::asked::Asked;
    use std::collections::BTreeSet;

    fn request(options: &ClientOptions, action: Action) -> Request<'_> {
        Request { action, options, dry_run: false, keep_archive: false }
    }

    fn actions_of(protocol: Protocol) -> Vec<Action> {
        match protocol {
            Protocol::FastDp => vec![Action::Put, Action::Get, Action::List],
            Protocol::FastDownloader => vec![Action::Get, Action::List],
            _ => vec![Action::Put],
        }
    }

    #[test]
    fn case_109_every_default_is_kept_or_told_and_refused_where_it_was_asked_for() {
        for protocol in Protocol::ALL {
            for action in [Action::Put, Action::Get, Action::List] {
                let options = ClientOptions { protocol, ..ClientOptions::default() };
                let checked = request(&options, action).check();
                assert_eq!(checked.is_ok(), actions_of(protocol).contains(&action), "{protocol}, {action:?}");
                let Ok(unkept) = checked else { continue };
                for flag in Flag::all() {
                    let asked = Asked::from([flag]);
                    let asked = ClientOptions { asked, ..options.clone() };
                    let request = request(&asked, action);
                    let value = request.value(flag);
                    let row = ROWS.iter().find(|row| row.flag == flag).unwrap();
                    let keeps = match row.keeps(protocol) {
                        All => true,
                        Only(values, _) => values.contains(&&value[..]),
                    };
                    match request.check() {
                        Ok(_) => assert!(keeps, "{protocol}, {flag:?}: {value} is not refused"),
                        Err(error) => {
                            assert!(!keeps, "{protocol}, {flag:?}: {error}");
                            let text = error.to_string();
                            assert!(text.contains(flag.name()) && text.contains(protocol.name()), "{text}");
                        }
                    }
                    let told = unkept.iter().any(|setting| setting.flag == flag);
                    assert_eq!(told, !keeps && flag.is_promise(), "{protocol}, {flag:?}");
                }
            }
        }
    }

    /// Whoever sets an option of the library has asked for it.
    #[test]
    fn case_109_a_value_that_is_not_the_default_was_asked_for() {
        let of = |protocol| ClientOptions { protocol, ..ClientOptions::default() };
        for protocol in [Protocol::FastDp10, Protocol::FastDp11, Protocol::UltraDp, Protocol::NextDp] {
            for options in [
                ClientOptions { existing: Existing::Skip, ..of(protocol) },
                ClientOptions { checksum: Algorithm::Blake3, ..of(protocol) },
                ClientOptions { checkpoint: Some(1 << 20), ..of(protocol) },
                ClientOptions { mode: false, ..of(protocol) },
            ] {
                request(&options, Action::Put).check().unwrap_err();
            }
            let options = ClientOptions {
                checksum: Algorithm::None,
                durability: Durability::None,
                times: false,
                mode: false,
                resume: false,
                checkpoint: None,
                links: Links::Follow,
                streams: Streams::Fixed(1),
                retries: 0,
                bytes_per_second_max: Some(1),
                ..of(protocol)
            };
            let unkept = request(&options, Action::Put).check().unwrap();
            assert_eq!(unkept.iter().map(ToString::to_string).collect::<Vec<_>>(), ["--existing error"]);
        }
    }

    #[test]
    fn every_flag_has_one_row() {
        let flags: BTreeSet<_> = Flag::all().collect();
        assert_eq!(flags.len(), ROWS.len());
        let names: BTreeSet<_> = Flag::all().map(Flag::name).collect();
        assert_eq!(names.len(), ROWS.len());
    }
}

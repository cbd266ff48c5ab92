//! What the program prints: lines for people, or one JSON event a line.

use crate::exit::ExitCode;
use crate::units::{bytes, seconds};
use fastdrop::{Durability, Error, ErrorKind, ListedKind, Listing, Protocol, Summary, shown};
use serde_json::{Map, Value, json};
use signal_hook::consts::SIGPIPE;
use std::io::Write;
use std::time::{Duration, SystemTime};

/// The version of the events.
const EVENTS_VERSION: u64 = 1;

/// In red, where colours are wanted: anstream takes them out elsewhere.
const ERROR: &str = "\x1b[1;31merror:\x1b[0m";

/// A complaint.
pub(crate) fn complain(why: &str) {
    let _ = writeln!(anstream::stderr(), "{ERROR} {why}");
}

/// A result or an event that could not be written.
#[derive(Debug, thiserror::Error)]
#[error("the output cannot be written: {}", reason(.0))]
pub(crate) struct OutputError(#[from] std::io::Error);

/// The words of the system, without the number that Rust adds.
fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

impl OutputError {
    /// Reports whether the reader has gone away, as `head` does: nothing that needs words.
    pub(crate) fn is_closed_pipe(&self) -> bool {
        self.0.kind() == std::io::ErrorKind::BrokenPipe
    }

    /// Complains, unless a pipe was closed, and returns the code for the end of the program:
    /// after a closed pipe that of a program that SIGPIPE ended.
    pub(crate) fn report(&self, before: &str) -> ExitCode {
        if self.is_closed_pipe() {
            return ExitCode::Signal(SIGPIPE as u8);
        }
        complain(&format!("{before}{self}"));
        ExitCode::Other
    }
}

/// Writes a text that was asked for to standard output, all of it.
pub(crate) fn print(text: &[u8]) -> Result<(), OutputError> {
    let mut out = std::io::stdout().lock();
    out.write_all(text)?;
    Ok(out.flush()?)
}

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    /// Standard output carries data: everything else goes to standard error.
    pub(crate) data_on_stdout: bool,
}

impl Output {
    /// Writes a line.
    fn line(&self, text: &str) -> Result<(), OutputError> {
        self.write(&[text.as_bytes(), b"\n"].concat())
    }

    fn write(&self, line: &[u8]) -> Result<(), OutputError> {
        if self.data_on_stdout { Ok(std::io::stderr().lock().write_all(line)?) } else { print(line) }
    }

    /// Writes an event if events are wanted.
    pub(crate) fn event(&self, name: &str, fields: Value) -> Result<(), OutputError> {
        self.event_line(name, fields).map_or(Ok(()), |line| self.write(line.as_bytes()))
    }

    /// Formats an event with its line feed, if events are wanted.
    pub(crate) fn event_line(&self, name: &str, fields: Value) -> Option<String> {
        if !self.json {
            return None;
        }
        let mut event = Map::new();
        event.insert("event".into(), name.into());
        if let Value::Object(fields) = fields {
            event.extend(fields);
        }
        event.insert("version".into(), EVENTS_VERSION.into());
        Some(format!("{}\n", Value::Object(event)))
    }

    /// Writes a line for people if lines are wanted.
    pub(crate) fn say(&self, text: &str) -> Result<(), OutputError> {
        if self.json || self.quiet { Ok(()) } else { self.line(text) }
    }

    /// Writes a result, unless events are wanted.
    pub(crate) fn result(&self, text: &str) -> Result<(), OutputError> {
        if self.json { Ok(()) } else { self.line(text) }
    }

    /// Reports an error, the last thing that is said.
    pub(crate) fn error(&self, error: &Error, code: u8, resumes: bool) {
        // If the event cannot be written, the complaint and the exit code still tell of the error.
        let _ = self.event("error", json!({ "message": error.to_string(), "exit": code }));
        complain(&if resumes && error.kind() == ErrorKind::Interrupted {
            format!("{error}; the same command goes on where it stopped")
        } else {
            error.to_string()
        });
    }

    /// Reports the outcome of a transfer.
    pub(crate) fn summary(&self, verb: &str, summary: &Summary) -> Result<(), OutputError> {
        // Complaints first: they are made even if nothing can be printed.
        for warning in summary.warnings.iter().filter(|_| !self.quiet) {
            let (path, message) = (shown(&warning.path), shown(warning.message.as_bytes()));
            let _ = writeln!(anstream::stderr(), "warning: {path}: {message}");
        }
        for failed in &summary.failed {
            complain(&format!("{}: {}", shown(&failed.path), shown(failed.message.as_bytes())));
        }
        for warning in &summary.warnings {
            let (path, message) = (shown(&warning.path), shown(warning.message.as_bytes()));
            self.event("warning", json!({ "path": path, "message": message }))?;
        }
        for failed in &summary.failed {
            let (path, message) = (shown(&failed.path), shown(failed.message.as_bytes()));
            self.event("failed", json!({ "path": path, "code": failed.code.number(), "message": message }))?;
        }
        for (path, hash) in &summary.hashes {
            let (path, hash) = (shown(path), hex::encode(hash));
            self.event("file", json!({ "path": path, "blake3": hash }))?;
            self.say(&format!("{hash}  {path}"))?;
        }
        if summary.dry_run {
            for listed in &summary.would_move {
                let path = shown(&listed.path);
                self.event("would", json!({ "path": path, "size": listed.size }))?;
                self.say(&format!("would {} {path}", if verb == "sent" { "send" } else { "get" }))?;
            }
        }
        self.event("summary", fields(summary))?;
        self.say(&line(verb, summary))
    }

    /// Shows names of which nothing else is known.
    pub(crate) fn names(&self, names: &[Vec<u8>]) -> Result<(), OutputError> {
        for name in names.iter().map(|name| shown(name)) {
            self.event("entry", json!({ "path": name, "kind": "file" }))?;
            self.result(&name)?;
        }
        self.event("summary", json!({ "files": names.len() }))
    }

    /// Shows what a folder holds. A list is a result: it is printed however quiet the rest shall
    /// be.
    pub(crate) fn list(&self, listing: &Listing) -> Result<(), OutputError> {
        for failed in &listing.failed {
            let (path, message) = (shown(&failed.path), shown(failed.message.as_bytes()));
            complain(&format!("{path}: {message}"));
            self.event("failed", json!({ "path": path, "code": failed.code.number(), "message": message }))?;
        }
        if !listing.confirmed {
            complain(TOO_OLD);
        }
        for item in &listing.entries {
            let path = shown(&item.path);
            let (kind, letter) = match item.kind {
                ListedKind::Directory => ("directory", 'd'),
                ListedKind::File => ("file", '-'),
                ListedKind::Link(_) => ("link", 'l'),
            };
            self.event(
                "entry",
                json!({ "path": path, "kind": kind, "size": item.size, "mode": format!("{:04o}", item.mode),
                    "mtime": item.mtime.0, "mtime_nanos": item.mtime.1 }),
            )?;
            let slash = if letter == 'd' { "/" } else { "" };
            let size = if letter == 'd' { String::new() } else { item.size.to_string() };
            self.result(&format!(
                "{letter}{} {size:>14}  {}  {path}{slash}",
                permissions(item.mode),
                date(item.mtime.0)
            ))?;
        }
        let (files, failed) = (listing.entries.len(), listing.failed_count);
        self.event("summary", json!({ "files": files, "files_failed": failed }))
    }
}

fn permissions(mode: u32) -> String {
    let bit = |at: u32, letter| if mode & (1 << at) != 0 { letter } else { '-' };
    (0..9).rev().map(|at| bit(at, ['x', 'w', 'r'][at as usize % 3])).collect()
}

fn date(seconds: i64) -> String {
    match u64::try_from(seconds) {
        // The end of the year 9999, as far as the format goes.
        Ok(seconds @ 0..253_402_300_800) => {
            humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
                .to_string()
        }
        _ => format!("{seconds:>20}"),
    }
}

fn rate(summary: &Summary) -> u64 {
    (summary.bytes_sent as f64 / summary.time.as_secs_f64().max(1e-6)) as u64
}

fn fields(summary: &Summary) -> Value {
    let shares = summary.limits.map(|limits| limits.shares());
    let round = |share: f64| (share * 1000.0).round() / 1000.0;
    json!({
        "files": summary.files,
        "bytes": summary.bytes,
        "bytes_sent": summary.bytes_sent,
        "bytes_wire": summary.bytes_wire,
        "files_skipped": summary.files_skipped,
        "files_left": summary.files_left,
        "files_verified": verified(summary),
        "checked": summary.checked,
        "bytes_skipped": summary.bytes_skipped,
        "bytes_resumed": summary.bytes_resumed,
        "files_failed": summary.files_failed,
        "seconds": summary.time.as_secs_f64(),
        "bytes_per_second": rate(summary),
        "protocol": summary.protocol.name(),
        "confirmed": summary.confirmed,
        "encryption": summary.encrypted.then_some("not authenticated"),
        "unkept": summary.unkept.iter().map(|setting| setting.flag.name()).collect::<Vec<_>>(),
        "checksum": summary.checksum,
        "durability": summary.durability.map(|durability| match durability {
            Durability::Commit => "commit",
            Durability::None => "none",
        }),
        "retries": summary.retries,
        "streams": summary.streams,
        "congestion": summary.congestion,
        "chunk_size": summary.one_chunk,
        "dry_run": summary.dry_run,
        "limited_by": shares.map(|shares| shares.ranked()[0].0),
        "limited": shares.map(|shares| json!({
            "reading": round(shares.reading), "cpu": round(shares.cpu),
            "network": round(shares.network), "writing": round(shares.writing),
        })),
    })
}

fn plural(count: u64, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

/// Files that this run brought, or completed: those that the checksum and the durability are said
/// of.
fn verified(summary: &Summary) -> u64 {
    summary.files.saturating_sub(summary.files_skipped)
}

/// The part of a summary that tells of skipped files, with the reason.
fn skipped(summary: &Summary) -> String {
    let same = summary.files_skipped.saturating_sub(summary.files_left);
    let why = if summary.checked { "the same contents" } else { "the same size and time" };
    match (same, summary.files_left) {
        (0, 0) => "0 skipped".to_owned(),
        (_, 0) => format!("{same} skipped ({why})"),
        (0, left) => format!("{left} skipped (left as they are)"),
        (_, left) => format!("{} skipped ({same} {why}, {left} left as they are)", summary.files_skipped),
    }
}

/// The words about a server that does not know how to tell what it leaves out.
const TOO_OLD: &str = "not confirmed: the server is too old to say whether it left something out";

/// The summary in one line.
fn line(verb: &str, summary: &Summary) -> String {
    let mut parts = Vec::new();
    let files = plural(summary.files, "file");
    if summary.dry_run {
        return format!(
            "would {} {files}, {} in all; {}, {} failed; nothing was moved",
            if verb == "sent" { "send" } else { "get" },
            bytes(summary.bytes),
            skipped(summary),
            summary.files_failed
        );
    }
    let time = seconds(summary.time);
    let verified = verified(summary);
    if summary.bytes_sent == 0 && verified == 0 && summary.files_failed == 0 {
        parts.push(format!("nothing to do for {files} of {}, {time}", bytes(summary.bytes)));
    } else {
        let moved = bytes(summary.bytes_sent);
        parts.push(format!(
            "{verb} {moved} for {files} of {} in {time}, {}/s",
            bytes(summary.bytes),
            bytes(rate(summary))
        ));
    }
    if let Some(wire) = summary.bytes_wire.filter(|wire| wire + wire / 20 < summary.bytes_sent) {
        parts.push(format!("{} on the wire", bytes(wire)));
    }
    if summary.bytes_resumed > 0 {
        parts.push(format!("{} were there from an interrupted transfer", bytes(summary.bytes_resumed)));
    }
    parts.push(format!("{}, {} failed", skipped(summary), summary.files_failed));
    if summary.retries > 0 {
        parts.push(plural(summary.retries.into(), "reconnection"));
    }
    if !summary.confirmed && summary.protocol == Protocol::FastDp {
        parts.push(TOO_OLD.to_owned());
    } else if !summary.confirmed {
        parts.push(format!("sent, not confirmed: {} does not tell whether it arrived", summary.protocol));
    }
    if summary.encrypted {
        parts.push("encrypted, not authenticated".to_owned());
    }
    // Nothing is said of what nobody looked at.
    if verified > 0 {
        let whose = if summary.files_skipped > 0 { "the others " } else { "" };
        parts.push(match summary.checksum {
            "none" => format!("{whose}not verified"),
            checksum => format!("{whose}verified with {checksum}"),
        });
        parts.push(match summary.durability {
            Some(Durability::Commit) => "committed to disk".to_owned(),
            Some(Durability::None) => "not synced (durability none)".to_owned(),
            None => format!("{} does not tell whether it was synced", summary.protocol),
        });
    }
    if !summary.unkept.is_empty() {
        let unkept: Vec<_> = summary.unkept.iter().map(ToString::to_string).collect();
        parts.push(format!("{} cannot keep the defaults {}", summary.protocol, unkept.join(", ")));
    }
    if let Some(limits) = summary.limits {
        let shares = limits.shares().ranked().map(|(name, share)| format!("{name} {:.0} %", share * 100.0));
        parts.push(format!("limited by {}", shares.join(", ")));
    }
    parts.join("; ")
}

//! UltraDP: one file, pushed without an answer. The specification is `docs/protocol/ultradp.md`.

mod cipher;

pub use cipher::{Decryptor, Encryptor, Key, Prelude, SALT_LEN};

use crate::json::INTEGER_MAX;
use thiserror::Error;

/// The longest announcement in bytes, with its LF.
pub const LINE_MAX: usize = 4096;
/// Bytes of the file in each chunk of ours.
pub const CHUNK: u32 = 8 << 20;
/// The longest chunk that is taken, as it is transmitted and as it is decoded.
pub const CHUNK_MAX: u64 = 64 << 20;

/// Why the sender's words are not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UltraDpError {
    /// The line is no announcement.
    #[error("not an UltraDP announcement: {0}")]
    Announcement(&'static str),
    /// The secured variant, where no password was given.
    #[error(
        "the secured variant of UltraDP is not taken without --ultradp-password-file: its cipher \
         authenticates nothing; TLS is the way to encrypt"
    )]
    Secured,
    /// A chunk is longer than any may be, or than what is left of the file.
    #[error("a chunk of {0} bytes is more than may come")]
    TooLong(u64),
    /// Empty, where each chunk is a frame.
    #[error("an empty chunk where a compressed one must be")]
    Empty,
    /// The end came too early.
    #[error("the sender ended after {came} of {size} bytes")]
    Incomplete {
        /// Bytes that came.
        came: u64,
        /// Bytes that were announced.
        size: u64,
    },
}

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// Of the file: UTF-8, and otherwise unchecked.
    pub name: String,
    /// Of the file, before compression.
    pub size: u64,
    /// Whether chunks are Zstandard frames.
    pub compressed: bool,
    /// True if their contents are encrypted: the secured variant. A [`Prelude`] follows the line.
    pub encrypted: bool,
    /// Reports whether it may as well be that of a file called `NAME:0`, and nothing that follows
    /// can tell: `NAME:0:0:0`. Nothing is replaced for it.
    pub in_doubt: bool,
}

impl Announcement {
    /// Parses the line at the beginning of `bytes`, and says how long it is; None if its end has
    /// not come.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, UltraDpError> {
        let within = bytes.get(..LINE_MAX).unwrap_or(bytes);
        let Some(end) = within.iter().position(|&byte| byte == b'\n') else {
            return if bytes.len() >= LINE_MAX {
                Err(UltraDpError::Announcement("its line is too long"))
            } else {
                Ok(None)
            };
        };
        let line = std::str::from_utf8(within.get(..end).unwrap_or_default())
            .map_err(|_| UltraDpError::Announcement("it is not UTF-8"))?;
        let has_fourth = has_four_fields(line.as_bytes());
        let (line, encrypted) = match line.rsplit_once(':') {
            Some((plain, encrypted)) if has_fourth => (plain, encrypted == "1"),
            _ => (line, false),
        };
        let mut fields = line.rsplitn(3, ':');
        let (Some(compressed), Some(size), Some(name)) = (fields.next(), fields.next(), fields.next()) else {
            return Err(UltraDpError::Announcement("it has fewer than three fields"));
        };
        let compressed = match compressed {
            "0" => false,
            "1" => true,
            _ => return Err(UltraDpError::Announcement("the last field is not 0 or 1")),
        };
        if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(UltraDpError::Announcement("the size is not a number"));
        }
        let size = size.parse().ok().filter(|&size| size <= INTEGER_MAX);
        let size = size.ok_or(UltraDpError::Announcement("the size is beyond 2^53"))?;
        let in_doubt = has_fourth && !encrypted && size == 0;
        Ok(Some((Self { name: name.into(), size, compressed, encrypted, in_doubt }, end + 1)))
    }

    /// Encodes the line, with a fourth field only where that says something.
    ///
    /// # Errors
    ///
    /// The name cannot stand in a line that is understood.
    pub fn encode(&self) -> Result<Vec<u8>, NameError> {
        let is_printable = self.name.bytes().next().is_some_and(|first| first >= b' ');
        if self.name.contains(':') {
            return Err(NameError::Colon);
        }
        let secured = if self.encrypted { ":1" } else { "" };
        let line = format!("{}:{}:{}{secured}\n", self.name, self.size, u8::from(self.compressed));
        if !is_printable || self.name.contains('\n') || line.len() > LINE_MAX {
            return Err(NameError::Line);
        }
        Ok(line.into_bytes())
    }
}

/// Reason for which a name cannot be announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NameError {
    /// Receivers in use split their line at every colon.
    #[error("it has a colon, at which receivers split the line")]
    Colon,
    /// It would not stand in one line.
    #[error("it is empty, begins with a control character, has a line feed, or is too long")]
    Line,
}

/// Returns true for the first line of a connection, without its LF, that announces a file.
pub(crate) fn is_announcement(line: &[u8]) -> bool {
    let mut fields = line.rsplit(|&byte| byte == b':');
    let is_printable = line.first().is_some_and(|&first| first >= b' ');
    is_printable && is_flag(fields.next()) && is_size(fields.next()) && fields.next().is_some()
}

/// Returns true for the line of the secured program, which says in a fourth field whether the
/// contents are encrypted. `a:1:0:0` may be that, or the file `a:1` without contents, which is the
/// rarer thing.
fn has_four_fields(line: &[u8]) -> bool {
    let mut fields = line.rsplit(|&byte| byte == b':');
    is_flag(fields.next()) && is_flag(fields.next()) && is_size(fields.next()) && fields.next().is_some()
}

fn is_flag(field: Option<&[u8]>) -> bool {
    matches!(field, Some(b"0" | b"1"))
}

fn is_size(field: Option<&[u8]>) -> bool {
    field.is_some_and(|field| !field.is_empty() && field.iter().all(u8::is_ascii_digit))
}

/// Counts what comes after the announcement.
#[derive(Debug, Clone)]
pub struct Receiver {
    size: u64,
    compressed: bool,
    came: u64,
}

impl Receiver {
    /// Nothing has come yet.
    pub fn new(announcement: &Announcement) -> Self {
        Self { size: announcement.size, compressed: announcement.compressed, came: 0 }
    }

    /// Bytes of the file that have come: the next go there.
    pub fn came(&self) -> u64 {
        self.came
    }

    /// Takes the length of a chunk: how many bytes of it follow.
    pub fn handle_length(&self, length: [u8; 8]) -> Result<usize, UltraDpError> {
        let length = u64::from_be_bytes(length);
        let max = if self.compressed { CHUNK_MAX } else { CHUNK_MAX.min(self.size - self.came) };
        match usize::try_from(length) {
            Ok(0) if self.compressed => Err(UltraDpError::Empty),
            Ok(bytes) if length <= max => Ok(bytes),
            _ => Err(UltraDpError::TooLong(length)),
        }
    }

    /// Counts bytes of the file.
    pub fn handle_decoded(&mut self, bytes: u64) -> Result<(), UltraDpError> {
        if bytes > self.size - self.came {
            return Err(UltraDpError::TooLong(bytes));
        }
        self.came += bytes;
        Ok(())
    }

    /// Takes the end of the connection, between two chunks.
    pub fn handle_end(&self) -> Result<(), UltraDpError> {
        if self.came == self.size {
            Ok(())
        } else {
            Err(UltraDpError::Incomplete { came: self.came, size: self.size })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<(Announcement, usize)>, UltraDpError> {
        Announcement::parse(line.as_bytes())
    }

    fn announcement(name: &str, size: u64, compressed: bool, encrypted: bool) -> Announcement {
        Announcement { name: name.into(), size, compressed, encrypted, in_doubt: false }
    }

    #[test]
    fn the_vectors_of_the_specification_are_what_the_code_writes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocol/vectors/ultradp.txt");
        let text = std::fs::read_to_string(path).unwrap();
        let mut count = 0;
        for vector in text.lines().filter(|line| !line.starts_with('#')) {
            let fields: Vec<_> = vector.split_whitespace().collect();
            // Others are the cipher's.
            let [name, size, compressed, encrypted, bytes] = fields[..] else { continue };
            let encrypts = encrypted == "1";
            let announcement = announcement(name, size.parse().unwrap(), compressed == "1", encrypts);
            let line = hex::decode(bytes).unwrap();
            assert_eq!(Announcement::parse(&line), Ok(Some((announcement.clone(), line.len()))));
            // What others send may be more than what we do.
            let is_ours = !name.contains(':') && (encrypted == "-" || encrypts);
            assert_eq!(announcement.encode().ok().filter(|_| is_ours), is_ours.then_some(line));
            count += 1;
        }
        assert!(count >= 6);
    }

    #[test]
    fn a_name_with_colons_is_split_from_the_right_and_never_sent() {
        let parsed = parse("a:b 7:12:1\nrest");
        assert_eq!(parsed, Ok(Some((announcement("a:b 7", 12, true, false), 11))));
        assert_eq!(parse("a:1"), Ok(None));
        for name in ["a:5", "a:b", ":", "a:"] {
            assert_eq!(announcement(name, 1, false, false).encode(), Err(NameError::Colon));
        }
        for name in ["", "\ta", "a\nb:1:0", "\u{1}"] {
            announcement(name, 1, false, false).encode().unwrap_err();
        }
    }

    #[test]
    fn a_fourth_field_says_whether_the_contents_are_encrypted() {
        for (line, expected) in [
            ("a:5:0:0\n", announcement("a", 5, false, false)),
            ("a:5:1:0\n", announcement("a", 5, true, false)),
            ("a:5:0:1\n", announcement("a", 5, false, true)),
            ("a:b:5:1:1\n", announcement("a:b", 5, true, true)),
            // Read as the fourth field, which it may not have been.
            ("a:0:0:0\n", Announcement { in_doubt: true, ..announcement("a", 0, false, false) }),
            ("a:5:7:0\n", announcement("a:5", 7, false, false)),
            ("a:x:1:0\n", announcement("a:x", 1, false, false)),
            ("5:1:0\n", announcement("5", 1, false, false)),
        ] {
            assert_eq!(parse(line), Ok(Some((expected, line.len()))), "{line}");
        }
    }

    #[test]
    fn cases_12_16_17_and_18_bad_announcements_and_lengths_are_refused() {
        for bad in [
            "x:1\n",
            "x:-1:0\n",
            "x:1:0:2\n",
            "x:1.5:0\n",
            "x:1e3:0\n",
            "x:1:2\n",
            "x::0\n",
            "x:99999999999999999999:0\n",
        ] {
            parse(bad).unwrap_err();
        }
        Announcement::parse(b"\xff:1:0\n").unwrap_err();
        Announcement::parse(&[b'a'; LINE_MAX]).unwrap_err();
        let announcement = announcement("x", 10, false, false);
        let mut receiver = Receiver::new(&announcement);
        receiver.handle_length(u64::MAX.to_be_bytes()).unwrap_err();
        receiver.handle_length(11u64.to_be_bytes()).unwrap_err();
        assert_eq!(receiver.handle_length(10u64.to_be_bytes()), Ok(10));
        receiver.handle_decoded(9).unwrap();
        assert_eq!(receiver.handle_end(), Err(UltraDpError::Incomplete { came: 9, size: 10 }));
        receiver.handle_decoded(2).unwrap_err();
        receiver.handle_decoded(1).unwrap();
        assert_eq!(receiver.handle_end(), Ok(()));
        let compressed = Receiver::new(&Announcement { compressed: true, ..announcement });
        assert_eq!(compressed.handle_length([0; 8]), Err(UltraDpError::Empty));
    }
}

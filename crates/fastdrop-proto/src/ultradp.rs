//! UltraDP: one file, pushed without an answer. The specification is `docs/protocol/ultradp.md`.

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
    /// The secured variant.
    #[error(
        "the secured variant of UltraDP is not taken: its cipher authenticates nothing; TLS is the way to encrypt"
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
        if is_secured(line.as_bytes()) {
            return Err(UltraDpError::Secured);
        }
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
        Ok(Some((Self { name: name.into(), size, compressed }, end + 1)))
    }

    /// The line; None if the name cannot stand in one.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let line = format!("{}:{}:{}\n", self.name, self.size, u8::from(self.compressed));
        let is_told = is_announcement(line.trim_end_matches('\n').as_bytes());
        (is_told && line.len() <= LINE_MAX && !self.name.contains('\n')).then(|| line.into_bytes())
    }
}

/// Returns true for the first line of a connection, without its LF, that announces a file.
pub(crate) fn is_announcement(line: &[u8]) -> bool {
    let mut fields = line.rsplit(|&byte| byte == b':');
    let is_printable = line.first().is_some_and(|&first| first >= b' ');
    is_printable
        && is_flag(fields.next())
        && is_size(fields.next())
        && fields.next().is_some()
        && !is_secured(line)
}

/// Returns true for an announcement of the secured variant.
pub(crate) fn is_secured(line: &[u8]) -> bool {
    let mut fields = line.rsplit(|&byte| byte == b':');
    // `a:1:0:1` may be the secured variant, or the file `a:1`; a size of 0 or 1 with a number
    // before it is the rarer thing.
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

    #[test]
    fn the_vectors_of_the_specification_are_what_the_code_writes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocol/vectors/ultradp.txt");
        let text = std::fs::read_to_string(path).unwrap();
        let vectors = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut count = 0;
        for vector in vectors {
            let fields: Vec<_> = vector.split_whitespace().collect();
            let [name, size, compressed, bytes] = fields[..] else { panic!("{vector}") };
            let (size, compressed) = (size.parse().unwrap(), compressed == "1");
            let announcement = Announcement { name: name.into(), size, compressed };
            assert_eq!(hex::encode(announcement.encode().unwrap()), bytes);
            let parsed = Announcement::parse(&hex::decode(bytes).unwrap()).unwrap();
            assert_eq!(parsed, Some((announcement, bytes.len() / 2)));
            count += 1;
        }
        assert!(count >= 3);
    }

    #[test]
    fn a_name_with_colons_is_split_from_the_right() {
        let (announcement, used) = parse("a:b 7:12:1\nrest").unwrap().unwrap();
        assert_eq!((&announcement.name[..], announcement.size, announcement.compressed), ("a:b 7", 12, true));
        assert_eq!(used, 11);
        assert_eq!(parse("a:1"), Ok(None));
        // It would be read as another variant.
        let name = "a:5".to_owned();
        assert_eq!(Announcement { name, size: 1, compressed: false }.encode(), None);
    }

    #[test]
    fn cases_12_16_17_and_18_bad_announcements_and_lengths_are_refused() {
        assert_eq!(parse("x:1:0:1\n"), Err(UltraDpError::Secured));
        for bad in
            ["x:1\n", "x:-1:0\n", "x:1.5:0\n", "x:1e3:0\n", "x:1:2\n", "x::0\n", "x:99999999999999999999:0\n"]
        {
            parse(bad).unwrap_err();
        }
        Announcement::parse(b"\xff:1:0\n").unwrap_err();
        Announcement::parse(&[b'a'; LINE_MAX]).unwrap_err();
        let announcement = Announcement { name: "x".into(), size: 10, compressed: false };
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

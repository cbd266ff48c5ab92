//! FastDownloader: one file, pulled over ports that the server names. The specification is
//! `docs/protocol/fastdownloader.md`.

mod dialect;

pub use dialect::{Chunk, ChunkSplitter, Dialect, V1_CHUNK, V1_PORT_MIN, encode_v1};

use thiserror::Error;

/// Bytes of a chunk on the wire.
pub const CHUNK: usize = 1024;
/// Bytes of the file in it.
pub const CHUNK_BYTES: usize = 1000;
/// Bytes before them: an ordinal and a space.
pub const CHUNK_PREFIX: usize = CHUNK - CHUNK_BYTES;
/// More streams are not taken.
pub const STREAMS_MAX: u16 = 64;
/// More chunks are not taken: 2 TB.
pub const CHUNKS_MAX: u64 = 1 << 31;
/// The longest name that a client sends.
pub const NAME_MAX: usize = 4096;
/// Files of a list, and its bytes.
pub const LIST_MAX: usize = 10_000;
/// See [`LIST_MAX`].
pub const LIST_BYTES_MAX: usize = 1 << 20;
/// The answer to a name that is not in the list.
pub const WRONG_INPUT: &str = "WRONG_INPUT";
const ACCEPTED: &str = "ACCEPTED";

/// Why the peer's words are not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FastDownloaderError {
    /// There is no such file.
    #[error("the server has no file of that name")]
    WrongInput,
    /// Neither of the two answers.
    #[error("an answer that is not FastDownloader's")]
    Answer,
    /// Numbers out of range.
    #[error("an answer with numbers out of range")]
    Range,
    /// A chunk that does not begin with its ordinal, or ends too early.
    #[error("a chunk that is malformed")]
    Chunk,
    /// A chunk beyond the last.
    #[error("chunk {0} is beyond the last")]
    Beyond(u64),
    /// Bytes that the published client would split elsewhere.
    #[error(
        "it contains $SEPARATOR$, with which the dialect v1 cannot be split: the dialect document carries it"
    )]
    Unsplittable,
    /// A chunk came twice.
    #[error("chunk {0} came twice")]
    Twice(u64),
    /// The end came too early.
    #[error("the server ended after {came} of {chunks} chunks")]
    Incomplete {
        /// Chunks that came.
        came: u64,
        /// Chunks that were announced.
        chunks: u64,
    },
}

/// How many streams a file of `bytes` gets.
pub fn streams_for(bytes: u64) -> u16 {
    const STEPS: [u64; 7] = [10, 50, 100, 250, 400, 700, 1000];
    1 + STEPS.iter().filter(|&&step| bytes >= step << 20).count() as u16
}

/// How many chunks a file of `bytes` has.
pub fn chunks_of(bytes: u64) -> u64 {
    bytes / CHUNK_BYTES as u64 + 1
}

/// The list of files, one a line.
pub fn encode_list<'a>(names: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut list = Vec::new();
    for (at, name) in names.take(LIST_MAX).enumerate() {
        let line = [format!("{}) ", at + 1).as_bytes(), name, b"\n"].concat();
        if list.len() + line.len() > LIST_BYTES_MAX {
            break;
        }
        list.extend_from_slice(&line);
    }
    list
}

/// The names in a list; lines that are none of it are left out.
pub fn parse_list(list: &[u8]) -> Vec<&[u8]> {
    let name = |line: &'_ [u8]| -> Option<usize> {
        let end = line.windows(2).position(|pair| pair == b") ")?;
        let digits = line.get(..end)?;
        (!digits.is_empty() && digits.iter().all(u8::is_ascii_digit)).then_some(end + 2)
    };
    let lines = list.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    lines.filter_map(|line| name(line).and_then(|at| line.get(at..))).take(LIST_MAX).collect()
}

/// What a server promises to send, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// How many chunks.
    pub chunks: u64,
    /// A port for each stream.
    pub ports: Vec<u16>,
}

impl Accepted {
    /// As on the wire.
    pub fn encode(&self) -> Vec<u8> {
        let ports: Vec<_> = self.ports.iter().map(u16::to_string).collect();
        format!("{ACCEPTED} {} {} {}", self.ports.len(), self.chunks, ports.join(" ")).into_bytes()
    }

    /// Parses an answer; None if more must come. As nothing ends it, the last port may still grow:
    /// `quiet` says that nothing more comes.
    pub fn parse(bytes: &[u8], quiet: bool) -> Result<Option<Self>, FastDownloaderError> {
        let text = std::str::from_utf8(bytes).map_err(|_| FastDownloaderError::Answer)?;
        let text = text.trim_end_matches(['\r', '\n']);
        if text.starts_with(WRONG_INPUT) {
            return Err(FastDownloaderError::WrongInput);
        }
        let longest = ACCEPTED.len() + 2 + 3 + 20 + 6 * usize::from(STREAMS_MAX);
        let begins = text.len().min(ACCEPTED.len());
        let alike = text
            .get(..begins)
            .is_some_and(|text| ACCEPTED.starts_with(text) || WRONG_INPUT.starts_with(text));
        if !alike || text.len() > longest {
            return Err(FastDownloaderError::Answer);
        }
        if !quiet {
            return Ok(None);
        }
        let mut words = text.split(' ').skip(1);
        let mut number = || words.next().and_then(digits).ok_or(FastDownloaderError::Answer);
        let (streams, chunks) = (number()?, number()?);
        if !(1..=u64::from(STREAMS_MAX)).contains(&streams) || !(1..=CHUNKS_MAX).contains(&chunks) {
            return Err(FastDownloaderError::Range);
        }
        let mut ports = Vec::with_capacity(streams as usize);
        for _ in 0..streams {
            let port = u16::try_from(number()?).ok().filter(|&port| port > 0);
            ports.push(port.ok_or(FastDownloaderError::Range)?);
        }
        if words.next().is_some() {
            return Err(FastDownloaderError::Answer);
        }
        Ok(Some(Self { chunks, ports }))
    }
}

fn digits(word: &str) -> Option<u64> {
    (!word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit())).then(|| word.parse().ok())?
}

/// Writes what stands before chunk `ordinal`.
pub fn encode_prefix(ordinal: u64, out: &mut [u8; CHUNK_PREFIX]) {
    let mut rest = ordinal;
    let (last, number) = match out.split_last_mut() {
        Some(split) => split,
        None => return,
    };
    *last = b' ';
    for digit in number.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
}

/// The ordinal and the bytes of one chunk. Padding behind 1000 bytes is left out.
pub fn parse_chunk(chunk: &[u8]) -> Result<(u64, &[u8]), FastDownloaderError> {
    let beginning = chunk.get(..CHUNK_PREFIX.min(chunk.len())).unwrap_or_default();
    let space = beginning.iter().position(|&byte| byte == b' ').ok_or(FastDownloaderError::Chunk)?;
    let ordinal = chunk.get(..space).and_then(|digits| std::str::from_utf8(digits).ok());
    let ordinal = ordinal.and_then(digits).ok_or(FastDownloaderError::Chunk)?;
    let bytes = chunk.get(space + 1..).unwrap_or_default();
    Ok((ordinal, bytes.get(..CHUNK_BYTES.min(bytes.len())).unwrap_or(bytes)))
}

/// Keeps count of the chunks of one file, whose ordinals begin at 0 or at 1.
#[derive(Debug, Clone)]
pub struct Receiver {
    chunks: u64,
    held: Vec<u64>,
    came: u64,
    /// The first ordinal; None until a chunk has shown it.
    first: Option<u64>,
    last: Option<usize>,
}

impl Receiver {
    /// Nothing has come yet.
    pub fn new(accepted: &Accepted) -> Self {
        Self { chunks: accepted.chunks, held: Vec::new(), came: 0, first: None, last: None }
    }

    /// Takes a chunk with `bytes` of the file, and returns where they go as long as ordinals are
    /// taken to begin at 0: see [`Self::handle_end`].
    ///
    /// # Errors
    ///
    /// A chunk that does not fit those that came before.
    pub fn handle_chunk(&mut self, ordinal: u64, bytes: usize) -> Result<u64, FastDownloaderError> {
        if ordinal > self.chunks {
            return Err(FastDownloaderError::Beyond(ordinal));
        }
        // The last chunk has fewer bytes than the others, and tells where ordinals begin, as does
        // one that there is in one of the two cases only.
        let is_short = bytes < CHUNK_BYTES;
        let first = match ordinal {
            0 => Some(0),
            _ if ordinal == self.chunks => Some(1),
            _ if ordinal + 1 == self.chunks => Some(u64::from(!is_short)),
            _ => None,
        };
        if let Some(first) = first {
            match *self.first.get_or_insert(first) {
                known if known == first => {}
                _ if ordinal == self.chunks => return Err(FastDownloaderError::Beyond(ordinal)),
                _ => return Err(FastDownloaderError::Chunk),
            }
        }
        let is_last = first.is_some_and(|first| ordinal + 1 == self.chunks + first);
        if bytes > CHUNK_BYTES || is_short != is_last {
            return Err(FastDownloaderError::Chunk);
        }
        let (at, bit) = ((ordinal / 64) as usize, 1 << (ordinal % 64));
        if at >= self.held.len() {
            self.held.resize(at + 1, 0);
        }
        match self.held.get_mut(at) {
            Some(word) if *word & bit == 0 => *word |= bit,
            _ => return Err(FastDownloaderError::Twice(ordinal)),
        }
        self.came += 1;
        if is_last {
            self.last = Some(bytes);
        }
        Ok(ordinal * CHUNK_BYTES as u64)
    }

    /// Returns true if every chunk is there.
    pub fn is_complete(&self) -> bool {
        self.came == self.chunks && self.last.is_some()
    }

    /// Takes the end of all streams: how many bytes the file has, and where they begin, which is
    /// behind the place of a chunk 0 if ordinals began at 1.
    ///
    /// # Errors
    ///
    /// Chunks are missing.
    pub fn handle_end(&self) -> Result<Whole, FastDownloaderError> {
        match (self.last, self.first) {
            (Some(last), Some(first)) if self.came == self.chunks => Ok(Whole {
                begins_at: first * CHUNK_BYTES as u64,
                bytes: (self.chunks - 1) * CHUNK_BYTES as u64 + last as u64,
            }),
            _ => Err(FastDownloaderError::Incomplete { came: self.came, chunks: self.chunks }),
        }
    }
}

/// A file of which every chunk is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whole {
    /// The place of its first byte, by the places that its chunks were given.
    pub begins_at: u64,
    /// Its size.
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_and_chunks_follow_from_the_size() {
        let mib = 1 << 20;
        let steps = [
            (0, 1),
            (10 * mib - 1, 1),
            (10 * mib, 2),
            (50 * mib, 3),
            (999 * mib, 7),
            (1000 * mib, 8),
            (u64::MAX, 8),
        ];
        for (bytes, streams) in steps {
            assert_eq!(streams_for(bytes), streams, "{bytes}");
        }
        assert_eq!([0, 999, 1000, 1001].map(chunks_of), [1, 1, 2, 2]);
    }

    #[test]
    fn the_vectors_of_the_specification_are_what_the_code_writes() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocol/vectors/fastdownloader.txt");
        let text = std::fs::read_to_string(path).unwrap();
        let mut count = 0;
        for vector in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let fields: Vec<_> = vector.split_whitespace().collect();
            match fields[..] {
                ["prefix", ordinal, expected] => {
                    let mut out = [0; CHUNK_PREFIX];
                    encode_prefix(ordinal.parse().unwrap(), &mut out);
                    assert_eq!(hex::encode(out), expected);
                    assert_eq!(parse_chunk(&out), Ok((ordinal.parse().unwrap(), &[][..])));
                }
                ["answer", chunks, ports, expected] => {
                    let ports = ports.split(',').map(|port| port.parse().unwrap()).collect();
                    let accepted = Accepted { chunks: chunks.parse().unwrap(), ports };
                    assert_eq!(hex::encode(accepted.encode()), expected);
                    assert_eq!(Accepted::parse(&accepted.encode(), true), Ok(Some(accepted)));
                }
                _ => panic!("{vector}"),
            }
            count += 1;
        }
        assert!(count >= 4);
    }

    #[test]
    fn a_list_is_read_as_it_was_written() {
        let names: [&[u8]; 3] = [b"a", b"b) c", b"\xff"];
        let list = encode_list(names.into_iter());
        assert_eq!(list, b"1) a\n2) b) c\n3) \xff\n");
        assert_eq!(parse_list(&list), names);
        assert_eq!(parse_list(b"1) a\r\n2) b"), [b"a", b"b"]);
    }

    #[test]
    fn cases_12_16_18_and_19_bad_answers_are_refused() {
        assert_eq!(Accepted::parse(b"WRONG_INPUT", true), Err(FastDownloaderError::WrongInput));
        assert_eq!(Accepted::parse(b"ACC", false), Ok(None));
        for bad in [
            "ACCEPTED 0 1 ",
            "ACCEPTED 65 1 1",
            "ACCEPTED 1 0 1",
            "ACCEPTED 1 99999999999 1",
            "ACCEPTED 1 -1 1",
            "ACCEPTED 1 1 70000",
            "ACCEPTED 1 1 0",
            "ACCEPTED 2 1 5",
            "ACCEPTED 1 1 5 6",
            "HELLO",
        ] {
            Accepted::parse(bad.as_bytes(), true).expect_err(bad);
        }
    }

    #[test]
    fn ordinals_begin_at_0_or_at_1_in_any_order() {
        for first in [0, 1] {
            for chunks in 1..5_u64 {
                for last in [0, 1, 999] {
                    let ordinals: Vec<_> = (first..first + chunks).collect();
                    for turn in 0..ordinals.len() {
                        let mut ordinals = ordinals.clone();
                        ordinals.rotate_left(turn);
                        let mut receiver = Receiver::new(&Accepted { chunks, ports: vec![1] });
                        for ordinal in ordinals {
                            let bytes = if ordinal + 1 == first + chunks { last } else { 1000 };
                            assert!(!receiver.is_complete());
                            assert_eq!(receiver.handle_chunk(ordinal, bytes), Ok(ordinal * 1000));
                        }
                        let whole =
                            Whole { begins_at: first * 1000, bytes: (chunks - 1) * 1000 + last as u64 };
                        assert!(receiver.is_complete());
                        assert_eq!(receiver.handle_end(), Ok(whole));
                        // Either is not taken for the other.
                        receiver.handle_chunk(if first == 0 { chunks } else { 0 }, 1000).unwrap_err();
                    }
                }
            }
        }
    }

    #[test]
    fn cases_21_22_26_and_27_chunks_that_do_not_fit_are_refused() {
        let accepted = Accepted { chunks: 3, ports: vec![1] };
        let mut receiver = Receiver::new(&accepted);
        assert_eq!(receiver.handle_chunk(1, 1000), Ok(1000));
        assert_eq!(receiver.handle_chunk(1, 1000), Err(FastDownloaderError::Twice(1)));
        assert_eq!(receiver.handle_chunk(4, 0), Err(FastDownloaderError::Beyond(4)));
        assert_eq!(receiver.clone().handle_chunk(0, 999), Err(FastDownloaderError::Chunk));
        assert_eq!(receiver.handle_chunk(2, 0), Ok(2000));
        assert_eq!(receiver.handle_chunk(3, 0), Err(FastDownloaderError::Beyond(3)));
        assert_eq!(receiver.handle_end(), Err(FastDownloaderError::Incomplete { came: 2, chunks: 3 }));
        assert_eq!(receiver.handle_chunk(0, 1000), Ok(0));
        assert_eq!(receiver.handle_end(), Ok(Whole { begins_at: 0, bytes: 2000 }));
        for bad in [&b""[..], b"12", b" x", b"x y", b"111111111111111111111111 x"] {
            assert_eq!(parse_chunk(bad), Err(FastDownloaderError::Chunk), "{}", bad.escape_ascii());
        }
        assert_eq!(parse_chunk(&[b"7 ", &[9; 1022][..]].concat()), Ok((7, &[9; 1000][..])));
    }
}

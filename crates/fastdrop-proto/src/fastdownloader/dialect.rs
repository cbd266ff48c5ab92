//! The forms of a chunk on the wire: that of the document, and that of the published program.

use super::{CHUNK, CHUNK_BYTES, CHUNK_PREFIX, FastDownloaderError, digits, parse_chunk, streams_for};

/// Bytes of a chunk of [`Dialect::V1`] on the wire.
pub const V1_CHUNK: usize = 1400;
/// The lowest port of a stream of [`Dialect::V1`].
pub const V1_PORT_MIN: u16 = 49152;
/// The text around the bytes of a chunk of [`Dialect::V1`].
const SEPARATOR: &[u8] = b"$SEPARATOR$";
/// The byte that a chunk of [`Dialect::V1`] is filled up with.
const FILLING: u8 = b'0';
/// Digits of an ordinal, with leading zeros and what other peers may fill chunks up with.
const DIGITS_MAX: usize = 64;

/// The form in which a server gives a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dialect {
    /// The ordinal, a space, and the bytes, in 1,024 bytes.
    #[default]
    Document,
    /// V1.0 of the published program: the ordinal and the bytes, each followed by `$SEPARATOR$`,
    /// in 1,400 bytes.
    V1,
}

impl Dialect {
    /// Returns how many streams a file of `bytes` gets.
    pub fn streams_for(self, bytes: u64) -> u16 {
        match self {
            Dialect::V1 if bytes >= 1000 << 20 => 6,
            Dialect::Document | Dialect::V1 => streams_for(bytes),
        }
    }
}

/// Writes a whole chunk of [`Dialect::V1`].
///
/// # Errors
///
/// The published client, which splits at the separator, would not find the `bytes` again.
pub fn encode_v1(ordinal: u64, bytes: &[u8], out: &mut [u8; V1_CHUNK]) -> Result<(), FastDownloaderError> {
    let chunk = [ordinal.to_string().as_bytes(), SEPARATOR, bytes, SEPARATOR].concat();
    let body = chunk.len() - bytes.len() - SEPARATOR.len();
    let separators = chunk.get(body..).unwrap_or_default().windows(SEPARATOR.len());
    let first = separators.enumerate().find_map(|(at, window)| (window == SEPARATOR).then_some(at));
    if first != Some(bytes.len()) || bytes.len() > CHUNK_BYTES {
        return Err(FastDownloaderError::Unsplittable);
    }
    out.fill(FILLING);
    if let Some(start) = out.get_mut(..chunk.len()) {
        start.copy_from_slice(&chunk);
    }
    Ok(())
}

/// A chunk that was split off a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// As the server counts.
    pub ordinal: u64,
    /// Of the file.
    pub bytes: &'a [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// An ordinal of 23 digits: each chunk but the last has [`CHUNK`] bytes.
    Padded,
    /// An ordinal of fewer digits: each chunk ends behind its bytes.
    Unpadded,
    V1,
}

/// Splits one stream into chunks, in whichever form they come.
#[derive(Debug, Clone, Default)]
pub struct ChunkSplitter {
    form: Option<Form>,
}

impl ChunkSplitter {
    /// Creates a splitter of a stream of which nothing has come.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns true if every chunk tells its own end, so that the end of the stream says nothing
    /// more.
    pub fn is_v1(&self) -> bool {
        self.form == Some(Form::V1)
    }

    /// Returns true if the stream is known to end behind its last chunk, so that much may be read
    /// before it is split.
    pub fn ends(&self) -> bool {
        self.form.is_some_and(|form| form != Form::V1)
    }

    /// Splits a chunk off the beginning of `wire`, and says how many bytes it took; None if more
    /// must come, or if the stream has `ended` and nothing is left.
    ///
    /// # Errors
    ///
    /// Bytes that are no chunk.
    pub fn split<'a>(
        &mut self,
        wire: &'a [u8],
        ended: bool,
    ) -> Result<Option<(Chunk<'a>, usize)>, FastDownloaderError> {
        if wire.is_empty() {
            return Ok(None);
        }
        let form = match self.form {
            Some(form) => form,
            None => match find_form(wire)? {
                Some(form) => *self.form.insert(form),
                None if ended => return Err(FastDownloaderError::Chunk),
                None => return Ok(None),
            },
        };
        match form {
            Form::Padded => {
                let Some(chunk) = wire.get(..CHUNK).or(ended.then_some(wire)) else { return Ok(None) };
                let (ordinal, bytes) = parse_chunk(chunk)?;
                Ok(Some((Chunk { ordinal, bytes }, chunk.len())))
            }
            Form::Unpadded => split_unpadded(wire, ended),
            Form::V1 => match wire.first_chunk::<V1_CHUNK>() {
                Some(chunk) => Ok(Some((parse_v1(chunk)?, V1_CHUNK))),
                None if ended => Err(FastDownloaderError::Chunk),
                None => Ok(None),
            },
        }
    }
}

/// Finds out the form from what stands behind the first ordinal.
fn find_form(wire: &[u8]) -> Result<Option<Form>, FastDownloaderError> {
    let Some(end) = wire.iter().position(|byte| !byte.is_ascii_digit()) else {
        return if wire.len() > DIGITS_MAX { Err(FastDownloaderError::Chunk) } else { Ok(None) };
    };
    match wire.get(end) {
        Some(b' ') if end + 1 == CHUNK_PREFIX => Ok(Some(Form::Padded)),
        Some(b' ') if end > 0 => Ok(Some(Form::Unpadded)),
        Some(b'$') if end > 0 => Ok(Some(Form::V1)),
        _ => Err(FastDownloaderError::Chunk),
    }
}

/// A chunk that takes its ordinal, a space, and 1,000 bytes or what is left. What a peer may have
/// filled up the one before with is skipped: NUL and spaces, and `0`, which leads the ordinal.
fn split_unpadded(wire: &[u8], ended: bool) -> Result<Option<(Chunk<'_>, usize)>, FastDownloaderError> {
    let skipped = wire.iter().take_while(|&&byte| byte == 0 || byte == b' ').count();
    let rest = wire.get(skipped..).unwrap_or_default();
    if skipped > CHUNK {
        return Err(FastDownloaderError::Chunk);
    }
    let Some(space) = rest.iter().take(DIGITS_MAX + 1).position(|&byte| byte == b' ') else {
        let is_filling = rest.iter().all(|&byte| byte == b'0');
        return match ended {
            true if is_filling => Ok(None),
            false if rest.len() <= DIGITS_MAX => Ok(None),
            _ => Err(FastDownloaderError::Chunk),
        };
    };
    let ordinal = rest.get(..space).and_then(|digits| std::str::from_utf8(digits).ok());
    let ordinal = ordinal.and_then(digits).ok_or(FastDownloaderError::Chunk)?;
    let behind = rest.get(space + 1..).unwrap_or_default();
    let Some(bytes) = behind.get(..CHUNK_BYTES).or(ended.then_some(behind)) else { return Ok(None) };
    Ok(Some((Chunk { ordinal, bytes }, skipped + space + 1 + bytes.len())))
}

/// A chunk of [`Dialect::V1`]. Its bytes are between the first separator and the last, whatever
/// they contain: behind the last there is nothing but the filling, which contains none.
fn parse_v1(chunk: &[u8; V1_CHUNK]) -> Result<Chunk<'_>, FastDownloaderError> {
    let malformed = FastDownloaderError::Chunk;
    let end = chunk.iter().position(|byte| !byte.is_ascii_digit()).ok_or(malformed)?;
    let (ordinal, rest) = chunk.split_at(end);
    let ordinal = std::str::from_utf8(ordinal).ok().and_then(digits).ok_or(malformed)?;
    let filled = rest.strip_prefix(SEPARATOR).ok_or(malformed)?;
    let filling = filled.iter().rev().take_while(|&&byte| byte == FILLING).count();
    let bytes = filled.get(..filled.len() - filling).and_then(|body| body.strip_suffix(SEPARATOR));
    let bytes = bytes.filter(|bytes| bytes.len() <= CHUNK_BYTES).ok_or(malformed)?;
    Ok(Chunk { ordinal, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fastdownloader::encode_prefix;
    use proptest::prelude::*;

    /// Writes a chunk as a peer that is not asked does.
    fn v1(ordinal: u64, bytes: &[u8]) -> Vec<u8> {
        let mut chunk = [ordinal.to_string().as_bytes(), SEPARATOR, bytes, SEPARATOR].concat();
        chunk.resize(V1_CHUNK, FILLING);
        chunk
    }

    fn padded(ordinal: u64, bytes: &[u8]) -> Vec<u8> {
        let mut prefix = [0; CHUNK_PREFIX];
        encode_prefix(ordinal, &mut prefix);
        [&prefix[..], bytes].concat()
    }

    fn unpadded(ordinal: u64, bytes: &[u8]) -> Vec<u8> {
        [ordinal.to_string().as_bytes(), b" ", bytes].concat()
    }

    /// Splits `wire`, of which so much comes at a time.
    fn split(wire: &[u8], step: usize) -> Result<Vec<(u64, Vec<u8>)>, FastDownloaderError> {
        let (mut splitter, mut out, mut at, mut came) = (ChunkSplitter::new(), Vec::new(), 0, 0);
        loop {
            came = wire.len().min(came + step);
            while let Some((chunk, used)) = splitter.split(&wire[at..came], came == wire.len())? {
                out.push((chunk.ordinal, chunk.bytes.to_vec()));
                at += used;
            }
            if came == wire.len() {
                return Ok(out);
            }
        }
    }

    /// Bytes in which separators, parts of them, and zeros are likely.
    fn content(max: usize) -> impl Strategy<Value = Vec<u8>> {
        let parts = prop_oneof![
            Just(SEPARATOR.to_vec()),
            Just(b"$SEPARATOR".to_vec()),
            Just(b"0".repeat(30)),
            Just(b"7 ".to_vec()),
            prop::collection::vec(any::<u8>(), 1..200),
        ];
        prop::collection::vec(parts, 0..12).prop_map(move |parts| {
            let mut bytes = parts.concat();
            bytes.truncate(max);
            bytes
        })
    }

    fn whole() -> impl Strategy<Value = Vec<u8>> {
        content(1000).prop_map(|mut bytes| {
            bytes.resize(CHUNK_BYTES, b'0');
            bytes
        })
    }

    proptest! {
        /// Chunks are found by their size in every form, whatever they contain and however they
        /// arrive.
        #[test]
        fn chunks_of_every_form_are_split_whatever_they_contain(
            contents in prop::collection::vec(whole(), 0..4),
            last in content(999),
            first in 0..3_000_000_000u64,
            step in 1..3000usize,
        ) {
            for encode in [padded, unpadded, v1] {
                let all: Vec<_> = contents.iter().chain([&last]).zip(first..).collect();
                let wire: Vec<u8> = all.iter().flat_map(|(bytes, ordinal)| encode(*ordinal, bytes)).collect();
                let expected: Vec<_> = all.iter().map(|(bytes, ordinal)| (*ordinal, bytes.to_vec())).collect();
                prop_assert_eq!(split(&wire, step), Ok(expected));
            }
        }

        /// A chunk that the published client would split elsewhere is not sent to it.
        #[test]
        fn a_v1_chunk_is_written_only_if_it_can_be_split(bytes in content(1000), ordinal: u64) {
            let mut out = [0; V1_CHUNK];
            let written = encode_v1(ordinal, &bytes, &mut out);
            let chunk = v1(ordinal, &bytes);
            let text: Vec<usize> = (0..chunk.len()).filter(|&at| chunk[at..].starts_with(SEPARATOR)).collect();
            let second = text[1];
            let found = &chunk[text[0] + SEPARATOR.len()..second.max(text[0] + SEPARATOR.len())];
            prop_assert_eq!(written.is_ok(), found == &bytes[..] && second >= text[0] + SEPARATOR.len());
            if written.is_ok() {
                prop_assert_eq!(&out[..], &chunk[..]);
                prop_assert_eq!(parse_v1(&out), Ok(Chunk { ordinal, bytes: &bytes }));
            }
        }

        #[test]
        fn nothing_that_comes_makes_the_splitter_panic(wire in content(5000), step in 1..3000usize) {
            let _ = split(&wire, step);
        }
    }

    #[test]
    fn unpadded_chunks_may_be_filled_up() {
        for filling in [&b"0"[..], b"\0", b" "] {
            let filled = |ordinal: u64| {
                let mut chunk = unpadded(ordinal, &[7; CHUNK_BYTES]);
                chunk.extend(filling.repeat(CHUNK - chunk.len()));
                chunk
            };
            let wire = [filled(8), filled(9), filled(10)].concat();
            let ordinals: Vec<_> =
                split(&wire, 100).unwrap().into_iter().map(|(ordinal, _)| ordinal).collect();
            assert_eq!(ordinals, [8, 9, 10]);
        }
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        let mut cut = v1(0, b"x");
        cut.pop();
        let mut unfilled = v1(0, b"x");
        unfilled[1399] = b'1';
        let long = v1(0, &[1; 1001]);
        for wire in [&b""[..], b"x"].iter().skip(1).copied().chain([
            &b" x"[..],
            b"$SEPARATOR$",
            b"12",
            &[b'1'; 100],
            &cut,
            &unfilled,
            &long,
            b"1$SEPARATOX$",
        ]) {
            assert_eq!(split(wire, 4096), Err(FastDownloaderError::Chunk), "{}", wire.escape_ascii());
        }
        assert_eq!(Dialect::V1.streams_for(u64::MAX), 6);
        assert_eq!(Dialect::V1.streams_for((1000 << 20) - 1), 7);
        assert_eq!(Dialect::Document.streams_for(u64::MAX), 8);
    }
}

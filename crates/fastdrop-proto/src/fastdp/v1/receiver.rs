//! Which chunk goes where, although nobody says whether their numbers begin at 0 or at 1.

use super::super::{Version, Violation};
use super::{Compression, Header};
use crate::fastdp::Code;
use std::collections::BTreeMap;

/// More chunks than this are not taken: what is held is remembered with a bit for each.
pub const CHUNKS_MAX: u32 = 1 << 24;

/// Bytes by which a compressed payload may be larger than its file, beside an eighth.
const PACKING_MAX: u64 = 1 << 20;

/// What stands before a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkPrefix {
    /// As the sender counts.
    pub number: u32,
    /// Bytes that follow.
    pub size: u32,
}

impl ChunkPrefix {
    /// Bytes on the wire.
    pub const LEN: usize = 8;

    /// From the wire.
    pub fn decode(bytes: [u8; Self::LEN]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self { number: u32::from_be_bytes([a, b, c, d]), size: u32::from_be_bytes([e, f, g, h]) }
    }

    /// To the wire.
    pub fn encode(self) -> [u8; Self::LEN] {
        (u64::from(self.number) << 32 | u64::from(self.size)).to_be_bytes()
    }
}

/// What becomes of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is new, and this is its place in the payload, counted in chunks.
    Take(u32),
    /// It is held already, or empty: it is not needed.
    Known,
    /// The beginning of the numbers is not known yet. It is to be kept by its number until
    /// [`Receiver::poll_waiting`] asks for it.
    Wait,
}

/// A chunk that waited and now has a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Under which it was kept.
    pub number: u32,
    /// In bytes.
    pub size: u32,
    /// Its place in the payload.
    pub index: u32,
}

/// Keeps count of the chunks of one transfer.
#[derive(Debug, Clone)]
pub struct Receiver {
    version: Version,
    compression: Compression,
    one_chunk: u32,
    /// Bytes of the payload, where they are known.
    payload: Option<u64>,
    /// Chunks that a payload of unknown size may have: packing adds little to a file.
    most: u32,
    /// Where numbers begin; None until that is known.
    first: Option<u32>,
    waiting: BTreeMap<u32, u32>,
    /// A bit a chunk, by its place.
    held: Vec<u64>,
    count: u32,
    bytes: u64,
    /// Place and bytes of the chunk that is shorter than the others: the last, where the payload's
    /// size is not known.
    short: Option<(u32, u32)>,
    /// The highest place that is held, and one.
    end: u32,
    shifted: bool,
}

impl Receiver {
    /// Nothing has come yet.
    pub fn new(header: &Header) -> Result<Self, Violation> {
        let payload = header.payload();
        let chunks = payload.map_or(0, |payload| payload.div_ceil(header.one_chunk.into()));
        if chunks > CHUNKS_MAX.into() {
            return Err(Violation::new(Code::OverLimit, "more chunks than are taken"));
        }
        let packed = header.full_size + header.full_size / 8 + PACKING_MAX;
        let most = packed.div_ceil(header.one_chunk.into()).min(CHUNKS_MAX.into()) as u32;
        Ok(Self {
            most,
            version: header.version,
            compression: header.compression,
            one_chunk: header.one_chunk,
            payload,
            first: None,
            waiting: BTreeMap::new(),
            held: Vec::new(),
            count: 0,
            bytes: 0,
            short: None,
            end: 0,
            shifted: false,
        })
    }

    /// How many chunks there are, where that is known.
    fn chunks(&self) -> Option<u32> {
        self.payload.and_then(|payload| u32::try_from(payload.div_ceil(self.one_chunk.into())).ok())
    }

    /// Bytes of the chunk at `index`, where the payload's size is known.
    fn due(&self, index: u32) -> Option<u64> {
        let before = u64::from(index) * u64::from(self.one_chunk);
        self.payload.map(|payload| payload.saturating_sub(before).min(self.one_chunk.into()))
    }

    /// Whether all of the payload is here. Where its size is not known, only its decoder can tell.
    pub fn is_complete(&self) -> bool {
        self.payload == Some(self.bytes)
    }

    /// Bytes of the payload that are held.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the chunk at `index` is held.
    pub fn is_held(&self, index: u32) -> bool {
        let word = self.held.get(index as usize / 64).copied().unwrap_or(0);
        word >> (index % 64) & 1 == 1
    }

    /// One more than the highest place that is held.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// Whether everything up to [`Self::end`] is held.
    pub fn is_contiguous(&self) -> bool {
        self.count == self.end
    }

    /// Checks what is announced before any of it is read.
    pub fn expect(&self, prefix: ChunkPrefix) -> Result<(), Violation> {
        if prefix.size > self.one_chunk {
            return Err(Violation::protocol(format!(
                "a chunk of {} bytes, which is more than OneChunk",
                prefix.size
            )));
        }
        // Numbers that begin at 1 go one further; a sender that counts an empty chunk at the end
        // goes two.
        let limit = self.chunks().unwrap_or(self.most).saturating_add(1);
        if prefix.number > limit {
            return Err(Violation::protocol(format!("chunk {} is beyond the last", prefix.number)));
        }
        Ok(())
    }

    /// Decides about a chunk that begins with `beginning`. It counts only once
    /// [`Self::handle_received`] says that all of it came.
    pub fn judge(&mut self, prefix: ChunkPrefix, beginning: &[u8]) -> Result<Verdict, Violation> {
        self.expect(prefix)?;
        self.find_first(prefix.number, beginning)?;
        // What does not fit where numbers begin at 1, but would at 0, tells as well.
        let fits = |index: Option<u32>| index.and_then(|index| self.due(index)) == Some(prefix.size.into());
        if self.first == Some(1) && !fits(prefix.number.checked_sub(1)) && fits(Some(prefix.number)) {
            self.shift()?;
        }
        match self.first {
            Some(first) => self.place(prefix, first),
            None if self.waiting.contains_key(&prefix.number) => Ok(Verdict::Known),
            None => Ok(Verdict::Wait),
        }
    }

    /// Counts a chunk that was judged worth taking or keeping, and is here now.
    pub fn handle_received(&mut self, prefix: ChunkPrefix) {
        match self.first {
            Some(first) => self.hold(prefix.number.saturating_sub(first), prefix.size),
            None => {
                self.waiting.insert(prefix.number, prefix.size);
            }
        }
    }

    /// Where numbers begin, once that is known.
    pub fn first(&self) -> Option<u32> {
        self.first
    }

    /// Bytes of a chunk that is held.
    pub fn size_of(&self, index: u32) -> u32 {
        match (self.due(index), self.short) {
            (Some(due), _) => due as u32,
            (None, Some((short, size))) if short == index => size,
            (None, _) => self.one_chunk,
        }
    }

    /// Whether the chunk at `index` is beyond the end.
    pub fn is_beyond(&self, index: u32) -> bool {
        match (self.chunks(), self.short) {
            (Some(chunks), _) => index >= chunks,
            (None, Some((short, _))) => index > short,
            (None, None) => false,
        }
    }

    /// A chunk that waited, once its place is known: whatever it contained counts now.
    pub fn poll_waiting(&mut self) -> Result<Option<Waiting>, Violation> {
        let Some(first) = self.first else { return Ok(None) };
        while let Some((number, size)) = self.waiting.pop_first() {
            if let Verdict::Take(index) = self.place(ChunkPrefix { number, size }, first)? {
                self.hold(index, size);
                return Ok(Some(Waiting { number, size, index }));
            }
        }
        Ok(None)
    }

    /// Returns true if everything that was given a place before has to be moved by one chunk, away
    /// from the beginning.
    pub fn poll_shift(&mut self) -> bool {
        std::mem::take(&mut self.shifted)
    }

    fn find_first(&mut self, number: u32, beginning: &[u8]) -> Result<(), Violation> {
        if number == 0 {
            return match self.first {
                Some(1) => self.shift(),
                _ => {
                    self.first = Some(0);
                    Ok(())
                }
            };
        }
        if self.first.is_some() {
            return Ok(());
        }
        self.first = if self.compression != Compression::None && number == 1 {
            // The first chunk begins as its format does, and the second does not.
            Some(u32::from(self.compression.begins_with(beginning)))
        } else if self.chunks() == Some(number)
            || (self.version == Version::V1_0 && number == 1 && self.waiting.is_empty())
        {
            Some(1)
        } else {
            None
        };
        Ok(())
    }

    /// Numbers were taken to begin at 1, and now there is a 0.
    fn shift(&mut self) -> Result<(), Violation> {
        // What is held in the last place has none to move to; what is held before it moves there,
        // and must be as long.
        let last = self.chunks().and_then(|chunks| chunks.checked_sub(1));
        let moves = |last: u32| match last.checked_sub(1) {
            Some(before) if self.is_held(before) => self.due(before) == self.due(last),
            _ => true,
        };
        if self.compression != Compression::None || last.is_none_or(|last| self.is_held(last) || !moves(last))
        {
            return Err(Violation::protocol("numbers that begin at 1 and yet contain 0"));
        }
        let mut carry = 0;
        for word in &mut self.held {
            (*word, carry) = (*word << 1 | carry, *word >> 63);
        }
        if carry > 0 {
            self.held.push(carry);
        }
        self.end += 1;
        self.first = Some(0);
        self.shifted = true;
        Ok(())
    }

    fn place(&self, prefix: ChunkPrefix, first: u32) -> Result<Verdict, Violation> {
        let contradicts =
            || Violation::protocol(format!("chunk {} contradicts what came before", prefix.number));
        let index = prefix.number.checked_sub(first).ok_or_else(contradicts)?;
        let size = u64::from(prefix.size);
        match self.due(index) {
            Some(due) if size != due => {
                return Err(Violation::protocol(format!(
                    "chunk {} has {size} bytes, and {due} are due there",
                    prefix.number
                )));
            }
            // Some send an empty chunk behind an exact multiple, or for an empty file.
            Some(0) => return Ok(Verdict::Known),
            Some(_) => {}
            None => {
                let is_short = prefix.size < self.one_chunk;
                let misplaced = match self.short {
                    Some((short, _)) => index > short || (is_short && index != short),
                    None => is_short && self.end > index + 1,
                };
                if misplaced {
                    return Err(contradicts());
                }
            }
        }
        Ok(if self.is_held(index) { Verdict::Known } else { Verdict::Take(index) })
    }

    fn hold(&mut self, index: u32, size: u32) {
        let word = index as usize / 64;
        if word >= self.held.len() {
            self.held.resize(word + 1, 0);
        }
        if let Some(word) = self.held.get_mut(word) {
            *word |= 1 << (index % 64);
        }
        if self.payload.is_none() && size < self.one_chunk {
            self.short = Some((index, size));
        }
        self.count += 1;
        self.bytes += u64::from(size);
        self.end = self.end.max(index + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(version: Version, compression: Compression, full_size: u64) -> Header {
        Header {
            version,
            one_chunk: 10,
            full_size,
            compression,
            file_name: None,
            checksum: None,
            confirm: false,
        }
    }

    /// Sends the chunks of `payload` in `order`, numbered from `first`, and puts together what
    /// comes out.
    fn receive(
        header: &Header,
        payload: &[u8],
        order: &[usize],
        first: u32,
    ) -> Result<Option<Vec<u8>>, Violation> {
        let mut receiver = Receiver::new(header)?;
        let chunks: Vec<&[u8]> = payload.chunks(10).collect();
        let (mut out, mut kept) = (vec![0; payload.len() + 10], BTreeMap::new());
        for &at in order {
            let prefix = ChunkPrefix { number: at as u32 + first, size: chunks[at].len() as u32 };
            match receiver.judge(prefix, chunks[at])? {
                Verdict::Known => continue,
                Verdict::Wait => {
                    kept.insert(prefix.number, chunks[at]);
                }
                Verdict::Take(index) => {
                    if receiver.poll_shift() {
                        out.rotate_right(10);
                    }
                    out[index as usize * 10..][..chunks[at].len()].copy_from_slice(chunks[at]);
                }
            }
            receiver.handle_received(prefix);
            while let Some(waiting) = receiver.poll_waiting()? {
                let chunk = kept[&waiting.number];
                out[waiting.index as usize * 10..][..chunk.len()].copy_from_slice(chunk);
            }
        }
        out.truncate(payload.len());
        let whole =
            receiver.payload.map_or(receiver.bytes == payload.len() as u64, |_| receiver.is_complete());
        Ok(whole.then_some(out))
    }

    fn versions() -> impl Strategy<Value = (Version, Compression)> {
        let version = prop_oneof![Just(Version::V1_0), Just(Version::V1_1)];
        (version, prop_oneof![Just(Compression::None), Just(Compression::Zstd)])
    }

    proptest! {
        /// Chunks in any order, some of them twice, numbered from 0 or from 1, in either version:
        /// the payload comes out.
        #[test]
        fn cases_22_and_28_any_order_and_numbering_gives_the_payload(
            (version, compression) in versions(),
            first in 0..2u32,
            (order, len) in (1..200usize).prop_flat_map(|len| {
                let chunks = len.div_ceil(10);
                let again = prop::collection::vec(0..chunks, 0..5);
                let order = (Just((0..chunks).collect::<Vec<_>>()).prop_shuffle(), again)
                    .prop_map(|(order, again)| [order, again].concat());
                (order, Just(len))
            }),
        ) {
            let mut payload: Vec<u8> = (0..len).map(|at| at as u8).collect();
            if compression == Compression::Zstd {
                payload.splice(..0, [0x28, 0xb5, 0x2f, 0xfd]);
                payload.truncate(len);
            }
            // A beginning that is cut short cannot be told.
            prop_assume!(compression == Compression::None || len >= 4);
            let header = header(version, compression, len as u64);
            let came = receive(&header, &payload, &order, first);
            prop_assert_eq!(came, Ok(Some(payload)));
        }
    }

    #[test]
    fn cases_21_26_and_27_what_contradicts_the_header_is_refused() {
        let header = header(Version::V1_1, Compression::None, 25);
        let handle = |prefixes: &[(u32, u32)]| {
            let mut receiver = Receiver::new(&header).unwrap();
            let mut last = Ok(Verdict::Known);
            for &(number, size) in prefixes {
                last = receiver.judge(ChunkPrefix { number, size }, &[]);
                receiver.handle_received(ChunkPrefix { number, size });
            }
            last
        };
        assert_eq!(handle(&[(0, 10)]), Ok(Verdict::Take(0)));
        assert_eq!(handle(&[(0, 10), (2, 5)]), Ok(Verdict::Take(2)));
        assert_eq!(handle(&[(0, 10), (3, 0)]), Ok(Verdict::Known));
        for bad in [&[(0, 11)][..], &[(0, 9)], &[(0, 10), (2, 10)], &[(0, 10), (3, 5)], &[(9, 10)], &[(3, 4)]]
        {
            handle(bad).expect_err(&format!("{bad:?}"));
        }
        // Taken as the first of two where numbers begin at 1, and too long for the place that it
        // has beside a 0.
        let mut receiver =
            Receiver::new(&Header { version: Version::V1_0, full_size: 17, ..header.clone() }).unwrap();
        assert_eq!(receiver.judge(ChunkPrefix { number: 1, size: 10 }, &[]), Ok(Verdict::Take(0)));
        receiver.handle_received(ChunkPrefix { number: 1, size: 10 });
        receiver.judge(ChunkPrefix { number: 0, size: 10 }, &[]).unwrap_err();
        let packed = Header { version: Version::V1_0, compression: Compression::Zip, ..header.clone() };
        let endless = ChunkPrefix { number: 200_000, size: 10 };
        Receiver::new(&packed).unwrap().expect(endless).unwrap_err();
        let many = Header { full_size: 10 * (u64::from(CHUNKS_MAX) + 1), ..header.clone() };
        assert_eq!(Receiver::new(&many).unwrap_err().code, Code::OverLimit);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4_000))]
        /// Whatever is announced, in any order: each chunk that is held has the bytes that are due
        /// in its place.
        #[test]
        fn what_is_held_is_never_more_than_the_payload(
            (version, compression) in versions(),
            full_size in 0..40u64,
            chunks in prop::collection::vec((0..5u32, prop_oneof![4 => Just(10), 1 => 0..11u32], any::<bool>()), 0..8),
        ) {
            let header = header(version, compression, full_size);
            let mut receiver = Receiver::new(&header).unwrap();
            for (number, size, begins) in chunks {
                let beginning = if begins { &[0x28, 0xb5, 0x2f, 0xfd][..] } else { b"none" };
                let prefix = ChunkPrefix { number, size };
                match receiver.judge(prefix, beginning) {
                    Ok(Verdict::Known) => continue,
                    Ok(Verdict::Take(_) | Verdict::Wait) => receiver.handle_received(prefix),
                    Err(_) => break,
                }
                while let Ok(Some(_)) = receiver.poll_waiting() {}
                let held = (0..receiver.end()).filter(|index| receiver.is_held(*index));
                let bytes: u64 = held.map(|index| u64::from(receiver.size_of(index))).sum();
                prop_assert_eq!(receiver.bytes(), bytes);
                prop_assert!(receiver.payload.is_none_or(|payload| bytes <= payload));
            }
        }
    }

    #[test]
    fn case_32_an_empty_file_and_an_exact_multiple_are_complete() {
        let empty = header(Version::V1_0, Compression::None, 0);
        assert!(Receiver::new(&empty).unwrap().is_complete());
        let even = header(Version::V1_0, Compression::None, 20);
        assert_eq!(receive(&even, &[7; 20], &[0, 1], 1), Ok(Some(vec![7; 20])));
    }
}

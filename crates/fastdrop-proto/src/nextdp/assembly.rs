//! The order of a file's chunks.

use super::{CHUNKS_MAX, Refusal};
use std::collections::BTreeMap;
use thiserror::Error;

/// Chunks that may come before chunk 0, and their bytes.
pub const EARLY_MAX: usize = 256;
/// See [`EARLY_MAX`].
pub const EARLY_BYTES_MAX: u64 = 256 << 20;

/// Place of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkPlace {
    /// It is new and belongs there, in bytes from the file's beginning.
    New(u64),
    /// One of its number and size is held, or being written, there: its bytes must be the same.
    Held(u64),
    /// Chunk 0, which tells where it belongs, has not come.
    Early,
    /// The same, and one of its number and size waits already: its bytes must be the same.
    HeldEarly,
}

/// Reason for which a transfer cannot be completed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AssemblyError {
    /// A chunk cannot be of the same file as what came before.
    #[error(
        "{0}: two transfers at once from one address without X-Transfer-Id, or a sender that compresses \
         for a server without --nextdp-compression; send one file at a time"
    )]
    Contradiction(String),
    /// Too many chunks, or bytes, came before chunk 0.
    #[error("too much came before chunk 0")]
    TooMuchEarly,
}

impl From<AssemblyError> for Refusal {
    fn from(error: AssemblyError) -> Self {
        let status = match error {
            AssemblyError::Contradiction(_) => 409,
            AssemblyError::TooMuchEarly => 429,
        };
        Refusal::new(status, error.to_string())
    }
}

/// Puts a file together from chunks in any order.
#[derive(Debug, Clone, Default)]
pub struct Assembly {
    chunks: Option<u32>,
    /// Bytes of chunk 0.
    chunk_size: Option<u64>,
    /// Bytes of those that came before it.
    early: BTreeMap<u32, u64>,
    early_bytes: u64,
    held: Vec<u64>,
    count: u32,
    /// Bytes of the last chunk.
    last: u64,
}

impl Assembly {
    /// Decides about a chunk of `size` bytes, which is here as a whole. A new or early one counts
    /// from now on.
    ///
    /// # Errors
    ///
    /// The chunk contradicts what is there, or too much waits for chunk 0.
    pub fn handle_chunk(
        &mut self,
        number: u32,
        chunks: Option<u32>,
        size: u64,
    ) -> Result<ChunkPlace, AssemblyError> {
        if let (0, None, Some(chunks)) = (number, self.chunks, chunks) {
            if let Some(beyond) = self.early.keys().find(|&&early| early >= chunks) {
                return Err(contradiction(format!("chunk {beyond} came before chunk 0 of {chunks}")));
            }
            (self.chunks, self.chunk_size) = (Some(chunks), Some(size));
        }
        if let Some((known, chunks)) = self.chunks.zip(chunks).filter(|(known, chunks)| known != chunks) {
            return Err(contradiction(format!("a second chunk 0, of {chunks} chunks instead of {known}")));
        }
        if let (Some(chunks), Some(chunk_size)) = (self.chunks, self.chunk_size) {
            return self.place(number, size, chunks, chunk_size);
        }
        if let Some(&held) = self.early.get(&number) {
            return match held == size {
                true => Ok(ChunkPlace::HeldEarly),
                false => Err(contradiction(format!("chunk {number} of {size} bytes, and of {held} before"))),
            };
        }
        if self.early.len() >= EARLY_MAX || self.early_bytes + size > EARLY_BYTES_MAX || number >= CHUNKS_MAX
        {
            return Err(AssemblyError::TooMuchEarly);
        }
        self.early.insert(number, size);
        self.early_bytes += size;
        Ok(ChunkPlace::Early)
    }

    /// Returns the next chunk that waited for chunk 0, with its place.
    ///
    /// # Errors
    ///
    /// The chunk contradicts what is there.
    pub fn poll_early(&mut self) -> Result<Option<(u32, ChunkPlace)>, AssemblyError> {
        let (Some(chunks), Some(chunk_size)) = (self.chunks, self.chunk_size) else { return Ok(None) };
        let Some((number, size)) = self.early.pop_first() else { return Ok(None) };
        self.place(number, size, chunks, chunk_size).map(|place| Some((number, place)))
    }

    fn place(
        &mut self,
        number: u32,
        size: u64,
        chunks: u32,
        chunk_size: u64,
    ) -> Result<ChunkPlace, AssemblyError> {
        let is_last = number + 1 == chunks;
        if number >= chunks {
            return Err(contradiction(format!("chunk {number} of a file of {chunks} chunks")));
        }
        if size > chunk_size || (!is_last && size != chunk_size) || (chunks > 1 && chunk_size == 0) {
            let what = format!("chunk {number} of {size} bytes, where chunk 0 has {chunk_size}");
            return Err(contradiction(what));
        }
        let offset = u64::from(number) * chunk_size;
        let (at, bit) = (number as usize / 64, 1 << (number % 64));
        if at >= self.held.len() {
            self.held.resize(at + 1, 0);
        }
        let is_held = self.held.get(at).is_some_and(|word| word & bit != 0);
        if is_held && is_last && size != self.last {
            let what = format!("chunk {number} of {size} bytes, and of {} before", self.last);
            return Err(contradiction(what));
        }
        if is_held {
            return Ok(ChunkPlace::Held(offset));
        }
        if let Some(word) = self.held.get_mut(at) {
            *word |= bit;
        }
        self.count += 1;
        if is_last {
            self.last = size;
        }
        Ok(ChunkPlace::New(offset))
    }

    /// Returns true if every chunk is here.
    pub fn is_complete(&self) -> bool {
        self.chunks == Some(self.count)
    }

    /// Bytes of the file, once it is complete.
    pub fn size(&self) -> u64 {
        let before = u64::from(self.chunks.unwrap_or(1).saturating_sub(1));
        before * self.chunk_size.unwrap_or(0) + self.last
    }
}

fn contradiction(what: String) -> AssemblyError {
    AssemblyError::Contradiction(what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cases_21_26_and_27_chunks_that_contradict_are_refused() {
        let mut assembly = Assembly::default();
        assert_eq!(assembly.handle_chunk(0, Some(3), 10), Ok(ChunkPlace::New(0)));
        assert_eq!(assembly.handle_chunk(2, None, 5), Ok(ChunkPlace::New(20)));
        let whole = assembly.clone();
        for (number, chunks, size) in [
            (0, Some(4), 10),
            (0, Some(3), 9),
            (3, None, 10),
            (1, None, 9),
            (1, None, 11),
            (2, None, 11),
            (2, None, 4),
        ] {
            let mut assembly = whole.clone();
            let refused = assembly.handle_chunk(number, chunks, size);
            let refused = Refusal::from(refused.expect_err(&format!("chunk {number} of {size} bytes")));
            assert_eq!(refused.status, 409, "{refused}");
        }
        assert_eq!(assembly.handle_chunk(0, Some(3), 10), Ok(ChunkPlace::Held(0)));
        assert_eq!(assembly.handle_chunk(2, None, 5), Ok(ChunkPlace::Held(20)));
        assert!(!assembly.is_complete());
        assert_eq!(assembly.handle_chunk(1, None, 10), Ok(ChunkPlace::New(10)));
        assert!(assembly.is_complete() && assembly.size() == 25);
    }

    #[test]
    fn chunks_that_came_early_may_contradict_too() {
        let mut assembly = Assembly::default();
        assert_eq!(assembly.handle_chunk(5, None, 10), Ok(ChunkPlace::Early));
        assert_eq!(assembly.handle_chunk(5, None, 10), Ok(ChunkPlace::HeldEarly));
        assert!(matches!(assembly.handle_chunk(5, None, 9), Err(AssemblyError::Contradiction(_))));
        assert!(matches!(
            assembly.clone().handle_chunk(0, Some(5), 10),
            Err(AssemblyError::Contradiction(_))
        ));
        assert_eq!(assembly.handle_chunk(0, Some(7), 20), Ok(ChunkPlace::New(0)));
        assert!(matches!(assembly.poll_early(), Err(AssemblyError::Contradiction(_))));
    }

    /// A copy of an early chunk, that came while chunk 0 was being written, is the first one.
    #[test]
    fn an_early_chunk_whose_copy_has_a_place_is_compared_with_it() {
        let mut assembly = Assembly::default();
        assert_eq!(assembly.handle_chunk(1, None, 10), Ok(ChunkPlace::Early));
        assert_eq!(assembly.handle_chunk(0, Some(3), 10), Ok(ChunkPlace::New(0)));
        assert_eq!(assembly.handle_chunk(1, None, 10), Ok(ChunkPlace::New(10)));
        assert_eq!(assembly.poll_early(), Ok(Some((1, ChunkPlace::Held(10)))));
        assert!(!assembly.is_complete());
    }

    #[test]
    fn what_comes_before_chunk_0_is_bounded() {
        let mut assembly = Assembly::default();
        for number in 1..=EARLY_MAX as u32 {
            assert_eq!(assembly.handle_chunk(number, None, 1), Ok(ChunkPlace::Early));
        }
        assert_eq!(assembly.handle_chunk(1, None, 1), Ok(ChunkPlace::HeldEarly));
        let refused = assembly.handle_chunk(1000, None, 1).unwrap_err();
        assert_eq!(Refusal::from(refused).status, 429);
        let mut assembly = Assembly::default();
        assert_eq!(assembly.handle_chunk(1, None, EARLY_BYTES_MAX + 1), Err(AssemblyError::TooMuchEarly));
    }

    proptest! {
        #[test]
        fn cases_22_28_and_32_any_order_gives_the_file(
            (order, len) in (0..100usize).prop_flat_map(|len| {
                let order = (0..len.div_ceil(10).max(1)).collect::<Vec<_>>();
                (Just(order).prop_shuffle(), Just(len))
            }),
        ) {
            let file: Vec<u8> = (0..len as u8).collect();
            let chunks: Vec<&[u8]> = if len == 0 { vec![&[]] } else { file.chunks(10).collect() };
            let mut assembly = Assembly::default();
            let mut out = vec![0; len];
            let mut put = |number: usize, place| {
                if let ChunkPlace::New(at) = place {
                    out[at as usize..][..chunks[number].len()].copy_from_slice(chunks[number]);
                }
            };
            for &number in &order {
                let first = (number == 0).then_some(chunks.len() as u32);
                let place = assembly.handle_chunk(number as u32, first, chunks[number].len() as u64).unwrap();
                put(number, place);
                while let Some((number, place)) = assembly.poll_early().unwrap() {
                    put(number as usize, place);
                }
            }
            prop_assert!(assembly.is_complete());
            prop_assert_eq!((assembly.size(), out), (len as u64, file));
        }
    }
}

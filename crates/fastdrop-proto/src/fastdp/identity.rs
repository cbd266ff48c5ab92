//! Identities of files (section 7): whether a file is the one that it was.

use super::Violation;
use crate::cursor::Cursor;
use crate::units::EntryIndex;

/// Entries in one IDENTITY frame at most.
pub const IDENTITIES_PER_FRAME: usize = 65_536;

/// The payload of IDENTITY: the identities of consecutive entries, zero for unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identities {
    /// The entry of the first of them.
    pub first: EntryIndex,
    /// Opaque to the receiver; equal only as long as the file is the same.
    pub identities: Vec<u64>,
}

impl Identities {
    pub(super) fn decode(payload: &[u8]) -> Result<Self, Violation> {
        let mut cursor = Cursor::new(payload);
        let first = EntryIndex(cursor.u32()?);
        let mut identities = Vec::with_capacity(cursor.rest().len() / 8);
        while !cursor.is_empty() {
            identities.push(cursor.u64()?);
        }
        Ok(Self { first, identities })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let identities = self.identities.iter().flat_map(|identity| identity.to_be_bytes());
        self.first.0.to_be_bytes().into_iter().chain(identities).collect()
    }
}

/// The identities of a manifest, as far as they have come.
#[derive(Debug, Clone, Default)]
pub struct IdentityTable {
    known: Vec<u64>,
    /// Number of entries.
    entries: u32,
}

impl IdentityTable {
    /// A table for a manifest of `entries` entries, of which nothing is known. Costs 8 bytes an
    /// entry once they come.
    pub fn new(entries: u32) -> Self {
        Self { known: Vec::new(), entries }
    }

    /// Takes one frame. Frames come in order and overlap nowhere.
    ///
    /// # Errors
    ///
    /// Entries that do not exist, or not the next.
    pub fn handle(&mut self, part: &Identities) -> Result<(), Violation> {
        if part.first.at() != self.known.len()
            || part.identities.is_empty()
            || self.known.len() + part.identities.len() > self.entries as usize
        {
            return Err(Violation::protocol("identities of other entries than the next"));
        }
        self.known.extend_from_slice(&part.identities);
        Ok(())
    }

    /// Returns true if the identities of all entries have come.
    pub fn is_complete(&self) -> bool {
        self.known.len() == self.entries as usize
    }

    /// The identity of `entry`; 0 if it is unknown.
    pub fn get(&self, entry: EntryIndex) -> u64 {
        self.known.get(entry.at()).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_come_in_order_once_and_for_entries_that_exist() {
        let part = |first, identities: &[u64]| Identities {
            first: EntryIndex(first),
            identities: identities.into(),
        };
        let mut table = IdentityTable::new(3);
        table.handle(&part(1, &[5])).unwrap_err();
        table.handle(&part(0, &[])).unwrap_err();
        table.handle(&part(0, &[7, 0])).unwrap();
        assert!(!table.is_complete());
        table.handle(&part(0, &[7])).unwrap_err();
        table.handle(&part(2, &[8, 9])).unwrap_err();
        table.handle(&part(2, &[8])).unwrap();
        assert!(table.is_complete());
        let got = [0, 1, 2, 3].map(|entry| table.get(EntryIndex(entry)));
        assert_eq!(got, [7, 0, 8, 0]);
    }
}

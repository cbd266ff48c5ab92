//! Taking over what earlier transfers left of the files that are needed.

use super::{Ready, Staged, TransferWriter};
use crate::error::Error;
use crate::lock::lock;
use crate::storage::journal::{FileKey, Left, LeftContent};
use crate::storage::recovery::Leftovers;
use fastdrop_proto::checksum::Algorithm;
use fastdrop_proto::fastdp::{Entry, IdentityTable};
use fastdrop_proto::units::EntryIndex;
use rustix::io::Errno;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

impl TransferWriter {
    /// Moves in what earlier transfers left of the `needed` files; how many bytes that was. `count`
    /// hears what is there of each file, and says whether that is all of it.
    ///
    /// # Errors
    ///
    /// The answer of the system. What has been moved in stays.
    pub(crate) fn take_over(
        &self,
        found: Vec<Leftovers>,
        needed: &[EntryIndex],
        identities: &IdentityTable,
        algorithm: Algorithm,
        count: &mut dyn FnMut(EntryIndex, &LeftContent) -> bool,
    ) -> Result<u64, Error> {
        let mut by_key: HashMap<&FileKey, (usize, usize)> = HashMap::new();
        for (folder, leftovers) in found.iter().enumerate() {
            by_key.extend(leftovers.keys().map(|(key, at)| (key, (folder, at))));
        }
        let mut bytes = 0;
        let needed = if by_key.is_empty() { &[] } else { needed };
        for &index in needed {
            let Some(entry) = self.manifest.get(index).filter(|entry| entry.size() > 0) else { continue };
            let key = self.key(&entry);
            let Some(&(folder, at)) = by_key.get(&key) else { continue };
            let leftovers = &found[folder];
            let left = match self.options.resume {
                true => leftovers.verify(at, identities.get(index), algorithm, self.one_chunk),
                false => Ok(None),
            };
            let left = match left {
                Ok(Some(left)) => left,
                Ok(None) => {
                    leftovers.discard(at);
                    continue;
                }
                // It stays for an attempt that can look at it.
                Err(errno) => {
                    let path = crate::shown(&key.path);
                    tracing::warn!(path, %errno, "unfinished work cannot be looked at now");
                    continue;
                }
            };
            let part = self.part_of(index).map_err(|errno| self.namer.error(&entry, errno))?;
            let temp = leftovers.move_into(&self.stage, &left, part)?;
            let complete = count(index, &left.content);
            self.hold(index, &entry, temp, complete).map_err(|errno| self.namer.error(&entry, errno))?;
            bytes += self.bytes_of(&entry, &left);
        }
        found.into_iter().for_each(Leftovers::close);
        Ok(bytes)
    }

    /// Readies a file that was moved in if it is complete, or opens it to go on with it.
    fn hold(&self, index: EntryIndex, entry: &Entry<'_>, temp: u32, complete: bool) -> Result<(), Errno> {
        if complete {
            let mode = self.namer.file_mode(entry);
            self.stage.set_temp_attributes(temp, self.namer.mtime(entry), mode)?;
            lock(&self.ready).push(Ready { entry: index, temp });
        } else {
            let staged = Arc::new(Staged { temp, fd: self.stage.open_temp(temp)?, dirty: true });
            lock(&self.open).insert(index, Arc::new(Mutex::new(Some(staged))));
        }
        Ok(())
    }

    fn bytes_of(&self, entry: &Entry<'_>, left: &Left) -> u64 {
        let one = u64::from(self.one_chunk.bytes());
        match &left.content {
            LeftContent::Whole(_) => entry.size(),
            LeftContent::Pieces(pieces) => {
                pieces.keys().map(|&piece| one.min(entry.size() - u64::from(piece) * one)).sum()
            }
        }
    }
}

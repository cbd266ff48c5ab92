//! What would fail of a transfer that is only previewed.

use crate::client::Client;
use crate::error::Error;
use fastdrop_proto::fastdp::{Code, Done, Failed, Manifest};
use fastdrop_proto::units::EntryIndex;
use std::collections::BTreeSet;

impl Client {
    /// Moves what could not be read from `needed` to what fails in `done`. An archive, which
    /// reads everything, fails as a whole.
    pub(super) fn would_fail(
        &self,
        unreadable: impl Iterator<Item = (EntryIndex, Code, String)>,
        manifest: &Manifest,
        needed: &mut BTreeSet<EntryIndex>,
        done: &mut Done,
    ) -> Result<(), Error> {
        let is_archive = self.compress()?.archive().is_some();
        for (index, code, message) in unreadable {
            let Some(entry) = manifest.get(index) else { continue };
            let path = entry.path.as_bytes().to_vec();
            if is_archive {
                // As the transfer would say it.
                return Err(Error::failed(
                    Code::SourceChanged,
                    format!("{}: {message}", crate::shown(&path)),
                ));
            }
            // Of an empty file nothing is read.
            if entry.size() == 0 || !needed.remove(&index) {
                continue;
            }
            done.failed.push(Failed { path, code, message });
            done.failed_count += 1;
        }
        Ok(())
    }
}

//! Lists.

use crate::client::agree::read_grant;
use crate::client::{Client, ENTRIES_MAX};
use crate::context::client::flags::{Action, Request};
use crate::context::client::summary::{Listed, Listing};
use crate::error::Error;
use crate::legacy::fastdownloader;
use crate::transfer::manifest::{ManifestRules, read_manifest};
use fastdrop_proto::fastdp::{Capability, Do, Failed, Header, LeftOutEntry, ManifestBuilder};
use fastdrop_proto::units::ChunkSize;

impl Client {
    /// Lists what is in a folder, or the file that the path names.
    ///
    /// # Errors
    ///
    /// The server refuses, or is lost.
    pub fn list(&self) -> Result<Listing, Error> {
        self.check_list()?;
        self.context.with_retries(|_| {
            let mut agreed =
                self.agree(self.open(Do::List)?, &Header::new(ChunkSize::COMMON, 0, 0, ""), None)?;
            let (grant, _) = read_grant(&mut agreed.reader)?;
            let (manifest, left_out) = read_manifest(
                &mut agreed.reader,
                ManifestRules::new(ManifestBuilder::for_list(ENTRIES_MAX), true),
            )?;
            agreed.reader.connection().close();
            let entries = manifest.iter().map(|(_, entry)| Listed::new(&entry)).collect();
            let failed = left_out.entries.into_iter().filter(|entry| !entry.policy);
            let failed =
                failed.map(|LeftOutEntry { path, code, reason, .. }| Failed { path, code, message: reason });
            let failed: Vec<_> = failed.collect();
            let failed_count = left_out.unnamed.saturating_add(failed.len() as u64);
            Ok(Listing { entries, failed, failed_count, confirmed: grant.has(Capability::LeftOut) })
        })
    }

    /// The names that a FastDownloader server offers.
    pub fn names(&self) -> Result<Vec<Vec<u8>>, Error> {
        self.check_list()?;
        self.context.with_attempts(|| fastdownloader::client::list(&self.context))
    }

    fn check_list(&self) -> Result<(), Error> {
        let options = &self.context.options;
        let request = Request { action: Action::List, options, dry_run: false, keep_archive: false };
        request.check().map(|_| ())
    }
}

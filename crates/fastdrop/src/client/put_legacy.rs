//! A put by one of the older protocols: whole files, one after the other.

use crate::client::Client;
use crate::context::client::summary::Tally;
use crate::error::Error;
use crate::legacy::push;
use crate::legacy::source_file::SourceFile;
use crate::net::throttle::Throttle;
use crate::observe::Phase;
use crate::source::tree::SourceTree;
use fastdrop_proto::fastdp::{Code, Done, Entry, EntryKind, Manifest};
use std::sync::atomic::Ordering;

impl Client {
    /// Sends files, each with a transfer of its own.
    pub(super) fn put_legacy(
        &self,
        manifest: &Manifest,
        tree: &SourceTree,
        tally: &mut Tally,
    ) -> Result<Done, Error> {
        let protocol = self.context.options.protocol;
        let Some(push) = push::by_name(protocol) else {
            return Err(Error::failed(Code::BadRequest, format!("nothing can be sent with {protocol}")));
        };
        if manifest.iter().any(|(_, entry)| !matches!(entry.kind, EntryKind::File { .. })) {
            return Err(Error::failed(
                Code::BadRequest,
                format!("{protocol} carries files, not folders or links"),
            ));
        }
        self.context.observer.files_total.store(manifest.len().into(), Ordering::Relaxed);
        self.context.observer.bytes_total.store(manifest.bytes(), Ordering::Relaxed);
        let throttle = self.context.options.bytes_per_second_max.map(Throttle::new);
        for (_, entry) in manifest.iter() {
            let name = self.name_there(&entry, manifest.len() == 1);
            let sent = SourceFile::open(tree, &entry, name).and_then(|file| {
                self.context.observer.set_phase(Phase::Connecting);
                (push.send)(&self.context, &file, throttle.as_ref())
            });
            match sent {
                Ok(delivery) => tally.note_delivered(entry.size(), delivery),
                // One file that cannot be sent keeps no other back; a network that fails does.
                Err(error)
                    if manifest.len() > 1 && !matches!(error, Error::Network(_) | Error::Interrupted) =>
                {
                    tally.fail(entry.path.as_bytes(), error.code(), &error.to_string());
                }
                Err(error) => return Err(error),
            }
            self.context.observer.files_done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Done::default())
    }

    /// What a file is to be called: a target that ends in a slash,
    /// or several files, make it a folder.
    fn name_there(&self, entry: &Entry<'_>, single: bool) -> Vec<u8> {
        let name = entry.path.as_bytes();
        match &self.context.target.path[..] {
            b"" => name.to_vec(),
            folder if folder.ends_with(b"/") => [folder, name].concat(),
            path if single => path.to_vec(),
            folder => [folder, b"/", name].concat(),
        }
    }
}

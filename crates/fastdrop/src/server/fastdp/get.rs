//! A get.

use crate::context::server::registry::Transfer;
use crate::error::Error;
use crate::gate::action::Action;
use crate::gate::path::ServedPath;
use crate::net::frames::FrameReader;
use crate::observe::Observer;
use crate::random::random;
use crate::server::fastdp::Serving;
use crate::server::fastdp::request::{failed, look};
use crate::source::archive::{Packed, offered};
use crate::source::filter::Filter;
use crate::source::identity::Identities;
use crate::source::reader::Unreadable;
use crate::source::tree::SourceTree;
use crate::source::walk::{WalkOptions, Walked, walk};
use crate::thread::{refused, spawn_scoped};
use crate::transfer::alive::with_alive;
use crate::transfer::layout::{cut, wanted_chunk};
use crate::transfer::limits::grantable;
use crate::transfer::manifest::offer;
use crate::transfer::send::Opener;
use crate::transfer::setup::Outgoing;
use fastdrop_proto::fastdp::{Archive, Capability, Code, Control, Header, LeftOut, Links, Manifest, Streams};
use fastdrop_proto::units::{ChunkSize, EntryIndex, TransferId};
use std::sync::Arc;

impl Serving<'_> {
    pub(super) fn get(&self, reader: FrameReader) -> Result<(), Error> {
        let path = match self.context.gate.admit(&self.who, Action::Read, &self.open.path) {
            Ok(path) => path,
            Err(error) => return self.refuse(error),
        };
        let found =
            self.client.chunk_size().map_err(Error::from).and_then(|size| Ok((size, self.find(&path)?)));
        let (chunk_max, (tree, walked)) = match found {
            Ok(found) => found,
            Err(error) => return self.refuse(error),
        };
        let Walked { manifest, identities, mut left_out, unnamed, uncarried } = walked;
        let packed = match self.pack(&tree, &manifest) {
            Ok(packed) => packed,
            Err(error) => return self.refuse(error),
        };
        let (manifest, identities, input) = match packed {
            Some((manifest, input)) => (manifest, Identities::default(), Some(input)),
            None => (manifest, identities, None),
        };
        let one_chunk = wanted_chunk(&manifest, input.is_some()).min(chunk_max).min(ChunkSize::COMMON);
        let table = match cut(&manifest, one_chunk) {
            Ok(table) => table,
            Err(error) => return self.refuse(error),
        };
        let name = crate::shown(&self.open.path);
        let server_json = self.answer(&Header::new(one_chunk, table.count(), manifest.bytes(), &name))?;
        let id = TransferId(random()?);
        let wanted = grantable(self.open.streams.min(self.context.options.streams_max), one_chunk);
        let reserved = self.context.buffers.reserve(wanted, one_chunk.bytes());
        let grant = self.grant(id, reserved.streams, fastdrop_proto::fastdp::Place::Auto);
        let grant_json = self.send_grant(&grant)?;
        if self.open.dry {
            let all = (0..manifest.len()).map(EntryIndex);
            let unreadable = with_alive(self.connection, || tree.unreadable(&manifest, all));
            let named = unreadable.into_iter().filter_map(|Unreadable { entry, code, reason }| {
                Some(failed(manifest.get(entry)?.path.as_bytes(), code, reason))
            });
            left_out.extend(named);
        }
        let mut left_out = LeftOut::frames(left_out, unnamed);
        if !uncarried.is_empty() {
            left_out.push(LeftOut::uncarried(uncarried));
        }
        offer(self.connection, &manifest, left_out)?;
        let streams = if self.open.adapt { Streams::Auto } else { Streams::Fixed(self.open.streams) };
        let outgoing = Outgoing {
            tree,
            manifest,
            table,
            identities,
            streams,
            compress: self.open.compress,
            rate_max: self.open.rate_max,
            keeps_rate: false,
        };
        let transfer = self.agreement(grant, &server_json, &grant_json, one_chunk).send(outgoing);
        let action = Action::Read;
        let registered =
            self.context.registry.add(id, Transfer::Sending(Arc::clone(&transfer)), action, reserved.streams);
        let _session = match registered {
            Ok(session) => session,
            Err(error) => {
                let _ = self.connection.send_control(&Control::Refuse(error.refusal()));
                self.connection.finish_writing();
                return Err(error);
            }
        };
        let done = std::thread::scope(|scope| {
            if let Some(input) = input {
                // Compressing is what takes the time.
                let feed = || transfer.feed(input, |clocks| &clocks.cpu);
                if let Err(error) = spawn_scoped(scope, "archive", feed) {
                    transfer.fail(refused(error));
                }
            }
            transfer.run(reader, &Opener::Ask)
        })?;
        tracing::info!(transfer = ?id, files = done.files, bytes = done.bytes, "sent");
        self.context.finish_one();
        Ok(())
    }

    /// Begins with an archive of what a get asks for, if it asks for one.
    fn pack(
        &self,
        tree: &Arc<SourceTree>,
        manifest: &Arc<Manifest>,
    ) -> Result<Option<(Arc<Manifest>, Packed)>, Error> {
        let Some(kind) = self.open.compress.archive() else { return Ok(None) };
        if kind == Archive::Zip && !self.open.has(Capability::ZipTimes) {
            return Err(Error::failed(
                Code::Unsupported,
                "the client does not know exact times in ZIP archives",
            ));
        }
        let offered = offered(manifest, kind)?;
        let packed = Packed::new(Arc::clone(tree), Arc::clone(manifest), kind);
        Ok(Some((Arc::new(offered), packed?)))
    }

    /// Walks what a get asks for.
    fn find(&self, path: &ServedPath) -> Result<(Arc<SourceTree>, Walked), Error> {
        let root = match self.open.links {
            Links::Follow => {
                let following = self.context.root.following_beneath();
                Arc::new(following.map_err(|errno| Error::system("opening the folder", errno))?)
            }
            Links::Copy | Links::Safe | Links::Skip => Arc::clone(&self.context.root),
        };
        let (path, contents) = (path.as_bytes(), path.means_contents());
        let mut tree = SourceTree::default();
        let is_dir = look(&root, path, contents)?.1;
        if contents && is_dir {
            tree.add_contents(Arc::clone(&root), path)?;
        } else {
            tree.add_inner(Arc::clone(&root), path)?;
        }
        let options = WalkOptions {
            links: self.open.links,
            filter: Filter::default(),
            entries_max: self.context.options.entries_max,
            tells_uncarried: self.open.uncarried,
            long_paths: self.open.has(Capability::LongPaths),
        };
        let mut walked = walk(&tree, None, &options, &Observer::default(), &self.context.stop)?;
        if !self.open.has(Capability::Links) {
            let links = walked.manifest.links_beyond_base();
            walked.leave_out(&links, "a link that leads where this client is too old to have it lead")?;
        }
        for entry in &walked.left_out {
            tracing::warn!(path = %crate::shown(&entry.path), why = %entry.reason, "left out");
        }
        if let Some(failed) = walked.first_failed() {
            let why = format!("{}: {}", crate::shown(&failed.path), failed.reason);
            if walked.manifest.is_empty() {
                return Err(Error::failed(failed.code, why));
            }
            self.may_leave_out(&why)?;
        }
        Ok((Arc::new(tree), walked))
    }
}

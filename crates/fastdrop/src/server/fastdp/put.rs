//! A put, and the preview of one.

use crate::context::server::registry::Transfer;
use crate::error::Error;
use crate::gate::action::Action;
use crate::net::frames::FrameReader;
use crate::random::random;
use crate::server::fastdp::Serving;
use crate::source::archive::{expect_archive, offered};
use crate::source::filter::Filter;
use crate::storage::journal::FileKey;
use crate::storage::options::{ReceiveOptions, Unpack};
use crate::storage::placement::Placement;
use crate::storage::recovery::Busy;
use crate::transfer::alive::with_alive;
use crate::transfer::inquiry::Inquiry;
use crate::transfer::layout::{cut, expect_header};
use crate::transfer::limits::grantable;
use crate::transfer::manifest::{ManifestRules, read_manifest};
use crate::transfer::prepare::Prepare;
use fastdrop_proto::fastdp::{
    Capability, Code, Control, Do, Existing, Grant, Header, Manifest, ManifestBuilder, Table,
};
use fastdrop_proto::units::{ChunkSize, TransferId};
use std::sync::Arc;
use std::time::Duration;

/// How long an older transfer may take to leave when a newer one takes it over.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_secs(10);

/// A put that has been offered.
struct Offered {
    manifest: Arc<Manifest>,
    table: Table,
    placement: Placement,
    /// This end's header.
    header: Header,
    one_chunk: ChunkSize,
}

impl Serving<'_> {
    pub(super) fn put(&self, mut reader: FrameReader) -> Result<(), Error> {
        let options = &self.context.options;
        let Offered { manifest, table, placement, header, one_chunk } = self.take_offer(&mut reader)?;
        let preparing = match self.context.registry.prepare(&manifest, &placement) {
            Ok(preparing) => preparing,
            Err(error) => return self.refuse(error),
        };
        let server_json = self.answer(&header)?;
        let id = TransferId(random()?);
        let wanted = grantable(self.open.streams.min(options.streams_max), one_chunk);
        let reserved = self.context.buffers.reserve(wanted, one_chunk.bytes());
        let grant = self.grant(id, reserved.streams, placement.kind());
        let grant_json = self.send_grant(&grant)?;
        let prepared = with_alive(self.connection, || {
            let mut busy = |folder: &str| self.take_over(folder, &manifest, &placement);
            let inquiry = Inquiry::new(&mut reader, &grant, &manifest);
            let (manifest, placement) = (Arc::clone(&manifest), placement.clone());
            let options = self.receive_options(&grant);
            let prepare = self.prepare(manifest, table, placement, options, inquiry);
            prepare.run(&mut busy)
        });
        let mut prepared = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                let _ = self.connection.send_control(&Control::Refuse(error.refusal()));
                self.connection.finish_writing();
                return Err(error);
            }
        };
        let answer = std::mem::take(&mut prepared.answer);
        let transfer = self.agreement(grant, &server_json, &grant_json, one_chunk).receive(prepared, None);
        let action = Action::Write(self.open.existing);
        let registered = self.context.registry.add(
            id,
            Transfer::Receiving(Arc::clone(&transfer)),
            action,
            reserved.streams,
        );
        drop(preparing);
        let _session = registered.map_err(|error| transfer.fail(error));
        // If the answer does not reach the client, the first read will say so.
        let _ = self.connection.send_controls(&answer);
        let done = transfer.run(reader, &|| {})?;
        tracing::info!(transfer = ?id, files = done.files, bytes = done.bytes, failed = done.failed_count, "received");
        self.context.finish_one();
        Ok(())
    }

    /// Says what a put would do.
    pub(super) fn preview(&self, mut reader: FrameReader) -> Result<(), Error> {
        let Offered { manifest, table, placement, header, .. } = self.take_offer(&mut reader)?;
        self.answer(&header)?;
        let grant = self.grant(TransferId(random()?), 1, placement.kind());
        self.send_grant(&grant)?;
        let receive = self.receive_options(&grant);
        let inquiry = Inquiry::new(&mut reader, &grant, &manifest);
        let packed = receive.unpack.is_some() && !receive.check;
        let inquiry = if packed { inquiry.without_contents() } else { inquiry };
        let receive = ReceiveOptions { unpack: None, ..receive };
        let previewed = with_alive(self.connection, || {
            self.prepare(manifest, table, placement, receive, inquiry).preview()
        });
        match previewed {
            Ok(preview) => {
                self.connection.send_controls(&preview.answer)?;
                self.connection.send_control(&Control::Done(preview.done))?;
            }
            Err(error) => {
                let _ = self.connection.send_control(&Control::Refuse(error.refusal()));
                self.connection.finish_writing();
                return Err(error);
            }
        }
        self.connection.finish_writing();
        Ok(())
    }

    /// Reads an offer and settles where it goes; an error has been told.
    fn take_offer(&self, reader: &mut FrameReader) -> Result<Offered, Error> {
        self.read_offer(reader).or_else(|error| self.refuse(error))
    }

    fn read_offer(&self, reader: &mut FrameReader) -> Result<Offered, Error> {
        let options = &self.context.options;
        let path = self.context.gate.admit(&self.who, Action::Write(self.open.existing), &self.open.path)?;
        let one_chunk = self.client.chunk_size()?.min(ChunkSize::COMMON);
        let mut manifest = self.read_manifest(reader)?;
        let archive = self.open.compress.archive();
        if let (Some(kind), Do::Preview, true) = (archive, self.open.r#do, options.keep_archive) {
            manifest = offered(&manifest, kind).map_err(|error| Error::protocol(error.to_string()))?;
        }
        let table = cut(&manifest, one_chunk)?;
        let comparable = self.client.one_chunk == u64::from(one_chunk.bytes());
        if self.open.r#do == Do::Put && comparable {
            expect_header(self.client, &manifest, &table)?;
        }
        if archive.is_some() && self.open.r#do == Do::Put {
            expect_archive(&manifest)?;
        }
        let placement =
            Placement::resolve(&self.context.root, &path.with_slash(), self.open.place, &manifest)?;
        let placement = match archive {
            Some(kind) if options.keep_archive => placement.ending_in(kind.extension()),
            _ => placement,
        };
        let header = Header {
            one_chunk: one_chunk.bytes().into(),
            full_chunk: table.count().into(),
            ..self.client.clone()
        };
        Ok(Offered { manifest: Arc::new(manifest), table, placement, header, one_chunk })
    }

    fn receive_options(&self, grant: &Grant) -> ReceiveOptions {
        let options = &self.context.options;
        let archive = self.open.compress.archive().filter(|_| !options.keep_archive);
        ReceiveOptions {
            existing: self.open.existing,
            advice: match self.context.gate.existing() {
                Existing::Overwrite => {
                    "send --existing overwrite replaces, rename keeps both, skip leaves what is there"
                }
                _ => {
                    "send --existing overwrite would replace what is there, if this server allowed it: serve --existing overwrite"
                }
            },
            check: self.open.check,
            durability: self.open.durability,
            times: self.open.times,
            mode: self.open.mode,
            // Without identities nobody knows whether what is held is of the same file.
            resume: self.open.resume && grant.has(Capability::Identity),
            size_max: options.size_max,
            free_min: options.free_min,
            unpack: archive.map(|kind| Unpack::new(kind, options.entries_max)),
        }
    }

    fn prepare<'a>(
        &self,
        manifest: Arc<Manifest>,
        table: Table,
        placement: Placement,
        options: ReceiveOptions,
        inquiry: Inquiry<'a>,
    ) -> Prepare<'a> {
        Prepare {
            manifest,
            table,
            algorithm: self.open.checksum,
            root: Arc::clone(&self.context.root),
            placement,
            options,
            filter: Filter::default(),
            stop: self.context.stop.clone(),
            inquiry: Some(inquiry),
        }
    }

    /// Ends the transfer whose stage is `folder`, if it is bringing something that this one brings
    /// too.
    fn take_over(&self, folder: &str, manifest: &Manifest, placement: &Placement) -> Result<Busy, Error> {
        if self.context.registry.is_placed(folder) {
            return Ok(Busy::Known);
        }
        let Some(older) = self.context.registry.by_folder(folder) else { return Ok(Busy::Unknown) };
        let wanted = manifest.iter().any(|(_, entry)| {
            entry.size() > 0
                && older.brings(&FileKey::new(placement.of(entry.path), entry.size(), entry.mtime))
        });
        if !wanted {
            return Ok(Busy::Known);
        }
        older.fail(Error::failed(Code::Conflict, "a newer connection has taken this transfer over"));
        if !older.wait_over(TAKE_OVER_TIMEOUT) {
            // It is syncing what it has: the next attempt finds that in place.
            return Err(Error::failed(Code::Unavailable, "an earlier attempt at this is still finishing"));
        }
        Ok(Busy::Ended)
    }

    fn read_manifest(&self, reader: &mut FrameReader) -> Result<Manifest, Error> {
        let builder = ManifestBuilder::new(self.context.options.entries_max)
            .with_long_paths(self.open.has(Capability::LongPaths));
        let (manifest, _) = read_manifest(reader, ManifestRules::new(builder, false))?;
        if manifest.is_empty() {
            return Err(Error::protocol("an empty manifest"));
        }
        Ok(manifest)
    }
}

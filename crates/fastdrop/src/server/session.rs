//! One connection in the blocking plane: a put, a get, a list, or one more stream of either.

use crate::error::{Error, code_of, reason};
use crate::lock::lock;
use crate::net::connection::{Connection, FrameReader};
use crate::observe::Observer;
use crate::random::random;
use crate::server::handshake::Handshaken;
use crate::server::{Shared, StreamGuard, Transfer};
use crate::source::archive::{Packed, expect_archive, offered};
use crate::source::filter::Filter;
use crate::source::identity::Identities;
use crate::source::reader::Unreadable;
use crate::source::tree::SourceTree;
use crate::source::walk::{WalkOptions, Walked, walk};
use crate::storage::journal::FileKey;
use crate::storage::options::{ReceiveOptions, Unpack};
use crate::storage::placement::Placement;
use crate::storage::recovery::Busy;
use crate::storage::root::Root;
use crate::transfer::alive::with_alive;
use crate::transfer::inquiry::Inquiry;
use crate::transfer::limits::{data_streams_from, flying_max, grantable};
use crate::transfer::prepare::{Prepare, Prepared};
use crate::transfer::send::{Opener, SendOptions, Transmission, offer};
use crate::transfer::streams::Joined;
use fastdrop_proto::fastdp::{
    Archive, Capability, Control, Do, Entry, EntryKind, Existing, Grant, Header, LeftOut, LeftOutEntry,
    Links, Manifest, ManifestBuilder, Open, PathError, RelPath, Sender, SenderConfig, Streams, Table,
    Transcript,
};
use fastdrop_proto::units::{ChunkSize, EntryIndex, Mtime, TransferId};
use rustix::fs::{AtFlags, FileType};
use std::any::Any;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a manifest may take altogether.
const MANIFEST_PATIENCE: Duration = Duration::from_secs(600);
/// How long an older transfer may take to leave when a newer one takes it over.
const TAKE_OVER_PATIENCE: Duration = Duration::from_secs(10);

/// Serves a connection to its end.
pub(super) fn serve(shared: &Arc<Shared>, shaken: Handshaken, held: Box<dyn Any + Send>) {
    let peer = shaken.peer;
    let rtt = Duration::from_micros(shaken.open.rtt_micros);
    let connection = match Connection::new(shaken.socket, rtt) {
        Ok(connection) => Arc::new(connection),
        Err(error) => return tracing::debug!(%peer, %error, "the connection went away"),
    };
    shared.stop.watch(&connection);
    let serving = Serving {
        shared,
        connection: &connection,
        client: &shaken.header,
        client_json: &shaken.header_json,
        open: &shaken.open,
        open_json: &shaken.open_json,
        rtt,
    };
    let reader = FrameReader::new(Arc::clone(&connection), shaken.early);
    let key = shaken.key;
    let started = Instant::now();
    let result = match shaken.open.r#do {
        Do::Put => serving.put(reader),
        Do::Preview => serving.preview(reader),
        Do::Get => serving.get(reader),
        Do::List => serving.list(),
        // The transfer's own threads serve it from here on; its key stays taken as long as it
        // lasts.
        Do::Join => match serving.join(reader, Box::new((held, key))) {
            Ok(()) => return,
            Err(error) => Err(error),
        },
    };
    let what = shaken.open.r#do;
    let path = crate::shown(&shaken.open.path);
    let seconds = started.elapsed().as_secs_f64();
    match result {
        Ok(()) => tracing::info!(%peer, ?what, path, seconds, "done"),
        Err(error) => tracing::warn!(%peer, ?what, path, seconds, error = %error, "failed"),
    }
    connection.linger();
}

struct Serving<'a> {
    shared: &'a Arc<Shared>,
    connection: &'a Arc<Connection>,
    client: &'a Header,
    client_json: &'a [u8],
    open: &'a Open,
    open_json: &'a [u8],
    rtt: Duration,
}

impl Serving<'_> {
    /// Sends this end's header, so that a refusal can follow; returns its JSON.
    fn answer(&self, header: &Header) -> Result<Vec<u8>, Error> {
        let bytes = header.encode();
        self.connection.send(&mut [std::io::IoSlice::new(&bytes)], usize::MAX, |_| Duration::ZERO)?;
        Ok(bytes[4..].to_vec())
    }

    /// Refuses before anything was agreed.
    fn refuse<T>(&self, error: Error) -> Result<T, Error> {
        if self.answer(&Header::new(ChunkSize::COMMON, 0, 0, "")).is_ok() {
            let _ = self.connection.send_control(&Control::Refuse(error.refusal()));
            self.connection.finish_writing();
        }
        Err(error)
    }

    fn grant(&self, transfer: TransferId, streams: u16, place: fastdrop_proto::fastdp::Place) -> Grant {
        Grant {
            transfer: Some(transfer),
            streams,
            checksum: self.open.checksum,
            durability: self.open.durability,
            place,
            checkpoint: match (self.open.checkpoint, self.shared.options.checkpoint) {
                (Some(asked), Some(own)) => Some(asked.min(own)),
                (asked, own) => asked.or(own),
            },
            keeps_archive: matches!(self.open.r#do, Do::Put | Do::Preview)
                && self.open.compress.archive().is_some()
                && self.shared.options.keep_archive,
            capabilities: self.open.shared_capabilities(),
        }
    }

    /// Sends GRANT; returns its JSON.
    fn send_grant(&self, grant: &Grant) -> Result<Vec<u8>, Error> {
        let frame = Control::Grant(grant.clone()).encode();
        self.connection.send(&mut [std::io::IoSlice::new(&frame)], usize::MAX, |_| Duration::ZERO)?;
        Ok(frame[8..].to_vec())
    }

    fn transcript(&self, server_json: &[u8], grant_json: &[u8]) -> Transcript {
        Transcript::new(self.client_json, self.open_json, server_json, grant_json)
    }

    // ---- join ----

    fn join(&self, reader: FrameReader, held: Box<dyn Any + Send>) -> Result<(), Error> {
        let unknown = || Error::with_code(404, "there is no such transfer");
        let found = self.open.transfer.and_then(|id| {
            let sessions = lock(&self.shared.sessions);
            let session = sessions.get(&id.0)?;
            Some((
                id,
                session.transfer.clone(),
                session.streams,
                StreamGuard::new(&session.joined, session.streams),
            ))
        });
        let Some((id, transfer, streams, counted)) = found else { return self.refuse(unknown()) };
        let Some(counted) = counted else {
            return self.refuse(Error::with_code(503, "more streams than were granted"));
        };
        self.answer(&Header::new(ChunkSize::COMMON, 0, 0, ""))?;
        self.send_grant(&self.grant(id, streams, fastdrop_proto::fastdp::Place::Auto))?;
        let joined = Joined { reader, held: Box::new((held, counted)) };
        let pushed = match &transfer {
            Transfer::Receiving(reception) => reception.joins.push(joined),
            Transfer::Sending(transmission) => transmission.joins.push(joined),
        };
        pushed.map_err(|joined| {
            let connection = joined.connection();
            let _ = connection.send_control(&Control::Refuse(unknown().refusal()));
            connection.finish_writing();
            unknown()
        })
    }

    // ---- put ----

    /// Reads an offer and settles where it goes; an error has been told.
    fn take_offer(&self, reader: &mut FrameReader) -> Result<Offered, Error> {
        self.read_offer(reader).or_else(|error| self.refuse(error))
    }

    fn read_offer(&self, reader: &mut FrameReader) -> Result<Offered, Error> {
        let options = &self.shared.options;
        if options.read_only {
            return Err(Error::with_code(403, "this server only gives"));
        }
        if self.open.existing > options.existing.max(Existing::Error) {
            let why = match self.open.existing {
                Existing::Rename => {
                    "this server gives no other names to what exists: serve --existing rename would"
                }
                _ => "this server keeps what exists: serve --existing overwrite would let it be replaced",
            };
            return Err(Error::with_code(403, why));
        }
        let one_chunk = self.client.chunk_size()?.min(ChunkSize::COMMON);
        let mut manifest = self.read_manifest(reader)?;
        let archive = self.open.compress.archive();
        if let (Some(kind), Do::Preview, true) = (archive, self.open.r#do, options.keep_archive) {
            manifest = offered(&manifest, kind).map_err(|error| Error::with_code(400, error.to_string()))?;
        }
        let table =
            Table::new(&manifest, one_chunk).map_err(|error| Error::with_code(413, error.to_string()))?;
        let said = (self.client.full_size, self.client.full_chunk);
        let is = (manifest.bytes(), u64::from(table.count()));
        let comparable = self.client.one_chunk == u64::from(one_chunk.bytes());
        if self.open.r#do == Do::Put && comparable && said != is {
            return Err(Error::with_code(400, "the header contradicts the manifest"));
        }
        if archive.is_some() && self.open.r#do == Do::Put {
            expect_archive(&manifest)?;
        }
        let placement = Placement::resolve(&self.shared.root, &self.open.path, self.open.place, &manifest)?;
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
        let options = &self.shared.options;
        let archive = self.open.compress.archive().filter(|_| !options.keep_archive);
        ReceiveOptions {
            existing: self.open.existing,
            advice: match options.existing {
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
        observer: Arc<Observer>,
    ) -> Prepare<'a> {
        Prepare {
            manifest,
            table,
            algorithm: self.open.checksum,
            root: Arc::clone(&self.shared.root),
            placement,
            options,
            filter: Filter::default(),
            observer,
            stop: self.shared.stop.clone(),
            inquiry: Some(inquiry),
        }
    }

    /// Says what a put would do.
    fn preview(&self, mut reader: FrameReader) -> Result<(), Error> {
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
            self.prepare(manifest, table, placement, receive, inquiry, Arc::default()).preview()
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

    fn put(&self, mut reader: FrameReader) -> Result<(), Error> {
        let options = &self.shared.options;
        let Offered { manifest, table, placement, header, one_chunk } = self.take_offer(&mut reader)?;
        let preparing = match self.shared.prepare(&manifest, &placement) {
            Ok(preparing) => preparing,
            Err(error) => return self.refuse(error),
        };
        let server_json = self.answer(&header)?;
        let id = TransferId(random()?);
        let wanted = grantable(self.open.streams.min(options.streams_max), one_chunk);
        let reserved = Reserved::new(self.shared, wanted, one_chunk);
        let grant = self.grant(id, reserved.streams, placement.kind());
        let grant_json = self.send_grant(&grant)?;
        let observer = Arc::new(Observer::default());
        let prepared = with_alive(self.connection, || {
            let mut busy = |folder: &str| self.take_over(folder, &manifest, &placement);
            let inquiry = Inquiry::new(&mut reader, &grant, &manifest);
            let (manifest, placement) = (Arc::clone(&manifest), placement.clone());
            let options = self.receive_options(&grant);
            let prepare = self.prepare(manifest, table, placement, options, inquiry, Arc::clone(&observer));
            prepare.run(&mut busy)
        });
        let Prepared { reception, answer, .. } = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                let _ = self.connection.send_control(&Control::Refuse(error.refusal()));
                self.connection.finish_writing();
                return Err(error);
            }
        };
        reception.set_turns(&self.shared.turns);
        reception.set_transcript(self.transcript(&server_json, &grant_json));
        let registered =
            self.shared.add_session(id, Transfer::Receiving(Arc::clone(&reception)), reserved.streams);
        drop(preparing);
        let _session = registered.map_err(|error| reception.end_with(error));
        // If the answer does not reach the client, the first read will say so.
        let _ = self.connection.send_controls(&answer);
        let done = reception.run(reader, &|| {})?;
        tracing::info!(transfer = ?id, files = done.files, bytes = done.bytes, failed = done.failed_count, "received");
        self.shared.finish_one();
        Ok(())
    }

    /// Ends the transfer whose stage is `folder`, if it is bringing something that this one brings
    /// too.
    fn take_over(&self, folder: &str, manifest: &Manifest, placement: &Placement) -> Result<Busy, Error> {
        if lock(&self.shared.placed).contains(folder) {
            return Ok(Busy::Known);
        }
        let Some(older) = self.shared.by_folder(folder) else { return Ok(Busy::Unknown) };
        let wanted = manifest.iter().any(|(_, entry)| {
            entry.size() > 0
                && older.brings(&FileKey::new(placement.of(entry.path), entry.size(), entry.mtime))
        });
        if !wanted {
            return Ok(Busy::Known);
        }
        older.end_with(Error::with_code(409, "a newer connection has taken this transfer over"));
        if !older.wait_over(TAKE_OVER_PATIENCE) {
            // It is syncing what it has: the next attempt finds that in place.
            return Err(Error::with_code(503, "an earlier attempt at this is still finishing"));
        }
        Ok(Busy::Ended)
    }

    fn read_manifest(&self, reader: &mut FrameReader) -> Result<Manifest, Error> {
        let bad = |error: fastdrop_proto::fastdp::ManifestError| Error::with_code(400, error.to_string());
        let until = Instant::now() + MANIFEST_PATIENCE;
        let mut builder = ManifestBuilder::new(self.shared.options.entries_max)
            .with_long_paths(self.open.has(Capability::LongPaths));
        loop {
            if Instant::now() > until {
                return Err(Error::with_code(408, "the manifest did not come in time"));
            }
            match reader.next_control()? {
                Control::Manifest(part) => builder.handle_part(&part).map_err(bad)?,
                Control::ManifestEnd(end) => {
                    let manifest = builder.handle_end(&end).map_err(bad)?;
                    if manifest.is_empty() {
                        return Err(Error::with_code(400, "an empty manifest"));
                    }
                    return Ok(manifest);
                }
                Control::Alive => {}
                _ => return Err(Error::with_code(400, "something else where the manifest must be")),
            }
        }
    }

    // ---- get ----

    fn get(&self, reader: FrameReader) -> Result<(), Error> {
        if self.shared.options.write_only {
            return self.refuse(Error::with_code(403, "this server only takes"));
        }
        let found = self.client.chunk_size().map_err(Error::from).and_then(|size| Ok((size, self.find()?)));
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
        let largest = manifest.iter().map(|(_, entry)| entry.size()).max().unwrap_or(0);
        let largest = if input.is_some() { 1 << 30 } else { largest };
        let one_chunk = ChunkSize::for_file_size(largest.max(manifest.bytes() / 16))
            .min(chunk_max)
            .min(ChunkSize::COMMON);
        let table = match Table::new(&manifest, one_chunk) {
            Ok(table) => table,
            Err(error) => return self.refuse(Error::with_code(413, error.to_string())),
        };
        let name = crate::shown(&self.open.path);
        let server_json = self.answer(&Header::new(one_chunk, table.count(), manifest.bytes(), &name))?;
        let id = TransferId(random()?);
        let wanted = grantable(self.open.streams.min(self.shared.options.streams_max), one_chunk);
        let reserved = Reserved::new(self.shared, wanted, one_chunk);
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
        let config = SenderConfig {
            streams,
            granted: reserved.streams,
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get().min(64) as u16),
            rtt: self.rtt,
            loss_tolerant: self.connection.is_loss_tolerant(),
            checkpoint: grant.checkpoint,
            data_streams_from: data_streams_from(streams, self.rtt, manifest.len()),
            flying_max: flying_max(self.rtt, one_chunk),
            identity: grant.has(Capability::Identity),
            proof: grant.has(Capability::Proof),
            content: grant.has(Capability::Content),
            ..SenderConfig::default()
        };
        let mut machine =
            Sender::new(config, Arc::clone(&manifest), table, self.open.checksum, Instant::now());
        machine.set_transcript(self.transcript(&server_json, &grant_json));
        let observer = Arc::new(Observer::default());
        let stop = self.shared.stop.clone();
        let (compress, rate_max) = (self.open.compress, self.open.rate_max);
        let options = SendOptions { compress, rate_max, keeps_rate: false };
        let transmission = Transmission::new(machine, tree, identities, &grant, options, observer, stop);
        transmission.set_turns(&self.shared.turns);
        let registered =
            self.shared.add_session(id, Transfer::Sending(Arc::clone(&transmission)), reserved.streams);
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
                scope.spawn(|| transmission.feed(input, |clocks| &clocks.cpu));
            }
            transmission.run(reader, &Opener::Ask)
        })?;
        tracing::info!(transfer = ?id, files = done.files, bytes = done.bytes, "sent");
        self.shared.finish_one();
        Ok(())
    }

    /// Begins with an archive of what a get asks for, if it asks for one.
    fn pack(
        &self,
        tree: &Arc<SourceTree>,
        manifest: &Arc<Manifest>,
    ) -> Result<Option<(Arc<Manifest>, Packed)>, Error> {
        let Some(kind) = self.open.compress.archive() else { return Ok(None) };
        let failed = |why: String| Error::with_code(500, format!("making an archive: {why}"));
        if kind == Archive::Zip && !self.open.has(Capability::ZipTimes) {
            return Err(Error::with_code(415, "the client does not know exact times in ZIP archives"));
        }
        let offered = offered(manifest, kind)?;
        let packed = Packed::new(Arc::clone(tree), Arc::clone(manifest), kind);
        Ok(Some((Arc::new(offered), packed.map_err(|error| failed(error.to_string()))?)))
    }

    /// Walks what a get asks for.
    fn find(&self) -> Result<(Arc<SourceTree>, Walked), Error> {
        let root = match self.open.links {
            Links::Follow => {
                let following = self.shared.root.following_beneath();
                Arc::new(following.map_err(|errno| Error::system("opening the folder", errno))?)
            }
            Links::Copy | Links::Safe | Links::Skip => Arc::clone(&self.shared.root),
        };
        let (path, contents) = requested(&self.open.path)?;
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
            entries_max: self.shared.options.entries_max,
            tells_uncarried: self.open.uncarried,
            long_paths: self.open.has(Capability::LongPaths),
        };
        let mut walked = walk(&tree, None, &options, &Observer::default(), &self.shared.stop)?;
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
                return Err(Error::with_code(failed.code, why));
            }
            self.may_leave_out(&why)?;
        }
        Ok((Arc::new(tree), walked))
    }

    /// Refuses a client that would not learn that something is left out.
    fn may_leave_out(&self, why: &str) -> Result<(), Error> {
        if self.open.has(Capability::LeftOut) {
            return Ok(());
        }
        Err(Error::with_code(
            409,
            format!("not all of it can be had, and this client is too old to be told so: {why}"),
        ))
    }

    // ---- list ----

    fn list(&self) -> Result<(), Error> {
        if self.shared.options.write_only {
            return self.refuse(Error::with_code(403, "this server only takes"));
        }
        let (manifest, left_out) = match self.listing() {
            Ok(listing) => listing,
            Err(error) => return self.refuse(error),
        };
        self.answer(&Header::new(ChunkSize::COMMON, 0, manifest.bytes(), &crate::shown(&self.open.path)))?;
        self.send_grant(&self.grant(TransferId(random()?), 1, fastdrop_proto::fastdp::Place::Auto))?;
        offer(self.connection, &manifest, LeftOut::frames(left_out, 0))?;
        self.connection.finish_writing();
        Ok(())
    }

    /// Lists a folder, or the file that the path names, and what of it cannot be listed.
    fn listing(&self) -> Result<(Manifest, Vec<LeftOutEntry>), Error> {
        let root: &Root = &self.shared.root;
        let (path, contents) = requested(&self.open.path)?;
        let system = |errno| Error::system(crate::shown(path), errno);
        let bad = |error: fastdrop_proto::fastdp::ManifestError| Error::with_code(413, error.to_string());
        let mut builder = ManifestBuilder::for_list(self.shared.options.entries_max);
        let mut left_out = Vec::new();
        let (stat, is_dir) = look(root, path, contents)?;
        let mut add = |folder: BorrowedFd<'_>, name: &[u8], stat: &rustix::fs::Stat| {
            match listed(folder, name, stat) {
                Ok(listed) => builder.push(&listed.entry()).map_err(bad)?,
                Err(NotListed::Hidden) => {}
                Err(NotListed::Failed(code, reason)) => left_out.push(failed(name, code, reason)),
            }
            Ok::<_, Error>(())
        };
        if !is_dir {
            let (folder, name) = crate::storage::root::split(path);
            let folder = root.open_dir(folder).map_err(system)?;
            add(folder.as_fd(), name, &stat)?;
        } else {
            let dir = root.open_dir(path).map_err(system)?;
            let mut unreadable = Vec::new();
            for (name, _) in crate::storage::root::names(dir.as_fd()).map_err(system)? {
                match rustix::fs::statat(&dir, &name[..], AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => add(dir.as_fd(), &name, &stat)?,
                    // It is gone by now.
                    Err(rustix::io::Errno::NOENT) => {}
                    Err(errno) => unreadable.push(failed(&name, code_of(errno), reason(errno))),
                }
            }
            left_out.append(&mut unreadable);
        }
        if let Some(failed) = left_out.first() {
            self.may_leave_out(&format!("{}: {}", crate::shown(&failed.path), failed.reason))?;
        }
        Ok((builder.finish().map_err(bad)?, left_out))
    }
}

/// A put that has been offered.
struct Offered {
    manifest: Arc<Manifest>,
    table: Table,
    placement: Placement,
    /// This end's header.
    header: Header,
    one_chunk: ChunkSize,
}

fn failed(path: &[u8], code: u16, reason: String) -> LeftOutEntry {
    LeftOutEntry { path: path.to_vec(), policy: false, directory: false, code, reason }
}

/// The path that a get or list means, and whether it means what is in it.
fn requested(path: &[u8]) -> Result<(&[u8], bool), Error> {
    let contents = path.is_empty() || path.ends_with(b"/");
    let path = path.strip_suffix(b"/").unwrap_or(path);
    if !path.is_empty() {
        RelPath::new(path).map_err(|error| Error::with_code(403, error.to_string()))?;
    }
    Ok((path, contents))
}

/// What is at `path`, and whether it is a folder; with a slash at the end of what was asked for, it
/// must be.
fn look(root: &Root, path: &[u8], contents: bool) -> Result<(rustix::fs::Stat, bool), Error> {
    let missing = |what: &str| Error::with_code(404, format!("{}: {what}", crate::shown(path)));
    let stat = match root.stat(path) {
        Err(rustix::io::Errno::NOTDIR) => return Err(missing("no such file or folder")),
        result => result.map_err(|errno| Error::system(crate::shown(path), errno))?,
    };
    let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    if contents && !is_dir { Err(missing("not a folder")) } else { Ok((stat, is_dir)) }
}

/// One line of a list.
struct ListedEntry<'a> {
    path: RelPath<'a>,
    mode: u32,
    mtime: Mtime,
    kind: ListedKind,
}

enum ListedKind {
    File(u64),
    Directory,
    Link(Vec<u8>),
}

impl ListedEntry<'_> {
    fn entry(&self) -> Entry<'_> {
        let kind = match &self.kind {
            ListedKind::File(size) => EntryKind::File { size: *size },
            ListedKind::Directory => EntryKind::Directory,
            ListedKind::Link(target) => EntryKind::Link { target },
        };
        Entry { path: self.path, kind, mode: self.mode, mtime: self.mtime }
    }
}

/// Why something in a folder is not in its list.
enum NotListed {
    /// Unfinished work of this program.
    Hidden,
    /// It cannot be, with a code of section 11.
    Failed(u16, String),
}

fn listed<'a>(
    folder: BorrowedFd<'_>,
    name: &'a [u8],
    stat: &rustix::fs::Stat,
) -> Result<ListedEntry<'a>, NotListed> {
    let path = RelPath::new(name).map_err(|error| match error {
        PathError::Hidden => NotListed::Hidden,
        error => NotListed::Failed(403, error.to_string()),
    })?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => ListedKind::File(stat.st_size as u64),
        FileType::Directory => ListedKind::Directory,
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(folder, name, Vec::new());
            let target = target.map_err(|errno| NotListed::Failed(code_of(errno), reason(errno)))?;
            ListedKind::Link(target.into_bytes())
        }
        _ => return Err(NotListed::Failed(415, "neither a file nor a folder nor a link".into())),
    };
    let mtime = Mtime { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 };
    Ok(ListedEntry { path, mode: stat.st_mode & 0o777, mtime, kind })
}

/// Chunk buffers of one transfer, given back when it ends.
struct Reserved<'a> {
    shared: &'a Shared,
    streams: u16,
    one_chunk: ChunkSize,
}

impl<'a> Reserved<'a> {
    fn new(shared: &'a Shared, wanted: u16, one_chunk: ChunkSize) -> Self {
        Self { shared, streams: shared.reserve(wanted, one_chunk.bytes()), one_chunk }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.shared.release(self.streams, self.one_chunk.bytes());
    }
}

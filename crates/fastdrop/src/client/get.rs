//! Gets and lists.

use crate::client::agree::{Agreed, read_grant};
use crate::client::{Client, ENTRIES_MAX};
use crate::context::client::destination::Destination;
use crate::context::client::destination::GetPlace;
use crate::context::client::flags::{Action, Request};
use crate::context::client::summary::Summary;
use crate::context::client::summary::Tally;
use crate::error::Error;
use crate::legacy::fastdownloader;
use crate::observe::Phase;
use crate::protocol::Protocol;
use crate::source::archive::expect_archive;
use crate::source::walk::Walked;
use crate::storage::options::{ReceiveOptions, Unpack};
use crate::storage::output::{OutputSink, expect_one_file};
use crate::storage::placement::Placement;
use crate::storage::recovery::Busy;
use crate::storage::root::Root;
use crate::thread::spawn_scoped;
use crate::transfer::alive::with_alive;
use crate::transfer::inquiry::Inquiry;
use crate::transfer::layout::{cut, expect_header};
use crate::transfer::manifest::{ManifestRules, read_manifest};
use crate::transfer::prepare::{Prepare, Prepared, prepare_output};
use fastdrop_proto::fastdp::{
    self, Archive, Capability, Code, Control, Do, Done, EntryKind, Failed, Grant, Header, LeftOutEntry,
    Manifest, ManifestBuilder, Open, Place, RelPath, Table,
};
use fastdrop_proto::units::{ChunkSize, EntryIndex};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// How to get.
#[derive(Debug, Clone, Copy, Default)]
pub struct GetOptions {
    /// Only say what there is to fetch.
    pub dry_run: bool,
    /// What comes as an archive stays one instead of being unpacked.
    pub keep_archive: bool,
}

/// A get that the server has answered.
struct Offered {
    agreed: Agreed,
    grant: Grant,
    /// The grant as it came.
    grant_json: Vec<u8>,
    manifest: Arc<Manifest>,
    one_chunk: ChunkSize,
    /// The kind of archive in which everything comes, if it does.
    archive: Option<Archive>,
    /// Files that are wanted, and not offered in what comes as an archive.
    missing: Vec<Failed>,
    /// Files that are offered in a dry run, and cannot be read.
    unreadable: Vec<(EntryIndex, Code, String)>,
}

impl Client {
    /// Fetches. A failure of some files is not an error here but counted in the summary.
    pub fn get(&self, destination: Destination, options: GetOptions) -> Result<Summary, Error> {
        let start = Instant::now();
        let GetOptions { dry_run, keep_archive } = options;
        let request = Request { action: Action::Get, options: &self.context.options, dry_run, keep_archive };
        let unkept = request.check()?;
        let mut tally = Tally::new(&self.context.options, &Walked::default(), start);
        tally.note_unkept(unkept);
        if self.context.options.protocol == Protocol::FastDownloader {
            let done = fastdownloader::client::get(&self.context, destination, dry_run, &mut tally);
            return tally.finish(done, &self.context.observer);
        }
        let archive = self.compress()?.archive();
        if archive.is_some() && options.keep_archive && !self.context.options.filter.is_empty() {
            return Err(Error::failed(
                Code::BadRequest,
                "an archive that is kept comes whole: nothing can be left out of it",
            ));
        }
        let place = match destination {
            Destination::Output(_) if archive.is_some() => {
                return Err(Error::failed(Code::BadRequest, "an archive cannot go to standard output"));
            }
            Destination::Output(to) => GetPlace::Output(Arc::new(OutputSink::new(to))),
            Destination::Path(path) => GetPlace::files(&path)?,
        };
        // What is in a folder goes into one, even if it is a single file.
        let contents = self.context.target.path.is_empty() || self.context.target.path.ends_with(b"/");
        let mut fixed = if contents { Place::Into } else { Place::Auto };
        tally.unpacks = archive.is_some() && !options.keep_archive;
        let done = self.context.with_retries(|number| {
            tally.attempts = number;
            self.get_once(&place, &mut fixed, options, &mut tally)
        });
        if let (Ok(done), Some(_), false) = (&done, archive, options.dry_run) {
            tally.note_unpacked(done);
        }
        tally.finish(done, &self.context.observer)
    }

    fn get_once(
        &self,
        place: &GetPlace,
        fixed: &mut Place,
        options: GetOptions,
        tally: &mut Tally,
    ) -> Result<Done, Error> {
        let (mut offered, table) = self.take_offer(options, tally)?;
        if options.dry_run {
            return self.preview_get(offered, table, place, *fixed, tally);
        }
        let place = &place.with_parents()?;
        let prepared = self.prepare_get(&mut offered, table, place, fixed, options)?;
        self.receive_get(offered, prepared, matches!(place, GetPlace::Output(_)), tally)
    }

    /// Asks for what the target names, and takes what the server offers.
    fn take_offer(&self, options: GetOptions, tally: &mut Tally) -> Result<(Offered, Table), Error> {
        self.context.observer.set_phase(Phase::Connecting);
        // With -v alone: it takes the server a call for each file.
        let uncarried = tracing::enabled!(tracing::Level::INFO);
        let mut open = Open { dry: options.dry_run, uncarried, ..self.open(Do::Get)? };
        // Of an archive that is unpacked, what would come is in it.
        let archive = open.compress.archive().filter(|_| !options.dry_run || options.keep_archive);
        if archive.is_none() && open.compress.archive().is_some() {
            open.compress = fastdp::Compress::None;
        }
        let mut agreed = self.agree(open, &Header::new(ChunkSize::COMMON, 0, 0, ""), None)?;
        let (grant, grant_json) = read_grant(&mut agreed.reader)?;
        self.check_grant(&grant)?;
        let builder = ManifestBuilder::new(ENTRIES_MAX).with_long_paths(grant.has(Capability::LongPaths));
        let (manifest, mut left_out) = read_manifest(&mut agreed.reader, ManifestRules::new(builder, true))?;
        let manifest = Arc::new(manifest);
        let filter = &self.context.options.filter;
        let is_wanted = |entry: &&LeftOutEntry| {
            RelPath::new(&entry.path).map_or(true, |path| filter.wants(path, entry.directory))
        };
        // A single file is there or not; of a folder, more may have been there.
        let is_single = manifest.len() == 1
            && manifest.iter().all(|(_, entry)| entry.kind != EntryKind::Directory)
            && !self.context.target.path.is_empty()
            && !self.context.target.path.ends_with(b"/");
        if !is_single && !grant.has(Capability::LeftOut) {
            tally.note_unconfirmed();
        }
        // Of a dry run it also tells what is there, but could not be read.
        let mut unreadable = Vec::new();
        left_out.entries.retain(|entry| {
            let found = RelPath::new(&entry.path).ok().and_then(|path| manifest.find(path));
            let Some((index, _)) = found.filter(|_| options.dry_run) else { return true };
            unreadable.push((index, entry.code, entry.reason.clone()));
            false
        });
        tally.leave_out(left_out.entries.iter().filter(is_wanted), left_out.unnamed);
        tally.note_uncarried(&left_out.uncarried);
        // What is in an archive is known when it has arrived: then all of it has failed if only
        // that is wanted.
        let mut missing = Vec::new();
        if archive.is_none() {
            for (path, why) in filter.missing(manifest.iter().map(|(_, entry)| entry.path)) {
                if self.compress()?.archive().is_some() {
                    missing.push(Failed { path: path.to_vec(), code: Code::NotFound, message: why });
                } else {
                    tally.fail(path, Code::NotFound, &why);
                }
            }
        }
        let one_chunk = agreed.server.chunk_size()?;
        if one_chunk > ChunkSize::COMMON {
            return Err(Error::protocol("the server takes a larger OneChunk than was offered"));
        }
        let table = cut(&manifest, one_chunk)?;
        expect_header(&agreed.server, &manifest, &table)?;
        let files = manifest.iter().filter(|(_, entry)| entry.kind != EntryKind::Directory).count() as u64;
        self.context.observer.files_total.store(files, Ordering::Relaxed);
        tally.congestion = agreed.reader.connection().congestion();
        tally.one_chunk = one_chunk.bytes();
        let offered =
            Offered { agreed, grant, grant_json, manifest, one_chunk, archive, missing, unreadable };
        Ok((offered, table))
    }

    /// Finds out what a get would do, without a trace.
    fn preview_get(
        &self,
        mut offered: Offered,
        table: Table,
        place: &GetPlace,
        fixed: Place,
        tally: &mut Tally,
    ) -> Result<Done, Error> {
        let connection = Arc::clone(offered.agreed.reader.connection());
        let Offered { ref grant, ref manifest, archive, .. } = offered;
        let inquiry = Inquiry::new(&mut offered.agreed.reader, grant, manifest);
        // What comes in an archive is compared by size and time alone, unless contents are to
        // be compared.
        let packed = self.compress()?.archive().is_some() && !self.context.options.check;
        let inquiry = if packed { inquiry.without_contents() } else { inquiry };
        let preview = with_alive(&connection, || match place {
            GetPlace::Output(_) => expect_one_file(manifest).map(|()| None),
            GetPlace::Files { root, path, .. } => {
                let mut placement = Placement::resolve(root, path, fixed, manifest)?;
                if let Some(kind) = archive {
                    placement = placement.ending_in(kind.extension());
                }
                let options = self.receive_options(grant, None);
                let prepare = self.prepare(manifest, table, root, placement, options, inquiry);
                prepare.preview().map(Some)
            }
        });
        connection.close();
        let (mut needed, mut done) = match preview.map_err(own_refusal)? {
            Some(preview) => {
                tally.note_skipped(preview.skipped, preview.left, 0, 0);
                (preview.needed, preview.done)
            }
            None => ((0..manifest.len()).map(EntryIndex).collect(), Done::default()),
        };
        self.would_fail(offered.unreadable.into_iter(), manifest, &mut needed, &mut done)?;
        done.failed_count += offered.missing.len() as u64;
        done.failed.extend(offered.missing);
        tally.note_dry(manifest, |index| needed.contains(&index));
        Ok(done)
    }

    /// Compares what is offered with what is there, and makes a place for the rest.
    fn prepare_get(
        &self,
        offered: &mut Offered,
        table: Table,
        place: &GetPlace,
        fixed: &mut Place,
        options: GetOptions,
    ) -> Result<Prepared, Error> {
        let connection = Arc::clone(offered.agreed.reader.connection());
        let (grant, manifest) = (&offered.grant, &offered.manifest);
        let inquiry = Inquiry::new(&mut offered.agreed.reader, grant, manifest);
        let prepared = with_alive(&connection, || match place {
            GetPlace::Output(sink) => prepare_output(
                Arc::clone(manifest),
                table,
                self.context.options.checksum,
                Arc::clone(sink),
                inquiry,
            ),
            GetPlace::Files { root, path, .. } => {
                let mut placement = Placement::resolve(root, path, *fixed, manifest)?;
                *fixed = placement.kind();
                if offered.archive.is_some() {
                    expect_archive(manifest)?;
                }
                if let (Some(kind), true) = (offered.archive, options.keep_archive) {
                    placement = placement.ending_in(kind.extension());
                }
                let unpack = offered.archive.filter(|_| !options.keep_archive);
                let receive = self.receive_options(grant, unpack.map(|kind| Unpack::new(kind, ENTRIES_MAX)));
                let prepare = self.prepare(manifest, table, root, placement, receive, inquiry);
                prepare.run(&mut |_| Ok(Busy::Unknown))
            }
        });
        prepared.map_err(|error| {
            let _ = connection.send_control(&Control::Refuse(error.refusal()));
            connection.close();
            own_refusal(error)
        })
    }

    /// Receives what was prepared; in order if it goes to a `single` output.
    fn receive_get(
        &self,
        offered: Offered,
        mut prepared: Prepared,
        single: bool,
        tally: &mut Tally,
    ) -> Result<Done, Error> {
        let Offered { agreed, grant, grant_json, manifest, one_chunk, .. } = offered;
        let Prepared { skipped, left, bytes_skipped, bytes_resumed, .. } = prepared;
        tally.note_skipped(skipped, left, bytes_skipped, bytes_resumed);
        let answer = std::mem::take(&mut prepared.answer);
        let rate_max = self.context.options.bytes_per_second_max;
        let connection = Arc::clone(agreed.reader.connection());
        let transfer = self.agreement(&agreed, &grant, &grant_json, one_chunk).receive(prepared, rate_max);
        self.context.observer.bytes_total.store(transfer.need().bytes, Ordering::Relaxed);
        connection.send_controls(&answer)?;
        let opening = AtomicUsize::new(0);
        let open_one = || {
            // In order is in order only on one stream.
            if single {
                return;
            }
            let (transfer, grant) = (&transfer, &grant);
            let joined = self.join(grant);
            match joined {
                Ok(joined) => {
                    if let Err(joined) = transfer.joins.push(joined) {
                        joined.connection().close();
                    }
                }
                Err(error) => tracing::debug!(%error, "a data stream could not be opened"),
            }
        };
        let result = std::thread::scope(|scope| {
            // A server may ask for what it granted, and for as many again to replace them; then it
            // has to wait.
            let opened_max = 2 * usize::from(grant.streams) + 2;
            let more = || {
                if opening.fetch_add(1, Ordering::SeqCst) >= opened_max {
                    opening.fetch_sub(1, Ordering::SeqCst);
                    return;
                }
                let open = || {
                    open_one();
                    opening.fetch_sub(1, Ordering::SeqCst);
                };
                if let Err(error) = spawn_scoped(scope, "open", open) {
                    tracing::debug!(%error, "a data stream could not be opened");
                    opening.fetch_sub(1, Ordering::SeqCst);
                }
            };
            transfer.run(agreed.reader, &more)
        });
        tally.note_received(&transfer, &manifest, &self.context.options.filter);
        result
    }

    /// What this end, as the receiver, decides by itself.
    fn prepare<'a>(
        &self,
        manifest: &Arc<Manifest>,
        table: Table,
        root: &Arc<Root>,
        placement: Placement,
        options: ReceiveOptions,
        inquiry: Inquiry<'a>,
    ) -> Prepare<'a> {
        Prepare {
            manifest: Arc::clone(manifest),
            table,
            algorithm: self.context.options.checksum,
            root: Arc::clone(root),
            placement,
            options,
            filter: self.context.options.filter.clone(),
            stop: self.context.stop.clone(),
            inquiry: Some(inquiry),
        }
    }

    fn receive_options(&self, grant: &Grant, unpack: Option<Unpack>) -> ReceiveOptions {
        let options = &self.context.options;
        ReceiveOptions {
            existing: options.existing,
            advice: "--existing overwrite replaces, rename keeps both, skip leaves what is there",
            check: options.check,
            durability: options.durability,
            times: options.times,
            mode: options.mode,
            // Without identities nobody knows whether what is held is of the same file.
            resume: options.resume && grant.has(Capability::Identity),
            size_max: None,
            free_min: 0,
            unpack,
        }
    }
}

/// An error of this end as the receiver, which refuses by itself, and names paths then.
fn own_refusal(error: Error) -> Error {
    match error {
        Error::Refused(refuse) if !refuse.paths.is_empty() => {
            let paths: Vec<_> = refuse.paths.iter().map(|path| crate::shown(path)).collect();
            Error::failed(refuse.code, format!("{}: {}", refuse.message, paths.join(", ")))
        }
        other => other,
    }
}

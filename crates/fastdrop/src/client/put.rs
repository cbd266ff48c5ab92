//! Puts: what is offered, what a server makes of it, and one attempt after the other.

use crate::client::agree::{Agreed, read_grant};
use crate::client::{Client, ENTRIES_MAX};
use crate::context::client::flags::{Action, Request};
use crate::context::client::summary::Summary;
use crate::context::client::summary::Tally;
use crate::error::Error;
use crate::observe::Phase;
use crate::protocol::Protocol;
use crate::source::archive::{Packed, offered};
use crate::source::identity::Identities;
use crate::source::reader::{Unreadable, content};
use crate::source::tree::SourceTree;
use crate::source::walk::{WalkOptions, Walked, walk};
use crate::storage::root::split;
use crate::thread::{refused, spawn};
use crate::transfer::alive::with_alive;
use crate::transfer::layout::{cut, wanted_chunk};
use crate::transfer::send::Opener;
use crate::transfer::setup::Outgoing;
use fastdrop_proto::fastdp::{
    Archive, Capability, Code, Control, Do, Done, Existing, Grant, Header, Links, Manifest, Open, Place,
    SkipReason,
};
use fastdrop_proto::units::{ChunkSize, EntryIndex};
use std::collections::{BTreeSet, HashSet};
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// What to put.
pub enum Put {
    /// Files and folders; those that end in a slash mean what is in them.
    Paths(Vec<PathBuf>),
    /// Everything until its end, as the file that the target's path names.
    Stream(Box<dyn Read + Send>),
}

impl std::fmt::Debug for Put {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Put::Paths(paths) => f.debug_tuple("Paths").field(paths).finish(),
            Put::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// How to put.
#[derive(Debug, Clone, Copy, Default)]
pub struct PutOptions {
    /// Only say what there is to send.
    pub dry_run: bool,
}

/// Whether a manifest has more than one topmost component.
fn has_several_tops(manifest: &Manifest) -> bool {
    let first = manifest.get(EntryIndex(0)).map(|entry| entry.path.top());
    manifest.iter().any(|(_, entry)| Some(entry.path.top()) != first)
}

/// Why a link was not sent.
const TOO_NEW_A_LINK: &str = "the server is too old for a link that leads there";
/// Why a long path was not sent.
const TOO_LONG_A_PATH: &str = "the server is too old for a path of more than 4,096 bytes";

/// Where what is sent comes from, beside files.
enum Input {
    /// Nowhere.
    Nothing,
    /// From a stream, which can be read once.
    Once(Mutex<Option<Box<dyn Read + Send>>>),
    /// From an archive of these, made anew for each attempt.
    Archive { tree: Arc<SourceTree>, contents: Arc<Manifest>, kind: Archive },
}

impl Input {
    /// Whether it has been read, and cannot be again.
    fn is_spent(&self) -> bool {
        match self {
            Input::Once(read) => read.lock().unwrap_or_else(PoisonError::into_inner).is_none(),
            Input::Nothing | Input::Archive { .. } => false,
        }
    }

    fn spent() -> Error {
        Error::failed(Code::BadRequest, "standard input has been read and cannot be sent again")
    }

    /// What to read; None if there are only files.
    fn open(&self) -> Result<Option<Box<dyn Read + Send>>, Error> {
        match self {
            Input::Nothing => Ok(None),
            Input::Once(read) => match read.lock().unwrap_or_else(PoisonError::into_inner).take() {
                Some(read) => Ok(Some(read)),
                None => Err(Self::spent()),
            },
            Input::Archive { tree, contents, kind } => {
                let packed = Packed::new(Arc::clone(tree), Arc::clone(contents), *kind)?;
                Ok(Some(Box::new(packed)))
            }
        }
    }
}

/// What a put offers, in one attempt after the other.
struct PutOffer {
    tree: Arc<SourceTree>,
    walked: Walked,
    /// Of the files as they are now.
    identities: Identities,
    place: Place,
    /// Whether unfinished work may be continued.
    resume: bool,
    /// Files that have changed since the first attempt, though neither their size nor their time
    /// has.
    changed: Vec<EntryIndex>,
}

impl PutOffer {
    /// Looks at the files again: a later attempt sends what they are then.
    fn look_again(&mut self) {
        let manifest = &self.walked.manifest;
        let now = Identities::find(&self.tree, manifest);
        let is_other = |&index: &EntryIndex| now.get(index) != self.identities.get(index);
        let changed = manifest.iter().map(|(index, _)| index).filter(is_other);
        self.changed.extend(changed);
        self.identities = now;
    }

    /// Whether a server that is too old could have refused the manifest for its links or long
    /// paths.
    fn is_too_new(&self, error: &Error) -> bool {
        let manifest = &self.walked.manifest;
        matches!(error, Error::Refused(refuse) if refuse.code == Code::BadRequest)
            && !(manifest.links_beyond_base().is_empty() && manifest.long_paths().is_empty())
    }

    fn leave_out_what_is_too_new(&mut self, tally: &mut Tally) -> Result<(), Error> {
        // Links first: they may lead by way of a folder whose path is too long.
        let links = self.walked.manifest.links_beyond_base();
        self.leave_out(&links, TOO_NEW_A_LINK, tally)?;
        let long = self.walked.manifest.long_paths();
        self.leave_out(&long, TOO_LONG_A_PATH, tally)
    }

    fn leave_out(
        &mut self,
        entries: &BTreeSet<EntryIndex>,
        why: &str,
        tally: &mut Tally,
    ) -> Result<(), Error> {
        for entry in entries.iter().filter_map(|&index| self.walked.manifest.get(index)) {
            tally.fail(entry.path.as_bytes(), Code::Unsupported, why);
        }
        self.walked.leave_out(entries, why)?;
        self.identities.remove(entries);
        // What is left is a manifest of its own.
        self.changed.clear();
        if self.walked.manifest.is_empty() {
            return Err(Error::failed(Code::Unsupported, why));
        }
        Ok(())
    }
}

/// Why an attempt at a put failed.
enum PutFailure {
    /// The manifest was refused before anything was granted.
    Offer(Error),
    /// The server holds something else than what is here, and cannot be told so.
    StartOver,
    Other(Error),
}

impl From<Error> for PutFailure {
    fn from(error: Error) -> Self {
        PutFailure::Other(error)
    }
}

impl From<PutFailure> for Error {
    fn from(failure: PutFailure) -> Self {
        match failure {
            PutFailure::Offer(error) | PutFailure::Other(error) => error,
            PutFailure::StartOver => Error::protocol("the server continues although nothing was offered"),
        }
    }
}

impl Client {
    /// Sends. A failure of some files is not an error here but counted in the summary.
    pub fn put(&self, what: Put, options: PutOptions) -> Result<Summary, Error> {
        let start = Instant::now();
        let (dry_run, keep_archive) = (options.dry_run, false);
        let request = Request { action: Action::Put, options: &self.context.options, dry_run, keep_archive };
        let unkept = request.check()?;
        let mut tree = SourceTree::default();
        let mut stream = None;
        let mut input = None;
        let mut contents = false;
        match what {
            Put::Paths(paths) => {
                for path in &paths {
                    contents |= tree.add_path(path, self.context.options.links == Links::Follow)?;
                }
            }
            Put::Stream(_) if self.context.options.protocol != Protocol::FastDp => {
                let protocol = self.context.options.protocol;
                return Err(Error::Unsupported(format!(
                    "{protocol} has to know a file's size before it is sent"
                )));
            }
            Put::Stream(read) => {
                let (_, name) = split(&self.context.target.path);
                if name.is_empty() {
                    return Err(Error::failed(
                        Code::BadRequest,
                        "a stream needs the name of a file in the target",
                    ));
                }
                stream = Some(name.to_vec());
                input = Some(read);
            }
        }
        let walk_options = WalkOptions {
            links: self.context.options.links,
            filter: self.context.options.filter.clone(),
            entries_max: ENTRIES_MAX,
            // With -v alone: it takes a call for each file.
            tells_uncarried: tracing::enabled!(tracing::Level::INFO),
            long_paths: true,
        };
        let mut walked =
            walk(&tree, stream.as_deref(), &walk_options, &self.context.observer, &self.context.stop)?;
        let mut tally = Tally::new(&self.context.options, &walked, start);
        tally.note_unkept(unkept);
        tally.note_uncarried(&walked.uncarried);
        let left_out = walked.left_out.iter().map(|entry| &entry.path[..]).collect::<HashSet<_>>();
        for (path, why) in
            self.context.options.filter.missing(walked.manifest.iter().map(|(_, entry)| entry.path))
        {
            // What was left out is not missing, and has a reason of its own; nor is a folder in
            // which there was nothing to take.
            if !left_out.contains(path) && !tree.has(path) {
                tally.fail(path, Code::NotFound, &why);
            }
        }
        if walked.manifest.is_empty() {
            return tally.nothing();
        }
        if self.context.options.protocol != Protocol::FastDp {
            let done = self.put_legacy(&walked.manifest, &tree, &mut tally);
            return tally.finish(done, &self.context.observer);
        }
        let tree = Arc::new(tree);
        let archive = self.compress()?.archive();
        // In a retry, what the first attempt made must not change where things go.
        let place = match (&input, contents) {
            (Some(_), _) => Place::As,
            (None, true) => Place::Into,
            (None, false) if archive.is_some() && has_several_tops(&walked.manifest) => Place::Into,
            (None, false) => Place::Auto,
        };
        if archive.is_some() && input.is_some() {
            return Err(Error::failed(Code::BadRequest, "standard input cannot be put into an archive"));
        }
        let identities = std::mem::take(&mut walked.identities);
        let packed = Arc::clone(&walked.manifest);
        let mut offer = PutOffer {
            tree,
            walked,
            identities,
            place,
            resume: self.context.options.resume,
            changed: Vec::new(),
        };
        if options.dry_run {
            let done = self.context.with_retries(|_| self.preview(&mut offer, &mut tally));
            return tally.finish(done, &self.context.observer);
        }
        let input = match (archive, input) {
            (Some(kind), _) => {
                let contents = Arc::clone(&offer.walked.manifest);
                offer.walked.manifest = Arc::new(offered(&contents, kind)?);
                offer.identities = Identities::default();
                Input::Archive { tree: Arc::clone(&offer.tree), contents, kind }
            }
            (None, Some(input)) => Input::Once(Mutex::new(Some(input))),
            (None, None) => Input::Nothing,
        };
        let done = self.context.with_retries(|number| {
            tally.attempts = number;
            if number > 0 {
                offer.look_again();
            }
            self.put_once(&mut offer, &input, &mut tally)
        });
        if let (Ok(done), Input::Archive { .. }) = (&done, &input) {
            tally.note_packed(&packed, done);
        }
        tally.finish(done, &self.context.observer)
    }

    /// Makes one attempt. A server that is too old for some of it gets what it can take.
    fn put_once(&self, offer: &mut PutOffer, input: &Input, tally: &mut Tally) -> Result<Done, Error> {
        loop {
            match self.put_attempt(offer, input, tally) {
                Ok(done) => return Ok(done),
                Err(PutFailure::StartOver) if offer.resume => offer.resume = false,
                Err(PutFailure::StartOver) => {
                    return Err(Error::protocol("the server continues although it was told not to"));
                }
                Err(PutFailure::Offer(error)) if offer.is_too_new(&error) => {
                    offer.leave_out_what_is_too_new(tally)?;
                }
                Err(PutFailure::Offer(error) | PutFailure::Other(error)) => return Err(error),
            }
        }
    }

    /// Offers a manifest; the answer comes through the connection.
    fn offer(
        &self,
        r#do: Do,
        offer: &PutOffer,
        wanted: ChunkSize,
    ) -> Result<(Agreed, Grant, Vec<u8>), PutFailure> {
        self.context.observer.set_phase(Phase::Connecting);
        let manifest = &offer.walked.manifest;
        let table = cut(manifest, wanted)?;
        let name =
            manifest.get(EntryIndex(0)).map(|entry| crate::shown(entry.path.top())).unwrap_or_default();
        let header = Header::new(wanted, table.count(), manifest.bytes(), &name);
        let open = Open { place: offer.place, resume: offer.resume, ..self.open(r#do)? };
        let mut agreed = self.agree(open, &header, Some(manifest))?;
        let (grant, grant_json) = read_grant(&mut agreed.reader).map_err(PutFailure::Offer)?;
        self.check_grant(&grant)?;
        Ok((agreed, grant, grant_json))
    }

    /// Asks the server what a put would do.
    fn preview(&self, offer: &mut PutOffer, tally: &mut Tally) -> Result<Done, Error> {
        let manifest = Arc::clone(&offer.walked.manifest);
        let offered = self.offer(Do::Preview, offer, wanted_chunk(&manifest, false));
        let (mut agreed, ..) = offered.map_err(|failure| match failure {
            PutFailure::Offer(Error::Refused(refuse)) if refuse.code == Code::BadRequest => {
                Error::Foreign("the server is too old to say what it would do; without -n it does it".into())
            }
            failure => failure.into(),
        })?;
        let connection = Arc::clone(agreed.reader.connection());
        let mut skipped = vec![None; manifest.len() as usize];
        let mut asked = 0;
        let mut is_answered = false;
        let mut done = loop {
            match agreed.reader.next_control()? {
                Control::Alive => {}
                Control::Ask(entries) if !is_answered => {
                    // Each file once: a server must not have this end read for ever.
                    asked += entries.len() as u64;
                    if entries.is_empty() || asked > u64::from(manifest.len()) {
                        return Err(Error::protocol("a preview asks for more than there is"));
                    }
                    for entry in entries {
                        let content = with_alive(&connection, || {
                            content(&offer.tree, &manifest, entry, &self.context.stop)
                        });
                        connection.send_control(&Control::Content(vec![(entry, content)]))?;
                    }
                }
                Control::Skip(runs) if !is_answered => {
                    for run in runs {
                        let end = run.first.at().saturating_add(run.count as usize);
                        let range = skipped.get_mut(run.first.at()..end);
                        range
                            .ok_or_else(|| Error::protocol("skipped entries that do not exist"))?
                            .fill(Some(run.reason));
                    }
                }
                Control::Need(_) if !is_answered => is_answered = true,
                Control::Done(done) if is_answered => break done,
                Control::Refuse(refuse) => return Err(Error::Refused(refuse)),
                _ => return Err(Error::protocol("a frame that does not belong to a preview")),
            }
        };
        connection.close();
        let is_needed = |index: &EntryIndex| skipped.get(index.at()) == Some(&None);
        let needed = (0..manifest.len()).map(EntryIndex).filter(is_needed);
        let unreadable = if self.compress()?.archive().is_some() {
            offer.tree.unreadable(&manifest, (0..manifest.len()).map(EntryIndex))
        } else {
            offer.tree.unreadable(&manifest, needed.clone())
        };
        let mut needed = needed.collect::<BTreeSet<_>>();
        // What would fail at the other end is among what it skips by policy.
        let fails = done.failed.iter().map(|failed| &failed.path[..]).collect::<HashSet<_>>();
        let stays = |index: u32| {
            manifest.get(EntryIndex(index)).is_some_and(|entry| !fails.contains(entry.path.as_bytes()))
        };
        let stays = (0..).zip(&skipped).filter(|(index, reason)| reason.is_some() && stays(*index));
        let left = stays.clone().filter(|(_, reason)| **reason == Some(SkipReason::Policy));
        tally.note_skipped(stays.clone().count() as u64, left.count() as u64, 0, 0);
        self.check_left(&manifest, &done, |index| {
            skipped.get(index.at()) == Some(&Some(SkipReason::Policy))
        })?;
        let unreadable =
            unreadable.into_iter().map(|Unreadable { entry, code, reason }| (entry, code, reason));
        self.would_fail(unreadable, &manifest, &mut needed, &mut done)?;
        tally.note_dry(&manifest, |index| needed.contains(&index));
        Ok(done)
    }

    /// Checks that nothing was left as it is for a policy that was not asked for. What failed is
    /// among what a server skips so.
    fn check_left(
        &self,
        manifest: &Manifest,
        done: &Done,
        is_left: impl Fn(EntryIndex) -> bool,
    ) -> Result<(), Error> {
        if self.context.options.existing == Existing::Skip {
            return Ok(());
        }
        let failed = done.failed.iter().map(|failed| &failed.path[..]).collect::<HashSet<_>>();
        let unnamed = done.failed_count.saturating_sub(failed.len() as u64);
        let left = manifest
            .iter()
            .filter(|(index, entry)| is_left(*index) && !failed.contains(entry.path.as_bytes()));
        if done.left > 0 || left.count() as u64 > unnamed {
            return Err(Error::protocol(
                "the server left files as they were, which only --existing skip allows",
            ));
        }
        Ok(())
    }

    fn put_attempt(
        &self,
        offer: &mut PutOffer,
        input: &Input,
        tally: &mut Tally,
    ) -> Result<Done, PutFailure> {
        if input.is_spent() {
            return Err(Input::spent().into());
        }
        let manifest = Arc::clone(&offer.walked.manifest);
        let wanted = wanted_chunk(&manifest, !matches!(input, Input::Nothing));
        let (agreed, grant, grant_json) = self.offer(Do::Put, offer, wanted)?;
        let one_chunk = agreed.server.chunk_size().map_err(Error::from)?;
        if one_chunk > wanted {
            return Err(Error::protocol("the server raises OneChunk").into());
        }
        let table = cut(&manifest, one_chunk)?;
        if let Input::Archive { contents, .. } = input
            && !grant.has(Capability::LongPaths)
            && !contents.long_paths().is_empty()
        {
            return Err(Error::failed(Code::Unsupported, TOO_LONG_A_PATH).into());
        }
        if let Input::Archive { contents, .. } = input
            && !grant.has(Capability::Links)
            && !contents.links_beyond_base().is_empty()
        {
            return Err(Error::failed(
                Code::Unsupported,
                format!("{TOO_NEW_A_LINK}; --links skip leaves all links out"),
            )
            .into());
        }
        offer.place = grant.place;
        tally.congestion = agreed.reader.connection().congestion();
        tally.one_chunk = one_chunk.bytes();
        let outgoing = Outgoing {
            tree: Arc::clone(&offer.tree),
            manifest: Arc::clone(&manifest),
            table,
            identities: offer.identities.clone(),
            streams: self.context.options.streams,
            compress: self.compress()?,
            rate_max: self.context.options.bytes_per_second_max,
            keeps_rate: true,
        };
        let transfer = self.agreement(&agreed, &grant, &grant_json, one_chunk).send(outgoing);
        tally.kept = grant.keeps_archive;
        if let Some(read) = input.open()? {
            // Nobody joins this thread: a read of standard input cannot be called back.
            let fed = Arc::clone(&transfer);
            // An archive takes its time in compressing.
            let packed = matches!(input, Input::Archive { .. });
            let feed = move || fed.feed(read, |clocks| if packed { &clocks.cpu } else { &clocks.read });
            if let Err(error) = spawn("input", feed) {
                transfer.fail(refused(error));
            }
        }
        let join = || self.join(&grant);
        let result = transfer.run(agreed.reader, &Opener::Connect(&join));
        tally.note_sent(&transfer, &manifest, &self.context.observer);
        if transfer.must_start_over() {
            return Err(PutFailure::StartOver);
        }
        for &index in &offer.changed {
            // It was brought by an earlier attempt, and may be of the version that was there then.
            if let Some(entry) = manifest.get(index)
                && transfer.proto().is_left_out(index)
            {
                tally.fail(
                    entry.path.as_bytes(),
                    Code::SourceChanged,
                    "the source changed while it was sent",
                );
            }
        }
        let done = result?;
        if done.durability != grant.durability {
            return Err(Error::protocol("the server did something else than it granted").into());
        }
        let left = |index| transfer.proto().skip_reason(index) == Some(SkipReason::Policy);
        self.check_left(&manifest, &done, left)?;
        Ok(done)
    }
}

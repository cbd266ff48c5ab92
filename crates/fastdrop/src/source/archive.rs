//! An archive of what is to be sent, made while it is read.

use crate::codec::archive::{MEMBERS_MAX, Member, MemberKind, TarGzWriter, ZIP_NAME_MAX, ZipWriter};
use crate::codec::decode::bad;
use crate::error::{Error as Refused, reason};
use crate::source::identity::Identities;
use crate::source::reader::unchanged;
use crate::source::tree::SourceTree;
use crate::thread::{refused, spawn};
use fastdrop_proto::fastdp::{
    Archive, Code, Entry, EntryError, EntryKind, Manifest, ManifestBuilder, ManifestError, RelPath,
};
use fastdrop_proto::units::{EntryIndex, Mtime};
use std::fs::File;
use std::io::{BufWriter, Error, PipeReader, Read, Result, Write};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Longest name of an archive without its extension.
const STEM_MAX: usize = 240;

/// The manifest of one archive with `contents` in it; it is called as the
/// topmost of them, if there is only one.
///
/// # Errors
///
/// Names what such an archive cannot carry.
pub(crate) fn offered(contents: &Manifest, kind: Archive) -> std::result::Result<Manifest, Refused> {
    check_carried(contents, kind)?;
    let first = contents.get(EntryIndex(0)).map(|entry| entry.path.top().to_vec()).unwrap_or_default();
    let single = contents.iter().all(|(_, entry)| entry.path.top() == first);
    let stem = if single { &first[..first.len().min(STEM_MAX)] } else { b"archive" };
    let name = [stem, kind.extension().as_bytes()].concat();
    let invalid = |error: ManifestError| Refused::failed(Code::BadRequest, error.to_string());
    let mut builder = ManifestBuilder::new(1);
    let path = RelPath::new(&name).map_err(|error| invalid(EntryError::from(error).into()))?;
    let entry = Entry { path, kind: EntryKind::Stream, mode: 0o644, mtime: Mtime::default() };
    builder.push(&entry).map_err(invalid)?;
    builder.finish().map_err(invalid)
}

/// Refuses what the receiver of such an archive would refuse when all of it has been sent.
fn check_carried(contents: &Manifest, kind: Archive) -> std::result::Result<(), Refused> {
    if contents.len() > MEMBERS_MAX {
        return Err(Refused::failed(
            Code::OverLimit,
            format!("an archive holds at most {MEMBERS_MAX} entries"),
        ));
    }
    let too_long = |entry: &Entry<'_>| {
        let slash = usize::from(entry.kind == EntryKind::Directory);
        kind == Archive::Zip && entry.path.as_bytes().len() + slash > ZIP_NAME_MAX
    };
    match contents.iter().find(|(_, entry)| too_long(entry)) {
        None => Ok(()),
        Some((_, entry)) => {
            let shown = crate::shown(entry.path.as_bytes());
            Err(Refused::failed(
                Code::BadRequest,
                format!("{shown}: this path is too long for a ZIP archive"),
            ))
        }
    }
}

/// An error unless `manifest` is that of one archive.
pub(crate) fn expect_archive(manifest: &Manifest) -> std::result::Result<(), Refused> {
    // A stream comes last: where it is the first, it is the only one.
    let is_stream = manifest.get(EntryIndex(0)).is_some_and(|entry| entry.kind == EntryKind::Stream);
    let wrong = || Refused::failed(Code::BadRequest, "an archive is one stream, and nothing else");
    if is_stream { Ok(()) } else { Err(wrong()) }
}

/// An archive that is read from the thread that makes it.
pub(crate) struct Packed {
    archive: PipeReader,
    /// Until its end.
    maker: Option<JoinHandle<Result<()>>>,
}

impl Packed {
    /// Begins with an archive of `manifest`, whose files are beneath `tree`.
    ///
    /// # Errors
    ///
    /// There is no thread to be had, or no pipe.
    pub(crate) fn new(
        tree: Arc<SourceTree>,
        manifest: Arc<Manifest>,
        kind: Archive,
    ) -> std::result::Result<Self, Refused> {
        let failed = |error: Error| Refused::failed(Code::Internal, format!("making an archive: {error}"));
        let (archive, out) = std::io::pipe().map_err(failed)?;
        let make = move || {
            let identities = Identities::find(&tree, &manifest);
            pack(&tree, &manifest, &identities, kind, BufWriter::with_capacity(64 << 10, out))
        };
        Ok(Self { archive, maker: Some(spawn("archive", make).map_err(refused)?) })
    }
}

impl Read for Packed {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let count = self.archive.read(buffer)?;
        // Its end is only the end if all went well.
        if count == 0
            && !buffer.is_empty()
            && let Some(maker) = self.maker.take()
        {
            maker.join().unwrap_or_else(|_| Err(bad("making the archive failed")))?;
        }
        Ok(count)
    }
}

fn pack(
    tree: &SourceTree,
    manifest: &Manifest,
    identities: &Identities,
    kind: Archive,
    out: impl Write,
) -> Result<()> {
    match kind {
        Archive::Zip => {
            let mut archive = ZipWriter::new(out);
            add_all(tree, manifest, identities, &mut |member, content| archive.add(member, content))?;
            archive.finish()
        }
        Archive::TarGz => {
            let mut archive = TarGzWriter::new(out);
            add_all(tree, manifest, identities, &mut |member, content| archive.add(member, content))?;
            archive.finish()
        }
    }
}

fn add_all(
    tree: &SourceTree,
    manifest: &Manifest,
    identities: &Identities,
    add: &mut dyn FnMut(&Member, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    for (index, entry) in manifest.iter() {
        let shown = || crate::shown(entry.path.as_bytes());
        let system = |errno| Error::other(format!("{}: {}", shown(), reason(errno)));
        let changed = || Error::other(format!("{}: the source changed while it was sent", shown()));
        let (path, mtime, mode) = (entry.path.as_bytes().to_vec(), entry.mtime, entry.mode);
        let member = |kind| Member { path, kind, mtime, mode };
        match entry.kind {
            EntryKind::Directory => add(&member(MemberKind::Directory), &mut std::io::empty())?,
            EntryKind::Link { target } => {
                add(&member(MemberKind::Link(target.to_vec())), &mut std::io::empty())?;
            }
            EntryKind::File { size } => {
                let (root, path) = tree.locate(entry.path).ok_or_else(changed)?;
                let mut file = File::from(root.open_file(&path).map_err(system)?);
                let same = |file: &File| {
                    let stat = rustix::fs::fstat(file).map_err(system)?;
                    unchanged(index, &entry, identities, &stat).map_err(|_| changed())
                };
                same(&file)?;
                add(&member(MemberKind::File(size)), &mut file).map_err(|error| match error.kind() {
                    std::io::ErrorKind::UnexpectedEof => changed(),
                    _ => error,
                })?;
                same(&file)?;
            }
            EntryKind::Stream => return Err(bad("a stream cannot be in an archive")),
        }
    }
    Ok(())
}

//! ZIP archives, read without trust.

use crate::codec::archive::{Content, Exactly, Member, MemberKind, TARGET_MAX, bad, zip_time};
use crate::codec::decode::fill;
use std::fs::File;
use std::io::{BufReader, Error, Read, Result, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes that are read and written at once.
const STEP: usize = 256 << 10;
/// Bytes of a directory: some for one long name, and so many for each of many.
const DIRECTORY_MAX: u64 = 256 << 10;
const DIRECTORY_PER_MEMBER: u64 = 256;
fn invalid(error: zip::result::ZipError) -> Error {
    match error {
        zip::result::ZipError::Io(error) => error,
        error => bad(&error.to_string()),
    }
}

/// Copies exactly `size` bytes.
pub(super) fn copy(source: &mut dyn Read, size: u64, out: &mut dyn Write) -> Result<()> {
    let mut exact = Exactly::new(source, size);
    let mut buffer = vec![0; STEP];
    loop {
        let count = fill(&mut exact, &mut buffer)?;
        if count == 0 {
            return exact.expect_done();
        }
        out.write_all(&buffer[..count])?;
    }
}

/// Gives `each` the members of a ZIP archive, at most `members_max`, in the order of its directory.
pub(crate) fn read_zip<E: From<Error>>(
    mut file: File,
    members_max: u32,
    mut each: impl FnMut(&Member, &mut Content<'_>) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    // Before anybody allocates what it announces.
    let end = zip_end(&mut file)?.ok_or_else(|| bad("a ZIP archive without an end"))?;
    if end.members > u64::from(members_max)
        || end.directory > DIRECTORY_MAX + u64::from(members_max) * DIRECTORY_PER_MEMBER
    {
        return Err(bad("too many files in a ZIP archive").into());
    }
    let len = file.metadata()?.len();
    let local = file.try_clone()?;
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(invalid)?;
    if archive.offset() != 0 {
        return Err(bad("something before the beginning of a ZIP archive").into());
    }
    if archive.len() as u64 != end.members {
        // Of two files of one name, one would be left out.
        return Err(bad("two files of one name in a ZIP archive").into());
    }
    let mut compressed = 0_u64;
    for at in 0..archive.len() {
        let mut entry = archive.by_index(at).map_err(invalid)?;
        if entry.encrypted() {
            return Err(bad("an encrypted file in a ZIP archive").into());
        }
        compressed = compressed.saturating_add(entry.compressed_size());
        if compressed > len {
            return Err(bad("files that overlap in a ZIP archive").into());
        }
        expect_same_name(&local, entry.header_start(), entry.name_raw())?;
        let mut path = entry.name_raw().to_vec();
        let size = entry.size();
        // Regular files, as far as it says at all.
        let is_file = entry.unix_mode().is_none_or(|mode| matches!(mode & 0o170_000, 0 | 0o100_000));
        // A backslash at the end is a part of the name.
        let kind = if path.ends_with(b"/") {
            path.pop();
            MemberKind::Directory
        } else if entry.is_symlink() {
            let mut target = Vec::new();
            (&mut entry).take(TARGET_MAX + 1).read_to_end(&mut target)?;
            if target.len() as u64 != size || size > TARGET_MAX {
                return Err(bad("a link in a ZIP archive whose target is too long, or another").into());
            }
            MemberKind::Link(target)
        } else if is_file {
            MemberKind::File(size)
        } else {
            return Err(bad("something else than a file, folder or link in a ZIP archive").into());
        };
        let mtime = zip_time::read(entry.extra_data_fields())?;
        let default = if kind == MemberKind::Directory { 0o755 } else { 0o644 };
        let mode = entry.unix_mode().map_or(default, |mode| mode & 0o777);
        let member = Member { path, kind, mtime, mode };
        // The archive's checksum is compared at the entry's end.
        let mut content = Content::new(&mut entry, member.size());
        each(&member, &mut content)?;
        content.check()?;
    }
    Ok(())
}

/// A file's name stands before its content too: readers that go by the one and by the
/// other must not find different files.
fn expect_same_name(file: &File, start: u64, name: &[u8]) -> Result<()> {
    let mut header = [0; 30];
    file.read_exact_at(&mut header, start)?;
    let mut local = vec![0; usize::from(u16::from_le_bytes([header[26], header[27]]))];
    file.read_exact_at(&mut local, start + 30)?;
    if local == name { Ok(()) } else { Err(bad("a ZIP archive that says two names of a file")) }
}

/// Whether `file` ends as a ZIP archive does.
pub(crate) fn is_whole_zip(file: &mut File) -> Result<bool> {
    Ok(zip_end(file)?.is_some())
}

/// The end of an archive without its comment.
const END: usize = 22;
/// What stands before it in one of 65,535 members and more, or
/// more than 4 GiB: where the real end is.
const LOCATOR: usize = 20;
/// The real end.
const END_64: usize = 56;
/// Within it: how many members there are, and how long the central directory is.
const END_64_MEMBERS: Range<usize> = 32..40;
const END_64_DIRECTORY: Range<usize> = 40..48;

struct ZipEnd {
    members: u64,
    /// Bytes of the directory.
    directory: u64,
}

/// The end of a ZIP archive, if it is where it has to be.
fn zip_end(file: &mut File) -> Result<Option<ZipEnd>> {
    let len = file.seek(SeekFrom::End(0))?;
    // There may be a comment behind it, but not a long one where a program made the archive.
    let back = len.min(4096);
    let mut tail = vec![0; back as usize];
    file.read_exact_at(&mut tail, len - back)?;
    file.seek(SeekFrom::Start(0))?;
    for (at, end) in tail.windows(END).enumerate().rev() {
        let (magic, fields) = end.split_at(4);
        let [_, _, _, _, _, _, n0, n1, d0, d1, d2, d3, _, _, _, _, c0, c1] = *fields else { continue };
        let comment = usize::from(u16::from_le_bytes([c0, c1]));
        if magic == b"PK\x05\x06" && at + END + comment == tail.len() {
            let members = u16::from_le_bytes([n0, n1]);
            let directory = u32::from_le_bytes([d0, d1, d2, d3]);
            let locator = at.checked_sub(LOCATOR).and_then(|from| tail.get(from..at));
            if let Some([b'P', b'K', 6, 7, _, _, _, _, place @ .., _, _, _, _]) = locator {
                return end_64(file, place);
            }
            return Ok(Some(ZipEnd { members: members.into(), directory: directory.into() }));
        }
    }
    Ok(None)
}

fn end_64(file: &File, place: &[u8]) -> Result<Option<ZipEnd>> {
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
    let mut end = [0; END_64];
    file.read_exact_at(&mut end, number(place).min(i64::MAX as u64))?;
    let known = end.starts_with(b"PK\x06\x06");
    Ok(known
        .then(|| ZipEnd { members: number(&end[END_64_MEMBERS]), directory: number(&end[END_64_DIRECTORY]) }))
}

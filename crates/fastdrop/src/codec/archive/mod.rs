//! Archives: gzipped tar and ZIP, written member by member, and read with bounds and without trust.

mod tar_gz;
mod zip;
mod zip_time;
mod zip_writer;

pub(crate) use tar_gz::{TarGzWriter, read_tar_gz};
pub(crate) use zip::{is_whole_zip, read_zip};
pub(crate) use zip_writer::{NAME_MAX as ZIP_NAME_MAX, ZipWriter, write_one_zip};

use crate::codec::decode::bad;
use fastdrop_proto::units::Mtime;
use std::io::{Error, ErrorKind, Read, Result};

/// Members of an archive that is unpacked.
pub(crate) const MEMBERS_MAX: u32 = 1_000_000;
/// Longest target of a link.
const TARGET_MAX: u64 = 4095;

/// One file, folder or link in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// As it stands there; without the slash that may end a folder's.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: MemberKind,
    pub(crate) mtime: Mtime,
    /// Nine bits.
    pub(crate) mode: u32,
}

/// What a member is. Everything else is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MemberKind {
    /// Of so many bytes.
    File(u64),
    Directory,
    /// To there.
    Link(Vec<u8>),
}

impl Member {
    /// Bytes of its content.
    pub(crate) fn size(&self) -> u64 {
        match self.kind {
            MemberKind::File(size) => size,
            MemberKind::Directory | MemberKind::Link(_) => 0,
        }
    }
}

/// The content of a member: whoever begins to read it has to find what was announced.
pub(crate) struct Content<'a> {
    reader: &'a mut dyn Read,
    size: u64,
    count: u64,
    begun: bool,
}

impl<'a> Content<'a> {
    fn new(reader: &'a mut dyn Read, size: u64) -> Self {
        Self { reader, size, count: 0, begun: false }
    }

    fn check(&self) -> Result<()> {
        if self.begun && self.count != self.size {
            return Err(bad("a file in the archive that has another size than it says"));
        }
        Ok(())
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        self.begun = true;
        let count = self.reader.read(buffer)?;
        self.count += count as u64;
        if self.count > self.size {
            return Err(bad("a file in the archive that is longer than it says"));
        }
        Ok(count)
    }
}

/// For archives that hold one file, whatever it is called: gives `content` what is in it.
pub(crate) fn one_file<E: From<Error>>(
    content: impl FnOnce(&mut dyn Read) -> std::result::Result<(), E>,
    read: impl FnOnce(
        &mut dyn FnMut(&Member, &mut Content<'_>) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let mut content = Some(content);
    let mut begun = false;
    read(&mut |member, bytes| {
        if !matches!(member.kind, MemberKind::File(_)) {
            return Err(bad("something else than a file in an archive").into());
        }
        let content = content.take().ok_or_else(|| bad("more than one file in an archive"))?;
        begun = true;
        content(bytes)
    })?;
    if begun { Ok(()) } else { Err(bad("an archive without a file").into()) }
}

/// The first bytes of a source, which must have so many.
pub(crate) struct Exactly<'a> {
    source: &'a mut dyn Read,
    left: u64,
}

impl<'a> Exactly<'a> {
    pub(crate) fn new(source: &'a mut dyn Read, size: u64) -> Self {
        Self { source, left: size }
    }

    pub(crate) fn expect_done(&self) -> Result<()> {
        if self.left == 0 { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }
}

impl Read for Exactly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.source.read(&mut buffer[..most])?;
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is in the one file of an archive.
    fn content_of(result: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        result(&mut out).map(|()| out)
    }

    fn untar(archive: &[u8]) -> Result<Vec<u8>> {
        content_of(|out| {
            one_file::<Error>(
                |reader| reader.read_to_end(out).map(|_| ()),
                |each| match read_tar_gz(archive, each)? {
                    [] => Ok(()),
                    _ => Err(bad("bytes behind it")),
                },
            )
        })
    }

    /// A gzipped archive of entries of these kinds, each with `content` if it is a file.
    fn tarred(kinds: &[tar::EntryType], content: &[u8]) -> Vec<u8> {
        let mut tar =
            tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        for (at, &kind) in kinds.iter().enumerate() {
            let mut header = tar::Header::new_ustar();
            let body = if kind.is_file() { content } else { &[] };
            header.set_entry_type(kind);
            header.set_size(body.len() as u64);
            header.set_path(format!("entry-{at}")).unwrap();
            if kind.is_symlink() || kind.is_hard_link() {
                header.set_link_name("/etc/passwd").unwrap();
            }
            header.set_cksum();
            tar.append(&header, body).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap()
    }

    #[test]
    fn cases_45_48_49_50_and_52_a_tar_archive_holds_one_plain_file_or_is_refused() {
        use tar::EntryType::{Char, Directory, Fifo, Link, Regular, Symlink, XHeader};
        let good = tarred(&[Regular], b"content");
        assert_eq!(untar(&good).unwrap(), b"content");
        for kinds in [
            &[][..],
            &[Symlink],
            &[Symlink, Regular],
            &[Link],
            &[Char],
            &[Fifo],
            &[Directory, Regular],
            &[Regular, Regular],
            &[Regular, Symlink],
        ] {
            untar(&tarred(kinds, b"content")).expect_err(&format!("{kinds:?}"));
        }
        for cut in 0..good.len() {
            assert!(untar(&good[..cut]).is_err(), "{cut} of {} bytes", good.len());
        }
        untar(&[&good[..], b"more"].concat()).unwrap_err();
        // A size that contradicts the header that follows it.
        let mut tar =
            tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        for (kind, body) in [(XHeader, &b"12 size=9999\n"[..]), (Regular, b"content")] {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_size(body.len() as u64);
            header.set_path("x").unwrap();
            header.set_cksum();
            tar.append(&header, body).unwrap();
        }
        untar(&tar.into_inner().unwrap().finish().unwrap()).unwrap_err();
    }

    fn unzip(archive: &[u8]) -> Result<Vec<u8>> {
        use std::io::Write;
        let mut file = tempfile::tempfile()?;
        file.write_all(archive)?;
        content_of(|out| {
            one_file::<Error>(|reader| reader.read_to_end(out).map(|_| ()), |each| read_zip(file, 1, each))
        })
    }

    /// An archive of files with these names.
    fn zipped(names: &[&str], content: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut zip = ::zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for name in names {
            zip.start_file(*name, ::zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(content).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    #[test]
    fn cases_45_48_50_51_and_52_a_zip_archive_holds_one_plain_file_or_is_refused() {
        let content = b"content ".repeat(50);
        let good = zipped(&["../../x"], &content);
        assert_eq!(unzip(&good).unwrap(), content);
        unzip(&zipped(&[], &content)).unwrap_err();
        unzip(&zipped(&["a", "b"], &content)).unwrap_err();
        unzip(&zipped(&["folder/"], b"")).unwrap_err();
        for cut in 0..good.len() {
            assert!(unzip(&good[..cut]).is_err(), "{cut} of {} bytes", good.len());
        }
        unzip(&[b"before", &good[..]].concat()).unwrap_err();
        unzip(&[&good[..], b"behind"].concat()).unwrap_err();
        // The directory says another size than the entry has, and then ten thousand entries.
        let directory = good.windows(4).rposition(|window| window == b"PK\x01\x02").unwrap();
        let mut lying = good.clone();
        lying[directory + 24] ^= 1;
        unzip(&lying).unwrap_err();
        let mut many = good.clone();
        let end = good.len() - 22;
        many[end + 8..end + 12].copy_from_slice(&[0x10, 0x27, 0x10, 0x27]);
        unzip(&many).unwrap_err();
        for at in 0..good.len() {
            let mut flipped = good.clone();
            flipped[at] ^= 0x41;
            // Either it is noticed, or it was in a field that decides
            // nothing; the bytes are never others.
            if let Ok(found) = unzip(&flipped) {
                assert_eq!(found, content, "byte {at}");
            }
        }
    }
}

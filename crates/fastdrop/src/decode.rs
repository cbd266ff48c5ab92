//! Decoding what peers compressed, with bounds on what that may cost.

use std::fs::File;
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Seek, SeekFrom};

/// Log of the largest Zstandard window that is taken: 8 MiB, what every decoder has to support (RFC 8878, section 3.1.1.1.2).
const WINDOW_LOG_MAX: u32 = 23;

/// Reads one Zstandard frame; at its end the rest of `reader` is where the frame ended.
pub(crate) fn zstd_frame<R: BufRead>(reader: R) -> Result<zstd::Decoder<'static, R>> {
    let mut decoder = zstd::Decoder::with_buffer(reader)?.single_frame();
    decoder.window_log_max(WINDOW_LOG_MAX)?;
    Ok(decoder)
}

/// Decodes a frame that is all of `frame`, and exactly as long as `out`.
pub(crate) fn zstd_exact(
    decoder: &mut zstd::bulk::Decompressor<'static>,
    frame: &[u8],
    out: &mut [u8],
) -> Result<()> {
    // The decoder would go on with the next frame.
    let one = zstd::zstd_safe::find_frame_compressed_size(frame).is_ok_and(|len| len == frame.len());
    match decoder.decompress_to_buffer(frame, out) {
        Ok(len) if one && len == out.len() => Ok(()),
        Ok(_) => Err(bad("a Zstandard frame of another length")),
        Err(error) => Err(bad(&error.to_string())),
    }
}

/// Fills `buffer` as far as `reader` goes; less only at its end.
pub(crate) fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// An error unless `reader` has ended.
pub(crate) fn expect_end(reader: &mut impl Read) -> Result<()> {
    match fill(reader, &mut [0])? {
        0 => Ok(()),
        _ => Err(bad("bytes behind the compressed data")),
    }
}

fn bad(why: &str) -> Error {
    Error::new(ErrorKind::InvalidData, why)
}

/// Headers of a tar archive before its one file, of the kinds that only describe it.
const TAR_EXTRAS_MAX: usize = 16;
/// Bytes of each of them.
const TAR_EXTRA_MAX: u64 = 1 << 20;
/// Zeros that may follow a tar archive: writers fill up to a block of 10 KiB, or of as much as a tape likes.
const TAR_PADDING_MAX: u64 = 1 << 20;

/// Gives `content` the one regular file in a gzipped tar archive, whatever its name says.
pub(crate) fn tar_gz<R: BufRead, E: From<Error>>(
    reader: R,
    content: impl FnOnce(&mut dyn Read) -> std::result::Result<(), E>,
) -> std::result::Result<R, E> {
    let mut archive = tar::Archive::new(flate2::bufread::GzDecoder::new(reader));
    let mut content = Some(content);
    // Raw: what describes the entry is skipped here, where its size is bounded.
    for (number, entry) in archive.entries()?.raw(true).enumerate() {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if kind.is_pax_local_extensions() || kind.is_pax_global_extensions() || kind.is_gnu_longname() {
            if number >= TAR_EXTRAS_MAX || entry.size() > TAR_EXTRA_MAX {
                return Err(bad("too many or too long headers in a tar archive").into());
            }
            let mut text = vec![0; entry.size() as usize];
            let count = fill(&mut entry, &mut text)?;
            text.truncate(count);
            // It would contradict the header that follows.
            if !kind.is_gnu_longname() && text.windows(6).any(|window| window == b" size=") {
                return Err(bad("a size outside of its header in a tar archive").into());
            }
        } else if !kind.is_file() {
            return Err(bad("something else than a file in a tar archive").into());
        } else {
            let content = content.take().ok_or_else(|| bad("more than one file in a tar archive"))?;
            let size = entry.size();
            let mut counted = Counted { reader: &mut entry, count: 0 };
            content(&mut counted)?;
            if counted.count != size {
                return Err(bad("a tar archive that ends too early").into());
            }
        }
    }
    if content.is_some() {
        return Err(bad("a tar archive without a file").into());
    }
    // To the end of the gzip member, whose checksum stands there.
    let mut decoder = archive.into_inner();
    let mut rest = [0; 4096];
    let mut padding = 0;
    loop {
        let count = fill(&mut decoder, &mut rest)?;
        padding += count as u64;
        if count == 0 {
            return Ok(decoder.into_inner());
        }
        if padding > TAR_PADDING_MAX || rest.iter().take(count).any(|&byte| byte != 0) {
            return Err(bad("something behind the end of a tar archive").into());
        }
    }
}

struct Counted<R> {
    reader: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let count = self.reader.read(buffer)?;
        self.count += count as u64;
        Ok(count)
    }
}

/// The end of a ZIP archive without its comment.
const ZIP_END: usize = 22;
/// The longest directory of one entry.
const ZIP_DIRECTORY_MAX: u32 = 256 << 10;

/// Gives `content` the one file in a ZIP archive, whatever its name says.
pub(crate) fn zip<E: From<Error>>(
    mut file: File,
    content: impl FnOnce(&mut dyn Read) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    expect_one_entry(&mut file)?;
    let invalid = |error: zip::result::ZipError| bad(&error.to_string());
    let mut archive = zip::ZipArchive::new(BufReader::new(file)).map_err(invalid)?;
    if archive.len() != 1 {
        return Err(bad("not exactly one file in a ZIP archive").into());
    }
    if archive.offset() != 0 {
        return Err(bad("something before the beginning of a ZIP archive").into());
    }
    let mut entry = archive.by_index(0).map_err(invalid)?;
    if !entry.is_file() || entry.encrypted() {
        return Err(bad("something else than a plain file in a ZIP archive").into());
    }
    let size = entry.size();
    // The archive's checksum is compared at the entry's end.
    let mut counted = Counted { reader: (&mut entry).take(size.saturating_add(1)), count: 0 };
    content(&mut counted)?;
    if counted.count != size {
        return Err(bad("an entry of a ZIP archive that has another size than it says").into());
    }
    Ok(())
}

/// Looks at the end of a ZIP archive before anybody allocates what it announces.
fn expect_one_entry(file: &mut File) -> Result<()> {
    let end = zip_end(file)?.ok_or_else(|| bad("a ZIP archive without an end"))?;
    if end.entries != 1 || end.directory > ZIP_DIRECTORY_MAX {
        return Err(bad("not exactly one file in a ZIP archive"));
    }
    Ok(())
}

/// Whether `file` ends as a ZIP archive does.
pub(crate) fn is_whole_zip(file: &mut File) -> Result<bool> {
    Ok(zip_end(file)?.is_some())
}

struct ZipEnd {
    entries: u16,
    directory: u32,
}

/// The end of a ZIP archive, if it is where it has to be.
fn zip_end(file: &mut File) -> Result<Option<ZipEnd>> {
    let len = file.seek(SeekFrom::End(0))?;
    // There may be a comment behind it, but not a long one where a program made the archive.
    let back = len.min(4096);
    file.seek(SeekFrom::Start(len - back))?;
    let mut tail = vec![0; back as usize];
    file.read_exact(&mut tail)?;
    file.seek(SeekFrom::Start(0))?;
    for (at, end) in tail.windows(ZIP_END).enumerate().rev() {
        let (magic, fields) = end.split_at(4);
        let [_, _, _, _, _, _, n0, n1, d0, d1, d2, d3, _, _, _, _, c0, c1] = *fields else { continue };
        let comment = usize::from(u16::from_le_bytes([c0, c1]));
        if magic == b"PK\x05\x06" && at + ZIP_END + comment == tail.len() {
            let entries = u16::from_le_bytes([n0, n1]);
            return Ok(Some(ZipEnd { entries, directory: u32::from_le_bytes([d0, d1, d2, d3]) }));
        }
    }
    Ok(None)
}

/// Why something could not be decoded.
#[derive(Debug)]
pub(crate) enum DecodeError {
    /// It is not what it should be.
    Bad(Error),
    /// What was decoded is too much, or could not be written.
    Failed(crate::error::Error),
}

impl From<Error> for DecodeError {
    fn from(error: Error) -> Self {
        DecodeError::Bad(error)
    }
}

impl From<DecodeError> for crate::error::Error {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Bad(error) => {
                Self::with_code(422, format!("the payload cannot be decoded: {error}"))
            }
            DecodeError::Failed(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_44_a_window_of_2_gib_is_refused() {
        // Magic, a frame header with neither content size nor checksum, and a window descriptor of 2^31.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00];
        let mut decoder = zstd_frame(&frame[..]).unwrap();
        let error = fill(&mut decoder, &mut [0; 16]).unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");
        // An 8 MiB window is fine.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 13 << 3, 0x01, 0x00, 0x00];
        assert_eq!(fill(&mut zstd_frame(&frame[..]).unwrap(), &mut [0; 16]).unwrap(), 0);
    }

    #[test]
    fn cases_45_and_46_what_is_cut_corrupt_or_followed_by_more_is_an_error() {
        let text = b"what is cut is not whole ".repeat(1000);
        let good = zstd::bulk::compress(&text, 3).unwrap();
        let decode = |bytes: &[u8]| -> Result<Vec<u8>> {
            let mut decoder = zstd_frame(bytes)?;
            let mut out = vec![0; text.len() + 1];
            let count = fill(&mut decoder, &mut out)?;
            out.truncate(count);
            expect_end(decoder.get_mut())?;
            Ok(out)
        };
        assert_eq!(decode(&good).unwrap(), text);
        for cut in 1..good.len() {
            assert!(decode(&good[..cut]).is_err(), "{cut} of {} bytes", good.len());
        }
        decode(&[&good[..], b"x"].concat()).unwrap_err();
        decode(b"no frame at all").unwrap_err();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x55;
            // Either it is noticed, or it decodes to something: it never panics.
            let _ = decode(&bad);
        }
    }

    /// What is in the one file of an archive.
    fn content_of(result: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        result(&mut out).map(|()| out)
    }

    fn untar(archive: &[u8]) -> Result<Vec<u8>> {
        content_of(|out| {
            let rest = tar_gz::<_, Error>(archive, |reader| reader.read_to_end(out).map(|_| ()))?;
            if rest.is_empty() { Ok(()) } else { Err(bad("bytes behind it")) }
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
        content_of(|out| zip::<Error>(file, |reader| reader.read_to_end(out).map(|_| ())))
    }

    /// An archive of files with these names.
    fn zipped(names: &[&str], content: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for name in names {
            zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
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
        let end = good.len() - ZIP_END;
        many[end + 8..end + 12].copy_from_slice(&[0x10, 0x27, 0x10, 0x27]);
        unzip(&many).unwrap_err();
        for at in 0..good.len() {
            let mut flipped = good.clone();
            flipped[at] ^= 0x41;
            // Either it is noticed, or it was in a field that decides nothing; the bytes are never others.
            if let Ok(found) = unzip(&flipped) {
                assert_eq!(found, content, "byte {at}");
            }
        }
    }
}

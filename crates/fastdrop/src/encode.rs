//! Making payloads of the older protocols: whole files, compressed.

use std::fs::File;
use std::io::{BufReader, Error, Read, Result, Write};

/// Level of Zstandard: the fastest that still finds most.
pub(crate) const ZSTD_LEVEL: i32 = 1;
/// Bytes that are read and written at once.
const STEP: usize = 256 << 10;

/// What the one member of an archive is called and when it was changed.
#[derive(Debug, Clone)]
pub(crate) struct Member<'a> {
    pub(crate) name: &'a str,
    /// Seconds since 1970; a ZIP archive goes without.
    pub(crate) mtime: u64,
    pub(crate) mode: u32,
}

/// One Zstandard frame with its content size in its header.
pub(crate) fn zstd(source: &mut dyn Read, size: u64, out: impl Write) -> Result<()> {
    let mut encoder = zstd::Encoder::new(out, ZSTD_LEVEL)?;
    encoder.set_pledged_src_size(Some(size))?;
    encoder.include_checksum(true)?;
    encoder.include_contentsize(true)?;
    copy(source, size, &mut encoder)?;
    encoder.finish()?.flush()
}

/// A gzip member with a tar archive of one file.
pub(crate) fn tar_gz(source: &mut dyn Read, size: u64, member: &Member<'_>, out: impl Write) -> Result<()> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(out, flate2::Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(member.mode);
    header.set_mtime(member.mtime);
    header.set_entry_type(tar::EntryType::Regular);
    let mut exact = Exactly { source, left: size };
    tar.append_data(&mut header, member.name, BufReader::with_capacity(STEP, &mut exact))?;
    exact.expect_done()?;
    tar.into_inner()?.finish()?.flush()
}

/// A ZIP archive with one file.
pub(crate) fn zip(source: &mut dyn Read, size: u64, member: &Member<'_>, out: File) -> Result<()> {
    let invalid = |error: zip::result::ZipError| Error::other(error.to_string());
    let options = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Deflated)
        .compression_level(Some(1))
        .large_file(size >= u64::from(u32::MAX))
        .unix_permissions(member.mode);
    let mut zip = zip::ZipWriter::new(out);
    zip.start_file(member.name, options).map_err(invalid)?;
    copy(source, size, &mut zip)?;
    zip.finish().map_err(invalid)?.flush()
}

/// Copies exactly `size` bytes.
fn copy(source: &mut dyn Read, size: u64, out: &mut dyn Write) -> Result<()> {
    let mut exact = Exactly { source, left: size };
    let mut buffer = vec![0; STEP];
    loop {
        let count = crate::decode::fill(&mut exact, &mut buffer)?;
        if count == 0 {
            return exact.expect_done();
        }
        out.write_all(&buffer[..count])?;
    }
}

/// The first bytes of a source, which must have so many.
struct Exactly<'a> {
    source: &'a mut dyn Read,
    left: u64,
}

impl Exactly<'_> {
    fn expect_done(&self) -> Result<()> {
        if self.left == 0 { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
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

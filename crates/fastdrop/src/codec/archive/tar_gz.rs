//! Gzipped tar archives: ustar with GNU's long names, and pax headers where a time has fractions.

use crate::codec::archive::{Content, Exactly, Member, MemberKind, TARGET_MAX, bad};
use crate::codec::decode::fill;
use crate::codec::deflate::GzipWriter;
use fastdrop_proto::units::Mtime;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Error, Read, Result, Write};
use std::os::unix::ffi::OsStrExt;
use tar::EntryType;

/// Headers before a member, of the kinds that only describe it.
const EXTRAS_MAX: usize = 16;
/// Bytes of each of them.
const EXTRA_MAX: u64 = 1 << 20;
/// Bytes of all of them in one archive.
const EXTRAS_BYTES_MAX: u64 = 256 << 20;
/// Zeros that may follow the end: writers fill up to a block of 10
/// KiB, or of as much as a tape likes.
const PADDING_MAX: u64 = 1 << 20;
/// Bytes that are read at once from a file.
const STEP: usize = 256 << 10;

/// Writes an archive through what compresses it.
pub(crate) struct TarGzWriter<Z: Write> {
    tar: tar::Builder<Z>,
}

impl<W: Write> TarGzWriter<GzEncoder<W>> {
    pub(crate) fn new(out: W) -> Self {
        Self::through(GzEncoder::new(out, flate2::Compression::fast()))
    }

    pub(crate) fn finish(self) -> Result<()> {
        self.tar.into_inner()?.finish()?.flush()
    }
}

impl<W: Write> TarGzWriter<GzipWriter<W>> {
    /// As [`TarGzWriter::new`], compressed by so many threads.
    pub(crate) fn with_threads(out: W, threads: usize) -> Result<Self> {
        GzipWriter::new(out, threads).map(Self::through)
    }

    pub(crate) fn finish(self) -> Result<()> {
        self.tar.into_inner()?.finish()?.flush()
    }
}

impl<Z: Write> TarGzWriter<Z> {
    fn through(gzip: Z) -> Self {
        Self { tar: tar::Builder::new(gzip) }
    }

    /// Adds a member; `content` gives the bytes of a file.
    pub(crate) fn add(&mut self, member: &Member, content: &mut dyn Read) -> Result<()> {
        let Mtime { seconds, nanos } = member.mtime;
        // A header has no place for fractions, nor for what was before 1970.
        if nanos != 0 || seconds < 0 {
            let time = match (seconds, nanos) {
                (0.., _) | (_, 0) => format!("{seconds}.{nanos:09}"),
                // -1.25 is 2 seconds before 1970 and 0.75 after that.
                _ if seconds == -1 => format!("-0.{:09}", 1_000_000_000 - nanos),
                _ => format!("{}.{:09}", seconds + 1, 1_000_000_000 - nanos),
            };
            self.tar.append_pax_extensions([("mtime", time.as_bytes())])?;
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(member.size());
        header.set_mode(member.mode);
        header.set_mtime(u64::try_from(seconds).unwrap_or(0));
        let path = OsStr::from_bytes(&member.path);
        match &member.kind {
            MemberKind::Directory => {
                header.set_entry_type(EntryType::Directory);
                self.tar.append_data(&mut header, path, std::io::empty())
            }
            MemberKind::Link(target) => {
                header.set_entry_type(EntryType::Symlink);
                // As it is: `append_link` would make `a/b` of `a//b` and of `a/./b`.
                if header.set_link_name_literal(target).is_err() {
                    self.append_long_target(target)?;
                }
                self.tar.append_data(&mut header, path, std::io::empty())
            }
            MemberKind::File(size) => {
                header.set_entry_type(EntryType::Regular);
                let mut exact = Exactly::new(content, *size);
                self.tar.append_data(&mut header, path, BufReader::with_capacity(STEP, &mut exact))?;
                exact.expect_done()
            }
        }
    }

    /// Adds GNU's header for the target of the link that follows,
    /// which is too long for that link's own.
    fn append_long_target(&mut self, target: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_path("@LongLink")?;
        header.set_mode(0o644);
        header.set_entry_type(EntryType::GNULongLink);
        header.set_size(target.len() as u64 + 1);
        header.set_cksum();
        self.tar.append(&header, target.chain(&[0][..]))
    }
}

/// What stands before a member.
#[derive(Default)]
struct Extras {
    count: usize,
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    mtime: Option<Mtime>,
    size: Option<u64>,
}

impl Extras {
    fn take(&mut self, kind: EntryType, entry: &mut impl Read, size: u64) -> Result<()> {
        self.count += 1;
        if self.count > EXTRAS_MAX || size > EXTRA_MAX {
            return Err(bad("too many or too long headers in a tar archive"));
        }
        let mut text = vec![0; size as usize];
        let count = fill(entry, &mut text)?;
        if count as u64 != size {
            return Err(bad("a tar archive that ends too early"));
        }
        if kind.is_gnu_longname() || kind.is_gnu_longlink() {
            let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
            text.truncate(end);
            return set(if kind.is_gnu_longname() { &mut self.path } else { &mut self.target }, text);
        }
        for record in tar::PaxExtensions::new(&text) {
            let record = record?;
            let value = record.value_bytes();
            match (record.key_bytes(), kind.is_pax_global_extensions()) {
                (b"path" | b"linkpath" | b"mtime" | b"size", true) => {
                    return Err(bad("a tar archive that says the same of all its files"));
                }
                (b"path", _) => set(&mut self.path, value.to_vec())?,
                (b"linkpath", _) => set(&mut self.target, value.to_vec())?,
                (b"mtime", _) => set(&mut self.mtime, parse_time(value)?)?,
                (b"size", _) => set(&mut self.size, parse_number(value)?)?,
                // Owners, comments and the like are not wanted.
                _ => {}
            }
        }
        Ok(())
    }
}

/// Says something once: twice would contradict itself.
fn set<T>(place: &mut Option<T>, value: T) -> Result<()> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(bad("a tar archive that says something of a file twice")),
    }
}

fn parse_number<T: std::str::FromStr>(text: &[u8]) -> Result<T> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(text).ok().filter(|_| digits);
    text.and_then(|text| text.parse().ok()).ok_or_else(|| bad("a pax header that is no number"))
}

/// Seconds with a fraction, perhaps before 1970.
fn parse_time(text: &[u8]) -> Result<Mtime> {
    let (negative, text) = text.strip_prefix(b"-").map_or((false, text), |rest| (true, rest));
    let dot = text.iter().position(|&byte| byte == b'.');
    let (whole, fraction) = dot.map_or((text, &b""[..]), |at| (&text[..at], &text[at + 1..]));
    let seconds: i64 = parse_number(whole)?;
    let digits: Vec<u8> =
        fraction.iter().copied().chain(std::iter::repeat(b'0')).take(fraction.len().clamp(9, 30)).collect();
    if !digits.iter().all(u8::is_ascii_digit) {
        return Err(bad("a pax header that is no number"));
    }
    let nanos: u32 = parse_number(&digits[..9])?;
    Ok(match (negative, nanos) {
        (false, _) => Mtime { seconds, nanos },
        (true, 0) => Mtime { seconds: -seconds, nanos },
        (true, _) => Mtime { seconds: -seconds - 1, nanos: 1_000_000_000 - nanos },
    })
}

/// Gives `each` the members of a gzipped tar archive, in its order; returns what follows it.
pub(crate) fn read_tar_gz<R: BufRead, E: From<Error>>(
    reader: R,
    mut each: impl FnMut(&Member, &mut Content<'_>) -> std::result::Result<(), E>,
) -> std::result::Result<R, E> {
    let mut archive = tar::Archive::new(GzDecoder::new(reader));
    let mut extras = Extras::default();
    let mut extra_bytes = 0;
    // Raw: what describes the entry is read here, where its size is bounded.
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        let size = entry.size();
        let describes = kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions()
            || kind.is_gnu_longname()
            || kind.is_gnu_longlink();
        if describes {
            extra_bytes += size.min(EXTRA_MAX);
            if extra_bytes > EXTRAS_BYTES_MAX {
                return Err(bad("too many headers in a tar archive").into());
            }
            extras.take(kind, &mut entry, size)?;
            continue;
        }
        let Extras { path, target, mtime, size: said, .. } = std::mem::take(&mut extras);
        if said.is_some_and(|said| said != size) {
            // Whoever reads the one and whoever reads the other find different files.
            return Err(bad("a tar archive that says two sizes of a file").into());
        }
        let header = entry.header();
        let mut path = path.unwrap_or_else(|| header.path_bytes().into_owned());
        let kind = match kind {
            EntryType::Regular => MemberKind::File(size),
            EntryType::Directory if size == 0 => {
                path.truncate(path.strip_suffix(b"/").map_or(path.len(), <[u8]>::len));
                MemberKind::Directory
            }
            EntryType::Symlink if size == 0 => {
                let target = target.or_else(|| header.link_name_bytes().map(|name| name.into_owned()));
                let target = target.filter(|target| target.len() as u64 <= TARGET_MAX);
                MemberKind::Link(target.ok_or_else(|| bad("a link without a target in a tar archive"))?)
            }
            _ => return Err(bad("something else than a file, folder or link in a tar archive").into()),
        };
        // Some writers leave these out.
        let seconds = i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(i64::MAX);
        let mtime = mtime.unwrap_or(Mtime { seconds, nanos: 0 });
        let default = if kind == MemberKind::Directory { 0o755 } else { 0o644 };
        let member = Member { path, kind, mtime, mode: header.mode().unwrap_or(default) & 0o777 };
        let mut content = Content::new(&mut entry, member.size());
        each(&member, &mut content)?;
        content.check()?;
    }
    if extras.count > 0 {
        return Err(bad("a tar archive that ends too early").into());
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
        if padding > PADDING_MAX || rest.iter().take(count).any(|&byte| byte != 0) {
            return Err(bad("something behind the end of a tar archive").into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_108_the_target_of_a_link_comes_back_as_it_was() {
        let mut targets: Vec<Vec<u8>> = Vec::new();
        for text in
            ["a", "a//b", "a/./b", "./a", ".//a", "..//a", "a/", "a/.", ".", "./", "a/../b", "a\nb", " "]
        {
            targets.push(text.into());
        }
        targets.push(b"\xff\\\xfe".to_vec());
        for len in [98, 99, 100, 101, 102, 255, 4095] {
            targets.push(vec![b'x'; len]);
            targets.push(b"x//".iter().copied().cycle().take(len).collect());
            targets.push(b"x\n".iter().copied().cycle().take(len).collect());
        }
        for name in [&b"link"[..], &[b'n'; 200]] {
            let member = |target: &Vec<u8>| Member {
                path: name.to_vec(),
                kind: MemberKind::Link(target.clone()),
                mtime: Mtime { seconds: 1, nanos: 5 },
                mode: 0o777,
            };
            for target in &targets {
                let mut archive = Vec::new();
                let mut writer = TarGzWriter::new(&mut archive);
                writer.add(&member(target), &mut std::io::empty()).unwrap();
                writer.finish().unwrap();
                let mut found = Vec::new();
                read_tar_gz::<_, Error>(&archive[..], |member, _| {
                    found.push(member.clone());
                    Ok(())
                })
                .unwrap();
                assert_eq!(found, [member(target)], "{}", crate::shown(target));
            }
        }
    }
}

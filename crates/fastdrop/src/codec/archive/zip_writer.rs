//! ZIP archives, written in one go, or with one file by several threads.
//!
//! The crate `zip` takes names as text. Names here are octets, as on the disk.

use crate::codec::archive::zip::copy;
use crate::codec::archive::{Member, MemberKind, bad, zip_time};
use crate::codec::deflate::Deflater;
use flate2::CrcWriter;
use flate2::write::DeflateEncoder;
use std::fs::File;
use std::io::{BufWriter, Read, Result, Seek, SeekFrom, Write};

/// Longest name of a member in bytes, with the slash of a directory.
pub(crate) const NAME_MAX: usize = u16::MAX as usize;
/// A file from this size on has sizes of 64 bits, since what does
/// not compress becomes a little longer.
const LARGE: u64 = 0xff00_0000;

const LOCAL: [u8; 4] = *b"PK\x03\x04";
const DESCRIPTOR: [u8; 4] = *b"PK\x07\x08";
const CENTRAL: [u8; 4] = *b"PK\x01\x02";
const END_64: [u8; 4] = *b"PK\x06\x06";
const LOCATOR_64: [u8; 4] = *b"PK\x06\x07";
const END: [u8; 4] = *b"PK\x05\x06";

/// Bytes that are written at once to a file.
const BUFFER: usize = 1 << 20;
/// Bits of the flags: sizes follow the content, and the name is UTF-8.
const SIZES_FOLLOW: u16 = 1 << 3;
const UTF_8: u16 = 1 << 11;
const STORED: u16 = 0;
const DEFLATED: u16 = 8;
/// The extra field with sizes and offsets of 64 bits.
const ZIP64: u16 = 0x0001;
/// Versions of the format: the one with folders and deflate, and the one with 64 bits.
const VERSION: u16 = 20;
const VERSION_64: u16 = 45;
/// The first day that the format's own field for times knows. Times are in extra fields.
const MIDNIGHT: u16 = 0;
const JANUARY_1_1980: u16 = 0x0021;
/// The system whose modes the attributes are, and those modes' kinds.
const UNIX: u16 = 3 << 8;
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
/// The attribute of directories elsewhere.
const DOS_DIRECTORY: u32 = 0x10;

/// Counts what it passes on.
struct Counted<W> {
    out: W,
    count: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let count = self.out.write(bytes)?;
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> Result<()> {
        self.out.flush()
    }
}

/// Little-endian numbers one after the other.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn u16(mut self, number: u16) -> Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    fn u32(mut self, number: u32) -> Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    fn u64(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

/// A number of 32 bits, or the value that says that an extra field has it.
fn or_max(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// The header of a member as far as both of its copies agree.
struct Head {
    name: Vec<u8>,
    flags: u16,
    method: u16,
    times: Vec<u8>,
    crc: u32,
    compressed: u64,
    size: u64,
}

/// Writes an archive without ever going back: sizes follow the contents of files.
pub(crate) struct ZipWriter<W: Write> {
    out: Counted<W>,
    /// The central directory so far.
    directory: Vec<u8>,
    members: u64,
}

impl<W: Write> ZipWriter<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out: Counted { out, count: 0 }, directory: Vec::new(), members: 0 }
    }

    /// Adds a member; `content` gives the bytes of a file.
    pub(crate) fn add(&mut self, member: &Member, content: &mut dyn Read) -> Result<()> {
        let (kind, suffix, target) = match &member.kind {
            MemberKind::File(_) => (REGULAR, &b""[..], &b""[..]),
            MemberKind::Directory => (DIRECTORY, &b"/"[..], &b""[..]),
            MemberKind::Link(target) => (LINK, &b""[..], &target[..]),
        };
        let is_file = kind == REGULAR;
        let name = [&member.path[..], suffix].concat();
        if name.len() > NAME_MAX {
            return Err(bad("a path that is too long for a ZIP archive"));
        }
        let utf8 = if !name.is_ascii() && std::str::from_utf8(&name).is_ok() { UTF_8 } else { 0 };
        let mut crc = flate2::Crc::new();
        crc.update(target);
        let mut head = Head {
            name,
            flags: utf8 | if is_file { SIZES_FOLLOW } else { 0 },
            method: if is_file { DEFLATED } else { STORED },
            times: zip_time::fields(member.mtime),
            crc: crc.sum(),
            compressed: target.len() as u64,
            size: target.len() as u64,
        };
        let offset = self.out.count;
        let large = member.size() >= LARGE;
        self.write_local(&head, large)?;
        if is_file {
            let start = self.out.count;
            let deflate = DeflateEncoder::new(&mut self.out, flate2::Compression::fast());
            let mut sum = CrcWriter::new(deflate);
            copy(content, member.size(), &mut sum)?;
            head.crc = sum.crc().sum();
            sum.into_inner().finish()?;
            head.size = member.size();
            head.compressed = self.out.count - start;
            self.write_descriptor(&head, large)?;
        } else {
            self.out.write_all(target)?;
        }
        let mut attributes = (kind | member.mode) << 16;
        if kind == DIRECTORY {
            attributes |= DOS_DIRECTORY;
        }
        self.note_in_directory(&head, attributes, offset);
        Ok(())
    }

    fn write_local(&mut self, head: &Head, large: bool) -> Result<()> {
        // Of a file the sizes are not known yet.
        let size = if large { u32::MAX } else { or_max(head.size) };
        let extra = if large {
            Fields(head.times.clone()).u16(ZIP64).u16(16).u64(head.size).u64(head.compressed).0
        } else {
            head.times.clone()
        };
        let fields = Fields::default()
            .bytes(&LOCAL)
            .u16(if large { VERSION_64 } else { VERSION })
            .u16(head.flags)
            .u16(head.method)
            .u16(MIDNIGHT)
            .u16(JANUARY_1_1980)
            .u32(head.crc)
            .u32(size)
            .u32(size)
            .u16(head.name.len() as u16)
            .u16(extra.len() as u16)
            .bytes(&head.name)
            .bytes(&extra);
        self.out.write_all(&fields.0)
    }

    fn write_descriptor(&mut self, head: &Head, large: bool) -> Result<()> {
        let fields = Fields::default().bytes(&DESCRIPTOR).u32(head.crc);
        let fields = if large {
            fields.u64(head.compressed).u64(head.size)
        } else {
            fields.u32(or_max(head.compressed)).u32(or_max(head.size))
        };
        self.out.write_all(&fields.0)
    }

    fn note_in_directory(&mut self, head: &Head, attributes: u32, offset: u64) {
        let is_large = |number: u64| number >= u64::from(u32::MAX);
        let mut long = Fields::default();
        for number in [head.size, head.compressed, offset] {
            if is_large(number) {
                long = long.u64(number);
            }
        }
        let mut extra = Fields(head.times.clone());
        if !long.0.is_empty() {
            extra = extra.u16(ZIP64).u16(long.0.len() as u16).bytes(&long.0);
        }
        let version = if long.0.is_empty() { VERSION } else { VERSION_64 };
        let fields = Fields(std::mem::take(&mut self.directory))
            .bytes(&CENTRAL)
            .u16(UNIX | VERSION_64)
            .u16(version)
            .u16(head.flags)
            .u16(head.method)
            .u16(MIDNIGHT)
            .u16(JANUARY_1_1980)
            .u32(head.crc)
            .u32(or_max(head.compressed))
            .u32(or_max(head.size))
            .u16(head.name.len() as u16)
            .u16(extra.0.len() as u16)
            // Neither a comment, nor another disk, nor text.
            .u16(0)
            .u16(0)
            .u16(0)
            .u32(attributes)
            .u32(or_max(offset))
            .bytes(&head.name)
            .bytes(&extra.0);
        self.directory = fields.0;
        self.members += 1;
    }

    /// Writes the directory.
    pub(crate) fn finish(mut self) -> Result<()> {
        let (start, size) = (self.out.count, self.directory.len() as u64);
        self.out.write_all(&self.directory)?;
        let members = u16::try_from(self.members).unwrap_or(u16::MAX);
        let mut fields = Fields::default();
        if members == u16::MAX || start >= u64::from(u32::MAX) || size >= u64::from(u32::MAX) {
            fields = fields
                .bytes(&END_64)
                .u64(44)
                .u16(UNIX | VERSION_64)
                .u16(VERSION_64)
                .u32(0)
                .u32(0)
                .u64(self.members)
                .u64(self.members)
                .u64(size)
                .u64(start)
                .bytes(&LOCATOR_64)
                .u32(0)
                .u64(start + size)
                .u32(1);
        }
        let fields = fields
            .bytes(&END)
            .u16(0)
            .u16(0)
            .u16(members)
            .u16(members)
            .u32(or_max(size))
            .u32(or_max(start))
            .u16(0);
        self.out.write_all(&fields.0)?;
        self.out.flush()
    }
}

/// Writes an archive with one file, compressed by so many threads, into an empty `out`. Its sizes
/// stand before its content too, as the programs have it that send one.
pub(crate) fn write_one_zip(
    source: &mut dyn Read,
    size: u64,
    name: &str,
    mode: u32,
    out: File,
    threads: usize,
) -> Result<()> {
    if name.len() > NAME_MAX {
        return Err(bad("a name that is too long for a ZIP archive"));
    }
    let flags = if name.is_ascii() { 0 } else { UTF_8 };
    let (name, times) = (name.as_bytes().to_vec(), Vec::new());
    let mut head = Head { name, flags, method: DEFLATED, times, crc: 0, compressed: 0, size: 0 };
    let large = size >= LARGE;
    let mut zip = ZipWriter::new(BufWriter::with_capacity(BUFFER, out));
    zip.write_local(&head, large)?;
    let mut deflater = Deflater::new(&mut zip.out, threads);
    copy(source, size, &mut deflater)?;
    let (_, sums) = deflater.finish()?;
    (head.crc, head.compressed, head.size) = (sums.crc, sums.compressed, sums.size);
    zip.out.out.seek(SeekFrom::Start(0))?;
    // As long as before: only numbers of a fixed width have changed.
    let count = zip.out.count;
    zip.write_local(&head, large)?;
    zip.out.out.seek(SeekFrom::End(0))?;
    zip.out.count = count;
    zip.note_in_directory(&head, (REGULAR | mode) << 16, 0);
    zip.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::archive::read_zip;
    use fastdrop_proto::units::Mtime;
    use std::io::{Error, Write};

    fn archive_of(members: &[(Member, &[u8])]) -> std::fs::File {
        let mut bytes = Vec::new();
        let mut zip = ZipWriter::new(&mut bytes);
        for (member, content) in members {
            zip.add(member, &mut &content[..]).unwrap();
        }
        zip.finish().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file
    }

    fn read_back(file: std::fs::File) -> std::result::Result<Vec<(Member, Vec<u8>)>, Error> {
        let mut found = Vec::new();
        read_zip::<Error>(file, 70_000, |member, content| {
            let mut bytes = Vec::new();
            if matches!(member.kind, MemberKind::File(_)) {
                content.read_to_end(&mut bytes)?;
            }
            found.push((member.clone(), bytes));
            Ok(())
        })?;
        Ok(found)
    }

    fn member(path: &[u8], kind: MemberKind, seconds: i64, nanos: u32) -> Member {
        Member { path: path.to_vec(), kind, mtime: Mtime { seconds, nanos }, mode: 0o640 }
    }

    #[test]
    fn case_108_every_name_and_link_comes_back_as_it_was() {
        let names: [&[u8]; 12] = [
            b"plain",
            b"back\\slash",
            b"ends with \\",
            b"latin-\xe9",
            // As text of code page 437, the one before is this one.
            "latin-\u{398}".as_bytes(),
            "\u{fc}\u{4e2d}".as_bytes(),
            b"\xff\xfe",
            b"new\nline",
            b" ",
            b"folder\\/inside\\",
            b"%5C",
            &[b'n'; 4096],
        ];
        let mut members: Vec<(Member, &[u8])> = Vec::new();
        for name in names {
            members.push((member(name, MemberKind::File(7), 1, 0), b"content"));
            let directory = [name, b".d"].concat();
            members.push((member(&directory, MemberKind::Directory, 1, 0), b""));
            let link = [name, b".l"].concat();
            members.push((member(&link, MemberKind::Link(name[..name.len().min(4000)].to_vec()), 1, 0), b""));
        }
        let found = read_back(archive_of(&members)).unwrap();
        let expected: Vec<_> =
            members.iter().map(|(member, bytes)| (member.clone(), bytes.to_vec())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn an_archive_of_one_file_has_its_sizes_before_the_content() {
        for size in [0, 1, 70_000, (5 << 20) + 3] {
            let content: Vec<u8> = (0..size).map(|at: u32| (at / 7) as u8).collect();
            for name in ["plain", "\u{fc}"] {
                let file = tempfile::tempfile().unwrap();
                let mut source = &content[..];
                write_one_zip(&mut source, size.into(), name, 0o644, file.try_clone().unwrap(), 2).unwrap();
                let mut local = [0; 30];
                std::os::unix::fs::FileExt::read_exact_at(&file, &mut local, 0).unwrap();
                assert_eq!((local[6] & 8, &local[22..26]), (0, &size.to_le_bytes()[..]));
                let found = read_back(file).unwrap();
                assert_eq!((&found[0].0.path[..], found.len()), (name.as_bytes(), 1));
                assert!(found[0].1 == content, "{size}");
            }
        }
        let short = write_one_zip(&mut &b"x"[..], 2, "n", 0o644, tempfile::tempfile().unwrap(), 2);
        assert_eq!(short.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn case_108_every_time_comes_back_to_the_nanosecond() {
        let seconds = [
            i64::MIN,
            -11_644_473_601,
            -11_644_473_600,
            -2_147_483_649,
            -1,
            0,
            1,
            2_147_483_647,
            2_147_483_648,
            4_294_967_295,
            4_294_967_296,
            253_402_300_800,
            i64::MAX,
        ];
        let times: Vec<(i64, u32)> = seconds
            .into_iter()
            .flat_map(|seconds| [0, 1, 99, 100, 500_000_000, 999_999_999].map(|nanos| (seconds, nanos)))
            .collect();
        let paths: Vec<String> = (0..times.len()).map(|at| format!("file-{at}")).collect();
        let members: Vec<(Member, &[u8])> = times
            .iter()
            .zip(&paths)
            .map(|(&(seconds, nanos), path)| {
                (member(path.as_bytes(), MemberKind::File(1), seconds, nanos), &b"x"[..])
            })
            .collect();
        let found = read_back(archive_of(&members)).unwrap();
        let found: Vec<(i64, u32)> =
            found.iter().map(|(member, _)| (member.mtime.seconds, member.mtime.nanos)).collect();
        assert_eq!(found, times);
    }

    #[test]
    fn times_that_contradict_each_other_are_refused() {
        let mut bytes = Vec::new();
        let mut zip = ZipWriter::new(&mut bytes);
        zip.add(&member(b"x", MemberKind::File(0), 1_000_000_000, 5), &mut &b""[..]).unwrap();
        zip.finish().unwrap();
        let exact = [&0x4446_u16.to_le_bytes()[..], &12_u16.to_le_bytes()].concat();
        let places: Vec<usize> =
            bytes.windows(4).enumerate().filter(|(_, window)| *window == exact).map(|(at, _)| at).collect();
        assert_eq!(places.len(), 2, "one in each header");
        for (offset, byte) in [(4, 1), (4 + 11, 0x7f)] {
            let mut lying = bytes.clone();
            for place in &places {
                lying[place + offset] ^= byte;
            }
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&lying).unwrap();
            read_back(file).unwrap_err();
        }
    }

    #[test]
    fn more_members_than_sixteen_bits_can_count_come_back() {
        let paths: Vec<String> = (0..66_000).map(|at| at.to_string()).collect();
        let members: Vec<(Member, &[u8])> = paths
            .iter()
            .map(|path| (member(path.as_bytes(), MemberKind::Directory, 1, 0), &b""[..]))
            .collect();
        assert_eq!(read_back(archive_of(&members)).unwrap().len(), members.len());
    }
}

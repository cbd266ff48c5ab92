//! Fragments of messages, and reports about them (docs/protocol/vstp.md, sections 3 and 4).

use super::error_code::{CODE, ErrorCode, code_of};
use super::frame::{
    self, Flags, FrameError, FrameRef, FrameType, Head, Headers, HeadersBuf, OVERHEAD_BYTES, VERSION, decimal,
};
use crate::cursor::Cursor;
use bytes::Bytes;

const ID: &str = "frag-id";
const INDEX: &str = "frag-index";
const TOTAL: &str = "frag-total";
const NESTED: &str = "nested";
const REPLACES: &str = "frag-replaces";
const PROBE: &str = "frag-probe";
/// In the report of a probe: small frames that came and want no acknowledgement, modulo 2^32.
pub(super) const CAME: &str = "came";

/// The most fragments of a message that peers of version 0.2 reassemble.
pub const CLASSIC_TOTAL_MAX: u32 = 255;
/// A message's own headers are repeated in every fragment up to this many bytes.
pub(super) const REPEATED_HEADERS_MAX: usize = 512;
/// Fragments beyond the base of which a report can say that they are there, and so the most that
/// are on their way at once.
pub(super) const WINDOW_MAX: u32 = 8192;

/// Which fragment of which message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fragment {
    /// The message, among those of its sender.
    pub id: u64,
    /// From 0, below `total`.
    pub index: u32,
    /// How many there are, at least 1.
    pub total: u32,
    /// Whether the sender takes reports.
    pub wants_reports: bool,
    /// Whether the message is a frame of its own in the payloads.
    pub nested: bool,
    /// The number that the same message had before it was cut anew.
    pub replaces: Option<u64>,
    /// Whether there is no message: it only asks for a report.
    pub probe: bool,
}

impl Fragment {
    /// Reads the fields from the headers of a frame with FRAG; None if they are missing, no
    /// numbers, or impossible (case 72).
    pub fn parse(headers: Headers<'_>) -> Option<Self> {
        let text = headers.find(ID)?;
        let number = |key| u32::try_from(headers.number(key)?).ok();
        let (id, index, total) = (decimal(text)?, number(INDEX)?, number(TOTAL)?);
        let wants_reports = text.len() > 1 && text.first() == Some(&b'0');
        let nested = headers.find(NESTED).is_some();
        let replaces = headers.number(REPLACES);
        let probe = headers.find(PROBE).is_some();
        (index < total).then_some(Self { id, index, total, wants_reports, nested, replaces, probe })
    }

    /// Bytes that the message has in all, as far as a fragment with a payload of this length says.
    /// The last one says little; it is taken as if the others were as small.
    pub(super) fn announced(&self, len: usize) -> usize {
        let is_last = self.index + 1 == self.total;
        let slice = if is_last { len.max(super::transport::DATAGRAM_MAX) } else { len };
        if self.total == 1 { len } else { (self.total as usize).saturating_mul(slice) }
    }

    /// The headers that a sender of version 0.2 puts behind those of the message.
    pub(super) fn plain_fields(&self) -> HeadersBuf {
        HeadersBuf::default().with(ID, self.id).with(INDEX, self.index).with(TOTAL, self.total)
    }

    /// Whether a header belongs to the fragment and not to its message.
    pub fn is_own(key: &[u8]) -> bool {
        [ID, INDEX, TOTAL, NESTED, REPLACES].iter().any(|own| own.as_bytes() == key)
    }
}

/// How an id that asks for reports is written.
pub(super) fn id_digits(id: u64) -> String {
    format!("0{id}")
}

/// Writes the fragments of one message: all but the last have the same size, and differ in a few
/// digits and the payload.
#[derive(Debug)]
pub struct Writer {
    /// Head, headers, with room for the digits of the index.
    front: Vec<u8>,
    index_at: usize,
    index_digits: usize,
    body: Bytes,
    slice: usize,
    total: u32,
}

impl Writer {
    /// Cuts a frame's payload, or the frame itself where its headers are long, so that a fragment
    /// has at most `datagram` bytes. `replaces` is the number that the same message had before.
    pub fn new(
        message: &FrameRef<'_>,
        payload: &Bytes,
        id: u64,
        replaces: Option<u64>,
        datagram: usize,
    ) -> Result<Self, FrameError> {
        let nested = message.headers.as_bytes().len() > REPEATED_HEADERS_MAX;
        let mut own = HeadersBuf::default();
        let body = if nested {
            let mut whole = Vec::new();
            message.encode(&mut whole)?;
            own = own.with(NESTED, 1);
            Bytes::from(whole)
        } else {
            payload.clone()
        };
        if let Some(replaced) = replaces {
            own = own.with(REPLACES, replaced);
        }
        let headers = if nested { Headers::default() } else { message.headers };
        // The number of fragments depends on the room that its own digits leave.
        let mut total_digits = 1;
        loop {
            let fields = own.as_headers().as_bytes().len()
                + [(ID, id_digits(id).len()), (INDEX, total_digits), (TOTAL, total_digits)]
                    .iter()
                    .map(|(key, digits)| 2 + key.len() + digits)
                    .sum::<usize>();
            let taken = OVERHEAD_BYTES + headers.as_bytes().len() + fields;
            let slice = datagram.checked_sub(taken).filter(|slice| *slice > 0);
            let slice = slice.ok_or(FrameError::TooLong("the headers"))?;
            let total = body.len().div_ceil(slice).max(1);
            let total = u32::try_from(total).map_err(|_| FrameError::TooLong("the payload"))?;
            if total.to_string().len() > total_digits {
                total_digits += 1;
                continue;
            }
            let digits = total_digits;
            let own = own.clone().with(ID, id_digits(id)).with(TOTAL, format_args!("{total:0digits$}"));
            let own = own.with(INDEX, format_args!("{:0digits$}", 0));
            let mut front = vec![0; frame::HEAD_BYTES];
            front.extend_from_slice(headers.as_bytes());
            front.extend_from_slice(own.as_headers().as_bytes());
            let flags = if nested { message.flags & Flags::REQ_ACK } else { message.flags } | Flags::FRAG;
            let head = Head::encode(VERSION, message.typ, flags, front.len() - frame::HEAD_BYTES, slice)?;
            front.splice(..frame::HEAD_BYTES, head);
            let index_at = front.len() - digits;
            return Ok(Self { front, index_at, index_digits: digits, body, slice, total });
        }
    }

    /// How many fragments there are.
    pub fn total(&self) -> u32 {
        self.total
    }

    /// Bytes of a fragment's payload; the last one may have fewer.
    pub fn slice_len(&self) -> usize {
        self.slice
    }

    /// Bytes of a fragment's frame.
    pub fn datagram_len(&self, index: u32) -> usize {
        self.front.len() + self.slice(index).len() + frame::CRC_BYTES
    }

    fn slice(&self, index: u32) -> &[u8] {
        let start = (index as usize).saturating_mul(self.slice).min(self.body.len());
        let end = start.saturating_add(self.slice).min(self.body.len());
        self.body.get(start..end).unwrap_or_default()
    }

    /// Appends the frame of one fragment to `out`.
    pub fn write(&self, index: u32, out: &mut Vec<u8>) {
        let start = out.len();
        let slice = self.slice(index);
        out.extend_from_slice(&self.front);
        let Some(front) = out.get_mut(start..) else { return };
        if slice.len() != self.slice
            && let Some(len) = front.get_mut(frame::PAYLOAD_LEN_AT..frame::HEAD_BYTES)
        {
            len.copy_from_slice(&(slice.len() as u32).to_be_bytes());
        }
        let mut rest = index;
        let digits = front.get_mut(self.index_at..self.index_at + self.index_digits);
        for digit in digits.unwrap_or_default().iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        out.extend_from_slice(slice);
        let crc = crc32fast::hash(out.get(start..).unwrap_or_default());
        out.extend_from_slice(&crc.to_be_bytes());
    }
}

/// A probe: the first of two fragments (section 4), filled up to the size of a datagram that is
/// tried.
pub(super) fn write_probe(id: u64, datagram: usize, out: &mut Vec<u8>) {
    let headers = HeadersBuf::default().with(ID, id_digits(id)).with(INDEX, 0).with(TOTAL, 2).with(PROBE, 1);
    let headers = headers.as_headers();
    let padding = vec![0; datagram.saturating_sub(OVERHEAD_BYTES + headers.as_bytes().len())];
    let probe = FrameRef { typ: FrameType::Data, flags: Flags::FRAG, headers, payload: &padding };
    // Nothing of it is too long.
    let _ = probe.encode(out);
}

/// The report of a probe, with the count of small frames that came and want no acknowledgement.
pub(super) fn write_probe_report(id: u64, came: u32, out: &mut Vec<u8>) {
    let report = Report { id, base: 1, limit: 1, delay_us: 0, bitmap: Vec::new() };
    report.write_with(HeadersBuf::default().with(ID, id_digits(id)).with(CAME, came), out);
}

/// What a receiver says about the fragments of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The message.
    pub id: u64,
    /// All fragments below are there.
    pub base: u32,
    /// Fragments from here on are not taken now.
    pub limit: u32,
    /// Microseconds between the arrival of the newest fragment and the report.
    pub delay_us: u32,
    /// Whether fragment `base + 1 + i` is there, from the highest bit of the first byte.
    pub bitmap: Vec<u8>,
}

impl Report {
    /// Bytes of the three numbers before the bitmap.
    const NUMBERS_BYTES: usize = 3 * size_of::<u32>();

    /// Whether this frame is a report.
    pub fn is_in(frame: &FrameRef<'_>) -> bool {
        frame.typ == FrameType::Ack && frame.headers.find(ID).is_some()
    }

    /// Reads it; None if it is malformed.
    pub fn parse(frame: &FrameRef<'_>) -> Option<Self> {
        let id = frame.headers.number(ID)?;
        let mut cursor = Cursor::new(frame.payload);
        let (base, limit, delay_us) = (cursor.u32().ok()?, cursor.u32().ok()?, cursor.u32().ok()?);
        let bitmap = cursor.rest();
        let fits = bitmap.len() <= WINDOW_MAX as usize / 8 && limit >= base;
        fits.then(|| Self { id, base, limit, delay_us, bitmap: bitmap.to_vec() })
    }

    /// Appends its frame to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        self.write_with(HeadersBuf::default().with(ID, id_digits(self.id)), out);
    }

    fn write_with(&self, headers: HeadersBuf, out: &mut Vec<u8>) {
        let mut payload = Vec::with_capacity(Self::NUMBERS_BYTES + self.bitmap.len());
        for number in [self.base, self.limit, self.delay_us] {
            payload.extend_from_slice(&number.to_be_bytes());
        }
        payload.extend_from_slice(&self.bitmap);
        let flags = Flags::empty();
        let frame = FrameRef { typ: FrameType::Ack, flags, headers: headers.as_headers(), payload: &payload };
        // Nothing of it is too long.
        let _ = frame.encode(out);
    }

    /// The fragments above the base that are there, in order.
    pub fn above(&self) -> impl Iterator<Item = u32> + '_ {
        let first = u64::from(self.base) + 1;
        self.bitmap.iter().enumerate().filter(|(_, byte)| **byte != 0).flat_map(move |(at, &byte)| {
            (0..8_u64)
                .filter(move |bit| byte & (0x80 >> bit) != 0)
                .filter_map(move |bit| u32::try_from(first + at as u64 * 8 + bit).ok())
        })
    }
}

/// An ERR about one message.
pub(super) fn write_refusal(id: u64, code: ErrorCode, out: &mut Vec<u8>) {
    let headers = HeadersBuf::default().with(ID, id_digits(id)).with(CODE, code.as_str());
    let flags = Flags::empty();
    // Nothing of it is too long.
    let _ = FrameRef { typ: FrameType::Err, flags, headers: headers.as_headers(), payload: b"" }.encode(out);
}

/// The message that an ERR is about, and its code.
pub(super) fn parse_refusal(frame: &FrameRef<'_>) -> Option<(u64, String)> {
    Some((frame.headers.number(ID)?, code_of(frame)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vstp::FrameBytes;

    fn message(headers: &[(&str, &str)], len: usize) -> FrameBytes {
        let mut buf = HeadersBuf::default();
        for (key, value) in headers {
            buf.push(key.as_bytes(), value.as_bytes()).unwrap();
        }
        let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
        FrameBytes::new(FrameType::Data, buf, payload.into()).with_flag(Flags::CRC)
    }

    #[test]
    fn the_fragments_of_any_size_fit_and_make_the_message() {
        let long = "v".repeat(255);
        for headers in [&[("a", "b")][..], &[("x", long.as_str()), ("y", &long), ("z", &long)]] {
            for len in [0, 1, 1080, 1200, 10_000, 12_345, 300_000, 1_300_000] {
                let message = message(headers, len);
                let writer = Writer::new(&message.as_ref(), &message.payload, 77, None, 1200).unwrap();
                let mut body = Vec::new();
                for index in 0..writer.total() {
                    let mut bytes = Vec::new();
                    writer.write(index, &mut bytes);
                    assert!(bytes.len() <= 1200);
                    assert_eq!(bytes.len(), writer.datagram_len(index));
                    let (frame, used) = FrameRef::decode(&bytes, 1200).unwrap().unwrap();
                    assert_eq!(used, bytes.len());
                    let fragment = Fragment::parse(frame.headers).unwrap();
                    assert_eq!((fragment.id, fragment.index, fragment.total), (77, index, writer.total()));
                    assert!(fragment.wants_reports);
                    assert_eq!(fragment.nested, headers.len() == 3);
                    body.extend_from_slice(frame.payload);
                }
                if headers.len() == 3 {
                    let (inner, _) = FrameRef::decode(&body, FRAME_ANY).unwrap().unwrap();
                    assert_eq!(FrameBytes::from(inner), message);
                } else {
                    assert_eq!(body, message.payload);
                }
            }
        }
    }

    const FRAME_ANY: usize = usize::MAX;

    #[test]
    fn case_72_impossible_fields_are_no_fragment() {
        for (id, index, total) in [
            ("1", "0", "0"),
            ("1", "2", "2"),
            ("1", "-1", "2"),
            ("1", "0", "+2"),
            ("", "0", "2"),
            ("1", "0", "4294967296"),
            ("18446744073709551616", "0", "2"),
            ("x", "0", "2"),
        ] {
            let headers = HeadersBuf::default().with(ID, id).with(INDEX, index).with(TOTAL, total);
            assert_eq!(Fragment::parse(headers.as_headers()), None, "{id} {index} {total}");
        }
        let headers = HeadersBuf::default().with(ID, "7").with(INDEX, "001").with(TOTAL, "2");
        let expected = Fragment {
            id: 7,
            index: 1,
            total: 2,
            wants_reports: false,
            nested: false,
            replaces: None,
            probe: false,
        };
        assert_eq!(Fragment::parse(headers.as_headers()), Some(expected));
    }

    #[test]
    fn a_report_says_what_is_there() {
        let report = Report { id: 1 << 40, base: 10, limit: 90, delay_us: 5, bitmap: vec![0x80, 0x01] };
        let mut bytes = Vec::new();
        report.write(&mut bytes);
        let (frame, _) = FrameRef::decode(&bytes, 1200).unwrap().unwrap();
        assert!(Report::is_in(&frame));
        assert_eq!(Report::parse(&frame), Some(report.clone()));
        assert_eq!(report.above().collect::<Vec<_>>(), [11, 26]);
    }
}

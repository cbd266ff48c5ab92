//! The older protocols: which one a connection speaks, their announcements, and their machines,
//! told anything.

#![no_main]

use arbitrary::Arbitrary;
use fastdrop_proto::fastdp::{Version, v1};
use fastdrop_proto::port::{Begins, begins};
use fastdrop_proto::{fastdownloader, nextdp, ultradp};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
struct Input {
    bytes: Vec<u8>,
    new: bool,
    zstd: bool,
    full_size: u16,
    /// Number, size, and whether it begins as its format does.
    chunks: Vec<(u8, u8, bool)>,
}

fuzz_target!(|input: Input| {
    let bytes = &input.bytes[..];
    let found = begins(bytes);
    for cut in 0..bytes.len().min(200) {
        // What has been decided stays so.
        let before = begins(&bytes[..cut]);
        assert!(before == Begins::Undecided || before == found);
    }
    if let Ok(Some((announcement, used))) = ultradp::Announcement::parse(bytes) {
        assert!(used <= bytes.len());
        // A name with a colon is read, and never written.
        if let Ok(line) = announcement.encode() {
            // Three fields are never in doubt.
            let expected = ultradp::Announcement { in_doubt: false, ..announcement.clone() };
            assert_eq!(ultradp::Announcement::parse(&line), Ok(Some((expected, line.len()))));
        }
        let mut receiver = ultradp::Receiver::new(&announcement);
        for (_, size, _) in &input.chunks {
            let _ = receiver.handle_length(u64::from(*size).to_be_bytes());
            let _ = receiver.handle_decoded((*size).into());
            assert!(receiver.came() <= announcement.size);
        }
    }
    for version in [Version::V1_0, Version::V1_1] {
        if let Ok(Some((header, _))) = v1::Header::decode(bytes, version) {
            let encoded = header.encode();
            assert_eq!(v1::Header::decode(&encoded, version).unwrap(), Some((header, encoded.len())));
        }
    }
    fastdp1(&input);
    next(&input);
    let _ = nextdp::parse_answer(bytes);
    let _ = v1::HeaderAnswer::parse(bytes);
    let _ = std::str::from_utf8(bytes).map(v1::parse_failure);
    let text = String::from_utf8_lossy(bytes);
    let _ = nextdp::ChunkRequest::parse(Some(&text), |_| Ok(Some("1")));
    for quiet in [false, true] {
        if let Ok(Some(accepted)) = fastdownloader::Accepted::parse(bytes, quiet) {
            assert_eq!(fastdownloader::Accepted::parse(&accepted.encode(), true), Ok(Some(accepted)));
        }
    }
    let names = fastdownloader::parse_list(bytes);
    let again = fastdownloader::encode_list(names.iter().copied());
    assert!(fastdownloader::parse_list(&again).len() <= names.len());
    if let Ok((_, content)) = fastdownloader::parse_chunk(bytes) {
        assert!(content.len() <= fastdownloader::CHUNK_BYTES);
    }
});

/// Everything that is taken has a place of its own, within the payload.
fn fastdp1(input: &Input) {
    let header = v1::Header {
        version: if input.new { Version::V1_1 } else { Version::V1_0 },
        one_chunk: 10,
        full_size: input.full_size.into(),
        compression: if input.zstd { v1::Compression::Zstd } else { v1::Compression::None },
        file_name: None,
        checksum: None,
        confirm: false,
    };
    let mut receiver = v1::Receiver::new(&header).unwrap();
    let mut bytes = 0;
    for &(number, size, begins) in &input.chunks {
        let prefix = v1::ChunkPrefix { number: number.into(), size: size.into() };
        let beginning = if begins { &[0x28, 0xb5, 0x2f, 0xfd][..] } else { b"none" };
        let Ok(verdict) = receiver.judge(prefix, beginning) else { return };
        if verdict == v1::Verdict::Known {
            continue;
        }
        if let v1::Verdict::Take(index) = verdict {
            assert!(!receiver.is_held(index) && size <= 10);
            bytes += u64::from(size);
        }
        let _ = receiver.poll_shift();
        receiver.handle_received(prefix);
        loop {
            match receiver.poll_waiting() {
                Ok(Some(waiting)) => {
                    assert!(receiver.is_held(waiting.index));
                    bytes += u64::from(waiting.size);
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert_eq!(receiver.bytes(), bytes);
        assert!(header.payload().is_none_or(|payload| bytes <= payload));
    }
}

fn next(input: &Input) {
    let mut assembly = nextdp::Assembly::default();
    let mut taken = std::collections::BTreeSet::new();
    let chunks = u32::from(input.full_size % 50) + 1;
    for &(number, size, _) in &input.chunks {
        let first = (number == 0).then_some(chunks);
        let Ok(place) = assembly.handle_chunk(number.into(), first, size.into()) else { return };
        if let nextdp::ChunkPlace::New(at) = place {
            assert!(taken.insert(at) || size == 0);
        }
        while let Ok(Some((_, place))) = assembly.poll_early() {
            if let nextdp::ChunkPlace::New(at) = place {
                assert!(taken.insert(at));
            }
        }
    }
}

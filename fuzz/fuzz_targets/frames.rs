//! Frame headers, control frames, and the encodings of chunks.

#![no_main]

use fastdrop_proto::fastdp::{
    ChunkContent, Control, Encoding, FrameHeader, FrameKind, LeftOutEntry, control_payload_max,
};
use fastdrop_proto::units::EntryIndex;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, u32, &[u8])| {
    let (kind, len, payload) = input;
    if let Some((first, rest)) = payload.split_first_chunk::<{ FrameHeader::LEN }>() {
        if let Ok(header) = FrameHeader::decode(*first) {
            assert_eq!(header.encode(), *first);
            if let FrameKind::Control(kind) = header.kind {
                assert!(Some(header.size) <= control_payload_max(kind));
                let _ = Control::decode(kind, rest);
            }
        }
    }
    let kind = u32::from(kind % 0x1d);
    if let Ok(control) = Control::decode(kind, payload) {
        if let Control::Open(open) = &control {
            let _ = open.check();
        }
        let bytes = control.encode();
        let (head, rest) = bytes.split_first_chunk::<{ FrameHeader::LEN }>().unwrap();
        // Escapes can make a payload longer than it was, but not another one.
        if let Ok(header) = FrameHeader::decode(*head) {
            assert_eq!(header, FrameHeader { kind: FrameKind::Control(kind), size: rest.len() as u32 });
        }
        let again = Control::decode(kind, rest).unwrap();
        match (&control, &again) {
            // A reason is cut.
            (Control::Abandon { reason: long, .. }, Control::Abandon { reason, .. }) => {
                assert!(long.starts_with(&reason[..]) && reason.len() <= 1000);
            }
            (Control::LeftOut(long), Control::LeftOut(cut)) => {
                assert_eq!((long.unnamed, long.entries.len()), (cut.unnamed, cut.entries.len()));
                assert!(long.uncarried.starts_with(&cut.uncarried[..]));
                assert_eq!(long.uncarried.is_empty(), cut.uncarried.is_empty());
                for (long, cut) in long.entries.iter().zip(&cut.entries) {
                    assert!(long.reason.starts_with(&cut.reason[..]) && cut.reason.len() <= 1000);
                    assert_eq!(LeftOutEntry { reason: cut.reason.clone(), ..long.clone() }, *cut);
                }
            }
            _ => assert_eq!(again, control),
        }
    }
    let len = len % (16 << 20);
    let (entry, offset) = (EntryIndex(0), 0);
    let (piece, stream) =
        (ChunkContent::Piece { entry, offset, len, whole: true }, ChunkContent::Stream { entry, offset });
    for kind in 0..5 {
        let payload = [&[kind][..], payload].concat();
        if let Ok((encoding, _)) = Encoding::decode(&payload, &stream, len) {
            assert!(encoding.extents.is_none() && encoding.plain_len <= len);
        }
        if let Ok((encoding, data)) = Encoding::decode(&payload, &piece, len) {
            assert!(encoding.zstd || data.len() == encoding.data_len() as usize);
            assert!(encoding.data_len() <= len && encoding.plain_len == len);
            assert_eq!([&encoding.encode()[..], data].concat(), payload);
            let Some(extents) = encoding.extents else { continue };
            let mut end = 0;
            for (at, (offset, size)) in extents.iter().enumerate() {
                assert!((at == 0 || offset > end) && size > 0 && offset + size <= len);
                end = offset + size;
            }
        }
    }
});

//! Frames of VSTP, their headers, fragments and reports.

#![no_main]

use fastdrop_proto::vstp::{Fragment, FrameBytes, FrameRef, Report, Writer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (Vec<u8>, bool, u16)| {
    let (mut bytes, mends, datagram) = input;
    if mends && bytes.len() >= 15 {
        // With a right CRC, what is behind it is looked at.
        let body = bytes.len() - 4;
        bytes[..3].copy_from_slice(b"VT\x01");
        let headers = usize::from(u16::from_le_bytes([bytes[5], bytes[6]]));
        if let Some(payload) = body.checked_sub(11 + headers) {
            bytes[7..11].copy_from_slice(&(payload as u32).to_be_bytes());
        }
        let crc = crc32fast::hash(&bytes[..body]);
        bytes[body..].copy_from_slice(&crc.to_be_bytes());
    }
    let Ok(Some((frame, used))) = FrameRef::decode(&bytes, 1 << 20) else { return };
    assert!(used <= bytes.len() && used == frame.encoded_len());
    let mut again = Vec::new();
    frame.encode(&mut again).unwrap();
    let (same, _) = FrameRef::decode(&again, 1 << 20).unwrap().unwrap();
    assert_eq!(same, frame);
    if let Some(fragment) = Fragment::parse(frame.headers) {
        assert!(fragment.index < fragment.total);
    }
    if let Some(report) = Report::parse(&frame) {
        assert!(report.above().all(|index| index > report.base));
    }
    let whole = FrameBytes::from(frame);
    if let Ok(writer) = Writer::new(&whole.as_ref(), &whole.payload, 7, None, datagram.into()) {
        for index in [0, writer.total() / 2, writer.total() - 1] {
            let mut out = Vec::new();
            writer.write(index, &mut out);
            assert!(out.len() <= usize::from(datagram) && out.len() == writer.datagram_len(index));
            FrameRef::decode(&out, 1 << 20).unwrap().unwrap();
        }
    }
});

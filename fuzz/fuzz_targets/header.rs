//! The JSON header.

#![no_main]

use fastdrop_proto::fastdp::Header;
use libfuzzer_sys::fuzz_target;

fn look(bytes: &[u8]) {
    let Ok(Some((header, text, len))) = Header::decode(bytes) else { return };
    assert_eq!(text, &bytes[4..len]);
    assert!(matches!(Header::decode(&bytes[..len - 1]), Ok(None)), "taken before it was complete");
    let _ = header.chunk_size();
    let encoded = header.encode();
    let (again, _, used) = Header::decode(&encoded).unwrap().unwrap();
    assert_eq!((again, used), (header, encoded.len()));
}

fuzz_target!(|bytes: &[u8]| {
    look(bytes);
    // With its true length, so that the JSON is reached.
    look(&[&(bytes.len() as u32).to_be_bytes()[..], bytes].concat());
});

//! The HTTP upgrade, as a server and as a client read it.

#![no_main]

use fastdrop_proto::fastdp::{UpgradeRequest, parse_answer, parse_request};
use libfuzzer_sys::fuzz_target;

const KEY: &str = "q83vEjRWeJASNFZ4kKvN7w";

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let before = &bytes[..usize::from(cut).min(bytes.len().saturating_sub(1))];
    if let Ok(Some(request)) = parse_request(bytes) {
        assert!(!matches!(parse_request(before), Ok(Some(_))), "taken before it was complete");
        assert!(request.version.starts_with("2."));
        let again = parse_request(&UpgradeRequest { ..request.clone() }.encode("host")).unwrap().unwrap();
        assert_eq!(again, request);
        let answer = request.accept();
        assert_eq!(parse_answer(&answer, &request.key).unwrap().unwrap().len, answer.len());
    }
    if let Err(error) = parse_request(bytes) {
        assert!((400..=505).contains(&error.status));
        let _ = parse_answer(&error.encode(), KEY).expect_err("a refusal is no success");
    }
    for bytes in [bytes.to_vec(), [b"HTTP/1.1 ", bytes].concat()] {
        if let Ok(Some(answer)) = parse_answer(&bytes, KEY) {
            assert!(answer.len <= bytes.len() && answer.version.starts_with("2."));
            assert!(!matches!(parse_answer(&bytes[..answer.len - 1], KEY), Ok(Some(_))));
        }
    }
});

//! The HTTP upgrade, as a server and as a client read it.

#![no_main]

use fastdrop_proto::fastdp::{UpgradeRequest, Version, Versions, parse_answer, parse_request};
use libfuzzer_sys::fuzz_target;

const KEY: &str = "q83vEjRWeJASNFZ4kKvN7w";

fn native() -> UpgradeRequest {
    UpgradeRequest::new(KEY.into(), Version::V2)
}

fuzz_target!(|input: (u16, &[u8])| {
    let (cut, bytes) = input;
    let before = &bytes[..usize::from(cut).min(bytes.len().saturating_sub(1))];
    if let Ok(Some(request)) = parse_request(bytes, Versions::ALL) {
        assert!(!matches!(parse_request(before, Versions::ALL), Ok(Some(_))), "taken before it was complete");
        let again = parse_request(&request.encode("host"), Versions::ALL).unwrap().unwrap();
        assert_eq!(again, request);
        let answer = request.accept();
        assert_eq!(parse_answer(&answer, &request).unwrap().unwrap().len, answer.len());
    }
    if let Err(error) = parse_request(bytes, Versions::ALL) {
        assert!((400..=505).contains(&error.status));
        let _ = parse_answer(&error.encode(Versions::ALL), &native()).expect_err("a refusal is no success");
    }
    for bytes in [bytes.to_vec(), [b"HTTP/1.1 ", bytes].concat()] {
        if let Ok(Some(answer)) = parse_answer(&bytes, &native()) {
            assert!(answer.len <= bytes.len() && answer.version.starts_with("2."));
            assert!(!matches!(parse_answer(&bytes[..answer.len - 1], &native()), Ok(Some(_))));
        }
    }
});

//! Versions 1.0.0 and 1.1.0, after their upgrade. The specification is `docs/protocol/fastdp1.md`.
use crate::fastdp::Code;

mod handover;
mod header;
mod receiver;

pub use handover::{Arrival, ArrivalNumber, Handover, TransferNumber};
pub use header::{Compression, Header, HeaderAnswer, ONE_CHUNK_MAX, Refusal};
pub use receiver::{CHUNKS_MAX, ChunkPrefix, Receiver, Verdict, Waiting};

/// What a receiver of 1.0.0 says before it closes so that the sender comes back.
pub const RECONNECT: &[u8] = b"RECONNECT";
/// After so many bytes programs of 1.0.0 reconnect.
pub const RECONNECT_EVERY: u64 = 500 << 20;
/// The text of a receiver of 1.1.0 that has the file, and of one of 1.0.0 that was asked to
/// confirm.
pub const SUCCESS: &str = "File received successfully.";
/// The beginning of the text of a receiver that does not have the file; the reason follows.
pub const FAILURE: &str = "ERROR: ";

/// The reason of a failure as the text of 1.1.0 carries it: a code of version 2's section 11, a
/// space and a sentence.
pub fn encode_failure(code: Code, reason: &str) -> String {
    format!("{FAILURE}{code:03} {reason}")
}

/// The code and the sentence of a failure's text; None if the text tells of none. A text without a
/// code has the code 400.
pub fn parse_failure(text: &str) -> Option<(Code, &str)> {
    let reason = text.strip_prefix(FAILURE)?;
    let coded = reason.split_once(' ').and_then(|(code, sentence)| {
        let is_code = code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_digit());
        let code = code.parse().ok().filter(|code| is_code && (400..600).contains(code))?;
        Some((code, sentence))
    });
    let (number, sentence) = coded.unwrap_or((Code::BadRequest.number(), reason));
    Some((Code::new(number), sentence))
}

/// What a file without `FileName` is called.
pub const UNNAMED: &str = "received_file";

/// The chunk size that programs of these versions take for a file of `bytes`.
pub fn one_chunk_for(bytes: u64) -> u32 {
    match bytes {
        0..=0xa0_0000 => 256 << 10,
        0xa0_0001..=0x4000_0000 => 1 << 20,
        _ => 4 << 20,
    }
}

/// Steps in which a chunk size is made to fit, in bytes.
const FITTING: u32 = 64 << 10;

/// The chunk size for a 1.0.0 payload of `packed` bytes that was made of a file of `bytes`: the
/// usual one, or the next larger one with which the payload has no more chunks than the header
/// announces, `bytes / OneChunk + 1`.
pub fn one_chunk_within(bytes: u64, packed: u64) -> u32 {
    let usual = one_chunk_for(packed);
    let fits = |&one_chunk: &u32| packed.div_ceil(one_chunk.into()) <= bytes / u64::from(one_chunk) + 1;
    let mut sizes = (usual..=ONE_CHUNK_MAX).step_by(FITTING as usize);
    sizes.find(fits).unwrap_or(usual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_has_no_more_chunks_than_the_size_of_its_file_announces() {
        for bytes in [0, 1, 262_144, 1 << 20, 10 << 20, 100 << 20, 1 << 30, 10 << 30, 100 << 30] {
            // Packing adds about so much to what cannot be packed.
            for packed in [bytes / 2, bytes, bytes + 1, bytes + 200, bytes + bytes / 10_000 + 1024] {
                let one_chunk = u64::from(one_chunk_within(bytes, packed));
                assert!(
                    packed.div_ceil(one_chunk) <= bytes / one_chunk + 1,
                    "{bytes}, {packed}: {one_chunk}"
                );
                if packed <= bytes {
                    assert_eq!(one_chunk, u64::from(one_chunk_for(packed)));
                }
            }
        }
    }

    #[test]
    fn case_105_a_failure_of_1_1_0_has_a_code_or_only_words() {
        for code in [400, 403, 409, 422, 503, 507].map(Code::new) {
            let text = encode_failure(code, "f: it exists");
            assert_eq!(parse_failure(&text), Some((code, "f: it exists")));
        }
        for words in
            ["the moon is full", "4096 bytes are missing", "40 winks", "200 fine", "999 x", "", "507"]
        {
            assert_eq!(parse_failure(&format!("{FAILURE}{words}")), Some((Code::BadRequest, words)));
        }
        assert_eq!(parse_failure(SUCCESS), None);
    }
}

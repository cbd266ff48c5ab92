//! Decoding what peers compressed, with bounds on what that may cost.

use fastdrop_proto::fastdp::Code;
use std::io::{BufRead, Error, ErrorKind, Read, Result};

/// Log of the largest Zstandard window that is taken: 8 MiB, what every decoder has to
/// support (RFC 8878, section 3.1.1.1.2).
const WINDOW_LOG_MAX: u32 = 23;

/// Reads one Zstandard frame; at its end the rest of `reader` is where the frame ended.
pub(crate) fn zstd_frame<R: BufRead>(reader: R) -> Result<zstd::Decoder<'static, R>> {
    let mut decoder = zstd::Decoder::with_buffer(reader)?.single_frame();
    decoder.window_log_max(WINDOW_LOG_MAX)?;
    Ok(decoder)
}

/// Decodes a frame that is all of `frame`, and exactly as long as `out`.
pub(crate) fn zstd_exact(
    decoder: &mut zstd::bulk::Decompressor<'static>,
    frame: &[u8],
    out: &mut [u8],
) -> Result<()> {
    // The decoder would go on with the next frame.
    let one = zstd::zstd_safe::find_frame_compressed_size(frame).is_ok_and(|len| len == frame.len());
    match decoder.decompress_to_buffer(frame, out) {
        Ok(len) if one && len == out.len() => Ok(()),
        Ok(_) => Err(bad("a Zstandard frame of another length")),
        Err(error) => Err(bad(&error.to_string())),
    }
}

/// Fills `buffer` as far as `reader` goes; less only at its end.
pub(crate) fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// An error unless `reader` has ended.
pub(crate) fn expect_end(reader: &mut impl Read) -> Result<()> {
    match fill(reader, &mut [0])? {
        0 => Ok(()),
        _ => Err(bad("bytes behind the compressed data")),
    }
}

/// What was to be decoded is not what it should be.
pub(crate) fn bad(why: &str) -> Error {
    Error::new(ErrorKind::InvalidData, why)
}

/// Why something could not be decoded.
#[derive(Debug)]
pub(crate) enum DecodeError {
    /// It is not what it should be.
    Bad(Error),
    /// What was decoded is too much, or could not be written.
    Failed(crate::error::Error),
}

impl From<Error> for DecodeError {
    fn from(error: Error) -> Self {
        DecodeError::Bad(error)
    }
}

impl From<DecodeError> for crate::error::Error {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Bad(error) => {
                Self::failed(Code::Integrity, format!("the payload cannot be decoded: {error}"))
            }
            DecodeError::Failed(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_44_a_window_of_2_gib_is_refused() {
        // Magic, a frame header with neither content size nor
        // checksum, and a window descriptor of 2^31.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00];
        let mut decoder = zstd_frame(&frame[..]).unwrap();
        let error = fill(&mut decoder, &mut [0; 16]).unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");
        // An 8 MiB window is fine.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 13 << 3, 0x01, 0x00, 0x00];
        assert_eq!(fill(&mut zstd_frame(&frame[..]).unwrap(), &mut [0; 16]).unwrap(), 0);
    }

    #[test]
    fn cases_45_and_46_what_is_cut_corrupt_or_followed_by_more_is_an_error() {
        let text = b"what is cut is not whole ".repeat(1000);
        let good = zstd::bulk::compress(&text, 3).unwrap();
        let decode = |bytes: &[u8]| -> Result<Vec<u8>> {
            let mut decoder = zstd_frame(bytes)?;
            let mut out = vec![0; text.len() + 1];
            let count = fill(&mut decoder, &mut out)?;
            out.truncate(count);
            expect_end(decoder.get_mut())?;
            Ok(out)
        };
        assert_eq!(decode(&good).unwrap(), text);
        for cut in 1..good.len() {
            assert!(decode(&good[..cut]).is_err(), "{cut} of {} bytes", good.len());
        }
        decode(&[&good[..], b"x"].concat()).unwrap_err();
        decode(b"no frame at all").unwrap_err();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x55;
            // Either it is noticed, or it decodes to something: it never panics.
            let _ = decode(&bad);
        }
    }
}

//! The protocol of a connection, and the signs by which it is known.

use fastdrop_proto::cnp::handshake::{FIRST_BYTE as CNP_FIRST_BYTE, refusal};
#[cfg(feature = "vstp")]
use fastdrop_proto::vstp::{ErrorCode, Flags, FrameRef, FrameType, HeadersBuf};

/// The name of VSTP in datagrams of QUIC, in a handshake of TLS (ALPN).
#[cfg(feature = "quic")]
pub(crate) const VSTP_DATAGRAMS: &[u8] = b"vstp-udp";

/// The protocol that is spoken on a connection, inside TLS or in plain text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inner {
    Vstp,
    Cnp,
}

impl Inner {
    /// The first byte of a frame of VSTP.
    const VSTP_FIRST_BYTE: u8 = b'V';

    /// The name in a handshake of TLS (ALPN).
    pub(crate) fn alpn(self) -> &'static [u8] {
        match self {
            Self::Vstp => b"vstp",
            Self::Cnp => b"cnp",
        }
    }

    /// The protocol with this name.
    pub(crate) fn of_alpn(name: &[u8]) -> Option<Self> {
        [Self::Vstp, Self::Cnp].into_iter().find(|inner| inner.alpn() == name)
    }

    /// The protocol of a client whose first byte is this.
    pub(crate) fn of_first_byte(byte: u8) -> Option<Self> {
        match byte {
            Self::VSTP_FIRST_BYTE => Some(Self::Vstp),
            CNP_FIRST_BYTE => Some(Self::Cnp),
            _ => None,
        }
    }

    /// The answer to a client that speaks in plain text where there is TLS alone.
    pub(crate) fn refusal(self) -> Vec<u8> {
        const WORDS: &str = "this port speaks TLS 1.3 alone, and nothing was taken in plain text";
        match self {
            Self::Cnp => refusal(WORDS),
            #[cfg(not(feature = "vstp"))]
            Self::Vstp => Vec::new(),
            #[cfg(feature = "vstp")]
            Self::Vstp => {
                let (mut headers, mut bytes) = (HeadersBuf::default(), Vec::new());
                // They are short enough.
                let _ = headers.push(b"code", ErrorCode::Unauthorized.as_str().as_bytes());
                let _ = headers.push(b"reason", WORDS.as_bytes());
                let (typ, flags, headers) = (FrameType::Err, Flags::empty(), headers.as_headers());
                let _ = FrameRef { typ, flags, headers, payload: &[] }.encode(&mut bytes);
                bytes
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "vstp")]
    #[test]
    fn a_protocol_is_known_by_its_name_its_first_byte_and_its_refusal_in_words() {
        for inner in [Inner::Vstp, Inner::Cnp] {
            assert_eq!(Inner::of_alpn(inner.alpn()), Some(inner));
            let refusal = inner.refusal();
            assert_eq!(Inner::of_first_byte(refusal[0]), Some(inner));
            assert!(String::from_utf8_lossy(&refusal).contains("TLS 1.3 alone"));
        }
        assert_eq!((Inner::of_alpn(b"h2"), Inner::of_first_byte(0x16)), (None, None));
        assert_eq!(Inner::VSTP_FIRST_BYTE, fastdrop_proto::vstp::frame::MAGIC[0]);
    }
}

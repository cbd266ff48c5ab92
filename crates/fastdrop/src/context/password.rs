//! A password from a file.

use crate::error::Error;
use fastdrop_proto::fastdp::Code;
use rustix::io::Errno;
use std::fmt;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The longest password that is taken, in bytes.
const LEN_MAX: usize = 4096;

/// A password. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Vec<u8>);

impl Password {
    /// Reads a file of at most 4,096 bytes; a line end at its end is not part of the password.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or holds nothing or too much.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let shown = crate::shown(path.as_os_str().as_bytes());
        let failed = |error: std::io::Error| {
            let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
            Error::system(shown.clone(), errno)
        };
        let refused = |why: &str| Error::failed(Code::BadRequest, format!("{shown}: {why}"));
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(LEN_MAX as u64 + 3).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        match bytes.len() {
            0 => Err(refused("no password in it; write one into the file")),
            1..=LEN_MAX => Ok(Self(bytes)),
            _ => Err(refused("too long for a password: more than 4,096 bytes")),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_what_is_in_the_file_but_for_one_line_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let read = |text: &[u8]| {
            std::fs::write(&path, text).unwrap();
            Password::read(&path)
        };
        for (text, expected) in [
            (&b"secret"[..], &b"secret"[..]),
            (b"secret\n", b"secret"),
            (b"secret\r\n", b"secret"),
            (b"secret\n\n", b"secret\n"),
            (b" p\xc3\xa4ss ", b" p\xc3\xa4ss "),
            (b"\xff\x00", b"\xff\x00"),
            (&[b'a'; LEN_MAX], &[b'a'; LEN_MAX]),
            (&[&[b'a'; LEN_MAX][..], b"\r\n"].concat(), &[b'a'; LEN_MAX]),
        ] {
            let password = read(text).unwrap();
            assert_eq!(password.bytes(), expected);
            assert_eq!(format!("{password:?}"), "Password");
        }
        for text in [&b""[..], b"\n", b"\r\n", &[b'a'; LEN_MAX + 1], &[b'a'; 2 * LEN_MAX]] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains("password: "), "{error}");
        }
        Password::read(&folder.path().join("none")).unwrap_err();
    }
}

//! Why a server cannot start.

use crate::error::{ErrorKind, code_of, kind_of, words};
use rustix::io::Errno;
use std::io;
use std::net::SocketAddr;

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The folder, whose name is escaped, cannot be opened.
    #[error("cannot serve {folder}: {why}", folder = .0, why = words(.1))]
    Folder(String, #[source] io::Error),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {why}", address = .0, why = words(.1))]
    Bind(SocketAddr, #[source] io::Error),
    /// The runtime cannot start.
    #[error("cannot start: {}", words(.0))]
    Runtime(#[source] io::Error),
}

impl ServerError {
    /// Returns the kind of failure that it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ServerError::Folder(_, error) => {
                Errno::from_io_error(error).map_or(ErrorKind::Other, |errno| kind_of(code_of(errno)))
            }
            ServerError::Bind(..) | ServerError::Runtime(_) => ErrorKind::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn the_words_of_the_system_are_the_source_of_each() {
        let error = || io::Error::from(Errno::NOENT);
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        for (error, text, kind) in [
            (
                ServerError::Folder("f".into(), error()),
                "cannot serve f: No such file or directory",
                ErrorKind::NotFound,
            ),
            (
                ServerError::Bind(address, error()),
                "cannot listen on 127.0.0.1:1: No such file or directory",
                ErrorKind::Other,
            ),
            (ServerError::Runtime(error()), "cannot start: No such file or directory", ErrorKind::Other),
        ] {
            assert_eq!((error.to_string().as_str(), error.kind()), (text, kind));
            let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
            assert_eq!(source.and_then(io::Error::raw_os_error), Some(Errno::NOENT.raw_os_error()));
        }
    }
}

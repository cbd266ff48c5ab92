//! Why a server cannot start.

use crate::error::ErrorKind;
use std::net::SocketAddr;

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The folder cannot be opened.
    #[error("cannot serve {0}: {1}")]
    Folder(String, String, ErrorKind),
    /// The address cannot be listened on.
    #[error("cannot listen on {0}: {1}")]
    Bind(SocketAddr, String),
    /// The runtime cannot start.
    #[error("cannot start: {0}")]
    Runtime(std::io::Error),
}

impl ServerError {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            ServerError::Folder(_, _, kind) => *kind,
            ServerError::Bind(..) | ServerError::Runtime(_) => ErrorKind::Other,
        }
    }
}

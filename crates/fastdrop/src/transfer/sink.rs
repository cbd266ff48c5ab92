//! The places where the bytes of a transfer can end up.

use crate::source::filter::Filter;
use crate::storage::options::Unpack;
use crate::storage::output::OutputSink;
use crate::storage::writer::TransferWriter;
use std::sync::Arc;

/// A place where bytes end up.
#[derive(Debug)]
pub(crate) enum Sink {
    /// In files beneath a root.
    Files(Box<TransferWriter>),
    /// In an archive, of which the wanted contents stay in its place.
    Archive(Box<TransferWriter>, Unpack, Box<Filter>),
    /// In a pipe, in order: one file.
    Output(Arc<OutputSink>),
}

impl Sink {
    /// The files, if there are any.
    pub(super) fn files(&self) -> Option<&TransferWriter> {
        match self {
            Self::Files(files) | Self::Archive(files, ..) => Some(files),
            Self::Output(_) => None,
        }
    }
}

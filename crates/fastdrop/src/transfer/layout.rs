//! The cutting of a manifest's files into chunks.

use crate::error::Error;
use fastdrop_proto::fastdp::{Code, Header, Manifest, Table};
use fastdrop_proto::units::ChunkSize;

/// Cuts the files of a manifest into chunks.
///
/// # Errors
///
/// 413 if there are more than can be numbered.
pub(crate) fn cut(manifest: &Manifest, one_chunk: ChunkSize) -> Result<Table, Error> {
    Table::new(manifest, one_chunk).map_err(|error| Error::failed(Code::OverLimit, error.to_string()))
}

/// Checks that a header says of a manifest what is true.
///
/// # Errors
///
/// 400 if it does not.
pub(crate) fn expect_header(header: &Header, manifest: &Manifest, table: &Table) -> Result<(), Error> {
    if (header.full_size, header.full_chunk) == (manifest.bytes(), u64::from(table.count())) {
        return Ok(());
    }
    Err(Error::protocol("the header contradicts the manifest"))
}

/// The chunk size that suits a manifest; `unsized_entry` if the size of one of its entries is not
/// known.
pub(crate) fn wanted_chunk(manifest: &Manifest, unsized_entry: bool) -> ChunkSize {
    let largest = manifest.iter().map(|(_, entry)| entry.size()).max().unwrap_or(0);
    let largest = if unsized_entry { 1 << 30 } else { largest };
    ChunkSize::for_file_size(largest.max(manifest.bytes() / 16))
}

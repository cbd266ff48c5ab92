//! From chunks to a file: as they come, or by way of what decodes them.

use crate::codec::archive::{one_file, read_zip};
use crate::codec::decode::DecodeError;
use crate::context::server::ServerContext;
use crate::error::Error;
use crate::legacy::fastdp1::chunks::Chunks;
use crate::legacy::fastdp1::direct::direct;
use crate::legacy::fastdp1::in_order::in_order;
use crate::legacy::fastdp1::payload::Decoded;
use crate::legacy::upload::LegacyUpload;
use fastdrop_proto::fastdp::v1::Compression;
use std::os::fd::AsFd;

pub(super) fn receive(
    context: &ServerContext,
    chunks: &mut Chunks<'_>,
    placed: LegacyUpload,
) -> Result<(), Error> {
    let header = chunks.header.clone();
    let incoming = placed.incoming()?;
    match header.compression {
        Compression::None => direct(chunks, incoming, incoming.file())?,
        Compression::Zip => {
            // Its directory stands at its end: nothing can be decoded before.
            let archive = incoming.spool()?;
            direct(chunks, incoming, archive.as_fd())?;
            incoming.write_behind(|behind| {
                let mut decoded =
                    Decoded::new(&header, chunks.payload_bytes(), behind, context.options.size_max);
                one_file::<DecodeError>(
                    |content| decoded.take_all(content),
                    |each| read_zip(archive.into(), 1, each),
                )?;
                decoded.finish()
            })?;
        }
        Compression::Zstd | Compression::TarGz => incoming.write_behind(|behind| {
            let mut decoded = Decoded::new(&header, header.full_size, behind, context.options.size_max);
            in_order(chunks, incoming, &mut decoded)?;
            decoded.finish()
        })?,
    }
    placed.commit()
}

//! A payload that is kept as it comes: each chunk goes to its place, in whatever order.

use crate::codec::archive::is_whole_zip;
use crate::error::Error;
use crate::legacy::fastdp1::chunks::Chunks;
use crate::legacy::fastdp1::payload::{Hash, Spool, io_error};
use crate::lock::lock;
use crate::storage::io::write_all_at;
use crate::storage::single::{BUFFER, Look, StagedFile, WriteBehind};
use fastdrop_proto::fastdp::v1::{ChunkPrefix, Verdict};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

/// Receives a whole payload into `file`, each chunk at its place, and compares
/// its SHA-256 with what was announced.
pub(crate) fn direct(
    chunks: &mut Chunks<'_>,
    incoming: &StagedFile,
    file: BorrowedFd<'_>,
) -> Result<(), Error> {
    let hash = Mutex::new(Hash::new(&chunks.header));
    // The beginning, as long as chunks come in order; on a thread of its
    // own, for nothing else takes as long.
    let add = |bytes: &[u8], at: u64| {
        let mut hash = lock(&hash);
        if at == hash.bytes() {
            hash.update(bytes);
        }
    };
    let look = chunks.header.checksum.is_some().then_some(&add as &Look<'_>);
    incoming.write_behind_to(file, look, |behind| {
        let mut spool = Spool::new(incoming);
        while !is_whole(chunks, behind, file)? {
            let prefix = chunks.prefix()?;
            let shifted = |chunks: &mut Chunks<'_>, behind: &mut WriteBehind| {
                let end = chunks.proto.end();
                shift(file, end, u64::from(chunks.header.one_chunk), behind)?;
                *lock(&hash) = Hash::new(&chunks.header);
                Ok(())
            };
            receive_chunk(chunks, prefix, &mut spool, behind, file, &shifted)?;
        }
        Ok(())
    })?;
    let hash = hash.into_inner().unwrap_or_else(PoisonError::into_inner);
    chunks.verify(hash, file)
}

/// Receives one chunk, and with it what has waited for it. If the connection is
/// lost on the way, the chunk comes again.
fn receive_chunk(
    chunks: &mut Chunks<'_>,
    prefix: ChunkPrefix,
    spool: &mut Spool<'_>,
    behind: &mut WriteBehind,
    file: BorrowedFd<'_>,
    shifted: &dyn Fn(&mut Chunks<'_>, &mut WriteBehind) -> Result<(), Error>,
) -> Result<(), Error> {
    let one_chunk = u64::from(chunks.header.one_chunk);
    let size = prefix.size as usize;
    let mut done = 0;
    let mut place = None;
    while done < size || place.is_none() {
        let mut buffer = behind.buffer()?;
        let count = (size - done).min(BUFFER);
        if !chunks.fill(&mut buffer[..count])? {
            behind.give_back(buffer);
            return Ok(());
        }
        let verdict = match place {
            Some(verdict) => verdict,
            None => chunks.proto.judge(prefix, &buffer[..count])?,
        };
        place = Some(verdict);
        if chunks.proto.poll_shift() {
            shifted(chunks, behind)?;
        }
        match verdict {
            Verdict::Take(index) => {
                behind.write(buffer, count, u64::from(index) * one_chunk + done as u64)?;
            }
            Verdict::Wait => {
                spool.write(&buffer[..count], u64::from(prefix.number) * one_chunk + done as u64)?;
                behind.give_back(buffer);
            }
            Verdict::Known => behind.give_back(buffer),
        }
        done += count;
    }
    if place != Some(Verdict::Known) {
        chunks.proto.handle_received(prefix);
    }
    while let Some(waiting) = chunks.proto.poll_waiting()? {
        let mut bytes = vec![0; waiting.size as usize];
        spool.read(&mut bytes, u64::from(waiting.number) * one_chunk)?;
        write_all_at(file, &bytes, u64::from(waiting.index) * one_chunk)
            .map_err(|errno| Error::system("writing what arrives", errno))?;
    }
    Ok(())
}

/// Whether all of the payload has come; of a 1.0.0 archive, whose
/// size nobody says, only its end tells.
fn is_whole(chunks: &Chunks<'_>, behind: &mut WriteBehind, file: BorrowedFd<'_>) -> Result<bool, Error> {
    let is_known = chunks.header.payload().is_some();
    let proto = &chunks.proto;
    if proto.is_complete() {
        return Ok(true);
    }
    if is_known || proto.end() == 0 || !proto.is_contiguous() {
        return Ok(false);
    }
    // What has not been written cannot be looked at.
    behind.flush(0)?;
    let file = file.try_clone_to_owned().map_err(io_error)?;
    is_whole_zip(&mut file.into()).map_err(io_error)
}

/// Moves all chunks but the last by one, away from the beginning.
fn shift(file: impl AsFd, chunks: u32, one_chunk: u64, behind: &mut WriteBehind) -> Result<(), Error> {
    let file = file.as_fd();
    // One buffer is with the caller.
    behind.flush(1)?;
    let failed = |errno| Error::system("moving what has arrived", errno);
    let mut buffer = vec![0; one_chunk as usize];
    for index in (1..u64::from(chunks)).rev() {
        let count = rustix::io::pread(file, &mut buffer, (index - 1) * one_chunk).map_err(failed)?;
        write_all_at(file, &buffer[..count], index * one_chunk).map_err(failed)?;
    }
    Ok(())
}

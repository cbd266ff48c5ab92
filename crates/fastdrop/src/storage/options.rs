//! What the receiving side decides by itself.

use crate::codec::archive::MEMBERS_MAX;
use crate::error::Error;
use fastdrop_proto::fastdp::{Archive, Code, Durability, Existing};

/// What the receiving side decides by itself.
#[derive(Debug, Clone)]
pub(crate) struct ReceiveOptions {
    pub(crate) existing: Existing,
    /// How what is in the way could be got out of it, in words for whoever is refused; empty if it
    /// could not.
    pub(crate) advice: &'static str,
    /// Identical means equal contents.
    pub(crate) check: bool,
    pub(crate) durability: Durability,
    pub(crate) times: bool,
    pub(crate) mode: bool,
    pub(crate) resume: bool,
    /// Most bytes of one transfer.
    pub(crate) size_max: Option<u64>,
    /// Bytes of the file system that must stay free.
    pub(crate) free_min: u64,
    /// What arrives is an archive of which only the contents are to stay.
    pub(crate) unpack: Option<Unpack>,
}

impl ReceiveOptions {
    /// Checks that `needed` bytes fit where `free` are, in the folder `place`, and that a transfer
    /// may have `total`.
    pub(crate) fn check_room(&self, needed: u64, free: u64, total: u64, place: &[u8]) -> Result<(), Error> {
        if self.size_max.is_some_and(|max| total > max) {
            return Err(Error::failed(Code::OverLimit, "more bytes than one transfer may have here"));
        }
        if free.saturating_sub(self.free_min) >= needed {
            return Ok(());
        }
        let place = if place.is_empty() { String::new() } else { format!(" in {}", crate::shown(place)) };
        Err(Error::failed(
            Code::NoSpace,
            format!("no space{place}: {needed} bytes are needed and {free} are free"),
        ))
    }
}

/// How an archive is unpacked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unpack {
    pub(crate) kind: Archive,
    /// Files, folders and links that it may have.
    pub(crate) members_max: u32,
}

impl Unpack {
    /// Of so many entries as a manifest may have, but not more than [`MEMBERS_MAX`].
    pub(crate) fn new(kind: Archive, entries_max: u32) -> Self {
        Self { kind, members_max: entries_max.min(MEMBERS_MAX) }
    }
}

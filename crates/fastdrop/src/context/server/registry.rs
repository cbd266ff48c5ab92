//! The transfers under way on a server.

use crate::admission::count::Counted;
use crate::error::Error;
use crate::gate::action::Action;
use crate::lock::lock;
use crate::storage::journal::FileKey;
use crate::storage::placement::Placement;
use crate::transfer::receive::ReceiveTransfer;
use crate::transfer::send::SendTransfer;
use fastdrop_proto::fastdp::{Code, Manifest};
use fastdrop_proto::units::TransferId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A transfer under way.
#[derive(Clone)]
pub(crate) enum Transfer {
    Receiving(Arc<ReceiveTransfer>),
    Sending(Arc<SendTransfer>),
}

/// A place among the transfers of a server, until the last one of its clones is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Reservation(#[expect(dead_code, reason = "it counts until it is dropped")] Arc<Counted>);

struct Session {
    _place: Reservation,
    transfer: Transfer,
    /// The action that its client was admitted to.
    action: Action,
    /// Data streams granted.
    streams: u16,
    /// Data streams that have joined and not ended.
    joined: Arc<AtomicUsize>,
}

/// A put that is still comparing.
struct Preparing {
    id: u64,
    manifest: Arc<Manifest>,
    placement: Placement,
}

/// Transfers under way, at most so many at once.
pub(crate) struct Registry {
    transfers_max: usize,
    /// The transfers that have a place, of every protocol.
    reserved: Arc<AtomicUsize>,
    sessions: Mutex<BTreeMap<[u8; 16], Session>>,
    preparing: Mutex<Vec<Preparing>>,
    next_preparing: AtomicU64,
    /// The stages of files that come by the older protocols.
    placed: Mutex<BTreeSet<String>>,
}

impl Registry {
    /// Creates a registry of at most `transfers_max` transfers.
    pub(crate) fn new(transfers_max: usize) -> Self {
        Self {
            transfers_max,
            reserved: Arc::default(),
            sessions: Mutex::default(),
            preparing: Mutex::default(),
            next_preparing: AtomicU64::new(0),
            placed: Mutex::default(),
        }
    }

    /// Takes a place for one more transfer, before anything is made for it.
    ///
    /// # Errors
    ///
    /// 503 if there are as many transfers as may be.
    pub(crate) fn reserve(&self) -> Result<Reservation, Error> {
        let counted = Counted::within(&self.reserved, self.transfers_max);
        let counted =
            counted.ok_or_else(|| Error::failed(Code::Unavailable, "too many transfers at once"))?;
        Ok(Reservation(Arc::new(counted)))
    }

    /// Registers a transfer that takes data streams.
    ///
    /// # Errors
    ///
    /// 503 if there are as many transfers as may be.
    pub(crate) fn add(
        self: &Arc<Self>,
        id: TransferId,
        transfer: Transfer,
        action: Action,
        streams: u16,
    ) -> Result<SessionGuard, Error> {
        let place = self.reserve()?;
        let session = Session { _place: place, transfer, action, streams, joined: Arc::default() };
        lock(&self.sessions).insert(id.0, session);
        Ok(SessionGuard { registry: Arc::clone(self), id })
    }

    /// Finds a transfer for a data stream: the streams that it was granted, and the stream's place
    /// among them; no place if there are as many as may be, which are those granted, and as many
    /// again while they are replaced. None also if what the transfer does is not admitted.
    pub(crate) fn join(
        &self,
        id: TransferId,
        admits: impl FnOnce(Action) -> bool,
    ) -> Option<(Transfer, u16, Option<Counted>)> {
        let sessions = lock(&self.sessions);
        let session = sessions.get(&id.0).filter(|session| admits(session.action))?;
        let most = 2 * usize::from(session.streams) + 2;
        Some((session.transfer.clone(), session.streams, Counted::within(&session.joined, most)))
    }

    /// Refuses a put while another that is still comparing brings the same files.
    ///
    /// # Errors
    ///
    /// 503: the sender may try again.
    pub(crate) fn prepare(
        self: &Arc<Self>,
        manifest: &Arc<Manifest>,
        placement: &Placement,
    ) -> Result<PreparingGuard, Error> {
        let mut preparing = lock(&self.preparing);
        let same = preparing.iter().any(|other| {
            manifest.iter().any(|(_, entry)| {
                let key = FileKey::new(placement.of(entry.path), entry.size(), entry.mtime);
                entry.size() > 0 && other.placement.entry_of(&key, &other.manifest).is_some()
            })
        });
        if same {
            return Err(Error::failed(
                Code::Unavailable,
                "an earlier attempt at this is still being looked at",
            ));
        }
        let id = self.next_preparing.fetch_add(1, Ordering::Relaxed);
        preparing.push(Preparing { id, manifest: Arc::clone(manifest), placement: placement.clone() });
        Ok(PreparingGuard { registry: Arc::clone(self), id })
    }

    /// Returns the transfer whose stage has this folder.
    pub(crate) fn by_folder(&self, folder: &str) -> Option<Arc<ReceiveTransfer>> {
        let sessions = lock(&self.sessions);
        sessions.values().find_map(|session| match &session.transfer {
            Transfer::Receiving(transfer) if transfer.folder() == Some(folder) => Some(Arc::clone(transfer)),
            _ => None,
        })
    }

    /// Registers the stage of a file that comes by an older protocol.
    pub(crate) fn add_placed(self: &Arc<Self>, place: Reservation, folder: &str) -> PlacedGuard {
        lock(&self.placed).insert(folder.to_owned());
        PlacedGuard { _place: place, registry: Arc::clone(self), folder: folder.to_owned() }
    }

    /// Reports whether a stage is that of a file that comes by an older protocol.
    pub(crate) fn is_placed(&self, folder: &str) -> bool {
        lock(&self.placed).contains(folder)
    }
}

/// A transfer that is known as long as this is there, also when its thread panics.
pub(crate) struct SessionGuard {
    registry: Arc<Registry>,
    id: TransferId,
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        lock(&self.registry.sessions).remove(&self.id.0);
    }
}

/// A put is being compared as long as this is there.
pub(crate) struct PreparingGuard {
    registry: Arc<Registry>,
    id: u64,
}

impl Drop for PreparingGuard {
    fn drop(&mut self) {
        lock(&self.registry.preparing).retain(|other| other.id != self.id);
    }
}

/// The stage of a file, which is known as long as this is there.
pub(crate) struct PlacedGuard {
    _place: Reservation,
    registry: Arc<Registry>,
    folder: String,
}

impl Drop for PlacedGuard {
    fn drop(&mut self) {
        lock(&self.registry.placed).remove(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_taken_once_and_until_the_last_clone_goes() {
        let registry = Arc::new(Registry::new(2));
        let first = registry.reserve().unwrap();
        let placed = registry.add_placed(registry.reserve().unwrap(), "folder");
        assert_eq!(registry.reserve().unwrap_err().code(), Code::Unavailable);
        drop(placed);
        let clone = first.clone();
        drop(first);
        let second = registry.reserve().unwrap();
        assert_eq!(registry.reserve().unwrap_err().code(), Code::Unavailable);
        drop((clone, second));
        assert!(registry.reserve().is_ok());
    }
}

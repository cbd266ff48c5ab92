//! The sessions of a UDP socket, by the addresses of their peers.

use super::driver::Shared;
use super::link::Received;
use fastdrop_proto::cnp::ConnectionId;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use tokio::sync::mpsc;

/// A session, and the way to it.
pub(super) struct Entry {
    pub(super) inbox: mpsc::Sender<Received>,
    shared: Weak<Shared>,
    /// Its name, if its peer may change its address.
    id: Option<ConnectionId>,
    /// Addresses from which its peer has sent since, the last two.
    aliases: VecDeque<SocketAddr>,
}

impl Entry {
    pub(super) fn new(inbox: mpsc::Sender<Received>, shared: &Arc<Shared>) -> Self {
        let id = shared.lock().session.connection_id();
        Self { inbox, shared: Arc::downgrade(shared), id, aliases: VecDeque::new() }
    }

    /// Returns true if the session is over, or only waits in case that its last acknowledgement is
    /// lost.
    fn is_over(&self) -> bool {
        self.shared.upgrade().is_none_or(|shared| shared.lock().session.is_over())
    }

    /// The address to which the session sends now.
    fn peer(&self) -> Option<SocketAddr> {
        self.shared.upgrade()?.lock().peer
    }
}

/// All sessions of a socket.
#[derive(Default)]
pub(super) struct Sessions {
    /// By the address with which they began, or to which they have been moved since.
    by_address: HashMap<SocketAddr, Entry>,
    by_id: HashMap<ConnectionId, SocketAddr>,
    aliases: HashMap<SocketAddr, ConnectionId>,
}

impl Sessions {
    /// Addresses of a session beside its first: the one that it has, and one that is to be proved.
    const ALIASES_MAX: usize = 2;

    pub(super) fn len(&self) -> usize {
        self.by_address.len()
    }

    pub(super) fn contains(&self, address: SocketAddr) -> bool {
        self.by_address.contains_key(&address)
    }

    /// All that are still there.
    pub(super) fn shared(&self) -> impl Iterator<Item = Arc<Shared>> {
        self.by_address.values().filter_map(|entry| entry.shared.upgrade())
    }

    /// The session that a datagram is for, and its key.
    pub(super) fn of(&mut self, from: SocketAddr, datagram: &[u8]) -> Option<(SocketAddr, &Entry)> {
        if let Some(id) = ConnectionId::in_front_of(datagram)
            && let Some(key) = self.named(id, from, datagram)
        {
            return self.by_address.get(&key).map(|entry| (key, entry));
        }
        let alias = || self.aliases.get(&from).and_then(|id| self.by_id.get(id)).copied();
        let key = if self.by_address.contains_key(&from) { Some(from) } else { alias() }?;
        self.by_address.get(&key).map(|entry| (key, entry))
    }

    /// The key of the session with this name, if the datagram is its peer's; `from` is one of its
    /// addresses then.
    fn named(&mut self, id: ConnectionId, from: SocketAddr, datagram: &[u8]) -> Option<SocketAddr> {
        let key = *self.by_id.get(&id)?;
        if key == from {
            return Some(key);
        }
        let entry = self.by_address.get_mut(&key)?;
        let shared = entry.shared.upgrade()?;
        let peer = {
            let state = shared.lock();
            if !state.session.is_from_peer(datagram) {
                return None;
            }
            state.peer
        };
        if !entry.aliases.contains(&from) {
            // The address that it has now is kept.
            if entry.aliases.len() >= Self::ALIASES_MAX
                && let Some(index) = entry.aliases.iter().position(|alias| Some(*alias) != peer)
                && let Some(old) = entry.aliases.remove(index)
                && self.aliases.get(&old) == Some(&id)
            {
                self.aliases.remove(&old);
            }
            entry.aliases.push_back(from);
        }
        self.aliases.insert(from, id);
        Some(key)
    }

    /// A session begins at this address. One that began there and has moved keeps its place under
    /// the address that it has now; another one is over, and true is returned.
    pub(super) fn insert(&mut self, address: SocketAddr, entry: Entry) -> bool {
        let replaced = match self.by_address.remove(&address) {
            Some(old) => match old.peer().filter(|peer| *peer != address) {
                Some(peer) => {
                    if let Some(id) = old.id {
                        self.by_id.insert(id, peer);
                    }
                    if let Some(other) = self.by_address.insert(peer, old) {
                        self.forget(&other);
                    }
                    false
                }
                None => {
                    self.forget(&old);
                    true
                }
            },
            None => {
                // One that has moved there is over as well.
                let key = self.aliases.get(&address).and_then(|id| self.by_id.get(id)).copied();
                let moved = key.and_then(|key| self.by_address.get(&key)?.peer());
                let is_there = moved == Some(address);
                if is_there {
                    self.remove(address);
                }
                is_there
            }
        };
        if let Some(id) = entry.id {
            self.by_id.insert(id, address);
        }
        self.aliases.remove(&address);
        self.by_address.insert(address, entry);
        replaced
    }

    /// The session at this address is gone.
    pub(super) fn remove(&mut self, from: SocketAddr) {
        let alias = self.aliases.get(&from).and_then(|id| self.by_id.get(id)).copied();
        let key = if self.by_address.contains_key(&from) { Some(from) } else { alias };
        if let Some(entry) = key.and_then(|key| self.by_address.remove(&key)) {
            self.forget(&entry);
        }
    }

    /// Removes those that are over.
    pub(super) fn sweep(&mut self) {
        let over: Vec<SocketAddr> =
            self.by_address.iter().filter(|(_, entry)| entry.is_over()).map(|(key, _)| *key).collect();
        over.into_iter().for_each(|key| self.remove(key));
    }

    fn forget(&mut self, entry: &Entry) {
        let Some(id) = entry.id else { return };
        self.by_id.remove(&id);
        for alias in &entry.aliases {
            if self.aliases.get(alias) == Some(&id) {
                self.aliases.remove(alias);
            }
        }
    }
}

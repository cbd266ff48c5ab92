//! Keys of connections under way, each in use once.

use crate::lock::lock;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

/// The keys in use.
#[derive(Debug, Default)]
pub(crate) struct Keys(Mutex<BTreeSet<String>>);

impl Keys {
    /// Takes a key; None if a connection under way has it.
    pub(crate) fn take(self: &Arc<Self>, key: &str) -> Option<KeyGuard> {
        let fresh = lock(&self.0).insert(key.to_owned());
        fresh.then(|| KeyGuard { keys: Arc::clone(self), key: key.to_owned() })
    }
}

/// A key in use; free again when this is dropped.
#[derive(Debug)]
pub(crate) struct KeyGuard {
    keys: Arc<Keys>,
    key: String,
}

impl Drop for KeyGuard {
    fn drop(&mut self) {
        lock(&self.keys.0).remove(&self.key);
    }
}

//! Locking without regard to poison.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks. A thread that panicked ends its own connection; what it held is still worth having.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

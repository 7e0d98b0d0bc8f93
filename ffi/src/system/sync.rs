//! Locks.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A lock whose data stays usable when a thread panicked with it: every writer leaves it complete.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

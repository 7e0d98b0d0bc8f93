//! Listeners that were replaced in the table and are still in use: connections and flows keep the entry by which they
//! were accepted.

use std::ops::RangeInclusive;
use std::sync::{Arc, Weak};

use super::listener::Listener;

/// Entries that were replaced, with the version of the table that had them last.
#[derive(Default)]
pub struct Replaced(Vec<(u32, u32, Weak<Listener>)>);

impl Replaced {
    /// Notes those of a version that is about to be replaced, and forgets those that nobody has. So there
    /// are at most as many as connections and flows, in addition to the last ones.
    pub fn add(&mut self, version: u32, listeners: &[Arc<Listener>]) {
        self.0.retain(|(.., entry)| entry.strong_count() > 0);
        self.0.extend(listeners.iter().map(|entry| (version, entry.id, Arc::downgrade(entry))));
    }

    /// Whether anybody has a listener as one of these versions had it.
    pub fn is_in_use(&self, listener: u32, versions: RangeInclusive<u32>) -> bool {
        self.0.iter().any(|(version, id, entry)| {
            *id == listener && versions.contains(version) && entry.strong_count() > 0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::settings::Settings;

    #[test]
    fn a_replaced_entry_is_in_use_as_long_as_somebody_has_it() {
        let entry = |id| Arc::new(Listener::new(id, Settings::for_tests(), Vec::new(), 1));
        let mut replaced = Replaced::default();
        let (first, other, second) = (entry(1), entry(2), entry(1));
        replaced.add(1, &[first.clone(), other]);
        replaced.add(2, &[second]);
        assert!(replaced.is_in_use(1, 1..=1));
        assert!(replaced.is_in_use(1, 1..=2));
        assert!(!replaced.is_in_use(1, 2..=2), "nobody has it");
        assert!(!replaced.is_in_use(2, 1..=2), "nobody has it");
        drop(first);
        assert!(!replaced.is_in_use(1, 1..=2));
        replaced.add(3, &[]);
        assert!(replaced.0.is_empty());
    }
}

//! The number of connections or flows of a listener, over all workers, and its limit (`max-connections`,
//! `max-flows`).

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

/// How many there are. Counted without a limit too, so that a reload that sets one finds them.
#[derive(Default)]
pub struct Quota(AtomicU32);

/// One of them, until it is dropped.
pub struct Counted(Arc<Quota>);

impl Quota {
    /// One more, unless there are `most` already.
    pub fn take(quota: &Arc<Quota>, most: Option<u32>) -> Option<Counted> {
        let more = |count| (most.is_none_or(|most| count < most)).then_some(count + 1);
        let taken = quota.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.is_ok().then(|| Counted(quota.clone()))
    }

    /// How many there are now.
    #[cfg(test)]
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0 .0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_than_the_limit_and_what_came_before_it_counts() {
        let quota: Arc<Quota> = Arc::default();
        let unlimited: Vec<Counted> = (0..3).filter_map(|_| Quota::take(&quota, None)).collect();
        assert_eq!((unlimited.len(), quota.count()), (3, 3));
        assert!(Quota::take(&quota, Some(3)).is_none());
        drop(unlimited);
        assert_eq!(quota.count(), 0);
        let one = Quota::take(&quota, Some(1));
        assert!(one.is_some() && Quota::take(&quota, Some(1)).is_none());
        drop(one);
        assert!(Quota::take(&quota, Some(1)).is_some());
    }

    #[test]
    fn workers_that_take_at_once_keep_the_limit() {
        let quota: Arc<Quota> = Arc::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let taken = Quota::take(&quota, Some(2));
                        assert!(quota.count() <= 2);
                        drop(taken);
                    }
                });
            }
        });
        assert_eq!(quota.count(), 0);
    }
}

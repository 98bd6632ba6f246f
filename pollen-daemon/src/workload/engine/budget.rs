//! How much memory all guests of this node have together. Invariant: what was taken comes back, and no more is given
//! than there is.

use std::sync::atomic::{AtomicU64, Ordering};

use super::STACK_BYTES_MAX;

/// Of what an instance has from its start, the share that is taken from the budget, as a divisor. Most of it is room
/// that was made so that allocators need not ask for more; guests of today's PDKs touch less than a tenth of it in a
/// small call. What an instance gains later is taken whole: it asked for that because it needs it.
const INITIAL_SHARE: u64 = 8;

/// Memory for guests, in bytes.
pub struct Budget {
    total: AtomicU64,
    used: AtomicU64,
}

/// What an instance has from its start, until it is dropped.
pub struct Place<'a> {
    budget: &'a Budget,
    bytes: u64,
}

impl Budget {
    pub const fn new(total_bytes: u64) -> Self {
        Self { total: AtomicU64::new(total_bytes), used: AtomicU64::new(0) }
    }

    pub fn total_bytes(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Changes what there is. Below what is used nothing is taken back: nothing more is given until enough came back.
    pub fn set_total_bytes(&self, bytes: u64) {
        self.total.store(bytes, Ordering::Relaxed);
    }

    pub fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes `bytes`, to be given back; false when they are not there.
    pub fn take(&self, bytes: u64) -> bool {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.total_bytes() {
            self.give(bytes);
            return false;
        }
        true
    }

    pub fn give(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Room for an instance that begins with `initial_bytes`, and its stack. That is counted whole: stacks keep what
    /// was touched of them, so what ran at once bounds what they hold.
    pub fn place(&self, initial_bytes: u64) -> Option<Place<'_>> {
        let bytes = initial_bytes / INITIAL_SHARE + STACK_BYTES_MAX as u64;
        // Made only if it was taken: dropping it gives back.
        self.take(bytes).then(|| Place { budget: self, bytes })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.budget.give(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_given_than_there_is_and_what_was_taken_comes_back() {
        let stack = STACK_BYTES_MAX as u64;
        let budget = Budget::new(100 + stack);
        let place = budget.place(80).expect("there is room");
        assert!(budget.place(80).is_none(), "there is no room for another stack");
        assert!(budget.take(90) && !budget.take(1));
        drop(place);
        assert!(budget.take(10 + stack));
        budget.give(100 + stack);
        assert_eq!(budget.used_bytes(), 0);
    }

    #[test]
    fn below_what_is_used_nothing_more_is_given_until_enough_came_back() {
        let budget = Budget::new(100);
        assert!(budget.take(80));
        budget.set_total_bytes(50);
        assert!(!budget.take(1));
        budget.give(40);
        assert!(budget.take(10) && !budget.take(1));
        budget.set_total_bytes(60);
        assert!(budget.take(10));
    }
}

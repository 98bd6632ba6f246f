//! The watch for a second process with this node's key. Owns the back-off; decides nothing about heads.
//! Invariant: while a twin is active, the pauses grow, so that two copies do not fight over the cluster.

use core::time::Duration;

use crate::maps::head::SignedHead;
use crate::time::Instant;

/// The first pause: long enough for a person to notice, short enough for a copy stopped at once.
const PAUSE_MIN: Duration = Duration::from_secs(60);

/// The longest pause; also how long without a twin until pauses are short again.
const PAUSE_MAX: Duration = Duration::from_secs(60 * 60);

/// A head of this node that it did not sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Twin {
    pub head: SignedHead,
    pub seen: Instant,
    /// Nothing is published before.
    pub until: Instant,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Watch {
    last: Option<Twin>,
    paused: bool,
    pause: Duration,
}

impl Watch {
    pub(super) const fn last(&self) -> Option<&Twin> {
        self.last.as_ref()
    }

    pub(super) fn paused_until(&self) -> Option<Instant> {
        self.last.filter(|_| self.paused).map(|twin| twin.until)
    }

    /// A twin's head came. More of them during a pause change nothing: it is known already.
    pub(super) fn seen(&mut self, head: SignedHead, now: Instant) {
        if self.paused_until().is_some_and(|until| now < until) {
            return;
        }
        let quiet = self.last.is_none_or(|last| now.since(last.until) >= PAUSE_MAX);
        self.pause = if quiet { PAUSE_MIN } else { (self.pause * 2).min(PAUSE_MAX) };
        self.paused = true;
        self.last = Some(Twin { head, seen: now, until: now + self.pause });
    }

    /// Whether a pause ends now.
    pub(super) fn resume(&mut self, now: Instant) -> bool {
        let over = self.paused_until().is_some_and(|until| until <= now);
        self.paused &= !over;
        over
    }
}

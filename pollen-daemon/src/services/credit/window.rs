//! How much one direction of a stream should have on the way: as much as its reader takes in two round trips. Pure.
//! Invariant: a reader that stops has no more than it last used, and one that never read has what all start with.

use std::time::{Duration, Instant};

use pollen_common::wire::streams::credit::INITIAL_BYTES;

/// The most. With QUIC's own window of a stream, which is as large, it bounds what one flow has on the way.
pub(super) const WINDOW_BYTES_MAX: u64 = 2 << 20;
/// What a grant takes besides the round trip: busy threads at both ends.
const SLACK: Duration = Duration::from_millis(10);

/// The size, found by doubling.
#[derive(Debug)]
pub(super) struct Window {
    bytes: u64,
    /// When the window under way began, and what was taken before it.
    since: Instant,
    from: u64,
}

impl Window {
    pub(super) fn new(bytes: u64, now: Instant) -> Self {
        Self { bytes, since: now, from: 0 }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The reader has taken `total` bytes so far. `rtt` is asked seldom.
    pub(super) fn taken(&mut self, total: u64, now: Instant, rtt: impl FnOnce() -> Duration) {
        if total - self.from < self.bytes {
            return;
        }
        if now.duration_since(self.since) < (rtt() + SLACK) * 2 {
            self.bytes = (self.bytes * 2).min(WINDOW_BYTES_MAX);
        }
        (self.since, self.from) = (now, total);
    }
}

impl Default for Window {
    fn default() -> Self {
        Self::new(INITIAL_BYTES, Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The window after a second of `rate` bytes a millisecond.
    fn after_a_second(rate: u64, rtt: Duration) -> u64 {
        let start = Instant::now();
        let mut window = Window::new(INITIAL_BYTES, start);
        for ms in 1..=1000 {
            window.taken(ms * rate, start + Duration::from_millis(ms), || rtt);
        }
        window.bytes()
    }

    #[test]
    fn it_is_about_what_the_reader_takes_in_two_round_trips() {
        assert_eq!(after_a_second(100, Duration::from_millis(1)), INITIAL_BYTES);
        assert_eq!(after_a_second(100_000, Duration::from_millis(1)), WINDOW_BYTES_MAX);
        let far = after_a_second(2_000, Duration::from_millis(100));
        assert!((256 << 10..=512 << 10).contains(&far), "{far} for 2 MB/s and 100 ms");
    }
}

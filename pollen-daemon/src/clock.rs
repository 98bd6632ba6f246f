//! The clocks of the process: the only place that reads them for the core. Its zero lies before the process, so that
//! the core may subtract from the present without reaching it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pollen_common::time::{Instant, Now, UnixMs};

/// How old the clock pretends to be at its start: longer than anything the core looks back.
const AGE_AT_START: Duration = Duration::from_secs(24 * 3600);

/// Tells the core's two times.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: std::time::Instant,
}

impl Default for Clock {
    fn default() -> Self {
        Self { start: std::time::Instant::now() }
    }
}

impl Clock {
    /// The present moment.
    #[must_use]
    pub fn now(&self) -> Now {
        Now { mono: Instant::default() + AGE_AT_START + self.start.elapsed(), unix: unix_now() }
    }

    /// A moment of the core's as the runtime's timers count.
    #[must_use]
    pub fn at(&self, instant: Instant) -> tokio::time::Instant {
        (self.start + instant.since(Instant::default() + AGE_AT_START)).into()
    }
}

/// The wall clock; before 1970 it is 1970.
#[must_use]
pub fn unix_now() -> UnixMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_of_the_cores_is_the_same_moment_of_the_timers() {
        let clock = Clock::default();
        let now = clock.now().mono;
        let later = clock.at(now + Duration::from_secs(5)).duration_since(clock.at(now));
        assert_eq!(later, Duration::from_secs(5));
        assert_eq!(clock.at(Instant(0)), clock.start.into(), "long past is due at once");
    }
}

//! Waiting for something to become true, with a deadline and the last reason why it was not.
//! Invariant: no sleep stands for an event; only the time between two looks is slept.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two looks: short beside every deadline of the scenarios, long beside one look.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Looks until `look` gives a value; returns it and how long that took.
///
/// # Errors
/// After `deadline`: what was waited for, and what the last look said.
pub fn eventually<T>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> Result<(T, Duration)> {
    let started = Instant::now();
    loop {
        // Read before the look: a look that began in time counts however long it takes.
        let elapsed = started.elapsed();
        match look() {
            Ok(value) => return Ok((value, elapsed)),
            Err(reason) if elapsed >= deadline => bail!("not within {deadline:?}: {what}: {reason}"),
            Err(_) => std::thread::sleep(LOOK_EVERY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_that_becomes_true_is_waited_for() {
        let mut looks = 0;
        let look = || {
            looks += 1;
            if looks == 3 { Ok(looks) } else { Err("not yet".to_owned()) }
        };
        assert_eq!(eventually("three looks", Duration::from_secs(5), look).unwrap().0, 3);
    }

    #[test]
    fn a_thing_that_stays_false_fails_with_the_last_reason() {
        let error = eventually("never", Duration::ZERO, || Err::<(), _>("it rains".to_owned())).unwrap_err();
        assert_eq!(error.to_string(), "not within 0ns: never: it rains");
    }
}

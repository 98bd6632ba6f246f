//! Whether one link's peer is alive, by small probes. Owns the timing; sends and reads nothing.
//! Invariant: a peer is given up only after several probes of ours went unanswered, never because this process was
//! held up: silence alone does not count.

use core::time::Duration;

use crate::time::Instant;

/// How often the leading end probes a quiet link. With a pong and QUIC's acknowledgements this is about 200 bytes a
/// second for a pair.
const INTERVAL: Duration = Duration::from_secs(1);

/// How much longer the other end waits before it probes by itself: the leader's probe tells it as much.
const FOLLOWER_GRACE: Duration = Duration::from_millis(400);

/// How soon an unanswered probe is repeated.
const RETRY: Duration = Duration::from_millis(250);

/// Unanswered probes after which the peer is dead. From its last sign of life that is at most
/// `INTERVAL + FOLLOWER_GRACE + 4 * RETRY` = 2.4 s, within the 3 s that operators are promised.
const UNANSWERED_MAX: u8 = 4;

/// What to do about a link now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a ping with this number, then ask again.
    Ping(u32),
    /// The peer is gone.
    Dead,
    /// Nothing before this moment.
    Wait(Instant),
}

/// The watch over one link.
#[derive(Clone, Debug)]
pub struct Probe {
    interval: Duration,
    next: Instant,
    unanswered: u8,
    number: u32,
    sent: Instant,
}

impl Probe {
    /// Begins with a sign of life. Exactly one end of a link `leads`.
    #[must_use]
    pub fn new(leads: bool, now: Instant) -> Self {
        let interval = if leads { INTERVAL } else { INTERVAL + FOLLOWER_GRACE };
        let next = now + interval;
        Self { interval, next, unanswered: 0, number: 0, sent: now }
    }

    /// The peer said something.
    pub fn heard(&mut self, now: Instant) {
        self.unanswered = 0;
        // The leader keeps its rhythm, so that the follower hears from it; the follower starts anew.
        self.next = if self.interval == INTERVAL { self.next.max(self.sent + INTERVAL) } else { now + self.interval };
    }

    /// What to do now. Ask again after each ping and when the time waited for has come.
    pub fn poll(&mut self, now: Instant) -> Action {
        if now < self.next {
            return Action::Wait(self.next);
        }
        if self.unanswered == UNANSWERED_MAX {
            return Action::Dead;
        }
        self.unanswered += 1;
        self.number = self.number.wrapping_add(1);
        self.sent = now;
        self.next = now + RETRY;
        Action::Ping(self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Instant {
        Instant(ms * 1_000_000)
    }

    /// Runs both ends in steps of 10 ms until `until`; the peer of `a` answers while `alive`.
    fn dead_after(mut probe: Probe, from: u64) -> u64 {
        (from..).step_by(10).find(|t| probe.poll(ms(*t)) == Action::Dead).unwrap_or(u64::MAX) - from
    }

    #[test]
    fn a_silent_peer_is_given_up_within_three_seconds_by_either_end() {
        for leads in [true, false] {
            let mut probe = Probe::new(leads, ms(0));
            probe.heard(ms(1));
            let after = dead_after(probe, 1);
            assert!((1000..2700).contains(&after), "leads: {leads}, after {after} ms");
        }
    }

    #[test]
    fn a_long_stall_of_our_own_kills_nobody() {
        let mut probe = Probe::new(false, ms(0));
        assert_eq!(probe.poll(ms(60_000)), Action::Ping(1));
        probe.heard(ms(60_001));
        assert_eq!(probe.poll(ms(60_001)), Action::Wait(ms(61_401)));
    }

    #[test]
    fn an_idle_pair_exchanges_one_ping_a_second() {
        let (mut leader, mut follower) = (Probe::new(true, ms(0)), Probe::new(false, ms(0)));
        let mut pings = 0;
        for t in 0..10_000 {
            if let Action::Ping(_) = leader.poll(ms(t)) {
                pings += 1;
                follower.heard(ms(t));
                leader.heard(ms(t));
            }
            assert!(matches!(follower.poll(ms(t)), Action::Wait(_)));
        }
        assert_eq!(pings, 9);
    }
}

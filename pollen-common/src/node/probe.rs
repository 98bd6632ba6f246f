//! Whether one link's peer is alive, by small probes. Owns the timing; sends and reads nothing.
//! Invariant: a peer counts as silent only after several probes of ours went unanswered, never because this process was
//! held up; and it is probed on, so that its return is noticed.

use core::time::Duration;

use crate::time::Instant;

/// How often the leading end probes a quiet link. With a pong and QUIC's acknowledgements this is about 200 bytes a
/// second for a pair.
const INTERVAL: Duration = Duration::from_secs(1);

/// How much longer the other end waits before it probes by itself: the leader's probe tells it as much.
const FOLLOWER_GRACE: Duration = Duration::from_millis(400);

/// How soon an unanswered probe is repeated.
const RETRY: Duration = Duration::from_millis(250);

/// Unanswered probes after which the peer is silent. From its last sign of life that is at most
/// `INTERVAL + FOLLOWER_GRACE + 4 * RETRY` = 2.4 s, within the 3 s that operators are promised.
const UNANSWERED_MAX: u8 = 4;

/// What to do about a link now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a ping with this number, then ask again.
    Ping(u32),
    /// The peer has fallen silent. Said once; it is probed on.
    Silent,
    /// Nothing before this moment.
    Wait(Instant),
}

/// The watch over one link.
#[derive(Clone, Debug)]
pub struct Probe {
    interval: Duration,
    next: Instant,
    unanswered: u8,
    silent: bool,
    number: u32,
    sent: Instant,
}

impl Probe {
    /// Begins with a sign of life. Exactly one end of a link `leads`.
    #[must_use]
    pub fn new(leads: bool, now: Instant) -> Self {
        let interval = if leads { INTERVAL } else { INTERVAL + FOLLOWER_GRACE };
        let next = now + interval;
        Self { interval, next, unanswered: 0, silent: false, number: 0, sent: now }
    }

    /// The peer said something.
    pub fn heard(&mut self, now: Instant) {
        (self.unanswered, self.silent) = (0, false);
        // The leader keeps its rhythm, so that the follower hears from it; the follower starts anew.
        self.next = if self.interval == INTERVAL { self.next.max(self.sent + INTERVAL) } else { now + self.interval };
    }

    /// What to do now. Ask again after each ping and when the time waited for has come.
    pub fn poll(&mut self, now: Instant) -> Action {
        if now < self.next {
            return Action::Wait(self.next);
        }
        if self.unanswered == UNANSWERED_MAX && !self.silent {
            self.silent = true;
            return Action::Silent;
        }
        self.unanswered = (self.unanswered + 1).min(UNANSWERED_MAX);
        self.number = self.number.wrapping_add(1);
        self.sent = now;
        self.next = now + if self.silent { INTERVAL } else { RETRY };
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
    fn silent_after(probe: &mut Probe, from: u64) -> u64 {
        (from..).step_by(10).find(|t| probe.poll(ms(*t)) == Action::Silent).unwrap_or(u64::MAX) - from
    }

    #[test]
    fn a_peer_that_says_nothing_is_silent_within_three_seconds_for_either_end() {
        for leads in [true, false] {
            let mut probe = Probe::new(leads, ms(0));
            probe.heard(ms(1));
            let after = silent_after(&mut probe, 1);
            assert!((1000..2700).contains(&after), "leads: {leads}, after {after} ms");
        }
    }

    #[test]
    fn a_silent_peer_is_said_to_be_so_once_and_probed_each_second_until_it_is_heard() {
        let mut probe = Probe::new(true, ms(0));
        let from = silent_after(&mut probe, 1) + 1;
        let mut pings = 0;
        for t in from..from + 10_000 {
            match probe.poll(ms(t)) {
                Action::Ping(_) => pings += 1,
                Action::Silent => panic!("said again after {t} ms"),
                Action::Wait(_) => {}
            }
        }
        assert_eq!(pings, 10);
        probe.heard(ms(from + 10_000));
        assert!(silent_after(&mut probe, from + 10_000) >= 1000, "heard once, it has four probes again");
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

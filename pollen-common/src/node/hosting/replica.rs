//! One version of a seed on this node: how far it has come, and what to do next. Owns the waits between; must not know
//! the view, the lanes or who else hosts. Invariant: what others may be relying on is kept until those that should
//! serve have done so for a while, and what is started is stopped or has failed before it is started again.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use crate::identity::NodeKey;
use crate::time::Instant;
use crate::views::{Name, SeedVersion};

/// The first retry of what failed; each further failure doubles it.
pub(super) const RETRY_FIRST: Duration = Duration::from_secs(1);

/// The longest wait: a cause that goes away is noticed within it.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// How long those that should host must all have been ready before one that need not lets go: twice what it takes to
/// know a node dead, so that a node that only blinks moves nothing.
pub(super) const DWELL: Duration = Duration::from_secs(5);

/// The longest dwell of what keeps coming back: a node that goes up and down for long moves a replica once a minute
/// at most, as its own start takes time too.
const DWELL_MAX: Duration = Duration::from_secs(20);

/// How long a replica goes on serving after its entry is withdrawn: by then callers of a mesh on one continent have
/// heard. Whoever has not is refused and asks another.
pub(super) const SPREADING: Duration = Duration::from_millis(500);

/// What is expected of this node for one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// It should host it.
    Host,
    /// Others should; `met`: they are all ready.
    Others { met: bool },
    /// No seed names it.
    Nobody,
}

/// How far a replica has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Asked for.
    Starting,
    /// It did not become ready, or stopped being so.
    Failed { at: Instant, reason: String },
    /// Serves, and is announced.
    Ready,
    /// Serves and is announced, though others should; since when they all do.
    Kept { met_since: Option<Instant> },
    /// Serves those who have not heard yet that it no longer does.
    Withdrawn { since: Instant },
    /// Told to stop.
    Stopping,
    /// Nothing is left of it.
    Gone,
}

/// What is to be done about a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Start,
    Stop,
}

/// A version that this node hosts, is to host, or hosted a moment ago.
#[derive(Clone, Debug)]
pub(super) struct Replica {
    pub(super) version: SeedVersion,
    /// The seed that it was started for.
    pub(super) name: Name,
    pub(super) phase: Phase,
    /// Failures in a row.
    failures: u32,
    /// Who held the module when it was last asked for.
    pub(super) holders: Vec<NodeKey>,
    dwell: Duration,
}

impl Replica {
    /// One to be started, which has to wait `dwell` after a hand-over before it is let go.
    pub(super) const fn new(version: SeedVersion, name: Name, dwell: Duration) -> Self {
        Self { version, name, phase: Phase::Starting, failures: 0, holders: Vec::new(), dwell }
    }

    /// Whether others may count on it.
    pub(super) const fn is_announced(&self) -> bool {
        matches!(self.phase, Phase::Ready | Phase::Kept { .. })
    }

    /// The dwell of its next life here, if that begins soon.
    pub(super) fn next_dwell(&self) -> Duration {
        (self.dwell * 2).min(DWELL_MAX)
    }

    /// Takes the next step, if one is due. `news`: who holds the module has changed since it was asked for.
    pub(super) fn step(&mut self, want: Want, news: bool, now: Instant) -> Option<Act> {
        let (phase, act) = match (&self.phase, want) {
            (Phase::Starting | Phase::Ready, Want::Host) | (Phase::Stopping | Phase::Gone, _) => return None,
            (Phase::Failed { .. }, Want::Host) => {
                if now < self.retry_at(news) {
                    return None;
                }
                (Phase::Starting, Some(Act::Start))
            }
            (Phase::Kept { .. } | Phase::Withdrawn { .. }, Want::Host) => (Phase::Ready, None),
            (Phase::Failed { .. }, _) => (Phase::Gone, None),
            (Phase::Starting, _) | (_, Want::Nobody) => (Phase::Stopping, Some(Act::Stop)),
            (Phase::Withdrawn { since }, Want::Others { met: true }) => {
                if now < *since + SPREADING {
                    return None;
                }
                (Phase::Stopping, Some(Act::Stop))
            }
            (Phase::Kept { met_since: Some(since) }, Want::Others { met: true }) => {
                if now < *since + self.dwell {
                    return None;
                }
                (Phase::Withdrawn { since: now }, None)
            }
            (Phase::Ready | Phase::Kept { met_since: None }, Want::Others { met: true }) => {
                (Phase::Kept { met_since: Some(now) }, None)
            }
            (Phase::Ready | Phase::Kept { .. } | Phase::Withdrawn { .. }, Want::Others { met: false }) => {
                (Phase::Kept { met_since: None }, None)
            }
        };
        self.phase = phase;
        act
    }

    /// When a step may be due though nothing else happens.
    pub(super) fn due(&self, news: bool) -> Option<Instant> {
        match &self.phase {
            Phase::Failed { .. } => Some(self.retry_at(news)),
            Phase::Kept { met_since: Some(since) } => Some(*since + self.dwell),
            Phase::Withdrawn { since } => Some(*since + SPREADING),
            _ => None,
        }
    }

    fn retry_at(&self, news: bool) -> Instant {
        let Phase::Failed { at, .. } = &self.phase else { return Instant(0) };
        let doubled = RETRY_FIRST.saturating_mul(1 << self.failures.saturating_sub(1).min(8)).min(RETRY_MAX);
        *at + if news { RETRY_FIRST } else { doubled }
    }

    /// It is ready to serve. Whether that was waited for.
    pub(super) fn ready(&mut self) -> bool {
        let awaited = self.phase == Phase::Starting;
        if awaited {
            (self.phase, self.failures) = (Phase::Ready, 0);
        }
        awaited
    }

    /// It could not be made ready, or does not serve any more. Whether that matters.
    pub(super) fn failed(&mut self, reason: String, now: Instant) -> bool {
        if matches!(self.phase, Phase::Stopping | Phase::Gone) {
            self.phase = Phase::Gone;
            return false;
        }
        self.failures = self.failures.saturating_add(1);
        self.phase = Phase::Failed { at: now, reason };
        true
    }

    /// No call of it runs any more.
    pub(super) fn stopped(&mut self) {
        if self.phase == Phase::Stopping {
            self.phase = Phase::Gone;
        }
    }

    /// How far it has come, as a sentence about this node.
    pub(super) fn told(&self, now: Instant) -> String {
        match &self.phase {
            Phase::Starting => "this node fetches and compiles it".into(),
            Phase::Failed { reason, .. } => {
                let seconds = self.retry_at(false).since(now).as_secs() + 1;
                format!("this node could not make it ready: {reason}; it tries again within {seconds} s")
            }
            Phase::Ready => "this node serves it".into(),
            Phase::Kept { met_since: None } => "this node keeps it until others are ready".into(),
            Phase::Kept { met_since: Some(since) } => {
                let seconds = (*since + self.dwell).since(now).as_secs() + 1;
                format!("others are ready, this node lets it go within {seconds} s")
            }
            Phase::Withdrawn { .. } | Phase::Stopping | Phase::Gone => "this node has withdrawn it".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Digest;

    fn replica() -> Replica {
        let version = SeedVersion {
            module: Digest([1; 32]),
            size_bytes: 1,
            memory_bytes: 1,
            timeout_ms: 1,
            idempotent: false,
            image: false,
            tail_calls: false,
        };
        Replica::new(version, "hello".parse().expect("a name"), DWELL)
    }

    fn at(ms: u64) -> Instant {
        Instant(ms * 1_000_000)
    }

    const MET: Want = Want::Others { met: true };
    const UNMET: Want = Want::Others { met: false };

    #[test]
    fn a_replica_leaves_a_while_after_all_that_should_host_it_are_ready() {
        let mut replica = replica();
        assert!(replica.ready() && replica.is_announced());
        assert_eq!(replica.step(UNMET, false, at(0)), None);
        assert!(replica.is_announced());
        assert_eq!(replica.step(MET, false, at(1000)), None);
        assert_eq!(replica.due(false), Some(at(6000)));
        assert_eq!(replica.step(MET, false, at(5999)), None);
        assert!(replica.is_announced());
        assert_eq!(replica.step(MET, false, at(6000)), None);
        assert!(!replica.is_announced(), "withdrawn, but it serves");
        assert_eq!((replica.step(MET, false, at(6499)), replica.step(MET, false, at(6500))), (None, Some(Act::Stop)));
        assert_eq!(replica.step(Want::Host, false, at(6501)), None, "it stops before it starts again");
        replica.stopped();
        assert_eq!(replica.phase, Phase::Gone);
    }

    #[test]
    fn one_that_blinks_moves_nothing() {
        let mut replica = replica();
        replica.ready();
        // The wait begins anew whenever one of those that should host it is away.
        for round in 0..10 {
            assert_eq!(replica.step(MET, false, at(round * 6000)), None);
            assert_eq!(replica.step(UNMET, false, at(round * 6000 + 4000)), None);
            assert!(replica.is_announced());
        }
        assert_eq!(replica.step(Want::Host, false, at(60_000)), None);
        assert_eq!(replica.phase, Phase::Ready);
    }

    #[test]
    fn what_is_withdrawn_serves_again_when_it_is_needed_again() {
        for again in [Want::Host, UNMET] {
            let mut replica = replica();
            replica.ready();
            replica.step(MET, false, at(0));
            replica.step(MET, false, at(5000));
            assert!(!replica.is_announced());
            assert_eq!(replica.step(again, false, at(5100)), None);
            assert!(replica.is_announced());
        }
    }

    #[test]
    fn what_nobody_names_or_nobody_waits_for_stops_at_once() {
        let mut starting = replica();
        assert_eq!(starting.step(MET, false, at(0)), Some(Act::Stop));
        assert!(!starting.ready(), "ready too late");
        for phase in [Phase::Starting, Phase::Ready, Phase::Kept { met_since: None }] {
            let mut replica = Replica { phase, ..replica() };
            assert_eq!(replica.step(Want::Nobody, false, at(0)), Some(Act::Stop));
        }
        let mut failed = replica();
        failed.failed("no".into(), at(0));
        assert_eq!((failed.step(Want::Nobody, false, at(0)), failed.phase), (None, Phase::Gone));
    }

    #[test]
    fn failures_back_off_to_a_minute_and_news_of_holders_cuts_the_wait() {
        let mut replica = replica();
        let mut now = at(0);
        let mut waits = Vec::new();
        for _ in 0..9 {
            assert!(replica.failed("no holder".into(), now));
            let again = replica.due(false).expect("it is retried");
            waits.push(again.since(now).as_secs());
            assert_eq!(replica.step(Want::Host, false, again - Duration::from_millis(1)), None);
            assert_eq!(replica.step(Want::Host, false, again), Some(Act::Start));
            now = again;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        replica.failed("no holder".into(), now);
        assert_eq!(replica.step(Want::Host, true, now + RETRY_FIRST), Some(Act::Start));
        assert!(replica.ready());
        assert!(replica.failed("it died".into(), now));
        assert_eq!(replica.due(false), Some(now + RETRY_FIRST), "a success forgets the failures before it");
    }
}

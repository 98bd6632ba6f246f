//! What earlier calls taught of other hosts: how far they are, how busy, and whether they have fallen silent. Owns the
//! memory; decides nothing.
//! Invariant: a host counts as silent only while it owes an answer: who is asked nothing has nothing to say.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use pollen_common::identity::NodeKey;
use tokio::time::Instant;

/// How often a host says that a call still runs.
pub(super) const PULSE_EVERY: Duration = Duration::from_millis(100);
/// Silence after which new calls go to others first. Two pulses and a half: one may be lost or late.
const SUSPECT_AFTER: Duration = Duration::from_millis(250);
/// Silence after which an idempotent call is made elsewhere too: twice as long, as it costs another run.
const SILENT_AFTER: Duration = Duration::from_millis(500);
/// How long a host that failed stands back behind the others.
const FAILED_FOR: Duration = Duration::from_secs(5);
/// How long a busy host does. Short, as room comes back in milliseconds.
const BUSY_FOR: Duration = Duration::from_millis(50);
/// How long what a host said of its load counts.
const LOAD_COUNTS_FOR: Duration = Duration::from_secs(1);
/// How often the distance is looked up again.
const RTT_COUNTS_FOR: Duration = Duration::from_secs(1);
/// Hosts remembered: more than any one node calls.
const REMEMBERED_MAX: usize = 4096;

/// All hosts that were called.
#[derive(Debug)]
pub(super) struct Peers {
    start: Instant,
    peers: Mutex<BTreeMap<NodeKey, Arc<Peer>>>,
}

/// One of them. Times are milliseconds since the start, plus one: zero is never.
#[derive(Debug)]
pub(super) struct Peer {
    start: Instant,
    /// Calls that it owes an answer.
    open: AtomicUsize,
    /// Since when nothing was heard though it owed an answer; zero while it owes none.
    owed_since: AtomicU64,
    load: AtomicU32,
    load_at: AtomicU64,
    rtt_us: AtomicU64,
    rtt_at: AtomicU64,
    /// When this node last told it that its calls still run.
    told_at: AtomicU64,
    failed: Mutex<Option<(Instant, String)>>,
}

/// What a choice among hosts needs to know of one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    pub rtt: Option<Duration>,
    pub load: usize,
    /// Why it stands back.
    pub failed: Option<String>,
}

impl Peers {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), peers: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeKey, Arc<Peer>>> {
        self.peers.lock().expect("nothing panics while it holds this lock")
    }

    /// What is known of a host, from now on.
    pub(super) fn of(&self, key: NodeKey) -> Arc<Peer> {
        let mut peers = self.lock();
        if let Some(peer) = peers.get(&key) {
            return Arc::clone(peer);
        }
        if peers.len() >= REMEMBERED_MAX {
            peers.retain(|_, peer| peer.open.load(Ordering::Relaxed) > 0);
        }
        let peer = Arc::new(Peer {
            start: self.start,
            open: AtomicUsize::new(0),
            owed_since: AtomicU64::new(0),
            load: AtomicU32::new(0),
            load_at: AtomicU64::new(0),
            rtt_us: AtomicU64::new(0),
            rtt_at: AtomicU64::new(0),
            told_at: AtomicU64::new(0),
            failed: Mutex::default(),
        });
        peers.insert(key, Arc::clone(&peer));
        peer
    }

    /// What is known of a host so far.
    pub(super) fn known(&self, key: &NodeKey, now: Instant) -> Known {
        let peer = self.lock().get(key).cloned();
        peer.map(|peer| peer.known(now)).unwrap_or_default()
    }
}

impl Peer {
    fn ms(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    /// A call goes out. It is owed until the returned guard is dropped.
    pub(super) fn owes(self: &Arc<Self>, now: Instant) -> Owed {
        self.open.fetch_add(1, Ordering::Relaxed);
        let _ = self.owed_since.compare_exchange(0, self.ms(now), Ordering::Relaxed, Ordering::Relaxed);
        Owed(Arc::clone(self))
    }

    /// Anything came from it.
    pub(super) fn heard(&self, now: Instant) {
        self.owed_since.store(self.ms(now), Ordering::Relaxed);
    }

    /// It answered a call.
    pub(super) fn answered(&self, load: u32, rtt: impl FnOnce() -> Duration, now: Instant) {
        let now = self.ms(now);
        self.load.store(load, Ordering::Relaxed);
        self.load_at.store(now, Ordering::Relaxed);
        let looked_up = self.rtt_at.load(Ordering::Relaxed);
        if looked_up == 0 || Duration::from_millis(now.saturating_sub(looked_up)) >= RTT_COUNTS_FOR {
            self.rtt_us.store(u64::try_from(rtt().as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
            self.rtt_at.store(now, Ordering::Relaxed);
        }
    }

    /// It did not take a call, for a reason that may last.
    pub(super) fn failed(&self, why: String, now: Instant) {
        self.stand_back(now + FAILED_FOR, why);
    }

    /// It had no room for a call.
    pub(super) fn busy(&self, why: String, now: Instant) {
        self.stand_back(now + BUSY_FOR, why);
    }

    fn stand_back(&self, until: Instant, why: String) {
        *self.failed.lock().expect("nothing panics while it holds this lock") = Some((until, why));
    }

    /// It took one again.
    pub(super) fn worked(&self) {
        let mut failed = self.failed.lock().expect("nothing panics while it holds this lock");
        if failed.is_some() {
            *failed = None;
        }
    }

    /// How long it has owed an answer without saying anything.
    pub(super) fn silence(&self, now: Instant) -> Duration {
        match self.owed_since.load(Ordering::Relaxed) {
            0 if self.open.load(Ordering::Relaxed) == 0 => Duration::ZERO,
            // The last call before ended at the very moment at which this one began.
            0 => {
                let _ = self.owed_since.compare_exchange(0, self.ms(now), Ordering::Relaxed, Ordering::Relaxed);
                Duration::ZERO
            }
            since => Duration::from_millis(self.ms(now).saturating_sub(since)),
        }
    }

    /// Whether it is time to tell it that its calls still run. One of them tells for all.
    pub(super) fn shall_be_told(&self, now: Instant) -> bool {
        let (now, told) = (self.ms(now), self.told_at.load(Ordering::Relaxed));
        // Those who ask do so each by a timer of its own: a little early is on time.
        let due = Duration::from_millis(now.saturating_sub(told)) >= PULSE_EVERY / 2;
        due && self.told_at.compare_exchange(told, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    fn rtt(&self) -> Option<Duration> {
        (self.rtt_at.load(Ordering::Relaxed) > 0).then(|| Duration::from_micros(self.rtt_us.load(Ordering::Relaxed)))
    }

    /// Silence that is more than distance and chance, for an idempotent call.
    pub(super) fn silent_after(&self) -> Duration {
        SILENT_AFTER + 2 * self.rtt().unwrap_or_default()
    }

    fn known(&self, now: Instant) -> Known {
        let rtt = self.rtt();
        let silence = self.silence(now);
        let failed = if silence > SUSPECT_AFTER + 2 * rtt.unwrap_or_default() {
            Some(format!("it has been silent for {} ms", silence.as_millis()))
        } else {
            let failed = self.failed.lock().expect("nothing panics while it holds this lock");
            failed.as_ref().filter(|(until, _)| *until > now).map(|(_, why)| why.clone())
        };
        let said = self.load_at.load(Ordering::Relaxed);
        let fresh = said > 0 && Duration::from_millis(self.ms(now).saturating_sub(said)) < LOAD_COUNTS_FOR;
        let load = if fresh { usize::try_from(self.load.load(Ordering::Relaxed)).unwrap_or(usize::MAX) } else { 0 };
        Known { rtt, load: load.saturating_add(self.open.load(Ordering::Relaxed)), failed }
    }
}

/// A call that a host owes an answer.
pub(super) struct Owed(Arc<Peer>);

impl Drop for Owed {
    fn drop(&mut self) {
        let now = Instant::now();
        let silence = self.0.silence(now);
        if silence > SUSPECT_AFTER + 2 * self.0.rtt().unwrap_or_default() {
            // Given up: without this the next call would find nothing against it.
            self.0.failed(format!("it had been silent for {} ms", silence.as_millis()), now);
        }
        if self.0.open.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.owed_since.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn silence_counts_only_while_an_answer_is_owed() {
        let (peers, key) = (Peers::new(), NodeKey([1; 32]));
        let (peer, at) = (peers.of(key), |after| Instant::now() + ms(after));
        assert_eq!(peer.silence(at(1000)), ms(0));
        let start = at(1000);
        let first = peer.owes(start);
        let second = peer.owes(start + ms(200));
        assert_eq!(peer.silence(start + ms(300)), ms(300));
        assert!(peers.known(&key, start + ms(300)).failed.is_some_and(|why| why.contains("300 ms")));
        peer.heard(start + ms(300));
        drop(first);
        assert_eq!(peer.silence(start + ms(340)), ms(40));
        drop(second);
        assert_eq!(peer.silence(start + ms(9000)), ms(0));
    }

    #[test]
    fn a_failure_is_forgotten_and_so_is_an_old_load() {
        let (peers, key, now) = (Peers::new(), NodeKey([1; 32]), Instant::now());
        let peer = peers.of(key);
        peer.failed("refused".into(), now);
        peer.answered(700, || ms(3), now);
        assert_eq!(peers.known(&key, now), Known { rtt: Some(ms(3)), load: 700, failed: Some("refused".into()) });
        assert_eq!(peers.known(&key, now + FAILED_FOR), Known { rtt: Some(ms(3)), load: 0, failed: None });
        peer.worked();
        assert_eq!(peers.known(&key, now).failed, None);
    }

    #[test]
    fn one_call_tells_for_all_that_they_still_run() {
        let (peers, now) = (Peers::new(), Instant::now() + PULSE_EVERY);
        let peer = peers.of(NodeKey([1; 32]));
        let told = |at| (0..5).filter(|_| peer.shall_be_told(at)).count();
        assert_eq!((told(now), told(now + PULSE_EVERY / 4), told(now + PULSE_EVERY)), (1, 0, 1));
    }
}

//! A straight way to a peer that is reached through a relay. Owns when the two look for one, what they tell each other for
//! it, and what members say of where this node is seen; what an address proves is the binder's to say.
//! Invariant: whoever is asked for was named by its own key, at a few addresses, and at a bounded rate.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pollen_common::identity::NodeKey;
use pollen_common::mapping::{Mappings, Nats, REPORT_AGE_MAX};
use pollen_common::path_probe::Nonce;
use pollen_common::time;
use pollen_common::wire::streams::punch::{Answer, BYTES_MAX, Header, Standpoint, encode_answer, is_accepted};
use pollen_common::wire::streams::{Denial, OpeningError};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::link::Link;
use super::path::address::Source;
use super::{Inner, random, read_opening};

/// How soon after its start a connection is looked at: the first probes of the core have passed by then.
const FIRST: Duration = Duration::from_millis(500);
/// How often it is looked whether it is reached through a relay.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often a peer that is reached through a relay is looked for, at first, when members may not have said yet where they
/// see either…
const EARLY: Duration = Duration::from_millis(2500);
/// …for so many times…
const EARLY_MAX: u32 = 4;
/// …then…
const EAGER: Duration = Duration::from_secs(5);
/// …for so many times in vain…
const EAGER_MAX: u32 = 12;
/// …and then; more than the 30 s for which a translator may hold a port for the other's that took an early probe for its
/// own…
const LATER: Duration = Duration::from_secs(35);
/// …until it was in vain so often, ten minutes later…
const LATER_MAX: u32 = EAGER_MAX + 18;
/// …and from then on: two networks that let nothing pass seldom change their minds.
const LATEST: Duration = Duration::from_secs(60);
/// How often two nodes look for each other that are both behind hard translators, once they did…
const HOPELESS: Duration = Duration::from_secs(5 * 60);
/// …so many times: what they announce themselves may do, and one may have moved.
const HOPELESS_AFTER: u32 = 3;
/// How much later the end with the larger key begins a round of its own, if the other has begun none.
const GRACE: Duration = Duration::from_millis(1500);
/// How long they look.
const ROUND_BOUND: Duration = Duration::from_secs(2);
/// A round of a peer's follows its last by so much, or is refused: what a member can make this node send elsewhere.
const ROUND_EVERY_MIN: Duration = Duration::from_secs(2);
/// Rounds at once that were begun by others, and as many that were begun here. With eight addresses, asked five times each
/// in two seconds with 82 bytes, all that the members of a cluster can together make this node send to where nobody is stays
/// under 60 kB a second.
const ROUNDS_MAX: usize = 16;
/// What one member may ask a second, rounds included.
const ASKED_PER_SECOND: u32 = 4;
/// How long an answer may take.
const ANSWER_BOUND: Duration = Duration::from_secs(3);
/// What members said is asked again before a round if it is older…
const STALE: Duration = Duration::from_secs(20);
/// …of so many of them…
const REPORTERS_MAX: usize = 4;
/// …within this.
const REFRESH_BOUND: Duration = Duration::from_secs(1);
/// How often a peer that is reached straight is asked where it sees this node: before what it said has aged.
const ASK_EVERY: Duration = Duration::from_secs(REPORT_AGE_MAX.as_secs() / 2);

/// What this node knows of where it is seen, and what came of its rounds.
pub struct Punches {
    epoch: Instant,
    mappings: Mutex<Reported>,
    followed: Semaphore,
    begun: Semaphore,
    /// How often the node has moved.
    moves: AtomicU64,
    rounds: AtomicU64,
    opened: AtomicU64,
}

#[derive(Default)]
struct Reported {
    mappings: Mappings,
    /// The node's own addresses while these were reported.
    own: Vec<SocketAddr>,
}

impl Default for Punches {
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            mappings: Mutex::default(),
            followed: Semaphore::new(ROUNDS_MAX),
            begun: Semaphore::new(ROUNDS_MAX),
            moves: AtomicU64::new(0),
            rounds: AtomicU64::new(0),
            opened: AtomicU64::new(0),
        }
    }
}

/// What there is to show of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PunchNumbers {
    /// What stands between this node and others.
    pub nats: Nats,
    /// Rounds in which it looked for a straight way to a relayed peer.
    pub rounds: u64,
    /// Those that found one.
    pub opened: u64,
}

impl Punches {
    /// What there is now.
    pub fn numbers(&self) -> PunchNumbers {
        PunchNumbers {
            nats: lock(&self.mappings).mappings.nats(self.now()),
            rounds: self.rounds.load(Ordering::Relaxed),
            opened: self.opened.load(Ordering::Relaxed),
        }
    }

    /// How often the node has moved, now that these are its addresses: what was said of where it was says nothing any more.
    fn moves(&self, own: Vec<SocketAddr>) -> u64 {
        let mut reported = lock(&self.mappings);
        if reported.own != own {
            *reported = Reported { own, ..Reported::default() };
            self.moves.fetch_add(1, Ordering::Relaxed);
        }
        self.moves.load(Ordering::Relaxed)
    }

    /// The link's peer answers again after a while. If that was because either moved, all that is known of both is old.
    pub fn heard(&self, link: &Link) {
        lock(&self.mappings).mappings.forget(&link.peer);
        link.meeting.anew();
    }

    fn now(&self) -> time::Instant {
        time::Instant::default() + self.epoch.elapsed()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code under these locks panics halfway through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a link remembers for it.
#[derive(Default)]
pub struct Meeting {
    /// What the peer said of itself last.
    said: Mutex<Option<Standpoint>>,
    /// Rounds in vain since the peer was last reached straight, whoever began them.
    vain: AtomicU32,
    /// When the last round began, or the peer was last seen to be reached straight.
    settled: Mutex<Option<Instant>>,
    /// Where the peer was when this node dialled it, if it did.
    dialed: Mutex<Vec<Source>>,
    /// When the last round began that the peer began.
    followed: Mutex<Option<Instant>>,
    asked: Mutex<(Option<Instant>, u32)>,
}

impl Meeting {
    /// What stands between the peer and others, if it said so.
    pub fn nats(&self) -> Option<Nats> {
        lock(&self.said).as_ref().map(|said| said.nats)
    }

    /// Keeps what the peer says of itself; returns where others see it.
    fn remember(&self, said: Standpoint) -> Vec<SocketAddr> {
        let candidates = said.candidates.clone();
        *lock(&self.said) = Some(said);
        candidates
    }

    /// Whether the peer may ask now.
    fn may_ask(&self) -> bool {
        let mut asked = lock(&self.asked);
        let now = Instant::now();
        if asked.0.is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1)) {
            *asked = (Some(now), 0);
        }
        asked.1 += 1;
        asked.1 <= ASKED_PER_SECOND
    }

    fn since_round(&self) -> Option<Duration> {
        lock(&self.settled).map(|at| at.elapsed())
    }

    /// The peer is reached straight, or there is news for which it is soon worth a round.
    fn anew(&self) {
        *lock(&self.settled) = Some(Instant::now());
        self.vain.store(0, Ordering::Relaxed);
    }

    /// A round begins, in vain until the contrary is seen.
    fn begin(&self) {
        *lock(&self.settled) = Some(Instant::now());
        self.vain.fetch_add(1, Ordering::Relaxed);
    }

    /// The peer begins a round; not if it began another too lately.
    fn follow(&self) -> bool {
        let mut last = lock(&self.followed);
        let follows = last.is_none_or(|at| at.elapsed() >= ROUND_EVERY_MIN);
        if follows {
            *last = Some(Instant::now());
            self.begin();
        }
        follows
    }
}

/// How long to wait before the next round, after so many in vain.
fn pause(vain: u32, hopeless: bool) -> Duration {
    match vain {
        0 => FIRST,
        _ if hopeless && vain >= HOPELESS_AFTER => HOPELESS,
        _ if vain < EARLY_MAX => EARLY,
        _ if vain < EAGER_MAX => EAGER,
        _ if vain < LATER_MAX => LATER,
        _ => LATEST,
    }
}

/// Looks for a straight way to the link's peer whenever it is reached through a relay, as long as the connection lives: at
/// the addresses that it announces, those it was `dialed` at, and where others see it. Asks it where it sees this node
/// while it is reached straight.
pub async fn run(inner: Arc<Inner>, link: Arc<Link>, dialed: Vec<Source>) {
    *lock(&link.meeting.dialed) = dialed;
    let grace = if inner.key < link.peer { Duration::ZERO } else { GRACE };
    let mut moves = None;
    sleep(FIRST).await;
    while link.connection.close_reason().is_none() {
        let moved = moves.replace(inner.punches.moves(inner.handler.addresses(&inner.key)));
        if moved.is_some() && moved != moves {
            link.meeting.anew();
        }
        if !is_relayed(&inner, &link.peer) {
            link.meeting.anew();
            if is_due(&inner, &link.peer) {
                ask_where(&inner, &link).await;
            }
            sleep(LOOK_EVERY).await;
            continue;
        }
        let wait = pause(link.meeting.vain.load(Ordering::Relaxed), is_hopeless(&inner, &link)) + grace;
        match link.meeting.since_round() {
            // A round that the other end began is one of both.
            Some(since) if since < wait => sleep((wait - since).min(LOOK_EVERY)).await,
            None if link.since.elapsed() < FIRST + grace => sleep(grace).await,
            _ => round(&inner, &link).await,
        }
    }
}

fn is_relayed(inner: &Inner, peer: &NodeKey) -> bool {
    matches!(inner.path.place(peer), Some(Source::Circuit(_)))
}

fn is_hopeless(inner: &Inner, link: &Link) -> bool {
    link.meeting.nats().is_some_and(|theirs| inner.punches.numbers().nats.is_hopeless_with(theirs))
}

/// One round that this end begins.
async fn round(inner: &Arc<Inner>, link: &Link) {
    let Ok(_place) = inner.punches.begun.acquire().await else { return };
    link.meeting.begin();
    refresh(inner).await;
    let met = match ask(&link.connection, &Header { punch: true, me: standpoint(inner) }).await {
        Ok(answer) => link.meeting.remember(answer.me),
        Err(why) => {
            tracing::debug!("{} is looked for without its help: {why}", link.peer.short());
            Vec::new()
        }
    };
    probe(inner, link, met).await;
}

/// Asks for the peer where others see it, where it says it is and where it was, until it proves itself or the round ends.
async fn probe(inner: &Arc<Inner>, link: &Link, met: Vec<SocketAddr>) {
    let met = met.into_iter().filter(|addr| inner.handler.may_be_asked(addr));
    let announced = inner.handler.addresses(&link.peer).into_iter();
    let dialed = lock(&link.meeting.dialed).clone();
    let sources: Vec<Source> = met.chain(announced).map(Source::from).chain(dialed).collect();
    let Ok(nonce) = random() else { return };
    let Ok(mut proving) = inner.path.prove(link.peer, &sources, Nonce(nonce)) else { return };
    // Nobody answers there: then it stays as it is. If the peer proved itself by its own probe, that is as good.
    let proved = timeout(ROUND_BOUND, proving.proved()).await.is_ok();
    inner.punches.rounds.fetch_add(1, Ordering::Relaxed);
    if proved || !is_relayed(inner, &link.peer) {
        inner.punches.opened.fetch_add(1, Ordering::Relaxed);
    }
}

/// What this node says of itself.
fn standpoint(inner: &Inner) -> Standpoint {
    let (now, reported) = (inner.punches.now(), lock(&inner.punches.mappings));
    Standpoint { nats: reported.mappings.nats(now), candidates: reported.mappings.candidates(now) }
}

/// Asks members anew where they see this node, those first that see it elsewhere than it is, then the nearest.
async fn refresh(inner: &Arc<Inner>) {
    let (now, mut reporters) = (inner.punches.now(), Vec::new());
    for link in inner.links.all() {
        let straight = !link.is_silent() && inner.path.route(&link.peer).is_some();
        if straight && inner.handler.admitted(link.peer) {
            let mapped = lock(&inner.punches.mappings).mappings.sees_mapped(&link.peer);
            reporters.push((!mapped, link.connection.rtt(), link));
        }
    }
    reporters.sort_by_key(|(plain, rtt, _)| (*plain, *rtt));
    let mut asking = JoinSet::new();
    for (_, _, link) in reporters.into_iter().take(REPORTERS_MAX) {
        let age = lock(&inner.punches.mappings).mappings.age(&link.peer, now);
        if age.is_none_or(|age| age >= STALE) {
            let inner = inner.clone();
            asking.spawn(async move { ask_where(&inner, &link).await });
        }
    }
    // Who is late is heard all the same: what is dropped here is the wait.
    let _late = timeout(REFRESH_BOUND, asking.join_all()).await;
}

fn is_due(inner: &Inner, peer: &NodeKey) -> bool {
    let age = lock(&inner.punches.mappings).mappings.age(peer, inner.punches.now());
    age.is_none_or(|age| age >= ASK_EVERY)
}

/// Asks a member that is reached straight where it sees this node.
async fn ask_where(inner: &Inner, link: &Link) {
    let Some(from) = inner.path.route(&link.peer).filter(|_| inner.handler.admitted(link.peer)) else { return };
    match ask(&link.connection, &Header { punch: false, me: standpoint(inner) }).await {
        Ok(answer) => {
            if let Some(seen) = answer.seen.filter(|seen| inner.handler.may_be_asked(seen)) {
                reported(inner, link.peer, from, seen);
            }
            link.meeting.remember(answer.me);
        }
        Err(why) => tracing::debug!("{} does not say where it sees this node: {why}", link.peer.short()),
    }
}

/// `reporter` sees this node at `seen`.
fn reported(inner: &Inner, reporter: NodeKey, from: SocketAddr, seen: SocketAddr) {
    let (now, own) = (inner.punches.now(), inner.handler.addresses(&inner.key));
    let is_own = own.contains(&seen);
    inner.punches.moves(own);
    lock(&inner.punches.mappings).mappings.add(reporter, from.ip(), seen, is_own, now);
}

/// Opens a stream, and waits for what answers it.
async fn ask(connection: &Connection, header: &Header) -> Result<Answer, Denial> {
    let asked = async {
        let (mut send, mut recv) = connection.open_bi().await.ok()?;
        send.write_all(&header.opening()).await.ok()?;
        let _gone = send.finish();
        let mut first = [0];
        recv.read_exact(&mut first).await.ok()?;
        Some(read_answer(first[0], &mut recv).await)
    };
    timeout(ANSWER_BOUND, asked).await.ok().flatten().unwrap_or(Err(Denial::Unavailable))
}

async fn read_answer(first: u8, recv: &mut RecvStream) -> Result<Answer, Denial> {
    if is_accepted(first)? {
        return Ok(Answer::decode(&read_opening(recv, BYTES_MAX).await?)?);
    }
    let mut code = [0];
    recv.read_exact(&mut code).await.map_err(|_| OpeningError::Malformed)?;
    Err(Denial::from_code(code[0]))
}

/// A peer opened such a stream.
pub async fn take(inner: Arc<Inner>, link: Arc<Link>, mut send: SendStream, mut recv: RecvStream) {
    let header = match timeout(ANSWER_BOUND, read_opening(&mut recv, BYTES_MAX)).await {
        Ok(header) => header.and_then(|bytes| Header::decode(&bytes)).map_err(Denial::from),
        // Dropping both halves says it.
        Err(_) => return,
    };
    let refusal = if !inner.handler.admitted(link.peer) {
        Some(Denial::DeniedOrAbsent)
    } else {
        (!link.meeting.may_ask()).then_some(Denial::Busy)
    };
    let (header, follows) = match (refusal, header) {
        (None, Ok(header)) => {
            // Only where it can help: a peer that is reached straight is not looked for on anybody's word.
            let follows = header.punch && is_relayed(&inner, &link.peer) && link.meeting.follow();
            (header, follows)
        }
        (Some(denial), _) | (None, Err(denial)) => return answer(&mut send, &Err(denial)).await,
    };
    let place = follows.then(|| inner.punches.followed.try_acquire().ok()).flatten();
    if place.is_some() {
        refresh(&inner).await;
    }
    let seen = inner.path.route(&link.peer);
    answer(&mut send, &Ok(Answer { seen, me: standpoint(&inner) })).await;
    let met = link.meeting.remember(header.me);
    if place.is_some() {
        // Both begin at once: the other end when it reads the answer.
        sleep(link.connection.rtt() / 2).await;
        probe(&inner, &link, met).await;
    }
}

async fn answer(send: &mut SendStream, answer: &Result<Answer, Denial>) {
    // The peer may be gone, which is as good.
    let _gone = send.write_all(&encode_answer(answer)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_grow_rare_and_rarest_where_there_is_no_hope() {
        let first_hour = |hopeless| {
            let (mut at, mut rounds) = (Duration::ZERO, 0);
            while at < Duration::from_secs(3600) {
                at += pause(rounds, hopeless);
                rounds += 1;
            }
            rounds
        };
        assert_eq!(first_hour(true), 15);
        assert_eq!(first_hour(false), 79);
        assert!(pause(0, true) + pause(1, true) + GRACE * 2 < Duration::from_secs(10), "two tries in ten seconds");
    }

    #[test]
    fn a_peer_asks_a_few_times_a_second_and_begins_a_round_in_two() {
        let meeting = Meeting::default();
        assert_eq!((0..100).filter(|_| meeting.may_ask()).count(), ASKED_PER_SECOND as usize);
        assert_eq!((0..100).filter(|_| meeting.follow()).count(), 1);
        assert_eq!(meeting.vain.load(Ordering::Relaxed), 1);
    }
}

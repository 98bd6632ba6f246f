//! Circuits: reaching a peer through a third node, passing packets on for others, and being reached. Owns their set-up and
//! their end; frames are the path socket's, and who could relay is the handler's to say.
//! Invariant: a circuit lives exactly as long as the streams that set it up, and every label with it.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pollen_common::circuit::{Label, Use};
use pollen_common::identity::NodeKey;
use pollen_common::path_probe::Nonce;
use pollen_common::wire::streams::Denial;
use pollen_common::wire::streams::circuit::{ANSWER_BYTES, HEADER_BYTES_MAX, Header, decode_answer, encode_answer};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::link::Link;
use super::path::Made;
use super::path::address::{Source, VirtualAddr};
use super::path::frames::Passed;
use super::{Inner, read_opening};

/// How long a peer may take to prove itself at an address of its own before a relay is asked as well.
const RELAY_AFTER: Duration = Duration::from_millis(300);
/// How often, in a dial or a search, it is looked whether there is another relay to ask.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// Relays asked for one peer at once.
const RELAYS_MAX: usize = 3;
/// How long a relay that was asked may take until the peer is proved through it; then the next one has its place.
const RELAY_PATIENCE: Duration = Duration::from_secs(2);
/// A relay that refused, or through which nothing came, is asked after all others for so long.
const DOUBTED_FOR: Duration = Duration::from_secs(60);
/// How many of those are remembered.
const DOUBTED_MAX: usize = 1024;
/// How long whoever a circuit is offered to may take to answer.
const ANSWER_BOUND: Duration = Duration::from_secs(3);
/// How long the relay may take that waits for that: longer, or its refusal would come too late to be heard.
const RELAY_ANSWER_BOUND: Duration = Duration::from_secs(5);
/// A relay ends a circuit that passed nothing for so long.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How often it looks.
const IDLE_TICK: Duration = Duration::from_secs(5);
/// Circuits that one member may have opened through this node.
pub const HOPS_PER_MEMBER_MAX: usize = 64;
/// Circuits through this node, all together.
pub const HOPS_MAX: usize = 10_000;
/// Circuits that one relay may offer to this node.
const OFFERS_PER_RELAY_MAX: usize = 64;

/// The circuits that this node has a part in.
pub struct Circuits {
    ends: Mutex<BTreeMap<(NodeKey, NodeKey), Label>>,
    offers: Mutex<BTreeMap<NodeKey, usize>>,
    hops: Mutex<BTreeMap<NodeKey, usize>>,
    /// Relays that are being asked, for whom.
    asking: Mutex<BTreeSet<(NodeKey, NodeKey)>>,
    /// Relays that did not help, for whom, and since when.
    doubted: Mutex<BTreeMap<(NodeKey, NodeKey), Instant>>,
    relays: watch::Sender<bool>,
}

impl Default for Circuits {
    fn default() -> Self {
        Self {
            ends: Mutex::default(),
            offers: Mutex::default(),
            hops: Mutex::default(),
            asking: Mutex::default(),
            doubted: Mutex::default(),
            relays: watch::Sender::new(true),
        }
    }
}

/// What there is of circuits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CircuitNumbers {
    /// Whether this node passes packets on for others.
    pub relays: bool,
    /// Circuits that end here.
    pub ends: usize,
    /// Circuits that pass through here.
    pub hops: usize,
    /// Frames that were passed on for others.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Circuits {
    /// Whether this node passes packets on for others from now on; if not, what it passes on ends.
    pub fn set_relay(&self, relays: bool) {
        self.relays.send_replace(relays);
    }

    /// What there is now, and what was `passed` on.
    pub fn numbers(&self, passed: Passed) -> CircuitNumbers {
        CircuitNumbers {
            relays: *self.relays.borrow(),
            ends: lock(&self.ends).len(),
            hops: lock(&self.hops).values().sum(),
            frames: passed.frames,
            bytes: passed.bytes,
        }
    }

    /// `relay` did not help to reach `peer`.
    fn doubt(&self, relay: NodeKey, peer: NodeKey) {
        let mut doubted = lock(&self.doubted);
        doubted.retain(|_, since| since.elapsed() < DOUBTED_FOR);
        if doubted.len() < DOUBTED_MAX {
            doubted.entry((relay, peer)).or_insert_with(Instant::now);
        }
    }

    fn doubts(&self, relay: NodeKey, peer: NodeKey) -> bool {
        lock(&self.doubted).get(&(relay, peer)).is_some_and(|since| since.elapsed() < DOUBTED_FOR)
    }

    /// One more of `of`'s, unless it has `each` already, or all together `all`. The place is given back on drop.
    fn place<'a>(
        table: &'a Mutex<BTreeMap<NodeKey, usize>>,
        of: NodeKey,
        each: usize,
        all: usize,
    ) -> Result<Place<'a>, Denial> {
        let mut taken = lock(table);
        let full = taken.get(&of).is_some_and(|count| *count >= each) || taken.values().sum::<usize>() >= all;
        if full {
            return Err(Denial::Busy);
        }
        *taken.entry(of).or_insert(0) += 1;
        Ok(Place { table, of })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code under these locks panics halfway through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place in a bounded table.
struct Place<'a> {
    table: &'a Mutex<BTreeMap<NodeKey, usize>>,
    of: NodeKey,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut taken = lock(self.table);
        if let Some(count) = taken.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.of);
            }
        }
    }
}

/// The two streams' ends that keep a circuit.
type Stream = (SendStream, RecvStream);

/// Adds ways through relays to the dial or search `nonce` of `peer`, once its own addresses had their time. Never ends.
pub async fn help(inner: &Arc<Inner>, peer: NodeKey, nonce: Nonce) -> Infallible {
    sleep(RELAY_AFTER).await;
    let mut asked: BTreeMap<NodeKey, Instant> = BTreeMap::new();
    loop {
        let now = Instant::now();
        let tried = |since: &&Instant| now.duration_since(**since) < RELAY_PATIENCE;
        for relay in relays(inner, &peer) {
            let known = lock(&inner.circuits.ends).get(&(relay, peer)).copied();
            if let Some(label) = known {
                inner.path.prove_also(nonce, Source::Circuit(label));
            }
            if asked.contains_key(&relay) || asked.values().filter(tried).count() >= RELAYS_MAX {
                continue;
            }
            asked.insert(relay, now);
            if known.is_none() {
                drop(inner.runtime.spawn(ask(inner.clone(), relay, peer, nonce)));
            }
        }
        for relay in asked.iter().filter(|(_, since)| !tried(since)).map(|(relay, _)| *relay) {
            inner.circuits.doubt(relay, peer);
        }
        sleep(ASK_EVERY).await;
    }
}

/// Who could pass packets on to `peer`: what is reached straight and answers, nearest first, and last who did not help
/// a short while ago.
fn relays(inner: &Inner, peer: &NodeKey) -> Vec<NodeKey> {
    let near = |relay: NodeKey| {
        let connection = inner.links.connection(&relay)?;
        let doubted = inner.circuits.doubts(relay, *peer);
        inner.path.route(&relay).map(|_| (doubted, connection.rtt(), relay))
    };
    let mut near: Vec<_> = inner.handler.relays(peer).into_iter().filter_map(near).collect();
    near.sort_unstable();
    near.into_iter().map(|(.., relay)| relay).collect()
}

/// Opens a circuit to `peer` through `relay`, and keeps it until it ends.
async fn ask(inner: Arc<Inner>, relay: NodeKey, peer: NodeKey, nonce: Nonce) {
    if !lock(&inner.circuits.asking).insert((relay, peer)) {
        return;
    }
    let opened = open(&inner, relay, peer).await;
    lock(&inner.circuits.asking).remove(&(relay, peer));
    match opened {
        Ok((made, stream)) => {
            inner.path.prove_also(nonce, Source::Circuit(made.label));
            keep_end(&inner, relay, peer, &made, stream).await;
        }
        Err(why) => {
            inner.circuits.doubt(relay, peer);
            tracing::debug!("no circuit to {} through {}: {why}", peer.short(), relay.short());
        }
    }
}

async fn open(inner: &Arc<Inner>, relay: NodeKey, peer: NodeKey) -> Result<(Made, Stream), String> {
    let connection = inner.links.connection(&relay).ok_or("it is not connected")?;
    let made = inner.path.make_label().ok_or("this node has too many labels")?;
    let header = Header::Open { peer, label: made.label };
    let (out, stream) = request(&connection, header, RELAY_ANSWER_BOUND).await.map_err(|denial| denial.to_string())?;
    made.mean(Use::End { relay: VirtualAddr::of(&relay), peer: VirtualAddr::of(&peer), out });
    Ok((made, stream))
}

/// Opens a circuit's stream and waits for the label that answers it.
async fn request(connection: &Connection, header: Header, bound: Duration) -> Result<(Label, Stream), Denial> {
    let asked = async {
        let (mut send, mut recv) = connection.open_bi().await.ok()?;
        send.write_all(&header.opening()).await.ok()?;
        let mut answer = [0; ANSWER_BYTES];
        recv.read_exact(&mut answer).await.ok()?;
        Some((answer, (send, recv)))
    };
    let (answer, stream) = timeout(bound, asked).await.ok().flatten().ok_or(Denial::Unavailable)?;
    let label = decode_answer(answer).map_err(|_| Denial::Malformed)??;
    Ok((label, stream))
}

/// Holds an end's stream until either side ends it.
async fn keep_end(inner: &Inner, relay: NodeKey, peer: NodeKey, made: &Made, (_send, mut recv): Stream) {
    lock(&inner.circuits.ends).insert((relay, peer), made.label);
    ended(&mut recv).await;
    let mut ends = lock(&inner.circuits.ends);
    // A newer one of the same pair may have taken its place.
    if ends.get(&(relay, peer)) == Some(&made.label) {
        ends.remove(&(relay, peer));
    }
}

/// Waits until a stream on which nothing is said any more has ended, however it does.
async fn ended(recv: &mut RecvStream) {
    // A byte would be of a newer version: it means nothing here.
    while let Ok(Some(_)) = recv.read(&mut [0; 64]).await {}
}

/// A peer opened a circuit's stream.
pub async fn take(inner: Arc<Inner>, link: Arc<Link>, mut send: SendStream, mut recv: RecvStream) {
    let header = timeout(ANSWER_BOUND, read_opening(&mut recv, HEADER_BYTES_MAX)).await;
    let header = match header {
        Ok(Ok(bytes)) => Header::decode(&bytes),
        Ok(Err(error)) => Err(error),
        // Dropping both halves says it.
        Err(_) => return,
    };
    let refused = match header {
        Ok(Header::Open { peer, label }) => match relay(&inner, &link, peer, label).await {
            Ok(circuit) => return circuit.run(&inner, (send, recv)).await,
            Err(denial) => denial,
        },
        Ok(Header::Offer { peer, label }) => match accept(&inner, link.peer, peer, label) {
            Ok((made, _place)) => {
                if send.write_all(&encode_answer(Ok(made.label))).await.is_ok() {
                    keep_end(&inner, link.peer, peer, &made, (send, recv)).await;
                }
                return;
            }
            Err(denial) => denial,
        },
        Err(error) => Denial::from(error),
    };
    // The peer may be gone, which is as good.
    let _gone = send.write_all(&encode_answer(Err(refused))).await;
}

/// `relay` says that `peer` wants to reach this node through it.
fn accept(inner: &Inner, relay: NodeKey, peer: NodeKey, out: Label) -> Result<(Made, Place<'_>), Denial> {
    if !inner.handler.admitted(relay) || !inner.handler.admitted(peer) || peer == inner.key || peer == relay {
        return Err(Denial::DeniedOrAbsent);
    }
    let place = Circuits::place(&inner.circuits.offers, relay, OFFERS_PER_RELAY_MAX, usize::MAX)?;
    let made = inner.path.make_label().ok_or(Denial::Busy)?;
    made.mean(Use::End { relay: VirtualAddr::of(&relay), peer: VirtualAddr::of(&peer), out });
    Ok((made, place))
}

/// A circuit through this node.
struct Hop<'a> {
    /// Taken from whoever opened it, and from whom it was opened to.
    made: [Made; 2],
    far: Stream,
    _place: Place<'a>,
}

/// Makes a circuit from the link's peer to `peer`, if both may and both are reached straight.
async fn relay<'a>(inner: &'a Inner, from: &Link, peer: NodeKey, out: Label) -> Result<Hop<'a>, Denial> {
    if !*inner.circuits.relays.borrow() {
        return Err(Denial::DeniedOrAbsent);
    }
    let members = inner.handler.admitted(from.peer) && inner.handler.admitted(peer);
    if !members || peer == inner.key || peer == from.peer {
        return Err(Denial::DeniedOrAbsent);
    }
    let place = Circuits::place(&inner.circuits.hops, from.peer, HOPS_PER_MEMBER_MAX, HOPS_MAX)?;
    let straight = |key: &NodeKey| inner.path.route(key).is_some();
    let connection = inner.links.connection(&peer).filter(|_| straight(&peer) && straight(&from.peer));
    let connection = connection.ok_or(Denial::Unavailable)?;
    let made = [inner.path.make_label().ok_or(Denial::Busy)?, inner.path.make_label().ok_or(Denial::Busy)?];
    let header = Header::Offer { peer: from.peer, label: made[1].label };
    let (far_out, far) = request(&connection, header, ANSWER_BOUND).await?;
    let (near, far_end) = (VirtualAddr::of(&from.peer), VirtualAddr::of(&peer));
    made[0].mean(Use::Hop { from: near, to: far_end, out: far_out });
    made[1].mean(Use::Hop { from: far_end, to: near, out });
    Ok(Hop { made, far, _place: place })
}

impl Hop<'_> {
    /// Answers whoever opened it, and passes frames on until either end, the operator or idleness ends it.
    async fn run(mut self, inner: &Inner, (mut send, mut recv): Stream) {
        if send.write_all(&encode_answer(Ok(self.made[0].label))).await.is_err() {
            return;
        }
        let mut relays = inner.circuits.relays.subscribe();
        tokio::select! {
            () = ended(&mut recv) => {}
            () = ended(&mut self.far.1) => {}
            () = idle(&self.made) => {}
            // An error means that the node ends.
            _ = relays.wait_for(|relays| !relays) => {}
        }
    }
}

/// Waits until nothing was passed on for long enough.
async fn idle(made: &[Made; 2]) {
    let frames = || made.iter().map(|made| made.passed().frames).sum::<u64>();
    let (mut seen, mut quiet) = (frames(), Duration::ZERO);
    let mut tick = interval(IDLE_TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.tick().await;
    while quiet < IDLE_MAX {
        tick.tick().await;
        let now = frames();
        quiet = if now == seen { quiet + IDLE_TICK } else { Duration::ZERO };
        seen = now;
    }
}

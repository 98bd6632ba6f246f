//! The streams and sessions that are open now, so that they can be counted, cut and waited for.
//! Knows what a stream belongs to, not what it carries.
//! Invariants: a slot is freed when its holder drops it, however its task ends; a new UDP session always finds a place,
//! if need be that of the one that was used least recently.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use pollen_common::identity::NodeKey;
use pollen_common::views::Protocol;
use pollen_common::wire::streams::service::Target;
use tokio::sync::{oneshot, watch};

use super::exports::Export;
use super::idle::{Activity, Idlest};

/// Streams and sessions open at once, both roles together. Each costs a file descriptor and some KiB; a node that
/// reaches this refuses more, so that those it has go on.
pub(super) const OPEN_MAX: usize = 32 * 1024;
/// UDP sessions that this node may have at one peer: a session lingers for its idle time, so they could pile up.
pub(super) const SESSIONS_PER_PEER_MAX: usize = 4096;
/// How many more it provides to one peer: the caller gives up sessions first, and those are some time on their way.
const PROVIDED_MORE: usize = 256;
/// TCP streams that may be open with one peer. With its sessions less than the streams of a connection, so that calls
/// and content find some; a service holds at most as many as it leaves free.
pub(super) const STREAMS_PER_PEER_MAX: usize = 3072;

/// Lets this process hold as many sockets as the system allows it: the usual default of 1024 is for programs that call
/// `select`, and every stream is a socket. Best effort.
pub(super) fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// What an open stream or session belongs to.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    /// The node on its other end; this node itself where no mesh is in between.
    pub peer: NodeKey,
    pub protocol: Protocol,
    /// What it asked the peer for, where this node calls.
    pub asked: Option<Target>,
    /// The export that it reaches, where this node provides.
    pub export: Option<Export>,
}

#[derive(Debug)]
struct Open {
    owner: Owner,
    /// Dropping it cuts the stream.
    _cut: oneshot::Sender<()>,
}

/// UDP sessions with one peer in one role: whether this node provides.
type InRole = (NodeKey, bool);

/// They, by service and last use; no entry where there are none.
#[derive(Debug, Default)]
struct Sessions {
    count: usize,
    of_service: BTreeMap<String, Idlest<u64>>,
}

#[derive(Debug)]
struct Slots {
    next: u64,
    open: BTreeMap<u64, Open>,
    /// How many by peer and protocol; no entry where there are none.
    held: BTreeMap<(NodeKey, Protocol), usize>,
    /// How many this node has asked for, by provider and service; no entry where there are none.
    asking: BTreeMap<(NodeKey, Target, Protocol), usize>,
    /// How many TCP streams of a peer reach an export; no entry where there are none.
    reaching: BTreeMap<(NodeKey, String), usize>,
    /// No entry where there are none.
    sessions: BTreeMap<InRole, Sessions>,
    /// Sessions that had to go for newer ones.
    given_up: u64,
}

/// All that is open.
#[derive(Debug)]
pub(super) struct Live {
    slots: Mutex<Slots>,
    /// TCP streams open, for whoever waits for the last.
    streams: watch::Sender<usize>,
}

/// A place among the open; freed when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    id: u64,
    live: Arc<Live>,
    cut: Option<oneshot::Receiver<()>>,
    activity: Arc<Activity>,
}

impl Live {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            slots: Mutex::new(Slots {
                next: 0,
                open: BTreeMap::new(),
                held: BTreeMap::new(),
                asking: BTreeMap::new(),
                reaching: BTreeMap::new(),
                sessions: BTreeMap::new(),
                given_up: 0,
            }),
            streams: watch::Sender::new(0),
        })
    }

    /// A place for one more, or `None` at a limit. A UDP session comes with its last use, and takes the place of another
    /// of its peer at the limit.
    pub(super) fn open(self: &Arc<Self>, owner: Owner, activity: Option<Arc<Activity>>) -> Option<Slot> {
        let mut slots = self.lock();
        let slots = &mut *slots;
        let full = slots.open.len() >= OPEN_MAX;
        if owner.protocol == Protocol::Udp {
            self.give_up(slots, &owner, full)?;
        } else if full {
            return None;
        }
        let held = slots.held.get(&(owner.peer, owner.protocol)).copied().unwrap_or_default();
        if owner.protocol == Protocol::Tcp && !owner.is_local() {
            let free = STREAMS_PER_PEER_MAX.saturating_sub(held);
            if free == 0 || slots.of_service(&owner) >= free {
                return None;
            }
        }
        if let Some(reached) = owner.reaches() {
            *slots.reaching.entry(reached).or_default() += 1;
        }
        slots.held.insert((owner.peer, owner.protocol), held + 1);
        if let Some(asked) = owner.asks() {
            *slots.asking.entry(asked).or_default() += 1;
        }
        if owner.protocol == Protocol::Tcp {
            self.streams.send_modify(|count| *count += 1);
        }
        let (sender, cut) = oneshot::channel();
        let id = slots.next;
        slots.next += 1;
        let activity = activity.unwrap_or_default();
        if owner.protocol == Protocol::Udp {
            let sessions = slots.sessions.entry(owner.role()).or_default();
            sessions.count += 1;
            sessions.of_service.entry(owner.service()).or_default().insert(id, Arc::clone(&activity));
        }
        slots.open.insert(id, Open { owner, _cut: sender });
        Some(Slot { id, live: Arc::clone(self), cut: Some(cut), activity })
    }

    /// Makes room for a session, where there is none, in place of the one used least recently in the same role, of the
    /// service that has most: none takes the places of the others.
    fn give_up(&self, slots: &mut Slots, owner: &Owner, full: bool) -> Option<()> {
        let (_, provides) = owner.role();
        let most = SESSIONS_PER_PEER_MAX + if provides { PROVIDED_MORE } else { 0 };
        let Some(sessions) = slots.sessions.get_mut(&owner.role()) else { return (!full).then_some(()) };
        if !full && sessions.count < most {
            return Some(());
        }
        let largest = sessions.of_service.values_mut().max_by_key(|of_service| of_service.len())?;
        let id = largest.idlest()?;
        self.remove(slots, id);
        slots.given_up += 1;
        Some(())
    }

    /// Sessions that had to go for newer ones.
    pub(super) fn given_up(&self) -> u64 {
        self.lock().given_up
    }

    /// Cuts all of which `condemned` is true. Their holders reset them and free their slots.
    pub(super) fn cut(&self, mut condemned: impl FnMut(&Owner) -> bool) {
        let mut slots = self.lock();
        let ids: Vec<u64> = slots.open.iter().filter(|(_, open)| condemned(&open.owner)).map(|(id, _)| *id).collect();
        for id in ids {
            self.remove(&mut slots, id);
        }
    }

    /// TCP streams and UDP sessions open now.
    pub(super) fn counts(&self) -> (usize, usize) {
        let slots = self.lock();
        let streams = *self.streams.borrow();
        (streams, slots.open.len() - streams)
    }

    /// Streams or sessions that this node has open to a service at `peer`. What else is open with the peer says nothing
    /// of how busy the service is.
    pub(super) fn asking(&self, peer: &NodeKey, target: &Target, protocol: Protocol) -> usize {
        self.lock().asking.get(&(*peer, target.clone(), protocol)).copied().unwrap_or_default()
    }

    /// Resolves when no TCP stream is open.
    pub(super) async fn streams_done(&self) {
        let mut streams = self.streams.subscribe();
        // The sender lives in `self`, so the wait cannot fail.
        let _ = streams.wait_for(|count| *count == 0).await;
    }

    fn remove(&self, slots: &mut Slots, id: u64) {
        let Some(open) = slots.open.remove(&id) else { return };
        one_less(&mut slots.held, &(open.owner.peer, open.owner.protocol));
        if let Some(reached) = open.owner.reaches() {
            one_less(&mut slots.reaching, &reached);
        }
        if let Some(asked) = open.owner.asks() {
            one_less(&mut slots.asking, &asked);
        }
        if open.owner.protocol == Protocol::Tcp {
            self.streams.send_modify(|count| *count -= 1);
            return;
        }
        let (role, service) = (open.owner.role(), open.owner.service());
        let sessions = slots.sessions.get_mut(&role).expect("counted when it was opened");
        sessions.count -= 1;
        let of_service = sessions.of_service.get_mut(&service).expect("counted when it was opened");
        of_service.remove(&id);
        if of_service.len() == 0 {
            sessions.of_service.remove(&service);
        }
        if sessions.count == 0 {
            slots.sessions.remove(&role);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Slots> {
        self.slots.lock().expect("nothing panics while it holds this lock")
    }
}

fn one_less<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    let count = counts.get_mut(key).expect("counted when it was opened");
    *count -= 1;
    if *count == 0 {
        counts.remove(key);
    }
}

impl Owner {
    fn asks(&self) -> Option<(NodeKey, Target, Protocol)> {
        self.asked.clone().map(|target| (self.peer, target, self.protocol))
    }

    fn reaches(&self) -> Option<(NodeKey, String)> {
        let export = self.export.as_ref().filter(|_| self.protocol == Protocol::Tcp && !self.is_local())?;
        Some((self.peer, export.label()))
    }

    fn role(&self) -> InRole {
        (self.peer, self.asked.is_none())
    }

    fn service(&self) -> String {
        let asked = self.asked.as_ref().map(ToString::to_string);
        asked.or_else(|| self.export.as_ref().map(Export::label)).unwrap_or_default()
    }

    /// Whether this node asks itself, so that no connection is in between.
    fn is_local(&self) -> bool {
        self.asked.is_some() && self.export.is_some()
    }
}

impl Slots {
    /// How many are open of the service that `owner` asks for or reaches.
    fn of_service(&self, owner: &Owner) -> usize {
        let asked = owner.asks().and_then(|asked| self.asking.get(&asked)).copied().unwrap_or_default();
        let reached = owner.reaches().and_then(|reached| self.reaching.get(&reached)).copied().unwrap_or_default();
        asked.max(reached)
    }
}

impl Slot {
    /// When it was last used.
    pub(super) fn activity(&self) -> Arc<Activity> {
        Arc::clone(&self.activity)
    }

    /// Resolves when the stream is to be cut.
    pub(super) fn cut(&mut self) -> impl Future<Output = ()> + Send + 'static {
        let cut = self.cut.take();
        async move {
            match cut {
                // Nobody sends: the sender is dropped, by a cut or by this slot's own end.
                Some(cut) => drop(cut.await),
                None => std::future::pending().await,
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut slots = self.live.lock();
        self.live.remove(&mut slots, self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn owner(peer: u8, protocol: Protocol) -> Owner {
        Owner { peer: NodeKey([peer; 32]), protocol, asked: None, export: None }
    }

    #[tokio::test]
    async fn a_cut_reaches_the_holder_of_the_slot_and_no_other() {
        let live = Live::new();
        let mut condemned = live.open(owner(1, Protocol::Tcp), None).expect("room");
        let spared = live.open(owner(2, Protocol::Tcp), None).expect("room");
        live.cut(|owner| owner.peer == NodeKey([1; 32]));
        condemned.cut().await;
        assert_eq!(live.counts(), (1, 0));
        drop(condemned);
        assert_eq!(live.counts(), (1, 0), "a cut slot is freed once");
        drop(spared);
        live.streams_done().await;
    }

    #[test]
    fn a_service_is_as_busy_as_its_own_connections_make_it() {
        let live = Live::new();
        let asked = |target| Owner { asked: Some(Target::Port(target)), ..owner(1, Protocol::Tcp) };
        let busy = |target| live.asking(&NodeKey([1; 32]), &Target::Port(target), Protocol::Tcp);
        let (first, second) = (live.open(asked(1), None), live.open(asked(1), None));
        let other = live.open(asked(2), None);
        let provided = live.open(owner(1, Protocol::Tcp), None);
        assert_eq!((busy(1), busy(2), busy(3)), (2, 1, 0));
        assert_eq!(live.asking(&NodeKey([1; 32]), &Target::Port(1), Protocol::Udp), 0);
        drop((first, other, provided));
        assert_eq!((busy(1), busy(2)), (1, 0));
        live.cut(|_| true);
        assert_eq!(busy(1), 0);
        drop(second);
        assert!(live.lock().asking.is_empty() && live.lock().held.is_empty());
    }

    #[test]
    fn one_service_leaves_streams_of_a_peer_to_the_others() {
        let live = Live::new();
        let asks = |service: &str| Owner {
            asked: Some(Target::Name(service.parse().expect("a name"))),
            ..owner(1, Protocol::Tcp)
        };
        let mut held = Vec::new();
        for half in 1..4 {
            let service = format!("s{half}");
            let opened: Vec<_> = std::iter::from_fn(|| live.open(asks(&service), None)).collect();
            assert_eq!(opened.len(), STREAMS_PER_PEER_MAX >> half, "{service} has half of what was free");
            held.extend(opened);
        }
        held.clear();
        assert!(live.open(asks("s1"), None).is_some());
        assert_eq!(live.lock().asking.len(), 0);
    }

    #[tokio::test]
    async fn a_new_session_takes_the_place_of_the_idlest_of_its_peer_and_of_the_service_that_has_most() {
        let live = Live::new();
        let session = |peer, service: &str, last_ms| {
            let asked = Some(Target::Name(service.parse().expect("a name")));
            let owner = Owner { asked, ..owner(peer, Protocol::Udp) };
            live.open(owner, Some(Activity::at_ms(last_ms))).expect("always a place")
        };
        let small = session(1, "small", 0);
        let mut held: Vec<_> = (1..SESSIONS_PER_PEER_MAX).map(|at| session(1, "large", at as u64)).collect();
        held[0].activity().asked();
        let (newest, other) = (session(1, "small", 1 << 40), session(2, "small", 0));
        held[1].cut().await;
        assert_eq!((live.given_up(), live.counts()), (1, (0, SESSIONS_PER_PEER_MAX + 1)));
        for mut spared in [small, newest, other].into_iter().chain([held.remove(0)]) {
            assert!(tokio::time::timeout(Duration::ZERO, spared.cut()).await.is_err());
        }
        drop(held);
        assert!(live.lock().sessions.is_empty());
    }
}

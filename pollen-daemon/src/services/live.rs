//! The streams and sessions that are open now, so that they can be counted, cut and waited for.
//! Knows what a stream belongs to, not what it carries.
//! Invariant: a slot is freed when its holder drops it, however its task ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use pollen_common::identity::NodeKey;
use pollen_common::views::Protocol;
use pollen_common::wire::streams::service::Target;
use tokio::sync::{oneshot, watch};

use super::exports::Export;

/// Streams and sessions open at once, both roles together. Each costs a file descriptor and some KiB; a node that
/// reaches this refuses more, so that those it has go on.
pub(super) const OPEN_MAX: usize = 32 * 1024;
/// UDP sessions that one peer may hold here: a session lingers for its idle time, so a peer could pile them up.
pub(super) const SESSIONS_PER_PEER_MAX: usize = 4096;
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
            }),
            streams: watch::Sender::new(0),
        })
    }

    /// A place for one more, or `None` at a limit.
    pub(super) fn open(self: &Arc<Self>, owner: Owner) -> Option<Slot> {
        let mut slots = self.lock();
        if slots.open.len() >= OPEN_MAX {
            return None;
        }
        let held = slots.held.get(&(owner.peer, owner.protocol)).copied().unwrap_or_default();
        if owner.protocol == Protocol::Udp && held >= SESSIONS_PER_PEER_MAX {
            return None;
        }
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
        slots.open.insert(id, Open { owner, _cut: sender });
        Some(Slot { id, live: Arc::clone(self), cut: Some(cut) })
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
    use super::*;

    fn owner(peer: u8, protocol: Protocol) -> Owner {
        Owner { peer: NodeKey([peer; 32]), protocol, asked: None, export: None }
    }

    #[tokio::test]
    async fn a_cut_reaches_the_holder_of_the_slot_and_no_other() {
        let live = Live::new();
        let mut condemned = live.open(owner(1, Protocol::Tcp)).expect("room");
        let spared = live.open(owner(2, Protocol::Tcp)).expect("room");
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
        let (first, second) = (live.open(asked(1)), live.open(asked(1)));
        let other = live.open(asked(2));
        let provided = live.open(owner(1, Protocol::Tcp));
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
            let opened: Vec<_> = std::iter::from_fn(|| live.open(asks(&service))).collect();
            assert_eq!(opened.len(), STREAMS_PER_PEER_MAX >> half, "{service} has half of what was free");
            held.extend(opened);
        }
        held.clear();
        assert!(live.open(asks("s1")).is_some());
        assert_eq!(live.lock().asking.len(), 0);
    }

    #[test]
    fn one_peer_cannot_take_every_session() {
        let live = Live::new();
        let held: Vec<_> = (0..SESSIONS_PER_PEER_MAX).map(|_| live.open(owner(1, Protocol::Udp))).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(live.open(owner(1, Protocol::Udp)).is_none());
        assert!(live.open(owner(2, Protocol::Udp)).is_some());
        assert!(live.open(owner(1, Protocol::Tcp)).is_some());
    }
}

//! A call of a seed, from who asks to an instance and back, wherever in the mesh that is. Owns the order of its steps;
//! must not know how guests run (see [`Host`]) nor how connections come about (see [`Reach`]).
//! Invariants: a call is made again only when it is certain that it did not run, or when its seed is idempotent; every
//! wait ends by the call's deadline; no lock is held while anything waits.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use pollen_common::identity::NodeKey;
use pollen_common::views::{Name, VersionId, View};
use quinn::{RecvStream, SendStream};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::services::{Reach, Services};
use crate::standing::Standing;
use crate::workload::{CallAnswer, CallFailure, CallNumbers, CallRequest, SeedRef};
use crate::workload::{CallError, Caller, Invocation, World};

mod admission;
mod attempt;
mod coming;
mod dispatch;
mod failure;
mod peers;
mod run;
mod serve;
mod tail;
mod tally;
mod target;
#[cfg(test)]
mod tests;
mod wire;
mod world;

pub use admission::Limits;

use admission::Admission;
use peers::Peers;
use tally::{Placements, Tally};
use target::Meanings;
use wire::Room;
use world::LogGate;

/// The longest that a call may take, whatever its asker says: no guest may run longer either.
const DEADLINE_MAX: Duration = Duration::from_secs(3600);
/// Callers unknown so far that may wait for their admission to arrive, all together.
const STRANGERS_MAX: usize = 256;
/// How often to look whether the last call has ended when draining.
const DRAIN_LOOK_EVERY: Duration = Duration::from_millis(5);
/// Tries elsewhere for a call that a guest makes: as many as people's calls get.
const GUEST_RETRIES: u32 = 3;

/// What runs guests on this node.
pub trait Host: Send + Sync + 'static {
    /// The hosted version, kept until the returned instance is dropped; `None` if it is not hosted, or not for long.
    fn begin(&self, version: &VersionId) -> Option<Box<dyn Instance>>;
}

/// A hosted version that may be called.
pub trait Instance: Send + Sync {
    /// Whether it has a function of this name.
    fn has(&self, function: &str) -> bool;

    /// Every function that can be called.
    fn functions(&self) -> &[String];

    /// Whether its publisher said that an output which reads as a tail call is one.
    fn tail_calls(&self) -> bool;

    /// Runs one call in a fresh instance, on a thread for guests. Ends it when dropped.
    fn call(&self, invocation: Invocation, world: Arc<dyn World>) -> BoxFuture<'_, Result<Bytes, CallError>>;
}

/// The calls of a node: those made here, and those that came. A handle: clones share everything, any thread may use it.
#[derive(Clone)]
pub struct Calls(Arc<Shared>);

struct Shared {
    view: watch::Receiver<Arc<View>>,
    sides: OnceLock<Sides>,
    services: Services,
    admission: Admission,
    peers: Peers,
    meanings: Meanings,
    room: Room,
    tally: Tally,
    placements: Placements,
    log_gate: LogGate,
    standing: Standing,
    draining: AtomicBool,
    /// Calls of others that have not been answered yet.
    serving: AtomicUsize,
}

struct Sides {
    reach: Arc<dyn Reach>,
    host: Arc<dyn Host>,
}

/// A call on its way.
#[derive(Clone, Debug)]
struct Ask {
    target: SeedRef,
    function: String,
    input: Bytes,
    deadline: Instant,
    retries: u32,
    /// How long it has waited already for its name to be known.
    waited: Duration,
    caller: Arc<Caller>,
    /// Tail calls so far.
    hops: u8,
}

impl Calls {
    /// Calls that read `view`. Seeds on this node answer, and others are reached, from [`start`](Self::start) on.
    #[must_use]
    pub fn new(view: watch::Receiver<Arc<View>>, services: Services, limits: Limits) -> Self {
        let standing = Standing::new(view.clone(), STRANGERS_MAX);
        Self(Arc::new(Shared {
            view,
            sides: OnceLock::new(),
            services,
            admission: Admission::new(limits),
            peers: Peers::new(),
            meanings: Meanings::default(),
            room: Room::new(),
            tally: Tally::default(),
            placements: Placements::default(),
            log_gate: LogGate::default(),
            standing,
            draining: AtomicBool::new(false),
            serving: AtomicUsize::new(0),
        }))
    }

    /// Takes up the work. To be called once.
    pub fn start(&self, reach: Arc<dyn Reach>, host: Arc<dyn Host>) {
        assert!(self.0.sides.set(Sides { reach, host }).is_ok(), "calls are started once");
    }

    /// Makes a call for whoever operates this node.
    ///
    /// # Errors
    /// [`CallFailure`] says whether the guest may have run.
    pub async fn call(&self, request: CallRequest) -> Result<CallAnswer, CallFailure> {
        let CallRequest { seed, function, input, timeout, retries, waited } = request;
        let view = self.0.view.borrow().clone();
        let ask = Ask {
            target: seed,
            function,
            input,
            deadline: Instant::now() + timeout.min(DEADLINE_MAX).saturating_sub(waited),
            retries,
            waited,
            caller: Arc::new(caller(&view, view.me)),
            hops: 0,
        };
        dispatch::dispatch(&self.0, ask).await.map_err(|failure| failure.for_people())
    }

    /// Whether this node serves the seed, as far as its view goes.
    #[must_use]
    pub fn is_here(&self, seed: &SeedRef) -> bool {
        let view = self.0.view();
        self.0.meanings.of(&view, seed).is_some_and(|found| found.hosts.contains(&view.me))
    }

    /// A stream that `peer` opened, behind its kind byte. To be called on the mesh's runtime; returns at once.
    pub fn take_stream(&self, peer: NodeKey, send: SendStream, recv: RecvStream) {
        drop(tokio::spawn(serve::serve(Arc::clone(&self.0), peer, send, recv)));
    }

    /// Takes no more calls of others, and waits until those that run have been answered, or `limit` has passed.
    /// Whether all have.
    pub async fn drain(&self, limit: Duration) -> bool {
        self.0.draining.store(true, Ordering::Relaxed);
        let until = Instant::now() + limit;
        while self.0.serving.load(Ordering::Relaxed) > 0 || self.0.admission.counts() != (0, 0) {
            if Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(DRAIN_LOOK_EVERY).await;
        }
        true
    }

    /// Counters and gauges.
    #[must_use]
    pub fn numbers(&self) -> CallNumbers {
        let (running, waiting) = self.0.admission.counts();
        CallNumbers { running: running as u64, waiting: waiting as u64, ..self.0.tally.read() }
    }

    /// Bytes of inputs and outputs that are held for peers now.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        self.0.room.held()
    }

    /// Where the last calls of a seed from here went, a sentence each.
    #[must_use]
    pub fn why(&self, seed: &Name) -> Vec<String> {
        let view = self.0.view.borrow().clone();
        self.0.placements.sentences(seed, |node| name_of(&view, node), Instant::now())
    }
}

impl Shared {
    fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }
}

/// A caller at the beginning of a path, with what the roll says of it.
fn caller(view: &View, peer: NodeKey) -> Caller {
    let attributes: BTreeMap<String, String> =
        view.nodes.get(&peer).map(|node| node.member.rights.props.clone()).unwrap_or_default();
    Caller { peer, attributes, path: Vec::new() }
}

/// A node as people know it.
fn name_of(view: &View, node: &NodeKey) -> String {
    view.nodes.get(node).and_then(|info| info.name.as_ref()).map_or_else(|| node.short(), ToString::to_string)
}

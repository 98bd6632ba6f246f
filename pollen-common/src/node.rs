//! A node as a state machine: inputs in, outputs out, no effects. Owns the sessions with neighbours, their liveness,
//! and what this node authors. The same `Node` runs in the daemon and in the simulator.
//! Invariant: equal inputs at equal times give equal outputs; a failed effect comes back as an input.
//!
//! The rooms: [`io`] is what goes in and out; `session` answers messages, `rolling` and `gossip` are the two things
//! that sessions reconcile; `silence` keeps what a quiet peer has; `signs` notices what no document says; `repairs` copies what deltas cannot settle; `local` is what this node says itself;
//! `seeding` and `hosting` say which seeds
//! there are and which of them run here; `enroll` admits; `due` does whatever time or a change has made due.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::SocketAddr;
use core::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore as _, SeedableRng};

use crate::identity::{NodeKey, SecretKey, Verify};
use crate::maps::{Authoring, Document};
use crate::roll::{Roll, Standing};
use crate::time::{Instant, Now};
use crate::views::View;
use crate::wire::{Message, framed};

mod authority;
mod dial;
mod due;
mod enroll;
mod events;
mod gossip;
mod hosting;
mod io;
pub mod join;
mod link;
mod local;
mod persist;
mod probe;
mod records;
mod repairs;
mod rolling;
mod seeding;
mod session;
mod signs;
mod silence;
mod why;

pub use crate::maps::records::Write;
pub use enroll::{FoundError, found};
pub use io::*;
pub use records::RestoreError;
pub use signs::{SharedKey, Signs};
pub use silence::PATIENCE_DEFAULT;

use dial::Dials;
use due::Due;
use hosting::Hosting;
use link::{Link, Phase, UNSENT_BYTES_MAX};
use local::Local;
use persist::Persists;
use repairs::Repairs;

/// What a node is made of.
#[derive(Clone)]
pub struct NodeConfig {
    pub secret: SecretKey,
    /// From a cryptographic source; every random choice of the node derives from it.
    pub entropy: [u8; 32],
    pub verify: Arc<dyn Verify + Send + Sync>,
    /// Repair by trie. Off only in the test that shows that the simulation gate notices its absence.
    pub repair: bool,
    /// How long the connection of a silent peer is kept.
    pub patience: Duration,
}

impl NodeConfig {
    /// As every real node runs.
    #[must_use]
    pub fn new(secret: SecretKey, entropy: [u8; 32], verify: Arc<dyn Verify + Send + Sync>) -> Self {
        Self { secret, entropy, verify, repair: true, patience: silence::PATIENCE_DEFAULT }
    }
}

/// One node of a cluster.
pub struct Node {
    me: NodeKey,
    secret: SecretKey,
    verify: Arc<dyn Verify + Send + Sync>,
    rng: ChaCha8Rng,
    roll: Roll,
    standing: Arc<Standing>,
    document: Document,
    authoring: Authoring,
    local: Local,
    view: Arc<View>,
    links: BTreeMap<LinkId, Link>,
    dials: Dials,
    repairs: Repairs,
    persists: Persists,
    hosting: Hosting,
    /// Where members can be reached as an invite said, until their own entries say it.
    contacts: BTreeMap<NodeKey, Vec<SocketAddr>>,
    /// This node lost its own maps and has not heard yet what neighbours hold of them.
    returning: bool,
    due: Due,
    /// How long a silent peer's connection is kept.
    patience: Duration,
    watch: signs::Watch,
    refusals: BTreeMap<&'static str, u64>,
    outputs: VecDeque<Output>,
}

impl Node {
    /// From the node's durable records (all that its `Persist` outputs left behind).
    pub fn restore(config: NodeConfig, records: Vec<(Vec<u8>, Vec<u8>)>, now: Now) -> Result<Self, RestoreError> {
        let me = config.secret.public();
        let restored = records::restore(&records, config.verify.as_ref())?;
        let (roll, document) = (restored.roll, restored.lanes.document);
        let standing = Arc::new(Standing::of(&roll));
        let view = Arc::new(View::build(me, &roll, &standing, &document, now.unix));
        let authoring = Authoring::boot(config.secret.clone(), &document, restored.lanes.reserved, now);
        let mut node = Self {
            me,
            rng: ChaCha8Rng::from_seed(config.entropy),
            secret: config.secret,
            verify: config.verify,
            roll,
            standing,
            document,
            authoring,
            local: Local::default(),
            view,
            links: BTreeMap::new(),
            dials: Dials::default(),
            repairs: Repairs::new(config.repair),
            persists: Persists::default(),
            hosting: Hosting::new(now.mono),
            contacts: restored.contacts,
            returning: restored.returning,
            due: Due::at_start(now.mono),
            patience: config.patience,
            watch: signs::Watch::default(),
            refusals: BTreeMap::new(),
            outputs: VecDeque::new(),
        };
        node.watch.instance = node.rng.next_u64();
        if node.returning {
            node.authoring.hold(now.mono);
        }
        node.persist_now(restored.lanes.cleanup);
        node.roll_changed(now);
        node.settle(now);
        Ok(node)
    }

    /// Takes one input in. Poll for outputs and for the next timeout afterwards.
    pub fn handle(&mut self, input: Input, now: Now) {
        match input {
            Input::LinkUp { link, peer, dialed, remote } => self.link_up(link, (peer, remote), dialed, now),
            Input::LinkBytes { link, bytes } => self.link_bytes(link, &bytes, now),
            Input::LinkWritable { link } => {
                if let Some(link) = self.links.get_mut(&link) {
                    (link.unsent, link.unsent_since) = (0, None);
                }
            }
            Input::LinkDatagram { link, bytes } => self.link_datagram(link, &bytes, now),
            Input::LinkDown { link, reason } => self.link_down(link, &reason, now),
            Input::DialFailed { peer, .. } => self.dials.failed(peer, now.mono, &mut self.rng),
            Input::Command { id, command } => self.command(id, command, now),
            Input::Persisted { id } => self.persisted(id, now),
            Input::ReplicaReady { version } => self.replica_ready(&version),
            Input::ReplicaFailed { version, reason, own } => self.replica_failed(&version, reason, own, now.mono),
            Input::ReplicaStopped { version } => self.replica_stopped(&version),
            Input::Holding { modules } => self.holding(modules),
        }
        self.settle(now);
    }

    /// What the node wants done next; `None` until the next input or timeout.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Self::handle_timeout`] at the latest. Poll again after every input.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due.next()
    }

    /// Time has passed. May be called early or late, and as often as one likes.
    pub fn handle_timeout(&mut self, now: Now) {
        self.settle(now);
    }

    /// The cluster as this node sees it.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.view.clone()
    }

    /// This node's own key.
    #[must_use]
    pub const fn me(&self) -> NodeKey {
        self.me
    }

    /// How often peers' words were refused, by reason: metric labels.
    #[must_use]
    pub const fn refusals(&self) -> &BTreeMap<&'static str, u64> {
        &self.refusals
    }

    /// The replicated state, for comparison and for inspection.
    #[must_use]
    pub const fn document(&self) -> &Document {
        &self.document
    }

    /// The roll and what follows from it.
    #[must_use]
    pub const fn roll(&self) -> &Roll {
        &self.roll
    }

    /// Who stands, by the roll alone.
    #[must_use]
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    fn send(&mut self, id: LinkId, message: &Message) {
        let Some(link) = self.links.get_mut(&id) else { return };
        if link.phase == Phase::Closing {
            return;
        }
        let bytes = framed(message);
        link.unsent += bytes.len();
        let unsent = link.unsent;
        self.outputs.push_back(Output::Send { link: id, bytes });
        if unsent > UNSENT_BYTES_MAX {
            self.close(id, "the peer does not read what it is sent");
        }
    }

    fn close(&mut self, id: LinkId, reason: impl Into<String>) {
        let Some(link) = self.links.get_mut(&id) else { return };
        if link.phase != Phase::Closing {
            link.phase = Phase::Closing;
            self.outputs.push_back(Output::Close { link: id, reason: reason.into() });
            self.due.links = true;
        }
    }

    fn refuse(&mut self, reason: &'static str) {
        *self.refusals.entry(reason).or_default() += 1;
    }

    fn event(&mut self, kind: EventKind, peer: Option<NodeKey>, message: String) {
        self.outputs.push_back(Output::Event(Event { kind, peer, message }));
    }

    /// The links that carry anything now.
    fn live_links(&self) -> impl Iterator<Item = (LinkId, &Link)> {
        self.links.iter().filter(|(_, link)| link.is_live()).map(|(id, link)| (*id, link))
    }
}

//! Runs the node: feeds it what happens and does what it asks. Alone executes the core's outputs, alone reads clocks
//! for it; decides nothing. Invariants: inputs are handled one at a time, batches are written in the order asked for,
//! and whoever gets an answer already sees its effect in the published view.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use pollen_common::identity::NodeKey;
use pollen_common::node::{Command, Input, LinkId, Node, Output, Refusal, RefusalKind, Reply, RequestId, Signs, Write};
use pollen_common::views::{Name, SeedVersion, Target, VersionId, View};
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::events::Events;
use crate::store::health::DiskHealth;
use crate::store::writer::{Writer, Written};
use crate::transport::Mesh;

/// Batches that may be on their way to the disk before the node takes in nothing new: some seconds of a slow disk,
/// and the bound of the writer's queue.
pub const PERSISTS_UNDER_WAY_MAX: usize = 1024;

/// Inputs handled before outputs are carried out: few enough that an answer does not wait, enough that a burst of
/// frames costs one view.
const TURN_INPUTS_MAX: usize = 64;

/// Local requests waiting for the node: more askers than that wait in line.
const REQUESTS_WAITING_MAX: usize = 64;

/// The mesh, as far as the driver needs it: none of these waits.
pub trait Links: Send + 'static {
    /// Connect; answered by `LinkUp` or `DialFailed`.
    fn dial(&self, peer: NodeKey, addrs: Vec<SocketAddr>);
    /// Append to the ordered stream of a link.
    fn send(&self, link: LinkId, bytes: Vec<u8>);
    /// Send a datagram, best effort.
    fn send_datagram(&self, link: LinkId, bytes: Vec<u8>);
    /// The link's peer answers nothing: keep its connection, and look for it there.
    fn silent(&self, link: LinkId, addrs: Vec<SocketAddr>);
    /// The link's peer answers again.
    fn heard(&self, link: LinkId);
    /// Flush, then close.
    fn close(&self, link: LinkId, reason: String);
}

impl Links for Mesh {
    fn dial(&self, peer: NodeKey, addrs: Vec<SocketAddr>) {
        Self::dial(self, peer, addrs);
    }

    fn send(&self, link: LinkId, bytes: Vec<u8>) {
        Self::send(self, link, bytes);
    }

    fn send_datagram(&self, link: LinkId, bytes: Vec<u8>) {
        Self::send_datagram(self, link, bytes);
    }

    fn silent(&self, link: LinkId, addrs: Vec<SocketAddr>) {
        Self::silent(self, link, addrs);
    }

    fn heard(&self, link: LinkId) {
        Self::heard(self, link);
    }

    fn close(&self, link: LinkId, reason: String) {
        Self::close(self, link, reason);
    }
}

/// What hosts seeds, as far as the driver needs it: none of these waits.
pub trait Hosting: Send + 'static {
    /// Make a version ready to serve; answered by `ReplicaReady` or `ReplicaFailed`.
    fn start(&self, version: SeedVersion, name: Name, holders: Vec<NodeKey>);
    /// Let it go; answered by `ReplicaStopped`.
    fn stop(&self, version: VersionId);
}

/// Why the node stopped other than by request.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error("the thread that writes the node's state has died")]
    Writer,
    #[error("the mesh thread has died")]
    Mesh,
}

enum Request {
    Command { command: Command, answer: oneshot::Sender<Result<Reply, Refusal>> },
    Why { target: Target, answer: oneshot::Sender<Vec<String>> },
    WayBack { answer: oneshot::Sender<Vec<Write>> },
    Stop,
}

/// Counts of what the core refused, by reason.
type Refusals = BTreeMap<&'static str, u64>;

/// The way to the running node. Clones share it; any thread may use them.
#[derive(Clone, Debug)]
pub struct DriverHandle {
    requests: mpsc::Sender<Request>,
    view: watch::Receiver<Arc<View>>,
    refusals: Arc<Mutex<Refusals>>,
    signs: Arc<Mutex<Arc<Signs>>>,
}

impl DriverHandle {
    /// Asks the node for something and waits for its answer.
    ///
    /// # Errors
    /// The node's refusal, or that it is shutting down.
    pub async fn command(&self, command: Command) -> Result<Reply, Refusal> {
        let (answer, wait) = oneshot::channel();
        self.requests.send(Request::Command { command, answer }).await.map_err(|_| shutting_down())?;
        wait.await.unwrap_or_else(|_| Err(shutting_down()))
    }

    /// The rules that decided what the view says of `target`, a sentence each.
    ///
    /// # Errors
    /// That the node is shutting down.
    pub async fn why(&self, target: Target) -> Result<Vec<String>, Refusal> {
        let (answer, wait) = oneshot::channel();
        self.requests.send(Request::Why { target, answer }).await.map_err(|_| shutting_down())?;
        wait.await.map_err(|_| shutting_down())
    }

    /// The records that lead this node back to its cluster should the others be lost.
    ///
    /// # Errors
    /// That the node is shutting down.
    pub async fn way_back(&self) -> Result<Vec<Write>, Refusal> {
        let (answer, wait) = oneshot::channel();
        self.requests.send(Request::WayBack { answer }).await.map_err(|_| shutting_down())?;
        wait.await.map_err(|_| shutting_down())
    }

    /// The node's present reading of the cluster.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// The same, to be told of changes.
    #[must_use]
    pub fn views(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// What the core refused of its peers, by reason, since the start.
    #[must_use]
    pub fn refusals(&self) -> BTreeMap<&'static str, u64> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the node notices of its neighbours' machines.
    #[must_use]
    pub fn signs(&self) -> Arc<Signs> {
        self.signs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the driver once everything asked for is on disk.
    pub async fn stop(&self) {
        // A driver that is gone has stopped.
        let _ = self.requests.send(Request::Stop).await;
    }
}

fn shutting_down() -> Refusal {
    Refusal {
        kind: RefusalKind::Unreachable,
        message: "the node is shutting down".into(),
        hint: Some("start it again with `pln up`".into()),
    }
}

/// What the driver works with.
pub struct Parts<L> {
    pub node: Node,
    pub clock: Clock,
    pub links: L,
    pub hosting: Box<dyn Hosting>,
    /// What becomes of the replicas; bounded by whoever made the channel.
    pub reports: mpsc::Receiver<Input>,
    pub writer: Writer,
    pub written: mpsc::UnboundedReceiver<Written>,
    pub events: Events,
}

/// The running node.
pub struct Driver<L> {
    parts: Parts<L>,
    requests: mpsc::Receiver<Request>,
    view: watch::Sender<Arc<View>>,
    refusals: Arc<Mutex<Refusals>>,
    signs: Arc<Mutex<Arc<Signs>>>,
    disk: watch::Receiver<DiskHealth>,
    answers: BTreeMap<RequestId, oneshot::Sender<Result<Reply, Refusal>>>,
    last_request: u64,
    under_way: usize,
    stopping: bool,
}

/// The channel through which views are published, made before the driver because the mesh and the services, which
/// the driver needs, already read views.
#[must_use]
pub fn views_of(node: &Node) -> (watch::Sender<Arc<View>>, watch::Receiver<Arc<View>>) {
    watch::channel(node.view())
}

impl<L: Links> Driver<L> {
    /// A driver that publishes to `view`, and the handle to it.
    pub fn new(parts: Parts<L>, view: watch::Sender<Arc<View>>) -> (Self, DriverHandle) {
        let (asks, requests) = mpsc::channel(REQUESTS_WAITING_MAX);
        let refusals = Arc::<Mutex<Refusals>>::default();
        let signs = Arc::<Mutex<Arc<Signs>>>::default();
        let handle = DriverHandle {
            requests: asks,
            view: view.subscribe(),
            refusals: Arc::clone(&refusals),
            signs: Arc::clone(&signs),
        };
        let driver = Self {
            disk: parts.writer.health(),
            parts,
            requests,
            view,
            refusals,
            signs,
            answers: BTreeMap::new(),
            last_request: 0,
            under_way: 0,
            stopping: false,
        };
        (driver, handle)
    }

    /// Runs the node on what `happens` in the mesh until it is told to stop.
    ///
    /// # Errors
    /// [`DriverError`] when it cannot go on; what was acknowledged is on disk.
    pub async fn run<I: Into<Input>>(mut self, mut happens: mpsc::Receiver<I>) -> Result<(), DriverError> {
        let mut inputs = Vec::with_capacity(TURN_INPUTS_MAX);
        loop {
            self.execute();
            let disk = self.disk();
            // What a disk refuses was never acknowledged: the end does not wait for it.
            if self.stopping && (self.under_way == 0 || disk.is_some()) {
                return Ok(());
            }
            // While the disk refuses, the writer keeps one value for each record, which has a bound of its own.
            let taking_in = self.under_way < PERSISTS_UNDER_WAY_MAX || disk.is_some();
            let due = self.parts.node.poll_timeout().map(|at| self.parts.clock.at(at));
            tokio::select! {
                written = self.parts.written.recv() => self.written(&written.ok_or(DriverError::Writer)?),
                count = happens.recv_many(&mut inputs, TURN_INPUTS_MAX), if taking_in => {
                    if count == 0 {
                        return Err(DriverError::Mesh);
                    }
                    for input in inputs.drain(..) {
                        self.parts.node.handle(input.into(), self.parts.clock.now());
                    }
                }
                // Whoever hosts may be gone: then no report ever comes.
                Some(report) = self.parts.reports.recv(), if taking_in => {
                    self.parts.node.handle(report, self.parts.clock.now());
                }
                request = self.requests.recv(), if taking_in && !self.stopping => self.request(request),
                () = sleep_until(due) => self.parts.node.handle_timeout(self.parts.clock.now()),
            }
        }
    }

    fn written(&mut self, written: &Written) {
        match written {
            Written::Batch(id) => {
                self.under_way -= 1;
                self.parts.node.handle(Input::Persisted { id: *id }, self.parts.clock.now());
            }
            Written::Refused => {
                let Some(refusal) = self.disk() else { return };
                for (_, answer) in std::mem::take(&mut self.answers) {
                    let message = format!("{}; what was asked is not done, but may be later", refusal.message);
                    // An asker that has gone needs no answer.
                    let _ = answer.send(Err(Refusal { message, ..refusal.clone() }));
                }
            }
        }
    }

    /// Why nothing can be promised now, if the disk refuses.
    fn disk(&self) -> Option<Refusal> {
        match &*self.disk.borrow() {
            DiskHealth::Fine => None,
            DiskHealth::Refusing(refusing) => Some(Refusal {
                kind: RefusalKind::Failed,
                message: refusing.message(),
                hint: Some(refusing.hint().into()),
            }),
        }
    }

    fn request(&mut self, request: Option<Request>) {
        match request {
            Some(Request::Command { command, answer }) => {
                // Refused before the core hears of it: what it took in it could not take back.
                if let Some(refusal) = self
                    .disk()
                    .filter(|_| !matches!(command, Command::Leave | Command::Drain | Command::Patience { .. }))
                {
                    let _ = answer.send(Err(refusal));
                    return;
                }
                self.last_request += 1;
                let id = RequestId(self.last_request);
                self.answers.insert(id, answer);
                self.parts.node.handle(Input::Command { id, command }, self.parts.clock.now());
            }
            Some(Request::Why { target, answer }) => {
                // An asker that has gone needs no answer.
                let _ = answer.send(self.parts.node.why(&target, self.parts.clock.now()));
            }
            Some(Request::WayBack { answer }) => {
                let _ = answer.send(self.parts.node.way_back());
            }
            // Without handles nobody could ever ask it to stop.
            Some(Request::Stop) | None => self.stopping = true,
        }
    }

    fn execute(&mut self) {
        let mut view_changed = false;
        let mut answered = Vec::new();
        while let Some(output) = self.parts.node.poll_output() {
            match output {
                Output::Dial { peer, addrs } => self.parts.links.dial(peer, addrs),
                Output::Send { link, bytes } => self.parts.links.send(link, bytes),
                Output::SendDatagram { link, bytes } => self.parts.links.send_datagram(link, bytes),
                Output::Silent { link, addrs } => self.parts.links.silent(link, addrs),
                Output::Heard { link } => self.parts.links.heard(link),
                Output::Close { link, reason } => self.parts.links.close(link, reason),
                Output::Persist { id, writes } => {
                    self.under_way += 1;
                    self.parts.writer.persist(id, writes);
                }
                Output::Reply { id, result } => answered.push((id, result)),
                Output::ViewChanged => view_changed = true,
                Output::SignsChanged => {
                    *self.signs.lock().unwrap_or_else(PoisonError::into_inner) = self.parts.node.signs();
                }
                Output::StartReplica { version, name, holders } => self.parts.hosting.start(version, name, holders),
                Output::StopReplica { version } => self.parts.hosting.stop(version),
                Output::Event(event) => {
                    tracing::info!(kind = ?event.kind, "{}", event.message);
                    self.parts.events.record(self.parts.clock.now().unix, event);
                }
            }
        }
        if view_changed {
            self.view.send_replace(self.parts.node.view());
        }
        self.publish_refusals();
        for (id, result) in answered {
            if let Some(answer) = self.answers.remove(&id) {
                // An asker that has gone needs no answer.
                let _ = answer.send(result);
            }
        }
    }

    fn publish_refusals(&self) {
        let counted = self.parts.node.refusals();
        let mut published = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if *published != *counted {
            published.clone_from(counted);
        }
    }
}

async fn sleep_until(due: Option<tokio::time::Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => poll_fn(|_| std::task::Poll::Pending).await,
    }
}

#[cfg(test)]
mod tests;

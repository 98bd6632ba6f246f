//! One connection and everything that runs on it. Owns its tasks, queues and bounds; knows neither the core's frames nor
//! what services do with their streams.
//! Invariant: a peer can hold up its own connection alone, and within bounds; `LinkDown` is the link's last event.

use pollen_common::wire::streams::StreamKind;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pollen_common::identity::NodeKey;
use pollen_common::node::LinkId;
use quinn::{Connection, ConnectionError, ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::circuits;
use super::drops::{DropReason, Drops};
use super::endpoint::MEMBER;
use super::punch::{self, Meeting};
use super::{CORE_DATAGRAM, Inner, MeshEvent, SERVICE_DATAGRAM, code};

/// Bytes that may wait for the peer to read. The core stops at far less; this is for the day it does not.
const QUEUED_BYTES_MAX: usize = 8 << 20;
/// How long a stream may take to say its kind, and the dialler to open the link's stream.
const KIND_BOUND: Duration = Duration::from_secs(5);
/// Streams of one connection that have not said their kind yet.
const UNTYPED_STREAMS_MAX: usize = 64;
/// How long a close waits for the peer to read what was sent before it.
const CLOSE_BOUND: Duration = Duration::from_secs(2);
/// Core probes waiting for the driver; it handles one in microseconds, so more are a flood.
const PROBES_MAX: usize = 64;
/// Packets of the ordered stream handed over in one event, some 46 KiB.
const CHUNKS_PER_READ: usize = 32;
/// How often a stranger is looked at again: joining takes seconds.
const STANDING_INTERVAL: Duration = Duration::from_millis(500);
/// Bytes of a peer's reason that people are shown.
const REASON_BYTES_MAX: usize = 200;
/// The link's stream goes before services' bulk.
const LINK_PRIORITY: i32 = 1;

/// A connection, as the rest of the transport holds it.
pub struct Link {
    pub id: LinkId,
    pub peer: NodeKey,
    pub connection: Connection,
    pub dialed: bool,
    pub since: Instant,
    /// Dialled us and is no member, as far as is known.
    stranger: AtomicBool,
    orders: mpsc::UnboundedSender<Order>,
    queued: AtomicUsize,
    /// Looks for the peer while it is silent.
    seeking: Mutex<Option<AbortHandle>>,
    /// Whether the peer answers.
    answering: watch::Sender<bool>,
    /// What is known of the peer for a straight way to it.
    pub meeting: Meeting,
    /// Why we closed it, if we did.
    closed_because: Mutex<Option<String>>,
    down: watch::Sender<bool>,
}

/// What the writer is told. Bounded in bytes by [`QUEUED_BYTES_MAX`].
pub enum Order {
    Bytes(Bytes),
    /// Send what is before, then close.
    Close,
    /// The peer has finished its half.
    PeerFinished,
}

/// The writer's end of the queue.
pub type Orders = mpsc::UnboundedReceiver<Order>;

impl Link {
    /// A link whose task does not run yet.
    pub fn new(
        id: LinkId,
        peer: NodeKey,
        connection: Connection,
        dialed: bool,
        stranger: bool,
        since: Instant,
    ) -> (Arc<Self>, Orders) {
        let (orders, receiver) = mpsc::unbounded_channel();
        let link = Self {
            id,
            peer,
            connection,
            dialed,
            since,
            stranger: AtomicBool::new(stranger),
            orders,
            queued: AtomicUsize::new(0),
            seeking: Mutex::default(),
            answering: watch::Sender::new(true),
            meeting: Meeting::default(),
            closed_because: Mutex::default(),
            down: watch::Sender::new(false),
        };
        (Arc::new(link), receiver)
    }

    /// Whether it counts against what strangers may take.
    pub fn is_stranger(&self) -> bool {
        self.stranger.load(Ordering::Relaxed)
    }

    /// The peer answers nothing, and is looked for by `seeking` alone from now on.
    pub fn fell_silent(&self, seeking: AbortHandle) {
        self.answering.send_replace(false);
        self.seek_by(Some(seeking));
    }

    /// The peer answers again.
    pub fn answers(&self) {
        self.seek_by(None);
        self.answering.send_replace(true);
    }

    /// Whether the peer is silent.
    pub fn is_silent(&self) -> bool {
        !*self.answering.borrow()
    }

    /// Waits until the peer answers or the connection is gone.
    pub async fn answering(&self) {
        let mut answering = self.answering.subscribe();
        tokio::select! {
            // An error means that nobody will say it any more.
            _ = answering.wait_for(|answering| *answering) => {}
            _ = self.connection.closed() => {}
        }
    }

    fn seek_by(&self, seeking: Option<AbortHandle>) {
        let before = std::mem::replace(&mut *self.seeking.lock().unwrap_or_else(PoisonError::into_inner), seeking);
        before.inspect(AbortHandle::abort);
    }

    /// Queues `bytes` for the ordered stream, or closes the link if too many wait.
    pub fn send(&self, bytes: Bytes, drops: &Drops) {
        if self.connection.close_reason().is_some() {
            return;
        }
        let len = bytes.len();
        if self.queued.fetch_add(len, Ordering::Relaxed) + len > QUEUED_BYTES_MAX {
            drops.count(DropReason::LinkOverflow);
            return self.abort(code::TOO_SLOW, "the peer does not read what it is sent");
        }
        // A link without a writer is going down, and says so.
        let _going_down = self.orders.send(Order::Bytes(bytes));
    }

    /// Closes after what is queued, or after [`CLOSE_BOUND`].
    pub fn close(self: Arc<Self>, reason: String, runtime: &Handle) {
        self.because(&reason);
        let _going_down = self.orders.send(Order::Close);
        runtime.spawn(async move {
            tokio::time::sleep(CLOSE_BOUND).await;
            self.abort(code::CLOSED, &reason);
        });
    }

    /// Closes now. The first reason given stays.
    pub fn abort(&self, code: u32, reason: &str) {
        self.because(reason);
        self.connection.close(VarInt::from_u32(code), reason.as_bytes());
    }

    /// Waits until `LinkDown` has been said.
    pub async fn down(&self) {
        // An error means that nobody will say it any more.
        let mut down = self.down.subscribe();
        let _gone = down.wait_for(|down| *down).await;
    }

    fn because(&self, reason: &str) {
        self.because_lock().get_or_insert_with(|| reason.to_owned());
    }

    fn because_lock(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.closed_because.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reason(&self, error: &ConnectionError) -> String {
        match error {
            ConnectionError::LocallyClosed => self.because_lock().clone().unwrap_or_else(|| "closed".into()),
            ConnectionError::ApplicationClosed(close) => printable(&close.reason),
            other => other.to_string(),
        }
    }
}

/// A peer's text as it may be shown: short, and without control characters.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(REASON_BYTES_MAX)]);
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    if text.is_empty() { "closed by the peer".into() } else { text }
}

/// Runs the link until its connection is gone. `stream` is the ordered stream if we opened it.
pub async fn run(
    inner: Arc<Inner>,
    link: Arc<Link>,
    orders: Orders,
    replaced: Option<Arc<Link>>,
    stream: Option<(SendStream, RecvStream)>,
) {
    let _held = inner.path.hold(&link.peer);
    if let Some(old) = replaced {
        old.abort(code::DUPLICATE, "replaced by a newer connection");
        old.down().await;
    }
    let session = Session { inner: inner.clone(), link: link.clone() };
    let up = AtomicBool::new(false);
    let error = tokio::select! {
        error = link.connection.closed() => error,
        error = session.run(stream, orders, &up) => error,
    };
    link.seek_by(None);
    inner.handler.closed(link.connection.stable_id());
    inner.links.remove(link.id);
    let reason = link.reason(&error);
    let event = if up.load(Ordering::Relaxed) {
        Some(MeshEvent::LinkDown { link: link.id, reason })
    } else if link.dialed && inner.links.connection(&link.peer).is_none() {
        // Gone before it was up, and no other came in its place: whoever dialled is still owed an answer.
        Some(MeshEvent::DialFailed { peer: link.peer, reason })
    } else {
        None
    };
    if let Some(event) = event {
        let _no_driver = inner.events.send(event).await;
    }
    link.down.send_replace(true);
}

/// What runs while a connection lives.
struct Session {
    inner: Arc<Inner>,
    link: Arc<Link>,
}

impl Session {
    async fn run(&self, stream: Option<(SendStream, RecvStream)>, orders: Orders, up: &AtomicBool) -> ConnectionError {
        let (give, given) = oneshot::channel();
        let give = match stream {
            Some(stream) => {
                // The receiver is right here.
                let _given = give.send(stream);
                None
            }
            None => Some(give),
        };
        let (probe, probes) = mpsc::channel(PROBES_MAX);
        tokio::join!(
            self.streams(give),
            self.datagrams(probe),
            self.standing(),
            self.ordered(given, orders, probes, up)
        );
        self.link.connection.closed().await
    }

    /// Takes the peer's streams, each typed by a task of its own so that a silent one holds up nobody.
    async fn streams(&self, give: Option<oneshot::Sender<(SendStream, RecvStream)>>) {
        let give = Arc::new(Mutex::new(give));
        let untyped = Arc::new(Semaphore::new(UNTYPED_STREAMS_MAX));
        loop {
            let Ok(permit) = untyped.clone().acquire_owned().await else { return };
            let Ok((send, recv)) = self.link.connection.accept_bi().await else { return };
            let (inner, link, give) = (self.inner.clone(), self.link.clone(), give.clone());
            tokio::spawn(async move {
                type_stream(&inner, &link, &give, send, recv).await;
                drop(permit);
            });
        }
    }

    async fn datagrams(&self, probe: mpsc::Sender<Vec<u8>>) {
        while let Ok(mut bytes) = self.link.connection.read_datagram().await {
            let kind = if bytes.is_empty() { 0 } else { bytes.split_to(1)[0] };
            match kind {
                CORE_DATAGRAM => {
                    if probe.try_send(bytes.to_vec()).is_err() {
                        self.inner.drops.count(DropReason::DriverBusy);
                    }
                }
                SERVICE_DATAGRAM => self.inner.handler.datagram(self.link.peer, &self.link.connection, bytes),
                _ => self.inner.drops.count(DropReason::DatagramKind),
            }
        }
    }

    /// Gives a member its allowance, as soon as it is one.
    async fn standing(&self) {
        while !self.inner.handler.admitted(self.link.peer) {
            tokio::time::sleep(STANDING_INTERVAL).await;
        }
        self.link.stranger.store(false, Ordering::Relaxed);
        MEMBER.grant(&self.link.connection);
    }

    /// The ordered stream, from `LinkUp` on.
    async fn ordered(
        &self,
        given: oneshot::Receiver<(SendStream, RecvStream)>,
        orders: Orders,
        probes: mpsc::Receiver<Vec<u8>>,
        up: &AtomicBool,
    ) {
        let link = &self.link;
        let Ok(Ok((send, recv))) = timeout(KIND_BOUND, given).await else {
            self.inner.drops.count(DropReason::StreamTimeout);
            return link.abort(code::TOO_SLOW, "the link stream was not opened in time");
        };
        // Fails on a stream that is gone already, which the reader will find.
        let _gone = send.set_priority(LINK_PRIORITY);
        up.store(true, Ordering::Relaxed);
        let remote = self.inner.path.route(&link.peer);
        self.event(MeshEvent::LinkUp { link: link.id, peer: link.peer, dialed: link.dialed, remote }).await;
        let (finished, peer_finished) = oneshot::channel();
        tokio::join!(self.read(recv, finished), self.write(send, orders, peer_finished), self.probes(probes));
    }

    async fn probes(&self, mut probes: mpsc::Receiver<Vec<u8>>) {
        while let Some(bytes) = probes.recv().await {
            self.event(MeshEvent::LinkDatagram { link: self.link.id, bytes }).await;
        }
    }

    /// Reads only while the driver has room.
    async fn read(&self, mut recv: RecvStream, finished: oneshot::Sender<()>) {
        let mut chunks: [Bytes; CHUNKS_PER_READ] = Default::default();
        loop {
            match recv.read_chunks(&mut chunks).await {
                Ok(Some(n)) => {
                    let bytes = chunks[..n].concat();
                    chunks[..n].fill(Bytes::new());
                    self.event(MeshEvent::LinkBytes { link: self.link.id, bytes }).await;
                }
                Ok(None) => break,
                Err(ReadError::ConnectionLost(_)) => return,
                Err(_) => return self.link.abort(code::CLOSED, "the peer reset its link stream"),
            }
        }
        let _not_closing = finished.send(());
        let _going_down = self.link.orders.send(Order::PeerFinished);
    }

    /// Writes what is queued. To close, both ends finish their halves first, because closing a connection discards what
    /// its peer has not read.
    async fn write(&self, mut send: SendStream, mut orders: Orders, peer_finished: oneshot::Receiver<()>) {
        let link = &self.link;
        while let Some(order) = orders.recv().await {
            match order {
                Order::Bytes(bytes) => {
                    let len = bytes.len();
                    match send.write_chunk(bytes).await {
                        Ok(()) => {}
                        Err(WriteError::ConnectionLost(_)) => return,
                        Err(_) => return link.abort(code::CLOSED, "the peer stopped reading its link stream"),
                    }
                    link.queued.fetch_sub(len, Ordering::Relaxed);
                    if orders.is_empty() {
                        self.event(MeshEvent::LinkWritable { link: link.id }).await;
                    }
                }
                Order::Close => {
                    let _finished = send.finish();
                    let _late = timeout(CLOSE_BOUND, peer_finished).await;
                    let reason = link.because_lock().clone().unwrap_or_default();
                    return link.abort(code::CLOSED, &reason);
                }
                Order::PeerFinished => {
                    let _finished = send.finish();
                    if timeout(CLOSE_BOUND, link.connection.closed()).await.is_err() {
                        link.abort(code::CLOSED, "the peer finished its link stream");
                    }
                    return;
                }
            }
        }
    }

    async fn event(&self, event: MeshEvent) {
        if self.inner.events.send(event).await.is_err() {
            self.link.abort(code::SHUTTING_DOWN, "shutting down");
        }
    }
}

/// Reads the kind of a stream and hands it on.
async fn type_stream(
    inner: &Arc<Inner>,
    link: &Arc<Link>,
    give: &Mutex<Option<oneshot::Sender<(SendStream, RecvStream)>>>,
    mut send: SendStream,
    mut recv: RecvStream,
) {
    let mut first = [0];
    let refused = match timeout(KIND_BOUND, recv.read_exact(&mut first)).await {
        Ok(Ok(())) => match StreamKind::from_byte(first[0]) {
            Some(StreamKind::Link) => {
                let give = give.lock().unwrap_or_else(PoisonError::into_inner).take();
                match give.map(|give| give.send((send, recv))) {
                    Some(_) => return,
                    None => {
                        inner.drops.count(DropReason::StreamSecondLink);
                        return link.abort(code::SECOND_LINK, "a second link stream");
                    }
                }
            }
            // A task of its own: it lasts as long as the circuit, and this one holds a place of those that say nothing.
            Some(StreamKind::Circuit) => {
                tokio::spawn(circuits::take(inner.clone(), link.clone(), send, recv));
                return;
            }
            Some(StreamKind::Punch) => {
                tokio::spawn(punch::take(inner.clone(), link.clone(), send, recv));
                return;
            }
            Some(kind) => return inner.handler.stream(link.peer, &link.connection, kind, send, recv),
            None => (DropReason::StreamKind, code::UNKNOWN_KIND),
        },
        // Finished, reset or lost before its first byte.
        Ok(Err(_)) => (DropReason::StreamKind, code::UNKNOWN_KIND),
        Err(_) => (DropReason::StreamTimeout, code::TOO_SLOW),
    };
    inner.drops.count(refused.0);
    let code = VarInt::from_u32(refused.1);
    // Either half may be gone already, which is as good.
    let _gone = (send.reset(code), recv.stop(code));
}

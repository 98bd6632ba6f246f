//! UDP sessions: payloads of one client, between a local socket and the mesh. Owns the queues on the way.
//! Knows nothing of services, names or standing.
//! Invariants: a reply goes to the client of its session and no other; what does not fit a queue is dropped and
//! counted, as UDP does, and never held without bound.

use pollen_common::wire::streams::payload::{self, Incoming, PAYLOAD_BYTES_MAX};
use pollen_common::wire::streams::service;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use quinn::{Connection, RecvStream, SendDatagramError, SendStream};
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;

use super::pump::{self, Broken, CODE_CUT, CODE_RESET};
use super::tally::Tally;

/// How long a session outlives its last payload in either direction: the usual time of a NAT's UDP binding.
pub(super) const SESSION_IDLE: Duration = Duration::from_secs(60);
/// Payloads that wait in one queue: a burst of a resolver or a game, not a backlog.
const QUEUE_PAYLOADS_MAX: usize = 64;
/// Bytes that wait in all queues of this node together.
const QUEUED_BYTES_MAX: usize = 8 * 1024 * 1024;
/// What a queued payload costs besides its bytes.
const QUEUED_OVERHEAD: usize = 128;
/// How long the rest of a payload may take on the stream once its length came. A peer that stalls in the middle would
/// hold the payload's memory for as long as it likes.
const PAYLOAD_WAIT_MAX: Duration = Duration::from_secs(10);
/// Socket buffers: a burst of fifty clients' largest payloads at once.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// A payload in a queue; its share of the budget returns when it is dropped.
#[derive(Debug)]
pub(super) struct Payload {
    bytes: Bytes,
    _share: OwnedSemaphorePermit,
}

/// The bytes that all queues may hold together.
#[derive(Clone, Debug)]
pub(super) struct Budget(Arc<Semaphore>);

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(QUEUED_BYTES_MAX)))
    }
}

/// Where payloads of one session wait.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    sender: mpsc::Sender<Payload>,
    budget: Budget,
}

impl Queue {
    pub(super) fn new(budget: &Budget) -> (Self, mpsc::Receiver<Payload>) {
        let (sender, receiver) = mpsc::channel(QUEUE_PAYLOADS_MAX);
        (Self { sender, budget: budget.clone() }, receiver)
    }

    /// Whether there was room.
    pub(super) fn push(&self, bytes: Bytes) -> bool {
        let cost = u32::try_from(bytes.len() + QUEUED_OVERHEAD).expect("a payload has at most 64 KiB");
        let Ok(share) = Arc::clone(&self.budget.0).try_acquire_many_owned(cost) else { return false };
        self.sender.try_send(Payload { bytes, _share: share }).is_ok()
    }

    /// Whether its session has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

/// A session on a connection: the connection's stable identifier and the session's number.
type Key = (usize, u64);

/// Which session a datagram of the mesh belongs to.
#[derive(Debug, Default)]
pub(super) struct Inboxes {
    budget: Budget,
    by_session: Mutex<BTreeMap<Key, (Queue, Arc<Tally>)>>,
    /// Datagrams of no session, or no datagrams at all.
    astray: AtomicU64,
}

impl Inboxes {
    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    pub(super) fn astray(&self) -> u64 {
        self.astray.load(Ordering::Relaxed)
    }

    /// Takes a datagram, behind its first byte.
    pub(super) fn deliver(&self, connection: usize, datagram: &Bytes) {
        let delivered = service::session_number(datagram).is_some_and(|(number, length)| {
            let payload = datagram.slice(length..);
            let inboxes = self.by_session.lock().expect("nothing panics while it holds this lock");
            let Some((queue, tally)) = inboxes.get(&(connection, number)) else { return false };
            if !queue.push(payload) {
                tally.dropped.fetch_add(1, Ordering::Relaxed);
            }
            true
        });
        if !delivered {
            self.astray.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn register(self: &Arc<Self>, key: Key, tally: &Arc<Tally>) -> (Registration, mpsc::Receiver<Payload>) {
        let (queue, receiver) = Queue::new(&self.budget);
        self.by_session
            .lock()
            .expect("nothing panics while it holds this lock")
            .insert(key, (queue, Arc::clone(tally)));
        (Registration { inboxes: Arc::clone(self), key }, receiver)
    }
}

/// Keeps a session reachable for datagrams until dropped.
struct Registration {
    inboxes: Arc<Inboxes>,
    key: Key,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.inboxes.by_session.lock().expect("nothing panics while it holds this lock").remove(&self.key);
    }
}

/// Where a session's local payloads come from.
pub(super) enum Inlet {
    /// One client among those of a listening socket.
    Queue(mpsc::Receiver<Payload>),
    /// A socket of the session's own.
    Socket(Arc<UdpSocket>),
}

/// Where they go.
pub(super) enum Outlet {
    Client(Arc<UdpSocket>, SocketAddr),
    Server(Arc<UdpSocket>),
}

impl Inlet {
    /// The next payload; `None` when no more will come.
    async fn recv(&mut self) -> io::Result<Option<Bytes>> {
        match self {
            Self::Queue(queue) => Ok(queue.recv().await.map(|payload| payload.bytes)),
            Self::Socket(socket) => loop {
                socket.readable().await?;
                match with_scratch(|scratch| socket.try_recv(scratch).map(|n| Bytes::copy_from_slice(&scratch[..n]))) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    other => return other.map(Some),
                }
            },
        }
    }
}

impl Outlet {
    async fn send(&self, payload: &[u8]) -> io::Result<()> {
        match self {
            // A client that has closed its socket is no error of the session: it may be back.
            Self::Client(socket, client) => drop(socket.send_to(payload, client).await),
            Self::Server(socket) => match socket.send(payload).await {
                // The server is gone: ending the session lets the next payload find another provider.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Err(error),
                Ok(_) | Err(_) => {}
            },
        }
        Ok(())
    }
}

thread_local! {
    /// One receive buffer for all sessions of a thread: each read is copied out before the next.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; PAYLOAD_BYTES_MAX + 1]);
}

/// Lends the thread's receive buffer to a read that does not wait.
pub(super) fn with_scratch<T>(read: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| read(scratch))
}

/// Best effort: beyond the system's limit only with the right to administer the network.
pub(super) fn enlarge_buffers(socket: impl std::os::fd::AsFd) {
    use rustix::net::sockopt;
    if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_BYTES).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    }
    let _ = sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES);
}

/// When a payload last went through, in either direction.
struct Activity {
    start: Instant,
    last_ms: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self { start: Instant::now(), last_ms: AtomicU64::new(0) }
    }

    fn touch(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now, Ordering::Relaxed);
    }

    /// Resolves when nothing went through for `limit`.
    async fn idle(&self, limit: Duration) {
        loop {
            let end = self.start + Duration::from_millis(self.last_ms.load(Ordering::Relaxed)) + limit;
            if Instant::now() >= end {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

/// The mesh side of a session.
pub(super) struct Carrier {
    pub connection: Connection,
    pub send: SendStream,
    pub recv: RecvStream,
}

/// A session on the mesh that can already receive datagrams.
pub(super) struct Session {
    carrier: Carrier,
    number: u64,
    inbox: mpsc::Receiver<Payload>,
    tally: Arc<Tally>,
    _registration: Registration,
}

impl Session {
    /// To be called before the other side learns that the session is open: its first datagrams may come at once.
    pub(super) fn new(inboxes: &Arc<Inboxes>, carrier: Carrier, tally: &Arc<Tally>) -> Self {
        let number = quinn::VarInt::from(carrier.send.id()).into_inner();
        let (registration, inbox) = inboxes.register((carrier.connection.stable_id(), number), tally);
        Self { carrier, number, inbox, tally: Arc::clone(tally), _registration: registration }
    }

    /// The streams, for header and answer.
    pub(super) fn streams(&mut self) -> (&mut SendStream, &mut RecvStream) {
        (&mut self.carrier.send, &mut self.carrier.recv)
    }

    /// Runs the session until it is idle, broken or cut.
    pub(super) async fn run(
        self,
        mut inlet: Inlet,
        outlet: Outlet,
        idle: Duration,
        cut: impl Future<Output = ()>,
    ) -> Result<(), Broken> {
        let Self { carrier: Carrier { connection, mut send, mut recv }, number, mut inbox, tally, _registration } =
            self;
        let moved = &tally.moved;
        let activity = Activity::new();
        let result = {
            let datagrams = async {
                while let Some(payload) = inbox.recv().await {
                    outlet.send(&payload.bytes).await?;
                    moved.inward.fetch_add(payload.bytes.len() as u64, Ordering::Relaxed);
                    activity.touch();
                }
                Ok(())
            };
            let oversized = async {
                while let Some(payload) = read_payload(&mut recv).await? {
                    outlet.send(&payload).await?;
                    moved.inward.fetch_add(payload.len() as u64, Ordering::Relaxed);
                    activity.touch();
                }
                Ok(())
            };
            let outward = async {
                while let Some(payload) = inlet.recv().await? {
                    send_payload(&connection, &mut send, number, &payload).await?;
                    moved.outward.fetch_add(payload.len() as u64, Ordering::Relaxed);
                    activity.touch();
                }
                Ok(())
            };
            tokio::select! {
                result = datagrams => result,
                result = oversized => result,
                result = outward => result,
                () = activity.idle(idle) => Ok(()),
                () = cut => Err(Broken::Cut),
            }
        };
        let code = if matches!(result, Err(Broken::Cut)) { CODE_CUT } else { CODE_RESET };
        pump::reset_stream(&mut send, &mut recv, code);
        result
    }
}

/// The next payload on the session's stream; `None` at its end.
async fn read_payload(recv: &mut RecvStream) -> Result<Option<Bytes>, Broken> {
    let mut incoming = Incoming::default();
    while !incoming.has_length() {
        if !read_more(recv, &mut incoming).await? {
            return if incoming.is_between() { Ok(None) } else { Err(Broken::Remote) };
        }
        if let Some(empty) = incoming.poll().map_err(|_| Broken::Remote)? {
            return Ok(Some(empty.into()));
        }
    }
    let rest = async {
        while read_more(recv, &mut incoming).await? {
            if let Some(payload) = incoming.poll().map_err(|_| Broken::Remote)? {
                return Ok(Some(payload.into()));
            }
        }
        Err(Broken::Remote)
    };
    tokio::time::timeout(PAYLOAD_WAIT_MAX, rest).await.map_err(|_| Broken::Remote)?
}

/// Reads a part of what is wanted; `false` at the stream's end.
async fn read_more(recv: &mut RecvStream, incoming: &mut Incoming) -> Result<bool, Broken> {
    let chunk = recv.read_chunk(incoming.wanted(), true).await.map_err(|_| Broken::Remote)?;
    Ok(chunk.map(|chunk| incoming.push(&chunk.bytes)).is_some())
}

/// By datagram where it fits, else on the stream.
async fn send_payload(
    connection: &Connection,
    send: &mut SendStream,
    number: u64,
    payload: &Bytes,
) -> Result<(), Broken> {
    // IPv6 allows a few bytes more than the format; no server may be told less than its client said.
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Ok(());
    }
    let prefix = service::datagram_prefix(number);
    if connection.max_datagram_size().is_some_and(|max| prefix.len() + payload.len() <= max) {
        let mut datagram = BytesMut::with_capacity(prefix.len() + payload.len());
        datagram.put_slice(&prefix);
        datagram.put_slice(payload);
        // Waits for room rather than pushing out what waits there: the loss then falls on the newest, at a socket.
        match connection.send_datagram_wait(datagram.freeze()).await {
            Ok(()) => return Ok(()),
            Err(SendDatagramError::ConnectionLost(_)) => return Err(Broken::Remote),
            // The path's MTU has just shrunk, or the peer takes none.
            Err(SendDatagramError::TooLarge | SendDatagramError::UnsupportedByPeer | SendDatagramError::Disabled) => {}
        }
    }
    let Some(framed) = payload::framed(payload) else { return Ok(()) };
    send.write_chunk(framed.into()).await.map_err(|_| Broken::Remote)
}

/// The same between a client and a server of this very node.
pub(super) async fn exchange(
    (mut client_in, client_out): (Inlet, Outlet),
    server: Arc<UdpSocket>,
    tally: &Tally,
    idle: Duration,
    cut: impl Future<Output = ()>,
) -> Result<(), Broken> {
    let activity = Activity::new();
    let (mut server_in, server_out) = (Inlet::Socket(Arc::clone(&server)), Outlet::Server(server));
    let forth = pass(&mut client_in, &server_out, &tally.moved.inward, &activity);
    let back = pass(&mut server_in, &client_out, &tally.moved.outward, &activity);
    tokio::select! {
        result = forth => result,
        result = back => result,
        () = activity.idle(idle) => Ok(()),
        () = cut => Err(Broken::Cut),
    }
}

async fn pass(inlet: &mut Inlet, outlet: &Outlet, moved: &AtomicU64, activity: &Activity) -> Result<(), Broken> {
    while let Some(payload) = inlet.recv().await? {
        outlet.send(&payload).await?;
        moved.fetch_add(payload.len() as u64, Ordering::Relaxed);
        activity.touch();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_bounded_by_count_and_all_queues_by_bytes() {
        let budget = Budget::default();
        let (small, receiver) = Queue::new(&budget);
        assert_eq!((0..200).filter(|_| small.push(Bytes::new())).count(), QUEUE_PAYLOADS_MAX);
        drop(receiver);
        assert!(small.is_closed());
        let queues: Vec<_> = (0..10).map(|_| Queue::new(&budget)).collect();
        let payload = Bytes::from(vec![0; PAYLOAD_BYTES_MAX]);
        let held: usize = queues.iter().map(|(q, _)| (0..64).filter(|_| q.push(payload.clone())).count()).sum();
        assert_eq!(held, QUEUED_BYTES_MAX / (PAYLOAD_BYTES_MAX + QUEUED_OVERHEAD));
    }

    #[test]
    fn a_datagram_of_no_session_is_counted_and_dropped() {
        let inboxes = Inboxes::default();
        for stray in [&b""[..], &[4], &[0x44], &[0xff, 1]] {
            inboxes.deliver(1, &Bytes::copy_from_slice(stray));
        }
        assert_eq!(inboxes.astray(), 4);
    }
}

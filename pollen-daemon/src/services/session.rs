//! UDP sessions: payloads of one client, between a local socket and the mesh.
//! Knows nothing of services, names or standing.
//! Invariants: a reply goes to the client of its session and no other; what does not fit a queue is dropped and
//! counted, as UDP does, and never held without bound.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use pollen_common::wire::streams::payload::{self, Incoming, PAYLOAD_BYTES_MAX};
use pollen_common::wire::streams::service;
use quinn::{Connection, RecvStream, SendDatagramError, SendStream};
use tokio::net::UdpSocket;

use super::idle::{Activity, IdleLimits};
use super::inboxes::{Inboxes, Registration};
use super::pump::{self, Broken, CODE_CUT, CODE_RESET};
use super::queue::{Payload, Waiting};
use super::tally::{Dropped, Tally};

/// How long the rest of a payload may take on the stream once its length came. A peer that stalls in the middle would
/// hold the payload's memory for as long as it likes.
const PAYLOAD_WAIT_MAX: Duration = Duration::from_secs(10);
/// Socket buffers: a burst of fifty clients' largest payloads at once.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// Where a session's local payloads come from.
pub(super) enum Inlet {
    /// One client among those of a listening socket.
    Queue(Waiting),
    /// A socket of the session's own.
    Socket(Arc<UdpSocket>),
}

/// Where they go.
pub(super) enum Outlet {
    Client(Arc<UdpSocket>, SocketAddr),
    Server(Arc<UdpSocket>),
}

/// A payload from a local socket.
pub(super) enum Taken {
    Queued(Payload),
    Fresh(Bytes),
}

impl Taken {
    pub(super) fn bytes(&self) -> &Bytes {
        match self {
            Self::Queued(payload) => &payload.bytes,
            Self::Fresh(bytes) => bytes,
        }
    }

    /// Why it is not to be sent.
    pub(super) fn unfit(&self) -> Option<Dropped> {
        match self {
            Self::Queued(payload) if payload.is_late() => Some(Dropped::Late),
            // IPv6 allows a few bytes more than the format; no server may be told less than its client said.
            taken => (taken.bytes().len() > PAYLOAD_BYTES_MAX).then_some(Dropped::TooLong),
        }
    }
}

impl Inlet {
    /// The next payload; `None` when no more will come.
    async fn recv(&mut self) -> io::Result<Option<Taken>> {
        match self {
            Self::Queue(queue) => Ok(queue.recv().await.map(Taken::Queued)),
            Self::Socket(socket) => loop {
                // First read, then wait: a server that says much at once is not asked twice for each.
                tokio::task::consume_budget().await;
                match with_scratch(|scratch| socket.try_recv(scratch).map(|n| Bytes::copy_from_slice(&scratch[..n]))) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.readable().await?,
                    other => return other.map(|bytes| Some(Taken::Fresh(bytes))),
                }
            },
        }
    }

    /// Whether something waits.
    pub(super) fn has_more(&self) -> bool {
        matches!(self, Self::Queue(queue) if !queue.is_empty())
    }

    /// What waits already, without waiting.
    pub(super) fn next_now(&mut self) -> Option<Taken> {
        match self {
            Self::Queue(queue) => queue.try_recv().ok().map(Taken::Queued),
            Self::Socket(_) => None,
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
pub(super) fn enlarge_buffers(socket: impl AsFd) {
    use rustix::net::sockopt;
    if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_BYTES).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    }
    let _ = sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES);
}

/// `SO_MEMINFO` of `asm-generic/socket.h`, what it tells (`linux/sock_diag.h`), and the place of the drops in it.
const SO_MEMINFO: libc::c_int = 55;
const MEMINFO_VARS: usize = 9;
const MEMINFO_DROPS: usize = 8;

/// Datagrams that the system has dropped because the socket's buffer was full, since it was opened.
pub(super) fn lost_by(socket: impl AsFd) -> u64 {
    let mut told = [0u32; MEMINFO_VARS];
    let mut size = libc::socklen_t::try_from(size_of_val(&told)).expect("36 bytes");
    // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel writes at most `size` bytes to an
    // array that we own and that has as many.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_MEMINFO,
            told.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    if answer == 0 { told[MEMINFO_DROPS].into() } else { 0 }
}

/// The mesh side of a session.
pub(super) struct Carrier {
    pub connection: Connection,
    pub send: SendStream,
    pub recv: RecvStream,
}

/// A session whose datagrams are awaited, before the other side has heard of it.
pub(super) struct Awaited {
    number: u64,
    inbox: Waiting,
    tally: Arc<Tally>,
    inboxes: Arc<Inboxes>,
    _registration: Registration,
}

impl Awaited {
    /// The session of `send`, which stands on `connection`.
    pub(super) fn new(inboxes: &Arc<Inboxes>, connection: &Connection, send: &SendStream, tally: &Arc<Tally>) -> Self {
        let number = quinn::VarInt::from(send.id()).into_inner();
        let (registration, inbox) = inboxes.register(connection.stable_id(), number, tally);
        Self { number, inbox, tally: Arc::clone(tally), inboxes: Arc::clone(inboxes), _registration: registration }
    }
}

/// An open session on the mesh.
pub(super) struct Session {
    pub carrier: Carrier,
    pub awaited: Awaited,
}

impl Session {
    /// Runs the session until it is idle, broken or cut. What is left in `inlet` then was not taken from it.
    pub(super) async fn run(
        self,
        inlet: &mut Inlet,
        outlet: &Outlet,
        (activity, idle): (&Activity, IdleLimits),
        cut: impl Future<Output = ()>,
    ) -> Result<(), Broken> {
        let Self { carrier: Carrier { connection, mut send, mut recv }, awaited } = self;
        let Awaited { number, mut inbox, tally, inboxes, _registration } = awaited;
        let moved = &tally.moved;
        // Whose payloads these are: a client's come out of a queue, a server's from a socket.
        let serving = matches!(inlet, Inlet::Socket(_));
        let passed = |inward: bool, length: usize| {
            let direction = if inward { &moved.inward } else { &moved.outward };
            direction.fetch_add(length as u64, Ordering::Relaxed);
            if inward == serving { activity.asked() } else { activity.answered() }
        };
        let result = {
            let datagrams = async {
                while let Some(payload) = inbox.recv().await {
                    outlet.send(&payload.bytes).await?;
                    passed(true, payload.bytes.len());
                }
                Ok(())
            };
            let oversized = async {
                while let Some(payload) = read_payload(&mut recv).await? {
                    outlet.send(&payload).await?;
                    passed(true, payload.len());
                }
                Ok(())
            };
            let outward = async {
                while let Some(payload) = inlet.recv().await? {
                    if let Some(why) = payload.unfit() {
                        inboxes.dropped(&tally, why, 1);
                        continue;
                    }
                    send_payload(&connection, &mut send, number, payload.bytes()).await?;
                    passed(false, payload.bytes().len());
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
    (client_in, client_out): (&mut Inlet, &Outlet),
    server: Arc<UdpSocket>,
    (tally, inboxes): (&Tally, &Inboxes),
    (activity, idle): (&Activity, IdleLimits),
    cut: impl Future<Output = ()>,
) -> Result<(), Broken> {
    let (mut server_in, server_out) = (Inlet::Socket(Arc::clone(&server)), Outlet::Server(server));
    let dropped = |why| inboxes.dropped(tally, why, 1);
    let forth = pass(client_in, &server_out, &dropped, |length| {
        tally.moved.inward.fetch_add(length, Ordering::Relaxed);
        activity.asked();
    });
    let back = pass(&mut server_in, client_out, &dropped, |length| {
        tally.moved.outward.fetch_add(length, Ordering::Relaxed);
        activity.answered();
    });
    tokio::select! {
        result = forth => result,
        result = back => result,
        () = activity.idle(idle) => Ok(()),
        () = cut => Err(Broken::Cut),
    }
}

async fn pass(
    inlet: &mut Inlet,
    outlet: &Outlet,
    dropped: &impl Fn(Dropped),
    passed: impl Fn(u64),
) -> Result<(), Broken> {
    while let Some(payload) = inlet.recv().await? {
        if let Some(why) = payload.unfit() {
            dropped(why);
            continue;
        }
        outlet.send(payload.bytes()).await?;
        passed(payload.bytes().len() as u64);
    }
    Ok(())
}

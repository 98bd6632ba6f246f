//! The path socket: quinn's UDP socket, beneath which packets find their way. Owns the real socket, the routes, the
//! binding of sources and the batch; knows nothing of connections, and takes no decision about paths.
//! Invariant: quinn sees virtual addresses only, and no packet of a source that no node has proved.

pub mod address;
pub mod batch;
pub mod bind;
pub mod frames;
mod guards;
mod last;
pub mod routes;
mod socket;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use pollen_common::circuit::{self, Dropped, HEADER_BYTES, Label, Use, Verdict};
use pollen_common::identity::{NodeKey, SecretKey};
use pollen_common::packet::relay_label;
use pollen_common::path_probe::{FIRST_BYTE, Nonce, QUIC_FIXED_BIT};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::io::Interest;
use tokio::sync::{Notify, oneshot};

use self::address::{Source, UdpSource, VirtualAddr};
use self::batch::{Batcher, Datagrams};
use self::bind::{Binder, TooManyDials};
use self::frames::{Frames, Passed};
pub use self::guards::{Held, Made, Proving};
use self::last::Last;
use self::routes::Routes;
use self::socket::Udp;
use super::drops::{DropReason, Drops};
use crate::datapath::{Datapath, Meaning};

/// Receives in a row that bring nothing for QUIC before others get a turn: a flood of garbage must not hold the thread.
const BARREN_RECEIVES_MAX: usize = 8;
/// Turns that others get before an unfinished batch is sent.
const FLUSH_TURNS: usize = 4;

/// The socket. Shared by quinn, the flusher, and whoever dials.
pub struct PathSocket {
    udp: Udp,
    routes: RwLock<Arc<Routes>>,
    binder: Mutex<Binder>,
    /// Dials that wait for their source to be proved.
    waiting: Mutex<HashMap<[u8; 16], oneshot::Sender<()>>>,
    batcher: Mutex<Batcher>,
    last: Mutex<Last>,
    frames: Frames,
    datapath: Arc<Datapath>,
    /// Some node's packets go elsewhere now.
    rerouted: Notify,
    flush: Notify,
    drops: Arc<Drops>,
}

/// Panics elsewhere leave these locks consistent: no code under them can panic halfway through a change.
macro_rules! locked {
    ($lock:expr) => {
        $lock.unwrap_or_else(PoisonError::into_inner)
    };
}
use locked;

impl PathSocket {
    /// Binds `port` (0 for any) on all addresses. Must be called within the runtime that will drive it.
    ///
    /// # Errors
    /// From the kernel, when the port cannot be bound.
    pub fn bind(secret: SecretKey, cookie_key: [u8; 32], port: u16, drops: Arc<Drops>) -> io::Result<Self> {
        let udp = Udp::bind(port)?;
        let port = udp.io.local_addr()?.port();
        Ok(Self {
            udp,
            routes: RwLock::default(),
            binder: Mutex::new(Binder::new(secret, cookie_key, Instant::now())),
            waiting: Mutex::default(),
            batcher: Mutex::default(),
            last: Mutex::default(),
            frames: Frames::default(),
            datapath: Datapath::new(port),
            rerouted: Notify::new(),
            flush: Notify::new(),
            drops,
        })
    }

    /// Where the socket is bound.
    ///
    /// # Errors
    /// From the kernel.
    pub fn bound_to(&self) -> io::Result<SocketAddr> {
        self.udp.io.local_addr()
    }

    /// Datagrams that one receive can bring, and one send can carry: 1 where the kernel offers no offload.
    #[must_use]
    pub fn offload(&self) -> (usize, usize) {
        (self.udp.state.gro_segments(), self.udp.state.max_gso_segments())
    }

    /// Bytes of the socket's receive and send buffers, as the kernel counts them.
    #[must_use]
    pub fn buffers(&self) -> (usize, usize) {
        self.udp.buffers
    }

    /// Where packets for `peer` go now, if straight to it.
    #[must_use]
    pub fn route(&self, peer: &NodeKey) -> Option<SocketAddr> {
        self.place(peer)?.udp().map(UdpSource::shown)
    }

    /// Where packets for `peer` go now, straight or by a circuit.
    #[must_use]
    pub fn place(&self, peer: &NodeKey) -> Option<Source> {
        self.snapshot().route(&VirtualAddr::of(peer))
    }

    /// The relay that packets for `peer` go through now.
    #[must_use]
    pub fn via(&self, peer: &NodeKey) -> Option<VirtualAddr> {
        match self.place(peer)? {
            Source::Circuit(label) => self.frames.way(label).map(|(relay, _)| relay),
            Source::Udp(_) => None,
        }
    }

    /// Sources bound now.
    #[must_use]
    pub fn sources(&self) -> usize {
        self.snapshot().len()
    }

    /// Keeps the sources of `peer` while the guard lives.
    #[must_use]
    pub fn hold(self: &Arc<Self>, peer: &NodeKey) -> Held {
        let address = VirtualAddr::of(peer);
        self.change(|routes| routes.hold(address));
        locked!(self.last.lock()).hold(address);
        Held { path: self.clone(), address }
    }

    /// Begins to prove `peer` at any of `sources`: [`Proving::proved`] waits for it.
    ///
    /// # Errors
    /// [`TooManyDials`].
    pub fn prove(self: &Arc<Self>, peer: NodeKey, sources: &[Source], nonce: Nonce) -> Result<Proving, TooManyDials> {
        let (proved, answer) = oneshot::channel();
        locked!(self.binder.lock()).dial(peer, sources, nonce)?;
        locked!(self.waiting.lock()).insert(nonce.0, proved);
        Ok(Proving { path: self.clone(), nonce, answer, sent: 0 })
    }

    /// One more place to prove the peer of the dial `nonce` at.
    pub fn prove_also(&self, nonce: Nonce, source: Source) {
        let hello = locked!(self.binder.lock()).also(nonce, source);
        hello.into_iter().for_each(|hello| self.send_to(source, &hello));
    }

    /// What was passed on for others since the start, by the sockets and by the kernel.
    #[must_use]
    pub fn passed(&self) -> Passed {
        self.frames.all_passed() + self.datapath.forwarded().into()
    }

    /// The rungs below the sockets.
    #[must_use]
    pub const fn datapath(&self) -> &Arc<Datapath> {
        &self.datapath
    }

    /// Tells the kernel of circuits, and where their legs' ends are. Runs as long as the socket.
    pub async fn reflect(self: Arc<Self>) {
        let by_sockets = self.clone();
        let keep = self.datapath.clone().keep(move || by_sockets.frames.all_passed().frames);
        let follow = async {
            loop {
                self.rerouted.notified().await;
                for label in self.frames.labels(|labels| labels.all().collect::<Vec<_>>()) {
                    self.tell_kernel(label);
                }
            }
        };
        tokio::join!(keep, follow);
    }

    /// Tells the kernel what a label means now.
    fn tell_kernel(&self, label: Label) {
        let routes = self.snapshot();
        let at = |peer| routes.route(&peer).and_then(Source::udp).map(UdpSource::shown);
        // While it is read nobody changes it: two that tell the kernel at once would both tell it the newest.
        self.frames.labels(|labels| {
            let meaning = labels.get(label).map(|means| match means {
                Use::Hop { from, to, out } => match at(from).zip(at(to)) {
                    Some((from, to)) => Meaning::Hop { from, to, out },
                    None => Meaning::End,
                },
                Use::End { .. } => Meaning::End,
            });
            self.datapath.means(label, meaning);
        });
    }

    /// A new label; `None` when there are too many.
    #[must_use]
    pub fn make_label(self: &Arc<Self>) -> Option<Made> {
        let label = self.frames.make()?;
        Some(Made { path: self.clone(), label })
    }

    /// Sends unfinished batches after others had their turns. Runs as long as the socket.
    pub async fn flusher(self: Arc<Self>) {
        loop {
            self.flush.notified().await;
            for _ in 0..FLUSH_TURNS {
                tokio::task::yield_now().await;
            }
            while locked!(self.batcher.lock()).flush(&mut self.udp.sender(&self.drops)).is_err() {
                if self.udp.io.writable().await.is_err() {
                    return;
                }
            }
        }
    }

    /// Sends once more what was sent to `peer` last: a path to it is alive again.
    pub fn replay(&self, peer: &NodeKey) {
        let address = VirtualAddr::of(peer);
        let last = locked!(self.last.lock()).of(&address).map(<[u8]>::to_vec);
        if let Some((bytes, to)) = last.zip(self.snapshot().route(&address)) {
            self.send_to(to, &bytes);
        }
    }

    /// Sends one datagram past the batch.
    fn send_to(&self, to: Source, bytes: &[u8]) {
        match self.beneath(to) {
            Some((udp, None)) => self.udp.send_datagram(udp, bytes, &self.drops),
            Some((udp, Some(label))) => {
                self.udp.send_datagram(udp, &frames::wrapped(bytes, bytes.len(), label), &self.drops);
            }
            None => self.drops.count(DropReason::NoRoute),
        }
    }

    /// The UDP address that leads to a source, and the label for a frame if it is behind a circuit.
    fn beneath(&self, source: Source) -> Option<(UdpSource, Option<Label>)> {
        match source {
            Source::Udp(udp) => Some((udp, None)),
            Source::Circuit(label) => {
                let (relay, out) = self.frames.way(label)?;
                // A circuit within a circuit could lead in a circle.
                Some((self.snapshot().route(&relay)?.udp()?, Some(out)))
            }
        }
    }

    fn snapshot(&self) -> Arc<Routes> {
        locked!(self.routes.read()).clone()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Routes) -> T) -> T {
        let mut routes = locked!(self.routes.write());
        let moves = routes.moves();
        let changed = change(Arc::make_mut(&mut routes));
        if routes.moves() != moves {
            self.rerouted.notify_one();
        }
        changed
    }

    /// Looks at one received message: returns its new address if QUIC packets are left in it.
    fn admit(&self, bytes: &mut [u8], meta: &mut RecvMeta) -> Option<SocketAddr> {
        let source = Source::from(meta.addr);
        // Kernels that coalesce report the size of the segments; an empty payload has none.
        let stride = meta.stride.max(1);
        let len = meta.len.min(bytes.len());
        if len == 0 {
            self.drops.count(DropReason::UnknownFrame);
            return None;
        }
        let is_quic = |segment: &[u8]| segment[0] & QUIC_FIXED_BIT != 0;
        if !bytes[..len].chunks(stride).all(is_quic) {
            meta.len = self.sift(source, &mut bytes[..len], stride);
        }
        if meta.len == 0 {
            return None;
        }
        let peer = self.snapshot().peer_at(&source);
        if peer.is_none() {
            self.drops.add(DropReason::UnboundSource, meta.len.div_ceil(stride));
        }
        peer.map(VirtualAddr::to_socket)
    }

    /// Takes everything that is not QUIC out of a message of mixed segments; returns the length of what is left. Only
    /// the last segment can be shorter than the others, before and after.
    fn sift(&self, source: Source, bytes: &mut [u8], stride: usize) -> usize {
        let (mut kept, mut at) = (0, 0);
        while at < bytes.len() {
            let end = (at + stride).min(bytes.len());
            match bytes[at] {
                first if first & QUIC_FIXED_BIT != 0 => {
                    bytes.copy_within(at..end, kept);
                    kept += end - at;
                }
                FIRST_BYTE => self.probe(source, &bytes[at..end]),
                circuit::FIRST_BYTE => {
                    let run = frames::run(&bytes[at..], stride);
                    self.framed(source, &mut bytes[at..at + run], stride);
                    at += run;
                    continue;
                }
                _ => self.drops.count(DropReason::UnknownFrame),
            }
            at = end;
        }
        kept
    }

    /// Frames of one label, all of `stride` bytes but the last.
    fn framed(&self, source: Source, bytes: &mut [u8], stride: usize) {
        let frames = bytes.len().div_ceil(stride);
        // Of one label all, or one alone.
        let first = &bytes[..stride.min(bytes.len())];
        let label = relay_label(first);
        let from = self.snapshot().peer_at(&source);
        match (self.frames.labels(|labels| labels.decide(first, from)), label) {
            (Verdict::Forward { to, out }, Some(label)) => self.forward(label, to, out, bytes, stride),
            (Verdict::Deliver { .. }, Some(label)) => self.unpack(Source::Circuit(label), bytes, stride),
            (Verdict::Drop(why), _) => self.drops.add(reason(why), frames),
            // Nothing without a label is passed on or delivered.
            (_, None) => self.drops.add(DropReason::CircuitMalformed, frames),
        }
    }

    fn forward(&self, label: Label, to: VirtualAddr, out: Label, bytes: &mut [u8], stride: usize) {
        let frames = bytes.len().div_ceil(stride);
        let Some(to) = self.snapshot().route(&to).and_then(Source::udp) else {
            return self.drops.add(DropReason::NoRoute, frames);
        };
        for frame in bytes.chunks_mut(stride) {
            // Its label was read, so it has a whole header.
            if let Some((header, packet)) = frame.split_first_chunk_mut::<HEADER_BYTES>() {
                *header = frames::header(out, packet);
            }
        }
        let datagrams = Datagrams { to, segment: stride, bytes };
        let sent = batch::send_split(datagrams, &mut self.udp.sender(&self.drops));
        self.drops.add(DropReason::RelayBusy, (bytes.len() - sent).div_ceil(stride));
        self.frames.count(label, sent.div_ceil(stride), sent);
    }

    /// Takes packets out of their frames: probes are answered, QUIC's are kept for it.
    fn unpack(&self, source: Source, bytes: &[u8], stride: usize) {
        let Some(inner) = stride.checked_sub(HEADER_BYTES).filter(|inner| *inner > 0) else {
            return self.drops.count(DropReason::CircuitMalformed);
        };
        let mut packets = Vec::with_capacity(bytes.len());
        for frame in bytes.chunks(stride) {
            match frame.get(HEADER_BYTES..).and_then(|packet| Some((*packet.first()?, packet))) {
                Some((first, packet)) if first & QUIC_FIXED_BIT != 0 => packets.extend_from_slice(packet),
                Some((FIRST_BYTE, packet)) => self.probe(source, packet),
                _ => self.drops.count(DropReason::UnknownFrame),
            }
        }
        if packets.is_empty() {
            return;
        }
        match self.snapshot().peer_at(&source) {
            Some(peer) => self.frames.keep(peer, inner, packets),
            None => self.drops.add(DropReason::UnboundSource, packets.len().div_ceil(inner)),
        }
    }

    fn probe(&self, source: Source, bytes: &[u8]) {
        let outcome = match locked!(self.binder.lock()).handle(source, bytes, Instant::now()) {
            Ok(outcome) => outcome,
            Err(reason) => return self.drops.count(reason),
        };
        if let Some((peer, nonce)) = outcome.proved {
            if self.change(|routes| routes.bind(source, peer, nonce)).is_err() {
                return self.drops.count(DropReason::BindingsFull);
            }
            let dial = if outcome.ours { locked!(self.waiting.lock()).remove(&nonce.0) } else { None };
            if let Some(dial) = dial {
                // The dialler may have given up just now.
                let _given_up = dial.send(());
            }
        }
        if let Some(reply) = outcome.reply {
            self.send_to(source, &reply);
        }
        if let Some((peer, _)) = outcome.proved.filter(|_| !outcome.ours) {
            // It looks for us: what it last was sent it may not have, nor we its answer. After the reply, without which it
            // takes nothing from here.
            self.replay(&peer);
        }
    }
}

impl AsyncUdpSocket for PathSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Poller { path: self, writable: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let peer = VirtualAddr::from_socket(&transmit.destination);
        let route = peer.and_then(|peer| Some((peer, self.snapshot().route(&peer)?)));
        let Some((peer, to)) = route else {
            // An error here would end the connection's driver without closing it: lost is what UDP may be.
            self.drops.count(DropReason::NoRoute);
            return Ok(());
        };
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
        let Some((to, label)) = self.beneath(to) else {
            self.drops.count(DropReason::NoRoute);
            return Ok(());
        };
        let frames = label.map(|label| frames::wrapped(transmit.contents, segment, label));
        let datagrams = match &frames {
            None => Datagrams { to, segment, bytes: transmit.contents },
            Some(frames) => Datagrams { to, segment: segment + HEADER_BYTES, bytes: frames },
        };
        let mut batcher = locked!(self.batcher.lock());
        batcher.push(datagrams, &mut self.udp.sender(&self.drops))?;
        locked!(self.last.lock()).sent(&peer, segment, transmit.contents);
        if batcher.is_waiting() {
            self.flush.notify_one();
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let unpacked = self.frames.hand_over(bufs, meta);
        if unpacked > 0 {
            return Poll::Ready(Ok(unpacked));
        }
        for _ in 0..BARREN_RECEIVES_MAX {
            ready!(self.udp.io.poll_recv_ready(cx))?;
            let received =
                self.udp.io.try_io(Interest::READABLE, || self.udp.state.recv((&self.udp.io).into(), bufs, meta));
            let received = match received {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => {
                    // Any error that quinn sees ends the endpoint.
                    self.drops.count(DropReason::ReceiveError);
                    continue;
                }
            };
            let mut kept = 0;
            for at in 0..received {
                if let Some(address) = self.admit(&mut bufs[at], &mut meta[at]) {
                    meta[at].addr = address;
                    // A destination here would make quinn ask for it as the source of every answer.
                    meta[at].dst_ip = None;
                    bufs.swap(kept, at);
                    meta.swap(kept, at);
                    kept += 1;
                }
            }
            if kept == 0 {
                kept = self.frames.hand_over(bufs, meta);
            }
            if kept > 0 {
                return Poll::Ready(Ok(kept));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        // quinn refuses to connect to IPv6, which virtual addresses are, from anything else.
        Ok(SocketAddr::from((Ipv6Addr::UNSPECIFIED, self.bound_to()?.port())))
    }

    fn max_transmit_segments(&self) -> usize {
        self.udp.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.udp.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.udp.state.may_fragment()
    }
}

impl std::fmt::Debug for PathSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PathSocket").finish_non_exhaustive()
    }
}

/// Why a frame was dropped, as a metric says it.
const fn reason(why: Dropped) -> DropReason {
    match why {
        Dropped::Malformed => DropReason::CircuitMalformed,
        Dropped::Label => DropReason::CircuitLabel,
        Dropped::Source => DropReason::CircuitSource,
    }
}

type Writable = Pin<Box<dyn Future<Output = io::Result<()>> + std::marker::Send + Sync>>;

/// Waits until the socket can send. Each has a waker of its own, because tokio's `poll_send_ready` keeps only the last.
struct Poller {
    path: Arc<PathSocket>,
    writable: Option<Writable>,
}

impl UdpPoller for Poller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let path = self.path.clone();
        let writable = self.writable.get_or_insert_with(|| Box::pin(async move { path.udp.io.writable().await }));
        let result = ready!(writable.as_mut().poll(cx));
        self.writable = None;
        Poll::Ready(result)
    }
}

impl std::fmt::Debug for Poller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Poller").finish_non_exhaustive()
    }
}

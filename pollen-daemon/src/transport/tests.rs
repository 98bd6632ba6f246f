//! Meshes on loopback: real sockets, real QUIC, one process. Owns the harness; each file below is one concern.

mod circuits;
mod goodput;
mod hostile;
mod lifecycle;
mod punch;
mod silence;
mod traffic;

use pollen_common::wire::streams::StreamKind;
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use pollen_common::identity::{NodeKey, SecretKey};
use pollen_common::mapping;
use pollen_common::node::LinkId;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Mesh, MeshConfig, MeshEvent, StreamHandler};

/// Longer than anything here takes: a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A mesh and what happened to it.
struct Peer {
    mesh: Mesh,
    key: NodeKey,
    events: mpsc::Receiver<MeshEvent>,
    /// Events taken while waiting for another.
    passed: VecDeque<MeshEvent>,
    streams: mpsc::UnboundedReceiver<(StreamKind, SendStream, RecvStream)>,
    datagrams: mpsc::UnboundedReceiver<Bytes>,
    /// Whom it holds for able to relay.
    relays: Arc<Mutex<Vec<NodeKey>>>,
    /// Where it holds any peer to be.
    announced: Arc<Mutex<Vec<SocketAddr>>>,
    /// Whether it looks for peers at loopback addresses, where these tests are.
    punches: Arc<AtomicBool>,
}

struct Recorder {
    streams: mpsc::UnboundedSender<(StreamKind, SendStream, RecvStream)>,
    datagrams: mpsc::UnboundedSender<Bytes>,
    closed: Mutex<Vec<usize>>,
    admits: bool,
    relays: Arc<Mutex<Vec<NodeKey>>>,
    announced: Arc<Mutex<Vec<SocketAddr>>>,
    /// Whether it looks for peers at loopback addresses, where these tests are.
    punches: Arc<AtomicBool>,
}

impl StreamHandler for Recorder {
    fn stream(&self, _: NodeKey, _: &Connection, kind: StreamKind, send: SendStream, recv: RecvStream) {
        let _test_over = self.streams.send((kind, send, recv));
    }
    fn datagram(&self, _: NodeKey, _: &Connection, bytes: Bytes) {
        let _test_over = self.datagrams.send(bytes);
    }
    fn closed(&self, stable_id: usize) {
        self.closed.lock().unwrap().push(stable_id);
    }
    fn admitted(&self, _: NodeKey) -> bool {
        self.admits
    }
    fn addresses(&self, _: &NodeKey) -> Vec<SocketAddr> {
        self.announced.lock().unwrap().clone()
    }
    fn may_be_asked(&self, addr: &SocketAddr) -> bool {
        self.punches.load(Ordering::Relaxed) || mapping::may_be_asked(addr)
    }
    fn relays(&self, _: &NodeKey) -> Vec<NodeKey> {
        self.relays.lock().unwrap().clone()
    }
}

fn peer(seed: u8) -> Peer {
    peer_with(seed, true, 64, |_| {})
}

fn peer_with(seed: u8, admits: bool, events_max: usize, change: impl FnOnce(&mut MeshConfig)) -> Peer {
    let secret = SecretKey::from_seed(&[seed; 32]);
    let key = secret.public();
    let (events, received) = mpsc::channel(events_max);
    let (streams, taken) = mpsc::unbounded_channel();
    let (datagrams, datagrams_taken) = mpsc::unbounded_channel();
    let relays = Arc::<Mutex<Vec<NodeKey>>>::default();
    let announced = Arc::<Mutex<Vec<SocketAddr>>>::default();
    let punches = Arc::<AtomicBool>::default();
    let handler = Recorder {
        streams,
        datagrams,
        closed: Mutex::default(),
        admits,
        relays: relays.clone(),
        announced: announced.clone(),
        punches: punches.clone(),
    };
    let mut config = MeshConfig::new(secret, 0);
    change(&mut config);
    let mesh = Mesh::start(config, events, Arc::new(handler)).unwrap();
    Peer {
        mesh,
        key,
        events: received,
        passed: VecDeque::new(),
        streams: taken,
        datagrams: datagrams_taken,
        relays,
        announced,
        punches,
    }
}

impl Peer {
    /// Its address on IPv4 loopback.
    fn addr(&self) -> SocketAddr {
        self.addr_on(Ipv4Addr::LOCALHOST.into())
    }

    fn addr_on(&self, ip: IpAddr) -> SocketAddr {
        SocketAddr::new(ip, self.mesh.local_addr().unwrap().port())
    }

    async fn next(&mut self) -> MeshEvent {
        if let Some(event) = self.passed.pop_front() {
            return event;
        }
        timeout(PATIENCE, self.events.recv()).await.expect("an event in time").expect("a mesh that lives")
    }

    async fn up(&mut self) -> LinkId {
        loop {
            if let MeshEvent::LinkUp { link, .. } = self.next().await {
                return link;
            }
        }
    }

    async fn down(&mut self, wanted: LinkId) -> String {
        loop {
            if let MeshEvent::LinkDown { link, reason } = self.next().await
                && link == wanted
            {
                return reason;
            }
        }
    }

    /// The next `len` bytes of the link's stream.
    async fn bytes(&mut self, wanted: LinkId, len: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < len {
            if let MeshEvent::LinkBytes { link, bytes } = self.next().await
                && link == wanted
            {
                all.extend(bytes);
            }
        }
        assert_eq!(all.len(), len, "no byte too many");
        all
    }

    fn dropped(&self, reason: super::DropReason) -> u64 {
        self.mesh.0.drops.of(reason)
    }

    /// Waits until `reason` was counted `times`.
    async fn sees(&self, reason: super::DropReason, times: u64) {
        let seen = async {
            while self.dropped(reason) < times {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("{} of {times} {reason:?}", self.dropped(reason)));
    }
}

/// Two peers with a link, dialled by the first.
async fn linked() -> (Peer, LinkId, Peer, LinkId) {
    link(peer(1), peer(2)).await
}

async fn link(mut a: Peer, mut b: Peer) -> (Peer, LinkId, Peer, LinkId) {
    a.mesh.dial(b.key, vec![b.addr()]);
    let (at_a, at_b) = (a.up().await, b.up().await);
    (a, at_a, b, at_b)
}

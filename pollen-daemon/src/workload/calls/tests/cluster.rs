//! A few nodes with the real transport and real calls, views made by hand, and guests that are closures.

use pollen_common::wire::streams::StreamKind;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use pollen_common::identity::{NodeKey, SecretKey};
use pollen_common::views::{Protocol, SeedVersion, VersionId, View};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{mpsc, watch};

use crate::services::Serve;
use crate::services::tests::view::ViewBuilder;
use crate::services::{Services, ServicesConfig};
use crate::transport::{Mesh, MeshConfig, StreamHandler};
use crate::workload::calls::{Calls, Host, Instance, Limits};
use crate::workload::{CallAnswer, CallFailure, CallRequest, SeedRef};
use crate::workload::{CallError, Invocation, World};

/// Longer than anything here takes; a test that reaches it has failed.
pub(super) const SOON: Duration = Duration::from_secs(30);

/// What a guest is given.
pub(super) struct Given {
    pub invocation: Invocation,
    pub world: Arc<dyn World>,
}

type Output = Result<Bytes, CallError>;
type Guest = Arc<dyn Fn(Given) -> BoxFuture<'static, Output> + Send + Sync>;

/// Hosted guests. Each has every function but `missing`.
#[derive(Clone, Default)]
pub(super) struct Guests(Arc<Mutex<BTreeMap<VersionId, (Guest, bool)>>>);

struct Running(Guest, bool);

impl Host for Guests {
    fn begin(&self, version: &VersionId) -> Option<Box<dyn Instance>> {
        let (guest, tail_calls) = self.0.lock().expect("no panic").get(version).cloned()?;
        Some(Box::new(Running(guest, tail_calls)))
    }
}

impl Instance for Running {
    fn has(&self, function: &str) -> bool {
        function != "missing"
    }

    fn functions(&self) -> &[String] {
        &[]
    }

    fn tail_calls(&self) -> bool {
        self.1
    }

    fn call(&self, invocation: Invocation, world: Arc<dyn World>) -> BoxFuture<'_, Output> {
        (self.0)(Given { invocation, world })
    }
}

pub(super) struct TestNode {
    pub key: NodeKey,
    pub calls: Calls,
    pub guests: Guests,
    pub services: Services,
    pub mesh: Mesh,
    pub view: watch::Sender<Arc<View>>,
    addr: SocketAddr,
}

struct Streams {
    calls: Calls,
    services: Services,
}

impl StreamHandler for Streams {
    fn stream(&self, peer: NodeKey, connection: &Connection, kind: StreamKind, send: SendStream, recv: RecvStream) {
        match kind {
            StreamKind::Call => self.calls.take_stream(peer, send, recv),
            _ => self.services.take_stream(peer, connection, Protocol::Tcp, send, recv),
        }
    }

    fn datagram(&self, _: NodeKey, _: &Connection, _: Bytes) {}

    fn closed(&self, _: usize) {}
}

pub(super) struct Cluster(pub Vec<TestNode>);

impl Cluster {
    pub(super) fn start(count: u8) -> Self {
        Self::start_with(count, Limits::of_engine(64, 2))
    }

    pub(super) fn start_with(count: u8, limits: Limits) -> Self {
        let cluster = Self((0..count).map(|index| TestNode::start(index, limits)).collect());
        cluster.publish(|view| view);
        cluster
    }

    pub(super) fn key(&self, index: usize) -> NodeKey {
        self.0[index].key
    }

    /// What node `index` sees: all nodes, and what `say` adds.
    pub(super) fn publish_at(&self, index: usize, say: impl FnOnce(ViewBuilder) -> ViewBuilder) {
        let members = self.0.iter().enumerate().fold(ViewBuilder::new(self.key(index)), |view, (number, node)| {
            view.node_at(node.key, Some(&format!("node-{number}")), vec![node.addr])
        });
        self.0[index].view.send_replace(say(members).build());
    }

    pub(super) fn publish(&self, say: impl Fn(ViewBuilder) -> ViewBuilder) {
        for index in 0..self.0.len() {
            self.publish_at(index, &say);
        }
    }

    /// Calls by name from node `index`.
    pub(super) async fn call(&self, index: usize, seed: &str, input: &'static [u8]) -> Result<CallAnswer, CallFailure> {
        self.0[index].call(request(seed, input)).await
    }
}

pub(super) fn request(seed: &str, input: &'static [u8]) -> CallRequest {
    CallRequest {
        seed: SeedRef::Name(seed.parse().expect("a name")),
        function: "run".into(),
        input: Bytes::from_static(input),
        timeout: SOON,
        retries: 3,
        waited: Duration::ZERO,
    }
}

impl TestNode {
    fn start(index: u8, limits: Limits) -> Self {
        let secret = SecretKey::from_seed(&[index + 1; 32]);
        let key = secret.public();
        let (view, reader) = watch::channel(ViewBuilder::new(key).build());
        let services = Services::new(reader.clone());
        let calls = Calls::new(reader, services.clone(), limits);
        let (events, mut happened) = mpsc::channel(64);
        let streams = Streams { calls: calls.clone(), services: services.clone() };
        let mesh = Mesh::start(MeshConfig::new(secret, 0), events, Arc::new(streams)).expect("loopback");
        // Nobody judges links here.
        mesh.runtime().spawn(async move { while happened.recv().await.is_some() {} });
        services.start(Arc::new(mesh.clone()), mesh.runtime().clone(), &ServicesConfig::default());
        let guests = Guests::default();
        calls.start(Arc::new(mesh.clone()), Arc::new(guests.clone()));
        let port = mesh.local_addr().expect("bound").port();
        Self { key, calls, guests, services, mesh, view, addr: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    pub(super) async fn call(&self, request: CallRequest) -> Result<CallAnswer, CallFailure> {
        tokio::time::timeout(2 * SOON, self.calls.call(request)).await.expect("every call ends by its deadline")
    }

    /// Hosts a version.
    pub(super) fn host<F>(&self, version: SeedVersion, guest: impl Fn(Given) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Output> + Send + 'static,
    {
        let guest: Guest = Arc::new(move |given| guest(given).boxed());
        self.guests.0.lock().expect("no panic").insert(version.id(), (guest, version.tail_calls));
    }

    pub(super) fn serve(&self, name: &str, port: u16) {
        let name = Some(name.parse().expect("a name"));
        self.services
            .serve(Serve {
                port,
                name,
                protocol: Protocol::Tcp,
                shared: false,
                server: crate::services::Server::Here,
                policy: None,
            })
            .expect("room");
    }

    /// Waits until `done` says so.
    pub(super) async fn until(&self, what: &str, done: impl Fn(&Calls) -> bool) {
        let wait = async {
            while !done(&self.calls) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(SOON, wait).await.is_ok(), "never came: {what}");
    }
}

/// A guest that answers with its input.
pub(super) async fn echo(given: Given) -> Output {
    Ok(given.invocation.input)
}

/// A guest that never ends.
pub(super) async fn hang(_: Given) -> Output {
    std::future::pending().await
}

/// A guest that makes the request its input says, and answers with what came of it.
pub(super) async fn relay(given: Given) -> Output {
    let uri = String::from_utf8(given.invocation.input.to_vec()).expect("an address");
    let answer = given.world.request(&given.invocation, uri, Bytes::from_static(b"asked")).await;
    Ok(answer.unwrap_or_else(|error| format!("refused: {error}").into()))
}

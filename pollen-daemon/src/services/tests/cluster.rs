//! A few nodes with the real transport and services, and views made by hand in place of the replicated state.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pollen_common::identity::{NodeKey, SecretKey};
use pollen_common::views::{Policy, Protocol, View};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use super::view::ViewBuilder;
use crate::services::idle::IdleLimits;
use crate::services::{Connect, Serve, ServiceRef};
use crate::services::{Services, ServicesConfig};
use crate::transport::{Mesh, MeshConfig};

/// Longer than anything here takes; a test that reaches it has failed.
pub(super) const SOON: Duration = Duration::from_secs(20);

pub(super) struct TestNode {
    pub key: NodeKey,
    pub services: Services,
    pub mesh: Mesh,
    pub view: watch::Sender<Arc<View>>,
    addr: SocketAddr,
}

pub(super) struct Cluster(pub Vec<TestNode>);

impl Cluster {
    pub(super) fn start(count: u8) -> Self {
        Self::start_with(count, IdleLimits::USUAL)
    }

    pub(super) fn start_with(count: u8, idle: IdleLimits) -> Self {
        let cluster = Self((0..count).map(|index| TestNode::start(index, idle)).collect());
        cluster.publish(|view| view);
        cluster
    }

    pub(super) fn key(&self, index: usize) -> NodeKey {
        self.0[index].key
    }

    /// Gives every node a view of all nodes and of what `say` adds.
    pub(super) fn publish(&self, say: impl Fn(ViewBuilder) -> ViewBuilder) {
        let members =
            |me| self.0.iter().fold(ViewBuilder::new(me), |view, node| view.node_at(node.key, None, vec![node.addr]));
        for node in &self.0 {
            node.view.send_replace(say(members(node.key)).build());
        }
    }

    /// Serves `port` of node `provider` under `name`, and opens a listener to it at node `caller`.
    pub(super) fn serve_and_connect(&self, name: &str, protocol: Protocol, port: u16) -> SocketAddr {
        let provider = self.key(0);
        self.0[0].serve(Some(name), protocol, port);
        self.publish(|view| view.service(name, protocol, &[(provider, port)]));
        self.0[1].connect(name)
    }
}

impl TestNode {
    fn start(index: u8, idle: IdleLimits) -> Self {
        let secret = SecretKey::from_seed(&[index + 1; 32]);
        let key = secret.public();
        let (view, reader) = watch::channel(ViewBuilder::new(key).build());
        let services = Services::with_idle(reader, idle);
        let (events, mut happened) = mpsc::channel(64);
        let mesh = Mesh::start(MeshConfig::new(secret, 0), events, Arc::new(services.clone())).expect("loopback");
        // Nobody judges links here.
        mesh.runtime().spawn(async move { while happened.recv().await.is_some() {} });
        services.start(Arc::new(mesh.clone()), mesh.runtime().clone(), &ServicesConfig::default());
        let port = mesh.local_addr().expect("bound").port();
        Self { key, services, mesh, view, addr: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    pub(super) fn serve(&self, name: Option<&str>, protocol: Protocol, port: u16) {
        self.serve_to(name, protocol, port, None);
    }

    pub(super) fn serve_to(&self, name: Option<&str>, protocol: Protocol, port: u16, policy: Option<Policy>) {
        let name = name.map(|name| name.parse().expect("a name"));
        let server = crate::services::Server::Here;
        self.services.serve(Serve { port, name, protocol, shared: false, server, policy }).expect("room");
    }

    /// A listener to a named service, on any free port.
    pub(super) fn connect(&self, name: &str) -> SocketAddr {
        let service = ServiceRef::Name(name.parse().expect("a name"));
        let listener = self
            .services
            .connect(&Connect { service, provider: None, bind: None, local_port: Some(0) })
            .expect("known");
        listener[0].local[0]
    }

    /// Waits until `done` says so of this node's services.
    pub(super) async fn until(&self, what: &str, done: impl Fn(&Services) -> bool) {
        let wait = async {
            while !done(&self.services) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(tokio::time::timeout(SOON, wait).await.is_ok(), "never came: {what}");
    }
}

/// A new connection to a listener is reset before it says anything; so early, perhaps, that it already shows while
/// connecting.
pub(super) async fn expect_reset_at(addr: SocketAddr) {
    match TcpStream::connect(addr).await {
        Ok(tcp) => expect_reset(tcp).await,
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

/// The next thing that a connection says is that it was reset.
pub(super) async fn expect_reset(mut tcp: TcpStream) {
    let read = tokio::time::timeout(SOON, tcp.read(&mut [0; 1])).await.expect("in time");
    assert_eq!(read.expect_err("cut").kind(), ErrorKind::ConnectionReset);
}

/// A server that echoes. Returns its port.
pub(super) async fn echo() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = tcp.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
        }
    });
    port
}

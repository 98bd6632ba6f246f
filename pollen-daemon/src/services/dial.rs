//! The caller's side: from an import to an open stream at one of its providers, failing over between them.
//! Invariant: no byte of a TCP client leaves this node before a provider has accepted, so that trying another one can
//! never repeat what the first has already acted upon. A UDP client's first payload travels along with the opening: UDP
//! may repeat what it carries, and a provider that refuses has not acted upon it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pollen_common::identity::NodeKey;
use pollen_common::views::{Protocol, View};
use pollen_common::wire::streams::service::{Header, Target};
use pollen_common::wire::streams::{Denial, decode_status, payload};
use quinn::{Connection, RecvStream, SendStream};
use tokio::time::Instant;

use super::choose::{self, Candidate};
use super::circle::{self, DialError};
use super::credit::{self, Flow};
use super::exports::Export;
use super::idle::Activity;
use super::imports::Import;
use super::pump::{self, CODE_RESET};
use super::session::{Awaited, Carrier, Session};
use super::tally::Tally;
use super::{Shared, resolve};

/// How long one provider may take, from dialling to its answer, while others are left: about what it takes to notice
/// that a machine is dead, and enough for a handshake and a lookup around the globe.
const ATTEMPT_MAX: Duration = Duration::from_secs(2);
/// The same for the last one: it may still be waiting for its local server.
const LAST_ATTEMPT_MAX: Duration = Duration::from_secs(10);
/// How long a provider that failed stands back behind the others.
const FAILED_FOR: Duration = Duration::from_secs(5);
/// Providers tried for one connection: clients give up sooner than a longer list ends.
const ATTEMPTS_MAX: usize = 4;
/// Failures and latencies remembered: one for each provider of each service in a large cluster.
const REMEMBERED_MAX: usize = 4096;

/// Connections with other nodes, dialled when they are needed.
pub trait Reach: Send + Sync + 'static {
    /// The current connection with `peer`, or a new one to any of `addrs`.
    fn connection(
        &self,
        peer: NodeKey,
        addrs: Vec<SocketAddr>,
    ) -> Pin<Box<dyn Future<Output = Result<Connection, Unreachable>> + Send + '_>>;
}

/// No connection with a peer came up; the reason as a sentence.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unreachable(pub String);

/// Why one provider did not take a connection. Nothing of the client was sent.
#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("unreachable: {0}")]
    Unreachable(#[from] Unreachable),
    #[error("no answer in time")]
    Silent,
    #[error("{0}")]
    Denied(Denial),
    #[error("the connection broke before an answer came")]
    Broken,
    #[error(transparent)]
    Circle(#[from] DialError),
}

/// Why no provider took a connection.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum NoProvider {
    #[error("nobody provides it at present")]
    None,
    #[error("every provider failed: {}", .0.join("; "))]
    AllFailed(Vec<String>),
    #[error("this node is at its limit of open streams")]
    Busy,
}

/// Who asks for a way.
#[derive(Clone, Copy)]
pub(super) struct Client<'a> {
    /// How often it was passed on so far.
    pub hops: u8,
    /// For UDP.
    pub session: Option<First<'a>>,
}

/// The beginning of a UDP session.
#[derive(Clone, Copy)]
pub(super) struct First<'a> {
    pub payload: &'a Bytes,
    pub activity: &'a Arc<Activity>,
    pub tally: &'a Arc<Tally>,
}

/// An open way to a provider.
pub(super) enum Way {
    Mesh(Carrier, Flow),
    /// The client's first payload is on its way.
    Session(Session),
    /// This node provides it itself.
    Local(Local, Export),
}

/// A socket to a server of this very node.
pub(super) enum Local {
    Tcp(tokio::net::TcpStream),
    Udp(circle::Dialled),
}

/// A way, and how it came to be chosen.
pub(super) struct Opened {
    pub way: Way,
    pub provider: NodeKey,
    pub reason: String,
    /// Those tried before, with what went wrong.
    pub failed: Vec<String>,
}

/// What earlier connections taught of providers.
#[derive(Debug, Default)]
pub(super) struct Memory {
    failures: BTreeMap<(NodeKey, Target), (Instant, String)>,
    rtts: BTreeMap<NodeKey, Duration>,
}

impl Memory {
    fn failed(&mut self, provider: NodeKey, target: &Target, why: String) {
        let now = Instant::now();
        if self.failures.len() >= REMEMBERED_MAX {
            self.failures.retain(|_, (at, _)| now.duration_since(*at) < FAILED_FOR);
        }
        if self.failures.len() < REMEMBERED_MAX {
            self.failures.insert((provider, target.clone()), (now, why));
        }
    }

    fn worked(&mut self, provider: NodeKey, target: &Target, rtt: Option<Duration>) {
        self.failures.remove(&(provider, target.clone()));
        if let Some(rtt) = rtt
            && (self.rtts.len() < REMEMBERED_MAX || self.rtts.contains_key(&provider))
        {
            self.rtts.insert(provider, rtt);
        }
    }

    fn failure(&self, provider: NodeKey, target: &Target) -> Option<String> {
        let (at, why) = self.failures.get(&(provider, target.clone()))?;
        (at.elapsed() < FAILED_FOR).then(|| why.clone())
    }
}

/// The nodes that provide what `import` asks for.
fn providers(view: &View, import: &Import) -> BTreeSet<NodeKey> {
    let pinned = |node: &NodeKey| import.provider.is_none_or(|pinned| pinned == *node);
    match &import.target {
        Target::Name(name) => view
            .services
            .get(name)
            .into_iter()
            .flat_map(|service| &service.providers)
            .filter(|p| p.protocol == import.protocol && pinned(&p.node) && view.nodes.contains_key(&p.node))
            .map(|p| p.node)
            .collect(),
        Target::Port(port) => import
            .provider
            .filter(|node| view.nodes.contains_key(node) && resolve::serves_port(view, node, *port, import.protocol))
            .into_iter()
            .collect(),
    }
}

fn candidates(shared: &Shared, view: &View, import: &Import, providers: &BTreeSet<NodeKey>) -> Vec<Candidate> {
    let memory = shared.memory();
    let candidate = |node: &NodeKey| Candidate {
        node: *node,
        local: *node == view.me,
        // One that is about to leave is passed over as if it had left, while there is another.
        online: view.nodes.get(node).is_some_and(|info| info.liveness.is_online() && !info.draining),
        rtt: memory.rtts.get(node).copied(),
        open: shared.live.asking(node, &import.target, import.protocol),
        failed: memory.failure(*node, &import.target),
    };
    providers.iter().map(candidate).collect()
}

/// Opens a stream to one of the providers, for a client.
pub(super) async fn open(shared: &Shared, import: &Import, client: Client<'_>) -> Result<Opened, NoProvider> {
    let view = shared.view.borrow().clone();
    let providers = providers(&view, import);
    // Without a lot all are compared as if it always fell the same way: worse balance, nothing else.
    let coin = getrandom::u64().unwrap_or_default();
    let mut choices = choose::order(candidates(shared, &view, import, &providers), coin);
    choices.truncate(ATTEMPTS_MAX);
    if choices.is_empty() {
        return Err(NoProvider::None);
    }
    let last = choices.len() - 1;
    let mut failed = Vec::new();
    for (index, choice) in choices.into_iter().enumerate() {
        let bound = if index == last { LAST_ATTEMPT_MAX } else { ATTEMPT_MAX };
        let provider = choice.node;
        let attempt = async {
            if provider == view.me {
                attempt_local(shared, import, client.hops).await
            } else {
                attempt(shared, &view, import, provider, client).await
            }
        };
        let result = tokio::time::timeout(bound, attempt).await.unwrap_or(Err(AttemptError::Silent));
        match result {
            Ok(way) => {
                let rtt = match &way {
                    Way::Mesh(carrier, _) => Some(carrier.connection.rtt()),
                    Way::Session(session) => Some(session.carrier.connection.rtt()),
                    Way::Local(..) => None,
                };
                shared.memory().worked(provider, &import.target, rtt);
                return Ok(Opened { way, provider, reason: choice.reason.to_string(), failed });
            }
            Err(error) => {
                let who = view
                    .nodes
                    .get(&provider)
                    .and_then(|n| n.name.as_ref())
                    .map_or_else(|| provider.short(), ToString::to_string);
                tracing::debug!(%provider, service = %import.target, %error, "provider failed");
                shared.memory().failed(provider, &import.target, error.to_string());
                failed.push(format!("{who}: {error}"));
            }
        }
    }
    Err(NoProvider::AllFailed(failed))
}

async fn attempt_local(shared: &Shared, import: &Import, hops: u8) -> Result<Way, AttemptError> {
    let exported = super::export_of(shared, &import.target, import.protocol);
    let export = exported.ok_or(AttemptError::Denied(Denial::DeniedOrAbsent))?.export;
    let local = match import.protocol {
        Protocol::Tcp => Local::Tcp(circle::dial_tcp(shared, &export, hops).await?),
        Protocol::Udp => Local::Udp(circle::dial_udp(shared, &export, hops).await?),
    };
    Ok(Way::Local(local, export))
}

/// Ends an attempt that was given up, so that the provider does not take it for an orderly, empty connection.
struct Offer(Option<(SendStream, RecvStream)>);

impl Drop for Offer {
    fn drop(&mut self) {
        if let Some((send, recv)) = &mut self.0 {
            pump::reset_stream(send, recv, CODE_RESET);
        }
    }
}

async fn attempt(
    shared: &Shared,
    view: &View,
    import: &Import,
    provider: NodeKey,
    client: Client<'_>,
) -> Result<Way, AttemptError> {
    let addrs = view.nodes.get(&provider).map(|node| node.addrs.clone()).unwrap_or_default();
    let mesh = shared.mesh.get().ok_or_else(|| Unreachable("the mesh is not up yet".into()))?;
    let connection = mesh.reach.connection(provider, addrs.clone()).await?;
    match offer(shared, &connection, import, client).await {
        // It was dead without our knowing, as after the provider's restart, or lost against another that both ends
        // dialled at once. Nothing of the client was sent: a new connection may take it.
        Err(AttemptError::Broken) if connection.close_reason().is_some() => {
            let connection = mesh.reach.connection(provider, addrs).await?;
            offer(shared, &connection, import, client).await
        }
        result => result,
    }
}

async fn offer(
    shared: &Shared,
    connection: &Connection,
    import: &Import,
    client: Client<'_>,
) -> Result<Way, AttemptError> {
    let streams = connection.open_bi().await.map_err(|_| AttemptError::Broken)?;
    let mut offer = Offer(Some(streams));
    let (send, recv) = offer.0.as_mut().expect("put there above");
    let header = Header { target: import.target.clone(), protocol: import.protocol, hops: client.hops };
    let mut opening = header.opening();
    let awaited = client.session.map(|first| {
        // In one piece with the header: what is behind it arrives with it.
        opening.extend(payload::framed(first.payload).unwrap_or_default());
        Awaited::new(&shared.inboxes, connection, send, first.tally)
    });
    let flow = match awaited {
        Some(_) => None,
        None => Some(shared.credit.of(connection).flow(credit::number(send), &import.target.to_string())),
    };
    // A refusal stops this direction, and then says why on the other: read on whatever becomes of the writing.
    let written = send.write_all(&opening).await;
    match read_answer(recv).await? {
        Err(denial) => Err(AttemptError::Denied(denial)),
        Ok(()) if written.is_err() => Err(AttemptError::Broken),
        Ok(()) => {
            let (send, recv) = offer.0.take().expect("taken once");
            let carrier = Carrier { connection: connection.clone(), send, recv };
            Ok(match (awaited, flow) {
                (Some(awaited), _) => Way::Session(Session { carrier, awaited }),
                (None, Some(flow)) => {
                    flow.inflow.start();
                    Way::Mesh(carrier, flow)
                }
                (None, None) => unreachable!("either is there"),
            })
        }
    }
}

async fn read_answer(recv: &mut RecvStream) -> Result<Result<(), Denial>, AttemptError> {
    let mut byte = [0];
    recv.read_exact(&mut byte).await.map_err(|_| AttemptError::Broken)?;
    if decode_status(byte[0]).ok_or(AttemptError::Broken)? {
        return Ok(Ok(()));
    }
    recv.read_exact(&mut byte).await.map_err(|_| AttemptError::Broken)?;
    Ok(Err(Denial::from_code(byte[0])))
}

//! How connections come about: dialled, or accepted. Owns the dials under way; knows links only to hand them over.
//! Invariant: one dial of a peer at a time, and no connection whose key is not the one bound to its address.

use pollen_common::wire::streams::StreamKind;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pollen_common::identity::NodeKey;
use pollen_common::path_probe::Nonce;
use quinn::{Connection, Incoming, VarInt};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

use super::circuits;
use super::drops::DropReason;
use super::links::{Admission, Dialer};
use super::path::address::{Source, VirtualAddr};
use super::path::bind::TooManyDials;
use super::tls::{SERVER_NAME, peer_key};
use super::{Inner, code, endpoint, link, open_stream, punch, random};

/// How long a peer may take to prove itself at one of its addresses.
const PROVE_BOUND: Duration = Duration::from_secs(5);
/// How long a handshake may take, each way.
const HANDSHAKE_BOUND: Duration = Duration::from_secs(5);
/// How long a connection that seems to be the second of a pair waits for a reset of the first: some round trips of that.
const RESET_ROUND_TRIPS: u32 = 3;
const RESET_WAIT_MIN: Duration = Duration::from_millis(100);
const RESET_WAIT_MAX: Duration = Duration::from_secs(2);
/// Handshakes with strangers at once: each costs a signature and some 10 KiB.
const ACCEPTS_MAX: usize = 256;

/// Why there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DialError {
    #[error("no address of it is known")]
    NoAddress,
    #[error("it answers nothing over the connection that there is")]
    Silent,
    #[error("it did not answer at {0}")]
    NoAnswer(String),
    #[error("its QUIC handshake failed: {0}")]
    Handshake(String),
    #[error("{0}")]
    TooManyDials(#[from] TooManyDials),
    #[error("this node has too many connections")]
    TooManyConnections,
    #[error("the key dialled is this node's own")]
    Ourselves,
    #[error("this node cannot dial: {0}")]
    Local(String),
}

type Outcome = Option<Result<Connection, DialError>>;

/// The dials under way, so that whoever wants the same peer waits for the same one.
#[derive(Default)]
pub struct Dials(Mutex<BTreeMap<NodeKey, watch::Receiver<Outcome>>>);

impl Dials {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeKey, watch::Receiver<Outcome>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connection with `peer`: the current one, or a new one to any of `addrs`.
pub async fn connect(inner: &Arc<Inner>, peer: NodeKey, addrs: Vec<SocketAddr>) -> Result<Connection, DialError> {
    if peer == inner.key {
        return Err(DialError::Ourselves);
    }
    if let Some(link) = inner.links.current(&peer) {
        // A silent peer is being looked for already; a connection that is gone meanwhile is dialled anew.
        if timeout(PROVE_BOUND, link.answering()).await.is_err() {
            return Err(DialError::Silent);
        }
        if link.connection.close_reason().is_none() {
            return Ok(link.connection.clone());
        }
    }
    if addrs.is_empty() && inner.handler.relays(&peer).is_empty() {
        return Err(DialError::NoAddress);
    }
    let mut outcome = {
        let mut dials = inner.dials.lock();
        match dials.get(&peer) {
            Some(dial) => dial.clone(),
            None => {
                let (tell, outcome) = watch::channel(None);
                dials.insert(peer, outcome.clone());
                // A task of its own: whoever asked may give up while others still wait.
                inner.runtime.spawn(run(inner.clone(), peer, addrs, tell));
                outcome
            }
        }
    };
    match outcome.wait_for(Option::is_some).await {
        Ok(result) => result.clone().unwrap_or(Err(DialError::Local("no outcome".into()))),
        Err(_) => Err(DialError::Local("shutting down".into())),
    }
}

async fn run(inner: Arc<Inner>, peer: NodeKey, addrs: Vec<SocketAddr>, tell: watch::Sender<Outcome>) {
    let result = dial(&inner, peer, &addrs).await;
    inner.dials.lock().remove(&peer);
    tell.send_replace(Some(result));
}

async fn dial(inner: &Arc<Inner>, peer: NodeKey, addrs: &[SocketAddr]) -> Result<Connection, DialError> {
    let (begun, local) = (Instant::now(), |error: std::io::Error| DialError::Local(error.to_string()));
    let sources: Vec<Source> = addrs.iter().map(|addr| Source::from(*addr)).collect();
    let nonce = Nonce(random().map_err(local)?);
    let mut proving = inner.path.prove(peer, &sources, nonce)?;
    let proved = tokio::select! {
        proved = timeout(PROVE_BOUND, proving.proved()) => proved.is_ok(),
        never = circuits::help(inner, peer, nonce) => match never {},
    };
    if !proved {
        let addrs: Vec<String> = addrs.iter().map(ToString::to_string).collect();
        return Err(DialError::NoAnswer(addrs.join(", ")));
    }
    // The peer's own dial may have come first: a second connection would only end what is open on that one.
    if let Some(link) = inner.links.current(&peer).filter(|link| link.since > begun && !link.is_silent()) {
        return Ok(link.connection.clone());
    }
    let client = endpoint::client(&inner.tls, peer, inner.idle_timeout).map_err(local)?;
    let address = VirtualAddr::of(&peer).to_socket();
    let connecting = inner.endpoint.connect_with(client, address, SERVER_NAME);
    let connecting = connecting.map_err(|error| DialError::Local(error.to_string()))?;
    let connection = tokio::select! {
        result = timeout(HANDSHAKE_BOUND, connecting) => match result {
            Ok(result) => result.map_err(|error| DialError::Handshake(error.to_string()))?,
            Err(_) => return Err(DialError::Handshake("timed out".into())),
        },
        never = proving.go_on() => match never {},
    };
    let stream = open_stream(&connection, StreamKind::Link);
    let stream = timeout(HANDSHAKE_BOUND, stream).await.map_err(|_| DialError::Handshake("timed out".into()))?;
    let stream = stream.map_err(|error| DialError::Handshake(error.to_string()))?;
    match inner.links.admit(peer, connection.clone(), Dialer::Us, Instant::now()) {
        Admission::Current { link, orders, replaced } => {
            inner.runtime.spawn(punch::run(inner.clone(), link.clone(), sources));
            inner.runtime.spawn(link::run(inner.clone(), link, orders, replaced, Some(stream)));
            Ok(connection)
        }
        Admission::Duplicate(existing) => {
            connection.close(VarInt::from_u32(code::DUPLICATE), b"another connection stays");
            Ok(existing.connection.clone())
        }
        Admission::Full => Err(DialError::TooManyConnections),
    }
}

/// Accepts connections as long as the endpoint lives, or refuses them all.
pub async fn accept(inner: Arc<Inner>, accepts: bool) {
    let room = Arc::new(Semaphore::new(ACCEPTS_MAX));
    while let Some(incoming) = inner.endpoint.accept().await {
        if !accepts {
            incoming.refuse();
            continue;
        }
        let Ok(permit) = room.clone().try_acquire_owned() else {
            inner.drops.count(DropReason::ConnectionsFull);
            incoming.ignore();
            continue;
        };
        let inner = inner.clone();
        tokio::spawn(async move {
            let accepted = accept_one(&inner, incoming).await;
            drop(permit);
            match accepted {
                Ok(never) => match never {},
                Err(Some(reason)) => inner.drops.count(reason),
                Err(None) => {}
            }
        });
    }
}

/// Runs one handshake and starts its link; ends with what was refused, if anything was.
async fn accept_one(inner: &Arc<Inner>, incoming: Incoming) -> Result<Infallible, Option<DropReason>> {
    let address = incoming.remote_address();
    let connecting = incoming.accept().map_err(|_| Some(DropReason::Handshake))?;
    let connection = timeout(HANDSHAKE_BOUND, connecting).await.map_err(|_| Some(DropReason::Handshake))?;
    let connection = connection.map_err(|_| Some(DropReason::Handshake))?;
    let close = |code, reason: &str| connection.close(VarInt::from_u32(code), reason.as_bytes());
    let peer = peer_key(&connection).filter(|key| VirtualAddr::of(key).to_socket() == address);
    let Some(peer) = peer else {
        close(code::WRONG_KEY, "not the key that was bound here");
        return Err(Some(DropReason::Handshake));
    };
    let dialer = if inner.handler.admitted(peer) { Dialer::Member } else { Dialer::Stranger };
    let mut admission = inner.links.admit(peer, connection.clone(), dialer, Instant::now());
    if let Admission::Duplicate(existing) = &admission {
        // A peer that was restarted has been sent what we sent last, and says that it knows nothing of it.
        let wait = (existing.connection.rtt() * RESET_ROUND_TRIPS).clamp(RESET_WAIT_MIN, RESET_WAIT_MAX);
        if timeout(wait, existing.connection.closed()).await.is_ok() {
            admission = inner.links.admit(peer, connection.clone(), dialer, Instant::now());
        }
    }
    match admission {
        Admission::Current { link, orders, replaced } => {
            inner.runtime.spawn(punch::run(inner.clone(), link.clone(), Vec::new()));
            inner.runtime.spawn(link::run(inner.clone(), link, orders, replaced, None));
            Err(None)
        }
        Admission::Duplicate(_) => {
            close(code::DUPLICATE, "another connection stays");
            Err(None)
        }
        Admission::Full => {
            close(code::CLOSED, "this node has too many connections");
            Err(Some(DropReason::ConnectionsFull))
        }
    }
}

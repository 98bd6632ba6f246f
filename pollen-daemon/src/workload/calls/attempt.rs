//! One try of a call at another node. Owns what may go wrong with it and what is certain then.
//! Invariant: whatever ends a try, its outcome says whether the whole request had been handed to the transport: only
//! until then is it certain that nothing ran.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pollen_common::identity::NodeKey;
use pollen_common::views::View;
use pollen_common::wire::streams::answer::{PULSE, REMARK_BYTES_MAX, Remark, Status};
use pollen_common::wire::streams::call::Header;
use quinn::{Connection, RecvStream, SendStream};
use tokio::time::{Instant, sleep_until, timeout};

use super::failure::Failure;
use super::peers::{PULSE_EVERY, Peer};
use super::run::Done;
use super::target::Resolved;
use super::wire::{self, Broken, Incoming};
use super::{Ask, Shared, name_of};
use crate::services::Reach;
use crate::workload::BODY_BYTES_MAX;

/// How long a connection and a stream may take to come up: about what it takes to notice that a machine is dead, and
/// enough for a handshake around the globe.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// How a try ended.
pub(super) enum Outcome {
    Done(Done),
    /// It must not be tried elsewhere, or that would not help.
    Final(Failure),
    /// It may be tried elsewhere.
    NotTaken(NotTaken),
}

/// Why a host did not take a call, or, if it may be run twice, did not finish it.
pub(super) struct NotTaken {
    pub host: NodeKey,
    pub why: String,
    /// What the host answered, if it did.
    pub status: Option<Status>,
    /// It may have run.
    pub ran: bool,
}

/// Why a host gave no whole answer.
#[derive(Debug, thiserror::Error)]
enum ExchangeError {
    #[error("unreachable: {0}")]
    Unreachable(String),
    #[error("{0}")]
    Broken(#[from] Broken),
    #[error("its answer is not what the format says")]
    Malformed,
}

/// A try at `host`.
pub(super) async fn remote(shared: &Shared, view: &View, found: &Resolved, ask: &Ask, host: NodeKey) -> Outcome {
    let peer = shared.peers.of(host);
    let _owed = peer.owes(Instant::now());
    let sent = AtomicBool::new(false);
    let lost = |why: String| {
        let ran = sent.load(Ordering::Relaxed);
        if ran && !found.idempotent {
            return Outcome::Final(Failure::lost(host, &name_of(view, &host), &why));
        }
        Outcome::NotTaken(NotTaken { host, why, status: None, ran })
    };
    let mut exchange = pin!(exchange(shared, view, found, ask, host, &peer, &sent));
    let mut look = pin!(tokio::time::sleep(PULSE_EVERY));
    let was_online = is_online(view, &host);
    loop {
        tokio::select! {
            result = &mut exchange => return match result {
                Ok((status, remark, output)) => {
                    judge(&peer, found, host, status, remark, output)
                }
                Err(error) => {
                    peer.failed(error.to_string(), Instant::now());
                    lost(error.to_string())
                }
            },
            () = sleep_until(ask.deadline) => return Outcome::Final(Failure::deadline(sent.load(Ordering::Relaxed))),
            () = &mut look => {
                if was_online && !is_online(&shared.view(), &host) {
                    return lost("the mesh holds it for offline".into());
                }
                look.as_mut().reset(Instant::now() + PULSE_EVERY);
            }
        }
    }
}

fn is_online(view: &View, node: &NodeKey) -> bool {
    view.nodes.get(node).is_some_and(|info| info.liveness.is_online())
}

/// What an answer means.
fn judge(peer: &Peer, found: &Resolved, host: NodeKey, status: Status, remark: Remark, output: Bytes) -> Outcome {
    let may_elsewhere = match status {
        Status::Done => {
            peer.worked();
            return Outcome::Done(Done { output, by: host, version: remark.served.unwrap_or(found.id), retries: 0 });
        }
        Status::Busy => !remark.ran,
        Status::NotHere
        | Status::Draining
        | Status::Denied
        | Status::Malformed
        | Status::Version
        | Status::Other(_) => !remark.ran,
        Status::Lost => found.idempotent,
        Status::Cycle
        | Status::Depth
        | Status::InputTooLarge
        | Status::NoFunction
        | Status::Failed
        | Status::Deadline => false,
    };
    let ran = remark.ran;
    let failure = Failure::answered(status, remark, host);
    if !may_elsewhere {
        return Outcome::Final(failure);
    }
    match status {
        Status::Busy => peer.busy(failure.message.clone(), Instant::now()),
        // About this seed alone, and the view will say so soon.
        Status::NotHere | Status::Lost => {}
        _ => peer.failed(failure.message.clone(), Instant::now()),
    }
    Outcome::NotTaken(NotTaken { host, why: failure.message, status: Some(status), ran })
}

async fn exchange(
    shared: &Shared,
    view: &View,
    found: &Resolved,
    ask: &Ask,
    host: NodeKey,
    peer: &Arc<Peer>,
    sent: &AtomicBool,
) -> Result<(Status, Remark, Bytes), ExchangeError> {
    let sides = shared.sides.get().ok_or_else(|| ExchangeError::Unreachable("the mesh is not up yet".into()))?;
    let addrs = view.nodes.get(&host).map(|node| node.addrs.clone()).unwrap_or_default();
    let opened = timeout(CONNECT_MAX, open(&*sides.reach, host, addrs)).await;
    let opened = opened.map_err(|_| ExchangeError::Unreachable("no connection came up in time".into()))?;
    let (connection, mut send, recv) = opened?;
    let remaining = ask.deadline.saturating_duration_since(Instant::now());
    let header = Header {
        seed: found.name.clone(),
        version: found.id,
        module: found.module,
        function: ask.function.clone(),
        remaining_ms: u32::try_from(remaining.as_millis()).unwrap_or(u32::MAX),
        path: ask.caller.path.clone(),
        hops: ask.hops,
        origin: (ask.caller.peer != view.me).then_some(ask.caller.peer),
    };
    let opening = header.opening(u32::try_from(ask.input.len()).expect("bounded when the call began"));
    let mut answer = Incoming::new(recv, Some(Arc::clone(peer)));
    // A host that refuses says so without hearing the input, and that ends the writing: read on whatever becomes of it.
    let written = wire::send(&mut send, opening, ask.input.clone()).await;
    sent.store(written.is_ok(), Ordering::Relaxed);
    let status = loop {
        match answer.byte().await? {
            PULSE => {}
            byte => break Status::from_code(byte).ok_or(ExchangeError::Malformed)?,
        }
    };
    let remark = answer.short(REMARK_BYTES_MAX).await?.ok_or(ExchangeError::Malformed)?;
    let remark = Remark::decode(&remark).map_err(|_| ExchangeError::Malformed)?;
    let length = answer.length().await?;
    if length > BODY_BYTES_MAX {
        return Err(ExchangeError::Malformed);
    }
    let room = shared.room.wait(length).await;
    let output = room.by(answer.take(length).await?);
    answer.end().await?;
    peer.answered(remark.load, || connection.rtt(), Instant::now());
    Ok((status, remark, output))
}

/// A stream to `host`, over the connection there is or a new one.
async fn open(
    reach: &dyn Reach,
    host: NodeKey,
    addrs: Vec<SocketAddr>,
) -> Result<(Connection, SendStream, RecvStream), ExchangeError> {
    let unreachable = |error: &dyn std::fmt::Display| ExchangeError::Unreachable(error.to_string());
    let connection = reach.connection(host, addrs.clone()).await.map_err(|error| unreachable(&error))?;
    match connection.open_bi().await {
        Ok((send, recv)) => Ok((connection, send, recv)),
        // It was dead without our knowing, as after the host's restart. Nothing was sent: a new one may take it.
        Err(_) => {
            let connection = reach.connection(host, addrs).await.map_err(|error| unreachable(&error))?;
            let (send, recv) = connection.open_bi().await.map_err(|error| unreachable(&error))?;
            Ok((connection, send, recv))
        }
    }
}

//! Looking for a peer that has fallen silent, while its connection waits. Owns the pace; who is silent is the core's to
//! say, and whether a path leads anywhere the binder's to prove.
//! Invariant: a peer that is found goes on within a round trip, and one that was restarted meanwhile is told apart.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pollen_common::path_probe::Nonce;
use tokio::time::{sleep, timeout};

use super::circuits;
use super::link::Link;
use super::path::address::Source;
use super::{Inner, code, random};

/// How long one round of questions lasts: its source's address may have changed since, and other dials need the place.
const ROUND: Duration = Duration::from_secs(2);
/// Between rounds, and before the next when too many dials are under way.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a peer that has proved itself may take to be heard over the connection: three probes of the core, on a path
/// as slow as one by satellite. What was sent last is sent again before each part of it, as any of them may be lost.
const HEARD_BOUND: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(1), Duration::from_millis(2500)];
/// Proofs in a row that bring nothing after which the peer no longer knows the connection. One may be lost.
const VAIN_PROOFS_MAX: u32 = 2;

/// Proves the link's peer again and again, at `addrs` and where it was last, until the task is ended.
pub async fn run(inner: Arc<Inner>, link: Arc<Link>, addrs: Vec<SocketAddr>) {
    let mut vain = 0;
    while link.connection.close_reason().is_none() {
        if prove(&inner, &link, &addrs).await {
            for part in HEARD_BOUND {
                inner.path.replay(&link.peer);
                sleep(part).await;
            }
            vain += 1;
            if vain == VAIN_PROOFS_MAX {
                return link
                    .abort(code::CLOSED, "the peer answers, but knows nothing of this connection: it was restarted");
            }
        }
        sleep(PAUSE).await;
    }
}

/// Whether the peer proved itself anywhere within a round.
async fn prove(inner: &Arc<Inner>, link: &Link, addrs: &[SocketAddr]) -> bool {
    let Ok(nonce) = random() else { return false };
    let nonce = Nonce(nonce);
    let last = inner.path.place(&link.peer);
    let places: Vec<Source> = last.into_iter().chain(addrs.iter().map(|addr| Source::from(*addr))).collect();
    let Ok(mut proving) = inner.path.prove(link.peer, &places, nonce) else { return false };
    tokio::select! {
        proved = timeout(ROUND, proving.proved()) => proved.is_ok(),
        never = circuits::help(inner, link.peer, nonce) => match never {},
    }
}

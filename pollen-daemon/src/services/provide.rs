//! The provider's side: what becomes of a stream that a peer opened. Owns the order of the checks.
//! Invariant: nothing local is touched before the caller is known to stand, and a refused caller learns only what
//! `docs/protocol/services.md` lets it learn.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pollen_common::identity::NodeKey;
use pollen_common::views::Protocol;
use pollen_common::wire::streams::service::{HEADER_BYTES_MAX, Header};
use pollen_common::wire::streams::{Denial, encode_answer};
use quinn::{Connection, RecvStream, SendStream};

use super::circle::{self, DialError};
use super::credit;
use super::exports::Exported;
use super::live::{Owner, Slot};
use super::pump::{self, CODE_PROTOCOL, CODE_REFUSED};
use super::session::{self, Awaited, Carrier, Inlet, Outlet, Session};
use super::tally::{Dropped, Refused};
use super::{Shared, export_of};
use crate::transport;

/// How long a caller may take to send its header: an honest one sends it with the stream's first packet.
const HEADER_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long a refusal may take to be fetched.
const REFUSAL_WAIT_MAX: Duration = Duration::from_secs(5);

/// A stream that a peer opened, behind its kind byte.
pub(super) struct Incoming {
    pub peer: NodeKey,
    pub connection: Connection,
    pub protocol: Protocol,
    pub send: SendStream,
    pub recv: RecvStream,
}

/// Serves the stream to its end.
pub(super) async fn serve(shared: Arc<Shared>, mut incoming: Incoming) {
    match admit(&shared, &mut incoming).await {
        Ok((exported, slot, hops)) => {
            let (peer, label) = (incoming.peer, exported.export.label());
            let served = match incoming.protocol {
                Protocol::Tcp => serve_tcp(&shared, incoming, exported, slot, hops).await,
                Protocol::Udp => serve_udp(&shared, incoming, exported, slot, hops).await,
            };
            if let Err(broken) = served {
                tracing::debug!(%peer, service = label, %broken, "service stream broke");
            }
        }
        Err(refused) => {
            tracing::debug!(peer = %incoming.peer, reason = refused.label(), "service stream refused");
            refuse(&shared, &mut incoming.send, &mut incoming.recv, refused).await;
        }
    }
}

async fn admit(shared: &Arc<Shared>, incoming: &mut Incoming) -> Result<(Exported, Slot, u8), Refused> {
    let header =
        tokio::time::timeout(HEADER_WAIT_MAX, read_header(&mut incoming.recv)).await.map_err(|_| Refused::Slow)??;
    if header.protocol != incoming.protocol {
        return Err(Refused::WrongKind);
    }
    if shared.draining.load(Ordering::Relaxed) {
        return Err(Refused::Denial(Denial::Draining));
    }
    if !shared.standing.soon(&incoming.peer).await {
        return Err(Refused::Stranger);
    }
    let exported = export_of(shared, &header.target, header.protocol).ok_or(Refused::Absent)?;
    // Before a place is taken: who is refused must not learn that there was none.
    shared.may_reach(&incoming.peer, &exported.export)?;
    let owner =
        Owner { peer: incoming.peer, protocol: header.protocol, asked: None, export: Some(exported.export.clone()) };
    let activity = (header.protocol == Protocol::Udp).then(Arc::default);
    let slot = shared.live.open(owner, activity).ok_or(Refused::Denial(Denial::Busy))?;
    // Whoever withdrew either in between did not see the slot yet, and so could not cut it.
    let now = export_of(shared, &header.target, header.protocol).filter(|now| now.export.is_same(&exported.export));
    shared.may_reach(&incoming.peer, &now.ok_or(Refused::Absent)?.export)?;
    Ok((exported, slot, header.hops))
}

async fn read_header(recv: &mut RecvStream) -> Result<Header, Refused> {
    let header = transport::read_opening(recv, HEADER_BYTES_MAX).await.and_then(|bytes| Header::decode(&bytes));
    header.map_err(|error| Refused::Denial(error.into()))
}

async fn serve_tcp(
    shared: &Shared,
    incoming: Incoming,
    exported: Exported,
    mut slot: Slot,
    hops: u8,
) -> Result<(), pump::Broken> {
    let Incoming { connection, mut send, mut recv, .. } = incoming;
    let tcp = match circle::dial_tcp(shared, &exported.export, hops).await {
        Ok(tcp) => tcp,
        Err(error) => return undialled(shared, &mut send, &mut recv, error).await,
    };
    let flow = shared.credit.of(&connection).flow(credit::number(&send), &exported.export.label());
    flow.inflow.start();
    if send.write_all(&encode_answer(Ok(()))).await.is_err() {
        pump::reset_stream(&mut send, &mut recv, pump::CODE_RESET);
        pump::reset_socket(tcp);
        return Err(pump::Broken::Remote);
    }
    exported.tally.count_opened();
    shared.count_opened(Protocol::Tcp);
    pump::tunnel(tcp, send, recv, flow, &exported.tally.moved, slot.cut()).await
}

async fn serve_udp(
    shared: &Shared,
    incoming: Incoming,
    exported: Exported,
    mut slot: Slot,
    hops: u8,
) -> Result<(), pump::Broken> {
    let Incoming { connection, mut send, mut recv, .. } = incoming;
    let dialled = match circle::dial_udp(shared, &exported.export, hops).await {
        Ok(dialled) => dialled,
        Err(error) => return undialled(shared, &mut send, &mut recv, error).await,
    };
    let awaited = Awaited::new(&shared.inboxes, &connection, &send, &exported.tally);
    if send.write_all(&encode_answer(Ok(()))).await.is_err() {
        pump::reset_stream(&mut send, &mut recv, pump::CODE_RESET);
        return Err(pump::Broken::Remote);
    }
    exported.tally.count_opened();
    shared.count_opened(Protocol::Udp);
    let session = Session { carrier: Carrier { connection, send, recv }, awaited };
    let (mut inlet, outlet) = (Inlet::Socket(Arc::clone(&dialled.socket)), Outlet::Server(Arc::clone(&dialled.socket)));
    let (cut, activity) = (slot.cut(), slot.activity());
    let ended = session.run(&mut inlet, &outlet, (&activity, shared.idle.of_provider()), cut).await;
    let lost = session::lost_by(&*dialled.socket);
    if lost > 0 {
        shared.inboxes.dropped(&exported.tally, Dropped::SocketFull, lost);
    }
    ended
}

/// No local server took it.
async fn undialled(
    shared: &Shared,
    send: &mut SendStream,
    recv: &mut RecvStream,
    error: DialError,
) -> Result<(), pump::Broken> {
    match error {
        DialError::Circle => {
            refuse(shared, send, recv, Refused::Circle).await;
            Ok(())
        }
        DialError::Local(error) => {
            refuse(shared, send, recv, Refused::Denial(Denial::Unavailable)).await;
            Err(error.into())
        }
    }
}

/// Says why, and ends both directions once that has been fetched.
async fn refuse(shared: &Shared, send: &mut SendStream, recv: &mut RecvStream, refused: Refused) {
    shared.refusals.count(refused);
    let code = match refused.denial() {
        Denial::Malformed | Denial::Version => CODE_PROTOCOL,
        _ => CODE_REFUSED,
    };
    // The direction may have ended already.
    let _ = recv.stop(code);
    let answer = async {
        send.write_all(&encode_answer(Err(refused.denial()))).await.ok()?;
        send.finish().ok()?;
        send.stopped().await.ok()
    };
    if !matches!(tokio::time::timeout(REFUSAL_WAIT_MAX, answer).await, Ok(Some(_))) {
        let _ = send.reset(code);
    }
}

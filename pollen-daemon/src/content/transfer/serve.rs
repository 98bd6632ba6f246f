//! The holder's side of a transfer. Owns the order of its checks. Invariant: nothing is read from the disk for whoever
//! is no member, or of what no seed names.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pollen_common::identity::{Digest, NodeKey};
use pollen_common::views::View;
use pollen_common::wire::streams::content::{REQUEST_BYTES_MAX, Request, encode_acceptance};
use pollen_common::wire::streams::{Denial, encode_answer};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::time::timeout;

use crate::content::disk::{ReadError, read_group};
use crate::content::{Shared, blocking, named};
use crate::transport;

/// Transfers served at once: each costs a buffer and a disk's attention.
const SERVED_AT_ONCE_MAX: usize = 16;
/// Of those, for one peer: an honest one fetches less, and no single one shall keep the others out.
const SERVED_TO_ONE_MAX: usize = 4;
/// How long a request may take: an honest one comes with the stream's first packet.
const REQUEST_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long a peer may read nothing.
const STALL_MAX: Duration = Duration::from_secs(10);
/// How long one transfer may take: 64 MiB at 1 Mbit/s.
const TRANSFER_MAX: Duration = Duration::from_secs(600);
/// The code of resets and stops after a refusal.
const CODE_REFUSED: VarInt = VarInt::from_u32(3);
/// The code of a reset in the middle: the rest is not to be had here.
const CODE_BROKEN: VarInt = VarInt::from_u32(1);

/// Who is being served.
#[derive(Default)]
pub(in crate::content) struct Served(Mutex<BTreeMap<NodeKey, usize>>);

/// One of the places for those being served; free again when dropped.
struct Place<'a>(&'a Served, NodeKey);

impl Served {
    fn take(&self, peer: NodeKey) -> Option<Place<'_>> {
        let mut served = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_peer = served.get(&peer).copied().unwrap_or(0);
        if of_peer >= SERVED_TO_ONE_MAX || served.values().sum::<usize>() >= SERVED_AT_ONCE_MAX {
            return None;
        }
        served.insert(peer, of_peer + 1);
        Some(Place(self, peer))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut served = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = served.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                served.remove(&self.1);
            }
        }
    }
}

/// Serves one stream to its end.
pub(in crate::content) async fn serve(shared: Arc<Shared>, peer: NodeKey, mut send: SendStream, mut recv: RecvStream) {
    let answered = timeout(TRANSFER_MAX, answer(&shared, peer, &mut send, &mut recv)).await;
    match answered {
        Ok(Ok(bytes)) => {
            shared.tally.served(bytes);
            tracing::debug!(%peer, bytes, "content served");
        }
        Ok(Err(Ended::Refused(denial))) => {
            shared.tally.refused(denial);
            tracing::debug!(%peer, %denial, "content refused");
            refuse(&mut send, &mut recv, denial).await;
        }
        Ok(Err(Ended::Broken(why))) => {
            tracing::debug!(%peer, why, "content transfer broke");
            // The peer may have ended it itself.
            let _ = send.reset(CODE_BROKEN);
        }
        Err(_) => drop(send.reset(CODE_BROKEN)),
    }
}

enum Ended {
    Refused(Denial),
    Broken(String),
}

impl From<Denial> for Ended {
    fn from(denial: Denial) -> Self {
        Self::Refused(denial)
    }
}

async fn answer(
    shared: &Arc<Shared>,
    peer: NodeKey,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<u64, Ended> {
    let request = timeout(REQUEST_WAIT_MAX, read_request(recv)).await.map_err(|_| Denial::Malformed)??;
    if !shared.standing.soon(&peer).await || !may_be_had(&shared.view.borrow(), &request.digest) {
        return Err(Denial::DeniedOrAbsent.into());
    }
    if shared.is_draining() {
        return Err(Denial::Draining.into());
    }
    let _place = shared.served.take(peer).ok_or(Denial::Busy)?;
    let reading = Arc::clone(shared);
    let opened = blocking(move || reading.disk.outline(&request.digest)).await;
    let (file, outline) = opened.map_err(|error| {
        shared.note_unreadable(&request.digest, &error);
        match error {
            ReadError::Absent | ReadError::Damaged => Denial::DeniedOrAbsent,
            ReadError::Io(_) => Denial::Busy,
        }
    })?;
    let (file, outline) = (Arc::new(file), Arc::new(outline));
    let head = encode_acceptance(outline.size_bytes(), outline.values());
    write(send, &head).await?;
    let mut sent = 0;
    for index in u64::from(request.from_group)..outline.groups() {
        let (file, of) = (Arc::clone(&file), Arc::clone(&outline));
        let group = blocking(move || read_group(&file, &of, index)).await;
        let group = group.map_err(|error: io::Error| Ended::Broken(error.to_string()))?;
        write(send, &group).await?;
        sent += group.len() as u64;
    }
    // An error here means that the peer has ended it.
    let _ = send.finish();
    Ok(sent)
}

async fn read_request(recv: &mut RecvStream) -> Result<Request, Denial> {
    Ok(Request::decode(&transport::read_opening(recv, REQUEST_BYTES_MAX).await?)?)
}

/// Whether a seed names it, or this node says that it holds it: nothing else leaves this node, whatever its disk has.
fn may_be_had(view: &View, digest: &Digest) -> bool {
    named(view).any(|named| named == *digest) || view.holders.get(digest).is_some_and(|by| by.contains(&view.me))
}

/// Writes all of `bytes`, as long as the peer reads some of it now and then.
async fn write(send: &mut SendStream, mut bytes: &[u8]) -> Result<(), Ended> {
    while !bytes.is_empty() {
        let written = timeout(STALL_MAX, send.write(bytes)).await.map_err(|_| Ended::Broken("it stalls".into()))?;
        bytes = &bytes[written.map_err(|error| Ended::Broken(error.to_string()))?..];
    }
    Ok(())
}

async fn refuse(send: &mut SendStream, recv: &mut RecvStream, denial: Denial) {
    // The direction may have ended already.
    let _ = recv.stop(CODE_REFUSED);
    let said = async {
        send.write_all(&encode_answer(Err(denial))).await.ok()?;
        send.finish().ok()?;
        send.stopped().await.ok()
    };
    if !matches!(timeout(STALL_MAX, said).await, Ok(Some(_))) {
        let _ = send.reset(CODE_REFUSED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_cannot_take_every_place() {
        let served = Served::default();
        let peer = |n: u8| NodeKey([n; 32]);
        let mut places: Vec<_> = (0..SERVED_TO_ONE_MAX).map(|_| served.take(peer(0)).expect("room")).collect();
        assert!(served.take(peer(0)).is_none(), "its share");
        for n in 1..4 {
            places.extend((0..SERVED_TO_ONE_MAX).map(|_| served.take(peer(n)).expect("room")));
        }
        assert!(served.take(peer(9)).is_none(), "all places");
        places.pop();
        assert!(served.take(peer(9)).is_some());
        drop(places);
        assert!(served.0.lock().expect("nobody panics").is_empty());
    }
}

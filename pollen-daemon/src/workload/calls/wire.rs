//! Moves headers and bodies over a call's stream. Owns the bounds of time and memory for bytes of a peer; knows nothing
//! of what they mean.
//! Invariants: nothing is allocated for a body before there is room for it; a peer that sends or fetches too slowly is
//! cut; what came in one packet is never copied.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::{RecvStream, SendStream, VarInt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::peers::Peer;

/// Bodies of calls in flight on this node, all together: several of the largest at once, and a bound on what peers can
/// make a node hold.
pub(super) const BODIES_BYTES_MAX: usize = 256 << 20;
/// Bodies that count for nothing: no more than a header, which every stream may hold.
const SMALL_BYTES_MAX: usize = 4096;
/// How long a header or a small body may take: an honest peer sends it at once.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// The slowest that a large body may come or go, in bytes per second: a bad line still carries it, and nobody holds
/// 32 MiB for longer than nine minutes.
const RATE_MIN: usize = 64 * 1024;
/// Chunks taken from a stream at once: about 45 KiB in packets of 1.4 KB.
const CHUNKS_MAX: usize = 32;

/// The code of a reset answer: its asker did not fetch it in time.
pub(super) const CODE_TOO_SLOW: VarInt = VarInt::from_u32(3);

/// Why no bytes came, or none went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("the connection broke")]
    Connection,
    #[error("the other side ended the stream too early")]
    Short,
    #[error("the other side sent more than it announced")]
    Long,
}

/// How long a body of this size may take.
pub(super) fn patience(bytes: usize) -> Duration {
    PATIENCE + Duration::from_secs((bytes / RATE_MIN) as u64)
}

/// Room for bodies, shared by all calls of a node.
#[derive(Clone, Debug)]
pub(super) struct Room(Arc<Semaphore>);

/// A part of the room; given back when dropped, or with the last of the body it was put to.
#[derive(Debug, Default)]
pub(super) struct Held(Option<OwnedSemaphorePermit>);

impl Held {
    /// The body, which holds its room for as long as any part of it is held.
    pub(super) fn by(self, body: Bytes) -> Bytes {
        match self.0 {
            None => body,
            Some(permit) => Bytes::from_owner(Housed { body, _permit: permit }),
        }
    }
}

struct Housed {
    body: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Housed {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Room {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(BODIES_BYTES_MAX)))
    }

    /// Room for a body, if there is any now.
    pub(super) fn take(&self, bytes: usize) -> Option<Held> {
        if bytes <= SMALL_BYTES_MAX {
            return Some(Held::default());
        }
        let permits = u32::try_from(bytes).ok()?;
        Arc::clone(&self.0).try_acquire_many_owned(permits).ok().map(|permit| Held(Some(permit)))
    }

    /// Room for a body, as soon as there is any. `bytes` is at most [`BODIES_BYTES_MAX`].
    pub(super) async fn wait(&self, bytes: usize) -> Held {
        if bytes <= SMALL_BYTES_MAX {
            return Held::default();
        }
        let permits = u32::try_from(bytes).expect("a body is far below 4 GiB");
        Held(Some(Arc::clone(&self.0).acquire_many_owned(permits).await.expect("the room is never closed")))
    }

    /// Bytes of bodies held now.
    pub(super) fn held(&self) -> usize {
        BODIES_BYTES_MAX - self.0.available_permits()
    }
}

/// The receiving half of a call's stream.
pub(super) struct Incoming {
    recv: RecvStream,
    /// Received and not yet taken.
    ahead: Bytes,
    /// Who is heard by it, where that matters.
    from: Option<Arc<Peer>>,
}

impl Incoming {
    pub(super) fn new(recv: RecvStream, from: Option<Arc<Peer>>) -> Self {
        Self { recv, ahead: Bytes::new(), from }
    }

    /// One byte.
    pub(super) async fn byte(&mut self) -> Result<u8, Broken> {
        self.take(1).await.map(|bytes| bytes[0])
    }

    /// A length of two bytes, and as many bytes; `None` when it is above `max`.
    pub(super) async fn short(&mut self, max: usize) -> Result<Option<Bytes>, Broken> {
        let length = self.take(2).await?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        if length > max {
            return Ok(None);
        }
        self.take(length).await.map(Some)
    }

    /// A length of four bytes.
    pub(super) async fn length(&mut self) -> Result<usize, Broken> {
        let length = self.take(4).await?;
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]);
        Ok(usize::try_from(length).expect("Linux has no 16-bit machines"))
    }

    /// Exactly `length` bytes, which the caller has made room for.
    pub(super) async fn take(&mut self, length: usize) -> Result<Bytes, Broken> {
        if self.ahead.is_empty() && length > 0 {
            self.ahead = self.chunk().await?;
        }
        if self.ahead.len() >= length {
            return Ok(self.ahead.split_to(length));
        }
        let mut whole = BytesMut::with_capacity(length);
        whole.extend_from_slice(&std::mem::take(&mut self.ahead));
        let mut chunks: [Bytes; CHUNKS_MAX] = Default::default();
        while whole.len() < length {
            let filled = self.recv.read_chunks(&mut chunks).await.map_err(|_| Broken::Connection)?;
            self.heard();
            for chunk in &mut chunks[..filled.ok_or(Broken::Short)?] {
                let mut chunk = std::mem::take(chunk);
                let wanted = chunk.split_to(chunk.len().min(length - whole.len()));
                whole.extend_from_slice(&wanted);
                if !chunk.is_empty() {
                    // Further chunks, if there are any, follow this one: they must not be lost.
                    self.ahead = if self.ahead.is_empty() { chunk } else { [&self.ahead[..], &chunk].concat().into() };
                }
            }
        }
        Ok(whole.freeze())
    }

    /// The end of the stream, behind everything that was announced.
    pub(super) async fn end(&mut self) -> Result<(), Broken> {
        if !self.ahead.is_empty() {
            return Err(Broken::Long);
        }
        match self.recv.read_chunk(1, true).await {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(Broken::Long),
            Err(_) => Err(Broken::Connection),
        }
    }

    async fn chunk(&mut self) -> Result<Bytes, Broken> {
        let chunk = self.recv.read_chunk(usize::MAX, true).await;
        self.heard();
        match chunk {
            Ok(Some(chunk)) => Ok(chunk.bytes),
            Ok(None) => Err(Broken::Short),
            Err(_) => Err(Broken::Connection),
        }
    }

    fn heard(&self) {
        if let Some(peer) = &self.from {
            peer.heard(Instant::now());
        }
    }
}

/// Writes what opens a message and its body, and ends the stream. What is small goes in one piece.
pub(super) async fn send(send: &mut SendStream, mut opening: Vec<u8>, body: Bytes) -> Result<(), Broken> {
    let sent = if body.len() <= SMALL_BYTES_MAX {
        opening.extend_from_slice(&body);
        send.write_chunk(opening.into()).await
    } else {
        send.write_all_chunks(&mut [opening.into(), body]).await
    };
    sent.map_err(|_| Broken::Connection)?;
    send.finish().map_err(|_| Broken::Connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_bounded_in_bytes_and_given_back() {
        let room = Room::new();
        let body = room.take(BODIES_BYTES_MAX / 2).expect("room").by(Bytes::from_static(b"some bytes"));
        assert!(room.take(BODIES_BYTES_MAX).is_none());
        assert!(room.take(SMALL_BYTES_MAX).is_some(), "what is small always fits");
        let part = body.slice(..1);
        drop(body);
        assert_eq!(room.held(), BODIES_BYTES_MAX / 2, "a part of the body is still held");
        drop(part);
        assert!(room.take(BODIES_BYTES_MAX).is_some());
        assert_eq!(room.held(), 0);
    }

    #[test]
    fn a_larger_body_may_take_longer() {
        assert_eq!(patience(100), PATIENCE);
        assert_eq!(patience(32 << 20), PATIENCE + Duration::from_secs(512));
    }
}

//! Moves the bytes of one TCP connection: between a socket and a QUIC stream, or between two local sockets.
//! Knows nothing of services, names or standing.
//! Invariants: an end of one direction is passed on as an end and leaves the other open; anything else that ends a
//! connection is passed on as a reset on both sides, never as an end; a reader that stops stops the writer, because
//! nothing is taken from a side before the other has taken what came before.

use std::future::Future;
use std::io;
use std::io::IoSlice;
use std::net::Shutdown;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use quinn::{RecvStream, SendStream, VarInt};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// The first read of a connection: most requests fit, and a thousand idle connections cost little.
const READ_BYTES_MIN: usize = 16 * 1024;
/// The reads of a connection that keeps filling them: larger ones no longer gain throughput.
const READ_BYTES_MAX: usize = 256 * 1024;
/// How much a full read enlarges the next.
const READ_GROWTH: usize = 4;
/// Chunks taken from a QUIC stream for one vectored write: about 180 KiB in packets of 1452 bytes.
/// One write for each chunk was measured at half the throughput.
const CHUNKS_MAX: usize = 128;

/// Codes of QUIC resets and stops.
pub(super) const CODE_RESET: VarInt = VarInt::from_u32(1);
pub(super) const CODE_CUT: VarInt = VarInt::from_u32(2);
pub(super) const CODE_REFUSED: VarInt = VarInt::from_u32(3);
pub(super) const CODE_PROTOCOL: VarInt = VarInt::from_u32(4);

/// Bytes moved, added as they are taken by the receiving side.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// From the mesh into the local socket.
    pub inward: AtomicU64,
    /// From the local socket into the mesh.
    pub outward: AtomicU64,
}

/// Why a connection did not end by itself.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("local socket: {0}")]
    Local(#[from] io::Error),
    #[error("reset by the other side")]
    Remote,
    #[error("cut")]
    Cut,
}

/// Runs a connection to its end. On anything but two orderly ends, or when `cut` resolves, both sides are reset.
pub(super) async fn tunnel(
    tcp: TcpStream,
    mut send: SendStream,
    mut recv: RecvStream,
    moved: &Moved,
    cut: impl Future<Output = ()>,
) -> Result<(), Broken> {
    let result = {
        let both = async {
            tokio::try_join!(upload(&tcp, &mut send, &moved.outward), download(&tcp, &mut recv, &moved.inward))
                .map(|_| ())
        };
        tokio::select! {
            result = both => result,
            broken = socket_error(&tcp) => Err(broken),
            () = cut => Err(Broken::Cut),
        }
    };
    if let Err(broken) = &result {
        let code = if matches!(broken, Broken::Cut) { CODE_CUT } else { CODE_RESET };
        reset_stream(&mut send, &mut recv, code);
        reset_socket(tcp);
    }
    result
}

/// Ends both directions of a stream at once. Without it, dropping a `SendStream` would end it in good order.
pub(super) fn reset_stream(send: &mut SendStream, recv: &mut RecvStream, code: VarInt) {
    // Errors mean that the direction has ended already.
    let _ = send.reset(code);
    let _ = recv.stop(code);
}

/// Closes a socket so that its peer sees a reset.
pub(super) fn reset_socket(tcp: TcpStream) {
    // Fails only on a socket that is dead already.
    let _ = SockRef::from(&tcp).set_linger(Some(Duration::ZERO));
    drop(tcp);
}

/// Socket to stream. Returns when the end has reached the other node, so that a shutdown loses nothing.
async fn upload(tcp: &TcpStream, send: &mut SendStream, moved: &AtomicU64) -> Result<(), Broken> {
    let mut stopped = pin!(send.stopped());
    let mut size = READ_BYTES_MIN;
    let mut buffer = BytesMut::new();
    loop {
        if buffer.capacity() < size / 2 {
            buffer = BytesMut::with_capacity(size);
        }
        let room = buffer.capacity();
        match tcp.try_read_buf(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                if read == room && room >= size {
                    size = (size * READ_GROWTH).min(READ_BYTES_MAX);
                }
                send.write_chunk(buffer.split().freeze()).await.map_err(|_| Broken::Remote)?;
                moved.fetch_add(read as u64, Ordering::Relaxed);
                tokio::task::consume_budget().await;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // An idle connection holds no buffer.
                buffer = BytesMut::new();
                tokio::select! {
                    ready = tcp.readable() => ready?,
                    // The other side has given up: it must not take a byte from the client to notice.
                    _ = &mut stopped => return Err(Broken::Remote),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    send.finish().map_err(|_| Broken::Remote)?;
    match stopped.await {
        Ok(None) => Ok(()),
        Ok(Some(_)) | Err(_) => Err(Broken::Remote),
    }
}

/// Stream to socket.
async fn download(tcp: &TcpStream, recv: &mut RecvStream, moved: &AtomicU64) -> Result<(), Broken> {
    let mut chunks = vec![Bytes::new(); CHUNKS_MAX];
    while let Some(filled) = recv.read_chunks(&mut chunks).await.map_err(|_| Broken::Remote)? {
        let mut first = 0;
        while first < filled {
            match write_vectored(tcp, &chunks[first..filled]) {
                Ok(written) => {
                    moved.fetch_add(written as u64, Ordering::Relaxed);
                    first += advance(&mut chunks[first..filled], written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => tcp.writable().await?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        tokio::task::consume_budget().await;
    }
    end_writing(tcp)
}

/// Apart from its caller so that the array of slices lives on the stack, not in every connection's future.
fn write_vectored(tcp: &TcpStream, chunks: &[Bytes]) -> io::Result<usize> {
    let mut slices = [IoSlice::new(&[]); CHUNKS_MAX];
    for (slice, chunk) in slices.iter_mut().zip(chunks) {
        *slice = IoSlice::new(chunk);
    }
    tcp.try_write_vectored(&slices[..chunks.len().min(CHUNKS_MAX)])
}

/// Drops `written` bytes from the front and frees the chunks they filled. Returns how many chunks are done.
fn advance(chunks: &mut [Bytes], mut written: usize) -> usize {
    let mut done = 0;
    for chunk in chunks {
        if chunk.len() > written {
            chunk.advance(written);
            break;
        }
        written -= chunk.len();
        *chunk = Bytes::new();
        done += 1;
    }
    done
}

fn end_writing(tcp: &TcpStream) -> Result<(), Broken> {
    match SockRef::from(tcp).shutdown(Shutdown::Write) {
        // The client has closed everything already, in good order or else seen by `socket_error`.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        other => other.map_err(Broken::Local),
    }
}

/// Resolves when the socket is reset, even while nothing is read from it or written to it.
async fn socket_error(tcp: &TcpStream) -> Broken {
    match tcp.ready(Interest::ERROR).await {
        Ok(_) => {
            Broken::Local(tcp.take_error().ok().flatten().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()))
        }
        Err(error) => Broken::Local(error),
    }
}

/// The same between two local sockets, for a provider on this very node. `inward` counts what `server` takes.
pub(super) async fn relay(
    client: TcpStream,
    server: TcpStream,
    moved: &Moved,
    cut: impl Future<Output = ()>,
) -> Result<(), Broken> {
    let result = {
        let both = async {
            tokio::try_join!(copy(&client, &server, &moved.inward), copy(&server, &client, &moved.outward)).map(|_| ())
        };
        tokio::select! {
            result = both => result,
            broken = socket_error(&client) => Err(broken),
            broken = socket_error(&server) => Err(broken),
            () = cut => Err(Broken::Cut),
        }
    };
    if result.is_err() {
        reset_socket(client);
        reset_socket(server);
    }
    result
}

async fn copy(from: &TcpStream, to: &TcpStream, moved: &AtomicU64) -> Result<(), Broken> {
    let mut size = READ_BYTES_MIN;
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(size);
        match from.try_read_buf(&mut buffer) {
            Ok(0) => return end_writing(to),
            Ok(read) => {
                if read >= size {
                    size = (size * READ_GROWTH).min(READ_BYTES_MAX);
                }
                while !buffer.is_empty() {
                    match to.try_write(&buffer) {
                        Ok(written) => {
                            moved.fetch_add(written as u64, Ordering::Relaxed);
                            buffer.advance(written);
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                tokio::task::consume_budget().await;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                buffer = BytesMut::new();
                from.readable().await?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partial_write_leaves_exactly_the_rest() {
        let mut chunks = [Bytes::from_static(b"abc"), Bytes::from_static(b"de"), Bytes::from_static(b"f")];
        assert_eq!(advance(&mut chunks, 4), 1);
        assert_eq!(chunks[1..], [Bytes::from_static(b"e"), Bytes::from_static(b"f")]);
        assert_eq!(advance(&mut chunks[1..], 2), 2);
    }
}

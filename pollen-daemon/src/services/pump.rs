//! Moves the bytes of one TCP connection: between a socket and a QUIC stream, or between two local sockets.
//! Knows nothing of services, names or standing.
//! Invariants: an end of one direction is passed on as an end and leaves the other open; anything else that ends a
//! connection is passed on as a reset on both sides, never as an end; a reader that stops stops the writer, because
//! nothing is taken from a side before the other has taken what came before.

mod held;

use std::future::Future;
use std::io;
use std::io::IoSlice;
use std::net::Shutdown;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut as _, Bytes, BytesMut};
use quinn::{RecvStream, SendStream, VarInt};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::net::TcpStream;

use self::held::Held;
use super::credit::{Flow, Inflow, Outflow, Overrun, RETURN_AFTER};

/// The first read of a connection: most requests fit, and a thousand idle connections cost little.
const READ_BYTES_MIN: usize = 16 * 1024;
/// The reads of a connection that keeps filling them: larger ones no longer gain throughput.
const READ_BYTES_MAX: usize = 256 * 1024;
/// How much a full read enlarges the next.
const READ_GROWTH: usize = 4;
/// Chunks taken from a QUIC stream for one vectored write: about 180 KiB in packets of 1452 bytes.
/// One write for each chunk was measured at half the throughput.
const CHUNKS_MAX: usize = 128;
/// How long bytes wait for a socket before they get memory of their own.
const SETTLE_AFTER: Duration = Duration::from_millis(200);
/// A client that went with bytes unsent behind a reader that has stopped says nothing of it; its kernel does when asked.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15)).with_retries(4);

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
    #[error(transparent)]
    Overrun(#[from] Overrun),
}

/// Runs a connection to its end. On anything but two orderly ends, or when `cut` resolves, both sides are reset.
pub(super) async fn tunnel(
    tcp: TcpStream,
    mut send: SendStream,
    mut recv: RecvStream,
    flow: Flow,
    moved: &Moved,
    cut: impl Future<Output = ()>,
) -> Result<(), Broken> {
    // Best effort.
    let _ = SockRef::from(&tcp).set_tcp_keepalive(&KEEPALIVE);
    let Flow { inflow, outflow } = flow;
    let result = {
        let both = async {
            tokio::try_join!(
                upload(&tcp, &mut send, outflow, &moved.outward),
                download(&tcp, &mut recv, inflow, &moved.inward)
            )
            .map(|_| ())
        };
        tokio::select! {
            result = both => result,
            broken = socket_error(&tcp) => Err(broken),
            () = cut => Err(Broken::Cut),
        }
    };
    if let Err(broken) = &result {
        let code = match broken {
            Broken::Cut => CODE_CUT,
            Broken::Overrun(_) => CODE_PROTOCOL,
            Broken::Local(_) | Broken::Remote => CODE_RESET,
        };
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

/// Socket to stream, as far as credit goes. Returns when the end has reached the other node, so that a shutdown loses
/// nothing.
async fn upload(tcp: &TcpStream, send: &mut SendStream, mut outflow: Outflow, moved: &AtomicU64) -> Result<(), Broken> {
    let mut stopped = pin!(send.stopped());
    let mut size = READ_BYTES_MIN;
    let mut buffer = BytesMut::new();
    loop {
        let credit = outflow.room();
        if credit == 0 {
            buffer = BytesMut::new();
            tokio::select! {
                () = outflow.granted() => continue,
                _ = &mut stopped => return Err(Broken::Remote),
            }
        }
        if buffer.capacity() < size / 2 {
            buffer = BytesMut::with_capacity(size);
        }
        let room = buffer.capacity().min(credit);
        match tcp.try_read_buf(&mut (&mut buffer).limit(room)) {
            Ok(0) => break,
            Ok(read) => {
                if read == room && room >= size {
                    size = (size * READ_GROWTH).min(READ_BYTES_MAX);
                }
                outflow.sent(read);
                send.write_chunk(buffer.split().freeze()).await.map_err(|_| Broken::Remote)?;
                moved.fetch_add(read as u64, Ordering::Relaxed);
                tokio::task::consume_budget().await;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // An idle connection holds no buffer, and soon no credit but what all have.
                buffer = BytesMut::new();
                let readable = async {
                    match tokio::time::timeout(RETURN_AFTER, tcp.readable()).await {
                        Ok(ready) => ready,
                        Err(_) => {
                            outflow.give_back();
                            tcp.readable().await
                        }
                    }
                };
                tokio::select! {
                    ready = readable => ready?,
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

/// Stream to socket. Takes from the stream all that comes, which credit bounds: a stream of QUIC that nobody reads would
/// hold a part of the connection's window.
async fn download(tcp: &TcpStream, recv: &mut RecvStream, inflow: Inflow, moved: &AtomicU64) -> Result<(), Broken> {
    let mut held = Held::default();
    let mut ended = false;
    loop {
        while !held.is_empty() {
            match write_vectored(tcp, &held) {
                Ok(written) => {
                    moved.fetch_add(written as u64, Ordering::Relaxed);
                    held.advance(written);
                    inflow.taken(written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if held.is_empty() {
            if ended {
                return end_writing(tcp);
            }
            ended = !read_into(recv, &mut held, &inflow).await?;
        } else {
            let loose = held.is_loose();
            let more = tokio::select! {
                ready = tcp.writable() => { ready?; None }
                () = tokio::time::sleep(SETTLE_AFTER), if loose => { held.settle(); None }
                chunk = recv.read_chunk(usize::MAX, true), if !ended => Some(chunk.map_err(|_| Broken::Remote)?),
            };
            match more {
                Some(Some(chunk)) => {
                    inflow.arrived(chunk.bytes.len())?;
                    held.push(chunk.bytes);
                }
                Some(None) => ended = true,
                None => {}
            }
        }
        tokio::task::consume_budget().await;
    }
}

/// Waits for what comes next and takes all that is there; `false` at the stream's end.
async fn read_into(recv: &mut RecvStream, held: &mut Held, inflow: &Inflow) -> Result<bool, Broken> {
    let mut chunks = vec![Bytes::new(); CHUNKS_MAX];
    let Some(filled) = recv.read_chunks(&mut chunks).await.map_err(|_| Broken::Remote)? else { return Ok(false) };
    for chunk in chunks.into_iter().take(filled) {
        inflow.arrived(chunk.len())?;
        held.push(chunk);
    }
    Ok(true)
}

/// Apart from its caller so that the array of slices lives on the stack, not in every connection's future.
fn write_vectored(tcp: &TcpStream, held: &Held) -> io::Result<usize> {
    let mut slices = [IoSlice::new(&[]); CHUNKS_MAX];
    let filled = held.slices(&mut slices);
    tcp.try_write_vectored(&slices[..filled])
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

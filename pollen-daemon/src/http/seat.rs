//! Which thread serves a connection, by the first bytes that it brings: one that calls a seed is served where that seed's
//! guests run, or where the streams to those who host it are, so that a call need not go from thread to thread. Owns
//! looking and moving; must not know what the bytes mean.
//! Invariant: nothing is taken from a connection before it is served.

use std::io;
use std::os::fd::AsFd as _;

use rustix::net::{RecvFlags, recv};
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Handle;

/// The first bytes that are looked at: a method, and a path as far as what it is about.
pub(crate) const LOOK_BYTES: usize = 96;

/// A connection that was accepted.
pub trait Socket: AsyncRead + AsyncWrite + Unpin + Send + Sync + Sized + 'static {
    /// The first bytes, left where they are; at most as many as fit.
    fn peek(&self, bytes: &mut [u8]) -> impl Future<Output = io::Result<usize>> + Send;

    /// The same connection on another runtime.
    ///
    /// # Errors
    /// If the other one has ended; the connection is closed then.
    fn moved(self, to: &Handle) -> io::Result<Self>;
}

impl Socket for UnixStream {
    async fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        self.async_io(Interest::READABLE, || Ok(recv(self.as_fd(), &mut *bytes, RecvFlags::PEEK)?.1)).await
    }

    fn moved(self, to: &Handle) -> io::Result<Self> {
        let socket = self.into_std()?;
        let _within = to.enter();
        Self::from_std(socket)
    }
}

impl Socket for TcpStream {
    async fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        Self::peek(self, bytes).await
    }

    fn moved(self, to: &Handle) -> io::Result<Self> {
        let socket = self.into_std()?;
        let _within = to.enter();
        Self::from_std(socket)
    }
}

/// What a connection begins with.
pub(super) async fn beginning(socket: &impl Socket) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; LOOK_BYTES];
    let length = socket.peek(&mut bytes).await?;
    bytes.truncate(length);
    Ok(bytes)
}

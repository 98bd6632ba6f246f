//! One request to a service from inside this node, as a seed makes it: the input goes out whole, what comes back until
//! the end is the answer. Owns that exchange; how a provider is found is `dial`'s.
//! Invariant: no more is held than the asker allows, and whoever stops waiting leaves no stream behind.

use std::io;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{Either, select};
use pollen_common::identity::NodeKey;
use pollen_common::views::{Name, Protocol};
use pollen_common::wire::streams::service::Target;
use quinn::{RecvStream, SendStream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::credit::{Flow, Inflow, Outflow};
use super::dial::{self, Client, Local, NoProvider, Way};
use super::imports::Import;
use super::live::Owner;
use super::pump::{self, CODE_RESET};
use super::session::Carrier;
use super::{Services, Shared};

/// Why a service gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeError {
    #[error("no service is called {0}")]
    NoService(Name),
    #[error("{0} speaks UDP, and only TCP can be asked so")]
    Udp(Name),
    #[error("{0}")]
    NoProvider(String),
    #[error("this node is at its limit of open streams")]
    Busy,
    #[error("the connection was cut")]
    Cut,
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("the answer is longer than {max} bytes")]
    TooLong { max: usize },
    #[error("the mesh is not up yet, or no more")]
    NoMesh,
}

impl From<NoProvider> for ExchangeError {
    fn from(error: NoProvider) -> Self {
        match error {
            NoProvider::Busy => Self::Busy,
            error => Self::NoProvider(error.to_string()),
        }
    }
}

/// Ends a task together with whoever waits for it.
struct Bound<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for Bound<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Services {
    /// Sends `input` to a TCP service, ends that direction, and reads to the end of the other: at most
    /// `answer_bytes_max`. Usable from any thread and runtime: the work is done on the mesh's.
    ///
    /// # Errors
    /// See [`ExchangeError`]; the service may have acted on the input, except where no provider took the connection.
    pub async fn exchange(&self, service: Name, input: Bytes, answer_bytes_max: usize) -> Result<Bytes, ExchangeError> {
        let mesh = self.0.mesh.get().ok_or(ExchangeError::NoMesh)?;
        let shared = Arc::clone(&self.0);
        let task = mesh.runtime.spawn(async move { exchange(&shared, service, input, answer_bytes_max).await });
        // It ends otherwise only with the runtime, or by a panic that its hook has reported.
        (&mut Bound(task).0).await.unwrap_or(Err(ExchangeError::NoMesh))
    }
}

async fn exchange(shared: &Shared, service: Name, input: Bytes, max: usize) -> Result<Bytes, ExchangeError> {
    let speaks = |protocol| shared.view.borrow().services.get(&service).map(|info| info.speaks(protocol));
    match (speaks(Protocol::Tcp), speaks(Protocol::Udp)) {
        (None, _) => return Err(ExchangeError::NoService(service)),
        (Some(false), Some(true)) => return Err(ExchangeError::Udp(service)),
        _ => {}
    }
    let import =
        Import { target: Target::Name(service), provider: None, protocol: Protocol::Tcp, bind: None, local_port: 0 };
    let opened = dial::open(shared, &import, Client { hops: 0, session: None }).await?;
    let slot = |peer: NodeKey, export| {
        shared.live.open(Owner { peer, protocol: Protocol::Tcp, asked: Some(import.target.clone()), export }, None)
    };
    match opened.way {
        Way::Mesh(carrier, flow) => {
            let mut slot = slot(opened.provider, None).ok_or(ExchangeError::Busy)?;
            shared.count_opened(Protocol::Tcp);
            tokio::select! {
                answer = over_mesh(carrier, flow, input, max) => answer,
                () = slot.cut() => Err(ExchangeError::Cut),
            }
        }
        Way::Local(Local::Tcp(tcp), export) => {
            let mut slot = slot(opened.provider, Some(export)).ok_or(ExchangeError::Busy)?;
            shared.count_opened(Protocol::Tcp);
            tokio::select! {
                answer = over_socket(tcp, input, max) => answer,
                () = slot.cut() => Err(ExchangeError::Cut),
            }
        }
        Way::Session(_) | Way::Local(Local::Udp(_), _) => unreachable!("a TCP import opens TCP"),
    }
}

/// Resets both directions unless the exchange came to its end, so that the provider does not take a broken one for whole.
struct Halves(Option<(SendStream, RecvStream)>);

impl Drop for Halves {
    fn drop(&mut self) {
        if let Some((send, recv)) = &mut self.0 {
            pump::reset_stream(send, recv, CODE_RESET);
        }
    }
}

async fn over_mesh(carrier: Carrier, flow: Flow, input: Bytes, max: usize) -> Result<Bytes, ExchangeError> {
    let Flow { inflow, outflow } = flow;
    let mut halves = Halves(Some((carrier.send, carrier.recv)));
    let (send, recv) = halves.0.as_mut().expect("put there above");
    let (_, answer) = whichever_way(write(send, outflow, input), read(recv, &inflow, max)).await;
    if answer.is_ok() {
        halves.0 = None;
    }
    answer
}

async fn write(send: &mut SendStream, mut outflow: Outflow, mut input: Bytes) -> Result<(), quinn::WriteError> {
    while !input.is_empty() {
        outflow.granted().await;
        let piece = input.split_to(outflow.room().min(input.len()));
        outflow.sent(piece.len());
        send.write_chunk(piece).await?;
    }
    // It has been stopped already, which the answer shows.
    let _ = send.finish();
    Ok(())
}

async fn read(recv: &mut RecvStream, inflow: &Inflow, max: usize) -> Result<Bytes, ExchangeError> {
    let broken = |error: &dyn std::error::Error| ExchangeError::Broken(error.to_string());
    let mut answer = Vec::new();
    while let Some(chunk) = recv.read_chunk(usize::MAX, true).await.map_err(|error| broken(&error))? {
        let len = chunk.bytes.len();
        inflow.arrived(len).map_err(|error| broken(&error))?;
        if answer.len() + len > max {
            return Err(ExchangeError::TooLong { max });
        }
        answer.extend_from_slice(&chunk.bytes);
        inflow.taken(len);
    }
    Ok(answer.into())
}

async fn over_socket(tcp: TcpStream, input: Bytes, max: usize) -> Result<Bytes, ExchangeError> {
    let (mut read, mut write) = tcp.into_split();
    let write = async {
        write.write_all(&input).await?;
        write.shutdown().await
    };
    let mut answer = Vec::new();
    let mut bounded = (&mut read).take(u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1));
    let (written, read) = whichever_way(write, bounded.read_to_end(&mut answer)).await;
    read.map_err(|error| ExchangeError::Broken(error.to_string()))?;
    // A reset is told once: if writing met it, reading meets a clean end. One that follows the service's own end is
    // told as a broken pipe, and the answer before it is whole.
    if let Some(Err(error)) = written
        && error.kind() == io::ErrorKind::ConnectionReset
    {
        return Err(ExchangeError::Broken(error.to_string()));
    }
    if answer.len() > max {
        return Err(ExchangeError::TooLong { max });
    }
    Ok(answer.into())
}

/// Reads to the end beside writing: a service may answer without hearing all, and what it says counts. With how writing
/// ended, if it did.
async fn whichever_way<W, R>(write: impl Future<Output = W>, read: impl Future<Output = R>) -> (Option<W>, R) {
    match select(pin!(write), pin!(read)).await {
        Either::Left((written, read)) => (Some(written), read.await),
        Either::Right((answer, _)) => (None, answer),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::TcpListener;

    use super::*;

    /// More than the buffers of two sockets hold.
    const INPUT_BYTES: usize = 16 * 1024 * 1024;

    #[tokio::test]
    async fn a_reset_is_no_empty_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let asking = tokio::spawn(over_socket(client, vec![7; INPUT_BYTES].into(), 1024));
        // It has begun to write.
        server.readable().await.unwrap();
        socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
        drop(server);
        assert!(matches!(asking.await.unwrap(), Err(ExchangeError::Broken(_))));
    }
}

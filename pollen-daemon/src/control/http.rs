//! Serving HTTP/1 to strangers within bounds: so many connections, so long for a head, so long for all of it. Owns the
//! loop that the control socket and the metrics listener share; knows no route.
//! Invariant: a client that stops reading or writing costs one place for a bounded time, never more.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::refused::{Refused, Tally};

/// The most that a request's line and headers may take, in bytes: ours take a few hundred.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// The most headers: a browser sends some twenty.
const HEADERS_MAX: usize = 64;
/// How long open exchanges are given when the server ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause after a failed `accept`, which fails for want of file descriptors: trying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What strangers may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; further clients wait to be accepted.
    pub connections: usize,
    /// How long a client may take over its request's head.
    pub head: Duration,
    /// How long one exchange may take in all, unless it is a stream.
    pub exchange: Duration,
}

impl Limits {
    /// Patient enough for the slowest request (see [`super::server::REQUEST_TIMEOUT`]) and its body.
    #[must_use]
    pub const fn connections(connections: usize) -> Self {
        Self { connections, head: Duration::from_secs(5), exchange: Duration::from_secs(60) }
    }
}

/// Marks a response whose body goes on for as long as its reader wants.
#[derive(Clone, Copy, Debug)]
pub struct Endless;

/// Where connections come from.
pub trait Accept: Send + 'static {
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    fn accept(&self) -> impl Future<Output = io::Result<Self::Io>> + Send;
}

impl Accept for UnixListener {
    type Io = tokio::net::UnixStream;
    async fn accept(&self) -> io::Result<Self::Io> {
        Self::accept(self).await.map(|(io, _)| io)
    }
}

impl Accept for TcpListener {
    type Io = tokio::net::TcpStream;
    async fn accept(&self) -> io::Result<Self::Io> {
        Self::accept(self).await.map(|(io, _)| io)
    }
}

/// Serves `app` within `limits`, one exchange per connection, until `stop` turns true or is dropped. Whoever is turned
/// away is counted in `refused`.
pub async fn serve(
    listener: impl Accept,
    app: Router,
    limits: Limits,
    refused: Arc<Tally>,
    mut stop: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut exchanges = JoinSet::new();
    let mut stopped = pin!(async move { stop.wait_for(|stop| *stop).await.map(|_| ()) });
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, io) = tokio::select! {
            accepted = accepted => accepted,
            _ = &mut stopped => break,
            Some(_) = exchanges.join_next() => continue,
        };
        match io {
            Ok(io) => {
                let (app, refused) = (app.clone(), Arc::clone(&refused));
                exchanges.spawn(async move {
                    if let Some(reason) = exchange(io, app, limits).await {
                        refused.count(reason);
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    let finish = async { while exchanges.join_next().await.is_some() {} };
    // What is still open after that (followers of events) is cut when the set is dropped.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, finish).await;
}

/// One request and its answer; why it came to nothing, if it did.
async fn exchange(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    app: Router,
    limits: Limits,
) -> Option<Refused> {
    let endless = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(OnceLock::new());
    let app = TowerToHyperService::new(app);
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let (app, endless, answered) = (app.clone(), Arc::clone(&endless), Arc::clone(&answered));
        async move {
            let Ok(response): Result<Response, Infallible> = app.call(request).await;
            endless.store(response.extensions().get::<Endless>().is_some(), Ordering::Relaxed);
            // One exchange a connection: this is the only answer.
            let _only = answered.set(response.extensions().get::<Refused>().copied());
            Ok::<_, Infallible>(response)
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .keep_alive(false)
            .serve_connection(TokioIo::new(io), service)
    );
    let ended = tokio::time::timeout(limits.exchange, &mut connection).await;
    let ended = match ended {
        Err(_) if endless.load(Ordering::Relaxed) => Ok(connection.await),
        ended => ended,
    };
    let broken = match ended {
        Ok(Ok(())) => None,
        Ok(Err(error)) => {
            tracing::debug!("an HTTP exchange broke off: {error}");
            Some(Refused::of(&error))
        }
        Err(_) => {
            tracing::debug!("an HTTP exchange took longer than {}s", limits.exchange.as_secs());
            Some(Refused::ExchangeSlow)
        }
    };
    // A client that was told why and then went away was turned away for what it was told.
    answered.get().copied().flatten().or(broken)
}

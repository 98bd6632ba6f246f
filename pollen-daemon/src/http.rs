//! Serving HTTP/1 to strangers within bounds: so many connections, so long for a head, so long for all of it. Owns the
//! loop that the control socket and the metrics listener share; knows no route.
//! Invariant: a client that stops reading or writing costs one place for a bounded time, never more; and one that has
//! brought no request costs nobody a place.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use places::{Place, Places};
use refused::{Refused, Tally};
use seat::Socket;

pub mod failure;
mod places;
pub mod refused;
pub mod seat;

/// What a connection is read into, in bytes, unless a listener says otherwise: our heads take a few hundred.
const BUFFER_BYTES: usize = 16 * 1024;
/// The most headers: a browser sends some twenty.
const HEADERS_MAX: usize = 64;
/// How long open exchanges are given when the server ends.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause after a failed `accept`, which fails for want of file descriptors: trying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const CLOSE: HeaderValue = HeaderValue::from_static("close");

/// What strangers may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time. A further one takes the place of the oldest that has brought no request yet; where there
    /// is none, it waits.
    pub connections: usize,
    /// After so long a client that was answered gives way to a further one as well. Only where nothing is lost by it,
    /// for whoever is cut cannot tell what became of its request.
    pub spare_readers: Option<Duration>,
    /// How long a client may take over its request's head.
    pub head: Duration,
    /// How long one exchange may take in all, unless it is a stream.
    pub exchange: Duration,
    /// The most that is read at once, and so the most that a request's line and headers may take.
    pub buffer_bytes: usize,
}

impl Limits {
    /// Patient enough for the slowest request (see [`super::server::REQUEST_TIMEOUT`]) and its body.
    #[must_use]
    pub const fn connections(connections: usize) -> Self {
        Self {
            connections,
            spare_readers: None,
            head: Duration::from_secs(5),
            exchange: Duration::from_secs(60),
            buffer_bytes: BUFFER_BYTES,
        }
    }
}

/// Marks a response whose body goes on for as long as its reader wants.
#[derive(Clone, Copy, Debug)]
pub struct Endless;

/// Where connections come from.
pub trait Accept: Send + 'static {
    type Io: Socket;
    /// Loses nothing when it is dropped half-way.
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Io>> + Send;
}

impl Accept for UnixListener {
    type Io = tokio::net::UnixStream;
    async fn accept(&mut self) -> io::Result<Self::Io> {
        Self::accept(self).await.map(|(io, _)| io)
    }
}

impl Accept for TcpListener {
    type Io = tokio::net::TcpStream;
    async fn accept(&mut self) -> io::Result<Self::Io> {
        Self::accept(self).await.map(|(io, _)| io)
    }
}

/// What answers the requests of one listener.
pub trait App: Clone + Send + Sync + 'static {
    /// The answer, and whether the connection may bring another request. One that takes longer than the listener's
    /// exchanges do says so to `pace`.
    fn answer(&self, request: Request<Incoming>, pace: &Pace) -> impl Future<Output = (Response, After)> + Send;

    /// Whether [`seat`](Self::seat) is to be asked.
    const SEATS: bool = false;

    /// The runtime on which a connection that begins so is served best; where it was accepted, if there is none.
    fn seat(&self, _beginning: &[u8]) -> Option<Handle> {
        None
    }
}

impl App for Router {
    async fn answer(&self, request: Request<Incoming>, _: &Pace) -> (Response, After) {
        let Ok(response): Result<Response, Infallible> = TowerToHyperService::new(self.clone()).call(request).await;
        (response, After::Close)
    }
}

/// What follows an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The connection ends.
    Close,
    /// It may bring another request, as soon as a listener waits for a head.
    Another,
}

/// What one connection may take: until when its present exchange may go on, and a place of its own where the app gave
/// it one, as long as it is open.
#[derive(Debug)]
pub struct Pace {
    opened: Instant,
    place: OnceLock<OwnedSemaphorePermit>,
    /// In milliseconds since then; [`u64::MAX`] without an end.
    until_ms: AtomicU64,
}

impl Pace {
    fn new(first: Duration) -> Self {
        let pace = Self { opened: Instant::now(), place: OnceLock::new(), until_ms: AtomicU64::new(0) };
        pace.allow(first);
        pace
    }

    /// Gives the exchange so long from now on.
    pub fn allow(&self, time: Duration) {
        let until = (self.opened.elapsed() + time).as_millis();
        self.until_ms.store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Takes one of `places` for the connection unless it has one; false where none is left.
    pub fn has_place(&self, places: &Arc<Semaphore>) -> bool {
        if self.place.get().is_some() {
            return true;
        }
        let Ok(place) = Arc::clone(places).try_acquire_owned() else { return false };
        // One exchange at a time: nobody else sets it.
        self.place.set(place).is_ok()
    }

    fn allow_all(&self) {
        self.until_ms.store(u64::MAX, Ordering::Relaxed);
    }

    /// Returns when the time is over, however often it was prolonged meanwhile.
    async fn over(&self) {
        loop {
            let until = self.until_ms.load(Ordering::Relaxed);
            if until == u64::MAX {
                std::future::pending::<()>().await;
            }
            let at = self.opened + Duration::from_millis(until);
            if Instant::now() >= at {
                return;
            }
            tokio::time::sleep_until(at).await;
        }
    }
}

/// Serves `app` within `limits` until `stop` turns true or is dropped. Whoever is turned away is counted in `refused`.
pub async fn serve(
    mut listener: impl Accept,
    app: impl App,
    limits: Limits,
    refused: Arc<Tally>,
    stop: watch::Receiver<bool>,
) {
    let places = Places::new(limits.connections, places::WAITING_SPARED, limits.spare_readers, Arc::clone(&refused));
    let mut connections = JoinSet::new();
    let mut stopping = stop.clone();
    let mut stopped = pin!(async move { stopping.wait_for(|stop| *stop).await.map(|_| ()) });
    loop {
        // Accepted before there is a place for it: whoever holds one for nothing is found out only by others that come.
        let io = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut stopped => break,
            Some(_) = connections.join_next() => continue,
        };
        let io = match io {
            Ok(io) => io,
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let place = tokio::select! {
            place = places.take() => place,
            _ = &mut stopped => break,
        };
        connections.spawn(seated(io, place, app.clone(), limits, Arc::clone(&refused), stop.clone()));
    }
    let finish = async { while connections.join_next().await.is_some() {} };
    // What is still open after that (followers of events, callers between two calls) is cut when the set is dropped.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, finish).await;
}

/// Serves a connection where its app wants it served.
async fn seated<A: App>(
    io: impl Socket,
    place: Place,
    app: A,
    limits: Limits,
    refused: Arc<Tally>,
    stop: watch::Receiver<bool>,
) {
    if !A::SEATS {
        return connection(io, place, app, limits, refused, stop).await;
    }
    let mut stopping = stop.clone();
    let beginning = tokio::select! {
        beginning = tokio::time::timeout(limits.head, seat::beginning(&io)) => beginning,
        () = place.given_up() => return,
        _ = stopping.wait_for(|stop| *stop) => return,
    };
    // A connection that cannot be looked at cannot be served either: reading it finds out why.
    let Ok(beginning) = beginning else { return refused.count(Refused::HeadSlow) };
    let Some(runtime) = beginning.ok().and_then(|beginning| app.seat(&beginning)) else {
        return connection(io, place, app, limits, refused, stop).await;
    };
    let Ok(io) = io.moved(&runtime) else { return refused.count(Refused::BrokenOff) };
    // A set of one: it ends its task when it is dropped.
    let mut there = JoinSet::new();
    there.spawn_on(connection(io, place, app, limits, refused, stop), &runtime);
    there.join_next().await;
}

/// What a connection's exchanges share.
struct Shared<A> {
    app: A,
    place: Place,
    pace: Pace,
    exchange: Duration,
    refused: Arc<Tally>,
    /// Its last request was answered, and whether that answer was counted as a refusal.
    answered: AtomicBool,
    told: AtomicBool,
}

/// All exchanges of one connection.
async fn connection(
    io: impl Socket,
    place: Place,
    app: impl App,
    limits: Limits,
    refused: Arc<Tally>,
    mut stop: watch::Receiver<bool>,
) {
    let stopped = async move { stop.wait_for(|stop| *stop).await.map(|_| ()) };
    let shared = Arc::new(Shared {
        app,
        place,
        pace: Pace::new(limits.exchange),
        exchange: limits.exchange,
        refused,
        answered: AtomicBool::new(false),
        told: AtomicBool::new(false),
    });
    let for_service = Arc::clone(&shared);
    let service = service_fn(move |request: Request<Incoming>| {
        let shared = Arc::clone(&for_service);
        async move { Ok::<_, Infallible>(exchange(&shared, request).await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(limits.buffer_bytes)
            .max_headers(HEADERS_MAX)
            .serve_connection(TokioIo::new(io), service)
    );
    let broken = tokio::select! {
        ended = &mut connection => ended,
        () = shared.pace.over() => return shared.too_slow(),
        () = shared.place.given_up() => return,
        _ = stopped => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = &mut connection => ended,
                () = shared.place.given_up() => return,
                () = shared.pace.over() => return shared.too_slow(),
            }
        }
    };
    if let Err(error) = broken {
        shared.broke_off(&error);
    }
}

impl<A> Shared<A> {
    fn too_slow(&self) {
        tracing::debug!("an HTTP exchange took too long");
        self.count(Refused::ExchangeSlow);
    }

    fn broke_off(&self, error: &hyper::Error) {
        tracing::debug!("an HTTP connection broke off: {error}");
        // A client that was served and brings nothing more is turned away for nothing.
        let waits = error.is_timeout() && self.answered.load(Ordering::Relaxed);
        if !waits {
            self.count(Refused::of(error));
        }
    }

    /// A client that was told why and then went away was turned away for what it was told.
    fn count(&self, reason: Refused) {
        if !self.told.load(Ordering::Relaxed) {
            self.refused.count(reason);
        }
    }
}

async fn exchange<A: App>(shared: &Shared<A>, request: Request<Incoming>) -> Response {
    if !shared.place.begins() {
        // Its connection is about to be cut, and what was not begun must not be.
        std::future::pending::<()>().await;
    }
    shared.answered.store(false, Ordering::Relaxed);
    shared.told.store(false, Ordering::Relaxed);
    shared.pace.allow(shared.exchange);
    let (mut response, after) = shared.app.answer(request, &shared.pace).await;
    if response.extensions().get::<Endless>().is_some() {
        shared.pace.allow_all();
    }
    if let Some(reason) = response.extensions().get::<Refused>() {
        shared.refused.count(*reason);
        shared.told.store(true, Ordering::Relaxed);
    }
    shared.answered.store(true, Ordering::Relaxed);
    shared.place.answered();
    if after == After::Close {
        response.headers_mut().insert(CONNECTION, CLOSE);
    }
    response
}

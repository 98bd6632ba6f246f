//! `/metrics` for Prometheus: when it is asked, one reading of the daemon becomes text; `/ready` for whoever balances
//! load, and `/` for people. Owns the listener and the families, whose names are contract (`docs/guide/metrics.md`); keeps no counter of its own.
//! Invariant: cardinality is bounded, whatever the cluster's size.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

use crate::config::show_address;
use crate::handle::Daemon;
use crate::http;
use crate::http::failure::{Code, Failure};
use crate::http::refused::{Refused, Tallies};

#[cfg(test)]
mod examples;
mod families;
mod ready;
#[cfg(test)]
mod tests;

/// Scrapers served at a time: a pair of Prometheus servers and a few curious people, with room.
const CONNECTIONS_MAX: usize = 32;
/// How long a scraper that was answered keeps its place where others want it: a page goes through within a round trip
/// or a few, and the next scrape makes up for one that was cut.
const READING_SPARED: Duration = Duration::from_secs(1);
/// Connections that wait to be accepted: each is accepted at once, so more than a burst never do.
const BACKLOG: i32 = 128;
/// How long to wait before a taken address is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Serves `/metrics` at an address that can be changed while it runs.
pub struct Exporter {
    shown: Arc<Shown>,
    current: Mutex<Option<Listening>>,
}

/// What a scrape is made of.
struct Shown {
    daemon: Arc<dyn Daemon>,
    refused: Tallies,
}

struct Listening {
    at: SocketAddr,
    _stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Listening {
    /// Ends it; its socket is closed when this returns.
    async fn close(mut self) {
        self.task.abort();
        // Ended by the abort, or before it: both are fine.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Exporter {
    /// Not listening yet.
    #[must_use]
    pub fn new(daemon: Arc<dyn Daemon>) -> Self {
        Self { shown: Arc::new(Shown { daemon, refused: Tallies::default() }), current: Mutex::new(None) }
    }

    /// Where the HTTP listeners count whom they turn away.
    #[must_use]
    pub fn refused(&self) -> &Tallies {
        &self.shown.refused
    }

    /// Listens where the settings say. Where that cannot be had it is said to the daemon, and tried again until it can
    /// or an operator has set something else.
    pub async fn take_up(self: Arc<Self>) {
        let daemon = Arc::clone(&self.shown.daemon);
        let Err(failure) = self.listen(daemon.settings().http).await else { return };
        tracing::warn!("metrics are off: {}", failure.message);
        daemon.metrics_wait(Some(failure.message));
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(RETRY_AFTER).await;
                let settled = self.current.lock().await.is_some();
                if settled || self.listen(daemon.settings().http).await.is_ok() {
                    return daemon.metrics_wait(None);
                }
            }
        });
    }

    /// Listens at `address` from now on, nowhere where absent.
    ///
    /// # Errors
    /// When the address cannot be had; then it goes on where it was.
    pub async fn listen(&self, address: Option<SocketAddr>) -> Result<(), Failure> {
        let mut current = self.current.lock().await;
        let before = current.as_ref().map(|listening| listening.at);
        if before == address {
            return Ok(());
        }
        let Some(address) = address else {
            if let Some(old) = current.take() {
                old.close().await;
            }
            return Ok(());
        };
        // The same port on another interface is taken as long as the old listener holds it.
        let same_port = before.is_some_and(|before| before.port() == address.port());
        if let Some(old) = current.take_if(|_| same_port) {
            old.close().await;
        }
        match bind(address) {
            Ok(listener) => *current = Some(self.spawn(address, listener)),
            Err(error) => {
                if let (true, Some(before)) = (same_port, before) {
                    *current = bind(before).ok().map(|listener| self.spawn(before, listener));
                }
                return Err(Failure::new(Code::Failed, format!("cannot listen on {}: {error}", show_address(address)))
                    .hint("nothing was changed. Choose another port: pln set http :PORT"));
            }
        }
        Ok(())
    }

    fn spawn(&self, at: SocketAddr, listener: TcpListener) -> Listening {
        let app = Router::new()
            .route("/", get(async || Html(FRONT)))
            .route("/metrics", get(scrape))
            .route("/ready", get(ready::answer))
            .fallback(async || Refused::Route.mark(StatusCode::NOT_FOUND.into_response()))
            .method_not_allowed_fallback(async || Refused::Method.mark(StatusCode::METHOD_NOT_ALLOWED.into_response()))
            .with_state(Arc::clone(&self.shown));
        let refused = Arc::clone(&self.shown.refused.metrics);
        let limits = http::Limits { spare_readers: Some(READING_SPARED), ..http::Limits::connections(CONNECTIONS_MAX) };
        let (stop, stopped) = watch::channel(false);
        Listening { at, _stop: stop, task: tokio::spawn(http::serve(listener, app, limits, refused, stopped)) }
    }
}

/// What a person finds who opens the port. The same for all: it says nothing of the node.
const FRONT: &str = "<!doctype html><html lang=en><meta charset=utf-8><title>pln</title><h1>pln</h1><ul>\
<li><a href=/metrics>/metrics</a>: numbers for Prometheus\
<li><a href=/ready>/ready</a>: 200 while this node is part of the mesh, otherwise 503\
</ul></html>\n";

async fn scrape(State(shown): State<Arc<Shown>>) -> Response {
    let text = families::text(&*shown.daemon, &shown.refused).and_then(|text| Ok(text + &families::process_text()?));
    match text {
        Ok(text) => ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => Failure::new(Code::Failed, format!("cannot encode the metrics: {error}")).into_response(),
    }
}

/// Listens on both families where the address is that of every interface; on IPv4 alone where there is no IPv6.
fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let every = address.ip().is_unspecified() && address.is_ipv6();
    match bind_one(address) {
        Err(_) if every => bind_one(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port())),
        bound => bound,
    }
}

fn bind_one(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

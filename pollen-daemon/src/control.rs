//! The control socket: how an operator's tools reach a running daemon. Owns the HTTP API under `/v1/` on a Unix socket
//! and its client; must not know how the daemon is wired (see [`crate::handle`]).
//! Invariant: the socket never carries root power, and no request or number of requests grows memory without bound.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::handle::Daemon;
use crate::http;
use crate::metrics::Exporter;

pub mod api;
pub mod call;
pub mod client;
pub mod duration;
pub mod invite;
mod members;
pub mod policy;
pub mod resolve;
pub mod seeds;
pub mod server;
pub mod settings;
pub mod size;
pub mod socket;
mod stream;
#[cfg(test)]
mod tests;

/// Connections served at a time beside those that call; more wait. An operator has a few, a dashboard one.
const COMMANDS_MAX: usize = 64;
/// What a connection is read into at once: an input of 1 MiB in sixteen reads.
const BUFFER_BYTES: usize = 64 * 1024;

/// The running control server. Dropping it stops it without a farewell.
pub struct Control {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    socket: socket::Made,
}

impl Control {
    /// Listens on the socket in the daemon's state directory, and for scrapes if the settings say so. A metrics
    /// address that cannot be had is told and tried again; it must not keep a node from starting.
    ///
    /// # Errors
    /// When the socket cannot be had; nothing is left running then.
    pub async fn start(daemon: Arc<dyn Daemon>) -> Result<Self, socket::BindError> {
        let dir = daemon.about().dir;
        let listener = socket::bind(&dir)?;
        let socket = listener.made();
        let exporter = Arc::new(Exporter::new(Arc::clone(&daemon)));
        Arc::clone(&exporter).take_up().await;
        let (stop, stopped) = watch::channel(false);
        let refused = Arc::clone(&exporter.refused().control);
        let router = server::Api::new(Arc::clone(&daemon), exporter).router();
        let app = call::Front::new(daemon, router);
        let connections = call::CALLERS_MAX + COMMANDS_MAX;
        let limits = http::Limits { buffer_bytes: BUFFER_BYTES, ..http::Limits::connections(connections) };
        let task = tokio::spawn(http::serve(listener, app, limits, refused, stopped));
        Ok(Self { stop, task, socket })
    }

    /// Stops accepting, lets answers under way finish within a second, and removes the socket.
    pub async fn stop(mut self) {
        // The server may have ended by itself; then there is nobody to tell.
        let _ = self.stop.send(true);
        let _ = (&mut self.task).await;
        self.socket.remove();
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
    }
}

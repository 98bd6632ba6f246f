//! What the control socket and the metrics need from a running daemon, as one trait that the daemon implements.
//! Owns the shapes that cross this seam; must not know how the daemon is wired, nor HTTP.
//! Invariant: every method is cheap and bounded; a request that waits does so in the future it returns.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use pollen_common::identity::NodeKey;
use pollen_common::node::{Command, Refusal, Reply};
use pollen_common::time::UnixMs;
use pollen_common::views::{Name, Policy, SeedVersion, View};
use tokio::runtime::Handle;
use tokio::sync::{broadcast, watch};

use crate::clock::unix_now;
use crate::config::LiveSettings;
use crate::events::EventRecord;
use crate::services::{Connect, Disconnect, Listener, Serve, ServiceRef};
use crate::status::{About, HeldModule, Numbers, Reading, Troubles};
use crate::workload::{CallAnswer, CallFailure, CallRequest, SeedRef};

#[cfg(test)]
pub(crate) mod fake;
mod seeds;
pub use seeds::{SeedProgress, SeedRequest, SeedStage, Seeded, Unseeded};

/// The answer of a request that may wait.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, Refusal>>;

/// A running daemon, as its operator's tools see it.
pub trait Daemon: Send + Sync + 'static {
    /// The wall clock, in which dates are counted.
    fn now(&self) -> UnixMs {
        unix_now()
    }
    /// Facts that do not change while it runs.
    fn about(&self) -> About;
    /// How far it is.
    fn phase(&self) -> Phase;
    /// The node's present reading of the cluster.
    fn view(&self) -> Arc<View>;
    /// The same, to be told of changes.
    fn views(&self) -> watch::Receiver<Arc<View>>;
    /// Counters and gauges of every part, for `status` and `/metrics`.
    fn numbers(&self) -> Numbers;
    /// What its parts say is wrong with them.
    fn troubles(&self) -> Troubles;
    /// Why `/metrics` is not served where the settings say, if so: the control server says it, and tries again.
    fn metrics_wait(&self, why: Option<String>);
    /// A request to the node: invites and statements signed elsewhere.
    fn command(&self, command: Command) -> Answer<'_, Reply>;
    /// The rules that decided what the view says of `subject`, a sentence each.
    fn why(&self, subject: Subject) -> Answer<'_, Vec<String>>;

    /// Publishes a local port. Idempotent; kept across restarts once answered.
    fn serve(&self, request: Serve) -> Answer<'_, Serving>;
    /// Stops publishing; `NotFound` if this node does not.
    fn unserve(&self, request: ServiceRef) -> Answer<'_, ()>;
    /// Opens local listeners to a service of the mesh, one for each protocol that it speaks. Idempotent; kept across
    /// restarts once answered.
    fn connect(&self, request: Connect) -> Answer<'_, Vec<Listener>>;
    /// Closes local listeners; answers with those it closed, `NotFound` if there was none.
    fn disconnect(&self, request: Disconnect) -> Answer<'_, Vec<Listener>>;
    /// The local listeners there are, in the order of their ports.
    fn listeners(&self) -> Vec<Listener>;

    /// Publishes a seed, or a new version of one; answered once it is ready as widely as it was asked for, or it is known
    /// why not. Carried through whether or not anyone still reads `progress`.
    fn seed(&self, request: SeedRequest, progress: watch::Sender<SeedProgress>) -> Answer<'_, Seeded>;
    /// Stops publishing a seed, and waits until no node serves it, or it is known which may; `NotFound` if this node
    /// does not publish it.
    fn unseed(&self, name: Name) -> Answer<'_, Unseeded>;
    /// Calls a function of a seed, wherever in the mesh it runs. Given up when the future is dropped.
    fn call(&self, request: CallRequest) -> BoxFuture<'_, Result<CallAnswer, CallFailure>>;
    /// The runtime on which a connection that calls `seed` is served best, if it is not the control socket's own.
    fn seat_of_callers(&self, seed: &SeedRef) -> Option<Handle> {
        let _ = seed;
        None
    }
    /// What is known of a version's module; none if it is not on this node's disk.
    fn held(&self, version: SeedVersion) -> Answer<'_, Option<HeldModule>>;

    /// The timeline kept, oldest first, and what follows it without a gap.
    fn events(&self) -> (Vec<EventRecord>, broadcast::Receiver<EventRecord>);
    /// At most `lines` of the newest log lines, oldest first, and what follows them without a gap.
    fn logs(&self, lines: usize) -> (Vec<String>, broadcast::Receiver<String>);

    /// The settings in force.
    fn settings(&self) -> LiveSettings;
    /// Makes settings durable and puts the log level in force. The control server itself moves the metrics listener,
    /// before it calls this.
    fn apply(&self, settings: LiveSettings) -> Answer<'_, ()>;

    /// Starts an orderly end: streams drain for a bounded time, neighbours are told goodbye. Returns at once.
    fn shutdown(&self);
}

/// What `of` makes of one reading of `daemon`.
pub fn read<T>(daemon: &dyn Daemon, of: impl FnOnce(Reading<'_>) -> T) -> T {
    let (about, view, numbers, listeners) = (daemon.about(), daemon.view(), daemon.numbers(), daemon.listeners());
    let troubles = daemon.troubles();
    of(Reading {
        about: &about,
        view: &view,
        numbers: &numbers,
        listeners: &listeners,
        troubles: &troubles,
        now: daemon.now(),
    })
}

/// What is published now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serving {
    /// Who may reach it.
    pub policy: Policy,
    /// What its publisher should know of it, a sentence each.
    pub warnings: Vec<String>,
}

/// The parts of a daemon's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It does not serve yet all that it served before.
    Starting,
    Up,
    /// It was asked to end: others take over from it.
    Leaving,
}

/// What `why` asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    Node(NodeKey),
    Service(Name),
    Seed(Name),
}

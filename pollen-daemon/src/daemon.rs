//! `pln up`: puts the parts of a node together, in order, and takes them apart again. Owns the order and nothing else.
//! Invariants: nothing runs before the state directory is ours; the root's keys are never read here except to found a
//! cluster where there is none; a stop lets streams finish for a bounded time and says goodbye.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pollen_common::identity::{SecretKey, Strict};
use pollen_common::node::{Node, NodeConfig, RestoreError};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::config::{self, OptionError, Settings, UpOptions};
use crate::content::Content;
use crate::control::Control;
use crate::control::socket::BindError;
use crate::driver::{self, Driver, DriverError, DriverHandle, Parts};
use crate::enroll::{self, EnrollError};
use crate::events::Events;
use crate::handle::Phase;
use crate::keys::{self, KeyError};
use crate::logs::Logs;
use crate::services::{Services, ServicesConfig};
use crate::store::writer::Writer;
use crate::store::{self, Change, OpenError, Store, StoreError};
use crate::systemd::notify::Notify;
use crate::transport::{Mesh, MeshConfig};
use crate::workload::calls::Calls;
use crate::workload::hosted::Hosted;
use crate::workload::machine::Machine;
use crate::workload::replicas::{REPORTS_WAITING_MAX, Replicas};

mod addresses;
mod announce;
mod arriving;
mod conditions;
mod held;
mod leaving;
mod memory;
mod numbers;
mod running;
mod seeding;
mod streams;
mod unseeding;
mod way_back;

use leaving::Leaving;
use running::Running;
use streams::Streams;

/// Events of the mesh that wait for the driver; past it the links themselves are held up.
const MESH_EVENTS_WAITING_MAX: usize = 256;

/// The node did not start, or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("there is no node key in {0}, though it holds a node's state: was `keys/` moved away?")]
    KeyMissing(String),
    #[error(transparent)]
    Option(#[from] OptionError),
    #[error(
        "there is a node's key in {0}, but no membership: `pln join TOKEN` enters a cluster, `pln init` founds one"
    )]
    NoMembership(String),
    #[error("founding a cluster of this node alone failed: {0}")]
    Found(#[source] Box<EnrollError>),
    #[error(transparent)]
    Member(Box<EnrollError>),
    #[error("the node's state does not make a node: {0}")]
    Restore(#[from] RestoreError),
    #[error("UDP port {port} cannot be used: {source}; choose another with --port")]
    Mesh { port: u16, source: io::Error },
    #[error(transparent)]
    Control(#[from] BindError),
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error("{what} failed: {source}")]
    System { what: &'static str, source: io::Error },
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::System { what, source }
}

/// What is ready before anything runs.
struct Prepared {
    store: Store,
    settings: Settings,
    services: ServicesConfig,
    /// Nothing is configured yet: the node is new, or came back without its database.
    bare: bool,
    logs: Logs,
    secret: SecretKey,
    node: Node,
    clock: Clock,
}

/// Runs the node of a state directory until it is asked to stop. A directory without a membership becomes that of a
/// new cluster of one node.
///
/// # Errors
/// [`RunError`]; the state is sound whatever happens.
pub fn run(dir: &Path, options: UpOptions) -> Result<(), RunError> {
    memory::set_up();
    let prepared = prepare(dir, options)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system("the runtime"))?;
    runtime.block_on(up(prepared))
}

/// Keeps options for the next start, without starting.
///
/// # Errors
/// [`RunError`], among others where a daemon runs on the directory.
pub fn remember(dir: &Path, options: UpOptions) -> Result<(), RunError> {
    remembered(&store::open_or_create(dir)?, options).map(drop)
}

/// The settings with `options` over them, kept for the next start.
fn remembered(store: &Store, options: UpOptions) -> Result<Settings, RunError> {
    let stored: Settings = store.config(config::SETTINGS_KEY)?.unwrap_or_default();
    let settings = stored.clone().overridden(options)?;
    if settings != stored {
        store.apply(&[Change::set(config::SETTINGS_KEY, &settings)])?;
    }
    Ok(settings)
}

fn prepare(dir: &Path, options: UpOptions) -> Result<Prepared, RunError> {
    let store = enroll::way_back::open_member(dir).map_err(of_member)?;
    let settings = remembered(&store, options)?;
    let logs = Logs::start(store.dir(), settings.log_level.as_deref()).map_err(system("opening the log"))?;
    if !enroll::is_member(&store)? {
        // A key without a membership is one whose `join` came to nothing, or a member's whose files are lost.
        let never = enroll::never_a_member(store.dir()).map_err(system("looking for a membership"))?;
        if never && keys::load_node(store.dir())?.is_some() {
            return Err(RunError::NoMembership(store.dir().display().to_string()));
        }
        let founded =
            enroll::found_in(&store, &std::collections::BTreeMap::new()).map_err(|e| RunError::Found(e.into()))?;
        tracing::info!(cluster = %founded.cluster, "no membership yet: founded a cluster of this node alone");
    }
    let secret = keys::load_node(store.dir())?;
    let secret = secret.ok_or_else(|| RunError::KeyMissing(store.dir().display().to_string()))?;
    let clock = Clock::default();
    let node = restore(&store, &secret, &clock, settings.stream_patience())?;
    enroll::check_cluster(store.dir(), &node).map_err(of_member)?;
    enroll::note_cluster(store.dir(), &node).map_err(system("writing the cluster file"))?;
    let configured = store.config(config::SERVICES_KEY)?;
    let bare = configured.is_none();
    let mut services = configured.unwrap_or_default();
    running::adopt(&mut services, &node.view());
    Ok(Prepared { bare, store, settings, services, logs, secret, node, clock })
}

fn of_member(error: EnrollError) -> RunError {
    match error {
        EnrollError::Open(error) => error.into(),
        EnrollError::Store(error) => error.into(),
        EnrollError::Key(error) => error.into(),
        error => RunError::Member(Box::new(error)),
    }
}

fn restore(store: &Store, secret: &SecretKey, clock: &Clock, patience: Duration) -> Result<Node, RunError> {
    let mut entropy = [0; 32];
    let seeded = getrandom::fill(&mut entropy).map_err(|error| io::Error::other(error.to_string()));
    seeded.map_err(system("reading entropy"))?;
    let config = NodeConfig { patience, ..NodeConfig::new(secret.clone(), entropy, Arc::new(Strict)) };
    Ok(Node::restore(config, store.node_records()?, clock.now())?)
}

/// A node whose parts all run.
struct Up {
    driver: JoinHandle<Result<(), DriverError>>,
    handle: DriverHandle,
    mesh: Mesh,
    services: Services,
    content: Content,
    calls: Calls,
    replicas: Replicas,
    writer: Writer,
    writer_thread: std::thread::JoinHandle<()>,
    running: Arc<Running>,
    control: Control,
    port: u16,
}

/// Starts every part and joins them.
async fn start(prepared: Prepared) -> Result<Up, RunError> {
    let Prepared { store, settings, services: services_config, logs, secret, node, clock, .. } = prepared;
    let dir = store.dir().to_owned();

    let (view, views) = driver::views_of(&node);
    let events = Events::default();
    let services = Services::new(views.clone());
    services.tell(events.clone());
    let content = Content::open(&dir, views.clone()).map_err(system("opening the content store"))?;
    let machine = Machine::of_node(&dir, &secret);
    machine.give(settings.seed_memory_mib);
    let calls = Calls::new(views.clone(), services.clone(), machine.limits());
    let (happens, mesh_events) = mpsc::channel(MESH_EVENTS_WAITING_MAX);
    let port = settings.port.unwrap_or(config::PORT_DEFAULT);
    let streams = Streams { services: services.clone(), content: content.clone(), calls: calls.clone(), view: views };
    let mesh = Mesh::start(MeshConfig::new(secret, port), happens, Arc::new(streams));
    let mesh = mesh.map_err(|source| RunError::Mesh { port, source })?;
    mesh.set_relay(settings.relays());
    mesh.datapath().choose(settings.datapath());
    services.start(Arc::new(mesh.clone()), mesh.runtime().clone(), &services_config);
    content.start(mesh.clone());
    let hosted = Hosted::default();
    calls.start(Arc::new(mesh.clone()), Arc::new(hosted.clone()));
    let (reports, reported) = mpsc::channel(REPORTS_WAITING_MAX);
    let replicas = Replicas::new(content.clone(), machine.clone(), hosted.clone(), reports);

    let (written, acks) = mpsc::unbounded_channel();
    let (writer, writer_thread) = Writer::start(store, written);
    let parts = Parts {
        node,
        clock,
        links: mesh.clone(),
        hosting: Box::new(replicas.clone()),
        reports: reported,
        writer: writer.clone(),
        written: acks,
        events: events.clone(),
    };
    let (driver, handle) = Driver::new(parts, view);
    let driver = tokio::spawn(driver.run(mesh_events));

    let port = mesh.local_addr().map_or(port, |bound| bound.port());
    let running = Running::new(running::Wiring {
        dir,
        port,
        settings,
        driver: handle.clone(),
        mesh: mesh.clone(),
        services: services.clone(),
        content: content.clone(),
        machine,
        hosted,
        replicas: replicas.clone(),
        calls: calls.clone(),
        events,
        logs,
        writer: writer.clone(),
    });
    let running = Arc::new(running);
    let control = Control::start(running.clone()).await?;
    Ok(Up { driver, handle, mesh, services, content, calls, replicas, writer, writer_thread, running, control, port })
}

async fn up(prepared: Prepared) -> Result<(), RunError> {
    let mut stop_signals = StopSignals::listen().map_err(system("listening for signals"))?;
    let bare = prepared.bare;
    let Up {
        mut driver,
        handle,
        mesh,
        services,
        content,
        calls,
        replicas,
        writer,
        writer_thread,
        running,
        control,
        port,
    } = start(prepared).await?;
    let announcing = tokio::spawn(announce::keep_announced(running.clone()));
    if bare {
        let running = running.clone();
        tokio::spawn(async move { running.serve_what_is_claimed().await });
    }
    let way_back = tokio::spawn(way_back::keep(running.clone()));
    tokio::spawn(replicas.keep_holding_known());
    tokio::spawn(content.clone().keep_tidy());
    tokio::spawn(memory::keep_trimmed());
    let watching = tokio::spawn(conditions::keep_told(running.clone()));
    let notify = Arc::new(Notify::of_process());
    let (views, ready, arrived) = (handle.views(), notify.clone(), running.clone());
    let arriving = tokio::spawn(async move {
        arriving::hosts_again(views, arriving::HOSTING_AGAIN_MAX).await;
        arrived.enters(Phase::Up);
        ready.ready();
    });
    tracing::info!(port, node = %handle.view().me, "up");

    let failed = tokio::select! {
        ended = &mut driver => Some(ended),
        () = running.stop_requested() => None,
        () = stop_signals.next() => None,
    };
    announcing.abort();
    arriving.abort();
    way_back.abort();
    watching.abort();
    running.enters(Phase::Leaving);
    notify.stopping();
    let ended = match failed {
        Some(ended) => ended,
        None => {
            let leaving =
                Leaving { driver: &handle, mesh: &mesh, services: &services, calls: &calls, content: &content };
            leaving.leave(&mut stop_signals).await;
            handle.stop().await;
            driver.await
        }
    };
    mesh.shutdown("the node is stopping").await;
    writer.stop();
    // A panic there has been reported by its hook.
    let _ = writer_thread.join();
    control.stop().await;
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    tracing::info!("stopped");
    Ok(())
}

/// SIGTERM, SIGINT, and SIGHUP: a terminal that was closed takes its node with it, which says goodbye too.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl StopSignals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

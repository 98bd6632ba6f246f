//! Services: local ports of this node that others reach, and local listeners to those of others. Owns what is served,
//! what is listened for and every stream and session in between; must not know how connections come about (see
//! [`Reach`]), nor how names are published.
//! Invariants: only a node that stands reaches a port, and only a served one; all work runs on the mesh's runtime, and
//! no lock is held while it waits.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use pollen_common::identity::NodeKey;
use pollen_common::node::{Refusal, RefusalKind};
use pollen_common::views::{Name, Policy, Protocol, View};
use pollen_common::wire::streams::service::Target;
use quinn::{Connection, RecvStream, SendStream};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::events::Events;
use crate::standing::Standing;

mod bounds;
pub(crate) mod choose;
mod circle;
mod clients;
mod config;
mod credit;
mod dial;
mod exchange;
mod exports;
mod idle;
mod imports;
mod inboxes;
mod listening;
mod live;
mod mesh;
mod numbers;
mod provide;
mod pump;
mod queue;
mod refusal;
mod request;
mod resolve;
mod server;
mod session;
mod tally;
#[cfg(test)]
pub(crate) mod tests;

pub use config::{ConfigError, ExportConfig, ImportConfig, ProtocolConfig, ServicesConfig, policy_config};
pub use dial::{Reach, Unreachable};
pub use exchange::ExchangeError;
pub use exports::{EXPORTS_MAX, Export, TooManyExports};
pub use imports::{IMPORTS_MAX, Import};
pub use numbers::ServiceNumbers;
pub use refusal::ConnectError;
pub use request::{Connect, Disconnect, Listener, Serve, ServiceRef};
pub use resolve::{COMING_MAX, ResolveError, may_come, node as resolve_node};
pub use server::{NoServer, Server};
pub use tally::Carried;
#[cfg(test)]
pub(crate) use tally::{drop_labels, labels as refusal_labels};

use exports::{Exported, Exports};
use idle::IdleLimits;
use imports::{Imported, Imports, Sockets};
use tally::Tally;

/// Callers unknown so far that may wait for their admission to arrive, all together.
const STRANGERS_MAX: usize = 256;

/// The services of a node. A handle: clones share everything, and any thread may use them.
#[derive(Clone)]
pub struct Services(Arc<Shared>);

/// What all clones and tasks share.
struct Shared {
    view: watch::Receiver<Arc<View>>,
    mesh: OnceLock<MeshSide>,
    exports: Mutex<Exports>,
    imports: Mutex<Imports>,
    memory: Mutex<dial::Memory>,
    live: Arc<live::Live>,
    passed_on: circle::PassedOn,
    passed_on_udp: Arc<circle::PassedOnUdp>,
    bound: listening::Bound,
    inboxes: Arc<inboxes::Inboxes>,
    credit: credit::Ledgers,
    refusals: tally::Refusals,
    turned_away: bounds::TurnedAway,
    /// What removed exports and imports carried, and still carry until their last stream ends.
    retired: Mutex<Vec<Arc<Tally>>>,
    retired_bytes: [AtomicU64; 2],
    opened_streams: AtomicU64,
    opened_sessions: AtomicU64,
    standing: Standing,
    draining: AtomicBool,
    idle: IdleLimits,
}

/// A listener that there is, or one that could be bound.
enum Ready {
    There(Arc<Imported>),
    New(Import, Sockets),
}

struct MeshSide {
    reach: Arc<dyn Reach>,
    runtime: Handle,
}

/// An export or import, with what it has carried since the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCarried {
    /// The service's name, or its port.
    pub service: String,
    pub protocol: Protocol,
    /// Whether this node provides it, rather than listens for it.
    pub export: bool,
    pub carried: Carried,
}

impl Services {
    /// Services that read `view` and serve nothing yet. Streams may come at once; listeners wait for
    /// [`start`](Self::start).
    #[must_use]
    pub fn new(view: watch::Receiver<Arc<View>>) -> Self {
        Self::with_idle(view, IdleLimits::USUAL)
    }

    fn with_idle(view: watch::Receiver<Arc<View>>, idle: IdleLimits) -> Self {
        let standing = Standing::new(view.clone(), STRANGERS_MAX);
        Self(Arc::new(Shared {
            view,
            mesh: OnceLock::new(),
            exports: Mutex::default(),
            imports: Mutex::default(),
            memory: Mutex::default(),
            live: live::Live::new(),
            passed_on: circle::PassedOn::default(),
            passed_on_udp: Arc::default(),
            bound: listening::Bound::default(),
            inboxes: Arc::default(),
            credit: credit::Ledgers::default(),
            refusals: tally::Refusals::default(),
            turned_away: bounds::TurnedAway::default(),
            retired: Mutex::default(),
            retired_bytes: Default::default(),
            opened_streams: AtomicU64::new(0),
            opened_sessions: AtomicU64::new(0),
            standing,
            draining: AtomicBool::new(false),
            idle,
        }))
    }

    /// Takes up the work on `runtime`, the mesh's own, with what `config` says was served and listened for. Entries
    /// that mean nothing to this version are left out, each with a warning. To be called once.
    pub fn start(&self, reach: Arc<dyn Reach>, runtime: Handle, config: &ServicesConfig) {
        let side = MeshSide { reach, runtime: runtime.clone() };
        assert!(self.0.mesh.set(side).is_ok(), "services are started once");
        live::raise_file_limit();
        for entry in &config.exports {
            let added = Export::try_from(entry)
                .map_err(|error| error.to_string())
                .and_then(|export| self.0.exports().insert(export).map_err(|error| error.to_string()));
            if let Err(error) = added {
                tracing::warn!(error, "left out an export of the configuration");
            }
        }
        for entry in &config.imports {
            match Import::try_from(entry) {
                Ok(import) if !self.0.imports().is_full() => drop(self.listen(&runtime, import, None)),
                Ok(_) => tracing::warn!("left out a listener of the configuration: too many"),
                Err(error) => tracing::warn!(%error, "left out a listener of the configuration"),
            }
        }
        runtime.spawn(bounds::watch(Arc::clone(&self.0)));
    }

    /// What is served and listened for, to be stored and given to the next [`start`](Self::start).
    #[must_use]
    pub fn config(&self) -> ServicesConfig {
        ServicesConfig {
            exports: self.0.exports().iter().map(|exported| (&exported.export).into()).collect(),
            imports: self.0.imports().iter().map(|imported| (&imported.import).into()).collect(),
        }
    }

    /// Lets others reach a local port. Idempotent; a name that is served already moves, and its streams are cut. So are
    /// those of callers that a new policy leaves out.
    ///
    /// # Errors
    /// At [`EXPORTS_MAX`]; nothing was changed.
    pub fn serve(&self, request: Serve) -> Result<(), TooManyExports> {
        let policy = self.policy_of(&request);
        let Serve { port, name, protocol, shared, server, policy: _ } = request;
        let displaced = self.0.exports().insert(Export { name, protocol, port, shared, server, policy })?;
        if let Some(displaced) = displaced {
            self.cut_export(&displaced);
        }
        self.0.cut_unwelcome();
        Ok(())
    }

    /// Who may reach what `request` serves: as it says, else as it was.
    #[must_use]
    pub fn policy_of(&self, request: &Serve) -> Policy {
        let Serve { name, protocol, port, policy, .. } = request;
        policy.clone().or_else(|| self.0.exports().policy_of(name.as_ref(), *protocol, *port)).unwrap_or_default()
    }

    /// Where it is told who was turned away. To be called once.
    pub fn tell(&self, events: Events) {
        self.0.turned_away.tell(events);
    }

    /// What a publisher should know of what it serves: that its server is not there, or not yet.
    #[must_use]
    pub fn unheard(&self, protocol: Protocol, port: u16) -> Option<String> {
        let word = match protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        if self.0.imports().on_loopback(protocol, port).is_some() {
            return Some(format!(
                "{word} port {port} is a listener of this node's own: what it connects to is served on, under this node's name"
            ));
        }
        // Where the kernel does not tell, nothing is said.
        listening::on_this_machine(protocol).is_ok_and(|ports| !ports.contains(&port)).then(|| {
            format!(
                "nothing listens on {word} port {port} of this machine yet: callers are refused until something does"
            )
        })
    }

    /// What is served as `service`: one name, or everything on a port.
    #[must_use]
    pub fn served(&self, service: &ServiceRef) -> Vec<Export> {
        self.0.exports().matching(service)
    }

    /// Everything that is served.
    #[must_use]
    pub fn exports(&self) -> Vec<Export> {
        self.0.exports().iter().map(|exported| exported.export.clone()).collect()
    }

    /// What is served on ports on which nobody of this machine listens; nothing where the kernel does not tell. Blocks for
    /// as long as the kernel takes to list its listeners.
    #[must_use]
    pub fn unanswered(&self) -> Vec<Export> {
        let mut exports = self.exports();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            if !exports.iter().any(|export| export.protocol == protocol) {
                continue;
            }
            let listened = listening::on_this_machine(protocol);
            let silent = |export: &Export| listened.as_ref().is_ok_and(|ports| !ports.contains(&export.port));
            // What is elsewhere is not the kernel's to know.
            exports.retain(|export| export.protocol != protocol || export.server == Server::Here && silent(export));
        }
        exports
    }

    /// Withdraws `service` and cuts its streams. Returns what was withdrawn; nothing if it was not served.
    pub fn unserve(&self, service: &ServiceRef) -> Vec<Export> {
        let gone = self.0.exports().matching(service);
        self.withdraw(gone)
    }

    /// The same for what a name stands for in one protocol.
    pub fn unserve_in(&self, name: &Name, protocol: Protocol) -> Vec<Export> {
        let found = self.0.exports().find(&Target::Name(name.clone()), protocol);
        self.withdraw(found.map(|exported| exported.export).into_iter().collect())
    }

    fn withdraw(&self, gone: Vec<Export>) -> Vec<Export> {
        for export in &gone {
            let removed = self.0.exports().remove(export);
            self.cut_export(export);
            if let Some(tally) = removed {
                self.0.retire(tally);
            }
        }
        gone
    }

    /// Waits until what a `connect` asks for is known, if news of it can come, and at most [`COMING_MAX`].
    pub async fn coming(&self, request: &Connect) {
        let is_here = |view: &Arc<View>| {
            let found = resolve::service(view, &request.service, request.provider.as_deref());
            let unknown = found.is_err_and(|error| Refusal::from(error).kind == RefusalKind::NotFound);
            !unknown || !may_come(view)
        };
        // What is not known by then is refused as unknown.
        let _ = tokio::time::timeout(COMING_MAX, self.0.view.clone().wait_for(is_here)).await;
    }

    /// Opens local listeners to a service of the mesh, one for each protocol that it speaks. Idempotent: the same service
    /// and provider answer with the listeners there are, unless another local port is asked for.
    ///
    /// # Errors
    /// When no such service is known, or a local port cannot be bound; nothing was changed.
    pub fn connect(&self, request: &Connect) -> Result<Vec<Listener>, ConnectError> {
        let runtime = &self.0.mesh.get().ok_or(ConnectError::NotStarted)?.runtime;
        let view = self.0.view.borrow().clone();
        let found = resolve::service(&view, &request.service, request.provider.as_deref())?;
        // Bound all before any is kept, so that what fails leaves nothing behind.
        let mut ready = Vec::new();
        for found in found {
            let there = self
                .0
                .imports()
                .find(&found.target, found.protocol, found.provider, request.bind, request.local_port)
                .cloned();
            ready.push(match there {
                Some(there) => Ready::There(there),
                None => self.bind(request, found, view.me)?,
            });
        }
        let new = ready.iter().filter(|ready| matches!(ready, Ready::New(..))).count();
        if self.0.imports().iter().count() + new > IMPORTS_MAX {
            return Err(ConnectError::TooMany);
        }
        let listeners = ready.into_iter().map(|ready| match ready {
            Ready::There(there) => there.listener(),
            Ready::New(import, sockets) => self.listen(runtime, import, Some(sockets)),
        });
        Ok(listeners.collect())
    }

    fn bind(&self, request: &Connect, found: resolve::Resolved, me: NodeKey) -> Result<Ready, ConnectError> {
        let port = request.local_port.unwrap_or(found.port);
        if self.is_own(&found, request.bind, port, me) {
            return Err(ConnectError::Itself { port, service: found.target });
        }
        let sockets = Sockets::bind(found.protocol, request.bind, port)
            .map_err(|error| self.not_bound(found.protocol, port, error))?;
        let import = Import {
            target: found.target,
            provider: found.provider,
            protocol: found.protocol,
            bind: request.bind,
            local_port: sockets.port(),
        };
        Ok(Ready::New(import, sockets))
    }

    /// Whether a listener would stand where this node has the very service that it is for.
    fn is_own(&self, found: &resolve::Resolved, bind: Option<IpAddr>, port: u16, me: NodeKey) -> bool {
        let exports = self.0.exports();
        found.provider.is_none_or(|provider| provider == me)
            && imports::covers_loopback(bind)
            && exports.find(&found.target, found.protocol).is_some_and(|own| own.export.port == port)
    }

    fn not_bound(&self, protocol: Protocol, port: u16, error: std::io::Error) -> ConnectError {
        if error.kind() != std::io::ErrorKind::AddrInUse {
            return ConnectError::Bind { port, error };
        }
        let imports = self.0.imports();
        let ours = imports.iter().find(|i| i.import.protocol == protocol && i.import.local_port == port);
        match ours {
            Some(ours) => ConnectError::OursAlready { port, service: ours.import.target.clone() },
            None => ConnectError::Taken { port },
        }
    }

    fn listen(&self, runtime: &Handle, import: Import, sockets: Option<Sockets>) -> Listener {
        let imported = Imported::new(import);
        if let Some(sockets) = &sockets {
            imported.listening_on(sockets);
        }
        let listener = imported.listener();
        let (stop, stopped) = watch::channel(());
        self.0.imports().push(Arc::clone(&imported), stop);
        runtime.spawn(imports::run(Arc::clone(&self.0), imported, sockets, stopped));
        listener
    }

    /// Closes listeners: those to a service's name, or to a port of a provider, or the one on a local port. Open
    /// streams finish. Returns those that were closed.
    ///
    /// # Errors
    /// When the provider named is not known, or ambiguous; nothing was changed.
    pub fn disconnect(&self, request: &Disconnect) -> Result<Vec<Listener>, ResolveError> {
        let view = self.0.view.borrow().clone();
        let provider = request.provider.as_deref().map(|text| resolve::node(&view, text)).transpose()?;
        let condemned = |import: &Import| {
            let named = match &request.service {
                ServiceRef::Name(name) => import.target == Target::Name(name.clone()),
                // With a provider, the port may as well be the one that `connect` was given.
                ServiceRef::Port(port) => {
                    import.local_port == *port || provider.is_some() && import.target == Target::Port(*port)
                }
            };
            named && provider.is_none_or(|provider| import.provider == Some(provider))
        };
        let gone = self.0.imports().remove(condemned);
        for imported in &gone {
            self.0.retire(Arc::clone(&imported.tally));
        }
        Ok(gone.iter().map(|imported| imported.listener()).collect())
    }

    /// The local listeners, in the order of their ports.
    #[must_use]
    pub fn listeners(&self) -> Vec<Listener> {
        let mut all: Vec<_> = self.0.imports().iter().map(|i| (i.import.local_port, i.listener())).collect();
        all.sort_by_key(|(port, _)| *port);
        all.into_iter().map(|(_, listener)| listener).collect()
    }

    /// Who may reach a named service here and who was turned away, and how this node's listeners to it placed their last
    /// connections, a sentence each.
    #[must_use]
    pub fn why(&self, service: &Name) -> Vec<String> {
        let target = Target::Name(service.clone());
        let placed: Vec<_> = {
            let imports = self.0.imports();
            imports.iter().filter(|imported| imported.import.target == target).flat_map(|i| i.why()).collect()
        };
        self.0.bounds_of(service).into_iter().chain(placed).collect()
    }

    /// Counters and gauges over all services.
    #[must_use]
    pub fn numbers(&self) -> ServiceNumbers {
        let (streams_open, sessions_open) = self.0.live.counts();
        let mut bytes = self.0.retired_bytes();
        for carried in self.carried() {
            bytes[0] += carried.carried.bytes_in;
            bytes[1] += carried.carried.bytes_out;
        }
        ServiceNumbers {
            streams_open: streams_open as u64,
            streams: self.0.opened_streams.load(Ordering::Relaxed),
            sessions_open: sessions_open as u64,
            sessions: self.0.opened_sessions.load(Ordering::Relaxed),
            bytes_in: bytes[0],
            bytes_out: bytes[1],
            dropped: self.drops().into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect(),
            refused: self.refusals().into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect(),
        }
    }

    /// Each export and import with what it has carried.
    #[must_use]
    pub fn carried(&self) -> Vec<ServiceCarried> {
        let exports = self
            .0
            .exports()
            .iter()
            .map(|exported| ServiceCarried {
                service: exported.export.label(),
                protocol: exported.export.protocol,
                export: true,
                carried: exported.tally.read(),
            })
            .collect::<Vec<_>>();
        let imports = self
            .0
            .imports()
            .iter()
            .map(|imported| ServiceCarried {
                service: imported.import.target.to_string(),
                protocol: imported.import.protocol,
                export: false,
                carried: imported.tally.read(),
            })
            .collect::<Vec<_>>();
        exports.into_iter().chain(imports).collect()
    }

    /// UDP payloads dropped and sessions given up for newer ones, by reason.
    #[must_use]
    pub fn drops(&self) -> BTreeMap<&'static str, u64> {
        let mut drops = self.0.inboxes.drops().read();
        let given_up = self.0.live.given_up();
        if given_up > 0 {
            *drops.entry(tally::Dropped::SessionGivenUp.label()).or_default() += given_up;
        }
        drops
    }

    /// Callers turned away and datagrams of no session, by reason.
    #[must_use]
    pub fn refusals(&self) -> BTreeMap<&'static str, u64> {
        let mut refusals = self.0.refusals.read();
        let astray = self.0.inboxes.astray();
        if astray > 0 {
            refusals.insert(tally::DATAGRAM_OF_NO_SESSION, astray);
        }
        refusals
    }

    /// Accepts nothing new, from clients or peers, and lets open TCP streams finish for at most `limit`; what is left
    /// then is reset. UDP sessions, which have no end of their own, are not waited for.
    pub async fn drain(&self, limit: Duration) {
        self.0.draining.store(true, Ordering::Relaxed);
        self.0.imports().close();
        let _ = tokio::time::timeout(limit, self.0.live.streams_done()).await;
        self.0.live.cut(|_| true);
    }

    /// A stream that `peer` opened, behind its kind byte. To be called on the mesh's runtime; returns at once.
    pub fn take_stream(
        &self,
        peer: NodeKey,
        connection: &Connection,
        protocol: Protocol,
        send: SendStream,
        recv: RecvStream,
    ) {
        let incoming = provide::Incoming { peer, connection: connection.clone(), protocol, send, recv };
        drop(tokio::spawn(provide::serve(Arc::clone(&self.0), incoming)));
    }

    /// A datagram of services, behind its first byte.
    pub fn take_datagram(&self, connection: &Connection, datagram: &Bytes) {
        self.0.inboxes.deliver(connection.stable_id(), datagram);
    }

    /// Whether `peer` is a member at present.
    #[must_use]
    pub fn stands(&self, peer: &NodeKey) -> bool {
        self.0.view.borrow().nodes.contains_key(peer)
    }

    fn cut_export(&self, export: &Export) {
        self.0.live.cut(|owner| owner.export.as_ref().is_some_and(|reached| reached.is_same(export)));
    }
}

impl Shared {
    fn exports(&self) -> MutexGuard<'_, Exports> {
        self.exports.lock().expect("nothing panics while it holds this lock")
    }

    fn imports(&self) -> MutexGuard<'_, Imports> {
        self.imports.lock().expect("nothing panics while it holds this lock")
    }

    fn memory(&self) -> MutexGuard<'_, dial::Memory> {
        self.memory.lock().expect("nothing panics while it holds this lock")
    }

    fn count_opened(&self, protocol: Protocol) {
        match protocol {
            Protocol::Tcp => self.opened_streams.fetch_add(1, Ordering::Relaxed),
            Protocol::Udp => self.opened_sessions.fetch_add(1, Ordering::Relaxed),
        };
    }

    /// Keeps the bytes of a removed export or import in the totals, which must never go down.
    fn retire(&self, tally: Arc<Tally>) {
        self.retired.lock().expect("nothing panics while it holds this lock").push(tally);
        // Folds those whose streams have all ended, so that serving and withdrawing forever costs nothing.
        self.retired_bytes();
    }

    /// Bytes in and out of all that was removed.
    fn retired_bytes(&self) -> [u64; 2] {
        let mut retired = self.retired.lock().expect("nothing panics while it holds this lock");
        let mut alive = [0, 0];
        retired.retain(|tally| {
            let carried = tally.read();
            let bytes = [carried.bytes_in, carried.bytes_out];
            let ended = Arc::strong_count(tally) == 1;
            for (direction, bytes) in bytes.into_iter().enumerate() {
                if ended {
                    self.retired_bytes[direction].fetch_add(bytes, Ordering::Relaxed);
                } else {
                    alive[direction] += bytes;
                }
            }
            !ended
        });
        [0, 1].map(|direction| alive[direction] + self.retired_bytes[direction].load(Ordering::Relaxed))
    }
}

fn export_of(shared: &Shared, target: &Target, protocol: Protocol) -> Option<Exported> {
    shared.exports().find(target, protocol)
}

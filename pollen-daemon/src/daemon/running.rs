//! The running node as its operator's tools see it. Owns the order in which a request changes the core, the services
//! and the configuration, so that a crash in between leaves nothing acknowledged undone.
//! Invariant: a change that began is carried through, whether or not who asked for it still waits.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use pollen_common::node::{Command, Publish, Refusal, RefusalKind, Reply};
use pollen_common::time::UnixMs;
use pollen_common::views::{Name, Protocol, SeedVersion, Target, View};
use tokio::runtime::Handle;
use tokio::sync::{broadcast, watch};

use super::{announce, held, numbers, way_back};
use crate::clock;
use crate::config::{self, LiveSettings, Settings};
use crate::content::Content;
use crate::control::size::show_mib;
use crate::datapath::Datapath;
use crate::driver::DriverHandle;
use crate::enroll::way_back::WayBack;
use crate::events::EventRecord;
use crate::events::{EVENTS_KEPT_MAX, Events};
use crate::handle::{Answer, Daemon, Phase, SeedProgress, SeedRequest, Seeded, Serving, Subject, Unseeded};
use crate::logs::Logs;
use crate::nearest::or_meant;
use crate::services::{Connect, Disconnect, Listener, Serve, ServiceRef};
use crate::services::{Export, ExportConfig, Server, Services, ServicesConfig, policy_config};
use crate::status::Troubles;
use crate::status::{About, HeldModule, Numbers, PeerNumbers, SocketNumbers};
use crate::store::Change;
use crate::store::writer::{ConfigureError, Writer};
use crate::transport::Mesh;
use crate::workload::calls::Calls;
use crate::workload::hosted::Hosted;
use crate::workload::machine::Machine;
use crate::workload::replicas::Replicas;
use crate::workload::{CallAnswer, CallFailure, CallRequest};

/// How long the first announcement may take: a little more than the core holds back what it signs after its start.
const ANNOUNCED_MAX: Duration = Duration::from_secs(6);

/// How long a node that has nothing configured listens for what it published in an earlier life.
const CLAIMS_HEARD_MAX: Duration = Duration::from_secs(60);

/// The parts that a running node consists of.
pub(super) struct Wiring {
    pub(super) dir: PathBuf,
    pub(super) port: u16,
    pub(super) settings: Settings,
    pub(super) driver: DriverHandle,
    pub(super) mesh: Mesh,
    pub(super) services: Services,
    pub(super) content: Content,
    pub(super) machine: Machine,
    pub(super) hosted: Hosted,
    pub(super) replicas: Replicas,
    pub(super) calls: Calls,
    pub(super) events: Events,
    pub(super) logs: Logs,
    pub(super) writer: Writer,
}

/// A running node. A handle: clones share everything.
#[derive(Clone)]
pub(super) struct Running {
    parts: Arc<Wiring>,
    started: UnixMs,
    settings: Arc<Mutex<Settings>>,
    /// Held while the services change: two changes at once could leave a claim without its port, or the reverse.
    changing_services: Arc<tokio::sync::Mutex<()>>,
    /// What the file `way-back` says.
    noted: Arc<Mutex<Option<WayBack>>>,
    /// What it serves and nobody listens for, as of the last look.
    unanswered: Arc<Mutex<Vec<Export>>>,
    /// Why metrics are off though they are set.
    metrics_wait: Arc<Mutex<Option<String>>>,
    phase: Arc<Mutex<Phase>>,
    stop: watch::Sender<bool>,
}

impl From<ConfigureError> for Refusal {
    fn from(error: ConfigureError) -> Self {
        let hint = match &error {
            ConfigureError::Refused(refusing) => Some(refusing.hint().to_owned()),
            ConfigureError::Stopped => None,
        };
        Self { kind: RefusalKind::Failed, message: error.to_string(), hint }
    }
}

impl Running {
    pub(super) fn new(parts: Wiring) -> Self {
        Self {
            started: clock::unix_now(),
            settings: Arc::new(Mutex::new(parts.settings.clone())),
            changing_services: Arc::default(),
            noted: Arc::default(),
            unanswered: Arc::default(),
            metrics_wait: Arc::default(),
            phase: Arc::new(Mutex::new(Phase::Starting)),
            stop: watch::Sender::new(false),
            parts: Arc::new(parts),
        }
    }

    /// Returns once someone has asked for the end.
    pub(super) async fn stop_requested(&self) {
        // The sender is our own field: it cannot be gone.
        let _ = self.stop.subscribe().wait_for(|stop| *stop).await;
    }

    pub(super) fn enters(&self, phase: Phase) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
    }

    pub(super) fn settings_now(&self) -> Settings {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn is_noted(&self, back: &WayBack) -> bool {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).as_ref() == Some(back)
    }

    pub(super) fn noted(&self, back: WayBack) {
        *self.noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(back);
    }

    pub(super) fn found_unanswered(&self, exports: Vec<Export>) {
        *self.unanswered.lock().unwrap_or_else(PoisonError::into_inner) = exports;
    }

    pub(super) fn parts(&self) -> &Wiring {
        &self.parts
    }

    /// Whether datagrams of others travel through this node's services.
    pub(super) fn carries_udp(&self) -> bool {
        let services = &self.parts.services;
        services.exports().iter().any(|export| export.protocol == Protocol::Udp)
            || services.listeners().iter().any(|listener| listener.protocol == Protocol::Udp)
    }

    pub(super) fn port(&self) -> u16 {
        self.parts.port
    }

    pub(super) fn driver(&self) -> &DriverHandle {
        &self.parts.driver
    }

    /// Publishes what the configuration serves and the core may not know: after a restore from a backup, or once this
    /// node may publish again.
    pub(super) async fn reassert_services(&self) {
        for export in self.parts.services.exports() {
            let _changing = self.changing_services.lock().await;
            // It may have been withdrawn while this waited.
            if !self.parts.services.exports().contains(&export) {
                continue;
            }
            let label = export.label();
            let Export { name, protocol, port, shared, policy, .. } = export;
            let publish = Publish { name, protocol, port, shared, policy };
            if let Err(refusal) = self.parts.driver.command(Command::Serve(publish)).await {
                tracing::warn!("{label} is not published: {}", refusal.message);
            }
        }
    }

    /// A member that came back without its database hears from its neighbours what it had published, and serves it again.
    pub(super) async fn serve_what_is_claimed(&self) {
        let claims = |view: &View| {
            let mut config = ServicesConfig::default();
            adopt(&mut config, view);
            config
        };
        let mut views = self.parts.driver.views();
        let heard = views.wait_for(|view| !claims(view).exports.is_empty());
        // Nobody holds anything of a new node, and whoever is up has said what it holds by then.
        if !matches!(tokio::time::timeout(CLAIMS_HEARD_MAX, heard).await, Ok(Ok(_))) {
            return;
        }
        let _changing = self.changing_services.lock().await;
        let mut config = self.parts.services.config();
        adopt(&mut config, &self.parts.driver.view());
        let served = self.parts.services.exports();
        for entry in config.exports.iter().filter_map(|entry| Export::try_from(entry).ok()) {
            if served.contains(&entry) {
                continue;
            }
            let label = entry.label();
            let Export { name, protocol, port, shared, server, policy } = entry;
            match self.parts.services.serve(Serve { port, name, protocol, shared, server, policy: Some(policy) }) {
                Ok(()) => tracing::info!("{label} is served again, as the mesh remembers it"),
                Err(error) => tracing::warn!(%error, "{label} is not served again"),
            }
        }
        if let Err(error) = self.save_services().await {
            tracing::warn!(%error, "what is served again is not written down");
        }
    }

    /// Waits until the view says where this node is, as it does from its first announcement on: a token made before
    /// that would name nobody to redeem it at.
    async fn addresses_known(&self) {
        let known = |view: &Arc<View>| view.nodes.get(&view.me).is_some_and(|me| !me.addrs.is_empty());
        let mut views = self.parts.driver.views();
        // A node without a network has none to tell; its token may still name other admins.
        let _ = tokio::time::timeout(ANNOUNCED_MAX, views.wait_for(known)).await;
    }

    async fn save_services(&self) -> Result<(), ConfigureError> {
        self.parts.writer.configure(Change::set(config::SERVICES_KEY, &self.parts.services.config())).await?;
        way_back::note(self).await;
        Ok(())
    }

    /// Claims first, because the core may refuse. What a crash then leaves claimed is served after it: see [`adopt`].
    async fn start_serving(&self, mut request: Serve) -> Result<Serving, Refusal> {
        let _changing = self.changing_services.lock().await;
        let policy = self.parts.services.policy_of(&request);
        request.policy = Some(policy.clone());
        let Serve { port, name, protocol, shared, server, .. } = request.clone();
        let publish = Publish { name: name.clone(), protocol, port, shared, policy: policy.clone() };
        self.parts.driver.command(Command::Serve(publish)).await?;
        if let Err(too_many) = self.parts.services.serve(request) {
            self.parts.driver.command(Command::Unserve { name, protocol, port }).await?;
            return Err(too_many.into());
        }
        self.save_services().await?;
        let unheard = (server == Server::Here).then(|| self.parts.services.unheard(protocol, port)).flatten();
        Ok(Serving { policy, warnings: unheard.into_iter().collect() })
    }

    /// The reverse, so that whatever is configured is claimed too: what a crash then leaves claimed is still served.
    /// Withdraws what is claimed and not configured as well: a crash may have left that, and it is served to nobody.
    async fn stop_serving(&self, service: ServiceRef) -> Result<(), Refusal> {
        let _changing = self.changing_services.lock().await;
        let mut claims = claimed_as(&service, &self.parts.driver.view());
        let mut gone = self.parts.services.unserve(&service);
        for (name, protocol, _) in &claims {
            gone.extend(name.iter().flat_map(|name| self.parts.services.unserve_in(name, *protocol)));
        }
        let mut found = !gone.is_empty();
        if found {
            self.save_services().await?;
        }
        claims.extend(gone.into_iter().map(|Export { name, protocol, port, .. }| (name, protocol, port)));
        for (name, protocol, port) in claims {
            match self.parts.driver.command(Command::Unserve { name, protocol, port }).await {
                // Never published, for instance because this node may no longer publish.
                Err(refusal) if refusal.kind == RefusalKind::NotFound => {}
                answer => {
                    answer?;
                    found = true;
                }
            }
        }
        if found {
            return Ok(());
        }
        Err(Refusal {
            kind: RefusalKind::NotFound,
            message: format!("this node does not serve {service}"),
            hint: Some(or_meant(
                &service.to_string(),
                self.parts.services.exports().iter().filter_map(|export| export.name.as_ref()).map(Name::as_str),
                "see `pln status services` for what it serves",
            )),
        })
    }

    async fn open_listeners(&self, request: Connect) -> Result<Vec<Listener>, Refusal> {
        // Before the lock: nobody else's change waits for a name that is misspelt.
        self.parts.services.coming(&request).await;
        let _changing = self.changing_services.lock().await;
        let listeners = self.parts.services.connect(&request)?;
        self.save_services().await?;
        Ok(listeners)
    }

    async fn close_listeners(&self, request: Disconnect) -> Result<Vec<Listener>, Refusal> {
        let _changing = self.changing_services.lock().await;
        let closed = self.parts.services.disconnect(&request)?;
        if closed.is_empty() {
            return Err(Refusal {
                kind: RefusalKind::NotFound,
                message: format!("this node has no listener to {}", request.service),
                hint: Some(or_meant(
                    &request.service.to_string(),
                    self.parts
                        .services
                        .listeners()
                        .iter()
                        .map(|l| l.service.to_string())
                        .collect::<Vec<_>>()
                        .iter()
                        .map(String::as_str),
                    "see `pln status services` for its listeners",
                )),
            });
        }
        self.save_services().await?;
        Ok(closed)
    }

    async fn put_in_force(&self, live: LiveSettings) -> Result<(), Refusal> {
        let LiveSettings { name, http, log_level, seed_memory_mib, stream_patience_s, relay, datapath } = live;
        let was = self.settings_now();
        let name = name.map(|name| name.to_string());
        let settings =
            Settings { name, http, log_level, seed_memory_mib, stream_patience_s, relay, datapath, ..was.clone() };
        let patience = settings.stream_patience();
        if was.datapath() != settings.datapath() {
            // What cannot be had is said now, and not in a log.
            Datapath::try_out(settings.datapath()).map_err(|error| Refusal {
                kind: RefusalKind::Usage,
                message: format!("this node has no such datapath: {error}"),
                hint: Some("`pln set datapath auto` takes what there is".into()),
            })?;
        }
        let most_mib = Machine::memory_mib_max();
        // One that was set on a larger machine stays, and hinders no other setting.
        if seed_memory_mib != was.seed_memory_mib && seed_memory_mib.is_some_and(|mib| mib > most_mib) {
            return Err(Refusal {
                kind: RefusalKind::Usage,
                message: format!("this node has {} of memory, for all that it does", show_mib(most_mib)),
                hint: Some("`pln inspect` of this node shows what it offers to seeds now".into()),
            });
        }
        self.parts.logs.set_level(settings.log_level.as_deref()).map_err(|error| Refusal {
            kind: RefusalKind::Usage,
            message: error.to_string(),
            hint: None,
        })?;
        self.parts.writer.configure(Change::set(config::SETTINGS_KEY, &settings)).await?;
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = settings;
        way_back::note(self).await;
        if was.stream_patience() != patience {
            self.parts.driver.command(Command::Patience { patience }).await?;
        }
        self.parts.mesh.set_relay(self.settings_now().relays());
        self.parts.mesh.datapath().choose(self.settings_now().datapath());
        if was.name != self.settings_now().name {
            announce::rename(self).await?;
        }
        if was.seed_memory_mib != seed_memory_mib {
            self.parts.machine.give(seed_memory_mib);
            announce::offer(self).await;
        }
        Ok(())
    }
}

/// Carries `change` through on a task of its own: whoever asked may go away, or wait no longer, in the middle of it.
fn carried_through<T: Send + 'static>(
    change: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Answer<'static, T> {
    async move {
        let ended = tokio::spawn(change).await;
        ended.unwrap_or_else(|gone| match gone.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => {
                Err(Refusal { kind: RefusalKind::Failed, message: "the node is shutting down".into(), hint: None })
            }
        })
    }
    .boxed()
}

/// What to ask the core to withdraw for `service`, whatever is configured. A name alone is withdrawn in every
/// protocol.
fn claimed_as(service: &ServiceRef, view: &View) -> BTreeSet<(Option<Name>, Protocol, u16)> {
    let port = match service {
        ServiceRef::Name(name) => return [(Some(name.clone()), Protocol::Tcp, 0)].into(),
        ServiceRef::Port(port) => *port,
    };
    let own = view.services.values().flat_map(|service| {
        let at_port = service.providers.iter().filter(|p| p.node == view.me && p.port == port);
        at_port.map(|provider| (Some(service.name.clone()), provider.protocol, port))
    });
    own.chain([Protocol::Tcp, Protocol::Udp].map(|protocol| (None, protocol, port))).collect()
}

/// Adds to the configuration what this node claims but does not serve: a crash came between the claim and the
/// configuration. So what `status` shows after a restart is what others reach.
pub(super) fn adopt(config: &mut ServicesConfig, view: &View) {
    let named = view.services.values().flat_map(|service| {
        let own = service.providers.iter().filter(|provider| provider.node == view.me);
        own.map(|provider| (Some(service.name.to_string()), provider, service.shared))
    });
    let unnamed = view.unnamed.iter().filter(|provider| provider.node == view.me);
    for (name, provider, shared) in named.chain(unnamed.map(|provider| (None, provider, false))) {
        let (protocol, port, policy) = (provider.protocol.into(), provider.port, policy_config(&provider.policy));
        let served = |export: &ExportConfig| {
            export.name == name && export.protocol == protocol && (name.is_some() || export.port == port)
        };
        match config.exports.iter_mut().find(|export| served(export)) {
            // The claim is newer than a configuration that differs.
            Some(export) => (export.port, export.policy) = (port, policy),
            None => config.exports.push(ExportConfig { name, protocol, port, shared, server: None, policy }),
        }
    }
}

impl Daemon for Running {
    fn about(&self) -> About {
        About {
            dir: self.parts.dir.clone(),
            port: self.parts.port,
            started: self.started,
            public: self.parts.settings.public,
        }
    }

    fn phase(&self) -> Phase {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn view(&self) -> Arc<View> {
        self.parts.driver.view()
    }

    fn views(&self) -> watch::Receiver<Arc<View>> {
        self.parts.driver.views()
    }

    fn numbers(&self) -> Numbers {
        let mesh = self.parts.mesh.snapshot();
        let peers = mesh.peers.into_iter().map(|peer| PeerNumbers {
            peer: peer.peer,
            path: peer.path.label().to_owned(),
            via: peer.via,
            remote: peer.remote,
            nats: peer.nats,
            rtt: peer.rtt,
            bytes_in: peer.bytes_in,
            bytes_out: peer.bytes_out,
            datagrams_in: peer.datagrams_in,
            datagrams_out: peer.datagrams_out,
            lost: peer.packets_lost,
        });
        let dropped = mesh.drops.into_iter().map(|(reason, count)| (reason.label().to_owned(), count));
        let refused = self.parts.driver.refusals();
        Numbers {
            peers: peers.collect(),
            socket: SocketNumbers {
                local: mesh.local,
                gso_segments: mesh.gso_segments,
                gro_segments: mesh.gro_segments,
                receive_buffer_bytes: mesh.receive_buffer_bytes,
                send_buffer_bytes: mesh.send_buffer_bytes,
                sources_bound: mesh.sources_bound,
            },
            circuits: mesh.circuits,
            punches: mesh.punches,
            datapath: mesh.datapath,
            dropped: dropped.chain(refused.into_iter().map(|(reason, n)| (format!("core_{reason}"), n))).collect(),
            services: self.parts.services.numbers(),
            seeds: numbers::of_seeds(&self.parts),
            events: self.parts.events.counts(),
        }
    }

    fn metrics_wait(&self, why: Option<String>) {
        *self.metrics_wait.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    fn troubles(&self) -> Troubles {
        Troubles {
            disk: self.parts.writer.health().borrow().clone(),
            signs: self.parts.driver.signs(),
            metrics_wait: self.metrics_wait.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            unanswered: self.unanswered.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    fn command(&self, command: Command) -> Answer<'_, Reply> {
        async move {
            if matches!(command, Command::Invite { .. }) {
                self.addresses_known().await;
            }
            self.parts.driver.command(command).await
        }
        .boxed()
    }

    fn why(&self, subject: Subject) -> Answer<'_, Vec<String>> {
        async move {
            let (target, local) = match subject {
                Subject::Node(key) => (Target::Node(key), Vec::new()),
                Subject::Service(name) => (Target::Name(name.clone()), self.parts.services.why(&name)),
                Subject::Seed(name) => (Target::Seed(name.clone()), self.parts.calls.why(&name)),
            };
            let mut reasons = self.parts.driver.why(target).await?;
            reasons.extend(local);
            Ok(reasons)
        }
        .boxed()
    }

    fn serve(&self, request: Serve) -> Answer<'_, Serving> {
        let node = self.clone();
        carried_through(async move { node.start_serving(request).await })
    }

    fn unserve(&self, request: ServiceRef) -> Answer<'_, ()> {
        let node = self.clone();
        carried_through(async move { node.stop_serving(request).await })
    }

    fn connect(&self, request: Connect) -> Answer<'_, Vec<Listener>> {
        let node = self.clone();
        carried_through(async move { node.open_listeners(request).await })
    }

    fn disconnect(&self, request: Disconnect) -> Answer<'_, Vec<Listener>> {
        let node = self.clone();
        carried_through(async move { node.close_listeners(request).await })
    }

    fn listeners(&self) -> Vec<Listener> {
        self.parts.services.listeners()
    }

    fn seed(&self, request: SeedRequest, progress: watch::Sender<SeedProgress>) -> Answer<'_, Seeded> {
        let node = self.clone();
        carried_through(async move { node.start_seeding(request, progress).await })
    }

    fn unseed(&self, name: Name) -> Answer<'_, Unseeded> {
        let node = self.clone();
        carried_through(async move { node.stop_seeding(name).await })
    }

    fn call(&self, request: CallRequest) -> BoxFuture<'_, Result<CallAnswer, CallFailure>> {
        self.parts.calls.call(request).boxed()
    }

    fn seat_of_callers(&self, seed: &crate::workload::SeedRef) -> Option<Handle> {
        match self.parts.machine.found() {
            Some(Ok(engine)) if self.parts.calls.is_here(seed) => Some(engine.next_seat()),
            // Guests run elsewhere: calls go to the mesh, whose thread their streams are on.
            _ => Some(self.parts.mesh.runtime().clone()),
        }
    }

    fn held(&self, version: SeedVersion) -> Answer<'_, Option<HeldModule>> {
        async move { Ok(held::of_version(&self.parts.content, version).await) }.boxed()
    }

    fn events(&self) -> (Vec<EventRecord>, broadcast::Receiver<EventRecord>) {
        self.parts.events.follow(EVENTS_KEPT_MAX)
    }

    fn logs(&self, lines: usize) -> (Vec<String>, broadcast::Receiver<String>) {
        self.parts.logs.follow(lines)
    }

    fn settings(&self) -> LiveSettings {
        self.settings_now().live()
    }

    fn apply(&self, settings: LiveSettings) -> Answer<'_, ()> {
        let node = self.clone();
        carried_through(async move { node.put_in_force(settings).await })
    }

    fn shutdown(&self) {
        self.stop.send_replace(true);
    }
}

#[cfg(test)]
mod tests;

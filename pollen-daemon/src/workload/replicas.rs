//! Executes what the core wants hosted: a module fetched, made ready, entered among those that are served, and let go
//! again. Owns the tasks that do it; decides nothing. Invariants: each order is answered by what became of it; bytes
//! that are not the version's are never prepared.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use pollen_common::identity::NodeKey;
use pollen_common::node::Input;
use pollen_common::views::{Inability, Name, SeedVersion, VersionId};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::engine::PrepareError;
use super::guest::Guest;
use super::hosted::Hosted;
use super::machine::{Machine, NoEngine};
use crate::content::{Content, FetchError, ReadError, Wanted};
use crate::driver::Hosting;

/// Modules held in memory at once to be made ready: each may have 64 MiB, and compiling takes a processor.
const PREPARATIONS_MAX: usize = 2;

/// The longest that calls are waited for when a version goes, whatever time they were given.
const STOP_MAX: Duration = Duration::from_secs(60);

/// How often content that turns out damaged is fetched again for one order.
const REFETCHES_MAX: usize = 2;

/// Reports that may wait for the driver: it takes them in as fast as they come.
pub const REPORTS_WAITING_MAX: usize = 64;

/// A version was not made ready.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("its module cannot be read: {0}")]
    Read(#[from] ReadError),
    #[error("guests cannot run here: {0}")]
    Engine(#[from] NoEngine),
    #[error(transparent)]
    Prepare(#[from] PrepareError),
}

impl StartError {
    /// Why this node cannot make the version ready, if it is at fault: another may do better, and trying again soon
    /// is no use. What others did not give is not its fault.
    #[must_use]
    pub const fn own(&self) -> Option<Inability> {
        match self {
            Self::Fetch(FetchError::NoHolder | FetchError::AllFailed(_) | FetchError::NotStarted)
            | Self::Read(ReadError::Absent)
            | Self::Prepare(PrepareError::WrongBytes(_)) => None,
            // Damaged though it was fetched again and again: the disk changes what it is given.
            Self::Fetch(FetchError::Io(_)) | Self::Read(ReadError::Io(_) | ReadError::Damaged) => Some(Inability::Disk),
            Self::Fetch(FetchError::Full(_)) => Some(Inability::Full),
            Self::Engine(_) => Some(Inability::Engine),
            Self::Fetch(FetchError::TooLarge { .. })
            | Self::Prepare(
                PrepareError::Module(_)
                | PrepareError::Compile(_)
                | PrepareError::Link(_)
                | PrepareError::Incomplete(_),
            ) => Some(Inability::Unfit),
            Self::Prepare(PrepareError::Image(_)) => Some(Inability::Image),
            Self::Prepare(PrepareError::Thread(_) | PrepareError::GaveUp) => Some(Inability::Exhausted),
        }
    }
}

/// What the tasks work with.
struct Shared {
    content: Content,
    machine: Machine,
    hosted: Hosted,
    reports: mpsc::Sender<Input>,
    preparations: Semaphore,
    /// What is being made ready; as many as the core asks for, which is bounded there.
    starting: Mutex<BTreeMap<VersionId, JoinHandle<()>>>,
}

/// The replicas of this node. A handle: clones share everything.
#[derive(Clone)]
pub struct Replicas(Arc<Shared>);

impl Replicas {
    /// Replicas of nothing yet, which say what became of each order to `reports`.
    #[must_use]
    pub fn new(content: Content, machine: Machine, hosted: Hosted, reports: mpsc::Sender<Input>) -> Self {
        Self(Arc::new(Shared {
            content,
            machine,
            hosted,
            reports,
            preparations: Semaphore::new(PREPARATIONS_MAX),
            starting: Mutex::default(),
        }))
    }

    /// Makes a version ready without hosting it, from content that is here, so that what is wrong with it shows. Its
    /// code is on disk then.
    ///
    /// # Errors
    /// [`StartError`]
    pub async fn rehearse(&self, version: &SeedVersion) -> Result<(), StartError> {
        prepared(&self.0, version, &[]).await.map(drop)
    }

    /// How many versions are in each state.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        let listed = self.0.hosted.list();
        let stopping = listed.iter().filter(|replica| replica.stopping).count();
        let (starting, ready) = (self.0.starting().len(), listed.len() - stopping);
        [("starting", starting), ("ready", ready), ("stopping", stopping)].map(|(state, n)| (state, n as u64)).into()
    }

    /// Tells the core what is on this disk, now and whenever that changes. Does not return while the driver runs.
    pub async fn keep_holding_known(self) {
        let mut changes = self.0.content.changes();
        loop {
            changes.mark_unchanged();
            let modules = self.0.content.held().into_iter().collect();
            if self.0.reports.send(Input::Holding { modules }).await.is_err() || changes.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Hosting for Replicas {
    fn start(&self, version: SeedVersion, name: Name, holders: Vec<NodeKey>) {
        let id = version.id();
        let mut starting = self.0.starting();
        if starting.contains_key(&id) {
            // Its answer is still to come.
            return;
        }
        let shared = Arc::clone(&self.0);
        let task = tokio::spawn(async move {
            let report = match prepared(&shared, &version, &holders).await {
                Ok(guest) => {
                    shared.hosted.add(guest, version, name);
                    Input::ReplicaReady { version: id }
                }
                Err(error) => Input::ReplicaFailed { version: id, reason: error.to_string(), own: error.own() },
            };
            shared.starting().remove(&id);
            shared.report(report).await;
        });
        starting.insert(id, task);
    }

    fn stop(&self, version: VersionId) {
        let starting = self.0.starting().remove(&version);
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move {
            if let Some(task) = starting {
                task.abort();
                // It may have come to its end first: then there is something to stop.
                let _ended = task.await;
            }
            if !shared.hosted.stop(&version, STOP_MAX).await {
                tracing::warn!(%version, "calls still ran {} s after it was stopped", STOP_MAX.as_secs());
            }
            shared.report(Input::ReplicaStopped { version }).await;
        });
    }
}

impl Shared {
    fn starting(&self) -> MutexGuard<'_, BTreeMap<VersionId, JoinHandle<()>>> {
        self.starting.lock().expect("nothing panics while it holds this lock")
    }

    async fn report(&self, report: Input) {
        // A driver that is gone needs to know nothing more.
        let _ = self.reports.send(report).await;
    }
}

/// The version as a guest: its module fetched from `holders` where it is not here, compiled where that was never done.
async fn prepared(shared: &Shared, version: &SeedVersion, holders: &[NodeKey]) -> Result<Guest, StartError> {
    // Where guests cannot run, nothing needs to travel.
    shared.machine.engine().await?;
    let mut tries = 0;
    loop {
        if !shared.content.has(&version.module) {
            let wanted = Wanted { digest: version.module, size_bytes: version.size_bytes };
            shared.content.fetch(wanted, holders).await?;
        }
        let _turn = shared.preparations.acquire().await.expect("this semaphore is never closed");
        match shared.content.read(version.module).await {
            Ok(bytes) => return prepare(shared, version, bytes).await,
            // Reading has removed it: the next round fetches it again.
            Err(ReadError::Damaged | ReadError::Absent) if tries < REFETCHES_MAX => tries += 1,
            Err(error) => return Err(error.into()),
        }
    }
}

async fn prepare(shared: &Shared, version: &SeedVersion, bytes: Bytes) -> Result<Guest, StartError> {
    let engine = shared.machine.engine().await?;
    Ok(engine.prepare(version.module, bytes.into(), version).await?)
}

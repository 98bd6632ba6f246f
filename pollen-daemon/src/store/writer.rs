//! The thread that writes: a commit waits for the disk, and the driver must not. Owns the order of changes, group
//! commit, and what waits while the disk takes nothing. Invariant: a change is acknowledged only when it is durable,
//! changes take effect in the order sent, and a disk that refuses stops nobody: it is tried again until it does not.

use std::collections::BTreeMap;
use std::sync::mpsc::{self as jobs, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use pollen_common::node::{PersistId, Write};
use tokio::sync::{mpsc, oneshot, watch};

use super::health::{Cause, DiskHealth, Refusing};
use super::{Change, Store, StoreError};
use crate::clock::unix_now;

/// Changes joined in one transaction: past this a commit's own work outweighs the sync that is saved.
const GROUP_CHANGES_MAX: usize = 256;

/// Small: the thread's deepest call is a redb commit.
const STACK_BYTES: usize = 512 << 10;

/// How soon a refused write is tried again; each further refusal doubles it.
const RETRY_FIRST: Duration = Duration::from_millis(250);

/// The longest wait between attempts: what a person who has made room waits for.
const RETRY_MAX: Duration = Duration::from_secs(2);

enum Job {
    Batch { id: PersistId, writes: Vec<Write> },
    Config { change: Change, done: oneshot::Sender<Result<(), ConfigureError>> },
    Stop,
}

/// What the writer tells the driver.
#[derive(Debug)]
pub enum Written {
    /// A batch is on disk.
    Batch(PersistId),
    /// The disk takes nothing now: see [`Writer::health`]. What was sent is kept, and acknowledged when it is written.
    Refused,
}

/// The way to the writer. The queue itself has no bound: whoever sends batches stops taking in work while too many
/// are under way (`driver::PERSISTS_UNDER_WAY_MAX`), and a setting waits for its answer. While the disk refuses, what
/// waits is one value for each record, so it is bounded by what the node may store at all.
#[derive(Clone, Debug)]
pub struct Writer {
    jobs: jobs::Sender<Job>,
    health: watch::Receiver<DiskHealth>,
}

/// A setting was not written; the one before stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigureError {
    #[error("{}", .0.message())]
    Refused(Refusing),
    #[error("the state is no longer written: the node is stopping")]
    Stopped,
}

impl Writer {
    /// Starts the thread; it ends when it is told to, or all handles are gone, after writing everything sent before
    /// that the disk takes. The store and its directory are free when it has ended.
    ///
    /// # Panics
    /// If the system cannot start a thread.
    #[must_use]
    pub fn start(store: Store, written: mpsc::UnboundedSender<Written>) -> (Self, JoinHandle<()>) {
        let (jobs, queue) = jobs::channel();
        let (health, watched) = watch::channel(DiskHealth::Fine);
        let mut pen = Pen { store, queue, written, health, group: Group::default(), retry: None };
        let thread = std::thread::Builder::new()
            .name("pln-store".into())
            .stack_size(STACK_BYTES)
            .spawn(move || pen.write_all())
            .expect("a daemon that cannot start its second thread cannot run");
        (Self { jobs, health: watched }, thread)
    }

    /// Writes a batch of the core's; answered by [`Written::Batch`].
    pub fn persist(&self, id: PersistId, writes: Vec<Write>) {
        // A writer that is gone has closed the channel of answers.
        let _ = self.jobs.send(Job::Batch { id, writes });
    }

    /// Ends the thread behind everything sent so far.
    pub fn stop(&self) {
        // It may have ended by itself.
        let _ = self.jobs.send(Job::Stop);
    }

    /// Writes a setting and waits until it is durable.
    ///
    /// # Errors
    /// [`ConfigureError`]
    pub async fn configure(&self, change: Change) -> Result<(), ConfigureError> {
        let (done, wait) = oneshot::channel();
        self.jobs.send(Job::Config { change, done }).map_err(|_| ConfigureError::Stopped)?;
        wait.await.unwrap_or(Err(ConfigureError::Stopped))
    }

    /// How the disk is, to be told of changes.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<DiskHealth> {
        self.health.clone()
    }
}

/// What is written next, as one transaction.
#[derive(Default)]
struct Group {
    changes: usize,
    ids: Vec<PersistId>,
    /// The newest value of each record: in one transaction nobody sees the older ones.
    records: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    settings: Vec<(Change, oneshot::Sender<Result<(), ConfigureError>>)>,
    stops: bool,
}

impl Group {
    fn add(&mut self, job: Job) {
        self.changes += 1;
        match job {
            Job::Batch { id, writes } => {
                self.ids.push(id);
                self.records.extend(writes.into_iter().map(|write| (write.key, write.value)));
            }
            Job::Config { change, done } => self.settings.push((change, done)),
            Job::Stop => self.stops = true,
        }
    }

    fn changes(&self) -> Vec<Change> {
        let records = self.records.iter().map(|(key, value)| Write { key: key.clone(), value: value.clone() });
        let settings = self.settings.iter().map(|(change, _)| change.clone());
        core::iter::once(Change::Node(records.collect())).chain(settings).collect()
    }
}

/// The writing thread.
struct Pen {
    store: Store,
    queue: jobs::Receiver<Job>,
    written: mpsc::UnboundedSender<Written>,
    health: watch::Sender<DiskHealth>,
    group: Group,
    /// How long to wait before the next attempt; none while the disk is fine.
    retry: Option<Duration>,
}

impl Pen {
    fn write_all(&mut self) {
        while self.gather() {
            match self.store.apply(&self.group.changes()) {
                Ok(()) => self.acknowledge(),
                Err(error) => self.refused(&error),
            }
            if self.group.stops {
                return;
            }
        }
    }

    /// Waits until there is something to write, or to try again. False when nobody can send any more.
    fn gather(&mut self) -> bool {
        let first = match self.retry {
            None => self.queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(wait) => self.queue.recv_timeout(wait),
        };
        match first {
            Ok(job) => self.group.add(job),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        while self.group.changes < GROUP_CHANGES_MAX
            && let Ok(job) = self.queue.try_recv()
        {
            self.group.add(job);
        }
        true
    }

    fn acknowledge(&mut self) {
        if self.retry.take().is_some() {
            tracing::info!(
                records = self.group.records.len(),
                "the disk takes writes again: all that waited is written"
            );
            self.health.send_replace(DiskHealth::Fine);
        }
        let stops = self.group.stops;
        let group = std::mem::replace(&mut self.group, Group { stops, ..Group::default() });
        for id in group.ids {
            // A driver that is gone asks for nothing more.
            let _ = self.written.send(Written::Batch(id));
        }
        for (_, done) in group.settings {
            // Whoever set it may have gone.
            let _ = done.send(Ok(()));
        }
    }

    /// The core's records stay, as the core has taken them for said; a setting does not, as whoever set it is told.
    fn refused(&mut self, error: &StoreError) {
        let since = match &*self.health.borrow() {
            DiskHealth::Refusing(refusing) => refusing.since,
            DiskHealth::Fine => unix_now(),
        };
        let cause = Cause::of(error);
        let refusing = Refusing { cause, since, error: error.to_string(), waiting: self.group.records.len() };
        if self.retry.is_none() {
            tracing::error!("{}; {}", refusing.message(), refusing.hint());
        }
        self.retry = Some(self.retry.map_or(RETRY_FIRST, |wait| (wait * 2).min(RETRY_MAX)));
        for (_, done) in self.group.settings.drain(..) {
            let _ = done.send(Err(ConfigureError::Refused(refusing.clone())));
        }
        // What waits is merged as it comes, so the next attempt takes in as much as one that follows a success.
        self.group.changes = 0;
        self.health.send_replace(DiskHealth::Refusing(refusing));
        let _ = self.written.send(Written::Refused);
    }
}

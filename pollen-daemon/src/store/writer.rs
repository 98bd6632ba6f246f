//! The thread that writes: a commit waits for the disk, and the driver must not. Owns the order of changes and group
//! commit. Invariant: a change is acknowledged only when it is durable, and changes are applied in the order sent.

use std::thread::JoinHandle;

use pollen_common::node::{PersistId, Write};
use tokio::sync::{mpsc, oneshot};

use super::{Change, Store, StoreError};

/// Changes joined in one transaction: past this a commit's own work outweighs the sync that is saved.
const GROUP_CHANGES_MAX: usize = 256;

/// Small: the thread's deepest call is a redb commit.
const STACK_BYTES: usize = 512 << 10;

enum Job {
    Batch { id: PersistId, change: Change },
    Config { change: Change, done: oneshot::Sender<()> },
    Stop,
}

impl Job {
    const fn change(&self) -> Option<&Change> {
        match self {
            Self::Batch { change, .. } | Self::Config { change, .. } => Some(change),
            Self::Stop => None,
        }
    }
}

/// What the writer tells the driver.
#[derive(Debug)]
pub enum Written {
    /// A batch is on disk.
    Batch(PersistId),
    /// The disk or the database failed: nothing more will be written.
    Failed(StoreError),
}

/// The way to the writer. The queue itself has no bound: whoever sends batches stops taking in work while too many
/// are under way (`driver::PERSISTS_UNDER_WAY_MAX`), and a setting waits for its answer.
#[derive(Clone, Debug)]
pub struct Writer {
    jobs: mpsc::UnboundedSender<Job>,
}

/// The store has stopped writing; the daemon is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the state is no longer written: see the log")]
pub struct Stopped;

impl Writer {
    /// Starts the thread; it ends when it is told to, or all handles are gone, after writing everything sent before.
    /// The store and its directory are free when it has ended.
    ///
    /// # Panics
    /// If the system cannot start a thread.
    #[must_use]
    pub fn start(store: Store, written: mpsc::UnboundedSender<Written>) -> (Self, JoinHandle<()>) {
        let (jobs, queue) = mpsc::unbounded_channel();
        let thread = std::thread::Builder::new()
            .name("pln-store".into())
            .stack_size(STACK_BYTES)
            .spawn(move || write_all(&store, queue, &written))
            .expect("a daemon that cannot start its second thread cannot run");
        (Self { jobs }, thread)
    }

    /// Writes a batch of the core's; answered by [`Written::Batch`].
    pub fn persist(&self, id: PersistId, writes: Vec<Write>) {
        // A writer that is gone has said so by `Written::Failed`.
        let _ = self.jobs.send(Job::Batch { id, change: Change::Node(writes) });
    }

    /// Ends the thread behind everything sent so far.
    pub fn stop(&self) {
        // It may have ended by itself.
        let _ = self.jobs.send(Job::Stop);
    }

    /// Writes a setting and waits until it is durable.
    ///
    /// # Errors
    /// [`Stopped`] if it may not be.
    pub async fn configure(&self, change: Change) -> Result<(), Stopped> {
        let (done, wait) = oneshot::channel();
        self.jobs.send(Job::Config { change, done }).map_err(|_| Stopped)?;
        wait.await.map_err(|_| Stopped)
    }
}

fn write_all(store: &Store, mut queue: mpsc::UnboundedReceiver<Job>, written: &mpsc::UnboundedSender<Written>) {
    let mut group = Vec::new();
    while queue.blocking_recv_many(&mut group, GROUP_CHANGES_MAX) > 0 {
        if let Err(error) = store.apply(group.iter().filter_map(Job::change)) {
            let _ = written.send(Written::Failed(error));
            return;
        }
        for job in group.drain(..) {
            match job {
                Job::Batch { id, .. } => drop(written.send(Written::Batch(id))),
                Job::Config { done, .. } => drop(done.send(())),
                Job::Stop => return,
            }
        }
    }
}

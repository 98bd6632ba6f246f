//! Content by its digest: modules of seeds on this disk, and on their way from node to node. Owns the directory
//! `content/` and the streams that carry it; must not know what the bytes mean, nor who should hold them.
//! Invariants: nothing is kept or handed out that is not verified against its digest; what the disk holds is bounded;
//! nothing that blocks runs on the control or mesh thread.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pollen_common::identity::{Digest, NodeKey};
use pollen_common::views::View;
use pollen_common::wire::streams::content::{CONTENT_BYTES_MAX, digest_of};
use quinn::{RecvStream, SendStream};
use tokio::sync::{Semaphore, watch};

use crate::standing::Standing;
use crate::transport::Mesh;

mod disk;
mod shelf;
mod tally;
pub mod transfer;

pub use disk::ReadError;
pub use shelf::{FILES_MAX, Full, TOTAL_BYTES_MAX};
pub use tally::ContentNumbers;
pub use transfer::fetch::{FetchError, Wanted};

use disk::{Disk, Part};
use shelf::Shelf;
use tally::Tally;
use transfer::{fetch, serve};

/// Fetches at once; each holds a group in memory and a file open. More wait.
const FETCHES_MAX: usize = 4;

/// Callers unknown so far that may wait for their admission to arrive, all together.
const STRANGERS_MAX: usize = 64;

/// How often what no seed names any more is looked for.
const TIDY_EVERY: Duration = Duration::from_secs(60);

/// The content of a node. A handle: clones share everything, and any thread may use them.
#[derive(Clone)]
pub struct Content(Arc<Shared>);

/// What all clones and tasks share.
struct Shared {
    disk: Disk,
    shelf: Mutex<Shelf>,
    changed: watch::Sender<()>,
    view: watch::Receiver<Arc<View>>,
    mesh: OnceLock<Mesh>,
    fetches: Semaphore,
    served: serve::Served,
    standing: Standing,
    draining: AtomicBool,
    tally: Tally,
}

/// Content was not stored; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    #[error("{bytes} bytes are over the limit of {CONTENT_BYTES_MAX}")]
    TooLarge { bytes: usize },
    #[error(transparent)]
    Full(#[from] Full),
    #[error("storing it failed: {0}")]
    Io(#[from] io::Error),
}

impl Content {
    /// The content of a state directory. Reads the directory, no content.
    ///
    /// # Errors
    /// From the kernel.
    pub fn open(state_dir: &Path, view: watch::Receiver<Arc<View>>) -> io::Result<Self> {
        let (disk, held) = Disk::open(disk::directory(state_dir))?;
        let mut shelf = Shelf::default();
        let now = Instant::now();
        for (digest, bytes) in held {
            shelf.insert(digest, bytes, now);
        }
        let standing = Standing::new(view.clone(), STRANGERS_MAX);
        Ok(Self(Arc::new(Shared {
            disk,
            shelf: Mutex::new(shelf),
            changed: watch::Sender::new(()),
            view,
            mesh: OnceLock::new(),
            fetches: Semaphore::new(FETCHES_MAX),
            served: serve::Served::default(),
            standing,
            draining: AtomicBool::new(false),
            tally: Tally::default(),
        })))
    }

    /// From here on content can be fetched. To be called once.
    pub fn start(&self, mesh: Mesh) {
        assert!(self.0.mesh.set(mesh).is_ok(), "content is started once");
    }

    /// Stores `bytes` and returns their digest. Durable when it returns. Idempotent.
    ///
    /// # Errors
    /// [`PutError`]
    pub async fn put(&self, bytes: Bytes) -> Result<Digest, PutError> {
        if bytes.len() > CONTENT_BYTES_MAX {
            return Err(PutError::TooLarge { bytes: bytes.len() });
        }
        let hashing = bytes.clone();
        let digest = blocking(move || digest_of(&hashing)).await;
        // What is there may have been changed: then it is written again.
        if self.read(digest).await.is_ok() {
            return Ok(digest);
        }
        let size = bytes.len() as u64;
        let _room = self.0.reserve(size).await?;
        let shared = Arc::clone(&self.0);
        let part: io::Result<Part> = blocking(move || {
            let part = shared.disk.part()?;
            part.write_all(&bytes)?;
            Ok(part)
        })
        .await;
        self.0.finish(part?, digest, size).await?;
        Ok(digest)
    }

    /// The whole of it, verified now: content whose file was changed is removed, and no more held.
    ///
    /// # Errors
    /// [`ReadError`]
    pub async fn read(&self, digest: Digest) -> Result<Bytes, ReadError> {
        let shared = Arc::clone(&self.0);
        let read = blocking(move || shared.disk.read(&digest)).await;
        if let Err(error) = &read {
            self.0.note_unreadable(&digest, error);
        }
        read.map(Bytes::from)
    }

    /// Sees to it that `wanted` is here, fetching it from `holders` if it is not. Every byte is verified as it comes.
    ///
    /// # Errors
    /// [`FetchError`]
    pub async fn fetch(&self, wanted: Wanted, holders: &[NodeKey]) -> Result<(), FetchError> {
        fetch::fetch(&self.0, wanted, holders).await.inspect_err(|_| self.0.tally.failed())
    }

    /// Whether it is on this disk. Only reading it tells whether its bytes are still right.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        self.0.shelf().has(digest)
    }

    /// Everything that is on this disk.
    #[must_use]
    pub fn held(&self) -> BTreeSet<Digest> {
        self.0.shelf().digests().collect()
    }

    /// To be told when [`held`](Self::held) changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.0.changed.subscribe()
    }

    /// Forgets it. Nothing happens if it is not there.
    ///
    /// # Errors
    /// From the kernel.
    pub async fn remove(&self, digest: Digest) -> io::Result<()> {
        self.0.forget(vec![digest]).await
    }

    /// Removes what no seed has named for a while, as long as there are views. Never returns before.
    pub async fn keep_tidy(self) {
        while self.0.view.has_changed().is_ok() {
            let named: BTreeSet<Digest> = named(&self.0.view.borrow()).collect();
            let gone = self.0.shelf().tidy(&named, Instant::now());
            if let Err(error) = self.0.forget(gone).await {
                tracing::warn!(%error, "content that nobody needs was not removed");
            }
            tokio::time::sleep(TIDY_EVERY).await;
        }
    }

    /// A stream of kind 4 that `peer` opened, behind its kind. To be called on the mesh's runtime; returns at once.
    pub fn take_stream(&self, peer: NodeKey, send: SendStream, recv: RecvStream) {
        drop(tokio::spawn(serve::serve(Arc::clone(&self.0), peer, send, recv)));
    }

    /// From here on new transfers are refused, so that others ask elsewhere.
    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
    }

    /// Counters and gauges since the start.
    #[must_use]
    pub fn numbers(&self) -> ContentNumbers {
        let (held, held_bytes) = {
            let shelf = self.0.shelf();
            (shelf.digests().count() as u64, shelf.bytes())
        };
        self.0.tally.read(held, held_bytes)
    }
}

/// What seeds name in `view`.
pub(crate) fn named(view: &View) -> impl Iterator<Item = Digest> + '_ {
    view.seeds.values().flat_map(|seed| seed.versions.iter().map(|version| version.module))
}

/// Room for content that is being written; given back when dropped.
struct Room(Arc<Shared>, u64);

impl Drop for Room {
    fn drop(&mut self) {
        self.0.shelf().release(self.1);
    }
}

impl Shared {
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().expect("nothing panics while it holds this lock")
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Room for `bytes`, made by what nobody needs if there is not enough.
    async fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Room, Full> {
        let gone = self.shelf().reserve(bytes, Instant::now())?;
        let room = Room(Arc::clone(self), bytes);
        if let Err(error) = self.forget(gone).await {
            tracing::warn!(%error, "content that nobody needs was not removed");
        }
        Ok(room)
    }

    /// Names a verified part, durably.
    async fn finish(self: &Arc<Self>, part: Part, digest: Digest, bytes: u64) -> io::Result<()> {
        let shared = Arc::clone(self);
        blocking(move || shared.disk.finish(part, &digest)).await?;
        self.shelf().insert(digest, bytes, Instant::now());
        self.changed.send_replace(());
        Ok(())
    }

    async fn forget(self: &Arc<Self>, gone: Vec<Digest>) -> io::Result<()> {
        if gone.is_empty() {
            return Ok(());
        }
        for digest in &gone {
            self.shelf().remove(digest);
        }
        let shared = Arc::clone(self);
        let removed = blocking(move || gone.iter().try_for_each(|digest| shared.disk.remove(digest))).await;
        self.changed.send_replace(());
        removed
    }

    /// Takes down what a failed read says of the disk.
    fn note_unreadable(&self, digest: &Digest, error: &ReadError) {
        match error {
            ReadError::Absent => {}
            ReadError::Damaged => {
                self.tally.damaged();
                tracing::warn!(content = %digest, "stored content had changed: removed");
            }
            ReadError::Io(error) => {
                tracing::warn!(content = %digest, %error, "stored content cannot be read");
                return;
            }
        }
        if self.shelf().remove(digest) {
            self.changed.send_replace(());
        }
    }
}

/// Runs what blocks on a thread for that.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is being taken down, and with it whoever waits here.
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;

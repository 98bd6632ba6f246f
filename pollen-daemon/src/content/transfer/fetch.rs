//! Fetching content from whoever holds it, one holder after the other. Owns the order and the patience. Invariant: a
//! holder that sent anything false is not asked again for this fetch, and what another sent before it is kept.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pollen_common::identity::{Digest, NodeKey};
use pollen_common::wire::streams::content::{
    CONTENT_BYTES_MAX, GROUP_BYTES, Outline, Request, SIZE_BYTES, decode_size,
};
use pollen_common::wire::streams::{Denial, StreamKind, decode_status};
use quinn::{RecvStream, VarInt};
use tokio::time::{sleep, timeout};

use crate::content::disk::Part;
use crate::content::shelf::Full;
use crate::content::{Shared, blocking};
use crate::transport::open_stream;

/// How long a connection with a holder may take to come about, while others are left to ask.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long a holder may take to answer: it reads and verifies 64 MiB first, from a slow disk.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long a holder may send nothing.
const STALL_MAX: Duration = Duration::from_secs(5);
/// How often each holder is asked, as long as it does nothing wrong.
const ROUNDS_MAX: usize = 3;
/// Between rounds: a holder that was busy has served somebody by then.
const ROUND_PAUSE: Duration = Duration::from_millis(500);
/// Holders asked in one round.
const HOLDERS_MAX: usize = 8;
/// How far away a holder counts as that this node has no connection with: behind those that it has.
const FAR: Duration = Duration::from_secs(1);
/// The code of streams that this side gives up.
const CODE_GIVEN_UP: VarInt = VarInt::from_u32(1);

/// What is wanted, as a claim describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub digest: Digest,
    pub size_bytes: u64,
}

/// Content did not come. Nothing was stored.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("it is said to have {size_bytes} bytes, over the limit of {CONTENT_BYTES_MAX}")]
    TooLarge { size_bytes: u64 },
    #[error("nobody who is online holds it")]
    NoHolder,
    #[error("no holder gave it: {}", .0.join("; "))]
    AllFailed(Vec<String>),
    #[error(transparent)]
    Full(#[from] Full),
    #[error("storing it failed: {0}")]
    Io(#[from] io::Error),
    #[error("the mesh is not up yet")]
    NotStarted,
}

/// What one holder did not do.
#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("unreachable: {0}")]
    Unreachable(String),
    #[error("{0}")]
    Denied(Denial),
    #[error("sent nothing for too long")]
    Stalled,
    #[error("the connection broke")]
    Broken,
    /// Its answer does not belong to what was asked for.
    #[error("sent something else: {0}")]
    False(&'static str),
    #[error("storing it failed: {0}")]
    Io(#[from] io::Error),
}

impl AttemptError {
    const fn is_worth_another(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Stalled | Self::Broken | Self::Denied(Denial::Busy) => true,
            Self::Denied(_) | Self::False(_) | Self::Io(_) => false,
        }
    }
}

/// A fetch under way: what has come so far stays when a holder breaks off.
struct Fetch<'a> {
    shared: &'a Arc<Shared>,
    wanted: Wanted,
    part: Arc<Part>,
    /// Groups that are there and proved, from the first on.
    groups: u64,
}

/// Fetches and stores `wanted`. Nothing to do if it is there.
///
/// # Errors
/// [`FetchError`]
pub(in crate::content) async fn fetch(
    shared: &Arc<Shared>,
    wanted: Wanted,
    holders: &[NodeKey],
) -> Result<(), FetchError> {
    if wanted.size_bytes > CONTENT_BYTES_MAX as u64 {
        return Err(FetchError::TooLarge { size_bytes: wanted.size_bytes });
    }
    let _turn = shared.fetches.acquire().await.expect("this semaphore is never closed");
    if shared.shelf().has(&wanted.digest) {
        return Ok(());
    }
    let room = shared.reserve(wanted.size_bytes).await?;
    let opening = Arc::clone(shared);
    let part = Arc::new(blocking(move || opening.disk.part()).await?);
    let mut fetch = Fetch { shared, wanted, part, groups: 0 };
    fetch.ask_any(nearest_first(shared, holders).await?).await?;
    let Fetch { part, .. } = fetch;
    let part = Arc::into_inner(part).expect("each write of it has ended");
    shared.finish(part, wanted.digest, wanted.size_bytes).await?;
    drop(room);
    shared.tally.fetched(wanted.size_bytes);
    Ok(())
}

/// Those connected by their distance, then the others as they came.
async fn nearest_first(shared: &Shared, holders: &[NodeKey]) -> Result<Vec<NodeKey>, FetchError> {
    let mesh = shared.mesh.get().ok_or(FetchError::NotStarted)?;
    let me = shared.view.borrow().me;
    let mut order = Vec::new();
    for holder in holders.iter().filter(|holder| **holder != me) {
        let connection = mesh.connection(*holder).await;
        order.push((connection.map_or(FAR, |connection| connection.rtt()), *holder));
    }
    order.sort_by_key(|(rtt, _)| *rtt);
    order.truncate(HOLDERS_MAX);
    Ok(order.into_iter().map(|(_, holder)| holder).collect())
}

impl Fetch<'_> {
    async fn ask_any(&mut self, mut holders: Vec<NodeKey>) -> Result<(), FetchError> {
        if holders.is_empty() {
            return Err(FetchError::NoHolder);
        }
        let mut failed = Vec::new();
        for round in 0..ROUNDS_MAX {
            if round > 0 {
                sleep(ROUND_PAUSE).await;
            }
            failed.clear();
            for holder in std::mem::take(&mut holders) {
                let began = Instant::now();
                let error = match self.ask_one(holder).await {
                    Ok(()) => return Ok(()),
                    Err(AttemptError::Io(error)) => return Err(error.into()),
                    Err(error) => error,
                };
                if let AttemptError::False(what) = error {
                    self.shared.tally.lied();
                    tracing::warn!(%holder, content = %self.wanted.digest, what, "a holder sent what it was not asked for");
                }
                tracing::debug!(%holder, %error, groups = self.groups, took = ?began.elapsed(), "content did not come");
                failed.push(format!("{}: {error}", holder.short()));
                if error.is_worth_another() {
                    holders.push(holder);
                }
            }
            if holders.is_empty() {
                break;
            }
        }
        Err(FetchError::AllFailed(failed))
    }

    /// All that is still missing, from `holder`.
    async fn ask_one(&mut self, holder: NodeKey) -> Result<(), AttemptError> {
        let connection = self.connection(holder).await?;
        let opened = timeout(STALL_MAX, open_stream(&connection, StreamKind::Content)).await;
        let (mut send, mut recv) = opened.map_err(|_| AttemptError::Stalled)?.map_err(|_| AttemptError::Broken)?;
        let from_group = u32::try_from(self.groups).expect("64 MiB have a thousand groups");
        let request = Request { digest: self.wanted.digest, from_group };
        // The end of the direction tells the holder that nothing else follows.
        let asked = async { send.write_all(&request.opening()).await.is_ok() && send.finish().is_ok() };
        if timeout(STALL_MAX, asked).await != Ok(true) {
            return Err(AttemptError::Broken);
        }
        let result = self.receive(&mut recv).await;
        // Whatever else it has to say is not wanted; after its end this does nothing.
        let _ = recv.stop(CODE_GIVEN_UP);
        result
    }

    async fn connection(&self, holder: NodeKey) -> Result<quinn::Connection, AttemptError> {
        let unreachable = |why: String| AttemptError::Unreachable(why);
        let mesh = self.shared.mesh.get().ok_or_else(|| unreachable("the mesh is not up".into()))?;
        if let Some(connection) = mesh.connection(holder).await {
            return Ok(connection);
        }
        let addrs = self.shared.view.borrow().nodes.get(&holder).map(|node| node.addrs.clone());
        let addrs = addrs.ok_or_else(|| unreachable("it is no member".into()))?;
        let dialled = timeout(CONNECT_MAX, mesh.connect(holder, addrs)).await;
        dialled.map_err(|_| unreachable("no answer".into()))?.map_err(|error| unreachable(error.to_string()))
    }

    async fn receive(&mut self, recv: &mut RecvStream) -> Result<(), AttemptError> {
        let outline = Arc::new(timeout(ANSWER_MAX, self.outline(recv)).await.map_err(|_| AttemptError::Stalled)??);
        let mut group = Vec::new();
        while self.groups < outline.groups() {
            group.resize(outline.group_len(self.groups), 0);
            read(recv, &mut group).await?;
            let (part, of, index) = (Arc::clone(&self.part), Arc::clone(&outline), self.groups);
            let kept = blocking(move || {
                let proved = of.proves(index, &group);
                if proved {
                    part.write_group(index, &group)?;
                }
                drop(part);
                io::Result::Ok((proved, group))
            });
            let (proved, buffer) = kept.await?;
            group = buffer;
            if !proved {
                return Err(AttemptError::False("bytes of another digest"));
            }
            self.groups += 1;
        }
        Ok(())
    }

    /// The holder's answer up to the first group.
    async fn outline(&self, recv: &mut RecvStream) -> Result<Outline, AttemptError> {
        let mut status = [0];
        recv.read_exact(&mut status).await.map_err(|_| AttemptError::Broken)?;
        match decode_status(status[0]) {
            Some(true) => {}
            Some(false) => {
                recv.read_exact(&mut status).await.map_err(|_| AttemptError::Broken)?;
                return Err(AttemptError::Denied(Denial::from_code(status[0])));
            }
            None => return Err(AttemptError::False("an answer of another format")),
        }
        let mut size = [0; SIZE_BYTES];
        recv.read_exact(&mut size).await.map_err(|_| AttemptError::Broken)?;
        let (size_bytes, values_len) = decode_size(size).ok_or(AttemptError::False("a size over the limit"))?;
        // Only the size fixes the tree's shape: without it, values of inner nodes would pass for groups.
        if size_bytes != self.wanted.size_bytes {
            return Err(AttemptError::False("content of another size"));
        }
        let mut values = vec![0; values_len];
        recv.read_exact(&mut values).await.map_err(|_| AttemptError::Broken)?;
        let values = values.chunks_exact(32).map(|value| value.try_into().expect("32 bytes")).collect();
        Outline::verified(self.wanted.digest, size_bytes, values).ok_or(AttemptError::False("values of another digest"))
    }
}

/// Fills `bytes`, as long as some of it comes now and then.
async fn read(recv: &mut RecvStream, bytes: &mut [u8]) -> Result<(), AttemptError> {
    debug_assert!(bytes.len() <= GROUP_BYTES, "one group at a time");
    let mut filled = 0;
    while filled < bytes.len() {
        let read = timeout(STALL_MAX, recv.read(&mut bytes[filled..])).await.map_err(|_| AttemptError::Stalled)?;
        match read {
            Ok(Some(count)) => filled += count,
            Ok(None) | Err(_) => return Err(AttemptError::Broken),
        }
    }
    Ok(())
}

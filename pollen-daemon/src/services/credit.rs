//! Credit of service streams: what each receiver will take, said beside the streams, so that a stream whose reader has
//! stopped holds a few KiB of this node and nothing of the connection. Owns the promises and the streams that carry
//! them; knows nothing of sockets or standing. Why above QUIC: `docs/adr/0304-credit-of-service-streams.md`.
//! Invariants: a sender sends no byte beyond what its receiver granted; a receiver reads all that comes at once, and
//! grants when it was written to the local socket; whoever sends beyond its credit is reset.

mod pool;
mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use pollen_common::wire::streams::StreamKind;
use pollen_common::wire::streams::credit::{Credit, Credits, INITIAL_BYTES};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use tokio::sync::{Notify, watch};

use self::pool::Pool;
use self::window::Window;
use crate::transport::{self, code};

/// A sender that had nothing to send for so long gives back what it was granted and does not use.
pub(super) const RETURN_AFTER: Duration = Duration::from_secs(1);
/// What is granted at once on a path where waiting for the first grant would be felt.
const START_BYTES: u64 = 128 * 1024;
const START_RTT_MIN: Duration = Duration::from_millis(2);
/// Credit goes before what it is for.
const PRIORITY: i32 = 1;

/// The connections that have credit, by their stable identifiers.
#[derive(Debug, Default)]
pub(super) struct Ledgers(Mutex<BTreeMap<usize, Arc<Ledger>>>);

impl Ledgers {
    /// The one of `connection`.
    pub(super) fn of(&self, connection: &Connection) -> Arc<Ledger> {
        let id = connection.stable_id();
        let mut ledgers = self.lock();
        let ledger = Arc::clone(ledgers.entry(id).or_insert_with(|| Ledger::new(connection.clone())));
        // Its end has been told already, or will be told: either way nothing stays.
        if connection.close_reason().is_some() {
            ledgers.remove(&id);
        }
        ledger
    }

    /// The connection is gone.
    pub(super) fn closed(&self, stable_id: usize) {
        self.lock().remove(&stable_id);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, Arc<Ledger>>> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

/// The credit of one connection, both ways.
#[derive(Debug)]
pub(super) struct Ledger {
    connection: Connection,
    state: Mutex<State>,
    /// Something is to be said.
    said: Notify,
}

#[derive(Debug, Default)]
struct State {
    pool: Pool,
    inflows: BTreeMap<u64, Taking>,
    outflows: BTreeMap<u64, watch::Sender<u64>>,
    /// Whose grants have changed and are not said yet.
    unsaid: BTreeSet<u64>,
    /// What is given back: by stream, what was granted and what is enough.
    returned: BTreeMap<u64, (u64, u64)>,
    writing: bool,
    reading: bool,
}

/// One direction that we receive.
#[derive(Debug)]
struct Taking {
    service: Arc<str>,
    window: Window,
    granted: u64,
    arrived: u64,
    taken: u64,
}

impl Taking {
    fn extra(&self) -> u64 {
        (self.granted - self.taken).saturating_sub(INITIAL_BYTES)
    }

    /// Grants up to the window where the pool has room; what all start with is always there. Whether that is news.
    fn grant(&mut self, pool: &mut Pool) -> bool {
        let before = self.extra();
        let wanted = self.taken + self.window.bytes();
        let allowed = self.taken + INITIAL_BYTES + before + pool.room(&self.service);
        let total = wanted.min(allowed).max(self.granted);
        // A quarter of the window at a time, or each write would be answered by a packet.
        if (total - self.granted) * 4 < total - self.taken {
            return false;
        }
        self.granted = total;
        pool.hold(&self.service, before, self.extra());
        true
    }
}

impl Ledger {
    fn new(connection: Connection) -> Arc<Self> {
        Arc::new(Self { connection, state: Mutex::default(), said: Notify::new() })
    }

    /// Both directions of a stream of `service`, to be called before the peer can learn of it.
    pub(super) fn flow(self: &Arc<Self>, stream: u64, service: &str) -> Flow {
        let taking =
            Taking { service: service.into(), window: Window::default(), granted: INITIAL_BYTES, arrived: 0, taken: 0 };
        let (sender, limit) = watch::channel(INITIAL_BYTES);
        let mut state = self.lock();
        state.inflows.insert(stream, taking);
        state.outflows.insert(stream, sender);
        drop(state);
        let ledger = Arc::clone(self);
        Flow {
            inflow: Inflow { ledger: Arc::clone(&ledger), stream },
            outflow: Outflow { ledger, stream, sent: 0, limit },
        }
    }

    /// The peer's credit stream, behind its kind. Read to its end, which is the connection's.
    pub(super) async fn read(self: Arc<Self>, mut recv: RecvStream) {
        if std::mem::replace(&mut self.lock().reading, true) {
            return self.broken("a second credit stream");
        }
        let mut credits = Credits::default();
        loop {
            match recv.read_chunk(usize::MAX, true).await {
                Ok(Some(chunk)) => {
                    if credits.push(&chunk.bytes, |credit| self.hear(credit)).is_err() {
                        return self.broken("no message of credit");
                    }
                }
                Err(quinn::ReadError::ConnectionLost(_)) => return,
                Ok(None) | Err(_) => return self.broken("the credit stream ended"),
            }
        }
    }

    fn broken(&self, why: &str) {
        tracing::debug!(why, "the peer broke the format of credit");
        self.connection.close(VarInt::from_u32(code::CREDIT), why.as_bytes());
    }

    /// What is unknown, late or less says nothing.
    fn hear(&self, credit: Credit) {
        let mut state = self.lock();
        match credit {
            Credit::Grant { stream, total } => {
                if let Some(limit) = state.outflows.get(&stream) {
                    limit.send_if_modified(|limit| {
                        let more = total > *limit;
                        *limit = total.max(*limit);
                        more
                    });
                }
            }
            Credit::Return { stream, granted, total } => {
                let State { pool, inflows, .. } = &mut *state;
                if let Some(taking) = inflows.get_mut(&stream)
                    && taking.granted == granted
                    && (taking.arrived..granted).contains(&total)
                {
                    let before = taking.extra();
                    taking.granted = total;
                    pool.hold(&taking.service, before, taking.extra());
                }
            }
        }
    }

    /// Something waits to be said: by the task that does so, started where there is none.
    fn say(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        let writing = std::mem::replace(&mut state.writing, true);
        drop(state);
        self.said.notify_one();
        if !writing {
            drop(tokio::spawn(Arc::clone(self).write()));
        }
    }

    /// Says what there is to say, until the connection is gone.
    async fn write(self: Arc<Self>) {
        let Ok((mut send, _recv)) = transport::open_stream(&self.connection, StreamKind::Credit).await else { return };
        // Fails on a stream that is gone already, as writing will say.
        let _ = send.set_priority(PRIORITY);
        loop {
            tokio::select! {
                () = self.said.notified() => {}
                _ = self.connection.closed() => return,
            }
            if send.write_all(&self.unsaid()).await.is_err() {
                return;
            }
        }
    }

    fn unsaid(&self) -> Vec<u8> {
        let mut state = self.lock();
        let State { inflows, unsaid, returned, .. } = &mut *state;
        let mut bytes = Vec::new();
        for stream in std::mem::take(unsaid) {
            if let Some(taking) = inflows.get(&stream) {
                Credit::Grant { stream, total: taking.granted }.put(&mut bytes);
            }
        }
        for (stream, (granted, total)) in std::mem::take(returned) {
            Credit::Return { stream, granted, total }.put(&mut bytes);
        }
        bytes
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }
}

/// Both directions of one stream.
#[derive(Debug)]
pub(super) struct Flow {
    pub inflow: Inflow,
    pub outflow: Outflow,
}

/// The peer sent more than it was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer sent more than it was granted")]
pub(super) struct Overrun;

/// What we receive of one stream. Gives back what it holds when dropped.
#[derive(Debug)]
pub(super) struct Inflow {
    ledger: Arc<Ledger>,
    stream: u64,
}

impl Inflow {
    /// Both ends know the stream: on a long path the first grant should not wait for the first bytes.
    pub(super) fn start(&self) {
        if self.ledger.connection.rtt() < START_RTT_MIN {
            return;
        }
        self.change(|taking, pool| {
            taking.window = Window::new(START_BYTES, Instant::now());
            taking.grant(pool)
        });
    }

    /// `bytes` more have come.
    ///
    /// # Errors
    /// [`Overrun`]: the stream is to be reset.
    pub(super) fn arrived(&self, bytes: usize) -> Result<(), Overrun> {
        let mut state = self.ledger.lock();
        let Some(taking) = state.inflows.get_mut(&self.stream) else { return Err(Overrun) };
        taking.arrived += bytes as u64;
        if taking.arrived <= taking.granted { Ok(()) } else { Err(Overrun) }
    }

    /// `bytes` more of what has come were taken by whom they are for.
    pub(super) fn taken(&self, bytes: usize) {
        let connection = &self.ledger.connection;
        self.change(|taking, pool| {
            let before = taking.extra();
            taking.taken += bytes as u64;
            pool.hold(&taking.service, before, taking.extra());
            taking.window.taken(taking.taken, Instant::now(), || connection.rtt());
            taking.grant(pool)
        });
    }

    fn change(&self, change: impl FnOnce(&mut Taking, &mut Pool) -> bool) {
        let mut state = self.ledger.lock();
        let State { pool, inflows, .. } = &mut *state;
        let Some(taking) = inflows.get_mut(&self.stream) else { return };
        if change(taking, pool) {
            state.unsaid.insert(self.stream);
            self.ledger.say(state);
        }
    }
}

impl Drop for Inflow {
    fn drop(&mut self) {
        let mut state = self.ledger.lock();
        let State { pool, inflows, unsaid, .. } = &mut *state;
        unsaid.remove(&self.stream);
        if let Some(taking) = inflows.remove(&self.stream) {
            pool.hold(&taking.service, taking.extra(), 0);
        }
    }
}

/// What we send of one stream.
#[derive(Debug)]
pub(super) struct Outflow {
    ledger: Arc<Ledger>,
    stream: u64,
    sent: u64,
    limit: watch::Receiver<u64>,
}

impl Outflow {
    /// How many bytes may be sent now.
    pub(super) fn room(&self) -> usize {
        usize::try_from(self.limit.borrow().saturating_sub(self.sent)).unwrap_or(usize::MAX)
    }

    /// Resolves when that is any.
    pub(super) async fn granted(&mut self) {
        let sent = self.sent;
        // The sender lives in the ledger for as long as we do.
        let _ = self.limit.wait_for(|limit| *limit > sent).await;
    }

    /// `bytes` are sent, no more than there was room for.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
        debug_assert!(self.sent <= *self.limit.borrow(), "no byte goes beyond the credit");
    }

    /// Nothing is to be sent for now: what was granted beyond what all start with is of use to others.
    pub(super) fn give_back(&self) {
        let granted = *self.limit.borrow();
        let total = self.sent + INITIAL_BYTES;
        if granted <= total {
            return;
        }
        let mut state = self.ledger.lock();
        let Some(limit) = state.outflows.get(&self.stream) else { return };
        limit.send_replace(total);
        state.returned.insert(self.stream, (granted, total));
        self.ledger.say(state);
    }
}

impl Drop for Outflow {
    fn drop(&mut self) {
        let mut state = self.ledger.lock();
        state.outflows.remove(&self.stream);
        state.returned.remove(&self.stream);
    }
}

/// The number of a stream, as credit calls it.
pub(super) fn number(send: &SendStream) -> u64 {
    VarInt::from(send.id()).into_inner()
}

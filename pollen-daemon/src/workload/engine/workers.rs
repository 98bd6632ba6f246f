//! The threads that guests run on, each with a runtime of its own. Must not know what runs. Invariant: the number of
//! threads is constant, and none of them serves the mesh or an operator's commands; those who call guests again and
//! again may be served here.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;
use tokio::task::JoinHandle;

thread_local! {
    /// Which pool of workers this thread belongs to, by address, and its place there.
    static WORKER: Cell<Option<(usize, usize)>> = const { Cell::new(None) };
    /// Where this thread's guests that compute at length are counted, if it is a worker.
    static LONG: RefCell<Option<Arc<AtomicUsize>>> = const { RefCell::new(None) };
}

/// A pool of worker threads. They end when it is dropped.
pub struct Workers {
    workers: Vec<Worker>,
    next_seat: AtomicUsize,
    /// Dropped with the pool, which is what the threads wait for.
    _running: watch::Sender<()>,
}

struct Worker {
    runtime: Handle,
    load: Arc<AtomicUsize>,
    /// Guests that compute at length.
    long: Arc<AtomicUsize>,
}

impl Workers {
    pub fn start(count: usize) -> io::Result<Arc<Self>> {
        let (running, ended) = watch::channel(());
        let mut workers = Vec::with_capacity(count);
        let mut starts = Vec::with_capacity(count);
        for index in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let long = Arc::<AtomicUsize>::default();
            workers.push(Worker { runtime: runtime.handle().clone(), load: Arc::default(), long: Arc::clone(&long) });
            let (start, pool) = std::sync::mpsc::channel::<usize>();
            starts.push(start);
            let mut ended = ended.clone();
            thread::Builder::new().name(format!("pln-guests-{index}")).spawn(move || {
                let Ok(pool) = pool.recv() else { return };
                WORKER.set(Some((pool, index)));
                LONG.set(Some(long));
                // Ends with an error when the sender is gone.
                runtime.block_on(async { while ended.changed().await.is_ok() {} });
                // Guests that still run are dropped where they are.
                runtime.shutdown_background();
            })?;
        }
        let pool = Arc::new(Self { workers, next_seat: AtomicUsize::new(0), _running: running });
        for start in starts {
            // A thread that is gone already has nothing to start.
            let _ = start.send(pool.identity());
        }
        Ok(pool)
    }

    pub fn count(&self) -> usize {
        self.workers.len()
    }

    /// The runtime of each worker in turn.
    pub fn next_seat(&self) -> Handle {
        let next = self.next_seat.fetch_add(1, Ordering::Relaxed) % self.workers.len();
        self.workers[next].runtime.clone()
    }

    /// The place of the current thread among the workers, if it is one.
    pub fn here(&self) -> Option<usize> {
        WORKER.get().filter(|(pool, _)| *pool == self.identity()).map(|(_, index)| index)
    }

    /// Runs `future` on the worker that has the least to do. It is dropped when the returned task is.
    pub fn spawn<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        let least =
            self.workers.iter().enumerate().min_by_key(|(_, worker)| worker.burden()).expect("a pool has workers");
        self.spawn_on(least.0, future)
    }

    /// Whether another worker would have a new call's turn sooner: what runs here computes at length, and less does there.
    pub fn is_long(&self, index: usize) -> bool {
        let long = |worker: &Worker| worker.long.load(Ordering::Relaxed);
        let here = long(&self.workers[index]);
        here > 0 && self.workers.iter().any(|worker| long(worker) < here)
    }

    /// Runs `future` on one worker.
    pub fn spawn_on<F>(&self, index: usize, future: F) -> Task<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        let worker = &self.workers[index];
        let busy = Busy::new(&worker.load);
        Task(Some(worker.runtime.spawn(async move {
            let _busy = busy;
            future.await
        })))
    }

    fn identity(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

impl Worker {
    /// What has the least of it has the most time for another.
    fn burden(&self) -> (usize, usize) {
        (self.long.load(Ordering::Relaxed), self.load.load(Ordering::Relaxed))
    }
}

/// A guest on this thread that was interrupted because it computes at length. Counted until it is dropped.
pub struct Long(Arc<AtomicUsize>);

impl Long {
    /// Of the worker that this thread is, if it is one.
    pub fn here() -> Option<Self> {
        let counter = LONG.with_borrow(Option::clone)?;
        counter.fetch_add(1, Ordering::Relaxed);
        Some(Self(counter))
    }
}

impl Drop for Long {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Busy(Arc<AtomicUsize>);

impl Busy {
    fn new(load: &Arc<AtomicUsize>) -> Self {
        load.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(load))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What runs on a worker. Gives `None` when it panicked or the workers are gone.
#[must_use = "dropping it stops what runs"]
pub struct Task<T>(Option<JoinHandle<T>>);

impl<T> Task<T> {
    /// Lets it run on though nobody waits for it.
    pub fn detach(mut self) {
        self.0 = None;
    }
}

impl<T> Future for Task<T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        match &mut self.0 {
            Some(handle) => Pin::new(handle).poll(context).map(Result::ok),
            None => Poll::Ready(None),
        }
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_goes_to_the_worker_that_has_the_least_to_do() {
        let workers = Workers::start(2).expect("threads are left");
        let at = |workers: &Arc<Workers>| {
            let workers = Arc::clone(workers);
            async move { workers.here() }
        };
        let (hold, held) = tokio::sync::oneshot::channel::<()>();
        let first = workers.spawn(async move { held.await.is_ok() });
        for _ in 0..3 {
            assert_eq!(workers.spawn(at(&workers)).await, Some(Some(1)), "the first one is busy");
        }
        hold.send(()).expect("it waits");
        assert_eq!(first.await, Some(true));
        assert_eq!(workers.here(), None, "the test's own thread is no worker");
    }

    #[tokio::test]
    async fn a_worker_whose_guest_computes_at_length_is_passed_over() {
        let workers = Workers::start(2).expect("threads are left");
        let (hold, held) = tokio::sync::oneshot::channel::<()>();
        let computing = workers.spawn_on(0, async move {
            let _long = Long::here().expect("a worker");
            held.await.is_ok()
        });
        let idle = workers.spawn_on(0, async {});
        assert_eq!(idle.await, Some(()), "behind it, so that it has begun");
        assert!(workers.is_long(0) && !workers.is_long(1));
        hold.send(()).expect("it waits");
        assert_eq!(computing.await, Some(true));
        assert!(!workers.is_long(0));
        assert!(Long::here().is_none(), "the test's own thread is no worker");
    }

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_is_dropped() {
        let workers = Workers::start(1).expect("threads are left");
        let (hold, held) = tokio::sync::oneshot::channel::<()>();
        drop(workers.spawn(held));
        let mut hold = hold;
        hold.closed().await;
        assert_eq!(workers.spawn(async { 1 }).await, Some(1));
    }

    #[tokio::test]
    async fn what_is_detached_runs_on() {
        let workers = Workers::start(1).expect("threads are left");
        let (tell, told) = tokio::sync::oneshot::channel();
        workers.spawn(async move { tell.send(5) }).detach();
        assert_eq!(told.await, Ok(5));
    }

    #[tokio::test]
    async fn a_panic_ends_its_own_task_only() {
        let workers = Workers::start(1).expect("threads are left");
        assert_eq!(workers.spawn(async { panic!("as planned") }).await, None::<()>);
        assert_eq!(workers.spawn(async { 2 }).await, Some(2));
    }
}

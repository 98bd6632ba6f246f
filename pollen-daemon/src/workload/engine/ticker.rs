//! What interrupts busy guests: a thread that advances wasmtime's epoch while calls run, so that a guest that computes
//! gives way to others and meets its time limit. Invariant: while nothing runs, it sleeps without a timer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

/// How long a guest computes before others have their turn. A small call behind a busy guest waits that long; at this
/// rate the ticking itself costs a thousandth of a processor.
const TICK: Duration = Duration::from_millis(2);
/// Ticks without a call before the thread goes to sleep: waking it costs a call some microseconds.
const LINGER_TICKS: u32 = 50;

/// The thread, and how many calls it ticks for.
pub struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
}

struct Shared {
    running: AtomicUsize,
    asleep: AtomicBool,
    stopped: AtomicBool,
}

impl Ticker {
    pub fn start(engine: wasmtime::Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            running: AtomicUsize::new(0),
            asleep: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        });
        let thread = thread::Builder::new()
            .name("pln-ticker".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.tick(&engine)
            })?
            .thread()
            .clone();
        Ok(Self { shared, thread })
    }

    /// Calls that run now.
    pub fn running(&self) -> usize {
        self.shared.running.load(Ordering::Relaxed)
    }

    /// Counts a call, unless `max` run already. Each that was counted is to [`leave`](Self::leave).
    pub fn enter(&self, max: usize) -> bool {
        if self.shared.running.fetch_add(1, Ordering::SeqCst) >= max {
            self.leave();
            return false;
        }
        // Looked at before it is written, as every call comes through here.
        if self.shared.asleep.load(Ordering::SeqCst) && self.shared.asleep.swap(false, Ordering::SeqCst) {
            self.thread.unpark();
        }
        true
    }

    pub fn leave(&self) {
        self.shared.running.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether the thread sleeps without a timer.
    #[cfg(test)]
    pub fn sleeps(&self) -> bool {
        self.shared.asleep.load(Ordering::SeqCst)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

impl Shared {
    fn tick(&self, engine: &wasmtime::Engine) {
        let mut idle = 0;
        while !self.stopped.load(Ordering::SeqCst) {
            idle = if self.running.load(Ordering::SeqCst) == 0 { idle + 1 } else { 0 };
            if idle > LINGER_TICKS {
                idle = 0;
                self.asleep.store(true, Ordering::SeqCst);
                // A call that came in between has seen `asleep` false: it is noticed here. One that comes from now on
                // sees it true and unparks, before or after the thread parks.
                if self.running.load(Ordering::SeqCst) == 0 && !self.stopped.load(Ordering::SeqCst) {
                    thread::park();
                }
                self.asleep.store(false, Ordering::SeqCst);
            } else {
                // Parked rather than asleep, so that a stop does not wait.
                thread::park_timeout(TICK);
            }
            engine.increment_epoch();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn until(met: impl Fn() -> bool) {
        let start = std::time::Instant::now();
        while !met() {
            assert!(start.elapsed() < Duration::from_secs(10), "the condition was never met");
            thread::sleep(TICK);
        }
    }

    #[test]
    fn it_sleeps_while_nothing_runs_and_wakes_for_a_call() {
        let ticker = Ticker::start(wasmtime::Engine::default()).expect("threads are left");
        until(|| ticker.sleeps());
        assert!(ticker.enter(1));
        until(|| !ticker.sleeps());
        ticker.leave();
        until(|| ticker.sleeps());
    }

    #[test]
    fn no_more_calls_enter_than_the_maximum() {
        let ticker = Ticker::start(wasmtime::Engine::default()).expect("threads are left");
        assert!(ticker.enter(2) && ticker.enter(2) && !ticker.enter(2));
        ticker.leave();
        assert!(ticker.enter(2));
        assert_eq!(ticker.running(), 2);
    }
}

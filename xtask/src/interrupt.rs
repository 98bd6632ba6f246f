//! Ctrl-C and SIGTERM as a flag, so that what is dropped on the way out cleans up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on the signals set a flag and end nothing.
pub fn catch() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler does nothing but store to an atomic, which is safe at any moment.
        unsafe { libc::signal(signal, note as *const () as libc::sighandler_t) };
    }
}

/// Whether one has come.
pub fn came() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Waits for one.
pub fn wait() {
    while !came() {
        std::thread::sleep(Duration::from_millis(100));
    }
}

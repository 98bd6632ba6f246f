//! What the process keeps of memory. Owns the allocator's settings and the going over of what lies idle; must not know
//! who used it. Invariant: a load's memory is given back within a minute of its end, and nothing is gone over while
//! nothing happens.

use std::time::Duration;

/// The most arenas: the threads that make and drop most (guests, mesh, control) hardly wait for each other then, and each
/// arena keeps free pieces of its own.
#[cfg(target_env = "gnu")]
const ARENAS_MAX: libc::c_int = 4;
/// What is asked for at once and comes from an arena: bodies of calls up to their limit. Mapping them afresh for each
/// call costs a fault for every page.
#[cfg(target_env = "gnu")]
const MAPPED_FROM_BYTES: libc::c_int = 32 * 1024 * 1024;
/// Free bytes at the end of an arena that stay with it. Room for the bodies of a few calls of a MiB, which would else be
/// mapped anew each time; but what is here is not gone over, and each arena may have as much.
#[cfg(target_env = "gnu")]
const KEPT_AT_THE_END_BYTES: libc::c_int = 6 * 1024 * 1024;
/// How often to look whether anything lies idle.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// Free bytes that are not worth it.
const IDLE_BYTES_MIN: usize = 4 * 1024 * 1024;

/// Sets up the allocator. To be called before any other thread exists.
pub(super) fn set_up() {
    #[cfg(target_env = "gnu")]
    for (option, value) in [
        (libc::M_ARENA_MAX, ARENAS_MAX),
        (libc::M_MMAP_THRESHOLD, MAPPED_FROM_BYTES),
        (libc::M_TRIM_THRESHOLD, KEPT_AT_THE_END_BYTES),
    ] {
        // SAFETY: the call only sets an option of the allocator. One that it does not take leaves its default.
        unsafe { libc::mallopt(option, value) };
    }
}

/// Gives back what lies idle, from time to time, as long as anything changes.
pub(super) async fn keep_trimmed() {
    let mut seen = Use::default();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = Use::now();
        if now != seen && now.free_bytes >= IDLE_BYTES_MIN {
            give_back();
        }
        seen = now;
    }
}

/// What the allocator has in use, and what it keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Use {
    used_bytes: usize,
    free_bytes: usize,
}

#[cfg(target_env = "gnu")]
impl Use {
    fn now() -> Self {
        // SAFETY: the call has no argument and reads the allocator's own numbers, under its locks.
        let numbers = unsafe { libc::mallinfo2() };
        Self { used_bytes: numbers.uordblks, free_bytes: numbers.fordblks }
    }
}

#[cfg(target_env = "gnu")]
fn give_back() {
    // SAFETY: the call gives whole free pages back to the kernel, under the allocator's locks.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators give back by themselves.
#[cfg(not(target_env = "gnu"))]
impl Use {
    fn now() -> Self {
        Self::default()
    }
}

#[cfg(not(target_env = "gnu"))]
fn give_back() {}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    fn resident_bytes() -> usize {
        let status = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
        let pages: usize =
            status.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("the second is a number");
        pages * rustix::param::page_size()
    }

    /// How much of a range is resident; nothing of one that is not mapped any more.
    fn resident_of(start: usize, bytes: usize) -> usize {
        let page = rustix::param::page_size();
        let start = start.next_multiple_of(page);
        let mut pages = vec![0_u8; bytes / page - 1];
        // SAFETY: the call reads page tables, not memory, and writes a byte for each whole page of the range.
        let known = unsafe { libc::mincore(start as *mut libc::c_void, pages.len() * page, pages.as_mut_ptr()) };
        if known == 0 { pages.iter().filter(|page| **page & 1 == 1).count() * page } else { 0 }
    }

    #[test]
    fn a_thread_that_freed_all_it_had_leaves_little_behind() {
        const PIECE_BYTES: usize = 1024 * 1024;
        // Within one arena's heap: a whole one that is free goes back whatever the settings are.
        const PIECES: usize = 40;
        set_up();
        let thread = std::thread::spawn(|| {
            // Before the pieces: behind them it would keep the end of the arena from shrinking.
            let mut starts = Vec::with_capacity(PIECES);
            let pieces: Vec<_> = (0..PIECES).map(|_| vec![1_u8; PIECE_BYTES]).collect();
            starts.extend(pieces.iter().map(|piece| piece.as_ptr().addr()));
            starts
        });
        let starts = thread.join().expect("it only allocates");
        let after: usize = starts.iter().map(|start| resident_of(*start, PIECE_BYTES)).sum();
        assert!(after < PIECES * PIECE_BYTES / 2, "{after} bytes after");
    }

    #[test]
    fn what_lies_idle_is_given_back() {
        const PIECE_BYTES: usize = 16 * 1024;
        const PIECES: usize = 4096;
        let mut pieces: Vec<_> = (0..PIECES).map(|_| vec![1_u8; PIECE_BYTES]).collect();
        // The last one keeps the end of the arena from shrinking by itself.
        pieces.drain(..PIECES - 1);
        let before = resident_bytes();
        give_back();
        let after = resident_bytes();
        assert!(after + PIECES * PIECE_BYTES / 2 < before, "{before} bytes before, {after} after");
        assert!(pieces[0].iter().all(|&byte| byte == 1));
    }
}

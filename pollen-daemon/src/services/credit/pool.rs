//! The memory that the streams of one connection may be promised beyond what each has from the start. Pure.
//! Invariant: all promises together stay within the pool, and one service never holds more than it leaves free.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Promised and not yet written to a local socket, all streams of a connection together.
pub(super) const POOL_BYTES: u64 = 24 << 20;
/// What one promise may take of what its service may still have: the next one finds room, too.
const SHARE: u64 = 8;

/// What is promised, by service.
#[derive(Debug, Default)]
pub(super) struct Pool {
    held: u64,
    by_service: BTreeMap<Arc<str>, u64>,
}

impl Pool {
    /// How much more a stream of `service` may be promised now. The dynamic threshold of Choudhury and Hahne: what a
    /// service may hold is what is free, so that stalled services leave the next one a share whatever they do.
    pub(super) fn room(&self, service: &str) -> u64 {
        let held = self.by_service.get(service).copied().unwrap_or_default();
        (POOL_BYTES - self.held).saturating_sub(held) / SHARE
    }

    /// A stream of `service` has `now` where it had `before`.
    pub(super) fn hold(&mut self, service: &Arc<str>, before: u64, now: u64) {
        if before == now {
            return;
        }
        self.held = self.held - before + now;
        assert!(self.held <= POOL_BYTES, "no promise goes beyond the room there is");
        let held = self.by_service.entry(Arc::clone(service)).or_default();
        *held = *held - before + now;
        if *held == 0 {
            self.by_service.remove(service);
        }
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> u64 {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A service of which a thousand streams take all that they get, and give nothing back.
    fn greedy(pool: &mut Pool, service: &str) {
        let service: Arc<str> = service.into();
        for _ in 0..1000 {
            let room = pool.room(&service);
            pool.hold(&service, 0, room);
        }
    }

    #[test]
    fn a_service_that_takes_all_it_can_leaves_the_others_room() {
        let mut pool = Pool::default();
        for (index, service) in ["a", "b", "c"].into_iter().enumerate() {
            let free = POOL_BYTES / (1 << index);
            assert!(pool.room(service) >= free / SHARE - 1000, "{service} finds {}", pool.room(service));
            greedy(&mut pool, service);
            assert!(pool.room(service) < 1000, "it has its share");
        }
        assert!(pool.held() <= POOL_BYTES / 8 * 7);
        pool.hold(&"a".into(), pool.by_service["a"], 0);
        assert!(pool.room("d") > POOL_BYTES / 4 / SHARE, "what is given back is there for the next");
    }
}

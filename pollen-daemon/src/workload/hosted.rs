//! The versions that this node serves, and the calls of each that run. Owns that table; must not know how a version
//! becomes ready, nor where calls come from. Invariant: a version that is being stopped begins no call, and one that
//! runs keeps what it needs until it ends.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use pollen_common::identity::Digest;
use pollen_common::views::{Name, SeedVersion, VersionId};
use tokio::sync::watch;

use super::calls::{Host, Instance};
use super::guest::Guest;
use super::{CallError, Invocation, World};

/// The table. Clones share it. `G` is what runs calls; anything else only in tests.
pub struct Hosted<G = Guest>(Arc<Mutex<BTreeMap<VersionId, Arc<Replica<G>>>>>);

/// A version as the table has it.
pub struct Replica<G> {
    pub guest: G,
    pub version: SeedVersion,
    /// The seed that it was made ready for.
    pub name: Name,
    in_flight: watch::Sender<InFlight>,
}

#[derive(Clone, Copy, Default)]
struct InFlight {
    calls: usize,
    stopping: bool,
}

/// A version during a call: it is not let go before this is dropped.
pub struct Running<G = Guest>(Arc<Replica<G>>);

/// A version in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub version: SeedVersion,
    pub name: Name,
    pub in_flight: usize,
    pub stopping: bool,
}

impl<G> Clone for Hosted<G> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<G> Default for Hosted<G> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<G> Hosted<G> {
    fn table(&self) -> MutexGuard<'_, BTreeMap<VersionId, Arc<Replica<G>>>> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }

    /// From here on calls of `version` begin. In place of what was there under it.
    pub fn add(&self, guest: G, version: SeedVersion, name: Name) {
        let in_flight = watch::Sender::new(InFlight::default());
        self.table().insert(version.id(), Arc::new(Replica { guest, version, name, in_flight }));
    }

    /// The version, for one call; `None` where it is not hosted or is being stopped.
    #[must_use]
    pub fn begin(&self, version: &VersionId) -> Option<Running<G>> {
        let replica = Arc::clone(self.table().get(version)?);
        let mut begun = false;
        replica.in_flight.send_if_modified(|now| {
            begun = !now.stopping;
            now.calls += usize::from(begun);
            // Only an end is waited for.
            false
        });
        // Lazily: a `Running` that is made and dropped would count as one that ended.
        begun.then(|| Running(replica))
    }

    /// The hosted versions of a module.
    #[must_use]
    pub fn of_module(&self, module: &Digest) -> Vec<VersionId> {
        let table = self.table();
        table.iter().filter(|(_, replica)| replica.version.module == *module).map(|(id, _)| *id).collect()
    }

    /// Begins no more calls of `version`, waits until those that run have ended, but not longer than `limit`, and lets
    /// it go. Whether all had ended.
    pub async fn stop(&self, version: &VersionId, limit: Duration) -> bool {
        let Some(replica) = self.table().get(version).map(Arc::clone) else { return true };
        replica.in_flight.send_modify(|now| now.stopping = true);
        let mut in_flight = replica.in_flight.subscribe();
        let ended = tokio::time::timeout(limit, in_flight.wait_for(|now| now.calls == 0)).await.is_ok();
        let mut table = self.table();
        // It may have been added anew meanwhile.
        if table.get(version).is_some_and(|there| Arc::ptr_eq(there, &replica)) {
            table.remove(version);
        }
        ended
    }

    /// Whether it is in the table, being stopped or not.
    #[must_use]
    pub fn has(&self, version: &VersionId) -> bool {
        self.table().contains_key(version)
    }

    /// All of them.
    #[must_use]
    pub fn list(&self) -> Vec<Listed> {
        let listed = |replica: &Arc<Replica<G>>| {
            let InFlight { calls, stopping } = *replica.in_flight.borrow();
            Listed { version: replica.version, name: replica.name.clone(), in_flight: calls, stopping }
        };
        self.table().values().map(listed).collect()
    }
}

impl<G> Deref for Running<G> {
    type Target = Replica<G>;

    fn deref(&self) -> &Replica<G> {
        &self.0
    }
}

impl<G> Drop for Running<G> {
    fn drop(&mut self) {
        self.0.in_flight.send_if_modified(|now| {
            now.calls -= 1;
            now.stopping && now.calls == 0
        });
    }
}

impl Host for Hosted {
    fn begin(&self, version: &VersionId) -> Option<Box<dyn Instance>> {
        Some(Box::new(Self::begin(self, version)?))
    }
}

impl Instance for Running {
    fn has(&self, function: &str) -> bool {
        self.guest.has(function)
    }

    fn functions(&self) -> &[String] {
        self.guest.functions()
    }

    fn tail_calls(&self) -> bool {
        self.guest.version().tail_calls
    }

    fn call(&self, invocation: Invocation, world: Arc<dyn World>) -> BoxFuture<'_, Result<Bytes, CallError>> {
        self.guest.call(invocation, world).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn version(n: u8) -> SeedVersion {
        SeedVersion {
            module: Digest([n; 32]),
            size_bytes: 1,
            memory_bytes: 1,
            timeout_ms: 1,
            idempotent: false,
            image: false,
            tail_calls: false,
        }
    }

    fn hosting(n: u8) -> (Hosted<&'static str>, VersionId) {
        let hosted = Hosted::default();
        hosted.add("guest", version(n), "hello".parse().expect("a name"));
        (hosted, version(n).id())
    }

    #[tokio::test]
    async fn a_version_that_is_stopped_begins_nothing_and_waits_for_what_runs() {
        let (hosted, id) = hosting(1);
        let (first, second) = (hosted.begin(&id).expect("hosted"), hosted.begin(&id).expect("hosted"));
        assert_eq!(first.guest, "guest");
        let mut stopping = Box::pin(hosted.stop(&id, LONG));
        assert!(stopping.as_mut().now_or_never().is_none(), "calls run");
        assert!(hosted.begin(&id).is_none());
        drop(first);
        assert!(stopping.as_mut().now_or_never().is_none(), "one runs still");
        assert!(hosted.list()[0].stopping && hosted.list()[0].in_flight == 1);
        drop(second);
        assert!(stopping.await);
        assert!(!hosted.has(&id) && hosted.list().is_empty());
    }

    #[tokio::test]
    async fn a_call_that_does_not_end_is_not_waited_for_beyond_the_limit() {
        let (hosted, id) = hosting(1);
        let running = hosted.begin(&id).expect("hosted");
        assert!(!hosted.stop(&id, Duration::from_millis(1)).await);
        assert!(!hosted.has(&id));
        assert_eq!(running.guest, "guest", "it keeps what it needs");
    }

    #[tokio::test]
    async fn what_is_added_anew_while_it_was_being_stopped_stays() {
        let (hosted, id) = hosting(1);
        let running = hosted.begin(&id).expect("hosted");
        let mut stopping = Box::pin(hosted.stop(&id, LONG));
        assert!(stopping.as_mut().now_or_never().is_none());
        hosted.add("another", version(1), "hello".parse().expect("a name"));
        drop(running);
        stopping.await;
        assert_eq!(hosted.begin(&id).expect("hosted again").guest, "another");
    }

    #[tokio::test]
    async fn a_module_is_found_by_its_digest_in_each_of_its_versions() {
        let (hosted, id) = hosting(1);
        let other = SeedVersion { memory_bytes: 2, ..version(1) };
        hosted.add("guest", other, "hello".parse().expect("a name"));
        hosted.add("guest", version(2), "two".parse().expect("a name"));
        let mut expected = vec![id, other.id()];
        expected.sort_unstable();
        assert_eq!(hosted.of_module(&Digest([1; 32])), expected);
        assert!(hosted.begin(&version(9).id()).is_none() && hosted.stop(&version(9).id(), LONG).await);
    }
}

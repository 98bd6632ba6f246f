//! Withdrawing a seed, until nobody serves it. Owns the waits and their bounds; must not know how a host lets go.
//! Invariant: an answer that names no node means that every node alive has withdrawn what it said it serves.

use std::collections::BTreeSet;
use std::time::Duration;

use pollen_common::identity::NodeKey;
use pollen_common::node::{Command, Refusal};
use pollen_common::views::{Name, SeedVersion, VersionId, View};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::running::Running;
use crate::handle::Unseeded;

/// How long hosts may take to say that they serve it no more: they say so at once when they hear of it, and one that
/// does not answer is known dead long before.
const CONFIRMED_MAX: Duration = Duration::from_secs(10);

/// By when nodes that host nothing of it, and so have nothing to say, have heard: what a host grants its callers too
/// before it lets go of a replica. Whoever has not is refused by all that it asks.
const HEARD_WITHIN: Duration = Duration::from_millis(500);

/// How long calls that run here are waited for: what a request may take, less some for its way.
const CALLS_MAX: Duration = Duration::from_secs(25);

/// How often to look whether they have ended.
const CALLS_LOOK_EVERY: Duration = Duration::from_millis(10);

/// What is withdrawn.
struct Withdrawn {
    name: Name,
    versions: BTreeSet<VersionId>,
}

impl Withdrawn {
    /// All versions that `view` shows of this node's seed, those that are on their way out too.
    fn of(view: &View, name: &Name) -> Self {
        let seed = view.seeds.get(name).filter(|seed| seed.owner == view.me);
        let versions = seed.into_iter().flat_map(|seed| {
            let named = seed.versions.iter().map(SeedVersion::id);
            named.chain(seed.replicas.keys().copied())
        });
        Self { name: name.clone(), versions: versions.collect() }
    }

    /// Who says that it serves any of it, though no seed names that any more.
    fn served_by(&self, view: &View) -> BTreeSet<NodeKey> {
        self.versions.iter().filter_map(|version| view.retiring.get(version)).flatten().copied().collect()
    }
}

impl Running {
    /// Withdraws a seed, and waits until nobody serves it and none of its calls runs here.
    pub(super) async fn stop_seeding(&self, name: Name) -> Result<Unseeded, Refusal> {
        let withdrawn = Withdrawn::of(&self.driver().view(), &name);
        self.driver().command(Command::Unseed { name }).await?;
        let heard = Instant::now() + HEARD_WITHIN;
        let confirmed = async {
            let mut views = self.driver().views();
            let gone = views.wait_for(|view| withdrawn.served_by(view).is_empty());
            // Whether it came to that is looked up below.
            let _ = timeout(CONFIRMED_MAX, gone).await.map(drop);
            if self.has_company() {
                sleep_until(heard).await;
            }
        };
        let ended = async {
            let gone = async {
                while self.calls_of(&withdrawn.name) > 0 {
                    sleep(CALLS_LOOK_EVERY).await;
                }
            };
            // As above.
            let _ = timeout(CALLS_MAX, gone).await;
        };
        tokio::join!(confirmed, ended);
        let still_served_by: Vec<_> = withdrawn.served_by(&self.driver().view()).into_iter().collect();
        let calls_running = self.calls_of(&withdrawn.name);
        if calls_running > 0 {
            tracing::warn!(name = %withdrawn.name, calls_running, "calls of a withdrawn seed still run");
        }
        Ok(Unseeded { still_served_by, calls_running })
    }

    /// Calls that run here of versions that were made ready for the name, and that no seed names any more. A replica
    /// without calls counts as one until it is let go.
    fn calls_of(&self, name: &Name) -> usize {
        let view = self.driver().view();
        let is_named = |version: &SeedVersion| view.seeds.values().any(|seed| seed.versions.contains(version));
        let listed = self.parts().hosted.list();
        let of_it = listed.iter().filter(|replica| replica.name == *name && !is_named(&replica.version));
        of_it.map(|replica| replica.in_flight.max(1)).sum()
    }

    /// Whether there is any other node that may have called it.
    fn has_company(&self) -> bool {
        let view = self.driver().view();
        view.nodes.values().any(|node| node.key != view.me && node.liveness.is_online())
    }
}

#[cfg(test)]
mod tests {
    use pollen_common::identity::Digest;
    use pollen_common::time::UnixMs;
    use pollen_common::views::SeedInfo;

    use super::*;
    use crate::services::tests::view::ViewBuilder;

    fn version(byte: u8) -> SeedVersion {
        SeedVersion {
            module: Digest([byte; 32]),
            size_bytes: 1000,
            memory_bytes: 8 << 20,
            timeout_ms: 30_000,
            idempotent: false,
            image: false,
            tail_calls: false,
        }
    }

    /// As `me` sees the seed `hello`, which belongs to `owner`.
    fn seen(me: NodeKey, owner: NodeKey, versions: &[SeedVersion], replicas: &[(SeedVersion, NodeKey)]) -> View {
        let seed = SeedInfo {
            name: name(),
            owner,
            claimed: UnixMs(1),
            min_replicas: 2,
            everywhere: false,
            versions: versions.to_vec(),
            replicas: replicas.iter().map(|(version, host)| (version.id(), [*host].into())).collect(),
            conflicts: Vec::new(),
        };
        View::clone(&ViewBuilder::new(me).with_seed(seed).build())
    }

    fn name() -> Name {
        "hello".parse().expect("a name")
    }

    #[test]
    fn what_no_seed_names_is_waited_for_on_every_node_that_serves_it() {
        let [me, other] = [NodeKey([1; 32]), NodeKey([2; 32])];
        let [now, next, past, foreign] = [1, 2, 3, 4].map(version);
        let mut view = seen(me, me, &[now, next], &[(now, other), (past, me)]);
        let withdrawn = Withdrawn::of(&view, &name());
        assert_eq!(withdrawn.versions, [now.id(), next.id(), past.id()].into());
        assert!(withdrawn.served_by(&view).is_empty(), "it is still published");
        view.seeds.clear();
        view.retiring = [(now.id(), [other].into()), (past.id(), [me].into()), (foreign.id(), [other].into())].into();
        assert_eq!(withdrawn.served_by(&view), [me, other].into());
        view.retiring.remove(&now.id());
        assert_eq!(withdrawn.served_by(&view), [me].into());

        let view = seen(me, other, &[now], &[]);
        assert!(Withdrawn::of(&view, &name()).versions.is_empty(), "what counts is another's");
    }
}

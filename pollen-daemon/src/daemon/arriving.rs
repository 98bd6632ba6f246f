//! The start of a node that others rely on: it works once it serves again what it hosted. Owns the patience.
//! Invariant: what cannot be served again holds nothing up for long.

use std::sync::Arc;
use std::time::Duration;

use pollen_common::placement::{Presence, place_version};
use pollen_common::views::{Name, View};
use tokio::sync::watch;
use tokio::time::timeout;

/// How long a start waits for that. Compiled code is on disk; where it is not, or modules have to be fetched first,
/// waiting longer would hold up what is ordered after this service for the sake of one part of it.
pub(super) const HOSTING_AGAIN_MAX: Duration = Duration::from_secs(5);

/// Returns once this node serves what it is to host, or after `patience`.
pub(super) async fn hosts_again(mut views: watch::Receiver<Arc<View>>, patience: Duration) {
    // No view any more: the node ended, and nobody waits.
    let served = views.wait_for(|view| missing(view).next().is_none());
    if timeout(patience, served).await.is_err() {
        let names: Vec<String> = missing(&views.borrow()).map(ToString::to_string).collect();
        tracing::info!("not served here yet: {}", names.join(", "));
    }
}

/// Seeds that this node should serve and does not: all members count as present, as they do for a node that starts.
fn missing(view: &View) -> impl Iterator<Item = &Name> {
    let of_it = |seed: &&pollen_common::views::SeedInfo| {
        let version = seed.current();
        let serves = seed.replicas.get(&version.id()).is_some_and(|ready| ready.contains(&view.me));
        !serves && place_version(view, seed, version, Presence::Presumed).hosts.contains(&view.me)
    };
    view.seeds.values().filter(of_it).map(|seed| &seed.name)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::status::sample;

    fn bare() -> View {
        let mut view = sample::view();
        view.seeds.values_mut().for_each(|seed| seed.replicas.clear());
        view
    }

    #[tokio::test]
    async fn a_start_waits_for_what_is_to_be_served() {
        let served = sample::view();
        assert_eq!((missing(&served).count(), missing(&bare()).count()), (0, 1), "the sample hosts one seed");
        let (views, seen) = watch::channel(Arc::new(bare()));
        let mut waiting = Box::pin(hosts_again(seen, HOSTING_AGAIN_MAX));
        assert_eq!((&mut waiting).now_or_never(), None);
        views.send_replace(Arc::new(served));
        assert_eq!((&mut waiting).now_or_never(), Some(()));
    }

    #[tokio::test]
    async fn it_does_not_wait_for_ever_nor_for_what_belongs_elsewhere() {
        let (views, seen) = watch::channel(Arc::new(bare()));
        hosts_again(seen.clone(), Duration::from_millis(10)).await;
        views.send_modify(|view| {
            let view = Arc::make_mut(view);
            view.nodes.get_mut(&view.me).expect("it knows itself").capacity = None;
        });
        hosts_again(seen, Duration::MAX).await;
    }
}

//! Whether whoever opened a stream is a member, now or in a moment. Owns that wait; must not know what streams are for.
//! Invariant: what is unknown never piles up, and is never waited for longer than an admission may travel.

use std::sync::Arc;
use std::time::Duration;

use pollen_common::identity::NodeKey;
use pollen_common::views::View;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

/// How long a peer that this node does not know yet may wait. Its admission may be on the way: two nodes that have just
/// connected reconcile the roll first, while the peer's first stream arrives beside it.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// Asks the current view.
#[derive(Debug)]
pub(crate) struct Standing {
    view: watch::Receiver<Arc<View>>,
    strangers: Semaphore,
}

impl Standing {
    /// `strangers_max`: peers unknown so far that may wait at a time.
    pub(crate) fn new(view: watch::Receiver<Arc<View>>, strangers_max: usize) -> Self {
        Self { view, strangers: Semaphore::new(strangers_max) }
    }

    /// Whether `peer` stands by the view of this moment.
    pub(crate) fn is(&self, peer: &NodeKey) -> bool {
        self.view.borrow().nodes.contains_key(peer)
    }

    /// Whether `peer` stands, or does so in a moment.
    pub(crate) async fn soon(&self, peer: &NodeKey) -> bool {
        if self.is(peer) {
            return true;
        }
        let Ok(_waiting) = self.strangers.try_acquire() else { return false };
        let mut view = self.view.clone();
        let known = view.wait_for(|view| view.nodes.contains_key(peer));
        matches!(timeout(WAIT_MAX, known).await, Ok(Ok(_)))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::services::tests::view::ViewBuilder;

    const ME: NodeKey = NodeKey([1; 32]);
    const NEW: NodeKey = NodeKey([2; 32]);
    const STRANGER: NodeKey = NodeKey([3; 32]);

    fn view(nodes: &[NodeKey]) -> Arc<View> {
        nodes.iter().fold(ViewBuilder::new(ME), |view, key| view.node(*key, None)).build()
    }

    #[tokio::test]
    async fn a_peer_may_be_admitted_while_it_waits() {
        let (sender, views) = watch::channel(view(&[ME]));
        let standing = Standing::new(views, 2);
        assert_eq!(standing.soon(&ME).now_or_never(), Some(true));
        let mut new = Box::pin(standing.soon(&NEW));
        assert_eq!(new.as_mut().now_or_never(), None);
        sender.send_replace(view(&[ME, NEW]));
        assert!(new.await && standing.is(&NEW));
        assert!(!standing.soon(&STRANGER).await, "nobody vouches for it in time");
    }

    #[tokio::test]
    async fn strangers_beyond_the_bound_wait_for_nothing() {
        let (_sender, views) = watch::channel(view(&[ME]));
        let standing = Standing::new(views, 1);
        let mut first = Box::pin(standing.soon(&STRANGER));
        assert_eq!(first.as_mut().now_or_never(), None);
        assert_eq!(standing.soon(&NEW).now_or_never(), Some(false));
        drop(first);
        assert_eq!(standing.soon(&NEW).now_or_never(), None, "the place is free again");
    }
}

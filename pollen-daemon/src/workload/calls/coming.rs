//! Waiting for a seed that is coming: its claim is on its way here, or a node is making it ready. Owns how long.
//! Invariant: a call waits only for what another node or a start under way can bring, and never past its deadline.

use std::sync::Arc;

use pollen_common::views::View;
use tokio::time::{Instant, timeout_at};

use super::Shared;
use super::target::Resolved;
use crate::workload::SeedRef;

/// What `target` means, with somebody ready to serve it if anybody is by `until`; nothing if no news of such a seed came
/// by then. The newest view with it.
pub(super) async fn coming(shared: &Shared, target: &SeedRef, until: Instant) -> (Arc<View>, Option<Arc<Resolved>>) {
    let mut views = shared.view.clone();
    loop {
        let view = views.borrow_and_update().clone();
        let found = shared.meanings.of(&view, target);
        let may_come = match &found {
            Some(found) => found.hosts.is_empty(),
            None => crate::services::may_come(&view),
        };
        // An error ends the wait too: the node is ending.
        if !may_come || !matches!(timeout_at(until, views.changed()).await, Ok(Ok(()))) {
            return (view, found);
        }
    }
}

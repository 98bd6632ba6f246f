//! Keeps the file by which this node comes back should its database be lost. Owns when it is written; its content is
//! `enroll::way_back`'s. Invariant: what was configured is in it before that is acknowledged, while the disk takes it.

use std::sync::Arc;
use std::time::Duration;

use super::running::Running;
use crate::enroll::way_back::WayBack;

/// Changes of the view within this time are written once: neighbours and addresses change in bursts.
const GATHER: Duration = Duration::from_secs(2);

/// Writes the file now and with each change of what it says.
pub(super) async fn keep(running: Arc<Running>) {
    let mut views = running.driver().views();
    loop {
        let noted = note(&running).await;
        tokio::time::sleep(GATHER).await;
        // A disk that refuses is tried again; else only a change is worth a look.
        if noted && views.changed().await.is_err() {
            return;
        }
    }
}

/// Writes the file if it would say something new. False if it says less than it should.
pub(super) async fn note(running: &Running) -> bool {
    // A node that is stopping has nothing new to say.
    let Ok(records) = running.driver().way_back().await else { return true };
    let (parts, view) = (running.parts(), running.driver().view());
    let back = WayBack::new(view.me, view.cluster, running.settings_now(), parts.services.config(), &records);
    if running.is_noted(&back) {
        return true;
    }
    match back.write(&parts.dir) {
        Ok(()) => {
            running.noted(back);
            true
        }
        Err(error) => {
            // The disk's state is told once by the store; this comes again every two seconds.
            tracing::debug!("the file `way-back` was not written: {error}");
            false
        }
    }
}

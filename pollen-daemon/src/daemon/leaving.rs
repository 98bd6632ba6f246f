//! The end of a node that others rely on: hand over what it hosts, let what runs finish, say goodbye. Owns the order and
//! the patience. Invariant: others can choose somebody else before anything is refused here, and every wait is bounded.

use std::time::Duration;

use pollen_common::node::Command;
use tokio::time::{sleep, timeout};

use super::StopSignals;
use crate::content::Content;
use crate::driver::DriverHandle;
use crate::services::Services;
use crate::systemd::unit::STOP_TIMEOUT;
use crate::transport::Mesh;
use crate::workload::calls::Calls;

/// How long others may take to make ready what this node hosts: fetching and compiling the largest modules.
const HANDOVER_MAX: Duration = Duration::from_secs(30);

/// How long the word that this node leaves may take to be signed: it is answered once it is on its way.
const DRAIN_SAID_MAX: Duration = Duration::from_secs(2);

/// How long that word has to reach everyone before anything is refused: some hops of a mesh around the globe.
const SPREAD_FOR: Duration = Duration::from_millis(500);

/// How long open streams may go on after a stop was asked for.
const STREAMS_MAX: Duration = Duration::from_secs(10);

/// How long calls that run may go on: the longest that a seed is usually given.
const CALLS_MAX: Duration = Duration::from_secs(30);

/// How long the goodbye to neighbours may take: a round trip to the far side of the world, with losses.
const GOODBYE_MAX: Duration = Duration::from_secs(2);

/// How often to look whether the goodbyes are out.
const GOODBYE_LOOK_EVERY: Duration = Duration::from_millis(10);

/// The longest that all of it takes, and a little for taking the parts down: whoever kills what does not end by itself
/// has to wait so long.
const LEAVE_MAX: Duration = Duration::from_secs(
    DRAIN_SAID_MAX.as_secs() + HANDOVER_MAX.as_secs() + CALLS_MAX.as_secs() + GOODBYE_MAX.as_secs() + 4,
);
const _: () = assert!(LEAVE_MAX.as_secs() < STOP_TIMEOUT.as_secs(), "a stop that takes its time would be killed");

/// The parts that end in an orderly way.
pub(super) struct Leaving<'a> {
    pub(super) driver: &'a DriverHandle,
    pub(super) mesh: &'a Mesh,
    pub(super) services: &'a Services,
    pub(super) calls: &'a Calls,
    pub(super) content: &'a Content,
}

impl Leaving<'_> {
    /// Hands over, lets calls and streams finish, then tells the neighbours. A second signal cuts all but the goodbye
    /// short.
    pub(super) async fn leave(&self, impatient: &mut StopSignals) {
        let in_order = async {
            self.hand_over().await;
            self.let_finish().await;
        };
        tokio::select! {
            () = in_order => {}
            () = impatient.next() => tracing::info!("asked again: waiting for nothing that runs"),
        }
        // At once, where they have been waited for: what is left is cut.
        self.services.drain(Duration::ZERO).await;
        self.say_goodbye().await;
    }

    /// Says that this node leaves, and waits until others are ready to serve all that it serves.
    async fn hand_over(&self) {
        match timeout(DRAIN_SAID_MAX, self.driver.command(Command::Drain)).await {
            Ok(Ok(_)) => {}
            Ok(Err(refusal)) => tracing::warn!("others were not told in advance: {}", refusal.message),
            Err(_) => tracing::warn!("others were not told in advance: the node is too busy"),
        }
        let mut views = self.driver.views();
        let waiting = views.borrow().handing_over();
        if !waiting.is_empty() {
            let names: Vec<String> = waiting.iter().map(|(name, _)| name.to_string()).collect();
            tracing::info!("stopping: others take over {}, for at most {HANDOVER_MAX:?}", names.join(", "));
        }
        let taken_over = views.wait_for(|view| view.handing_over().is_empty());
        if timeout(HANDOVER_MAX, taken_over).await.is_err() {
            let view = self.driver.view();
            let names: Vec<String> = view.handing_over().iter().map(|(name, _)| name.to_string()).collect();
            tracing::warn!("nobody took over {} in time", names.join(", "));
        }
        if self.is_relied_upon() {
            sleep(SPREAD_FOR).await;
        }
    }

    /// Whether there are others, and something of this node's that they may be using.
    fn is_relied_upon(&self) -> bool {
        let view = self.driver.view();
        let serves = view.seeds.values().any(|seed| seed.replicas.values().any(|ready| ready.contains(&view.me)));
        !self.mesh.snapshot().peers.is_empty() && (serves || !self.services.exports().is_empty())
    }

    async fn let_finish(&self) {
        tracing::info!("stopping: open streams may finish for {} s", STREAMS_MAX.as_secs());
        self.content.drain();
        let ((), finished) = tokio::join!(self.services.drain(STREAMS_MAX), self.calls.drain(CALLS_MAX));
        if !finished {
            tracing::warn!("calls still run after {} s: they end here", CALLS_MAX.as_secs());
        }
    }

    async fn say_goodbye(&self) {
        let goodbye = async {
            if let Err(refusal) = self.driver.command(Command::Leave).await {
                tracing::warn!("neighbours were not told: {}", refusal.message);
            }
            while !self.mesh.snapshot().peers.is_empty() {
                sleep(GOODBYE_LOOK_EVERY).await;
            }
        };
        if timeout(GOODBYE_MAX, goodbye).await.is_err() {
            tracing::info!("some neighbours did not take the goodbye in time");
        }
    }
}

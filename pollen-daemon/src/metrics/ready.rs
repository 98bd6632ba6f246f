//! `/ready`: whether others should send this node anything, for load balancers and orchestrators. Owns the rule and its
//! words. Invariant: a node that works is ready, whatever else is wrong with it; and the answer names no peer.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};

use super::Shown;
use crate::handle::{self, Daemon, Phase};
use crate::status::{Health, HealthState};

/// Why this node is not ready, if so: words without anything of the cluster in them, for the port has no password.
fn why_not(daemon: &dyn Daemon) -> Option<String> {
    match daemon.phase() {
        Phase::Starting => return Some("starting".into()),
        Phase::Leaving => return Some("leaving".into()),
        Phase::Up => {}
    }
    let health = handle::read(daemon, Health::of);
    let unhealthy = health.conditions.iter().filter(|condition| condition.state == HealthState::Unhealthy);
    let codes: Vec<&str> = unhealthy.map(|condition| condition.code.label()).collect();
    (!codes.is_empty()).then(|| codes.join(", "))
}

pub(super) async fn answer(State(shown): State<Arc<Shown>>) -> Response {
    match why_not(&*shown.daemon) {
        None => "ready\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use pollen_common::views::View;

    use super::*;
    use crate::handle::fake::Fake;

    #[test]
    fn a_node_is_ready_while_it_works() {
        let fake = Fake::new(Path::new("/nowhere"));
        fake.asked().troubles.metrics_wait = Some("it is taken".into());
        let health = handle::read(&*fake, Health::of);
        assert_eq!(health.state, HealthState::Degraded, "or this shows nothing: {health:?}");
        assert_eq!(why_not(&*fake), None);
        for (phase, word) in [(Phase::Starting, "starting"), (Phase::Leaving, "leaving")] {
            fake.asked().phase = Some(phase);
            assert_eq!(why_not(&*fake).as_deref(), Some(word));
        }
        fake.asked().phase = Some(Phase::Up);
        let view = fake.view();
        let nodes = view.nodes.iter().filter(|(key, _)| **key != view.me).map(|(key, node)| (*key, node.clone()));
        fake.sees(View { nodes: nodes.collect(), ..(*view).clone() });
        assert_eq!(why_not(&*fake).as_deref(), Some("not_member"));
    }
}

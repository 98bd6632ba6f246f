//! Tells when something goes wrong with this node and when it is over. Owns the timeline's part of it and the looks that
//! cost something; what is wrong is for `status::health` to judge.
//! Invariant: an event of the beginning is followed by one of the end, and what lasts less than a look is not told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pollen_common::identity::NodeKey;
use pollen_common::node::{Event, EventKind};

use super::running::Running;
use crate::clock;
use crate::handle;
use crate::services::Services;
use crate::status::{Code, Condition, Health};

/// How often to look.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Conditions told of at once: one that is left out is told once there is room, and `pln status` shows it all the while.
const TOLD_MAX: usize = 128;

/// Looks now and then, as long as the node runs.
pub(super) async fn keep_told(running: Arc<Running>) {
    let mut told = Told::default();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        running.found_unanswered(unanswered(running.parts().services.clone()).await);
        for (event, remedy) in told.look(handle::read(&*running, Health::of).conditions) {
            match remedy {
                Some(remedy) => tracing::warn!("{}: {remedy}", event.message),
                None => tracing::info!("{}", event.message),
            }
            running.parts().events.record(clock::unix_now(), event);
        }
    }
}

/// Asks the kernel off the threads that have others waiting.
async fn unanswered(services: Services) -> Vec<crate::services::Export> {
    // A thread for nothing is a thread too many.
    if services.exports().is_empty() {
        return Vec::new();
    }
    tokio::task::spawn_blocking(move || services.unanswered()).await.unwrap_or_default()
}

/// What was seen at the last look, and what of it was told.
#[derive(Debug, Default)]
struct Told {
    seen: BTreeMap<(Code, String), Stage>,
}

#[derive(Debug)]
enum Stage {
    /// At one look: it may be passing.
    Once,
    Told(Condition),
    /// Not at the last look any more.
    Missed(Condition),
}

impl Told {
    /// The events that a look gives, each beginning with its remedy.
    fn look(&mut self, conditions: Vec<Condition>) -> Vec<(Event, Option<String>)> {
        let mut events = Vec::new();
        let mut before = std::mem::take(&mut self.seen);
        for condition in conditions {
            let key = (condition.code, condition.subject.clone());
            let stage = match before.remove(&key) {
                None => Stage::Once,
                Some(Stage::Once) => {
                    events.push((event(EventKind::ConditionBegan, &condition), Some(condition.remedy.clone())));
                    Stage::Told(condition)
                }
                Some(Stage::Told(_) | Stage::Missed(_)) => Stage::Told(condition),
            };
            if self.seen.len() < TOLD_MAX {
                self.seen.insert(key, stage);
            }
        }
        for (key, stage) in before {
            match stage {
                Stage::Once => {}
                Stage::Told(condition) => drop(self.seen.insert(key, Stage::Missed(condition))),
                Stage::Missed(condition) => events.push((event(EventKind::ConditionEnded, &condition), None)),
            }
        }
        events
    }
}

fn event(kind: EventKind, condition: &Condition) -> Event {
    let over = if kind == EventKind::ConditionEnded { "over: " } else { "" };
    let message = format!("{}: {over}{}", condition.code.label(), condition.message);
    Event { kind, peer: condition.subject.parse::<NodeKey>().ok(), message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::HealthState;

    fn condition(subject: &str) -> Condition {
        Condition {
            code: Code::ListenerWaits,
            subject: subject.into(),
            state: HealthState::Degraded,
            message: format!("{subject} is taken"),
            remedy: "free it".into(),
        }
    }

    fn kinds(events: &[(Event, Option<String>)]) -> Vec<(EventKind, bool)> {
        events.iter().map(|(event, remedy)| (event.kind, remedy.is_some())).collect()
    }

    #[test]
    fn what_lasts_is_told_once_when_it_begins_and_once_when_it_ends() {
        let mut told = Told::default();
        assert!(told.look(vec![condition("1/tcp")]).is_empty(), "it may be passing");
        assert_eq!(kinds(&told.look(vec![condition("1/tcp")])), [(EventKind::ConditionBegan, true)]);
        assert!(told.look(vec![condition("1/tcp")]).is_empty());
        assert!(told.look(Vec::new()).is_empty(), "it may be back at the next look");
        assert!(told.look(vec![condition("1/tcp")]).is_empty(), "as it is");
        assert!(told.look(Vec::new()).is_empty());
        assert_eq!(kinds(&told.look(Vec::new())), [(EventKind::ConditionEnded, false)]);
        assert!(told.look(Vec::new()).is_empty());
    }

    #[test]
    fn memory_is_bounded_and_whoever_found_no_room_is_told_of_later() {
        let many: Vec<Condition> = (0..TOLD_MAX + 1).map(|n| condition(&n.to_string())).collect();
        let mut told = Told::default();
        told.look(many.clone());
        assert_eq!(told.look(many.clone()).len(), TOLD_MAX);
        assert!(told.look(many[1..].to_vec()).is_empty());
        told.look(many[1..].to_vec());
        told.look(many[1..].to_vec());
        assert!(told.seen.contains_key(&(Code::ListenerWaits, TOLD_MAX.to_string())));
    }
}

//! Who may reach what this node serves: the policy of each export, and of the owner of its name, held against what the
//! view says of the caller. Owns that judgement, for streams that come and for those that are open, and the memory of
//! whom it turned away; must not know what a stream carries.
//! Invariants: a caller is judged by the roll's word alone, at every change of it; what is remembered and told of callers
//! is bounded, however often they ask.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use pollen_common::identity::NodeKey;
use pollen_common::node::{Event, EventKind};
use pollen_common::views::policy::Lack;
use pollen_common::views::{Name, Policy, View};
use tokio::time::Instant;

use super::Shared;
use super::exports::Export;
use super::tally::Refused;
use crate::clock::unix_now;
use crate::events::Events;

/// Callers of services remembered as turned away: a screenful for an operator, a few KiB.
const REMEMBERED_MAX: usize = 64;
/// How long a caller that is turned away again makes no other event: the timeline holds some minutes of a client that
/// tries once a second otherwise.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// Events of callers turned away, in that time, all together.
const TOLD_MAX: u32 = 32;

/// Whom this node turned away lately.
#[derive(Debug, Default)]
pub(super) struct TurnedAway {
    events: OnceLock<Events>,
    memory: Mutex<Memory>,
}

#[derive(Debug, Default)]
struct Memory {
    /// By caller and service.
    of: BTreeMap<(NodeKey, String), Turned>,
    /// When the present count of events began, and how many there are.
    told: Option<(Instant, u32)>,
}

#[derive(Debug)]
struct Turned {
    lack: Lack,
    times: u64,
    last: Instant,
    told: Option<Instant>,
}

impl TurnedAway {
    /// From now on events go there. To be called once, before streams come.
    pub(super) fn tell(&self, events: Events) {
        assert!(self.events.set(events).is_ok(), "told where once");
    }

    fn note(&self, view: &View, caller: NodeKey, service: String, lack: Lack) {
        let now = Instant::now();
        let message = format!("{service} was refused to {}: {lack}", called(view, &caller));
        let tell = self.memory.lock().unwrap_or_else(PoisonError::into_inner).note((caller, service), lack, now);
        if let (true, Some(events)) = (tell, self.events.get()) {
            tracing::info!("{message}");
            events.record(unix_now(), Event { kind: EventKind::Refused, peer: Some(caller), message });
        }
    }

    /// Who was turned away from `service`, a sentence each, the latest first.
    fn sentences(&self, view: &View, service: &str) -> Vec<String> {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let mut of: Vec<_> = memory.of.iter().filter(|((_, label), _)| label == service).collect();
        of.sort_by_key(|(_, turned)| std::cmp::Reverse(turned.last));
        let sentence = |((caller, _), turned): (&(NodeKey, String), &Turned)| {
            let times = if turned.times == 1 { "once".into() } else { format!("{} times", turned.times) };
            let ago = turned.last.elapsed().as_secs();
            format!("refused to {} {times}, last {ago} s ago: {}", called(view, caller), turned.lack)
        };
        of.into_iter().map(sentence).collect()
    }
}

impl Memory {
    /// Whether people should be told of it now.
    fn note(&mut self, of: (NodeKey, String), lack: Lack, now: Instant) -> bool {
        if !self.of.contains_key(&of) && self.of.len() >= REMEMBERED_MAX {
            let oldest = self.of.iter().min_by_key(|(_, turned)| turned.last).map(|(of, _)| of.clone());
            oldest.and_then(|oldest| self.of.remove(&oldest));
        }
        let may_tell = self.may_tell(now);
        let turned =
            self.of.entry(of).or_insert_with(|| Turned { lack: lack.clone(), times: 0, last: now, told: None });
        let is_news = turned.lack != lack || turned.told.is_none_or(|told| now.duration_since(told) >= TOLD_EVERY);
        turned.times += 1;
        (turned.last, turned.lack) = (now, lack);
        let tell = is_news && may_tell;
        if tell {
            turned.told = Some(now);
            self.told.get_or_insert((now, 0)).1 += 1;
        }
        tell
    }

    fn may_tell(&mut self, now: Instant) -> bool {
        if self.told.is_some_and(|(since, _)| now.duration_since(since) >= TOLD_EVERY) {
            self.told = None;
        }
        self.told.is_none_or(|(_, count)| count < TOLD_MAX)
    }
}

impl Shared {
    /// Whether `caller` may reach an export now, by the view and by the export's own policy.
    pub(super) fn may_reach(&self, caller: &NodeKey, export: &Export) -> Result<(), Refused> {
        let view = self.view.borrow().clone();
        let Err(lack) = judge(&view, caller, export) else { return Ok(()) };
        let refused = Refused::from(&lack);
        if lack != Lack::Membership {
            self.turned_away.note(&view, *caller, export.label(), lack);
        }
        Err(refused)
    }

    /// Cuts what is open of callers that may not have it any more.
    pub(super) fn cut_unwelcome(&self) {
        let view = self.view.borrow().clone();
        // As they are now: a stream knows the policy under which it was opened.
        let exports: Vec<Export> = self.exports().iter().map(|exported| exported.export.clone()).collect();
        let mut turned = Vec::new();
        self.live.cut(|owner| {
            if owner.peer == view.me {
                return false;
            }
            if !view.nodes.contains_key(&owner.peer) {
                return true;
            }
            let reached = owner.export.as_ref().filter(|_| owner.asked.is_none());
            let reached = reached.and_then(|reached| exports.iter().find(|export| export.is_same(reached)));
            let Some(Err(lack)) = reached.map(|export| judge(&view, &owner.peer, export)) else { return false };
            turned.push((owner.peer, reached.map(Export::label).unwrap_or_default(), lack));
            true
        });
        for (caller, service, lack) in turned {
            self.refusals.count(Refused::from(&lack));
            self.turned_away.note(&view, caller, service, lack);
        }
    }

    /// Who may reach what this node serves as `service`, and who was turned away, a sentence each.
    pub(super) fn bounds_of(&self, service: &Name) -> Vec<String> {
        let view = self.view.borrow().clone();
        let own = self.exports().iter().find(|e| e.export.name.as_ref() == Some(service)).map(|e| e.export.clone());
        let Some(own) = own else { return Vec::new() };
        let who = |policy: &Policy| policy.who(|key| called(&view, key));
        let mut said = vec![format!("served here to {}", who(&own.policy))];
        said.extend(owners_policy(&view, &own).map(|policy| format!("its owner lets {} reach it", who(policy))));
        said.extend(self.turned_away.sentences(&view, service.as_str()));
        said
    }
}

/// Whether `caller` may reach `export` of this node.
fn judge(view: &View, caller: &NodeKey, export: &Export) -> Result<(), Lack> {
    let member = view.nodes.get(caller).ok_or(Lack::Membership)?;
    let rights = &member.member.rights;
    owners_policy(view, export).map_or(Ok(()), |policy| policy.admits(caller, rights).map(drop))?;
    export.policy.admits(caller, rights).map(drop)
}

/// The policy of the owner of an export's name, where that is another node.
fn owners_policy<'a>(view: &'a View, export: &Export) -> Option<&'a Policy> {
    let service = view.services.get(export.name.as_ref()?)?;
    (service.owner != view.me).then_some(&service.policy)
}

fn called(view: &View, key: &NodeKey) -> String {
    let name = view.nodes.get(key).and_then(|node| node.name.as_ref());
    name.map_or_else(|| key.short(), |name| format!("{name} ({})", key.short()))
}

/// Cuts whatever may not be open any more, at every change of the view.
pub(super) async fn watch(shared: Arc<Shared>) {
    let mut view = shared.view.clone();
    while view.changed().await.is_ok() {
        view.mark_unchanged();
        shared.cut_unwelcome();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(n: usize) -> (NodeKey, String) {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&(n as u64).to_be_bytes());
        (NodeKey(key), "api".to_owned())
    }

    #[tokio::test]
    async fn a_caller_that_tries_on_is_told_of_once_a_minute_and_at_once_when_the_reason_changes() {
        let mut memory = Memory::default();
        let start = Instant::now();
        let mut note = |lack: Lack, after_s| memory.note(caller(1), lack, start + Duration::from_secs(after_s));
        let needs_more =
            Lack::Tier { has: pollen_common::roll::Tier::Leaf, needs: pollen_common::roll::Tier::Publisher };
        assert!(note(Lack::Name, 0) && !note(Lack::Name, 1) && !note(Lack::Name, 59));
        assert!(note(needs_more.clone(), 59), "another reason");
        assert!(!note(needs_more.clone(), 100) && note(needs_more, 119));
        assert_eq!(memory.of[&caller(1)].times, 6);
    }

    #[tokio::test]
    async fn many_callers_fill_neither_the_memory_nor_the_timeline() {
        let mut memory = Memory::default();
        let start = Instant::now();
        let at = |n: usize| start + Duration::from_millis(n as u64);
        let told = (0..1000).filter(|n| memory.note(caller(*n), Lack::Name, at(*n))).count();
        assert_eq!((told, memory.of.len()), (TOLD_MAX as usize, REMEMBERED_MAX));
        assert!(memory.of.contains_key(&caller(999)) && !memory.of.contains_key(&caller(1)));
        assert!(memory.note(caller(0), Lack::Name, start + TOLD_EVERY + Duration::from_secs(1)), "later it is news");
    }
}

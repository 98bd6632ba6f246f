//! Why things are as they are: the reasons that the deciding functions kept, as sentences.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::Node;
use crate::identity::NodeKey;
use crate::placement::{Presence, place_version};
use crate::time::{Instant, Now};
use crate::views::{Name, Target};

impl Node {
    /// The reasons for a peer's or a name's standing, liveness and providers, as this node sees them.
    #[must_use]
    pub fn why(&self, target: &Target, now: Now) -> Vec<String> {
        let mut reasons = self.view.why(target, &self.roll, &self.standing, &self.document, now.unix);
        match target {
            Target::Node(key) => reasons.extend(self.doubts(key, now.mono)),
            Target::Seed(name) => reasons.extend(self.placed(name, now.mono)),
            Target::Name(_) => {}
        }
        reasons
    }

    /// Each node with the rule that placed or excluded it, and which versions are ready where.
    fn placed(&self, name: &Name, now: Instant) -> Vec<String> {
        let Some(seed) = self.view.seeds.get(name) else { return Vec::new() };
        let mut reasons = Vec::new();
        for (at, version) in seed.versions.iter().enumerate() {
            let id = version.id();
            let part = if at == 0 { "answers calls" } else { "is to replace it once it is ready" };
            reasons.push(format!("version {id:?} {part}"));
            reasons.extend(self.hosting_told(&id, now));
            let placement = place_version(&self.view, seed, version, Presence::Seen);
            let ready = seed.replicas.get(&id);
            for (key, rule) in &placement.rules {
                let ready = if ready.is_some_and(|ready| ready.contains(key)) { ", and is ready" } else { "" };
                reasons.push(format!("{} {rule}{ready}", self.name_of(key)));
            }
        }
        reasons
    }

    /// Signs that more than one machine speaks with this key.
    fn doubts(&self, key: &NodeKey, now: Instant) -> Vec<String> {
        let forks = self.document.evidence().filter(|evidence| evidence.greater.head().author == *key).map(|evidence| {
            let head = evidence.greater.head();
            format!(
                "signed two heads of its {} at sequence {}: its key is on two machines, or an old disk was brought back",
                head.lane, head.seq
            )
        });
        let resting = self.resting(now).filter(|_| *key == self.me);
        forks.chain(resting).collect()
    }

    /// Why this node publishes nothing for now, if so.
    pub(super) fn resting(&self, now: Instant) -> Option<String> {
        let twin = self.authoring.twin().filter(|twin| now < twin.until)?;
        let seconds = twin.until.since(now).as_secs() + 1;
        Some(format!("another machine signs with this node's key: nothing is published for {seconds} s"))
    }
}

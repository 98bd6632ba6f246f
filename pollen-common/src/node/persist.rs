//! Durability: what waits for a batch of writes to be on disk. Owns the order "persist, then acknowledge"; the
//! driver owns the disk.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::{LinkId, Node, Output, PersistId, Refusal, Reply, RequestId, Write, records};
use crate::identity::Digest;
use crate::maps::Held;
use crate::roll::Statement;
use crate::time::Now;
use crate::wire::Message;

/// What happens once a batch is on disk.
#[derive(Debug)]
pub(super) enum After {
    Reply(RequestId, Result<Reply, Refusal>),
    /// Own lanes take effect and are told to neighbours.
    Publish(Vec<Arc<Held>>),
    /// The last word of a redemption.
    Tell(LinkId, Box<Message>),
}

/// Batches under way.
#[derive(Debug, Default)]
pub(super) struct Persists {
    last: u64,
    waiting: BTreeMap<PersistId, Vec<After>>,
}

impl Node {
    /// Writes, then does what follows. Without writes it follows behind all batches under way.
    pub(super) fn persist(&mut self, writes: Vec<Write>, after: Vec<After>) {
        self.persists.last += 1;
        let id = PersistId(self.persists.last);
        self.persists.waiting.insert(id, after);
        self.outputs.push_back(Output::Persist { id, writes });
    }

    /// Writes that nothing waits for: others' content, which they could tell again.
    pub(super) fn persist_now(&mut self, writes: Vec<Write>) {
        if !writes.is_empty() {
            self.persist(writes, Vec::new());
        }
    }

    pub(super) fn persist_roll(&mut self, added: &[Arc<Statement>], removed: &[Digest]) {
        let gone = removed.iter().map(|slot| Write { key: records::statement_key(slot), value: None });
        let new = added.iter().map(records::statement_write);
        let writes = gone.chain(new).collect();
        self.persist_now(writes);
    }

    pub(super) fn persisted(&mut self, id: PersistId, now: Now) {
        for after in self.persists.waiting.remove(&id).unwrap_or_default() {
            match after {
                After::Reply(id, result) => self.reply(id, result),
                After::Publish(sealed) => self.publish(&sealed, now),
                After::Tell(link, message) => self.send(link, &message),
            }
        }
    }

    pub(super) fn reply(&mut self, id: RequestId, result: Result<Reply, Refusal>) {
        self.outputs.push_back(Output::Reply { id, result });
    }
}

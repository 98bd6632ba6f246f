//! Why a key does not stand, as a typed reason and a sentence. Decides nothing: it asks the same judgement that
//! decides, and follows it upward to where the chain is broken.

use super::body::Parent;
use super::stand::{PATH_KEYS_MAX, Work};
use crate::identity::NodeKey;
use crate::time::UnixMs;

/// Why a key does not stand. Keys are named by their first eight characters; no issuer means the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotStanding {
    #[error("nobody admitted {}", key.short())]
    Unknown { key: NodeKey },
    #[error("{} has not said on whom it stands", key.short())]
    NoStand { key: NodeKey },
    #[error("{} has left the cluster", key.short())]
    Left { key: NodeKey },
    #[error("{} does not admit {}", Issuer(*by), key.short())]
    NotAdmitted { key: NodeKey, by: Option<NodeKey> },
    #[error("{} was denied by {}", key.short(), Issuer(*by))]
    Denied { key: NodeKey, by: Option<NodeKey> },
    #[error("{} was retired by {}", key.short(), Issuer(*by))]
    Retired { key: NodeKey, by: Option<NodeKey> },
    #[error("{} stands on {}, which does not stand itself", key.short(), parent.short())]
    ParentNotStanding { key: NodeKey, parent: NodeKey },
    #[error("{} is no admin", key.short())]
    NotAdmin { key: NodeKey },
    #[error("the invite {} by which {} came was revoked", invite.short(), key.short())]
    InviteRevoked { key: NodeKey, invite: NodeKey },
    #[error("no admin witnessed that {} redeemed the invite {}", key.short(), invite.short())]
    NotRedeemed { key: NodeKey, invite: NodeKey },
    #[error("the invite {} was redeemed by {}, not by {}", invite.short(), holder.short(), key.short())]
    RedeemedByAnother { key: NodeKey, invite: NodeKey, holder: NodeKey },
    #[error("the invite {} is bound to another key than {}", invite.short(), key.short())]
    BoundToAnother { key: NodeKey, invite: NodeKey },
    #[error("{} redeemed the invite {} after its end", key.short(), invite.short())]
    RedeemedTooLate { key: NodeKey, invite: NodeKey },
    #[error("{} was admitted by {} as a witness, which does not stand as an admin", key.short(), witness.short())]
    WitnessNotStanding { key: NodeKey, witness: NodeKey },
    #[error("the membership of {} ended at {since}", key.short())]
    Expired { key: NodeKey, since: UnixMs },
    #[error("{} stands more than {PATH_KEYS_MAX} keys below the root", key.short())]
    TooDeep { key: NodeKey },
    #[error("{} stands on itself, through others", key.short())]
    Loop { key: NodeKey },
    #[error("the edge of {} to {} has a clause that this version does not know", Issuer(*by), key.short())]
    UnknownRight { key: NodeKey, by: Option<NodeKey> },
}

struct Issuer(Option<NodeKey>);

impl core::fmt::Display for Issuer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match &self.0 {
            Some(key) => f.write_str(&key.short()),
            None => f.write_str("the root"),
        }
    }
}

impl Work {
    /// Why `key`, which does not stand, does not: the reason of the highest key on its path that fails.
    pub(super) fn explain(&self, key: &NodeKey) -> NotStanding {
        let mut below = *key;
        // Each step goes up one key; a chain longer than any that can stand is a loop or too deep.
        for _ in 0..=PATH_KEYS_MAX {
            match self.judge(&below) {
                Err(NotStanding::ParentNotStanding { parent, .. }) => below = parent,
                Err(reason) => return reason,
                // It stands by now: asked about one that the caller had not settled.
                Ok(_) => return NotStanding::Unknown { key: *key },
            }
        }
        self.circle(key).map_or(NotStanding::TooDeep { key: *key }, |key| NotStanding::Loop { key })
    }

    /// The first key that following stands from `key` comes to twice.
    fn circle(&self, key: &NodeKey) -> Option<NodeKey> {
        let mut seen = alloc::collections::BTreeSet::new();
        let mut at = *key;
        while seen.insert(at) {
            let Some(Parent::Key { parent, .. }) = self.edges.stands.get(&at) else { return None };
            at = *parent;
        }
        Some(at)
    }
}

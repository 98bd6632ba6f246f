//! Statements as hostile admins, invitees and former roots could sign them, for property tests.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::world::{LAST_ROOT, NEXT_ROOT, ROOT, key, secret};
use crate::identity::{ClusterId, NodeKey, SecretKey, Signature, Verify};
use crate::roll::body::{Body, EdgeBody, Parent, RedeemTerms, RotateBody, Verdict};
use crate::roll::statement::Draft;
use crate::roll::{Genesis, Rights, Statement, Tier, commitment};
use crate::time::UnixMs;

/// Takes every signature for good: what is tested here comes after.
pub(super) struct Trusting;

impl Verify for Trusting {
    fn verify(&self, _: &NodeKey, _: &[u8], _: &Signature) -> bool {
        true
    }
}

pub(super) fn genesis() -> Genesis {
    Genesis::sign(&secret(ROOT), commitment(&key(NEXT_ROOT)))
}

/// A statement to be signed; keys are numbers.
#[derive(Clone, Debug)]
pub(super) enum Said {
    Edge {
        by: u8,
        subject: u8,
        verdict: u8,
        tier: u8,
        quota_kib: u32,
        pool_kib: u32,
        generation: u64,
    },
    Stand {
        by: u8,
        parent: Option<u8>,
        via: Option<u8>,
        generation: u64,
    },
    Redeem {
        by: u8,
        subject: u8,
        witness: u8,
        at: u64,
    },
    Rotate {
        again: bool,
        number: u64,
        generation: u64,
        edges: Vec<(u8, u32)>,
    },
    /// Of a kind that this version does not know.
    Unknown {
        by: u8,
        subject: u8,
        kind: u8,
        generation: u64,
    },
}

fn issuer() -> impl Strategy<Value = u8> {
    prop_oneof![4 => Just(ROOT), 8 => 1..5_u8, 1 => Just(NEXT_ROOT), 1 => 100..103_u8]
}

fn subject() -> impl Strategy<Value = u8> {
    prop_oneof![8 => 1..9_u8, 3 => 100..103_u8]
}

pub(super) fn said() -> impl Strategy<Value = Said> {
    let pool = || prop_oneof![Just(0_u32), Just(64), Just(300), Just(1000), Just(4000)];
    let edge = (issuer(), subject(), 0..6_u8, 0..4_u8, prop_oneof![Just(64_u32), Just(200)], pool(), 0..40_u64);
    let edge = edge.prop_map(|(by, subject, verdict, tier, quota_kib, pool_kib, generation)| Said::Edge {
        by,
        subject,
        // Members and invites are what makes the rest matter.
        verdict: match verdict {
            5 => 0,
            0 | 3 | 4 if subject >= 100 => 1,
            verdict => verdict,
        },
        tier: tier.min(2),
        quota_kib,
        pool_kib,
        generation,
    });
    let parent = prop_oneof![1 => Just(None), 2 => Just(Some(ROOT)), 6 => (1..5_u8).prop_map(Some)];
    let stand = (1..9_u8, parent, prop::option::of(100..103_u8), 0..40_u64);
    let stand = stand.prop_map(|(by, parent, via, generation)| Said::Stand { by, parent, via, generation });
    let redeem = (100..103_u8, 1..9_u8, 0..6_u8, 0..20_u64).prop_map(|(by, subject, witness, at)| Said::Redeem {
        by,
        subject,
        witness,
        at,
    });
    let rotate = (any::<bool>(), 1..3_u64, 0..4_u64, prop::collection::vec((1..5_u8, pool()), 0..3));
    let rotate =
        rotate.prop_map(|(again, number, generation, edges)| Said::Rotate { again, number, generation, edges });
    let unknown = (issuer(), subject(), 8..12_u8, 0..40_u64)
        .prop_map(|(by, subject, kind, generation)| Said::Unknown { by, subject, kind, generation });
    prop_oneof![20 => edge, 8 => stand, 6 => redeem, 1 => rotate, 6 => unknown]
}

impl Said {
    pub(super) fn sign(&self, cluster: ClusterId) -> Arc<Statement> {
        Arc::new(match self {
            Self::Edge { by, subject, verdict, tier, quota_kib, pool_kib, generation } => {
                let edge = edge_body(*subject, *verdict, *tier, *quota_kib, *pool_kib);
                draft(cluster, key(*subject), *generation, Body::Edge(edge)).sign(&secret(*by)).expect("well-formed")
            }
            Self::Stand { by, parent, via, generation } => {
                let parent = match parent {
                    None => Parent::None,
                    Some(ROOT) => Parent::Root,
                    Some(parent) => Parent::Key { parent: key(*parent), via: via.map(key) },
                };
                draft(cluster, key(*by), *generation, Body::Stand(parent)).sign(&secret(*by)).expect("well-formed")
            }
            Self::Redeem { by, subject, witness, at } => {
                let redeem = draft(cluster, key(*subject), 1, Body::Redeem).sign(&secret(*by)).expect("well-formed");
                if *witness == 0 {
                    redeem
                } else {
                    redeem.witnessed(&secret(*witness), UnixMs(*at)).expect("a redemption")
                }
            }
            Self::Rotate { again, number, generation, edges } => {
                let (old, new, after) = if *again { (NEXT_ROOT, LAST_ROOT, 203) } else { (ROOT, NEXT_ROOT, LAST_ROOT) };
                rotation(cluster, &secret(old), &secret(new), after, *number, *generation, edges)
            }
            Self::Unknown { by, subject, kind, generation } => {
                unknown(cluster, &secret(*by), *subject, *kind, *generation)
            }
        })
    }
}

fn draft(cluster: ClusterId, subject: NodeKey, generation: u64, body: Body) -> Draft {
    Draft { cluster, subject, generation, body }
}

fn edge_body(subject: u8, verdict: u8, tier: u8, quota_kib: u32, pool_kib: u32) -> EdgeBody {
    let verdict =
        [Verdict::Member, Verdict::Invite, Verdict::Denied, Verdict::Retired, Verdict::Clear][usize::from(verdict)];
    let tier = [Tier::Leaf, Tier::Publisher, Tier::Admin][usize::from(tier)];
    let rights = Rights { quota_kib, pool_kib, grantable: BTreeMap::new(), ..Rights::of(tier) };
    let is_invite = verdict == Verdict::Invite || (subject >= 100 && verdict != Verdict::Member);
    let invite = is_invite.then_some(RedeemTerms { not_after: UnixMs(15), bound: None });
    EdgeBody { invite, ..EdgeBody::new(verdict, (verdict != Verdict::Clear).then_some(rights)) }
}

fn rotation(
    cluster: ClusterId,
    old: &SecretKey,
    new: &SecretKey,
    after: u8,
    number: u64,
    generation: u64,
    edges: &[(u8, u32)],
) -> Statement {
    let inline = |(subject, pool_kib): &(u8, u32)| {
        let edge = edge_body(*subject, 0, 2, 64, *pool_kib);
        let edge = draft(cluster, key(*subject), generation, Body::Edge(edge)).sign(new).expect("well-formed");
        edge.bytes().to_vec()
    };
    let rotate = RotateBody { number, next: commitment(&key(after)), edges: edges.iter().map(inline).collect() };
    draft(cluster, new.public(), generation, Body::Rotate(rotate)).sign_rotation(old, new).expect("well-formed")
}

fn unknown(cluster: ClusterId, by: &SecretKey, subject: u8, kind: u8, generation: u64) -> Statement {
    let redeem = draft(cluster, key(subject), generation, Body::Redeem).sign(by).expect("well-formed");
    let mut bytes = redeem.bytes().to_vec();
    // Tag, version and cluster come before the kind.
    bytes[41] = kind;
    Statement::decode(&bytes).expect("an unknown kind is well-formed")
}

//! What this node says of who may do what, at its operator's word: granting, denying, retiring, and lifting that. Owns
//! the question whether it may, and the words in which it is refused; the roll decides what a statement is worth.
//! Invariant: nothing is signed that the roll would not heed, and nothing is acknowledged before it is on disk.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::local::refusal;
use super::persist::After;
use super::{EventKind, Grant, Node, Refusal, RefusalKind, Reply, RequestId};
use crate::identity::NodeKey;
use crate::roll::{Member, Rights, SignError, Statement, Tier, Verdict};
use crate::time::Now;

impl Node {
    /// Signs the edge that makes `subject` what `grant` says.
    pub(super) fn grant(&mut self, id: RequestId, subject: &NodeKey, grant: Grant, now: Now) -> Result<(), Refusal> {
        self.require(Tier::Admin, now)?;
        let member = self.below(subject, "grant it anything")?;
        let rights = self.granted(&member, grant, now)?;
        let edge = self.roll.edge(&self.me, subject);
        if edge.is_some_and(|edge| edge.verdict == Verdict::Member && edge.rights.as_ref() == Some(&rights)) {
            return self.nothing_new(id);
        }
        let signed = self.roll.admit(&self.secret, *subject, rights, now.unix).map_err(cannot_sign)?;
        let what = format!("{} is granted anew", self.name_of(subject));
        self.say(id, signed, (EventKind::Admitted, *subject, what), now)
    }

    /// Puts `subject` out.
    pub(super) fn put_out(
        &mut self,
        id: RequestId,
        subject: &NodeKey,
        verdict: Verdict,
        now: Now,
    ) -> Result<(), Refusal> {
        let (word, done) = if verdict == Verdict::Denied { ("deny", "denied") } else { ("retire", "retired") };
        self.require(Tier::Admin, now)?;
        match self.roll.edge(&self.me, subject).map(|edge| edge.verdict) {
            Some(said) if said == verdict => return self.nothing_new(id),
            // Said the other way before: whoever is out may be blamed, or cleared of it.
            Some(Verdict::Denied | Verdict::Retired) => {}
            _ => drop(self.below(subject, &format!("{word} it"))?),
        }
        let name = self.name_of(subject);
        let signed = match verdict {
            Verdict::Denied => self.roll.deny(&self.secret, *subject, now.unix),
            _ => self.roll.retire(&self.secret, *subject, now.unix),
        };
        let what = format!("{name} is {done}, by this node");
        self.say(id, signed.map_err(cannot_sign)?, (EventKind::Denied, *subject, what), now)
    }

    /// Lifts this node's own word against `subject`.
    pub(super) fn allow(&mut self, id: RequestId, subject: &NodeKey, now: Now) -> Result<(), Refusal> {
        self.require(Tier::Admin, now)?;
        let out = [Verdict::Denied, Verdict::Retired];
        match self.roll.edge(&self.me, subject) {
            Some(edge) if out.contains(&edge.verdict) && edge.invite.is_some() => {
                return Err(refusal(
                    RefusalKind::Failed,
                    "that is an invite which was used or revoked; make a new one",
                ));
            }
            Some(edge) if out.contains(&edge.verdict) => {}
            _ => return self.not_put_out_here(id, subject, now),
        }
        let signed = self.roll.allow(&self.secret, *subject, now.unix).map_err(cannot_sign)?;
        let what = format!("{} is allowed again, by this node", self.name_of(subject));
        self.say(id, signed, (EventKind::Admitted, *subject, what), now)
    }

    fn not_put_out_here(&mut self, id: RequestId, subject: &NodeKey, now: Now) -> Result<(), Refusal> {
        if self.standing.stands(subject, now.unix).is_ok() {
            return self.nothing_new(id);
        }
        let by = self.put_out_by(subject);
        if by.is_empty() {
            let message = format!("nobody denied or retired {}", subject.short());
            return Err(Refusal {
                hint: Some(format!("`pln why {subject}` says why it is no member")),
                ..refusal(RefusalKind::NotFound, message)
            });
        }
        let who = by.join(" and ");
        Err(Refusal {
            hint: Some(format!("run `pln allow` on {who}")),
            ..refusal(
                RefusalKind::Denied,
                format!("{} was put out by {who}, which alone can lift that", subject.short()),
            )
        })
    }

    /// All whose word keeps `subject` out.
    fn put_out_by(&self, subject: &NodeKey) -> Vec<String> {
        let root = self.roll.root();
        let against = self.roll.statements().filter(|s| {
            let verdict = s.edge().map(|edge| edge.verdict);
            s.subject() == *subject && matches!(verdict, Some(Verdict::Denied | Verdict::Retired))
        });
        let name = |key: NodeKey| if key == root { String::from("the root") } else { self.name_of(&key) };
        against.map(|statement| name(statement.issuer())).collect()
    }

    /// The member `subject`, expired or not, if this node is one of those above it.
    fn below(&self, subject: &NodeKey, what: &str) -> Result<Member, Refusal> {
        let name = self.name_of(subject);
        if *subject == self.me {
            let hint = "another admin above this node can; to leave the cluster, `pln down` and `pln purge`";
            let message = format!("this node cannot {what}: it is {name} itself");
            return Err(Refusal { hint: Some(hint.into()), ..refusal(RefusalKind::Usage, message) });
        }
        let Some(member) = self.standing.members().find(|member| member.key == *subject) else {
            let reason = self.standing.stands(subject, crate::time::UnixMs(0)).err();
            let reason = reason.map_or_else(String::new, |reason| reason.to_string());
            let hint = "`pln allow` lifts a denial; `pln status --include-offline` shows the members";
            let message = format!("{} is no member: {reason}", subject.short());
            return Err(Refusal { hint: Some(hint.into()), ..refusal(RefusalKind::NotFound, message) });
        };
        if member.path.contains(&self.me) {
            return Ok(member.clone());
        }
        let above: Vec<String> =
            member.path.iter().filter(|key| self.view.nodes.contains_key(key)).map(|key| self.name_of(key)).collect();
        let who = if above.is_empty() { String::from("the root") } else { above.join(" or ") };
        Err(Refusal {
            hint: Some(format!("{who} can")),
            ..refusal(RefusalKind::Denied, format!("{name} was not admitted by this node or by any that it admitted"))
        })
    }

    /// The rights that `grant` makes of a member's, if this node's own cover them.
    fn granted(&self, member: &Member, grant: Grant, now: Now) -> Result<Rights, Refusal> {
        let own = self.roll.edge(&self.me, &member.key).and_then(|edge| edge.rights.clone());
        let before = own.unwrap_or_else(|| member.rights.clone());
        let tier = grant.tier.unwrap_or(before.tier);
        let defaults = if tier == before.tier { before.clone() } else { self.roll.default_rights(&self.me, tier) };
        let rights = Rights {
            tier,
            props: grant.props.unwrap_or(before.props),
            quota_kib: grant.quota_kib.unwrap_or_else(|| before.quota_kib.max(defaults.quota_kib)),
            pool_kib: grant.pool_kib.unwrap_or(defaults.pool_kib),
            expires: grant.expires.unwrap_or(before.expires),
            grantable: defaults.grantable,
            prefixes: before.prefixes,
        };
        let mine = self.standing.stands(&self.me, now.unix);
        let mine = mine.map_err(|reason| refusal(RefusalKind::Denied, reason.to_string()))?;
        if tier != Tier::Admin && rights.pool_kib > 0 {
            return Err(refusal(RefusalKind::Usage, "only an admin has a pool, for only an admin admits others"));
        }
        if let Some((key, value)) = rights.props.iter().find(|(key, value)| !mine.rights.may_grant(key, value)) {
            return Err(refusal(RefusalKind::Denied, format!("this node may not hand on the property {key}={value}")));
        }
        if rights.quota_kib > mine.rights.quota_kib {
            let message = format!("this node's own quota is {} KiB, and it can give no more", mine.rights.quota_kib);
            return Err(refusal(RefusalKind::Denied, message));
        }
        Ok(rights)
    }

    /// Takes what was signed into the roll, and answers when that is on disk.
    fn say(
        &mut self,
        id: RequestId,
        signed: Statement,
        (kind, subject, what): (EventKind, NodeKey, String),
        now: Now,
    ) -> Result<(), Refusal> {
        self.merge(alloc::vec![Arc::new(signed)], None, now);
        self.event(kind, Some(subject), what);
        self.nothing_new(id)
    }

    /// Answers once all that was written before is on disk.
    fn nothing_new(&mut self, id: RequestId) -> Result<(), Refusal> {
        self.persist(Vec::new(), alloc::vec![After::Reply(id, Ok(Reply::Done))]);
        Ok(())
    }

    /// Statements that were signed elsewhere. Nothing is changed unless the roll takes all of them.
    pub(super) fn submit(&mut self, id: RequestId, statements: &[Vec<u8>], now: Now) -> Result<(), Refusal> {
        let decoded: Result<Vec<_>, _> =
            statements.iter().map(|bytes| Statement::decode(bytes).map(Arc::new)).collect();
        let decoded = decoded.map_err(|error| refusal(RefusalKind::Usage, error.to_string()))?;
        let mut tried = self.roll.clone();
        let merged = tried.merge(decoded.iter().cloned(), self.verify.as_ref());
        let taken = |s: &Arc<Statement>| tried.trie().digest_of(&s.slot()) == Some(s.digest());
        if !decoded.iter().all(taken) {
            let why = merged.refused.first().map_or_else(String::new, |(_, why)| format!(": {why}"));
            return Err(refusal(RefusalKind::Denied, format!("the roll does not take that statement{why}")));
        }
        self.merge(decoded, None, now);
        self.nothing_new(id)
    }
}

fn cannot_sign(error: SignError) -> Refusal {
    let kind = match error {
        SignError::Statement(_) | SignError::QuotaTooSmall => RefusalKind::Usage,
        SignError::MayNotAdmit(_) | SignError::NotRoot | SignError::RootAdmitsAdminsOnly => RefusalKind::Denied,
        _ => RefusalKind::Failed,
    };
    let hint = match error {
        SignError::PoolUsedUp { .. } => Some("an admin above this node can grant it a larger pool".into()),
        _ => None,
    };
    Refusal { hint, ..refusal(kind, error.to_string()) }
}

//! From what an operator asks of an invite to its terms. Owns what can be asked; signs nothing.
//! Invariant: terms name every right; nothing is left for a reader of the invite to assume.

use std::collections::BTreeMap;
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use pollen_common::identity::NodeKey;
use pollen_common::node::{InviteTerms, Reply};
use pollen_common::roll::Rights;
use pollen_common::time::UnixMs;

use crate::control::api::InviteBody;
use crate::http::failure::{Code, Failure};
use crate::status::TierName;
use crate::status::plain::{is_plain, plain};

/// The terms of the invite that `body` asks for.
///
/// # Errors
/// `Usage` for values that no invite can have.
pub fn terms(body: &InviteBody, now: UnixMs) -> Result<InviteTerms, Failure> {
    let usage = |message: &str| Failure::new(Code::Usage, message);
    if body.ttl_ms == 0 || body.expire_after_ms == Some(0) {
        return Err(usage("a token or membership of no duration is worthless"));
    }
    let defaults = Rights::of(body.tier.into());
    let quota_kib = body.quota_kib.unwrap_or(defaults.quota_kib);
    if quota_kib < Rights::QUOTA_KIB_MIN {
        return Err(usage(&format!("a quota is at least {} KiB", Rights::QUOTA_KIB_MIN)));
    }
    if body.tier != TierName::Admin && body.pool_kib.is_some_and(|pool| pool > 0) {
        return Err(usage("only an admin has a pool, for only an admin admits others").hint("add --admin"));
    }
    plain_props(&body.props)?;
    let subject = body.subject.as_deref().map(parse_subject).transpose()?;
    Ok(InviteTerms {
        rights: Rights {
            props: body.props.clone(),
            quota_kib,
            pool_kib: body.pool_kib.unwrap_or(defaults.pool_kib),
            expires: body.expire_after_ms.map(|ms| now.after(Duration::from_millis(ms))),
            ..defaults
        },
        subject,
        not_after: now.after(Duration::from_millis(body.ttl_ms)),
    })
}

/// Refuses properties that would not show as they are.
///
/// # Errors
/// `Usage`.
pub fn plain_props(props: &BTreeMap<String, String>) -> Result<(), Failure> {
    match props.iter().find(|(key, value)| !is_plain(key) || !is_plain(value)) {
        None => Ok(()),
        Some((key, _)) => Err(Failure::new(
            Code::Usage,
            format!("the property `{}` has characters that do not show, or make others show elsewhere", plain(key)),
        )
        .hint("leave line feeds, control and bidirectional characters out")),
    }
}

fn parse_subject(hex: &str) -> Result<NodeKey, Failure> {
    hex.parse().map_err(|_| {
        Failure::new(Code::Usage, format!("`{hex}` is no node key"))
            .hint("it takes all 64 hexadecimal digits that `pln id` shows on the machine that is to join")
    })
}

/// The token as people see it.
///
/// # Errors
/// `Failed` if the node answered something else, which would be a mistake of ours.
pub fn token(reply: Reply) -> Result<String, Failure> {
    match reply {
        Reply::Token(bytes) => Ok(BASE64URL_NOPAD.encode(&bytes)),
        other => Err(Failure::new(Code::Failed, format!("the node answered an invite with {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::sample;

    fn asked(tier: TierName) -> InviteBody {
        InviteBody { tier, ttl_ms: 300_000, ..InviteBody::default() }
    }

    fn made(body: &InviteBody) -> Result<InviteTerms, Failure> {
        terms(body, sample::NOW)
    }

    #[test]
    fn each_tier_has_its_defaults() {
        let rights = |tier| made(&asked(tier)).map(|terms| (terms.rights.quota_kib, terms.rights.pool_kib));
        assert_eq!(rights(TierName::Leaf), Ok((64, 0)));
        assert_eq!(rights(TierName::Publisher), Ok((1024, 0)));
        assert_eq!(rights(TierName::Admin), Ok((1024, 256 * 1024)));
    }

    #[test]
    fn times_count_from_now() {
        let body = InviteBody { expire_after_ms: Some(1000), ..asked(TierName::Leaf) };
        let terms = made(&body).expect("it is well formed");
        assert_eq!(terms.not_after.0, sample::NOW.0 + 300_000);
        assert_eq!(terms.rights.expires, Some(UnixMs(sample::NOW.0 + 1000)));
    }

    #[test]
    fn what_no_invite_can_have_is_bad_usage() {
        let cases = [
            InviteBody { ttl_ms: 0, ..asked(TierName::Leaf) },
            InviteBody { expire_after_ms: Some(0), ..asked(TierName::Leaf) },
            InviteBody { quota_kib: Some(63), ..asked(TierName::Leaf) },
            InviteBody { pool_kib: Some(1), ..asked(TierName::Publisher) },
            InviteBody { subject: Some("abcd".into()), ..asked(TierName::Leaf) },
            InviteBody { props: [("a".into(), "b\u{202e}c".into())].into(), ..asked(TierName::Leaf) },
            InviteBody { props: [("a\n".into(), "b".into())].into(), ..asked(TierName::Leaf) },
        ];
        for body in cases {
            assert_eq!(made(&body).map_err(|f| f.code), Err(Code::Usage), "{body:?}");
        }
    }
}

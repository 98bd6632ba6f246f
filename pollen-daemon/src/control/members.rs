//! What an operator says of members: granting, denying, retiring, allowing again. Owns the routes and what can be asked;
//! whether this node may say it is the node's to judge.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use pollen_common::identity::NodeKey;
use pollen_common::node::{Command, Grant};
use pollen_common::time::UnixMs;

use super::api::{GrantBody, Judged};
use super::invite::plain_props;
use super::resolve;
use super::server::{Api, JsonBody, Segment, Shared, within};
use crate::http::failure::{Code, Failure};
use crate::status::node_ref;

pub(super) async fn grant(
    State(api): Shared,
    Segment(node): Segment,
    JsonBody(body): JsonBody<GrantBody>,
) -> Result<Json<Judged>, Failure> {
    let subject = resolve::member_or_key(&api.daemon.view(), &node)?;
    let grant = asked(body, api.daemon.now())?;
    say(&api, subject, Command::Grant { subject, grant }).await
}

pub(super) async fn deny(State(api): Shared, Segment(node): Segment) -> Result<Json<Judged>, Failure> {
    let subject = resolve::member_or_key(&api.daemon.view(), &node)?;
    say(&api, subject, Command::Deny { subject }).await
}

pub(super) async fn retire(State(api): Shared, Segment(node): Segment) -> Result<Json<Judged>, Failure> {
    let subject = resolve::member_or_key(&api.daemon.view(), &node)?;
    say(&api, subject, Command::Retire { subject }).await
}

pub(super) async fn allow(State(api): Shared, Segment(node): Segment) -> Result<Json<Judged>, Failure> {
    let subject = resolve::member_or_key(&api.daemon.view(), &node)?;
    say(&api, subject, Command::Allow { subject }).await
}

async fn say(api: &Api, subject: NodeKey, command: Command) -> Result<Json<Judged>, Failure> {
    // Afterwards nobody may know any more what it was called.
    let called = node_ref(&api.daemon.view(), subject);
    within(api.daemon.command(command)).await?;
    Ok(Json(Judged { ok: true, key: called.key, name: called.name }))
}

fn asked(body: GrantBody, now: UnixMs) -> Result<Grant, Failure> {
    let GrantBody { tier, props, quota_kib, pool_kib, expire_after_ms, never_expires } = body;
    props.as_ref().map_or(Ok(()), plain_props)?;
    let nothing = tier.is_none() && props.is_none() && quota_kib.is_none() && pool_kib.is_none();
    if nothing && expire_after_ms.is_none() && !never_expires {
        return Err(Failure::new(Code::Usage, "a grant of nothing changes nothing")
            .hint("say what: --leaf, --publisher, --admin, --prop, --quota, --pool, --expire-after"));
    }
    let expires = match (expire_after_ms, never_expires) {
        (Some(0), _) => {
            return Err(
                Failure::new(Code::Usage, "a membership of no duration is worthless").hint("`pln deny` ends one")
            );
        }
        (Some(_), true) => return Err(Failure::new(Code::Usage, "a membership ends, or it never does")),
        (Some(ms), false) => Some(Some(now.after(Duration::from_millis(ms)))),
        (None, true) => Some(None),
        (None, false) => None,
    };
    Ok(Grant { tier: tier.map(Into::into), props, quota_kib, pool_kib, expires })
}

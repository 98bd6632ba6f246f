//! Who may reach what, as an operator asks it: the clauses of `serve`, and `can`, which answers for one member by the very
//! function that the providers decide with.

use axum::Json;
use axum::extract::{Path, Query, State};
use pollen_common::identity::NodeKey;
use pollen_common::views::policy::{Ground, Lack};
use pollen_common::views::{Policy, Protocol, Provider, ServiceInfo, View};
use serde::Deserialize;

use super::api::{AllowBody, Verdict};
use super::invite::plain_props;
use super::resolve;
use super::server::Shared;
use crate::handle::Subject;
use crate::http::failure::{Code, Failure};
use crate::status::node_ref;

/// The policy that is asked for. Peers are their keys from now on: a name is what its holder says.
///
/// # Errors
/// `NotFound` or `Ambiguous` for a peer, `Usage` for properties that would not show as they are.
pub fn asked(view: &View, allow: &AllowBody) -> Result<Policy, Failure> {
    plain_props(&allow.props)?;
    let peers = allow.peers.iter().map(|peer| resolve::member_or_key(view, peer)).collect::<Result<_, _>>()?;
    Ok(Policy { peers, tier: allow.tier.map(Into::into), props: allow.props.clone() })
}

/// Where a service is that has no name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct At {
    #[serde(default)]
    provider: Option<String>,
}

pub(super) async fn can(
    State(api): Shared,
    Path((node, action, target)): Path<(String, String, String)>,
    Query(At { provider }): Query<At>,
) -> Result<Json<Verdict>, Failure> {
    let view = api.daemon.view();
    let caller = resolve::member_or_key(&view, &node)?;
    let provider = provider.map(|text| resolve::member(&view, &text)).transpose()?;
    let (allowed, clause) = match action.as_str() {
        "connect" => said(may_connect(&view, caller, &target, provider)?),
        "call" => said(may_call(&view, caller, &target)?),
        other => return Err(Failure::new(Code::Usage, format!("`{other}` is neither `connect` nor `call`"))),
    };
    Ok(Json(Verdict { peer: node_ref(&view, caller), action, target, allowed, clause }))
}

fn said(judged: Result<Ground, Lack>) -> (bool, String) {
    match judged {
        Ok(ground) => (true, ground.to_string()),
        Err(lack) => (false, lack.to_string()),
    }
}

/// At whichever provider lets it in; else what the first of them says.
fn may_connect(
    view: &View,
    caller: NodeKey,
    target: &str,
    at: Option<NodeKey>,
) -> Result<Result<Ground, Lack>, Failure> {
    let (service, providers) = provided(view, target, at)?;
    let judge = |provider: &&Provider| view.may_connect(service, provider, &caller);
    let judged: Vec<_> = providers.iter().map(judge).collect();
    let first = judged.first().cloned();
    let first = first.ok_or_else(|| {
        Failure::new(Code::NotFound, format!("nobody provides {target}")).hint("see `pln status services`")
    })?;
    Ok(judged.into_iter().find(Result::is_ok).unwrap_or(first))
}

/// A service, if it has a name, and its providers, or the one at `at`.
fn provided<'a>(
    view: &'a View,
    target: &str,
    at: Option<NodeKey>,
) -> Result<(Option<&'a ServiceInfo>, Vec<&'a Provider>), Failure> {
    let there = |provider: &&Provider| at.is_none_or(|at| provider.node == at);
    if let Some(port) = target.parse::<u16>().ok().filter(|port| *port > 0) {
        if at.is_none() {
            return Err(Failure::new(Code::Usage, format!("port {port} is a service of some node: which?"))
                .hint(format!("`pln can PEER connect {port} PROVIDER`")));
        }
        return Ok(at_port(view, port, there));
    }
    let found = resolve::target(view, target)?.into_iter().find_map(|subject| match subject {
        Subject::Service(name) => view.services.get(&name),
        Subject::Node(_) | Subject::Seed(_) => None,
    });
    let service = found.ok_or_else(|| Failure::new(Code::NotFound, format!("{target} is no service")))?;
    Ok((Some(service), service.providers.iter().filter(there).collect()))
}

/// What a node's port reaches: that without a name first, as at the provider itself; by TCP where it is both.
fn at_port<'a>(
    view: &'a View,
    port: u16,
    there: impl Fn(&&'a Provider) -> bool,
) -> (Option<&'a ServiceInfo>, Vec<&'a Provider>) {
    for protocol in Protocol::BOTH {
        let here = |provider: &&'a Provider| there(provider) && provider.port == port && provider.protocol == protocol;
        if let Some(unnamed) = view.unnamed.iter().find(here) {
            return (None, vec![unnamed]);
        }
        for service in view.services.values() {
            if let Some(named) = service.providers.iter().find(here) {
                return (Some(service), vec![named]);
            }
        }
    }
    (None, Vec::new())
}

/// Seeds have no policy: whoever stands calls them.
fn may_call(view: &View, caller: NodeKey, target: &str) -> Result<Result<Ground, Lack>, Failure> {
    resolve::seed(view, target)?;
    Ok(if view.nodes.contains_key(&caller) { Ok(Ground::Everyone) } else { Err(Lack::Membership) })
}

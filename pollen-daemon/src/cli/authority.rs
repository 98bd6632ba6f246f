//! Who may do what: `grant`, `deny`, `retire`, `allow`, `can`.

use std::time::Duration;

use hyper::Method;

use super::output::Output;
use super::props::Props;
use super::units;
use crate::control::api::{GrantBody, Judged, Verdict};
use crate::control::client::{Client, segment};
use crate::http::failure::{Code, Failure};
use crate::status::TierName;

/// Change what a member may do
///
/// Takes effect at once, on open connections too. What is not named stays as it is; --prop replaces all its properties. An
/// admin can grant what its own rights cover, to those that it admitted and all below them.
#[derive(Debug, clap::Args)]
pub(super) struct Grant {
    /// The member's name or the start of its key
    peer: String,
    /// It may connect and call, and not publish
    #[arg(long, conflicts_with_all = ["publisher", "admin"])]
    leaf: bool,
    /// It may publish
    #[arg(long, conflicts_with = "admin")]
    publisher: bool,
    /// It may publish and admit others
    #[arg(long)]
    admin: bool,
    #[command(flatten)]
    props: Props,
    /// Take all its properties away
    #[arg(long, conflicts_with = "prop")]
    no_props: bool,
    /// How much it may replicate
    #[arg(long, value_name = "SIZE", value_parser = units::size_kib)]
    quota: Option<u32>,
    /// How much all that it admits may replicate together
    #[arg(long, value_name = "SIZE", value_parser = units::size_kib)]
    pool: Option<u32>,
    /// The membership ends this long from now
    #[arg(long, value_name = "DURATION", value_parser = units::duration, conflicts_with = "no_expiry")]
    expire_after: Option<Duration>,
    /// The membership no longer ends by itself
    #[arg(long)]
    no_expiry: bool,
}

impl Grant {
    pub(super) async fn run(self, client: &Client, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let tier = match (self.admin, self.publisher, self.leaf) {
            (true, ..) => Some(TierName::Admin),
            (_, true, _) => Some(TierName::Publisher),
            (.., true) => Some(TierName::Leaf),
            _ => None,
        };
        let props = self.props.resolve(std::io::stdin())?;
        let ms = |duration: Duration| {
            u64::try_from(duration.as_millis()).map_err(|_| Failure::new(Code::Usage, "the duration is too long"))
        };
        let body = GrantBody {
            tier,
            props: (self.no_props || !props.is_empty()).then_some(props),
            quota_kib: self.quota,
            pool_kib: self.pool,
            expire_after_ms: self.expire_after.map(ms).transpose()?,
            never_expires: self.no_expiry,
        };
        let judged: Judged = client.exchange(Method::POST, &path(&self.peer, "grant"), Some(&body)).await?;
        output.answer(&judged, || format!("granted to {}", shown(&judged)))
    }
}

/// Put a member out, with all that it admitted
///
/// Its connections end at once, on every node that hears of it, and it is let in nowhere any more. `pln allow` lifts it.
#[derive(Debug, clap::Args)]
pub(super) struct Deny {
    /// The member's name or the start of its key
    peer: String,
}

impl Deny {
    pub(super) async fn run(self, client: &Client, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let judged = judge(client, &self.peer, "deny").await?;
        output.answer(&judged, || format!("denied {}", shown(&judged)))?;
        output.note(&format!("`pln allow {}` lifts it", start(&judged)));
        Ok(())
    }
}

/// Take a machine that is gone for good off the members
///
/// As `deny`, without blame: for one that was lost, sold or made anew.
#[derive(Debug, clap::Args)]
pub(super) struct Retire {
    /// The member's name or the start of its key
    peer: String,
}

impl Retire {
    pub(super) async fn run(self, client: &Client, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let judged = judge(client, &self.peer, "retire").await?;
        output.answer(&judged, || format!("retired {}", shown(&judged)))?;
        output.note(&format!("`pln allow {}` lifts it", start(&judged)));
        Ok(())
    }
}

/// Lift this node's denial or retirement of a key
///
/// The member is what it was, and so is all that it had admitted.
#[derive(Debug, clap::Args)]
pub(super) struct Allow {
    /// The start of its key: `pln status --include-offline` lists those that are out
    peer: String,
}

impl Allow {
    pub(super) async fn run(self, client: &Client, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let judged = judge(client, &self.peer, "allow").await?;
        output.answer(&judged, || format!("allowed {}", shown(&judged)))
    }
}

/// Say whether a member may reach a service or call a seed
///
/// Answers as its providers decide, by what this node knows: yes or no, and the clause that decides. Ends with 4 for no.
#[derive(Debug, clap::Args)]
pub(super) struct Can {
    /// The member's name or the start of its key
    peer: String,
    /// What it would do
    action: Action,
    /// The service's or seed's name; or a port, with the node that serves it
    target: String,
    /// Only at this node
    provider: Option<String>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Action {
    Connect,
    Call,
}

impl Can {
    /// Whether it may.
    pub(super) async fn run(self, client: &Client, output: &mut Output<'_, '_>) -> Result<bool, Failure> {
        let action = match self.action {
            Action::Connect => "connect",
            Action::Call => "call",
        };
        let query = self.provider.as_ref().map(|p| format!("?provider={}", segment(p))).unwrap_or_default();
        let path = format!("{}/{}{query}", path(&self.peer, &format!("can/{action}")), segment(&self.target));
        let verdict: Verdict = client.ask(&path).await?;
        output.answer(&verdict, || format!("{}: {}", if verdict.allowed { "yes" } else { "no" }, verdict.clause))?;
        Ok(verdict.allowed)
    }
}

async fn judge(client: &Client, peer: &str, verb: &str) -> Result<Judged, Failure> {
    client.exchange(Method::POST, &path(peer, verb), None::<&()>).await
}

fn path(peer: &str, verb: &str) -> String {
    format!("/v1/members/{}/{verb}", segment(peer))
}

/// Enough of a key to tell it from others.
fn start(judged: &Judged) -> &str {
    judged.key.get(..12).unwrap_or(&judged.key)
}

fn shown(judged: &Judged) -> String {
    judged.name.as_ref().map_or_else(|| start(judged).into(), |name| format!("{name} ({})", start(judged)))
}

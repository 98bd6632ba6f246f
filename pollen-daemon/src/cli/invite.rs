//! `invite`: admitting another machine.

use std::time::Duration;

use hyper::Method;

use super::output::Output;
use super::props::Props;
use super::{asking, units};
use crate::control::api::{InviteBody, Invited};
use crate::control::client::Client;
use crate::http::failure::{Code, Failure};
use crate::status::TierName;
use crate::status::when::Moment;
use pollen_common::time::UnixMs;

/// Print a token that lets one machine join
///
/// Whoever has the token may join: hand it over as you would a password. It works once, at any admin of the cluster, until
/// its time is over.
#[derive(Debug, clap::Args)]
pub(super) struct Invite {
    /// Only the node with this key may use the token (see `pln id`)
    #[arg(value_name = "SUBJECT", conflicts_with = "subject")]
    positional: Option<String>,
    /// The same, as a flag
    #[arg(long, value_name = "HEX")]
    subject: Option<String>,
    /// How long the token works
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = units::duration)]
    ttl: Duration,
    /// The membership ends this long from now [default: never]
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    expire_after: Option<Duration>,
    /// The new member may publish
    #[arg(long, conflicts_with = "admin")]
    publisher: bool,
    /// The new member may publish and admit others
    #[arg(long)]
    admin: bool,
    #[command(flatten)]
    props: Props,
    /// How much the new member may replicate [default: 64KiB; 1MiB for publishers and admins]
    #[arg(long, value_name = "SIZE", value_parser = units::size_kib)]
    quota: Option<u32>,
    /// How much all that a new admin admits may replicate together [default: 256MiB]
    #[arg(long, value_name = "SIZE", value_parser = units::size_kib, requires = "admin")]
    pool: Option<u32>,
}

impl Invite {
    pub(super) fn run(self, client: &Client, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let body = self.body()?;
        let invited: Invited = asking(client.exchange(Method::POST, "/v1/invites", Some(&body)))?;
        output.note(&format!("Good once, until {}", Moment(UnixMs(invited.not_after_unix_ms))));
        output.answer(&invited, || invited.token.clone())
    }

    fn body(self) -> Result<InviteBody, Failure> {
        let ms = |duration: Duration| {
            u64::try_from(duration.as_millis()).map_err(|_| Failure::new(Code::Usage, "the duration is too long"))
        };
        Ok(InviteBody {
            tier: match (self.admin, self.publisher) {
                (true, _) => TierName::Admin,
                (false, true) => TierName::Publisher,
                (false, false) => TierName::Leaf,
            },
            props: self.props.resolve(std::io::stdin())?,
            ttl_ms: ms(self.ttl)?,
            expire_after_ms: self.expire_after.map(ms).transpose()?,
            subject: self.positional.or(self.subject),
            quota_kib: self.quota,
            pool_kib: self.pool,
        })
    }
}

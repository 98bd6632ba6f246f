//! `--allow…`: who may reach what is served, as people say it and are told of it.
//! Invariant: what would bound nothing, or let nobody in by mistake, is refused where it was typed.

use std::collections::BTreeMap;

use clap::ValueEnum;

use crate::control::api::{AllowBody, Served};
use crate::http::failure::{Code, Failure};
use crate::status::TierName;

/// Who may reach it.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Bounds {
    /// Let this member reach it, whatever else is asked for: its name or the start of its key
    #[arg(long, value_name = "PEER", help_heading = "Who may reach it")]
    allow: Vec<String>,
    /// Let members of this tier reach it, or of a higher one
    #[arg(long, value_name = "TIER", value_enum, help_heading = "Who may reach it")]
    allow_tier: Option<Tier>,
    /// Let members reach it that have this property; with several, or with a tier, all are asked for
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Who may reach it")]
    allow_prop: Vec<String>,
    /// Let every member reach it again
    #[arg(long, conflicts_with_all = ["allow", "allow_tier", "allow_prop"], help_heading = "Who may reach it")]
    allow_all: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Tier {
    Leaf,
    Publisher,
    Admin,
}

impl From<Tier> for TierName {
    fn from(tier: Tier) -> Self {
        match tier {
            Tier::Leaf => Self::Leaf,
            Tier::Publisher => Self::Publisher,
            Tier::Admin => Self::Admin,
        }
    }
}

impl Bounds {
    /// What is asked for; none where nothing is said.
    pub(super) fn asked(self) -> Result<Option<AllowBody>, Failure> {
        let Self { allow, allow_tier, allow_prop, allow_all } = self;
        let mut props = BTreeMap::new();
        for given in &allow_prop {
            let (key, value) = given.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(|| {
                usage(format!("`{given}` is no property")).hint("write --allow-prop region=eu, once for each")
            })?;
            if props.insert(key.to_owned(), value.to_owned()).is_some_and(|before| before != value) {
                return Err(usage(format!("the property {key} is given twice, and nobody has two values of it"))
                    .hint("all that is asked for is required: --allow PEER lets in whoever lacks it"));
            }
        }
        let body = AllowBody { peers: allow, tier: allow_tier.map(Into::into), props };
        Ok((allow_all || body != AllowBody::default()).then_some(body))
    }
}

/// Who may reach what is served now.
pub(super) fn who(served: &Served) -> String {
    match &served.allow {
        None => {
            "every member of the cluster may reach it; bound it by --allow PEER, --allow-tier or --allow-prop".into()
        }
        Some(allow) => format!("{} may reach it, and nobody else", allow.who),
    }
}

fn usage(message: String) -> Failure {
    Failure::new(Code::Usage, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn props(given: &[&str]) -> Result<Option<AllowBody>, Failure> {
        Bounds { allow_prop: given.iter().map(|s| (*s).to_owned()).collect(), ..Bounds::default() }.asked()
    }

    #[test]
    fn nothing_said_changes_nothing_and_everyone_is_said_in_words() {
        assert_eq!(props(&[]), Ok(None));
        let all = Bounds { allow_all: true, ..Bounds::default() };
        assert_eq!(all.asked(), Ok(Some(AllowBody::default())));
    }

    #[test]
    fn properties_are_pairs_and_none_has_two_values() {
        let both = props(&["env=prod", "a=b=c", "env=prod"]).expect("two properties").expect("something");
        assert_eq!(
            both.props.into_iter().collect::<Vec<_>>(),
            [("a".into(), "b=c".into()), ("env".into(), "prod".into())]
        );
        for wrong in [&["env"][..], &["=x"], &[""], &["env=prod", "env=dev"]] {
            assert_eq!(props(wrong).map_err(|failure| failure.code), Err(Code::Usage), "{wrong:?}");
        }
    }
}

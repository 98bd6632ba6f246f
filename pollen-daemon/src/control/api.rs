//! The requests and small answers of the control API, as JSON. Owns their shapes, which are contract
//! (`docs/protocol/control.md`); what `status` and `inspect` answer is in [`crate::status`].
//! Invariant: fields are only ever added, and unknown fields of a request are refused, for a typing error in a script
//! must not pass for a default.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::config::{LiveSettings, show_address};
use crate::events::EventRecord;
use crate::services::Listener;
use crate::status::{AllowRow, Connection, NodeRef, ProtocolName, TierName, label};

mod seeds;
pub use seeds::{Called, SeedLine, SeededLine, StageLine, UnseededAnswer};

/// `POST /v1/services`: publish a local port.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServeBody {
    /// Absent where `server` says where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// `HOST:PORT` or `unix:PATH` of a server that is not on this machine's loopback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default)]
    pub protocol: ProtocolName,
    /// By UDP, too, at the same port.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub also_udp: bool,
    /// Others may provide it too.
    #[serde(default)]
    pub shared: bool,
    /// Who may reach it; as it was where absent. One that says nothing lets every member in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<AllowBody>,
}

/// Who may reach a service: each of the peers; and whoever has the tier, or a higher one, and all of the properties,
/// where either is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllowBody {
    /// Node names, prefixes of keys, or whole keys of nodes that may come.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<TierName>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub props: BTreeMap<String, String>,
}

/// The answer of `POST /v1/services`: what is now published.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Served {
    pub port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    pub name: Option<String>,
    pub protocol: ProtocolName,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub also_udp: bool,
    pub shared: bool,
    /// Who may reach it; absent where every member may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<AllowRow>,
    /// What its publisher should know, a sentence each: that nothing listens on the port yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// `GET /v1/members/{node}/can/{action}/{target}`: whether a member may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub peer: NodeRef,
    /// `connect` or `call`.
    pub action: String,
    pub target: String,
    pub allowed: bool,
    /// The clause that decides, as a sentence.
    pub clause: String,
}

/// `POST /v1/connections`: open a local listener.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectBody {
    /// A name, or the port of a service of `provider`.
    pub service: String,
    /// A node name or a prefix of its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// An address of this machine to listen on; its loopback where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_port: Option<u16>,
}

/// The answer of `POST /v1/connections`: a listener, and the one of the other protocol where the service speaks both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connected {
    #[serde(flatten)]
    pub first: Connection,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Connection>,
}

impl Connected {
    /// None where there is no listener.
    #[must_use]
    pub fn of(listeners: &[Listener]) -> Option<Self> {
        let (first, also) = listeners.split_first()?;
        Some(Self { first: first.into(), also: also.iter().map(Connection::from).collect() })
    }
}

/// `POST /v1/invites`: make an invite.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InviteBody {
    #[serde(default)]
    pub tier: TierName,
    #[serde(default)]
    pub props: BTreeMap<String, String>,
    /// How long the token may be redeemed, in milliseconds.
    pub ttl_ms: u64,
    /// How long the membership lasts from now, in milliseconds; for good where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expire_after_ms: Option<u64>,
    /// The only key that may redeem it, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The tier's default where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_kib: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_kib: Option<u32>,
}

/// `POST /v1/members/{node}/grant`: what a member may do from now on; what is absent stays as it is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantBody {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<TierName>,
    /// All of its properties.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub props: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_kib: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_kib: Option<u32>,
    /// How long the membership lasts from now, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expire_after_ms: Option<u64>,
    /// The membership no longer ends by itself.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub never_expires: bool,
}

/// The answer of `POST /v1/members/{node}/…`: who was meant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Judged {
    pub ok: bool,
    pub key: String,
    pub name: Option<String>,
}

/// The answer of `POST /v1/invites`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Invited {
    /// What `pln join` takes: base64url without padding. Whoever has it may join; treat it as a password.
    pub token: String,
    pub tier: TierName,
    /// The token is worthless after this, milliseconds since 1970.
    pub not_after_unix_ms: u64,
    /// The membership ends then.
    pub expires_unix_ms: Option<u64>,
}

/// `GET /v1/settings`: what is set. Absent means the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsShown {
    /// What this node is called.
    #[serde(default)]
    pub name: Option<String>,
    /// Where `/metrics` listens.
    pub http: Option<String>,
    #[serde(rename = "log-level")]
    pub log_level: Option<String>,
    /// How much memory seeds may have together. A daemon that knows no such setting says nothing of it.
    #[serde(rename = "seed-memory", default)]
    pub seed_memory: Option<String>,
    /// How long what is open with a silent peer waits.
    #[serde(rename = "stream-patience", default)]
    pub stream_patience: Option<String>,
    /// Whether packets of others are passed on: `on`, `off`.
    #[serde(default)]
    pub relay: Option<String>,
    #[serde(default)]
    pub datapath: Option<String>,
}

impl From<&LiveSettings> for SettingsShown {
    fn from(settings: &LiveSettings) -> Self {
        Self {
            name: settings.name.as_ref().map(ToString::to_string),
            http: settings.http.map(show_address),
            log_level: settings.log_level.clone(),
            seed_memory: settings.seed_memory_mib.map(super::size::show_mib),
            stream_patience: settings.stream_patience_s.map(super::duration::show_seconds),
            relay: settings.relay.map(|relay| if relay { "on" } else { "off" }.into()),
            datapath: settings.datapath.map(|choice| choice.label().into()),
        }
    }
}

/// `PUT /v1/settings/{key}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingBody {
    pub value: String,
}

/// One line of `GET /v1/events`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventLine {
    /// Counts from 1 at each start of the daemon; a gap means that the reader was too slow.
    pub seq: u64,
    pub at_unix_ms: u64,
    /// `peer_up`, `peer_down`, `joined` …
    pub kind: String,
    /// The key of the peer that it is about.
    pub peer: Option<String>,
    pub message: String,
}

impl From<&EventRecord> for EventLine {
    fn from(record: &EventRecord) -> Self {
        Self {
            seq: record.seq,
            at_unix_ms: record.at.0,
            kind: label::event(record.event.kind).into(),
            peer: record.event.peer.map(|key| key.to_string()),
            message: record.event.message.clone(),
        }
    }
}

/// One line of `GET /v1/logs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    pub line: String,
}

/// `GET /v1/version`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    pub version: String,
    /// The commit that it was built from, where the build knew it.
    pub commit: Option<String>,
}

impl Version {
    /// That of this very binary.
    #[must_use]
    pub fn own() -> Self {
        Self { version: env!("CARGO_PKG_VERSION").into(), commit: option_env!("PLN_COMMIT").map(Into::into) }
    }
}

/// `GET /v1/why/{target}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reasons {
    /// `node`, `service`, `seed`, or `several` where a service and a seed have one name.
    pub kind: String,
    /// The node's key or the service's name.
    pub target: String,
    /// A sentence each, the most telling first.
    pub reasons: Vec<String>,
}

/// What a request answers that has nothing to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    pub ok: bool,
}

impl Done {
    pub const YES: Self = Self { ok: true };
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::control::settings::parse_address;

    /// What scripts send, one of each.
    const BODIES: [&str; 4] = [
        r#"{"port":8080,"name":"api","shared":true,"allow":{"peers":["bob"],"tier":"publisher","props":{"env":"prod"}}}"#,
        r#"{"service":"api","provider":"ams","local_port":9000}"#,
        r#"{"tier":"publisher","props":{"region":"eu"},"ttl_ms":300000}"#,
        r#"{"value":":9090"}"#,
    ];

    /// How many of the requests a body is. What is understood is written as what it is.
    fn understood(body: &[u8]) -> usize {
        fn one<T: Serialize + serde::de::DeserializeOwned>(body: &[u8]) -> bool {
            let Ok(read) = serde_json::from_slice::<T>(body) else { return false };
            let written = serde_json::to_value(&read).expect("it is JSON");
            let again: T = serde_json::from_value(written.clone()).expect("what is written is understood");
            assert_eq!(serde_json::to_value(&again).expect("it is JSON"), written);
            true
        }
        let read =
            [one::<ServeBody>(body), one::<ConnectBody>(body), one::<InviteBody>(body), one::<SettingBody>(body)];
        read.into_iter().filter(|read| *read).count()
    }

    #[test]
    fn each_body_is_exactly_one_request_and_no_part_of_it_is_any() {
        for body in BODIES {
            assert_eq!(understood(body.as_bytes()), 1, "{body}");
            for len in 0..body.len() {
                assert_eq!(understood(&body.as_bytes()[..len]), 0, "{len} bytes of {body}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_body_with_other_bytes_in_it_is_understood_or_refused(
            which in 0..BODIES.len(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            let mut body = BODIES[which].as_bytes().to_vec();
            for (at, byte) in changes {
                let at = at.index(body.len());
                body[at] = byte;
            }
            prop_assert!(understood(&body) <= 1);
        }

        #[test]
        fn whatever_is_an_address_is_shown_as_one(text in "[0-9a-f.:\\[\\]]{0,30}|localhost:[0-9]{0,6}|\\PC{0,20}") {
            if let Ok(address) = parse_address(&text) {
                prop_assert_eq!(parse_address(&show_address(address)), Ok(address));
            }
        }
    }
}

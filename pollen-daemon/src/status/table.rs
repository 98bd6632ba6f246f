//! A status as people read it: chips, then tables. Owns layout alone; everything it shows is in the model.
//! Invariant: plain text, with escape sequences only in the chips and only when asked for.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use comfy_table::Table;

mod seeds;

use super::inspect::{Inspected, NodeDetail, ServiceDetail};
use super::plain::plain;
use super::when::{Moment, show_bytes, show_rtt};
use super::{
    Condition, Datapath, FallenRow, HealthState, NatRow, NodeRef, NodeRow, NodeState, PathRow, ServiceRow, Status,
};
use crate::status::allow::EVERYONE;
use crate::status::{AllowRow, Connection, ProtocolName, TierName};
use pollen_common::mapping::NatKind;
use pollen_common::time::UnixMs;

/// Which tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    All,
    Nodes,
    Services,
    Seeds,
}

/// How to lay out.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub section: Section,
    /// More columns, and keys in full.
    pub wide: bool,
    pub include_offline: bool,
    /// Whether the chips may have colour.
    pub colour: bool,
}

/// Conditions under the headline: what is below must still be found.
const CONDITIONS_SHOWN_MAX: usize = 12;

/// What stands where there is nothing to say.
const NOTHING: &str = "-";

/// The whole status as text, ending in a line feed.
#[must_use]
pub fn status(status: &Status, layout: Layout) -> String {
    let mut out = String::new();
    if layout.section == Section::All {
        chips(&mut out, status, layout.colour);
    }
    let shows = |section| layout.section == Section::All || layout.section == section;
    if shows(Section::Nodes) {
        nodes(&mut out, status, layout);
    }
    if shows(Section::Services) {
        services(&mut out, &status.services, layout);
    }
    // With the services: a listener whose service is gone stands nowhere else.
    if shows(Section::Services) && !status.connections.is_empty() {
        connections(&mut out, &status.connections);
    }
    if shows(Section::Seeds) {
        seeds::seeds(&mut out, &status.seeds, layout.wide);
    }
    if layout.section == Section::All {
        push_line(&mut out, &format!("\nDATAPATH  {}", datapath(&status.datapath)));
        seeds::engine(&mut out, &status.engine);
    }
    out
}

fn datapath(Datapath { rung, interfaces, why_not_higher }: &Datapath) -> String {
    let on = if interfaces.is_empty() { String::new() } else { format!(" on {}", interfaces.join(", ")) };
    let why = if why_not_higher.is_empty() { String::new() } else { format!(": {why_not_higher}") };
    format!("{rung}{on}{why}")
}

fn chips(out: &mut String, status: &Status, colour: bool) {
    let (health, code) = match status.health.state {
        HealthState::Healthy => ("HEALTHY", 42),
        HealthState::Degraded => ("DEGRADED", 43),
        HealthState::Unhealthy => ("UNHEALTHY", 41),
    };
    let tier = status.me.tier.map_or("NO MEMBER", |tier| match tier {
        TierName::Leaf => "LEAF",
        TierName::Publisher => "PUBLISHER",
        TierName::Admin => "ADMIN",
    });
    let online = status.nodes.iter().filter(|node| node.state != NodeState::Offline).count();
    let name = status.me.name.as_deref().unwrap_or(&status.me.key[..8]);
    let (health, tier) = (chip(health, code, colour), chip(tier, 44, colour));
    // The only line with escape sequences, all ours: a name has no characters that could be another's.
    let _ = write!(out, "{health}  {tier}  {name}  {online} of {} nodes online", status.nodes.len());
    let _ = writeln!(out, "{}", seeds::summary(&status.seeds).map_or_else(String::new, |seeds| format!("  {seeds}")));
    let conditions = &status.health.conditions;
    for Condition { message, remedy, .. } in conditions.iter().take(CONDITIONS_SHOWN_MAX) {
        push_line(out, &format!("  {}", plain(message)));
        push_line(out, &format!("    {}", plain(remedy)));
    }
    if conditions.len() > CONDITIONS_SHOWN_MAX {
        push_line(out, &format!("  {} more, shown by --json", conditions.len() - CONDITIONS_SHOWN_MAX));
    }
}

/// `text` on a background, or in brackets where there is no colour.
fn chip(text: &str, background: u8, colour: bool) -> String {
    if colour { format!("\x1b[1;30;{background}m {text} \x1b[0m") } else { format!("[{text}]") }
}

fn nodes(out: &mut String, status: &Status, layout: Layout) {
    let mut header = vec!["NAME", "KEY", "TIER", "STATE", "PATH", "RTT", "LINKS"];
    if layout.wide {
        header.extend(["HOPS", "ADDRESSES", "IN", "OUT", "LOST", "PROPS", "EXPIRES"]);
    }
    let shown = |node: &&NodeRow| layout.include_offline || node.state != NodeState::Offline;
    let rows: Vec<Vec<String>> =
        status.nodes.iter().filter(shown).map(|node| node_cells(status, node, layout.wide)).collect();
    let hidden = status.nodes.len() - rows.len();
    table(out, "NODES", &header, rows);
    if hidden > 0 {
        push_line(out, &format!("{hidden} offline, shown by --include-offline"));
    }
    for FallenRow { key, why, by, since_unix_ms } in status.fallen.iter().filter(|_| layout.include_offline) {
        let by = by.as_ref().map_or_else(|| "the root".into(), show_ref);
        let how = since_unix_ms.map_or_else(|| format!("by {by}"), |at| format!("{}", Moment(UnixMs(at))));
        push_line(out, &format!("{why} {how}: {}", if layout.wide { key } else { short(key) }));
    }
}

fn node_cells(status: &Status, node: &NodeRow, wide: bool) -> Vec<String> {
    let path = node.path.as_ref();
    let mut cells = vec![
        node.name.clone().unwrap_or_else(|| NOTHING.into()),
        if wide { node.key.clone() } else { short(&node.key).into() },
        tier(node.tier).into(),
        state(node.state).into(),
        way(status, node),
        path.map_or_else(|| NOTHING.into(), |path| show_rtt(path.rtt_us)),
        node.links.to_string(),
    ];
    if wide {
        let counted = |count: fn(&PathRow) -> String| path.map_or_else(|| NOTHING.into(), count);
        cells.extend([
            or_nothing(node.hops),
            joined(node.addrs.iter()),
            counted(|path| show_bytes(path.bytes_in)),
            counted(|path| show_bytes(path.bytes_out)),
            counted(|path| path.lost.to_string()),
            joined(node.props.iter().map(|(key, value)| format!("{key}={value}"))),
            or_nothing(node.expires_unix_ms.map(|at| Moment(UnixMs(at)))),
        ]);
    }
    cells
}

/// The kind of the path, or the neighbour that the way starts with where there is no connection.
fn way(status: &Status, node: &NodeRow) -> String {
    let called = |key: &String| {
        let node = status.nodes.iter().find(|node| node.key == *key);
        node.and_then(|node| node.name.clone()).unwrap_or_else(|| short(key).into())
    };
    let named = |key: &String| format!("via {}", called(key));
    let connected = node.path.as_ref().map(|path| match &path.via {
        Some(relay) => format!("{} by {}", path.kind, called(relay)),
        None => path.kind.clone(),
    });
    connected.or_else(|| node.via.as_ref().map(named)).unwrap_or_else(|| NOTHING.into())
}

fn services(out: &mut String, services: &[ServiceRow], layout: Layout) {
    let mut header = vec!["NAME", "OWNER", "PROVIDERS", "PORT", "SHARED", "ALLOWED", "LOCAL", "CONFLICTS"];
    if layout.wide {
        header.push("PROVIDED BY");
    }
    let reachable = |service: &&ServiceRow| service.providers.iter().any(|provider| provider.online);
    let shown: Vec<&ServiceRow> = services.iter().filter(|s| layout.include_offline || reachable(s)).collect();
    let rows = shown.iter().map(|service| service_cells(service, layout.wide)).collect();
    table(out, "SERVICES", &header, rows);
    let hidden = services.len() - shown.len();
    if hidden > 0 {
        push_line(out, &format!("{hidden} without a provider online, shown by --include-offline"));
    }
}

fn service_cells(service: &ServiceRow, wide: bool) -> Vec<String> {
    // One that speaks both protocols is one provider.
    let nodes = |online: bool| {
        let those = service.providers.iter().filter(|provider| provider.online || !online);
        those.map(|provider| &provider.node.key).collect::<BTreeSet<_>>().len()
    };
    let ports_in = |of: ProtocolName| {
        let ports = service.providers.iter().filter(|provider| provider.protocol == of).map(|provider| provider.port);
        let ports: BTreeSet<u16> = ports.collect();
        (!ports.is_empty()).then(|| format!("{} {}", protocol(of), joined(ports.iter())))
    };
    let ports: Vec<String> = [ProtocolName::Tcp, ProtocolName::Udp].into_iter().filter_map(ports_in).collect();
    let nobody = || vec![format!("{} ", protocol(service.protocol))];
    let mut cells = vec![
        service.name.clone().unwrap_or_else(|| NOTHING.into()),
        show_ref(&service.owner),
        format!("{}/{}", nodes(true), nodes(false)),
        if ports.is_empty() { nobody() } else { ports }.join(", "),
        if service.shared { "yes" } else { "no" }.into(),
        service.allow.as_ref().map_or_else(|| "all".into(), AllowRow::brief),
        joined(service.local.iter()),
        if service.conflicts == 0 { NOTHING.into() } else { service.conflicts.to_string() },
    ];
    if wide {
        let shown = |p: &super::ProviderRow| {
            format!("{}:{}{}", show_ref(&p.node), p.port, if p.online { "" } else { " (offline)" })
        };
        cells.push(joined(service.providers.iter().map(shown)));
    }
    cells
}

fn connections(out: &mut String, connections: &[Connection]) {
    let rows = connections
        .iter()
        .map(|connection| {
            vec![
                connection.service.clone(),
                connection.provider.as_deref().map_or_else(|| "any".into(), |key| short(key).into()),
                protocol(connection.protocol).into(),
                match &connection.waiting {
                    Some(_) => format!("{} (waiting)", connection.local_port),
                    None => joined(connection.local.iter()),
                },
            ]
        })
        .collect();
    table(out, "CONNECTIONS", &["SERVICE", "PROVIDER", "PROTOCOL", "LOCAL"], rows);
}

/// One node, service or seed in full, ending in a line feed; several with an empty line between them.
#[must_use]
pub fn inspect(inspected: &Inspected) -> String {
    let mut out = String::new();
    let fields = match inspected {
        Inspected::Node(node) => node_fields(node),
        Inspected::Service(service) => service_fields(service),
        Inspected::Seed(seed) => seeds::fields(seed),
        Inspected::Several { found } => return found.iter().map(inspect).collect::<Vec<String>>().join("\n"),
    };
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, values) in fields {
        let mut values = values.into_iter();
        let first = values.next().unwrap_or_else(|| NOTHING.into());
        push_line(&mut out, &format!("{name:width$}  {first}"));
        for value in values {
            push_line(&mut out, &format!("{:width$}  {value}", ""));
        }
    }
    out
}

type Fields = Vec<(&'static str, Vec<String>)>;

fn node_fields(node: &NodeDetail) -> Fields {
    let row = &node.row;
    let moment = |at: u64| Moment(UnixMs(at)).to_string();
    let provided = node
        .provides
        .iter()
        .map(|p| format!("{} {} {}", p.name.as_deref().unwrap_or("(no name)"), protocol(p.protocol), p.port));
    let path_to_root = node.path_to_root.iter().cloned().chain(["the root".to_owned()]).collect();
    let mut fields: Fields = vec![
        ("node", row.name.iter().cloned().collect()),
        ("key", vec![row.key.clone()]),
        ("state", vec![state(row.state).into()]),
        ("tier", vec![tier(row.tier).into()]),
        ("props", row.props.iter().map(|(key, value)| format!("{key}={value}")).collect()),
        ("admitted", vec![moment(node.admitted_unix_ms)]),
        ("expires", vec![row.expires_unix_ms.map_or_else(|| "never".into(), moment)]),
        ("quota", vec![format!("{} KiB", node.quota_kib)]),
        ("pool", vec![format!("{} KiB", node.pool_kib)]),
        ("prefixes", node.prefixes.clone()),
        ("admitted by", path_to_root),
        ("addresses", row.addrs.iter().map(ToString::to_string).collect()),
        ("links", node.neighbours.iter().map(show_ref).collect()),
        ("provides", provided.collect()),
        ("offers", node.offers.iter().map(|o| format!("{} MiB, {} cores to seeds", o.memory_mib, o.cores)).collect()),
        ("hosts", node.hosts.clone()),
    ];
    if node.draining {
        fields.push(("leaving", vec!["it hands over what it hosts, and takes nothing new".into()]));
    }
    if let Some(NatRow { ipv4, ipv6 }) = &row.nat {
        let families = [("IPv4", ipv4), ("IPv6", ipv6)].into_iter();
        let known = families.filter(|(_, kind)| *kind != NatKind::Unknown.label());
        fields.push(("nat", known.map(|(family, kind)| format!("{kind} ({family})")).collect()));
    }
    if let Some(path) = &row.path {
        let remote = path.remote.map_or_else(String::new, |remote| format!(" to {remote}"));
        let (bytes_in, bytes_out) = (show_bytes(path.bytes_in), show_bytes(path.bytes_out));
        fields.push(("path", vec![format!("{}{remote}", path.kind)]));
        fields.push(("rtt", vec![show_rtt(path.rtt_us)]));
        fields.push(("traffic", vec![format!("{bytes_in} in, {bytes_out} out, {} packets lost", path.lost)]));
    }
    if !node.refused.is_empty() {
        fields.push(("refused", node.refused.iter().map(|r| format!("{}: {}", r.entry, r.reason)).collect()));
    }
    fields
}

fn service_fields(service: &ServiceDetail) -> Fields {
    let row = &service.row;
    let providers = row.providers.iter().map(|provider| {
        let online = if provider.online { "online" } else { "offline" };
        let own = provider.allow.as_ref().map_or_else(String::new, |allow| format!(", there to {}", allow.who));
        format!("{} port {} {online}{own}", show_ref(&provider.node), provider.port)
    });
    let lost = service.claims_lost.iter().map(|claim| {
        format!("{} at {}: {}", show_ref(&claim.author), Moment(UnixMs(claim.claimed_unix_ms)), claim.reason)
    });
    vec![
        ("service", row.name.iter().cloned().collect()),
        ("protocol", vec![protocol(row.protocol).into()]),
        ("owner", vec![format!("{} {}", show_ref(&row.owner), row.owner.key)]),
        ("shared", vec![if row.shared { "yes" } else { "no" }.into()]),
        ("allowed", vec![row.allow.as_ref().map_or_else(|| EVERYONE.into(), |allow| allow.who.clone())]),
        ("claimed", vec![Moment(UnixMs(service.claimed_unix_ms)).to_string()]),
        ("providers", providers.collect()),
        ("local", row.local.iter().map(ToString::to_string).collect()),
        ("claims lost", lost.collect()),
    ]
}

fn table(out: &mut String, title: &str, header: &[&str], rows: Vec<Vec<String>>) {
    if !out.is_empty() {
        out.push('\n');
    }
    push_line(out, title);
    if rows.is_empty() {
        push_line(out, "none");
        return;
    }
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(header.to_vec()).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for line in table.lines() {
        push_line(out, line.trim());
    }
}

fn push_line(out: &mut String, line: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "{}", plain(line.trim_end()));
}

/// A node by its name, by the start of its key where it has none.
pub(super) fn show_ref(node: &NodeRef) -> String {
    node.name.clone().unwrap_or_else(|| short(&node.key).into())
}

fn short(key: &str) -> &str {
    key.get(..8).unwrap_or(key)
}

fn joined<T: ToString>(items: impl Iterator<Item = T>) -> String {
    let shown: Vec<String> = items.map(|item| item.to_string()).collect();
    if shown.is_empty() { NOTHING.into() } else { shown.join(",") }
}

fn or_nothing<T: ToString>(item: Option<T>) -> String {
    item.map_or_else(|| NOTHING.into(), |item| item.to_string())
}

/// A tier as a word.
#[must_use]
pub const fn tier(tier: TierName) -> &'static str {
    match tier {
        TierName::Leaf => "leaf",
        TierName::Publisher => "publisher",
        TierName::Admin => "admin",
    }
}

const fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Me => "me",
        NodeState::Online => "online",
        NodeState::Offline => "offline",
    }
}

/// A protocol as a word.
#[must_use]
pub const fn protocol(protocol: ProtocolName) -> &'static str {
    match protocol {
        ProtocolName::Tcp => "tcp",
        ProtocolName::Udp => "udp",
    }
}

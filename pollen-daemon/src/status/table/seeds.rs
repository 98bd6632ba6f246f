//! Seeds as people read them: their table, one in full, and what runs them here. Owns layout alone.

use super::{Fields, NOTHING, joined, or_nothing, push_line, short, show_ref, table};
use crate::status::NodeRef;
use crate::status::seeds::{Engine, ModuleDetail, SeedDetail, SeedRow, VersionRow};
use crate::status::when::{Moment, Span, show_bytes};
use pollen_common::time::UnixMs;

/// Hosts named in the narrow table; a wide one has all.
const HOSTS_SHOWN_MAX: usize = 4;

pub(super) fn seeds(out: &mut String, seeds: &[SeedRow], wide: bool) {
    let mut header = vec!["NAME", "HASH", "READY", "HOSTS", "MEMORY", "TIMEOUT", "FLAGS", "OWNER", "UPGRADE"];
    if wide {
        header.extend(["SIZE", "VERSION", "CONFLICTS"]);
    }
    let mut rows: Vec<_> = seeds.iter().map(|seed| cells(seed, wide)).collect();
    // Seldom anything: then a column less to read.
    let unable: Vec<_> = seeds.iter().map(|seed| unable(seed, wide)).collect();
    if unable.iter().any(Option::is_some) {
        header.push("CANNOT");
        rows.iter_mut().zip(unable).for_each(|(cells, unable)| cells.push(or_nothing(unable)));
    }
    table(out, "SEEDS", &header, rows);
}

/// Who cannot make a version of it ready, and why.
fn unable(seed: &SeedRow, wide: bool) -> Option<String> {
    let of = |version: &VersionRow, what: &str| {
        let said: Vec<_> =
            version.cannot.iter().map(|row| format!("{}{what}: {}", show_ref(&row.node), row.reason)).collect();
        said
    };
    let mut said = of(&seed.version, "");
    said.extend(seed.upgrading_to.iter().flat_map(|next| of(next, " (upgrade)")));
    let shown = if wide { said.len() } else { said.len().min(HOSTS_SHOWN_MAX) };
    let more = (said.len() > shown).then(|| format!("{} more", said.len() - shown));
    (shown > 0).then(|| said[..shown].iter().cloned().chain(more).collect::<Vec<_>>().join("; "))
}

fn cells(seed: &SeedRow, wide: bool) -> Vec<String> {
    let version = &seed.version;
    let upgrade = seed.upgrading_to.as_ref();
    let mut cells = vec![
        seed.name.clone(),
        if wide { version.module.clone() } else { short(&version.module).into() },
        format!("{}/{}", version.ready.len(), seed.wanted()),
        hosts(&version.ready, wide),
        show_bytes(version.memory_bytes),
        Span::from_ms(version.timeout_ms.into()).to_string(),
        joined(flags(version, seed.everywhere)),
        show_ref(&seed.owner),
        or_nothing(upgrade.map(|next| format!("to {}, {} ready", short(&next.module), next.ready.len()))),
    ];
    if wide {
        cells.extend([
            show_bytes(version.size_bytes),
            short(&version.version).into(),
            if seed.conflicts == 0 { NOTHING.into() } else { seed.conflicts.to_string() },
        ]);
    }
    cells
}

fn hosts(ready: &[NodeRef], wide: bool) -> String {
    let shown = if wide { ready.len() } else { ready.len().min(HOSTS_SHOWN_MAX) };
    let more = (ready.len() > shown).then(|| format!("{} more", ready.len() - shown));
    joined(ready[..shown].iter().map(show_ref).chain(more))
}

fn flags(version: &VersionRow, everywhere: bool) -> impl Iterator<Item = &'static str> {
    let VersionRow { idempotent, image, tail_calls, .. } = *version;
    let flags = [(everywhere, "everywhere"), (idempotent, "idempotent"), (image, "image"), (tail_calls, "tail calls")];
    flags.into_iter().filter_map(|(set, flag)| set.then_some(flag))
}

/// A clause for the line of chips; nothing where there are no seeds.
pub(super) fn summary(seeds: &[SeedRow]) -> Option<String> {
    let short = seeds.iter().filter(|seed| seed.version.ready.len() < seed.wanted()).count();
    let count = match seeds.len() {
        0 => return None,
        1 => "1 seed".to_owned(),
        many => format!("{many} seeds"),
    };
    Some(if short == 0 { count } else { format!("{count}, {short} below what was asked for") })
}

/// What runs seeds here, in a line; nothing as long as nothing does.
pub(super) fn engine(out: &mut String, engine: &Engine) {
    let Some(standing) = &engine.standing else { return };
    let why = match standing.why_not_better.as_str() {
        "" => String::new(),
        why => format!("; {why}"),
    };
    let (running, waiting) = (engine.running, engine.waiting);
    push_line(
        out,
        &format!(
            "ENGINE    {}, {} slots, {running} running, {waiting} waiting, memory reset by {}{why}",
            standing.allocator,
            standing.slots,
            standing.reset.replace('_', " ")
        ),
    );
}

pub(super) fn fields(seed: &SeedDetail) -> Fields {
    let row = &seed.row;
    let lost = seed.claims_lost.iter().map(|claim| {
        format!("{} at {}: {}", show_ref(&claim.author), Moment(UnixMs(claim.claimed_unix_ms)), claim.reason)
    });
    let wanted = match (row.everywhere, row.wanted()) {
        (true, _) => "on every node that may".to_owned(),
        (false, wanted) if row.floor < wanted => format!("on {wanted} nodes, of which {} may", row.floor),
        (false, 1) => "on 1 node".to_owned(),
        (false, wanted) => format!("on {wanted} nodes"),
    };
    let mut fields: Fields = vec![
        ("seed", vec![row.name.clone()]),
        ("owner", vec![format!("{} {}", show_ref(&row.owner), row.owner.key)]),
        ("claimed", vec![Moment(UnixMs(seed.claimed_unix_ms)).to_string()]),
        ("wanted", vec![wanted]),
    ];
    let module = |hash: &str| seed.modules.iter().find(|module| module.module == hash);
    fields.extend(version(&row.version, module(&row.version.module)));
    if let Some(next) = &row.upgrading_to {
        fields.push(("upgrading to", vec![format!("{} as soon as it is ready", short(&next.module))]));
        fields.extend(version(next, module(&next.module)));
    }
    if !seed.retiring.is_empty() {
        fields.push(("retiring", seed.retiring.iter().map(full).collect()));
    }
    fields.push(("claims lost", lost.collect()));
    fields
}

fn version(version: &VersionRow, module: Option<&ModuleDetail>) -> Fields {
    let timeout = Span::from_ms(version.timeout_ms.into());
    let mut fields: Fields = vec![
        ("hash", vec![version.module.clone()]),
        ("version", vec![version.version.clone()]),
        ("size", vec![show_bytes(version.size_bytes)]),
        ("limits", vec![format!("{} of memory, {timeout} a call", show_bytes(version.memory_bytes))]),
        ("flags", flags(version, false).map(ToOwned::to_owned).collect()),
        ("ready on", version.ready.iter().map(full).collect()),
    ];
    if !version.cannot.is_empty() {
        let said = version.cannot.iter().map(|row| format!("{}: {}", full(&row.node), row.reason));
        fields.push(("cannot", said.collect()));
    }
    if let Some(module) = module {
        // Known where the module itself is on this disk.
        fields.extend(module.sha256.iter().map(|sha256| ("sha256", vec![sha256.clone()])));
        fields.extend(module.functions.iter().map(|functions| ("functions", functions.clone())));
        fields.push(("kept by", module.holders.iter().map(full).collect()));
    }
    fields
}

fn full(node: &NodeRef) -> String {
    format!("{} {}", show_ref(node), node.key)
}

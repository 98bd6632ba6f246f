//! Publishing a seed, from its bytes to replicas that are ready. Owns the order: what can be wrong with a module shows
//! before anything is published, and the module is on disk before the claim that names it.
//! Invariant: an answer without a note means that the new version alone answers, as widely as it was asked for.

use std::collections::BTreeSet;
use std::time::Duration;

use pollen_common::identity::NodeKey;
use pollen_common::node::{Command, Refusal, RefusalKind};
use pollen_common::placement::{Presence, place_version};
use pollen_common::views::{Inability, Name, SeedTerms, SeedVersion, View};
use pollen_common::wire::streams::content::digest_of;
use tokio::sync::watch;
use tokio::time::timeout;

use super::running::Running;
use crate::content::PutError;
use crate::handle::{SeedProgress, SeedRequest, SeedStage, Seeded};
use crate::workload::replicas::StartError;
use pollen_module::{ModuleError, ModuleOptions};

/// How long nodes may take to make a new version ready before its publisher is told that it is still under way: modules
/// of 64 MiB travel and compile within it, on small machines too.
const SPREAD_MAX: Duration = Duration::from_secs(60);

/// How long to wait for somebody who may host at all: a node that has just started learns of the others within it.
const ELIGIBLE_MAX: Duration = Duration::from_secs(5);

/// Nodes that are named to a publisher with what keeps them from making a seed ready: `pln why` has all.
const UNABLE_SHOWN_MAX: usize = 4;

/// How far a version has spread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Spread {
    /// Nodes that should host it and are ready.
    ready: usize,
    /// Nodes that should host it.
    floor: usize,
    /// Nobody serves another version, and the claim names no other.
    alone: bool,
    /// Another version answers until this one is ready.
    upgrades: bool,
    /// Nodes that would host it by what they offer, and cannot make it ready, each with its reason.
    unable: Vec<(String, Inability)>,
    /// They are missed: fewer nodes host it than were asked to.
    missed: bool,
}

impl Spread {
    /// `None` while the view does not show this node's claim of the version.
    fn of(view: &View, name: &Name, version: &SeedVersion) -> Option<Self> {
        let seed = view.seeds.get(name).filter(|seed| seed.owner == view.me && seed.versions.contains(version))?;
        let placement = place_version(view, seed, version, Presence::Seen);
        let none = BTreeSet::<NodeKey>::new();
        let ready = seed.replicas.get(&version.id()).unwrap_or(&none);
        let others = seed.replicas.iter().any(|(id, nodes)| *id != version.id() && !nodes.is_empty());
        Some(Self {
            ready: placement.hosts.intersection(ready).count(),
            floor: placement.hosts.len(),
            alone: seed.versions.len() == 1 && !others,
            upgrades: seed.current() != version,
            unable: placement.unable().map(|(key, why)| (called(view, key), why)).collect(),
            missed: seed.everywhere || placement.hosts.len() < usize::from(seed.min_replicas),
        })
    }

    const fn is_done(&self) -> bool {
        self.floor > 0 && self.ready == self.floor && self.alone
    }

    /// All that may host it have tried, and nobody can.
    const fn is_stuck(&self) -> bool {
        self.floor == 0 && !self.unable.is_empty()
    }

    /// Nothing more will come of waiting.
    const fn is_over(&self) -> bool {
        self.is_done() || self.is_stuck()
    }

    /// What there is to say of those that cannot.
    fn note(&self) -> Option<String> {
        let shown = self.unable.iter().take(UNABLE_SHOWN_MAX).map(|(node, why)| format!("{node}: {why}"));
        let more = self.unable.len().saturating_sub(UNABLE_SHOWN_MAX);
        let more = (more > 0).then(|| format!("{more} more"));
        let unable = shown.chain(more).collect::<Vec<_>>().join("; ");
        match self {
            _ if self.unable.is_empty() => None,
            Self { floor: 0, upgrades: true, .. } => {
                Some(format!("nobody can make the new version ready, and the one before answers on: {unable}"))
            }
            Self { floor: 0, .. } => Some(format!("nobody can make it ready: {unable}")),
            Self { missed: true, .. } => Some(format!("these cannot make it ready and are passed over: {unable}")),
            _ => None,
        }
    }
}

/// A node as sentences name it.
fn called(view: &View, key: &NodeKey) -> String {
    let name = view.nodes.get(key).and_then(|node| node.name.as_ref());
    name.map_or_else(|| key.short(), ToString::to_string)
}

impl Running {
    /// Publishes a seed, or a new version of one, and waits until it is ready.
    pub(super) async fn start_seeding(
        &self,
        request: SeedRequest,
        progress: watch::Sender<SeedProgress>,
    ) -> Result<Seeded, Refusal> {
        let at = |stage| {
            progress.send_replace(SeedProgress::at(stage));
        };
        at(SeedStage::Checking);
        let version = checked(&request).await?;
        at(SeedStage::Storing);
        self.parts().content.put(request.module.clone()).await.map_err(not_stored)?;
        at(SeedStage::Compiling);
        self.rehearse(&version).await?;
        at(SeedStage::Publishing);
        let SeedRequest { name, min_replicas, everywhere, .. } = request;
        let terms = SeedTerms { version, min_replicas, everywhere };
        self.driver().command(Command::Seed { name: name.clone(), terms }).await?;
        let (spread, note) = self.spread(&name, &version, &progress).await;
        Ok(Seeded {
            name,
            version: version.id(),
            module: version.module,
            ready: spread.ready,
            floor: spread.floor,
            note,
        })
    }

    /// Makes it ready here, where this machine could: what is wrong with it is said before it is published.
    async fn rehearse(&self, version: &SeedVersion) -> Result<(), Refusal> {
        let needs_mib = version.memory_bytes.div_ceil(1 << 20);
        let fits = self.parts().machine.capacity().is_some_and(|has| needs_mib <= u64::from(has.memory_mib));
        if !fits {
            return Ok(());
        }
        match self.parts().replicas.rehearse(version).await {
            Ok(()) => Ok(()),
            // This machine is at fault, and others may be none the worse.
            Err(StartError::Engine(why)) => {
                tracing::warn!("a seed is published untried: guests cannot run here: {why}");
                Ok(())
            }
            Err(error) => Err(failed(format!("the module cannot be made ready: {error}"), None)),
        }
    }

    /// Waits until the version is ready wherever it should be and nothing else is served under its name.
    async fn spread(
        &self,
        name: &Name,
        version: &SeedVersion,
        progress: &watch::Sender<SeedProgress>,
    ) -> (Spread, Option<String>) {
        let mut last = Spread::default();
        let mut views = self.driver().views();
        let mut look = |view: &View| {
            let Some(spread) = Spread::of(view, name, version) else { return false };
            let (done, total) = (spread.ready as u64, spread.floor as u64);
            progress.send_replace(SeedProgress { stage: SeedStage::Spreading, done, total });
            last = spread;
            last.is_over()
        };
        let someone = views.wait_for(|view| look(view) || Spread::of(view, name, version).is_some_and(|s| s.floor > 0));
        if timeout(ELIGIBLE_MAX, someone).await.is_err() {
            let note = format!("nobody who is online may host it at present: `pln why {name}` says why of each node");
            return (last, Some(note));
        }
        let done = timeout(SPREAD_MAX, views.wait_for(|view| look(view))).await;
        let note = match done {
            Ok(_) => last.note(),
            Err(_) if last.ready < last.floor => {
                Some(format!("it is still being made ready: `pln why {name}` says what holds up each node"))
            }
            Err(_) => Some("another version still answers here and there: it is being let go".into()),
        };
        (last, note)
    }
}

/// What the request publishes, if its module can be a seed.
async fn checked(request: &SeedRequest) -> Result<SeedVersion, Refusal> {
    let (wasm, options) = (request.module.clone(), ModuleOptions { memory_bytes: request.memory_bytes });
    let checking = tokio::task::spawn_blocking(move || {
        let digest = digest_of(&wasm);
        pollen_module::merge(&wasm, &options).map(|_merged| digest)
    });
    let module = checking.await.map_err(|error| failed(format!("checking the module failed: {error}"), None))?;
    Ok(SeedVersion {
        module: module.map_err(refused)?,
        size_bytes: request.module.len() as u64,
        memory_bytes: request.memory_bytes,
        timeout_ms: request.timeout_ms,
        idempotent: request.idempotent,
        image: request.image,
        tail_calls: request.tail_calls,
    })
}

fn refused(error: ModuleError) -> Refusal {
    failed(error.to_string(), None)
}

fn not_stored(error: PutError) -> Refusal {
    let hint = matches!(error, PutError::Full(_)).then(|| "withdraw a seed with `pln unseed`".to_owned());
    failed(error.to_string(), hint)
}

fn failed(message: String, hint: Option<String>) -> Refusal {
    Refusal { kind: RefusalKind::Failed, message, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(floor: usize, unable: usize) -> Spread {
        let unable = (0..unable).map(|n| (format!("n{n}"), Inability::Disk)).collect();
        Spread { ready: floor, floor, alone: true, upgrades: false, unable, missed: false }
    }

    #[test]
    fn a_publisher_waits_for_those_that_can_and_no_longer() {
        assert!(spread(2, 0).is_over() && spread(1, 1).is_over());
        assert!(spread(0, 1).is_over(), "all that may have tried");
        assert!(!spread(0, 0).is_over(), "somebody may come");
        assert!(!Spread { ready: 1, ..spread(2, 1) }.is_over());
        assert!(!Spread { alone: false, ..spread(2, 0) }.is_over());
    }

    #[test]
    fn a_publisher_is_told_who_cannot_where_it_matters() {
        let note = |spread: Spread| spread.note().unwrap_or_default();
        assert_eq!(note(spread(2, 0)), "");
        assert_eq!(note(spread(2, 1)), "", "others are in its place");
        let missed = note(Spread { missed: true, ..spread(1, 1) });
        assert!(missed.contains("passed over: n0: its disk"), "{missed}");
        let nobody = note(spread(0, 6));
        assert!(nobody.starts_with("nobody can make it ready: n0: its disk") && nobody.ends_with("2 more"), "{nobody}");
        let upgrade = note(Spread { upgrades: true, alone: false, ..spread(0, 2) });
        assert!(upgrade.contains("the one before answers on: n0"), "{upgrade}");
    }
}

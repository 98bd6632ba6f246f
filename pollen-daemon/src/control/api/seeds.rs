//! Seeds in the control API: what publishing answers, line by line, and what a call's answer is as JSON.
//! Invariant: as of [`super`], fields are only ever added.

use pollen_common::views::View;
use serde::{Deserialize, Serialize};

use crate::handle::{SeedProgress, Seeded, Unseeded};
use crate::http::failure::Failure;
use crate::status::{NodeRef, node_ref};

/// One line of the answer of `POST /v1/seeds`: any number of steps, then how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeedLine {
    Progress(StageLine),
    Seeded(SeededLine),
    Error(Failure),
}

/// How far it has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageLine {
    /// `checking`, `storing`, `compiling`, `publishing`, `spreading`; readers skip those they do not know.
    pub stage: String,
    /// Of `total`, both 0 where nothing is counted.
    pub done: u64,
    pub total: u64,
}

impl From<SeedProgress> for StageLine {
    fn from(progress: SeedProgress) -> Self {
        Self { stage: progress.stage.label().into(), done: progress.done, total: progress.total }
    }
}

/// A published seed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeededLine {
    pub name: String,
    /// BLAKE3 of the module, in hexadecimal: what it can be called by.
    pub module: String,
    /// The module and its limits together.
    pub version: String,
    /// Nodes that are ready to serve it.
    pub ready: usize,
    /// How many there shall be, as far as so many can.
    pub floor: usize,
    /// What the publisher should know beside that.
    pub note: Option<String>,
}

/// A withdrawn seed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnseededAnswer {
    pub ok: bool,
    /// Nodes that are alive and have not said in time that they serve it no more; none once it is gone.
    pub still_served_by: Vec<NodeRef>,
    /// What the publisher should know beside that.
    pub note: Option<String>,
}

impl UnseededAnswer {
    /// The answer, in the names that `view` has for nodes.
    #[must_use]
    pub fn of(view: &View, unseeded: &Unseeded) -> Self {
        let nodes: Vec<_> = unseeded.still_served_by.iter().map(|key| node_ref(view, *key)).collect();
        let called: Vec<_> = nodes.iter().map(|node| node.name.as_deref().unwrap_or(&node.key)).collect();
        let unconfirmed = (!called.is_empty())
            .then(|| format!("not confirmed yet by {}: they serve it until they have heard of it", called.join(", ")));
        let running = match unseeded.calls_running {
            0 => None,
            1 => Some("1 call of it still runs here".to_owned()),
            many => Some(format!("{many} calls of it still run here")),
        };
        let notes: Vec<_> = unconfirmed.into_iter().chain(running).collect();
        let note = (!notes.is_empty()).then(|| notes.join("; "));
        Self { ok: true, still_served_by: nodes, note }
    }
}

impl From<Seeded> for SeededLine {
    fn from(seeded: Seeded) -> Self {
        Self {
            name: seeded.name.to_string(),
            module: seeded.module.to_string(),
            version: seeded.version.to_string(),
            ready: seeded.ready,
            floor: seeded.floor,
            note: seeded.note,
        }
    }
}

/// What `pln call --json` prints: an answer as one document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Called {
    /// The output where it is text.
    pub output: Option<String>,
    /// The output in base64 where it is not.
    pub output_base64: Option<String>,
    /// The key of the node that answered.
    pub served_by: String,
    pub version: String,
    pub retries: u32,
    /// How long it took, as seen from the command line.
    pub ms: f64,
}

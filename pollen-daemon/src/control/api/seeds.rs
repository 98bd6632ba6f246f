//! Seeds in the control API: what publishing answers, line by line, and what a call's answer is as JSON.
//! Invariant: as of [`super`], fields are only ever added.

use serde::{Deserialize, Serialize};

use crate::control::failure::Failure;
use crate::control::handle::{SeedProgress, Seeded};

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

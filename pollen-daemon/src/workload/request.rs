//! The words in which a call is asked for and answered. Shapes alone; must not know how a module is run.

use std::time::Duration;

use bytes::Bytes;
use pollen_common::identity::{Digest, NodeKey};
use pollen_common::node::RefusalKind;
use pollen_common::views::{Name, VersionId};
use pollen_common::wire::streams::call::Step;

/// Which seed a call is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SeedRef {
    /// The present version of a name.
    Name(Name),
    /// Any version of this very module.
    Module(Digest),
}

impl SeedRef {
    /// What a call by it is on the path of further calls.
    #[must_use]
    pub fn step(&self) -> Step {
        match self {
            Self::Name(name) => Step::Seed(name.clone()),
            Self::Module(module) => Step::Module(*module),
        }
    }
}

/// A call of an operator's: `POST /v1/calls/SEED/FUNCTION`.
#[derive(Clone, Debug)]
pub struct CallRequest {
    pub seed: SeedRef,
    pub function: String,
    pub input: Bytes,
    /// How long its asker waits, over all tries.
    pub timeout: Duration,
    /// How often it may be tried again elsewhere.
    pub retries: u32,
    /// What of that time, and of the time that a call waits for a name, has gone on waiting for the name.
    pub waited: Duration,
}

/// What a call gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallAnswer {
    pub output: Bytes,
    pub served_by: NodeKey,
    pub version: VersionId,
    /// How often it was tried elsewhere before.
    pub retries: u32,
}

/// Why a call gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CallFailure {
    pub kind: RefusalKind,
    pub message: String,
    pub hint: Option<String>,
    /// The guest began, or may have: doing it again may do it twice.
    pub may_have_run: bool,
    /// The node that said so, where one did.
    pub served_by: Option<NodeKey>,
}

//! What the command line needs of the rest where no daemon runs yet: founding, joining, running. A trait, so that the
//! binary wires the real thing and tests need no network. Must not know arguments or output.
//! Invariant: failures come with the code that the process ends with.

use std::collections::BTreeMap;
use std::path::Path;

use pollen_common::identity::{ClusterId, NodeKey};

use crate::config::UpOptions;
use crate::http::failure::{Code, Failure};
use crate::store::OpenError;

/// Commands that work on a state directory whose daemon is down.
pub trait Offline {
    /// Makes a new cluster, of one node with these properties. Idempotent on a root.
    ///
    /// # Errors
    /// When the directory is in use, foreign, or a member of another's cluster.
    fn init(&self, dir: &Path, props: BTreeMap<String, String>) -> Result<Founded, Failure>;

    /// Redeems an invite token (base64url) and keeps the membership.
    ///
    /// # Errors
    /// Which of the token's parts does not hold, or `Unreachable`; the directory is then as it was.
    fn join(&self, dir: &Path, token: &str) -> Result<Joined, Failure>;

    /// Keeps options for the next start, without starting.
    ///
    /// # Errors
    /// When the directory is in use or foreign, or an option cannot be.
    fn remember(&self, dir: &Path, options: UpOptions) -> Result<(), Failure>;

    /// Runs a node until it is told to end.
    ///
    /// # Errors
    /// When it could not start, or ended otherwise than told.
    fn run(&self, dir: &Path, options: UpOptions) -> Result<(), Failure>;
}

/// A cluster rooted here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Founded {
    pub root: NodeKey,
    pub cluster: ClusterId,
    pub node: NodeKey,
}

/// A membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined {
    pub cluster: ClusterId,
    pub node: NodeKey,
}

/// The exit code for a state directory that was not opened.
#[must_use]
pub fn code_of_open(error: &OpenError) -> Code {
    match error {
        OpenError::Missing { .. } => Code::NotFound,
        OpenError::Unsafe { .. } => Code::Denied,
        OpenError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => Code::Denied,
        _ => Code::Failed,
    }
}

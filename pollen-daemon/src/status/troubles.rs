//! What the parts of a node say of themselves that no view shows. Owns the shape that health is judged by, together with
//! a view; must not know how the parts found out. Invariant: empty where nothing is wrong.

use std::sync::Arc;

use pollen_common::node::Signs;

use crate::services::Export;
use crate::store::health::DiskHealth;

/// One look at the parts of a node.
#[derive(Clone, Debug, Default)]
pub struct Troubles {
    pub disk: DiskHealth,
    /// What was noticed of neighbours' machines.
    pub signs: Arc<Signs>,
    /// Why `/metrics` is not served where the settings say.
    pub metrics_wait: Option<String>,
    /// Served, and nobody listens on the port.
    pub unanswered: Vec<Export>,
}

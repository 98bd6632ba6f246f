//! Why things are as they are: the reasons that the deciding functions kept, as sentences.

use alloc::string::String;
use alloc::vec::Vec;

use super::Node;
use crate::time::Now;
use crate::views::Target;

impl Node {
    /// The reasons for a peer's or a name's standing, liveness and providers, as this node sees them.
    #[must_use]
    pub fn why(&self, target: &Target, now: Now) -> Vec<String> {
        self.view.why(target, &self.roll, &self.standing, &self.document, now.unix)
    }
}

//! Sizes and durations as people type them: the syntax that the daemon reads too.

pub(super) use crate::control::duration::duration;
pub(super) use crate::control::size::size_kib;

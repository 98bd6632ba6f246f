//! The kernel that is merged into guests, as `build.rs` assembled it from `kernel.wat`. Knows its parts by the names of
//! their exports; what they do is in the text.

use std::sync::LazyLock;

use wasmparser::ExternalKind;

use super::RESERVED;
use super::sections::Sections;

static BYTES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernel.wasm"));

/// The kernel's memory, in the merged module as in the kernel's text.
pub(super) const KERNEL_MEMORY: u32 = 1;

/// Pages that the guest may have: immutable, its value set by the merge.
pub(super) const LIMIT: &str = "merge:limit";
/// Pages that the guest reckons to have: its first value set by the merge.
pub(super) const PAGES: &str = "merge:pages";
/// What stands for `memory.grow` in the guest.
pub(super) const GROW: &str = "merge:grow";
pub(super) const INPUT_AT: &str = "merge:input-at";
pub(super) const INPUT_LENGTH: &str = "merge:input-length";
pub(super) const INPUT_FENCE: &str = "merge:input-fence";

pub(super) struct Kernel {
    pub sections: Sections<'static>,
}

impl Kernel {
    pub(super) fn embedded() -> &'static Self {
        static KERNEL: LazyLock<Kernel> =
            LazyLock::new(|| Kernel { sections: Sections::of(BYTES).expect("our own kernel has sections") });
        &KERNEL
    }

    /// The index of what it exports under this name, by its own count.
    pub(super) fn index(&self, name: &str) -> u32 {
        let export = self.sections.exports.iter().find(|export| export.name == name);
        export.unwrap_or_else(|| panic!("kernel.wat exports {name}")).index
    }

    /// What stays exported for the host.
    pub(super) fn for_host(&self) -> impl Iterator<Item = (&'static str, ExternalKind, u32)> + '_ {
        let exports = self.sections.exports.iter().filter(|export| export.name.starts_with(RESERVED));
        exports.map(|export| (export.name, export.kind, export.index))
    }

    pub(super) fn functions(&self) -> usize {
        self.sections.function_types.len()
    }
}

//! The rungs that carry frames below the sockets: today the embedded eBPF object, loaded but attached to nothing.
//! Owns BPF system calls; decides nothing about frames (see `pollen_common::verdict`).
//! Invariant: a machine that cannot use a rung gets a typed reason and runs on the next one.

use aya::Ebpf;
use aya::maps::{MapError, PerCpuArray};
use aya::programs::{ProgramError, Xdp};
use pollen_common::abi;
use pollen_common::verdict::Reason;

#[cfg(test)]
mod tests;

/// The compiled XDP object, if this build embeds one.
#[cfg(ebpf_object)]
const OBJECT: Option<&[u8]> = Some(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pollen-ebpf.o")));
#[cfg(not(ebpf_object))]
const OBJECT: Option<&[u8]> = None;

/// How the daemon moves packets, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// Plain sockets.
    Sockets,
}

impl Rung {
    /// As status and the metric label `rung` show it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Sockets => "sockets",
        }
    }
}

/// The rung in use, and why it is not a higher one.
#[derive(Clone, Debug)]
pub struct Standing {
    pub rung: Rung,
    /// One clause for people.
    pub why_not_higher: String,
}

/// Where this node stands on the ladder. Touches nothing: a program is loaded only when there is a use for it.
#[must_use]
pub fn standing() -> Standing {
    let why_not_higher = match OBJECT {
        None => Unavailable::NotBuilt.to_string(),
        Some(_) => "no circuits, so no frames to forward in the kernel".to_owned(),
    };
    Standing { rung: Rung::Sockets, why_not_higher }
}

/// Why XDP cannot be used here. Nothing is left behind in the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// This build embeds no object.
    #[error("built without the eBPF object (cargo xtask ebpf makes it)")]
    NotBuilt,
    /// The process lacks the capability, or the kernel has BPF locked down.
    #[error("BPF is not permitted here (needs CAP_BPF and CAP_NET_ADMIN)")]
    NotPermitted,
    /// The kernel refused the object: too old, or the verifier objects.
    #[error("the kernel refused the eBPF object: {0}")]
    Refused(String),
    /// The object lacks a program or map of the names in [`abi`]: it was built from another version.
    #[error("the eBPF object has no {0}: built from another version")]
    Mismatch(&'static str),
}

/// The XDP program, verified by the kernel and attached to nothing. Dropping it unloads it.
pub struct XdpProgram {
    ebpf: Ebpf,
}

impl XdpProgram {
    /// Loads the embedded object.
    ///
    /// # Errors
    /// If it is not there, not permitted or refused.
    pub fn load() -> Result<Self, Unavailable> {
        let object = OBJECT.ok_or(Unavailable::NotBuilt)?;
        let mut ebpf = Ebpf::load(object).map_err(|error| refused(&error))?;
        program(&mut ebpf)?.load().map_err(|error| refused(&error))?;
        Ok(Self { ebpf })
    }

    /// Frames seen, by reason, all CPUs together; in the order of [`Reason::ALL`].
    ///
    /// # Errors
    /// If the map is not the one this version lays out, or the kernel does not let it be read.
    pub fn frames(&self) -> Result<[(Reason, u64); Reason::ALL.len()], Unavailable> {
        let map = self.ebpf.map(abi::COUNTERS).ok_or(Unavailable::Mismatch(abi::COUNTERS))?;
        let counters: PerCpuArray<_, u64> = map.try_into().map_err(|error: MapError| refused(&error))?;
        let mut frames = Reason::ALL.map(|reason| (reason, 0));
        for (reason, count) in &mut frames {
            let per_cpu = counters.get(&reason.slot(), 0).map_err(|error| refused(&error))?;
            *count = per_cpu.iter().sum();
        }
        Ok(frames)
    }

    /// The program itself, to attach or to test.
    ///
    /// # Errors
    /// If the object holds no XDP program of the expected name.
    pub fn program(&mut self) -> Result<&mut Xdp, Unavailable> {
        program(&mut self.ebpf)
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp, Unavailable> {
    let program = ebpf.program_mut(abi::PROGRAM).ok_or(Unavailable::Mismatch(abi::PROGRAM))?;
    program.try_into().map_err(|error: ProgramError| refused(&error))
}

/// Permission is a fact about the machine, everything else one about the object: the cause is found by its errno.
fn refused(error: &(dyn std::error::Error + 'static)) -> Unavailable {
    let mut chain = Vec::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| matches!(io.raw_os_error(), Some(libc::EPERM | libc::EACCES))) && !is_verifier(&chain) {
            return Unavailable::NotPermitted;
        }
        chain.push(error.to_string());
        cause = error.source();
    }
    Unavailable::Refused(chain.join(": "))
}

/// The verifier too answers `EACCES`; it comes with its log.
fn is_verifier(chain: &[String]) -> bool {
    chain.iter().any(|message| message.contains("Verifier output: ") && message.contains("processed "))
}

//! The XDP program in the kernel: its maps, and the interfaces it is attached to. Owns BPF system calls; decides nothing.
//! Invariant: it is held by file descriptors alone, so that nothing of it outlives this process, however that ends.

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray};
use aya::programs::links::FdLink;
use aya::programs::{ProgramError, Xdp, XdpMode};
use pollen_common::abi::{self, Count, Endpoint, Entry};
use pollen_common::verdict::Reason;

use super::Unavailable;

/// The compiled XDP program, which the tree holds beside its sources: whoever builds the daemon needs no compiler for BPF.
const OBJECT: &[u8] = aya::include_bytes_aligned!("../../../pollen-ebpf/object/pollen-ebpf.o");

/// What a map holds.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Value<T>(T);

// SAFETY: these are words without padding, and any bits are a value of theirs.
unsafe impl aya::Pod for Value<Count> {}
// SAFETY: as above.
unsafe impl aya::Pod for Value<Endpoint> {}
// SAFETY: as above.
unsafe impl aya::Pod for Value<Entry> {}

/// The program, verified by the kernel. Dropping it detaches and unloads it.
pub struct XdpProgram {
    ebpf: Ebpf,
    labels: Array<MapData, Value<Entry>>,
    passed: Array<MapData, Value<Count>>,
    counters: PerCpuArray<MapData, Value<Count>>,
    here: HashMap<MapData, Value<Endpoint>, u8>,
}

/// The program on an interface. Dropping it takes it off.
pub struct Attached(#[expect(dead_code, reason = "held for its end")] FdLink);

impl XdpProgram {
    /// Loads the embedded object, attached to nothing.
    ///
    /// # Errors
    /// If it is not permitted or refused.
    pub fn load() -> Result<Self, Unavailable> {
        let mut ebpf = Ebpf::load(OBJECT).map_err(|error| refused(&error))?;
        program(&mut ebpf)?.load().map_err(|error| refused(&error))?;
        let mut map = |name| ebpf.take_map(name).ok_or(Unavailable::Mismatch(name));
        let wrong = |error: MapError| refused(&error);
        Ok(Self {
            labels: map(abi::LABELS)?.try_into().map_err(wrong)?,
            passed: map(abi::PASSED)?.try_into().map_err(wrong)?,
            counters: map(abi::COUNTERS)?.try_into().map_err(wrong)?,
            here: map(abi::HERE)?.try_into().map_err(wrong)?,
            ebpf,
        })
    }

    /// Frames seen, by reason, all CPUs together; in the order of [`Reason::ALL`].
    ///
    /// # Errors
    /// If the kernel does not let them be read.
    pub fn frames(&self) -> Result<[(Reason, Count); Reason::ALL.len()], Unavailable> {
        let mut frames = Reason::ALL.map(|reason| (reason, Count::default()));
        for (reason, count) in &mut frames {
            let per_cpu = self.counters.get(&reason.slot(), 0).map_err(|error| refused(&error))?;
            for Value(here) in per_cpu.iter() {
                count.frames += here.frames;
                count.bytes += here.bytes;
            }
        }
        Ok(frames)
    }

    /// What was sent on under the labels of a slot, since the program was loaded.
    pub fn passed(&self, slot: u32) -> Count {
        self.passed.get(&slot, 0).map_or_else(|_| Count::default(), |count| count.0)
    }

    /// What a label's slot says from now on.
    ///
    /// # Errors
    /// If there is no such slot.
    pub fn set(&mut self, slot: u32, entry: Entry) -> Result<(), Unavailable> {
        self.labels.set(slot, Value(entry), 0).map_err(|error| refused(&error))
    }

    /// This node takes datagrams there, or does no more. Where there are too many the program drops nothing for the rest.
    pub fn set_here(&mut self, at: Endpoint, here: bool) {
        let changed = if here { self.here.insert(Value(at), 0, 0) } else { self.here.remove(&Value(at)) };
        if let Err(error) = changed {
            tracing::debug!(%error, "an address is not told to the kernel program");
        }
    }

    /// Puts it on an interface.
    ///
    /// # Errors
    /// If another program is there, or the driver cannot.
    pub fn attach(&mut self, interface: u32, mode: XdpMode) -> Result<Attached, Unavailable> {
        let program = program(&mut self.ebpf)?;
        let id = program.attach_to_if_index(interface, mode).map_err(|error| refused(&error))?;
        let link = program.take_link(id).map_err(|error| refused(&error))?;
        // A kernel before 5.9 would keep it on the interface when this process is killed.
        FdLink::try_from(link).map(Attached).map_err(|error| refused(&error))
    }

    /// The program itself, to test.
    ///
    /// # Errors
    /// If the object holds no XDP program of the expected name.
    #[cfg(test)]
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

//! The XDP program: hands each frame to `pollen_common::verdict`, counts the reason, carries the action out.
//! Must decide nothing itself: what it answers is what every other rung of the datapath answers.
//! Invariant: each frame adds one to exactly one slot of `COUNTERS`.
#![no_std]
#![no_main]

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::XdpContext;
use pollen_common::packet::Bytes;
use pollen_common::verdict::{self, Action, Reason};

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Reason::ALL.len() as u32, 0);

#[xdp]
pub fn pollen(context: XdpContext) -> u32 {
    let verdict = verdict::decide(&Frame { start: context.data(), end: context.data_end() });
    count(verdict.reason);
    match verdict.action {
        Action::Pass => xdp_action::XDP_PASS,
    }
}

#[inline(always)]
fn count(reason: Reason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason.slot()) {
        // SAFETY: the slot belongs to this CPU, and an XDP program is not preempted by another on the same CPU.
        unsafe { *counter += 1 };
    }
}

/// The packet's bytes between the two pointers that the kernel gives.
struct Frame {
    start: usize,
    end: usize,
}

impl Bytes for Frame {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let at = self.start + offset;
        if at + N > self.end {
            return None;
        }
        // SAFETY: the verifier refuses this program unless the comparison above covers the read; arrays of bytes
        // need no alignment.
        Some(unsafe { *(at as *const [u8; N]) })
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // A program that could reach this would not pass the verifier: an endless loop is refused at load.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

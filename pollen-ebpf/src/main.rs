//! The XDP program: hands each frame to `pollen_common::verdict`, counts the reason, carries the action out.
//! Must decide nothing itself: what it answers is what every other rung of the datapath answers.
//! Invariant: each frame adds one to exactly one slot of `COUNTERS`.
#![no_std]
#![no_main]

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::programs::XdpContext;
use pollen_common::abi::{Count, Endpoint, Entry, HERE_MAX, LABELS_MAX};
use pollen_common::packet::{self, Bytes, BytesMut, Word};
use pollen_common::verdict::{self, Action, Forward, Reason, Table};

#[map]
static COUNTERS: PerCpuArray<Count> = PerCpuArray::with_max_entries(Reason::ALL.len() as u32, 0);

#[map]
static LABELS: Array<Entry> = Array::with_max_entries(LABELS_MAX, 0);

#[map]
static PASSED: Array<Count> = Array::with_max_entries(LABELS_MAX, 0);

#[map]
static HERE: HashMap<Endpoint, u8> = HashMap::with_max_entries(HERE_MAX, 0);

// Frames in several buffers are let in, so that interfaces keep their large ones: those pass.
#[xdp(frags)]
pub fn pollen(context: XdpContext) -> u32 {
    let mut frame = Frame { start: context.data(), end: context.data_end() };
    let verdict = verdict::decide(&frame, &Circuits);
    let len = (frame.end - frame.start) as u64;
    count(verdict.reason, len);
    match verdict.action {
        Action::Pass => xdp_action::XDP_PASS,
        Action::Drop => xdp_action::XDP_DROP,
        Action::Forward(forward) => send_on(&context, &mut frame, &forward),
    }
}

#[inline(always)]
fn send_on(context: &XdpContext, frame: &mut Frame, forward: &Forward<'_>) -> u32 {
    let Forward { slot, datagram, entry, to, out } = forward;
    let next = &entry.next;
    if packet::readdress(frame, datagram, to, next, *out).is_none() {
        // It was parsed, so it is long enough; the verifier does not know that.
        return xdp_action::XDP_ABORTED;
    }
    if let Some(passed) = PASSED.get_ptr_mut(*slot) {
        // SAFETY: the map lives as long as the program. One circuit's frames come by one queue, so by one CPU; were they to
        // come by two at once, one may go uncounted here.
        unsafe {
            (*passed).frames += 1;
            (*passed).bytes += u64::from(datagram.payload_len);
        }
    }
    if next.interface as usize == context.ingress_ifindex() {
        return xdp_action::XDP_TX;
    }
    // SAFETY: a helper that takes no pointers.
    unsafe { bpf_redirect(next.interface, 0) as u32 }
}

#[inline(always)]
fn count(reason: Reason, len: u64) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason.slot()) {
        // SAFETY: the slot belongs to this CPU, and an XDP program is not preempted by another on the same CPU.
        unsafe {
            (*counter).frames += 1;
            (*counter).bytes += len;
        }
    }
}

/// The maps.
struct Circuits;

impl Table for Circuits {
    #[inline(always)]
    fn entry(&self, slot: u32) -> Option<&Entry> {
        LABELS.get(slot)
    }

    #[inline(always)]
    fn is_here(&self, at: &Endpoint) -> bool {
        HERE.get_ptr(at).is_some()
    }
}

/// The packet's bytes between the two pointers that the kernel gives.
struct Frame {
    start: usize,
    end: usize,
}

impl Bytes for Frame {
    #[inline(always)]
    fn load<W: Word>(&self, offset: usize) -> Option<W> {
        let at = self.start + offset;
        if at + size_of::<W>() > self.end {
            return None;
        }
        // SAFETY: the verifier refuses this program unless the comparison above covers the read.
        Some(unsafe { (at as *const W).read_unaligned() })
    }
}

impl BytesMut for Frame {
    #[inline(always)]
    fn store<W: Word>(&mut self, offset: usize, word: W) -> Option<()> {
        let at = self.start + offset;
        if at + size_of::<W>() > self.end {
            return None;
        }
        // SAFETY: as for reads.
        unsafe { (at as *mut W).write_unaligned(word) };
        Some(())
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

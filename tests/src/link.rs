//! A bad link: Ethernet frames taken from one end and put out at the other, late, twice, out of order, or not at all.
//! Owns what becomes of each frame; knows nothing of what is in them but where ECN is marked.
//! Invariant: what it loses it was told to lose; it ends with its owner.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::netns::Namespace;
use crate::traffic::Xorshift;

/// The longest frame that Ethernet carries here: nothing larger leaves a device without offloads.
const FRAME_BYTES_MAX: usize = 65_536;
/// What the kernel keeps for the link while its thread is not scheduled.
const SOCKET_BUFFER_BYTES: libc::c_int = 32 << 20;
/// Frames taken in one turn, so that those that are due do not wait behind those that come.
const TURN_FRAMES_MAX: usize = 64;
/// How often the thread looks whether it should end.
const IDLE_WAIT: Duration = Duration::from_millis(50);

/// What a link does to frames, each way. The default does nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quality {
    pub delay: Duration,
    /// Up to so much more, by chance: frames overtake each other.
    pub jitter: Duration,
    /// Of a thousand frames.
    pub lost: u32,
    pub doubled: u32,
    /// The line's rate; unbounded if 0.
    pub kbit: u32,
    /// What may wait for a slow line; unbounded if 0.
    pub buffer_bytes: usize,
    /// IP packets longer than that vanish; none if 0.
    pub packet_bytes_max: usize,
    /// Packets that ECN may mark vanish.
    pub without_ecn: bool,
}

/// A link between two devices of one namespace.
pub struct BadLink {
    quality: Arc<Mutex<Quality>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl BadLink {
    /// Joins `ends`, two devices of `namespace` that nothing else uses.
    ///
    /// # Errors
    /// If the kernel refuses packet sockets there.
    pub fn join(namespace: &Namespace, ends: [&str; 2], quality: Quality) -> Result<Self> {
        let sockets = namespace.enter(|| -> Result<[File; 2]> { Ok([open(ends[0])?, open(ends[1])?]) })??;
        let (quality, over) = (Arc::new(Mutex::new(quality)), Arc::<AtomicBool>::default());
        let (of, ends) = (quality.clone(), over.clone());
        let thread = std::thread::spawn(move || {
            let mut line = Line::new(sockets);
            while !ends.load(Ordering::Relaxed) {
                line.turn(*of.lock().unwrap_or_else(PoisonError::into_inner));
            }
        });
        Ok(Self { quality, over, thread: Some(thread) })
    }

    /// From now on the link is like that.
    pub fn set(&self, quality: Quality) {
        *self.quality.lock().unwrap_or_else(PoisonError::into_inner) = quality;
    }
}

impl Drop for BadLink {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by its hook.
            let _ended = thread.join();
        }
    }
}

/// A frame on its way: when it is due, its place among all, to which end.
type Due = Reverse<(Instant, u64, usize, Vec<u8>)>;

struct Line {
    sockets: [File; 2],
    due: BinaryHeap<Due>,
    count: u64,
    chance: Xorshift,
    /// When the line has sent all that waits at each end, and how much that is.
    free: [Instant; 2],
    held: [usize; 2],
    buffer: Vec<u8>,
}

impl Line {
    fn new(sockets: [File; 2]) -> Self {
        let now = Instant::now();
        Self {
            sockets,
            due: BinaryHeap::new(),
            count: 0,
            chance: Xorshift::new(1),
            free: [now; 2],
            held: [0; 2],
            buffer: vec![0; FRAME_BYTES_MAX],
        }
    }

    /// Waits for a frame, or until one is due; takes what comes and passes on what is due.
    fn turn(&mut self, quality: Quality) {
        let wait = self.due.peek().map_or(IDLE_WAIT, |Reverse((at, ..))| at.saturating_duration_since(Instant::now()));
        let mut polled =
            [0, 1].map(|end| libc::pollfd { fd: self.sockets[end].as_raw_fd(), events: libc::POLLIN, revents: 0 });
        let wait = wait.min(IDLE_WAIT);
        let wait = libc::timespec { tv_sec: 0, tv_nsec: libc::c_long::from(wait.subsec_nanos()) };
        // SAFETY: both pointers are to values that live through the call, and the count is theirs.
        unsafe { libc::ppoll(polled.as_mut_ptr(), 2, &raw const wait, std::ptr::null()) };
        let ready = polled.map(|polled| polled.revents != 0);
        for end in [0, 1].into_iter().filter(|end| ready[*end]) {
            for _ in 0..TURN_FRAMES_MAX {
                let Ok(len) = self.sockets[end].read(&mut self.buffer) else { break };
                self.take(end, len, quality);
            }
        }
        while self.due.peek().is_some_and(|Reverse((at, ..))| *at <= Instant::now()) {
            if let Some(Reverse((_, _, to, frame))) = self.due.pop() {
                self.held[1 - to] = self.held[1 - to].saturating_sub(frame.len());
                // A host that has pulled its cable takes nothing: lost, as on any wire.
                let _lost = self.sockets[to].write(&frame);
            }
        }
    }

    fn take(&mut self, from: usize, len: usize, quality: Quality) {
        let frame = self.buffer[..len].to_vec();
        let too_long = quality.packet_bytes_max > 0 && len.saturating_sub(14) > quality.packet_bytes_max;
        let unwanted = too_long || (quality.without_ecn && marks_ecn(&frame));
        if unwanted || self.chance.below(1000) < u64::from(quality.lost) {
            return;
        }
        let now = Instant::now();
        let mut at = now;
        if quality.kbit > 0 {
            if quality.buffer_bytes > 0 && self.held[from] + len > quality.buffer_bytes {
                return;
            }
            let takes = Duration::from_secs_f64(len as f64 * 8.0 / (f64::from(quality.kbit) * 1000.0));
            self.free[from] = self.free[from].max(now) + takes;
            at = self.free[from];
        }
        self.held[from] += len;
        let copies = if self.chance.below(1000) < u64::from(quality.doubled) { 2 } else { 1 };
        for _ in 0..copies {
            let jitter_us = self.chance.below(u64::try_from(quality.jitter.as_micros()).unwrap_or(u64::MAX) + 1);
            self.count += 1;
            let at = at + quality.delay + Duration::from_micros(jitter_us);
            self.due.push(Reverse((at, self.count, 1 - from, frame.clone())));
        }
    }
}

/// Whether ECN may mark the packet: one of the two bits is set.
fn marks_ecn(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(15).is_some_and(|tos| tos & 3 != 0),
        Some([0x86, 0xdd]) => frame.get(15).is_some_and(|class| (class >> 4) & 3 != 0),
        _ => false,
    }
}

/// All frames that come in at `device`, and a way out of it.
fn open(device: &str) -> Result<File> {
    let all = u16::try_from(libc::ETH_P_ALL)?.to_be();
    // SAFETY: plain system calls; the descriptor is checked before it is owned.
    let socket = unsafe {
        let raw = libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
            libc::c_int::from(all),
        );
        anyhow::ensure!(raw >= 0, "a packet socket: {}", io::Error::last_os_error());
        File::from_raw_fd(raw)
    };
    let name = std::ffi::CString::new(device)?;
    // SAFETY: the name ends with a zero and lives through the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    anyhow::ensure!(index > 0, "no device {device}");
    // SAFETY: all-zero bytes are a valid address of this kind.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET)?;
    address.sll_protocol = all;
    address.sll_ifindex = libc::c_int::try_from(index)?;
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        set(&socket, libc::SOL_SOCKET, option, SOCKET_BUFFER_BYTES)?;
    }
    // What the link itself sends out there is not what comes in.
    set(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
    let len = libc::socklen_t::try_from(size_of_val(&address))?;
    // SAFETY: the address is of the length that is given.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    anyhow::ensure!(bound == 0, "binding to {device}: {}", io::Error::last_os_error());
    Ok(socket)
}

fn set(socket: &File, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> Result<()> {
    let len = libc::socklen_t::try_from(size_of_val(&value))?;
    // SAFETY: the value is an integer of the length that is given.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), len) };
    anyhow::ensure!(set == 0, "option {option} of a packet socket: {}", io::Error::last_os_error());
    Ok(())
}

/// Makes `device` of `namespace` send what a wire would carry: whole checksums, no super-frames.
///
/// # Errors
/// If the kernel refuses.
pub fn without_offloads(namespace: &Namespace, device: &str) -> Result<()> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    /// Checksums, TCP's segments, any protocol's.
    const SETTINGS: [u32; 3] = [0x17, 0x1f, 0x24];
    namespace.enter(|| -> Result<()> {
        // SAFETY: a plain system call; the descriptor is checked before it is owned.
        let socket = unsafe {
            let raw = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
            anyhow::ensure!(raw >= 0, "a socket: {}", io::Error::last_os_error());
            File::from_raw_fd(raw)
        };
        for setting in SETTINGS {
            let mut value = [setting, 0_u32];
            // SAFETY: all-zero bytes are a valid request.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
                *to = libc::c_char::try_from(from).context("a device's name is ASCII")?;
            }
            request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
            // SAFETY: the request points to a value of the size that these settings have, and both outlive the call.
            let done = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
            anyhow::ensure!(done == 0, "setting {setting:#x} of {device}: {}", io::Error::last_os_error());
        }
        Ok(())
    })??;
    namespace.ip(&["link", "set", "dev", device, "gso_max_segs", "1"])
}

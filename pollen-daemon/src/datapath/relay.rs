//! What the kernel's program is told of circuits: the labels, and where their frames go. Owns the program while there is a
//! use for it; asks the kernel for ways, and for nothing else.
//! Invariant: an entry of the kernel's table is of a label that means just that now, or says that the sockets know.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use aya::programs::XdpMode;
use pollen_common::abi::{Count, Endpoint, Entry};
use pollen_common::circuit::Label;
use pollen_common::verdict::Reason;

use super::program::{Attached, XdpProgram};
use super::ways::{Interface, Tables, Way};
use super::{Choice, DatapathNumbers, Meaning, Rung, Standing, Unavailable};

/// Frames a second through the sockets from which on the kernel's program is worth its attachment, of which some drivers
/// make a pause of their link.
const BUSY_FRAMES: u64 = 5_000;
/// For so many looks in a row.
const BUSY_LOOKS: u32 = 5;
/// How long the program stays when there is no circuit any more: they come and go.
const UNUSED_MAX: Duration = Duration::from_secs(30);
/// How long a refusal stands before it is tried again.
const REFUSED_FOR: Duration = Duration::from_secs(60);

/// The kernel's side.
struct Kernel {
    program: XdpProgram,
    tables: Tables,
    rung: Rung,
    attached: BTreeMap<u32, (String, Attached)>,
    /// What stands in its table, by slot.
    told: BTreeMap<u32, Entry>,
    here: BTreeSet<Endpoint>,
    /// As of the last look.
    ways: HashMap<SocketAddr, Option<Way>>,
    unused_since: Option<Instant>,
}

/// The whole.
pub(super) struct Relay {
    port: u16,
    choice: Choice,
    wanted: BTreeMap<Label, Meaning>,
    kernel: Option<Kernel>,
    standing: Standing,
    /// Of programs that are gone.
    seen: [Count; Reason::ALL.len()],
    /// Frames that the sockets passed on, as of the last look, and how many looks in a row they were many.
    by_sockets: u64,
    busy: u32,
    refused: Option<Instant>,
}

impl Relay {
    pub(super) fn new(port: u16) -> Self {
        let mut relay = Self {
            port,
            choice: Choice::Auto,
            wanted: BTreeMap::new(),
            kernel: None,
            standing: Standing::default(),
            seen: [Count::default(); Reason::ALL.len()],
            by_sockets: 0,
            busy: 0,
            refused: None,
        };
        relay.stand_on_sockets(relay.why_idle());
        relay
    }

    pub(super) fn choose(&mut self, choice: Choice) {
        if choice != self.choice {
            (self.choice, self.refused) = (choice, None);
            self.unload();
            self.stand_on_sockets(self.why_idle());
        }
    }

    pub(super) fn means(&mut self, label: Label, meaning: Option<Meaning>) {
        let known = match meaning {
            Some(meaning) => self.wanted.insert(label, meaning),
            None => self.wanted.remove(&label),
        };
        if known == meaning {
            return;
        }
        let port = self.port;
        if let Some(kernel) = &mut self.kernel {
            let entry = meaning.map_or(Entry::FREE, |meaning| kernel.entry(label, &meaning, port));
            kernel.tell(label.slot(), entry);
        }
    }

    pub(super) fn passed(&self, label: Label) -> Count {
        self.kernel.as_ref().map_or_else(Count::default, |kernel| kernel.program.passed(label.slot()))
    }

    pub(super) fn numbers(&self) -> DatapathNumbers {
        let mut seen = self.seen;
        if let Some(frames) = self.kernel.as_ref().and_then(|kernel| kernel.program.frames().ok()) {
            add(&mut seen, &frames);
        }
        DatapathNumbers { standing: self.standing.clone(), seen: Reason::ALL.into_iter().zip(seen).collect() }
    }

    pub(super) fn forwarded(&self) -> Count {
        let seen = self.numbers().seen;
        seen.into_iter()
            .find(|(reason, _)| *reason == Reason::Forwarded)
            .map_or_else(Count::default, |(_, count)| count)
    }

    /// Looks whether the program is of use, and tells it where packets go now. The sockets have passed on so many frames.
    pub(super) fn look(&mut self, by_sockets: u64) {
        let frames = by_sockets.saturating_sub(self.by_sockets);
        self.by_sockets = by_sockets;
        self.busy = if frames >= BUSY_FRAMES { self.busy.saturating_add(1) } else { 0 };
        let hops = self.wanted.values().any(|meaning| matches!(meaning, Meaning::Hop { .. }));
        if self.kernel.is_some() {
            return self.look_after(hops);
        }
        if !hops {
            return self.stand_on_sockets(self.why_idle());
        }
        if let Some(why) = self.why_not() {
            return self.stand_on_sockets(why);
        }
        if self.refused.is_none_or(|since| since.elapsed() > REFUSED_FOR)
            && let Err(error) = self.load().and_then(|()| self.refresh())
        {
            self.refused(&error);
        }
    }

    /// The program is in the kernel.
    fn look_after(&mut self, hops: bool) {
        let unused = self.kernel.as_mut().map(|kernel| kernel.unused(hops));
        if unused.is_some_and(|unused| unused > UNUSED_MAX) {
            self.unload();
            return self.stand_on_sockets(self.why_idle());
        }
        if let Err(error) = self.refresh() {
            self.refused(&error);
        }
    }

    /// Why the program is not tried at all, where it is not.
    fn why_not(&self) -> Option<String> {
        match self.choice {
            Choice::Socket => Some("it is set to `socket`".to_owned()),
            Choice::Auto if self.busy < BUSY_LOOKS => {
                Some(format!("fewer than {BUSY_FRAMES} frames a second are passed on for others"))
            }
            Choice::Auto | Choice::Xdp | Choice::XdpGeneric => None,
        }
    }

    fn why_idle(&self) -> String {
        let idle = || "no circuits, so no frames to forward in the kernel".to_owned();
        self.why_not().filter(|_| self.choice == Choice::Socket).unwrap_or_else(idle)
    }

    fn stand_on_sockets(&mut self, why_not_higher: String) {
        self.standing = Standing { why_not_higher, ..Standing::default() };
    }

    fn refused(&mut self, error: &Unavailable) {
        tracing::warn!(%error, "circuits' frames go by the sockets");
        self.unload();
        self.refused = Some(Instant::now());
        let is_refused = self.choice != Choice::Auto;
        self.standing = Standing { why_not_higher: error.to_string(), is_refused, ..Standing::default() };
    }

    fn load(&mut self) -> Result<(), Unavailable> {
        let tables = Tables::open().map_err(Unavailable::NoTables)?;
        let rung = if self.choice == Choice::XdpGeneric { Rung::XdpGeneric } else { Rung::Xdp };
        self.kernel = Some(Kernel {
            program: XdpProgram::load()?,
            tables,
            rung,
            attached: BTreeMap::new(),
            told: BTreeMap::new(),
            here: BTreeSet::new(),
            ways: HashMap::new(),
            unused_since: None,
        });
        Ok(())
    }

    /// Takes the program out of the kernel.
    fn unload(&mut self) {
        if let Some(frames) = self.kernel.take().and_then(|kernel| kernel.program.frames().ok()) {
            add(&mut self.seen, &frames);
        }
    }

    /// Tells the kernel how things are now.
    fn refresh(&mut self) -> Result<(), Unavailable> {
        let (port, choice) = (self.port, self.choice);
        let Some(kernel) = &mut self.kernel else { return Ok(()) };
        kernel.ways.clear();
        let entries: BTreeMap<u32, Entry> =
            self.wanted.iter().map(|(label, meaning)| (label.slot(), kernel.entry(*label, meaning, port))).collect();
        kernel.attach(choice)?;
        kernel.tell_all(&entries);
        self.standing = Standing {
            rung: kernel.rung,
            interfaces: kernel.attached.values().map(|(name, _)| name.clone()).collect(),
            why_not_higher: match kernel.rung {
                Rung::Xdp => String::new(),
                Rung::XdpGeneric | Rung::Sockets => "it is set to `xdp-generic`".to_owned(),
            },
            is_refused: false,
        };
        Ok(())
    }
}

impl Kernel {
    /// For how long there has been no circuit.
    fn unused(&mut self, hops: bool) -> Duration {
        if hops {
            self.unused_since = None;
            return Duration::ZERO;
        }
        self.unused_since.get_or_insert_with(Instant::now).elapsed()
    }

    fn way(&mut self, to: SocketAddr, port: u16) -> Option<Way> {
        let Self { ways, tables, .. } = self;
        *ways.entry(to).or_insert_with(|| tables.way(to, port))
    }

    fn entry(&mut self, label: Label, meaning: &Meaning, port: u16) -> Entry {
        let Meaning::Hop { from, to, out } = *meaning else { return Entry::end(label) };
        match (self.way(from, port), self.way(to, port)) {
            (Some(near), Some(far)) => Entry::hop(label, near.leg, far.leg, far.next, out),
            _ => Entry::end(label),
        }
    }

    fn tell(&mut self, slot: u32, entry: Entry) {
        let before = if entry == Entry::FREE { self.told.remove(&slot) } else { self.told.insert(slot, entry) };
        if before.unwrap_or(Entry::FREE) == entry {
            return;
        }
        if let Err(error) = self.program.set(slot, entry) {
            tracing::warn!(%error, slot, "the kernel does not take what a label means");
        }
    }

    fn tell_all(&mut self, entries: &BTreeMap<u32, Entry>) {
        let gone: Vec<u32> = self.told.keys().filter(|slot| !entries.contains_key(slot)).copied().collect();
        for slot in gone {
            self.tell(slot, Entry::FREE);
        }
        for (slot, entry) in entries {
            self.tell(*slot, *entry);
        }
        let here: BTreeSet<Endpoint> = self.ways.values().flatten().map(|way| way.leg.local).collect();
        for at in self.here.symmetric_difference(&here) {
            self.program.set_here(*at, here.contains(at));
        }
        self.here = here;
    }

    /// Puts the program where frames come in, and takes it off where none do any more.
    fn attach(&mut self, choice: Choice) -> Result<(), Unavailable> {
        let used: BTreeSet<u32> = self.ways.values().flatten().map(|Way { next, .. }| next.interface).collect();
        self.attached.retain(|index, _| used.contains(index));
        let (mode, rung) = match choice {
            Choice::XdpGeneric => (XdpMode::Skb, Rung::XdpGeneric),
            _ => (XdpMode::Driver, Rung::Xdp),
        };
        let new: Vec<Interface> = used
            .into_iter()
            .filter(|index| !self.attached.contains_key(index))
            .filter_map(|index| self.tables.interface(index))
            .collect();
        // All before any: some drivers drop their link when a program comes, which must not be for nothing.
        new.iter().try_for_each(|interface| suits(interface, choice))?;
        for interface in new {
            let index = interface.index;
            let attached = self.program.attach(index, mode);
            let attached =
                attached.map_err(|error| Unavailable::Interface(interface.name.clone(), error.to_string()))?;
            tracing::info!(interface = interface.name, rung = rung.label(), "the kernel forwards circuits' frames");
            self.attached.insert(index, (interface.name, attached));
        }
        Ok(())
    }
}

/// Whether the program may go on an interface.
fn suits(interface: &Interface, choice: Choice) -> Result<(), Unavailable> {
    match choice {
        Choice::Auto if !interface.is_hardware => Err(Unavailable::Virtual(interface.name.clone())),
        Choice::Auto | Choice::Xdp if !interface.does_xdp => Err(Unavailable::Driver(interface.name.clone())),
        Choice::Auto | Choice::Xdp | Choice::XdpGeneric | Choice::Socket => Ok(()),
    }
}

fn add(sum: &mut [Count; Reason::ALL.len()], seen: &[(Reason, Count); Reason::ALL.len()]) {
    for (sum, (_, count)) in sum.iter_mut().zip(seen) {
        sum.frames += count.frames;
        sum.bytes += count.bytes;
    }
}

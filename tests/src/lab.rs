//! A lab: hosts joined by switches. Each host is a namespace with one cable a switch, each switch a bridge in a
//! namespace of its own, so that nothing shows outside. Knows links and addresses, nothing of what runs on the hosts.
//! Invariant: names carry the owner's process id, so that what a killed owner left can be told from what is in use.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail};

use crate::link::{self, BadLink, Quality};
use crate::machine;
use crate::netns::{self, Namespace};

/// What every namespace and folder of a lab is called first.
const PREFIX: &str = "plnlab-";
/// Addresses are numbered in one byte, from 1.
const HOSTS_MAX: usize = 250;

/// Which addresses the hosts of a switch have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
    Both,
}

/// A switch of a lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch(usize);

/// Hosts and switches, gone when dropped.
pub struct Lab {
    run: String,
    dir: PathBuf,
    switches: Vec<(Namespace, Family)>,
    hosts: usize,
    /// The scenarios measure time: two labs of one process would disturb each other.
    _turn: MutexGuard<'static, ()>,
}

/// A machine of the lab: a namespace, or the machine itself where there is no root.
pub struct Host {
    name: String,
    namespace: Option<Namespace>,
    dir: PathBuf,
    cables: Vec<Cable>,
    port: u16,
}

/// A host's end of the cable to a switch.
struct Cable {
    switch: Switch,
    device: String,
    /// The switch's end, in the switch's namespace.
    port: String,
    addresses: Vec<IpAddr>,
}

/// The port that `pln` has by default.
const PORT: u16 = 60611;

static TURN: Mutex<()> = Mutex::new(());
static RUNS: AtomicU32 = AtomicU32::new(0);

impl Lab {
    /// An empty lab. Waits for its turn if this process has another; clears what dead processes left.
    ///
    /// # Errors
    /// If the machine does not allow it: no root, no `ip`, no namespaces.
    pub fn new() -> Result<Self> {
        // A test that failed with a lab has dropped it like any other.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        available().map_err(anyhow::Error::msg)?;
        sweep(Whose::Dead)?;
        let run = format!("{PREFIX}{}-{}", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(&run);
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(Self { run, dir, switches: Vec::new(), hosts: 0, _turn: turn })
    }

    /// Adds a switch.
    ///
    /// # Errors
    /// If the kernel refuses a namespace or a bridge.
    pub fn switch(&mut self, family: Family) -> Result<Switch> {
        let index = self.switches.len();
        let namespace = Namespace::create(&format!("{}-switch{index}", self.run))?;
        // Without a querier a snooping bridge may drop IPv6 neighbour solicitations.
        namespace.ip(&["link", "add", "name", "bridge", "type", "bridge", "mcast_snooping", "0"])?;
        namespace.ip(&["link", "add", "name", "island", "type", "bridge", "mcast_snooping", "0"])?;
        namespace.ip(&["link", "set", "bridge", "up"])?;
        namespace.ip(&["link", "set", "island", "up"])?;
        self.switches.push((namespace, family));
        Ok(Switch(index))
    }

    /// Adds a host with a cable to each of `switches`, the first of `mtu` bytes a packet.
    ///
    /// # Errors
    /// If the kernel refuses a namespace, a device or an address.
    pub fn host(&mut self, name: &str, switches: &[Switch], mtu: u32) -> Result<Host> {
        self.hosts += 1;
        let number =
            u8::try_from(self.hosts).ok().filter(|n| usize::from(*n) <= HOSTS_MAX).context("too many hosts")?;
        let namespace = Namespace::create(&format!("{}-{name}", self.run))?;
        let mut cables = Vec::new();
        for (index, switch) in switches.iter().enumerate() {
            cables.push(self.cable(&namespace, index, *switch, number, mtu)?);
        }
        let dir = self.dir.join(name);
        Ok(Host { name: name.to_owned(), namespace: Some(namespace), dir, cables, port: PORT })
    }

    /// Hosts of these names on one new switch, with Ethernet's usual MTU.
    ///
    /// # Errors
    /// As [`Lab::switch`] and [`Lab::host`].
    pub fn hosts<const N: usize>(&mut self, family: Family, names: [&str; N]) -> Result<[Host; N]> {
        let switch = self.switch(family)?;
        let mut hosts = Vec::new();
        for name in names {
            hosts.push(self.host(name, &[switch], 1500)?);
        }
        hosts.try_into().map_err(|_| anyhow::anyhow!("one host was made for each name"))
    }

    /// Makes the cables of `host` behave as a network card's: packets leave one by one, whole and summed, and what a program
    /// of the kernel sends back there arrives.
    ///
    /// # Errors
    /// Without `ethtool`, or if the kernel refuses.
    pub fn like_hardware(&self, host: &Host) -> Result<()> {
        let namespace = host.namespace.as_ref().context("this machine has no cables of the lab")?;
        for cable in &host.cables {
            let alone = ["tx", "off", "gso", "off", "tso", "off", "tx-udp-segmentation", "off"];
            namespace.ok("ethtool", &[&["-K", &cable.device][..], &alone].concat())?;
            let far = &self.switches.get(cable.switch.0).context("the lab has no such switch")?.0;
            far.ok("ethtool", &["-K", &cable.port, "gro", "on"])?;
        }
        Ok(())
    }

    /// Cuts a switch in two: `hosts` reach each other and nobody else. No host sees its link change.
    ///
    /// # Errors
    /// If one of them is not on that switch, or the kernel refuses.
    pub fn part(&self, switch: Switch, hosts: &[&Host]) -> Result<()> {
        hosts.iter().try_for_each(|host| self.set_bridge(switch, host, "island"))
    }

    /// Makes a switch one again.
    ///
    /// # Errors
    /// As [`Lab::part`].
    pub fn heal(&self, switch: Switch, hosts: &[&Host]) -> Result<()> {
        hosts.iter().try_for_each(|host| self.set_bridge(switch, host, "bridge"))
    }

    /// Parts a switch as [`Lab::part`] does, and joins its halves by a link of that quality.
    ///
    /// # Errors
    /// As [`Lab::part`], and if the kernel refuses what a link needs.
    pub fn part_by(&self, switch: Switch, hosts: &[&Host], quality: Quality) -> Result<BadLink> {
        let bridge = &self.switches[switch.0].0;
        for (half, inside, outside) in [("bridge", "near", "near-end"), ("island", "far", "far-end")] {
            bridge.ip(&["link", "add", "name", inside, "type", "veth", "peer", "name", outside])?;
            link::without_offloads(bridge, inside)?;
            bridge.ip(&["link", "set", inside, "master", half, "up"])?;
            bridge.ip(&["link", "set", outside, "up"])?;
        }
        let link = BadLink::join(bridge, ["near-end", "far-end"], quality)?;
        self.part(switch, hosts)?;
        Ok(link)
    }

    fn set_bridge(&self, switch: Switch, host: &Host, bridge: &str) -> Result<()> {
        let (_, cable) = host.cable_to(switch)?;
        self.switches[switch.0].0.ip(&["link", "set", &cable.port, "master", bridge])
    }

    /// How its namespaces and its folder are called first.
    #[must_use]
    pub fn run(&self) -> &str {
        &self.run
    }

    fn cable(&self, host: &Namespace, index: usize, switch: Switch, number: u8, mtu: u32) -> Result<Cable> {
        let (bridge, family) = &self.switches[switch.0];
        let (device, port) = (format!("eth{index}"), format!("port{number}-{index}"));
        let mtu = mtu.to_string();
        host.ip(&["link", "add", &device, "mtu", &mtu, "type", "veth", "peer", "name", &port, "netns", bridge.name()])?;
        bridge.ip(&["link", "set", &port, "mtu", &mtu, "master", "bridge", "up"])?;
        host.ip(&["link", "set", &device, "up"])?;
        let network = u8::try_from(switch.0).context("too many switches")?;
        let v4 = IpAddr::V4(Ipv4Addr::new(10, 61, network, number));
        let v6 = IpAddr::V6(Ipv6Addr::new(0xfd61, u16::from(network), 0, 0, 0, 0, 0, u16::from(number)));
        let addresses = match family {
            Family::V4 => vec![v4],
            Family::V6 => vec![v6],
            Family::Both => vec![v4, v6],
        };
        for address in &addresses {
            match address {
                IpAddr::V4(_) => host.ip(&["addr", "add", &format!("{address}/24"), "dev", &device])?,
                IpAddr::V6(_) => host.ip(&["addr", "add", &format!("{address}/64"), "dev", &device, "nodad"])?,
            }
        }
        Ok(Cable { switch, device, port, addresses })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.switches.clear();
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("{} stays behind: {error}", self.dir.display());
        }
    }
}

impl Host {
    /// This very machine as one host among several, told apart by port: for where there is no root.
    #[must_use]
    pub fn local(name: &str, dir: &Path, port: u16) -> Self {
        Self { name: name.to_owned(), namespace: None, dir: dir.join(name), cables: Vec::new(), port }
    }

    /// Its name in the lab.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its files lie.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The UDP port for its `pln`.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its namespace, if it has one.
    #[must_use]
    pub fn namespace(&self) -> Option<&Namespace> {
        self.namespace.as_ref()
    }

    /// Its addresses on all switches; loopback if it is this machine.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        if self.namespace.is_none() {
            return vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
        }
        self.cables.iter().flat_map(|cable| cable.addresses.iter().copied()).collect()
    }

    /// A command that will run on it.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> std::process::Command {
        match &self.namespace {
            Some(namespace) => namespace.command(program),
            None => std::process::Command::new(program),
        }
    }

    /// Sends nothing to `other` from now on: the kernel says at once that it is unreachable.
    ///
    /// # Errors
    /// If it does so already, or without a namespace.
    pub fn shun(&self, other: &Self) -> Result<()> {
        self.shunned(other, "add")
    }

    /// Sends to `other` again.
    ///
    /// # Errors
    /// If it never stopped.
    pub fn reach(&self, other: &Self) -> Result<()> {
        self.shunned(other, "del")
    }

    fn shunned(&self, other: &Self, verb: &str) -> Result<()> {
        let namespace = self.namespace.as_ref().context("this machine itself is not told what to reach")?;
        other
            .addresses()
            .iter()
            .try_for_each(|address| namespace.ip(&["route", verb, "unreachable", &address.to_string()]))
    }

    /// Sends whatever is for elsewhere by `router`, which is on `switch` too.
    ///
    /// # Errors
    /// If either has no cable to that switch.
    pub fn route_by(&self, router: &Self, switch: Switch) -> Result<()> {
        let ((namespace, _), (_, cable)) = (self.cable_to(switch)?, router.cable_to(switch)?);
        cable.addresses.iter().try_for_each(|address| {
            let family = if address.is_ipv4() { "-4" } else { "-6" };
            namespace.ip(&[family, "route", "add", "default", "via", &address.to_string()])
        })
    }

    /// Runs `work` on it, on a thread of its own: sockets that it opens are the host's.
    ///
    /// # Errors
    /// If its namespace cannot be entered.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        match &self.namespace {
            Some(namespace) => namespace.enter(work),
            None => Ok(work()),
        }
    }

    /// Pulls its cable to `switch`: nothing passes in either direction, and the host sees its link down.
    ///
    /// # Errors
    /// If it has no such cable, or the kernel refuses.
    pub fn unplug(&self, switch: Switch) -> Result<()> {
        self.set_cable(switch, "down")
    }

    /// Plugs the cable to `switch` in again. IPv6 addresses, which the kernel drops with the link, are given again.
    ///
    /// # Errors
    /// If it has no such cable, or the kernel refuses.
    pub fn plug(&self, switch: Switch) -> Result<()> {
        self.set_cable(switch, "up")?;
        let (namespace, cable) = self.cable_to(switch)?;
        for address in cable.addresses.iter().filter(|address| address.is_ipv6()) {
            namespace.ip(&["addr", "replace", &format!("{address}/64"), "dev", &cable.device, "nodad"])?;
        }
        Ok(())
    }

    /// Takes its IPv4 address on `switch` away and gives it another one there, as a new lease would: `last` is its last
    /// byte.
    ///
    /// # Errors
    /// As [`Host::unplug`].
    pub fn renumber(&self, switch: Switch, last: u8) -> Result<()> {
        let (namespace, cable) = self.cable_to(switch)?;
        let old = cable.addresses.iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(v4.octets()),
            IpAddr::V6(_) => None,
        });
        let [a, b, c, _] = old.context("it has no IPv4 address there")?;
        namespace.ip(&["-4", "addr", "flush", "dev", &cable.device])?;
        namespace.ip(&["addr", "add", &format!("{}/24", Ipv4Addr::new(a, b, c, last)), "dev", &cable.device])
    }

    fn set_cable(&self, switch: Switch, state: &str) -> Result<()> {
        let (namespace, cable) = self.cable_to(switch)?;
        namespace.ip(&["link", "set", &cable.device, state])
    }

    fn cable_to(&self, switch: Switch) -> Result<(&Namespace, &Cable)> {
        let namespace = self.namespace.as_ref().context("this machine has no cables of the lab")?;
        let cable = self.cables.iter().find(|cable| cable.switch == switch);
        Ok((namespace, cable.with_context(|| format!("{} is not on that switch", self.name))?))
    }
}

/// Whether labs can be made here; if not, why.
///
/// # Errors
/// One clause for people.
pub fn available() -> Result<(), String> {
    // SAFETY: a plain system call without arguments.
    if unsafe { libc::geteuid() } != 0 {
        return Err("network namespaces need root".to_owned());
    }
    let probe = format!("{PREFIX}{}-probe{}", std::process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
    Namespace::create(&probe).map(drop).map_err(|error| format!("{error:#}"))
}

/// A lab, or nothing where there can be none: the reason is printed, and `PLN_REQUIRE` makes it a failure.
///
/// # Panics
/// Where labs are required and unavailable.
#[must_use]
pub fn lab_or_skip() -> Option<Lab> {
    match Lab::new() {
        Ok(lab) => Some(lab),
        Err(error) => {
            assert!(std::env::var_os("PLN_REQUIRE").is_none(), "PLN_REQUIRE is set: {error:#}");
            eprintln!("skipped: {error:#}");
            None
        }
    }
}

/// Which labs to clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Those whose owner is gone.
    Dead,
    /// All on this machine.
    All,
}

/// Deletes labs with their processes and folders; returns the namespaces deleted.
///
/// # Errors
/// If one cannot be deleted; the others may be.
pub fn sweep(whose: Whose) -> Result<Vec<String>> {
    let chosen = |name: &str| -> bool {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        owner.is_some_and(|pid| match whose {
            Whose::All => true,
            Whose::Dead => !Path::new(&format!("/proc/{pid}")).exists(),
        })
    };
    let names: Vec<_> = netns::list(PREFIX)?.into_iter().filter(|name| chosen(name)).collect();
    for name in &names {
        netns::delete(name)?;
    }
    for group in machine::groups(PREFIX)?.iter().filter(|group| chosen(group)) {
        machine::delete_group(group)?;
    }
    for entry in std::fs::read_dir(std::env::temp_dir())? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(chosen) && entry.path().is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    if whose == Whose::All && !netns::list(PREFIX)?.is_empty() {
        bail!("namespaces of unknown labs are left: {:?}", netns::list(PREFIX)?);
    }
    Ok(names)
}

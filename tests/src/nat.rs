//! Routers of the lab that translate addresses, as nftables does it: what is behind one has no address that others know.
//! Owns their rules; knows nothing of Pollen. Invariant: nothing comes in that did not go out
//! before, unless the router is told to let it.

use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::lab::{Host, Lab, Switch, lab_or_skip};

/// How a router chooses the port that others see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// The sender's own where it is free: the same for all destinations.
    Easy,
    /// Another for each destination, at random.
    Hard,
}

/// What a router does with packets that nobody inside has asked for.
#[derive(Clone, Copy)]
pub enum Strangers<'a> {
    /// As routers do that are sold to people.
    Dropped,
    /// It takes them for its own and says that nobody listens, as a machine does that shares its connection.
    Answered,
    /// What is for the port of `to`'s `pln` passes, from anybody ("endpoint-independent filtering").
    LetIn { to: &'a Host },
}

/// A host with one cable inside and one outside, the packets of the first leaving by the second under its own address.
pub struct Router {
    pub host: Host,
}

impl Router {
    /// A router from `inside` to `outside`.
    ///
    /// # Errors
    /// If the kernel or `nft` refuses.
    pub fn between(lab: &mut Lab, name: &str, [inside, outside]: [Switch; 2], mapping: Mapping) -> Result<Self> {
        let host = lab.host(name, &[inside, outside], 1500)?;
        let router = Self { host };
        router.host.enter(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
        })??;
        router.map(mapping)?;
        Ok(router)
    }

    /// Chooses ports so from now on. What is mapped stays: see [`Router::forget`].
    ///
    /// # Errors
    /// If `nft` refuses.
    pub fn map(&self, mapping: Mapping) -> Result<()> {
        self.set(mapping, Strangers::Dropped)
    }

    /// Chooses ports so from now on, and does that with what comes from strangers.
    ///
    /// # Errors
    /// If `nft` refuses.
    pub fn set(&self, mapping: Mapping, strangers: Strangers<'_>) -> Result<()> {
        let (enter, opened) = match strangers {
            Strangers::Dropped => ("drop", String::new()),
            Strangers::Answered => ("accept", String::new()),
            Strangers::LetIn { to } => {
                let address = to.addresses().into_iter().find(IpAddr::is_ipv4).context("no IPv4 address")?;
                ("drop", format!("iifname eth1 udp dport {} dnat ip to {address}", to.port()))
            }
        };
        let how = match mapping {
            Mapping::Easy => "",
            Mapping::Hard => " random,fully-random",
        };
        // eth0 is inside.
        let rules = format!(
            "flush ruleset
             table inet lab {{
               chain come {{ type nat hook prerouting priority dstnat; {opened}; }}
               chain leave {{ type nat hook postrouting priority srcnat; oifname eth1 masquerade{how}; }}
               chain pass {{
                 type filter hook forward priority filter; policy drop;
                 iifname eth0 accept
                 ct state established,related accept
                 ct status dnat accept
               }}
               chain enter {{
                 type filter hook input priority filter;
                 iifname eth1 meta l4proto udp ct state new {enter}
               }}
             }}\n"
        );
        let mut nft = self.host.command("nft");
        let mut nft = nft.args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("nft is not there")?;
        nft.stdin.take().context("its input is piped")?.write_all(rules.as_bytes())?;
        ensure!(nft.wait()?.success(), "nft refuses the rules of {}", self.host.name());
        Ok(())
    }

    /// Forgets every mapping, as a router does that was restarted.
    ///
    /// # Errors
    /// If `conntrack` is not there or refuses.
    pub fn forget(&self) -> Result<()> {
        let output = self.host.command("conntrack").arg("-F").output().context("conntrack is not there")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

/// A lab in which there can be routers, or nothing where there can be none: the reason is printed, and `PLN_REQUIRE` makes it a
/// failure.
///
/// # Panics
/// Where labs are required and unavailable.
#[must_use]
pub fn lab_with_routers_or_skip() -> Option<Lab> {
    for tool in ["nft", "conntrack"] {
        if Command::new(tool).arg("--version").output().is_err() {
            assert!(std::env::var_os("PLN_REQUIRE").is_none(), "PLN_REQUIRE is set, and there is no {tool}");
            eprintln!("skipped: there is no {tool}");
            return None;
        }
    }
    lab_or_skip()
}

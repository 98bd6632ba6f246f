//! What a command needs of the machine: shown first, then installed, or only checked with `--no-install`.
//! Invariant: nothing is installed that was not listed.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::shell;

/// Whether to install what is missing.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct Install {
    /// Install nothing: only say what is missing
    #[arg(long)]
    pub no_install: bool,
}

/// Something that must be there.
pub struct Need {
    pub what: &'static str,
    pub why: &'static str,
    pub met: fn() -> bool,
    /// The Debian packages that bring it.
    pub packages: &'static [&'static str],
}

/// For namespaces, wherever there is root to make them.
pub const IP: Need = Need {
    what: "ip",
    why: "network namespaces, as the machines of the lab",
    met: || shell::has("ip"),
    packages: &["iproute2"],
};

/// For the unit of the service, which systemd itself judges and runs, on a machine of the lab: it need not run this one.
pub const SYSTEMD: Need = Need {
    what: "systemd-analyze",
    why: "whether systemd accepts the service's unit, how much it exposes, and machines that it runs",
    met: || shell::has("systemd-analyze"),
    packages: &["systemd"],
};

/// For routers of the lab that translate addresses.
pub const NFT: Need =
    Need { what: "nft", why: "nodes behind address translators", met: || shell::has("nft"), packages: &["nftables"] };

/// For routers that forget.
pub const CONNTRACK: Need = Need {
    what: "conntrack",
    why: "address translators that forget",
    met: || shell::has("conntrack"),
    packages: &["conntrack"],
};

/// For what a relay could see.
pub const TCPDUMP: Need = Need {
    what: "tcpdump",
    why: "whether anything can be read on the wire",
    met: || shell::has("tcpdump"),
    packages: &["tcpdump"],
};

/// For cables that behave as a network card's.
pub const ETHTOOL: Need = Need {
    what: "ethtool",
    why: "cables of the lab on which the kernel's program forwards",
    met: || shell::has("ethtool"),
    packages: &["ethtool"],
};

/// For running a daemon with a unit's rights.
pub const SETPRIV: Need = Need {
    what: "setpriv",
    why: "the daemon as the service's user, with its capabilities",
    met: || shell::has("setpriv"),
    packages: &["util-linux"],
};

/// Lists `needs` and installs what is missing; returns whether all are met at the end.
///
/// Where they are not (`--no-install`, no root, no Debian), the caller says what it leaves out.
pub fn meet(needs: &[Need], flags: Install) -> Result<bool> {
    println!("Needed here:");
    let mut packages = Vec::new();
    for need in needs {
        let met = (need.met)();
        println!(
            "  [{}] {:14} {} (Debian: {})",
            if met { "x" } else { " " },
            need.what,
            need.why,
            need.packages.join(" ")
        );
        if !met {
            packages.extend(need.packages);
        }
    }
    if packages.is_empty() {
        return Ok(true);
    }
    if flags.no_install {
        println!("Missing: {}; not installed (--no-install)", packages.join(" "));
        return Ok(false);
    }
    if !shell::is_root() || !shell::has("apt-get") {
        println!("Missing: {}; installing takes root and Debian's apt-get", packages.join(" "));
        return Ok(false);
    }
    install(&packages)?;
    for need in needs {
        ensure!((need.met)(), "{} is missing though {} is installed", need.what, need.packages.join(" "));
    }
    Ok(true)
}

/// Installs Debian packages.
pub fn install(packages: &[&str]) -> Result<()> {
    shell::run(Command::new("apt-get").args(["update", "-q"]))?;
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").args(["install", "-y", "-q", "--no-install-recommends"]);
    shell::run(apt.args(packages))
}

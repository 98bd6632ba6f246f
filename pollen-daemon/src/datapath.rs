//! The rungs that carry circuits' frames, and which of them does: the kernel's XDP program above the sockets, which always
//! can. Owns what the kernel is told of circuits, and when; decides nothing about frames (see `pollen_common::verdict`).
//! Invariants: a machine that cannot use a rung gets a typed reason and runs on the next one; the program is in the kernel
//! only while there are circuits for it, and no longer than this process; what it does not know it leaves to the sockets.

mod netlink;
mod program;
mod relay;
#[cfg(test)]
mod tests;
mod ways;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pollen_common::abi::Count;
use pollen_common::circuit::Label;
use pollen_common::verdict::Reason;
use tokio::time::{MissedTickBehavior, interval};

use self::relay::Relay;

/// How often routes, neighbours and interfaces are looked up again: a peer whose next hop changed loses what is sent in
/// between.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How the daemon moves packets, best last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// Plain sockets.
    #[default]
    Sockets,
    /// The kernel's program, run for each packet that the driver has handed over.
    XdpGeneric,
    /// The kernel's program, in the driver.
    Xdp,
}

impl Rung {
    /// As status and the metric label `rung` show it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Sockets => "sockets",
            Self::XdpGeneric => "xdp-generic",
            Self::Xdp => "xdp",
        }
    }
}

/// What the operator asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    /// The kernel where it is worth it.
    #[default]
    Auto,
    Xdp,
    XdpGeneric,
    Socket,
}

impl Choice {
    /// As it is typed and shown.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Xdp => "xdp",
            Self::XdpGeneric => "xdp-generic",
            Self::Socket => "socket",
        }
    }
}

impl std::str::FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Auto, Self::Xdp, Self::XdpGeneric, Self::Socket];
        all.into_iter()
            .find(|choice| choice.label() == text)
            .ok_or_else(|| format!("`{text}` is no datapath; say auto, xdp, xdp-generic or socket"))
    }
}

/// The rung in use, and why it is not a higher one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub rung: Rung,
    /// The names of the interfaces that the program is on.
    pub interfaces: Vec<String>,
    /// One clause for people; empty on the highest.
    pub why_not_higher: String,
    /// What the operator asked for is not what there is.
    pub is_refused: bool,
}

/// What the kernel did, and which rung that is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatapathNumbers {
    pub standing: Standing,
    /// Frames and bytes that the program saw, by reason, since this process began.
    pub seen: Vec<(Reason, Count)>,
}

/// Why XDP cannot be used here. Nothing is left behind in the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// The process lacks the capability, or the kernel has BPF locked down.
    #[error("BPF is not permitted here (needs CAP_BPF and CAP_NET_ADMIN)")]
    NotPermitted,
    /// The kernel refused the object: too old, or the verifier objects.
    #[error("the kernel refused the eBPF object: {0}")]
    Refused(String),
    /// The object lacks a program or map of the names in [`abi`](pollen_common::abi): it was built from another version.
    #[error("the eBPF object has no {0}: built from another version")]
    Mismatch(&'static str),
    /// The kernel does not say where packets go.
    #[error("the kernel's routes cannot be asked for: {0}")]
    NoTables(std::io::Error),
    /// The driver runs no programs, or sends nothing that they redirect.
    #[error("the driver of {0} does no XDP in both directions")]
    Driver(String),
    /// It is no piece of hardware, so each packet would be copied for the program's sake.
    #[error(
        "{0} is a virtual interface, where the program costs more than it saves (`pln set datapath xdp` has it anyway)"
    )]
    Virtual(String),
    /// The interface has another program, or refused ours.
    #[error("{0}: {1}")]
    Interface(String, String),
}

/// What a label means, in addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Its frames are the sockets' to handle.
    End,
    /// Frames that come from `from` go on to `to`, under the label `out`.
    Hop { from: SocketAddr, to: SocketAddr, out: Label },
}

/// The ladder of one node.
pub struct Datapath(Mutex<Relay>);

impl Datapath {
    /// For the node whose packets come at UDP port `port`.
    #[must_use]
    pub fn new(port: u16) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Relay::new(port))))
    }

    fn relay(&self) -> MutexGuard<'_, Relay> {
        // What is under this lock is whole between any two statements that could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the operator asks for, from now on. Is looked at within [`LOOK_EVERY`].
    pub fn choose(&self, choice: Choice) {
        self.relay().choose(choice);
    }

    /// Whether what the operator asks for could be had: the program loads.
    ///
    /// # Errors
    /// Why not.
    pub fn try_out(choice: Choice) -> Result<(), Unavailable> {
        match choice {
            Choice::Auto | Choice::Socket => Ok(()),
            Choice::Xdp | Choice::XdpGeneric => program::XdpProgram::load().map(drop),
        }
    }

    /// What a label means from now on; nothing any more.
    pub fn means(&self, label: Label, meaning: Option<Meaning>) {
        self.relay().means(label, meaning);
    }

    /// What the kernel sent on under a label. Only ever grows while the label means the same.
    #[must_use]
    pub fn passed(&self, label: Label) -> Count {
        self.relay().passed(label)
    }

    /// Which rung, and what the kernel did.
    #[must_use]
    pub fn numbers(&self) -> DatapathNumbers {
        self.relay().numbers()
    }

    /// What the kernel sent on since this process began.
    #[must_use]
    pub fn forwarded(&self) -> Count {
        self.relay().forwarded()
    }

    /// Looks after it; `by_sockets` says how many frames the sockets have passed on. Ends with the node.
    pub async fn keep(self: Arc<Self>, by_sockets: impl Fn() -> u64) {
        let mut tick = interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let (datapath, by_sockets) = (self.clone(), by_sockets());
            // Putting a program on an interface may take its driver a second, in which nobody else's packets wait.
            let looked = tokio::task::spawn_blocking(move || datapath.relay().look(by_sockets)).await;
            if let Err(error) = looked {
                tracing::error!(%error, "the datapath could not be looked after");
            }
        }
    }
}

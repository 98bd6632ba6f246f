//! What others hold of the path socket: a dial, a node's sources, a label. Each is given up by dropping it.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use pollen_common::circuit::{Label, Use};
use pollen_common::path_probe::Nonce;
use tokio::sync::oneshot;

use super::address::{Source, VirtualAddr};
use super::frames::Passed;
use super::{PathSocket, bind, locked};

/// A peer being proved. Dropping it ends the dial.
pub struct Proving {
    pub(super) path: Arc<PathSocket>,
    pub(super) nonce: Nonce,
    pub(super) answer: oneshot::Receiver<()>,
    pub(super) sent: usize,
}

impl Proving {
    /// Asks until the peer is proved at one address. Does not end while nobody answers: the caller bounds it.
    pub async fn proved(&mut self) {
        loop {
            let wait = self.ask();
            if tokio::time::timeout(wait, &mut self.answer).await.is_ok() {
                return;
            }
        }
    }

    /// Goes on binding the peer's other addresses, which it may be using towards us. Never ends.
    pub async fn go_on(&mut self) -> std::convert::Infallible {
        loop {
            let wait = self.ask();
            tokio::time::sleep(wait).await;
        }
    }

    fn ask(&mut self) -> Duration {
        let packets = locked!(self.path.binder.lock()).packets(self.nonce);
        for (to, packet) in packets {
            self.path.send_to(to, &packet);
        }
        self.sent += 1;
        bind::retry_after(self.sent)
    }
}

impl Drop for Proving {
    fn drop(&mut self) {
        locked!(self.path.binder.lock()).end(self.nonce);
        locked!(self.path.waiting.lock()).remove(&self.nonce.0);
    }
}

/// Keeps the sources of a connected node in the table.
#[derive(Debug)]
pub struct Held {
    pub(super) path: Arc<PathSocket>,
    pub(super) address: VirtualAddr,
}

impl Drop for Held {
    fn drop(&mut self) {
        let last_one = self.path.change(|routes| routes.release(self.address));
        if last_one {
            locked!(self.path.last.lock()).release(&self.address);
        }
    }
}

/// A label that this node has made. Dropping it gives it up.
pub struct Made {
    pub(super) path: Arc<PathSocket>,
    pub label: Label,
}

impl Made {
    /// Gives it its meaning.
    pub fn mean(&self, means: Use<VirtualAddr>) {
        self.path.frames.change(|labels| labels.set(self.label, means));
        self.path.tell_kernel(self.label);
    }

    /// What was passed on under it so far.
    pub fn passed(&self) -> Passed {
        self.path.frames.passed(self.label) + self.path.datapath.passed(self.label).into()
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        self.path.datapath.means(self.label, None);
        self.path.frames.free(self.label);
        self.path.change(|routes| routes.unbind(Source::Circuit(self.label)));
    }
}

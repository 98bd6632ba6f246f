//! Keeps what this node says of itself true: its name, its addresses, what it gives to seeds, and the services of its
//! configuration. Owns when that is said again; what is made of it is the core's business.

use std::net::SocketAddr;
use std::sync::Arc;

use pollen_common::node::{Command, Refusal};
use pollen_common::views::Name;

use super::addresses::{self, Changes};
use super::running::Running;
use crate::config;

/// Says everything once, then the addresses again when they change. Never returns.
pub(super) async fn keep_announced(running: Arc<Running>) {
    let changes = Changes::listen();
    let mut said = None;
    announce(&running, &mut said).await;
    offer(&running).await;
    running.reassert_services().await;
    tokio::join!(
        async {
            loop {
                changes.next().await;
                announce(&running, &mut said).await;
            }
        },
        withdraw_offer_if_unable(&running),
    );
}

/// Says by which name it goes now, and the addresses that it has said.
pub(super) async fn rename(running: &Running) -> Result<(), Refusal> {
    let view = running.driver().view();
    let addrs = view.nodes.get(&view.me).map(|me| me.addrs.clone()).unwrap_or_default();
    let name = own_name(running.settings_now().name.as_deref());
    running.driver().command(Command::Announce { name, addrs }).await.map(drop)
}

/// Says what this machine gives to seeds.
pub(super) async fn offer(running: &Running) {
    let capacity = running.parts().machine.capacity();
    if let Err(refusal) = running.driver().command(Command::Offer { capacity }).await {
        tracing::warn!("what this node gives to seeds was not announced: {}", refusal.message);
    }
}

/// Takes the offer back once it turns out that guests cannot run here: others then host what this node was to.
async fn withdraw_offer_if_unable(running: &Running) {
    let why = running.parts().machine.unable().await;
    tracing::warn!("this node offers nothing to seeds any more: guests cannot run here: {why}");
    offer(running).await;
}

async fn announce(running: &Running, said: &mut Option<Vec<SocketAddr>>) {
    let addrs = {
        let settings = running.settings_now();
        // What speaks UDP through this node may be the tunnel itself; nothing else tells.
        let tunnels = !running.carries_udp();
        addresses::to_announce(&settings.ips, &settings.not_ips, tunnels, running.port())
    };
    // A machine whose network is down is still where it was last, as far as the others are concerned.
    if addrs.is_empty() || said.as_ref() == Some(&addrs) {
        return;
    }
    let name = own_name(running.settings_now().name.as_deref());
    match running.driver().command(Command::Announce { name, addrs: addrs.clone() }).await {
        Ok(_) => {
            tracing::info!(?addrs, "announced");
            *said = Some(addrs);
        }
        Err(refusal) => tracing::warn!("name and addresses were not announced: {}", refusal.message),
    }
}

/// The configured name, else the first label of the host's; none if that is no name.
fn own_name(configured: Option<&str>) -> Option<Name> {
    let host = rustix::system::uname();
    let host = host.nodename().to_str().unwrap_or_default();
    configured
        .and_then(|name| config::parse_name(name).ok())
        .or_else(|| host.split('.').next().unwrap_or_default().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_name_goes_before_the_hosts() {
        assert_eq!(own_name(Some("Atlas")).map(|name| name.to_string()), Some("atlas".into()));
        assert_eq!(own_name(Some("8080")), own_name(None), "a port is no name");
    }
}

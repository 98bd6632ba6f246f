//! Peers that can send each other nothing, and a third that passes it on.

use pollen_common::circuit::Label;
use tokio::net::UdpSocket;

use super::silence::{Between, stream, through};
use super::*;
use crate::transport::{DropReason, PathKind};

/// Two peers that both have a link with a third, which each holds for able to relay.
pub(super) async fn around() -> (Peer, Peer, Peer) {
    let (mut a, mut b, mut relay) = (peer(1), peer(2), peer(3));
    for end in [&mut a, &mut b] {
        end.mesh.dial(relay.key, vec![relay.addr()]);
        end.up().await;
        relay.up().await;
        end.relays.lock().unwrap().push(relay.key);
    }
    (a, b, relay)
}

pub(super) async fn until(what: &str, holds: impl Fn() -> bool) {
    let held = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, held).await.unwrap_or_else(|_| panic!("{what}"));
}

pub(super) fn way(from: &Peer, to: &Peer) -> Option<(PathKind, Option<NodeKey>)> {
    let snapshot = from.mesh.snapshot();
    snapshot.peers.iter().find(|peer| peer.peer == to.key).map(|peer| (peer.path, peer.via))
}

#[tokio::test]
async fn two_peers_that_cannot_send_each_other_anything_talk_through_a_third() {
    let (mut a, mut b, relay) = around().await;
    a.mesh.dial(b.key, Vec::new());
    let (at_a, at_b) = (a.up().await, b.up().await);
    a.mesh.send(at_a, vec![7; 300_000]);
    assert_eq!(b.bytes(at_b, 300_000).await, vec![7; 300_000]);
    b.mesh.send(at_b, vec![8; 300_000]);
    assert_eq!(a.bytes(at_a, 300_000).await, vec![8; 300_000]);
    for (from, to) in [(&a, &b), (&b, &a)] {
        assert_eq!(way(from, to), Some((PathKind::Relayed, Some(relay.key))));
        assert_eq!(way(from, &relay), Some((PathKind::Direct, None)));
        assert_eq!(from.mesh.snapshot().circuits.ends, 1);
    }
    assert_eq!(relay.mesh.snapshot().circuits.hops, 1);

    // The operator's word ends it on all three.
    relay.mesh.set_relay(false);
    until("it has ended", || {
        [&a, &b, &relay].iter().all(|p| p.mesh.snapshot().circuits.ends + p.mesh.snapshot().circuits.hops == 0)
    })
    .await;
    let passed = relay.mesh.snapshot().circuits;
    assert!(passed.bytes > 600_000 && passed.frames > 400, "{passed:?}");
    assert_eq!(way(&a, &b), Some((PathKind::Direct, None)), "of no route at all nothing better is known");
}

#[tokio::test]
async fn what_is_open_turns_straight_when_a_straight_way_is_there_and_back_when_it_is_gone() {
    let (a, mut b, _relay) = around().await;
    let mut a = a;
    let between = Between::to(b.addr()).await;
    between.pass.send_replace(false);
    a.mesh.dial(b.key, vec![between.at]);
    let at_a = a.up().await;
    let ((mut send, _keep), (_keep_too, mut recv)) = stream(&a, &mut b).await;
    through(&mut send, &mut recv, b"relayed").await;
    assert_eq!(way(&a, &b).map(|way| way.0), Some(PathKind::Relayed));

    between.pass.send_replace(true);
    until("it is straight", || way(&a, &b).map(|way| way.0) == Some(PathKind::Direct)).await;
    until("for both", || way(&b, &a).map(|way| way.0) == Some(PathKind::Direct)).await;
    through(&mut send, &mut recv, b"straight").await;

    between.pass.send_replace(false);
    // As the core says when probes are missed.
    a.mesh.silent(at_a, vec![between.at]);
    until("it is relayed again", || way(&a, &b).map(|way| way.0) == Some(PathKind::Relayed)).await;
    through(&mut send, &mut recv, b"relayed again").await;
}

#[tokio::test]
async fn whoever_was_dialled_looks_for_a_straight_way_too() {
    let (mut a, mut b, _relay) = around().await;
    a.mesh.dial(b.key, Vec::new());
    a.up().await;
    b.up().await;
    assert_eq!(way(&b, &a).map(|way| way.0), Some(PathKind::Relayed));
    // Known to the second alone, as of one that only it can reach.
    b.announced.lock().unwrap().push(a.addr());
    until("it is straight", || way(&a, &b).map(|way| way.0) == Some(PathKind::Direct)).await;
}

#[tokio::test]
async fn a_relay_passes_on_nothing_of_a_stranger_and_for_nobody_it_is_not_told_to() {
    let (mut a, mut b, relay) = around().await;
    a.mesh.dial(b.key, Vec::new());
    a.up().await;
    b.up().await;
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    stranger.connect(relay.addr()).await.unwrap();
    let frame = |label: u32| [&Label(label).header(30)[..], &[0x40; 30]].concat();
    // The first labels that a node makes are of the first slots.
    for label in [0, 1] {
        stranger.send(&frame(label)).await.unwrap();
    }
    relay.sees(DropReason::CircuitSource, 2).await;
    stranger.send(&frame(0x0001_0000)).await.unwrap();
    stranger.send(&frame(77)).await.unwrap();
    relay.sees(DropReason::CircuitLabel, 2).await;
    stranger.connect(b.addr()).await.unwrap();
    stranger.send(&frame(0)).await.unwrap();
    b.sees(DropReason::CircuitSource, 1).await;
}

#[tokio::test]
async fn who_may_not_relay_or_is_not_reached_gives_a_dial_that_says_so() {
    let (mut a, mut b, relay) = around().await;
    relay.mesh.set_relay(false);
    a.mesh.dial(b.key, vec!["127.0.0.1:9".parse().unwrap()]);
    loop {
        if let MeshEvent::DialFailed { peer, reason } = a.next().await {
            assert_eq!(peer, b.key);
            assert!(reason.contains("did not answer"), "{reason}");
            break;
        }
    }
    // And when it may again, the next dial finds it.
    relay.mesh.set_relay(true);
    a.mesh.dial(b.key, Vec::new());
    a.up().await;
    b.up().await;
}

#[tokio::test]
async fn relays_that_refuse_hide_none_that_does_not() {
    let (mut a, mut b) = (peer(1), peer(2));
    let mut relays = Vec::new();
    for n in 3..=6 {
        let mut relay = peer(n);
        for end in [&mut a, &mut b] {
            end.mesh.dial(relay.key, vec![relay.addr()]);
            end.up().await;
            relay.up().await;
            end.relays.lock().unwrap().push(relay.key);
        }
        relays.push(relay);
    }
    // Whichever are nearest: all but one refuse, by turns.
    for good in 0..relays.len() {
        for (n, relay) in relays.iter().enumerate() {
            relay.mesh.set_relay(n == good);
        }
        a.mesh.dial(b.key, Vec::new());
        let (at_a, _) = (a.up().await, b.up().await);
        assert_eq!(way(&a, &b), Some((PathKind::Relayed, Some(relays[good].key))), "{good}");
        a.mesh.close(at_a, "the next round".into());
        until("both know", || [&a, &b].iter().all(|p| p.mesh.snapshot().peers.len() == relays.len())).await;
    }
}

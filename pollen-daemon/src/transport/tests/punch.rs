//! Peers that reach each other through a third, and look for a straight way where others see them.

use pollen_common::mapping::{NatKind, Nats};
use pollen_common::wire::streams::punch::{Header, Standpoint};
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::circuits::{around, until, way};
use super::silence::{stream, through};
use super::*;
use crate::transport::PathKind;

/// A Hello's.
const PROBE_BYTES: usize = 82;
/// Probes that one round sends to one address in vain.
const PROBES_PER_ROUND: usize = 5;

/// Two peers with a connection through a third, neither of which knows an address of the other.
async fn relayed() -> (Peer, Peer, Peer) {
    let (mut a, mut b, relay) = around().await;
    a.mesh.dial(b.key, Vec::new());
    a.up().await;
    b.up().await;
    assert_eq!(way(&a, &b).map(|way| way.0), Some(PathKind::Relayed));
    (a, b, relay)
}

/// Asks `to` as `from` does, for a round at `candidates`; returns the first byte of the answer.
async fn ask(from: &Peer, to: &Peer, candidates: Vec<SocketAddr>) -> u8 {
    let connection = from.mesh.connection(to.key).await.expect("they are linked");
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    let me = Standpoint { nats: Nats::default(), candidates };
    send.write_all(&Header { punch: true, me }.opening()).await.unwrap();
    let mut first = [0];
    timeout(PATIENCE, recv.read_exact(&mut first)).await.expect("in time").expect("an answer");
    first[0]
}

/// How many probes come to `victim` until `deadline`.
async fn probes(victim: &UdpSocket, deadline: Duration) -> usize {
    let (until, mut count, mut bytes) = (Instant::now() + deadline, 0, [0; 2048]);
    while let Ok(Ok((len, _))) = tokio::time::timeout_at(until, victim.recv_from(&mut bytes)).await {
        assert_eq!(len, PROBE_BYTES);
        count += 1;
    }
    count
}

#[tokio::test]
async fn two_that_know_no_address_of_each_other_meet_where_the_third_sees_them() {
    let (a, mut b, relay) = relayed().await;
    let ((mut send, _keep), (_keep_too, mut recv)) = stream(&a, &mut b).await;
    through(&mut send, &mut recv, b"relayed").await;
    for end in [&a, &b] {
        end.punches.store(true, Ordering::Relaxed);
    }
    until("it is straight", || way(&a, &b).map(|way| way.0) == Some(PathKind::Direct)).await;
    until("for both", || way(&b, &a).map(|way| way.0) == Some(PathKind::Direct)).await;
    through(&mut send, &mut recv, b"straight").await;
    until("it is counted", || a.mesh.snapshot().punches.opened + b.mesh.snapshot().punches.opened >= 1).await;
    assert_eq!(relay.mesh.snapshot().punches.rounds, 0);
}

#[tokio::test]
async fn a_node_that_is_seen_where_it_is_says_so_to_its_peers() {
    let (mut a, mut b) = (peer(1), peer(2));
    a.punches.store(true, Ordering::Relaxed);
    let own = SocketAddr::from(([127, 0, 0, 1], a.addr().port()));
    a.announced.lock().unwrap().push(own);
    a.mesh.dial(b.key, vec![b.addr()]);
    a.up().await;
    b.up().await;
    until("b said it", || a.mesh.snapshot().punches.nats.v4 == NatKind::None).await;
    assert_eq!(a.mesh.snapshot().punches.nats.v6, NatKind::Unknown);
    // It tells with the next question.
    assert_eq!(ask(&b, &a, Vec::new()).await, 0);
    let of_b = |mesh: &Mesh| mesh.snapshot().peers.first().and_then(|peer| peer.nats);
    until("each was told of the other", || of_b(&a.mesh).is_some() && of_b(&b.mesh).is_some()).await;

    // It moves to behind a translator, which one report alone says nothing of.
    *a.announced.lock().unwrap() = vec!["192.0.2.1:1".parse().unwrap()];
    until("what was said before is forgotten", || a.mesh.snapshot().punches.nats.v4 == NatKind::Unknown).await;
}

#[tokio::test]
async fn a_member_that_names_a_stranger_again_and_again_gets_one_round_in_two_seconds() {
    let (a, b, _relay) = relayed().await;
    b.punches.store(true, Ordering::Relaxed);
    let victim = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = victim.local_addr().unwrap();
    let asking = async {
        let mut refused = 0;
        for _ in 0..40 {
            refused += usize::from(ask(&a, &b, vec![at]).await != 0);
        }
        refused
    };
    let (count, refused) = tokio::join!(probes(&victim, Duration::from_millis(1900)), asking);
    assert!((1..=PROBES_PER_ROUND).contains(&count), "{count} probes");
    assert!(refused >= 30, "{refused} of 40 questions were refused");
}

#[tokio::test]
async fn nobody_is_looked_for_on_loopback_or_while_the_peer_is_reached_straight() {
    let (a, b, _relay) = relayed().await;
    let victim = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let at = victim.local_addr().unwrap();
    assert_eq!(ask(&a, &b, vec![at]).await, 0);
    assert_eq!(probes(&victim, Duration::from_millis(500)).await, 0, "no node is a way to another machine's loopback");
    let (c, _, d, _) = linked().await;
    d.punches.store(true, Ordering::Relaxed);
    assert_eq!(ask(&c, &d, vec![at]).await, 0);
    assert_eq!(probes(&victim, Duration::from_millis(500)).await, 0);
}

#[tokio::test]
async fn a_stranger_is_told_nothing() {
    let (mut a, mut b) = (peer(1), peer_with(2, false, 64, |_| {}));
    a.mesh.dial(b.key, vec![b.addr()]);
    a.up().await;
    b.up().await;
    assert_eq!(ask(&a, &b, Vec::new()).await, 1);
}

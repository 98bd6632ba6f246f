//! How links come, go, and which of two stays.

use super::*;
use crate::transport::DialError;

#[tokio::test]
async fn two_meshes_connect_by_key_and_each_proves_the_other() {
    let (mut a, mut b) = (peer(1), peer(2));
    a.mesh.dial(b.key, vec![b.addr()]);
    assert!(matches!(a.next().await, MeshEvent::LinkUp { peer, dialed: true, .. } if peer == b.key));
    assert!(matches!(b.next().await, MeshEvent::LinkUp { peer, dialed: false, .. } if peer == a.key));
}

#[tokio::test]
async fn ipv6_loopback_works_and_of_several_addresses_the_one_that_answers_is_taken() {
    let (mut a, mut b) = (peer(1), peer(2));
    let nobody: SocketAddr = "127.0.0.1:9".parse().unwrap();
    a.mesh.dial(b.key, vec![nobody, b.addr_on(std::net::Ipv6Addr::LOCALHOST.into())]);
    a.up().await;
    b.up().await;
    let remote = a.mesh.snapshot().peers[0].remote.unwrap();
    assert_eq!(remote, b.addr_on(std::net::Ipv6Addr::LOCALHOST.into()));
}

#[tokio::test]
async fn a_wrong_key_is_refused_and_nothing_comes_up() {
    let (mut a, b) = (peer(1), peer(2));
    let other = SecretKey::from_seed(&[3; 32]).public();
    a.mesh.dial(other, vec![b.addr()]);
    let MeshEvent::DialFailed { peer, reason } = a.next().await else { panic!("a failed dial") };
    assert_eq!(peer, other);
    assert!(reason.contains(&b.addr().to_string()), "{reason}");
    assert!(b.dropped(crate::transport::DropReason::ProbeNotForUs) > 0);
    assert!(a.mesh.snapshot().peers.is_empty() && b.mesh.snapshot().peers.is_empty());
}

#[tokio::test]
async fn closing_delivers_what_was_sent_and_both_ends_learn_why() {
    let (mut a, at_a, mut b, at_b) = linked().await;
    a.mesh.send(at_a, vec![7; 300_000]);
    a.mesh.close(at_a, "no longer a member".into());
    assert_eq!(b.bytes(at_b, 300_000).await, vec![7; 300_000]);
    assert_eq!(b.down(at_b).await, "no longer a member");
    assert_eq!(a.down(at_a).await, "no longer a member");
    assert!(a.mesh.connection(b.key).await.is_none());
}

#[tokio::test]
async fn a_closed_link_can_be_dialled_again_at_once() {
    let (mut a, at_a, mut b, at_b) = linked().await;
    a.mesh.close(at_a, "again".into());
    a.mesh.dial(b.key, vec![b.addr()]);
    assert_ne!(a.up().await, at_a);
    assert_ne!(b.up().await, at_b);
}

#[tokio::test]
async fn a_killed_peer_is_noticed_by_silence() {
    let quick = |config: &mut MeshConfig| config.idle_timeout = Duration::from_millis(500);
    let (mut a, at_a, b, _) = link(peer_with(1, true, 64, quick), peer_with(2, true, 64, quick)).await;
    b.mesh.stop().await;
    assert_eq!(a.down(at_a).await, "timed out");
}

#[tokio::test]
async fn a_shutdown_is_told_at_once() {
    let (mut a, at_a, b, _) = linked().await;
    b.mesh.shutdown("going to sleep").await;
    assert_eq!(a.down(at_a).await, "going to sleep");
}

#[tokio::test]
async fn a_peer_that_was_killed_and_started_again_replaces_its_old_link() {
    let (mut b, _, mut a, at_a) = linked().await;
    let port = b.mesh.local_addr().unwrap().port();
    b.mesh.stop().await;
    drop(b);
    b = peer_with(1, true, 64, |config| config.port = port);
    // Its last link is not a second old, and dead: whoever dials again has lost what it had.
    b.mesh.dial(a.key, vec![a.addr()]);
    let why = a.down(at_a).await;
    assert!(["replaced by a newer connection", "reset by peer"].contains(&why.as_str()), "{why}");
    let (again, at_b) = (a.up().await, b.up().await);
    a.mesh.send(again, b"hello".to_vec());
    assert_eq!(b.bytes(at_b, 5).await, b"hello");
}

/// Looks in a row at which both ends must agree: a link that is only passing would be gone by then.
const AGREED_LOOKS: u32 = 20;

#[tokio::test]
async fn simultaneous_dials_leave_exactly_one_link_and_both_ends_agree_on_it() {
    for round in 0..20_u8 {
        let (a, b) = (peer(10 + round), peer(100 + round));
        a.mesh.dial(b.key, vec![b.addr()]);
        b.mesh.dial(a.key, vec![a.addr()]);
        let agreed = async {
            let mut looks = 0;
            while looks < AGREED_LOOKS {
                let of = |peer: &Peer| peer.mesh.snapshot().peers.iter().map(|p| p.dialed).collect::<Vec<_>>();
                let (at_a, at_b) = (of(&a), of(&b));
                // One link, dialled by one of them: by the smaller key if the dials did cross, and by whoever was
                // first if the other found itself linked before it began.
                let one = at_a.len() == 1 && at_b.len() == 1 && at_a != at_b;
                looks = if one { looks + 1 } else { 0 };
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, agreed).await.unwrap_or_else(|_| panic!("round {round}: two links, or none"));
    }
}

#[tokio::test]
async fn every_link_that_comes_up_goes_down_before_the_next_one_comes_up() {
    let (mut a, mut b) = (peer(1), peer(2));
    a.mesh.dial(b.key, vec![b.addr()]);
    b.mesh.dial(a.key, vec![a.addr()]);
    tokio::time::sleep(Duration::from_millis(500)).await;
    a.mesh.shutdown("over").await;
    b.mesh.shutdown("over").await;
    for peer in [&mut a, &mut b] {
        let mut current = None;
        while let Ok(event) = peer.events.try_recv() {
            match event {
                MeshEvent::LinkUp { link, .. } => assert_eq!(current.replace(link), None),
                MeshEvent::LinkDown { link, .. } => assert_eq!(current.take(), Some(link)),
                MeshEvent::LinkBytes { link, .. }
                | MeshEvent::LinkWritable { link }
                | MeshEvent::LinkDatagram { link, .. } => assert_eq!(current, Some(link)),
                MeshEvent::DialFailed { reason, .. } => panic!("{reason}"),
            }
        }
    }
}

#[tokio::test]
async fn many_who_want_the_same_peer_share_one_dial() {
    let (a, mut b) = (peer(1), peer(2));
    let wanted: Vec<_> = (0..50)
        .map(|_| {
            let (mesh, key, addr) = (a.mesh.clone(), b.key, b.addr());
            tokio::spawn(async move { mesh.connect(key, vec![addr]).await.unwrap().stable_id() })
        })
        .collect();
    let mut ids = std::collections::BTreeSet::new();
    for dial in wanted {
        ids.insert(dial.await.unwrap());
    }
    assert_eq!(ids.len(), 1);
    b.up().await;
    assert_eq!(b.mesh.snapshot().peers.len(), 1);
}

#[tokio::test]
async fn dials_that_cannot_succeed_fail_at_once_and_say_why() {
    let (a, b) = (peer(1), peer(2));
    assert!(matches!(a.mesh.connect(b.key, Vec::new()).await, Err(DialError::NoAddress)));
    assert!(matches!(a.mesh.connect(a.key, vec![a.addr()]).await, Err(DialError::Ourselves)));
}

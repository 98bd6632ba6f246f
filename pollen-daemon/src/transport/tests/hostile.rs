//! What strangers and hostile peers send.

use super::*;
use crate::transport::{DropReason, code, open_stream};
use pollen_common::path_probe::{Cookie, Nonce, Probe};
use tokio::net::UdpSocket;

async fn stranger(to: &Peer) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(to.addr()).await.unwrap();
    socket
}

async fn answer(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 2000];
    let len = timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    buffer[..len].to_vec()
}

/// Proves `secret` at the socket, as a well-behaved node would; returns the bind that did it.
async fn bind(socket: &UdpSocket, secret: &SecretKey, to: &Peer) -> Vec<u8> {
    let nonce = Nonce([5; 16]);
    socket.send(&Probe::Hello { from: secret.public(), to: to.key, nonce }.encode()).await.unwrap();
    let Ok(Probe::Challenge { cookie, .. }) = Probe::decode(&answer(socket).await) else { panic!("a challenge") };
    let bind = Probe::bind(secret, to.key, nonce, cookie).encode();
    socket.send(&bind).await.unwrap();
    assert!(matches!(Probe::decode(&answer(socket).await), Ok(Probe::Bound { .. })));
    bind
}

/// A QUIC initial of a version nobody speaks, long enough that a QUIC endpoint answers it.
fn quic_initial() -> Vec<u8> {
    let mut packet = vec![0; 1200];
    packet[..6].copy_from_slice(&[0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8]);
    packet[14] = 8;
    packet
}

#[tokio::test]
async fn garbage_is_counted_by_reason_and_disturbs_no_live_link() {
    let (a, at_a, mut b, at_b) = linked().await;
    let socket = stranger(&b).await;
    socket.send(&[0x01, 0, 0, 1, 0, 0, 0, 1, 0x40]).await.unwrap();
    socket.send(&[]).await.unwrap();
    socket.send(&[0x00; 40]).await.unwrap();
    socket.send(&vec![0x3f; 60_000]).await.unwrap();
    socket.send(&[0x02]).await.unwrap();
    socket.send(&Probe::Challenge { nonce: Nonce([0; 16]), cookie: Cookie([0; 16]) }.encode()).await.unwrap();
    socket.send(&Probe::Hello { from: a.key, to: a.key, nonce: Nonce([0; 16]) }.encode()).await.unwrap();
    b.sees(DropReason::CircuitLabel, 1).await;
    b.sees(DropReason::UnknownFrame, 3).await;
    b.sees(DropReason::ProbeMalformed, 1).await;
    b.sees(DropReason::ProbeUnexpected, 1).await;
    b.sees(DropReason::ProbeNotForUs, 1).await;
    a.mesh.send(at_a, b"unmoved".to_vec());
    assert_eq!(b.bytes(at_b, 7).await, b"unmoved");
    assert_eq!(b.mesh.snapshot().sources_bound, 1);
}

#[tokio::test]
async fn quic_is_answered_from_a_bound_source_and_gets_nothing_from_any_other() {
    let b = peer(2);
    let secret = SecretKey::from_seed(&[3; 32]);
    let (bound, unbound) = (stranger(&b).await, stranger(&b).await);
    bind(&bound, &secret, &b).await;
    unbound.send(&quic_initial()).await.unwrap();
    b.sees(DropReason::UnboundSource, 1).await;
    // The endpoint is there and answers: a version negotiation, to the bound source only.
    bound.send(&quic_initial()).await.unwrap();
    assert_eq!(answer(&bound).await[1..5], [0; 4]);
    assert_eq!(unbound.try_recv(&mut [0; 100]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn a_bind_replayed_from_another_source_binds_nothing() {
    let b = peer(2);
    let secret = SecretKey::from_seed(&[3; 32]);
    let bind = bind(&stranger(&b).await, &secret, &b).await;
    let thief = stranger(&b).await;
    thief.send(&bind).await.unwrap();
    b.sees(DropReason::ProbeCookie, 1).await;
    thief.send(&quic_initial()).await.unwrap();
    b.sees(DropReason::UnboundSource, 1).await;
    assert_eq!(b.mesh.snapshot().sources_bound, 1);
}

#[tokio::test]
async fn a_bound_node_cannot_connect_under_another_key() {
    let b = peer(2);
    let (bound, other) = (SecretKey::from_seed(&[3; 32]), SecretKey::from_seed(&[4; 32]));
    // Proves one key for the path, presents another to TLS.
    let liar = peer_with(3, true, 64, |_| {});
    let tls = crate::transport::tls::Tls::new(&other).unwrap();
    let mut proving = liar.mesh.0.path.prove(b.key, &[b.addr().into()], Nonce([1; 16])).unwrap();
    timeout(PATIENCE, proving.proved()).await.unwrap();
    assert_eq!(liar.key, bound.public());
    let client = crate::transport::endpoint::client(&tls, b.key, PATIENCE).unwrap();
    let address = crate::transport::path::address::VirtualAddr::of(&b.key).to_socket();
    let connection = liar.mesh.0.endpoint.connect_with(client, address, "pln").unwrap();
    if let Ok(connection) = connection.await {
        let quinn::ConnectionError::ApplicationClosed(close) = connection.closed().await else { panic!("closed") };
        assert_eq!(close.error_code, quinn::VarInt::from_u32(code::WRONG_KEY));
    }
    b.sees(DropReason::Handshake, 1).await;
    assert!(b.mesh.snapshot().peers.is_empty());
}

#[tokio::test]
async fn a_peer_refuses_to_be_another_than_the_one_dialled() {
    // B holds key 2 on the path, but its TLS presents key 4: the dialler must notice.
    let a = peer(1);
    let b = peer(2);
    let imposter = crate::transport::tls::Tls::new(&SecretKey::from_seed(&[4; 32])).unwrap();
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(imposter.server().unwrap()).unwrap();
    b.mesh.0.endpoint.set_server_config(Some(quinn::ServerConfig::with_crypto(Arc::new(crypto))));
    let result = a.mesh.connect(b.key, vec![b.addr()]).await;
    assert!(matches!(result, Err(crate::transport::DialError::Handshake(_))), "{result:?}");
}

#[tokio::test]
async fn streams_of_unknown_kind_are_refused_and_a_second_link_stream_ends_the_link() {
    let (a, _, mut b, at_b) = linked().await;
    let connection = a.mesh.connection(b.key).await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&[99]).await.unwrap();
    let refused = recv.read(&mut [0; 1]).await.unwrap_err();
    assert!(matches!(refused, quinn::ReadError::Reset(c) if c == quinn::VarInt::from_u32(code::UNKNOWN_KIND)));
    b.sees(DropReason::StreamKind, 1).await;
    let _second = open_stream(&connection, StreamKind::Link).await.unwrap();
    assert_eq!(b.down(at_b).await, "a second link stream");
}

#[tokio::test]
async fn a_dialler_that_opens_no_link_stream_is_closed() {
    let (liar, b) = (peer(1), peer(2));
    let mut proving = liar.mesh.0.path.prove(b.key, &[b.addr().into()], Nonce([1; 16])).unwrap();
    timeout(PATIENCE, proving.proved()).await.unwrap();
    let client = crate::transport::endpoint::client(&liar.mesh.0.tls, b.key, PATIENCE).unwrap();
    let address = crate::transport::path::address::VirtualAddr::of(&b.key).to_socket();
    let connection = liar.mesh.0.endpoint.connect_with(client, address, "pln").unwrap().await.unwrap();
    assert!(timeout(PATIENCE, connection.closed()).await.unwrap().to_string().contains("not opened in time"));
    assert_eq!(b.dropped(DropReason::StreamTimeout), 1);
}

#[tokio::test]
async fn datagrams_of_unknown_kind_are_counted() {
    let (a, _, b, _) = linked().await;
    let connection = a.mesh.connection(b.key).await.unwrap();
    connection.send_datagram(Bytes::from_static(&[9, 9])).unwrap();
    connection.send_datagram(Bytes::new()).unwrap();
    b.sees(DropReason::DatagramKind, 2).await;
}

#[tokio::test]
async fn probes_beyond_what_the_driver_takes_are_dropped_and_counted() {
    let (a, at_a, b, _) = link(peer(1), peer_with(2, true, 1, |_| {})).await;
    let flood = async {
        while b.dropped(DropReason::DriverBusy) == 0 {
            a.mesh.send_datagram(at_a, vec![0; 10]);
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, flood).await.unwrap();
}

#[tokio::test]
async fn strangers_take_their_own_places_and_never_a_members() {
    let mut b = peer_with(2, false, 64, |config| config.strangers_max = 2);
    let first = linked_to(&mut b, 3).await;
    let _second = linked_to(&mut b, 4).await;
    let (third, refused) = (peer(5), b.dropped(DropReason::ConnectionsFull));
    third.mesh.dial(b.key, vec![b.addr()]);
    b.sees(DropReason::ConnectionsFull, refused + 1).await;
    // One that comes again replaces itself.
    drop(first);
    let _again = linked_to(&mut b, 3).await;
    // One that we dialled takes nobody's place.
    let mut dialled = peer(6);
    b.mesh.dial(dialled.key, vec![dialled.addr()]);
    b.up().await;
    dialled.up().await;
}

#[tokio::test]
async fn members_are_no_strangers() {
    let mut b = peer_with(2, true, 64, |config| config.strangers_max = 0);
    let _member = linked_to(&mut b, 3).await;
    assert_eq!(b.dropped(DropReason::ConnectionsFull), 0);
}

/// A peer that has dialled `b`, and the link's number there.
async fn linked_to(b: &mut Peer, seed: u8) -> (Peer, LinkId) {
    let mut a = peer(seed);
    a.mesh.dial(b.key, vec![b.addr()]);
    a.up().await;
    let at_b = b.up().await;
    (a, at_b)
}

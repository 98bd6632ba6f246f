//! UDP through the mesh: every size, every client its own replies, sessions that end.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use pollen_common::views::Protocol;
use pollen_common::wire::streams::payload::PAYLOAD_BYTES_MAX;
use tokio::net::UdpSocket;

use super::cluster::{Cluster, SOON};
use crate::services::idle::IdleLimits;

/// So that sessions end while a test waits.
const BRIEF: IdleLimits = IdleLimits { unreplied: Duration::from_millis(300), replied: Duration::from_millis(300) };

/// A server that sends every payload back. Returns its port.
async fn echo() -> u16 {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
    crate::services::session::enlarge_buffers(&socket);
    let port = socket.local_addr().expect("bound").port();
    tokio::spawn(async move {
        let mut bytes = vec![0; 1 << 16];
        while let Ok((length, client)) = socket.recv_from(&mut bytes).await {
            let _ = socket.send_to(&bytes[..length], client).await;
        }
    });
    port
}

async fn client(to: SocketAddr) -> UdpSocket {
    client_from([127, 0, 0, 1].into(), to).await
}

async fn client_from(ip: IpAddr, to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((ip, 0)).await.expect("loopback");
    crate::services::session::enlarge_buffers(&socket);
    socket.connect(to).await.expect("loopback");
    socket
}

/// Sends `payload` until its echo comes: UDP may lose it. Anything else that comes is a reply of somebody else.
async fn exchange(socket: &UdpSocket, payload: &[u8]) {
    let mut bytes = vec![0; 1 << 16];
    let patience = async {
        loop {
            socket.send(payload).await.expect("loopback");
            if let Ok(length) = tokio::time::timeout(Duration::from_secs(2), socket.recv(&mut bytes)).await {
                return length.expect("no refusal");
            }
        }
    };
    let length = tokio::time::timeout(SOON, patience).await.expect("in time");
    assert!(bytes[..length] == *payload, "{} bytes came back for {}", length, payload.len());
}

#[tokio::test]
async fn fifty_clients_each_get_exactly_their_own_replies_of_every_size() {
    let cluster = Cluster::start(2);
    let addr = cluster.serve_and_connect("echo", Protocol::Udp, echo().await);
    let clients = (0..50usize).map(|index| async move {
        let socket = client(addr).await;
        let sizes = [1, 0, 100, 1180, 1400, 1500, 9000, 65_000, PAYLOAD_BYTES_MAX - index, PAYLOAD_BYTES_MAX];
        for size in sizes {
            let payload: Vec<u8> = (0..size).map(|at| (at * 7 + index).to_le_bytes()[0]).collect();
            exchange(&socket, &payload).await;
        }
        // Whatever was sent twice has come back twice, and nothing else has come.
        let mut bytes = vec![0; 1 << 16];
        while let Ok(Ok(length)) = tokio::time::timeout(Duration::from_millis(100), socket.recv(&mut bytes)).await {
            let own = (0..length).all(|at| bytes[at] == (at * 7 + index).to_le_bytes()[0]);
            assert!(own, "client {index} got somebody else's reply");
        }
    });
    futures_util::future::join_all(clients).await;
    assert_eq!(cluster.0[1].services.numbers().sessions_open, 50);
    assert_eq!(cluster.0[0].services.numbers().sessions, 50);
}

#[tokio::test]
async fn a_session_ends_when_it_is_idle_and_a_later_payload_opens_another() {
    let cluster = Cluster::start_with(2, BRIEF);
    let addr = cluster.serve_and_connect("echo", Protocol::Udp, echo().await);
    let socket = client(addr).await;
    for times in 1..=2 {
        exchange(&socket, b"hello").await;
        assert!(cluster.0[1].services.numbers().sessions >= times);
        for node in &cluster.0 {
            node.until("the session is over", |services| services.numbers().sessions_open == 0).await;
        }
    }
}

#[tokio::test]
async fn a_dead_server_is_passed_over_before_anything_is_lost() {
    let cluster = Cluster::start(3);
    let (first, second) = (cluster.key(0), cluster.key(1));
    let port = echo().await;
    let dead = UdpSocket::bind("127.0.0.1:0").await.expect("loopback").local_addr().expect("bound").port();
    cluster.0[0].serve(Some("dns"), Protocol::Udp, dead);
    cluster.0[1].serve(Some("dns"), Protocol::Udp, port);
    cluster.publish(|view| view.service("dns", Protocol::Udp, &[(first, dead), (second, port)]));
    let addr = cluster.0[2].connect("dns");
    for _ in 0..10 {
        // One payload, no second try.
        let socket = client(addr).await;
        socket.send(b"question").await.expect("loopback");
        let mut bytes = [0; 16];
        let length = tokio::time::timeout(SOON, socket.recv(&mut bytes)).await.expect("in time").expect("no refusal");
        assert_eq!(&bytes[..length], b"question");
    }
}

#[tokio::test]
async fn a_provider_on_the_same_node_serves_udp_without_the_mesh() {
    let cluster = Cluster::start(1);
    let port = echo().await;
    let me = cluster.key(0);
    cluster.0[0].serve(Some("echo"), Protocol::Udp, port);
    cluster.publish(|view| view.service("echo", Protocol::Udp, &[(me, port)]));
    let socket = client(cluster.0[0].connect("echo")).await;
    for size in [0, 1, 1000, PAYLOAD_BYTES_MAX] {
        exchange(&socket, &vec![3; size]).await;
    }
}

/// A server that answers on a thread of its own, at an address.
fn echo_at(ip: IpAddr) -> u16 {
    let socket = std::net::UdpSocket::bind((ip, 0)).expect("an address of this machine");
    crate::services::session::enlarge_buffers(&socket);
    let port = socket.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        let mut bytes = vec![0; 1 << 16];
        while let Ok((length, client)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(&bytes[..length], client);
        }
    });
    port
}

#[tokio::test]
async fn a_thousand_payloads_at_once_all_arrive_and_come_back() {
    const BURST: u32 = 1000;
    let cluster = Cluster::start(2);
    let addr = cluster.serve_and_connect("echo", Protocol::Udp, echo_at([127, 0, 0, 1].into()));
    for (size, warm) in [(8, false), (8, true), (1200, true), (1200, false)] {
        let socket = client(addr).await;
        if warm {
            exchange(&socket, b"hello").await;
        }
        let sent = std::net::UdpSocket::from(socket.into_std().map(std::os::fd::OwnedFd::from).expect("a socket"));
        let socket = UdpSocket::from_std(sent.try_clone().expect("a socket")).expect("a socket");
        for number in 0..BURST {
            let mut payload = vec![0; size];
            payload[..4].copy_from_slice(&number.to_be_bytes());
            // Without a pause in which anything else could run.
            while sent.send(&payload).is_err() {}
        }
        let mut came = BTreeSet::new();
        let mut bytes = [0; 1500];
        while came.len() < BURST as usize {
            let length = tokio::time::timeout(SOON, socket.recv(&mut bytes)).await;
            let length = length.unwrap_or_else(|_| panic!("{} of {BURST} of {size} bytes", came.len()));
            assert_eq!(length.expect("no refusal"), size);
            came.insert(bytes[..4].to_vec());
        }
    }
    for node in &cluster.0 {
        assert!(node.services.drops().is_empty(), "{:?}", node.services.drops());
    }
}

#[tokio::test]
async fn more_clients_than_there_are_places_are_all_answered_and_the_idlest_go() {
    let fresh = crate::services::live::SESSIONS_PER_PEER_MAX + 500;
    let cluster = Cluster::start(2);
    let addr = cluster.serve_and_connect("echo", Protocol::Udp, echo_at([127, 0, 0, 1].into()));
    crate::services::live::raise_file_limit();
    let first = client(addr).await;
    exchange(&first, b"first").await;
    for number in 0..fresh {
        // From addresses that differ, because ports come again.
        let [.., high, low] = number.to_be_bytes();
        exchange(&client_from([127, 1, high, low].into(), addr).await, &number.to_be_bytes()).await;
        if number % 1000 == 0 {
            exchange(&first, b"still here").await;
        }
    }
    let numbers = cluster.0[1].services.numbers();
    assert_eq!(numbers.sessions_open, crate::services::live::SESSIONS_PER_PEER_MAX as u64);
    assert_eq!(numbers.sessions, fresh as u64 + 1, "the first was never given up");
    assert!(numbers.dropped["session_given_up"] >= 500, "{:?}", numbers.dropped);
    assert_eq!(numbers.dropped.len(), 1, "{:?}", numbers.dropped);
}

#[tokio::test]
async fn a_server_gets_its_payloads_at_whatever_address_of_the_machine_it_is() {
    let cluster = Cluster::start(2);
    for (index, text) in ["127.0.0.1", "0.0.0.0", "::", "::1", "::ffff:0.0.0.0", "::ffff:127.0.0.1", "127.0.0.77"]
        .into_iter()
        .enumerate()
    {
        let port = echo_at(text.parse().expect("an address"));
        let addr = cluster.serve_and_connect(&format!("echo-{index}"), Protocol::Udp, port);
        exchange(&client(addr).await, text.as_bytes()).await;
    }
}

#[tokio::test]
async fn a_payload_that_meets_the_end_of_a_session_is_not_lost() {
    let idle = Duration::from_millis(40);
    let cluster = Cluster::start_with(2, IdleLimits { unreplied: idle, replied: idle });
    let addr = cluster.serve_and_connect("echo", Protocol::Udp, echo_at([127, 0, 0, 1].into()));
    let socket = client(addr).await;
    for try_ in 0..100u32 {
        socket.send(&try_.to_be_bytes()).await.expect("loopback");
        let mut bytes = [0; 16];
        let length = tokio::time::timeout(SOON, socket.recv(&mut bytes)).await;
        assert_eq!(&bytes[..length.expect("not lost").expect("no refusal")], try_.to_be_bytes());
        // About the end, before and behind it.
        tokio::time::sleep(idle + Duration::from_micros(100) * (try_ % 40) - Duration::from_millis(2)).await;
    }
    assert!(cluster.0[1].services.numbers().sessions > 10, "it did meet the end of sessions");
}

#[tokio::test]
async fn what_a_server_says_long_after_its_first_answer_still_arrives() {
    let limits = IdleLimits { unreplied: Duration::from_millis(100), replied: SOON };
    let cluster = Cluster::start_with(2, limits);
    let server = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
    let port = server.local_addr().expect("bound").port();
    let socket = client(cluster.serve_and_connect("push", Protocol::Udp, port)).await;
    socket.send(b"subscribe").await.expect("loopback");
    let mut bytes = [0; 16];
    let (_, from) = tokio::time::timeout(SOON, server.recv_from(&mut bytes)).await.expect("in time").expect("open");
    for word in [&b"yes"[..], b"news"] {
        server.send_to(word, from).await.expect("loopback");
        let length = tokio::time::timeout(SOON, socket.recv(&mut bytes)).await.expect("in time").expect("open");
        assert_eq!(&bytes[..length], word);
        tokio::time::sleep(limits.unreplied * 3).await;
    }
}

#[tokio::test]
async fn a_service_at_its_own_listener_is_noticed_and_nothing_goes_round() {
    let cluster = Cluster::start(2);
    let (a, b) = (cluster.key(0), cluster.key(1));
    // The simplest: a listener for the service at the port that it serves.
    cluster.publish(|view| view.service("own", Protocol::Udp, &[(a, 1)]));
    let own = cluster.0[0].connect("own");
    cluster.0[0].serve(Some("own"), Protocol::Udp, own.port());
    let socket = client(own).await;
    socket.send(b"round").await.expect("loopback");
    let drops = |index: usize| cluster.0[index].services.drops().get("no_provider").copied().unwrap_or_default();
    cluster.0[0].until("it is dropped", |_| drops(0) > 0).await;
    // Over another node.
    cluster.publish(|view| view.service("x", Protocol::Udp, &[(a, 1)]).service("y", Protocol::Udp, &[(b, 1)]));
    let (at_a, at_b) = (cluster.0[0].connect("y"), cluster.0[1].connect("x"));
    cluster.0[0].serve(Some("x"), Protocol::Udp, at_a.port());
    cluster.0[1].serve(Some("y"), Protocol::Udp, at_b.port());
    let socket = client(at_a).await;
    for _ in 0..20 {
        socket.send(b"round").await.expect("loopback");
    }
    let refused = |index: usize| cluster.0[index].services.refusals().get("circle").copied().unwrap_or_default();
    cluster.0[0].until("the circle is seen", |_| refused(0) + refused(1) > 0).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let carried = || -> u64 { cluster.0.iter().map(|node| node.services.numbers().bytes_out).sum() };
    let before = carried();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(carried(), before, "nothing goes round");
    let sessions: u64 = cluster.0.iter().map(|node| node.services.numbers().sessions).sum();
    assert!(sessions < 100, "{sessions}");
}

#[tokio::test]
async fn the_first_payload_travels_along_with_the_opening_and_is_given_to_the_next_if_that_is_refused() {
    let cluster = Cluster::start(3);
    let (first, second) = (cluster.key(0), cluster.key(1));
    let port = echo_at([127, 0, 0, 1].into());
    // The first knows nothing of it, and so refuses what came with the payload.
    cluster.0[1].serve(Some("dns"), Protocol::Udp, port);
    cluster.publish(|view| view.service("dns", Protocol::Udp, &[(first, port), (second, port)]));
    let addr = cluster.0[2].connect("dns");
    for size in [8, 1200, 40_000, PAYLOAD_BYTES_MAX] {
        let (socket, payload) = (client(addr).await, vec![5; size]);
        socket.send(&payload).await.expect("loopback");
        let mut bytes = vec![0; 1 << 16];
        let length = tokio::time::timeout(SOON, socket.recv(&mut bytes)).await.expect("in time").expect("no refusal");
        assert!(bytes[..length] == payload);
    }
    let numbers = || cluster.0[2].services.numbers();
    // What came back is counted behind its sending.
    cluster.0[2].until("all is counted", |_| numbers().bytes_in == numbers().bytes_out).await;
    assert_eq!((numbers().sessions, numbers().dropped.len()), (4, 0));
}

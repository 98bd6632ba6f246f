//! TCP through the mesh: ends, resets, back-pressure, many at once, several providers.

use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use pollen_common::views::Protocol;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::cluster::{Cluster, SOON, expect_reset, expect_reset_at};
use super::view::ViewBuilder;
use crate::services::{Connect, Disconnect, ServiceRef};
use crate::services::{Services, ServicesConfig};

/// A server that gives each connection to `serve`. Returns its port.
pub(super) async fn server<F, S>(serve: S) -> u16
where
    F: Future<Output = ()> + Send + 'static,
    S: Fn(TcpStream) -> F + Send + Sync + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let socket = SockRef::from(&listener).try_clone().expect("a duplicate");
    // A thousand may come at once.
    socket.listen(2048).expect("listening already");
    let port = listener.local_addr().expect("bound").port();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(serve(tcp));
        }
    });
    port
}

/// Sends back what it reads, and ends when its client ends.
pub(super) async fn echo(mut tcp: TcpStream) {
    let (mut reader, mut writer) = tcp.split();
    let _ = tokio::io::copy(&mut reader, &mut writer).await;
}

/// Says `who` and ends.
async fn say(who: &'static str, mut tcp: TcpStream) {
    let _ = tcp.write_all(who.as_bytes()).await;
}

fn reset(tcp: TcpStream) {
    SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).expect("a socket");
}

async fn read_all(mut tcp: TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    tokio::time::timeout(SOON, tcp.read_to_end(&mut bytes)).await.expect("in time").map(|_| bytes)
}

pub(super) async fn dial(addr: SocketAddr) -> TcpStream {
    TcpStream::connect(addr).await.expect("a listener")
}

#[tokio::test]
async fn a_client_that_ends_its_half_still_gets_the_whole_answer() {
    let cluster = Cluster::start(2);
    let port = server(|mut tcp| async move {
        let mut request = Vec::new();
        tcp.read_to_end(&mut request).await.expect("the client's half ends");
        tcp.write_all(&request.repeat(100_000)).await.expect("the other half is open");
    })
    .await;
    let addr = cluster.serve_and_connect("api", Protocol::Tcp, port);
    let mut tcp = dial(addr).await;
    tcp.write_all(b"0123456789").await.expect("open");
    tcp.shutdown().await.expect("open");
    assert_eq!(read_all(tcp).await.expect("an orderly end"), b"0123456789".repeat(100_000));
}

#[tokio::test]
async fn a_server_that_ends_first_still_hears_its_client() {
    let cluster = Cluster::start(2);
    let (heard, mut hears) = tokio::sync::mpsc::channel(1);
    let port = server(move |mut tcp| {
        let heard = heard.clone();
        async move {
            tcp.shutdown().await.expect("open");
            let mut bytes = Vec::new();
            tcp.read_to_end(&mut bytes).await.expect("the client ends in good order");
            heard.send(bytes).await.expect("somebody waits");
        }
    })
    .await;
    let addr = cluster.serve_and_connect("api", Protocol::Tcp, port);
    let mut tcp = dial(addr).await;
    assert_eq!(tcp.read(&mut [0; 1]).await.expect("an orderly end"), 0);
    tcp.write_all(b"still here").await.expect("open");
    drop(tcp);
    assert_eq!(tokio::time::timeout(SOON, hears.recv()).await.expect("in time"), Some(b"still here".to_vec()));
    for node in &cluster.0 {
        node.until("the stream is over", |services| services.numbers().streams_open == 0).await;
    }
}

#[tokio::test]
async fn a_reset_by_the_server_arrives_as_a_reset() {
    let cluster = Cluster::start(2);
    let port = server(|mut tcp| async move {
        tcp.read_exact(&mut [0; 1]).await.expect("a byte");
        tcp.write_all(b"half an ans").await.expect("open");
        tokio::time::sleep(Duration::from_millis(50)).await;
        reset(tcp);
    })
    .await;
    let addr = cluster.serve_and_connect("api", Protocol::Tcp, port);
    let mut tcp = dial(addr).await;
    tcp.write_all(b"?").await.expect("open");
    assert_eq!(read_all(tcp).await.expect_err("no orderly end").kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reset_by_the_client_arrives_as_a_reset_even_after_its_half_ended() {
    for ends_half in [false, true] {
        let cluster = Cluster::start(2);
        let (ended, mut ends) = tokio::sync::mpsc::channel(1);
        let port = server(move |mut tcp| {
            let ended = ended.clone();
            async move {
                let mut bytes = Vec::new();
                let first = tcp.read_to_end(&mut bytes).await.map(|_| ());
                // After an orderly half only an error on the socket tells.
                let error = match first {
                    Err(error) => Some(error),
                    Ok(()) => loop {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        if let Err(error) = tcp.write_all(b"x").await {
                            break Some(error);
                        }
                    },
                };
                ended.send(error.map(|error| error.kind())).await.expect("somebody waits");
            }
        })
        .await;
        let addr = cluster.serve_and_connect("api", Protocol::Tcp, port);
        let mut tcp = dial(addr).await;
        tcp.write_all(b"hello").await.expect("open");
        if ends_half {
            tcp.shutdown().await.expect("open");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        reset(tcp);
        let kind = tokio::time::timeout(SOON, ends.recv()).await.expect("in time").flatten();
        let wanted = [Some(ErrorKind::ConnectionReset), Some(ErrorKind::BrokenPipe)];
        assert!(wanted.contains(&kind), "half ended: {ends_half}, server saw {kind:?}");
    }
}

#[tokio::test]
async fn bulk_arrives_unchanged() {
    const BLOCKS: usize = 1000;
    const BLOCK: usize = 64 * 1024 + 7;
    fn block(index: usize) -> Vec<u8> {
        (0..BLOCK).map(|at| (at * 31 + index * 17).to_le_bytes()[0] ^ (at >> 8).to_le_bytes()[0]).collect()
    }
    let cluster = Cluster::start(2);
    let port = server(|mut tcp| async move {
        for index in 0..BLOCKS {
            tcp.write_all(&block(index)).await.expect("open");
        }
    })
    .await;
    let addr = cluster.serve_and_connect("bulk", Protocol::Tcp, port);
    let mut tcp = dial(addr).await;
    let mut got = vec![0; BLOCK];
    for index in 0..BLOCKS {
        tcp.read_exact(&mut got).await.expect("open");
        assert!(got == block(index), "block {index}");
    }
    assert_eq!(tcp.read(&mut got).await.expect("an orderly end"), 0);
    let total = (BLOCKS * BLOCK) as u64;
    cluster.0[0].until("all was counted", |services| services.numbers().bytes_out == total).await;
    assert_eq!(cluster.0[1].services.numbers().bytes_in, total);
}

#[tokio::test]
async fn a_reader_that_stops_stops_the_writer_and_then_gets_everything() {
    /// What two nodes, one stream window and four sockets may hold together.
    const HELD_MAX: u64 = 16 << 20;
    let cluster = Cluster::start(2);
    let (wrote, written) = tokio::sync::watch::channel(0u64);
    let port = server(move |mut tcp| {
        let wrote = wrote.clone();
        async move {
            let block = vec![7; 1 << 16];
            for _ in 0..512 {
                tcp.write_all(&block).await.expect("open");
                wrote.send_modify(|total| *total += block.len() as u64);
            }
        }
    })
    .await;
    let addr = cluster.serve_and_connect("bulk", Protocol::Tcp, port);
    let tcp = dial(addr).await;
    let mut before = u64::MAX;
    while before != *written.borrow() {
        before = *written.borrow();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(before > 0 && before < HELD_MAX, "{before} bytes were taken from the server with nobody reading");
    assert_eq!(read_all(tcp).await.expect("an orderly end").len(), 512 << 16);
}

#[tokio::test]
async fn a_client_that_gives_up_on_a_server_that_does_not_read_leaves_nothing_behind() {
    let cluster = Cluster::start(2);
    let (over, mut is_over) = tokio::sync::mpsc::unbounded_channel();
    let port = server(move |tcp| {
        let over = over.clone();
        async move {
            // It never reads: only a reset shows, and only if the provider sends one without being read.
            let ended = tcp.ready(tokio::io::Interest::ERROR).await;
            let _test_over = over.send(ended.is_ok());
        }
    })
    .await;
    let addr = cluster.serve_and_connect("hangs", Protocol::Tcp, port);
    for _ in 0..3 {
        let mut tcp = dial(addr).await;
        let block = vec![7; 1 << 16];
        // Until nothing on the way takes any more.
        while tokio::time::timeout(Duration::from_millis(300), tcp.write_all(&block)).await.is_ok() {}
        reset(tcp);
        assert_eq!(tokio::time::timeout(SOON, is_over.recv()).await, Ok(Some(true)));
    }
}

#[tokio::test]
async fn a_thousand_connections_work_at_once() {
    let cluster = Cluster::start(2);
    let port = server(echo).await;
    let addr = cluster.serve_and_connect("echo", Protocol::Tcp, port);
    let all = std::sync::Arc::new(tokio::sync::Barrier::new(1000));
    let clients = (0..1000u32).map(|client| {
        let all = std::sync::Arc::clone(&all);
        tokio::spawn(async move {
            let mut tcp = dial(addr).await;
            let mut message = client.to_be_bytes().repeat(256);
            tcp.write_all(&message).await.expect("open");
            let mut answer = vec![0; message.len()];
            tcp.read_exact(&mut answer).await.expect("an answer");
            assert_eq!(answer, message, "client {client}");
            all.wait().await;
            // All are open now: each still works.
            message.reverse();
            tcp.write_all(&message).await.expect("open");
            tcp.read_exact(&mut answer).await.expect("an answer");
            assert_eq!(answer, message, "client {client}");
        })
    });
    let clients = futures_util::future::join_all(clients);
    for client in tokio::time::timeout(3 * SOON, clients).await.expect("in time") {
        client.expect("no client failed");
    }
    assert_eq!(cluster.0[0].services.numbers().streams, 1000);
    for node in &cluster.0 {
        node.until("all streams are over", |services| services.numbers().streams_open == 0).await;
    }
}

#[tokio::test]
async fn a_provider_that_fails_is_passed_over_and_the_reason_kept() {
    let cluster = Cluster::start(3);
    let (first, second) = (cluster.key(0), cluster.key(1));
    let port = server(|tcp| say("second", tcp)).await;
    // Nobody listens behind the first provider.
    let dead = TcpListener::bind("127.0.0.1:0").await.expect("loopback").local_addr().expect("bound").port();
    cluster.0[0].serve(Some("api"), Protocol::Tcp, dead);
    cluster.0[1].serve(Some("api"), Protocol::Tcp, port);
    cluster.publish(|view| view.service("api", Protocol::Tcp, &[(first, dead), (second, port)]));
    let addr = cluster.0[2].connect("api");
    for _ in 0..20 {
        assert_eq!(read_all(dial(addr).await).await.expect("an orderly end"), b"second");
    }
    let refused = cluster.0[0].services.refusals().get("unavailable").copied().unwrap_or_default();
    assert!(refused < 20, "a provider that failed is not asked again at once, but was asked {refused} times");
    let why = cluster.0[2].services.why(&"api".parse().expect("a name")).join("\n");
    assert!(why.contains(&second.short()), "{why}");
}

#[tokio::test]
async fn new_connections_spread_over_equal_providers() {
    let cluster = Cluster::start(3);
    let (first, second) = (cluster.key(0), cluster.key(1));
    let one = server(|tcp| say("one", tcp)).await;
    let two = server(|tcp| say("two", tcp)).await;
    cluster.0[0].serve(Some("api"), Protocol::Tcp, one);
    cluster.0[1].serve(Some("api"), Protocol::Tcp, two);
    cluster.publish(|view| view.service("api", Protocol::Tcp, &[(first, one), (second, two)]));
    let addr = cluster.0[2].connect("api");
    let mut ones = 0;
    for _ in 0..60 {
        ones += u32::from(read_all(dial(addr).await).await.expect("an orderly end") == b"one");
    }
    // By lot: 60 throws all alike happen once in 10^17.
    assert!((1..60).contains(&ones), "{ones} of 60");
    // One that is known to be offline, or about to leave, is not asked while another is there.
    let both = |view: ViewBuilder| view.service("api", Protocol::Tcp, &[(first, one), (second, two)]);
    for leaving in [ViewBuilder::offline, ViewBuilder::draining] {
        cluster.publish(|view| leaving(both(view), first));
        for _ in 0..10 {
            assert_eq!(read_all(dial(addr).await).await.expect("an orderly end"), b"two");
        }
    }
}

#[tokio::test]
async fn a_silent_provider_costs_seconds_and_not_the_connection() {
    let cluster = Cluster::start(3);
    let (silent, second) = (cluster.key(0), cluster.key(1));
    let port = server(|tcp| say("second", tcp)).await;
    cluster.0[1].serve(Some("api"), Protocol::Tcp, port);
    cluster.publish(|view| view.service("api", Protocol::Tcp, &[(silent, 9), (second, port)]));
    // Gone as a killed process is: nothing answers at its address, and no view says so yet.
    cluster.0[0].mesh.shutdown("gone").await;
    let addr = cluster.0[2].connect("api");
    for _ in 0..5 {
        assert_eq!(read_all(dial(addr).await).await.expect("an orderly end"), b"second");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_under_an_opening_stream_is_replaced() {
    let cluster = Cluster::start(2);
    let port = server(|tcp| say("here", tcp)).await;
    let addr = cluster.serve_and_connect("api", Protocol::Tcp, port);
    assert_eq!(read_all(dial(addr).await).await.expect("an orderly end"), b"here");
    let caller = cluster.key(1);
    let connection = cluster.0[0].mesh.connection(caller).await.expect("just used");
    // The provider knows nothing of the caller for a moment, so the stream waits; meanwhile its connection goes.
    let known = cluster.0[0].view.borrow().clone();
    cluster.0[0].view.send_replace(ViewBuilder::new(known.me).node(known.me, None).build());
    let waiting = tokio::spawn(async move { read_all(dial(addr).await).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    connection.close(0u32.into(), b"gone");
    cluster.0[0].view.send_replace(known);
    assert_eq!(waiting.await.expect("no panic").expect("an orderly end"), b"here");
}

#[tokio::test]
async fn a_provider_on_the_same_node_is_reached_without_the_mesh() {
    let cluster = Cluster::start(2);
    let port = server(echo).await;
    let me = cluster.key(1);
    cluster.0[1].serve(Some("here"), Protocol::Tcp, port);
    cluster.publish(|view| view.service("here", Protocol::Tcp, &[(me, port)]));
    let addr = cluster.0[1].connect("here");
    let mut tcp = dial(addr).await;
    tcp.write_all(&[5; 100_000]).await.expect("open");
    tcp.shutdown().await.expect("open");
    assert_eq!(read_all(tcp).await.expect("an orderly end"), [5; 100_000]);
    assert!(cluster.0[1].mesh.snapshot().peers.is_empty());
    let mut idle = dial(addr).await;
    idle.write_all(b"a").await.expect("open");
    idle.read_exact(&mut [0; 1]).await.expect("an answer");
    cluster.0[1].services.unserve(&ServiceRef::Port(port));
    expect_reset(idle).await;
}

#[tokio::test]
async fn a_listener_outlives_a_restart_and_waits_for_its_service() {
    let cluster = Cluster::start(2);
    let port = server(|tcp| say("back", tcp)).await;
    let addr = cluster.serve_and_connect("api", Protocol::Tcp, port);
    let text = serde_json::to_string(&cluster.0[1].services.config()).expect("plain data");
    cluster.0[1].services.drain(Duration::ZERO).await;
    // The next process of the same node; at first it knows no services.
    let config: ServicesConfig = serde_json::from_str(&text).expect("what was written");
    let known = cluster.0[1].view.borrow().clone();
    cluster.publish(|view| view);
    let again = Services::new(cluster.0[1].view.subscribe());
    again.start(std::sync::Arc::new(cluster.0[1].mesh.clone()), cluster.0[1].mesh.runtime().clone(), &config);
    let listening = || again.listeners().iter().any(|listener| listener.local.contains(&addr));
    while !listening() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Unknown yet.
    expect_reset_at(addr).await;
    cluster.0[1].view.send_replace(known);
    assert_eq!(read_all(dial(addr).await).await.expect("an orderly end"), b"back");
}

#[tokio::test]
async fn connect_answers_with_the_listener_there_is_and_disconnect_lets_streams_finish() {
    let cluster = Cluster::start(2);
    let port = server(echo).await;
    let addr = cluster.serve_and_connect("echo", Protocol::Tcp, port);
    let services = &cluster.0[1].services;
    let service = ServiceRef::Name("echo".parse().expect("a name"));
    let connect =
        |local_port| services.connect(&Connect { service: service.clone(), provider: None, bind: None, local_port });
    assert_eq!(connect(None).expect("idempotent")[0].local[0], addr);
    assert!(connect(Some(port)).is_err(), "the server's own port is taken");
    let mut tcp = dial(addr).await;
    tcp.write_all(b"a").await.expect("open");
    tcp.read_exact(&mut [0; 1]).await.expect("an answer");
    let closed = services.disconnect(&Disconnect { service: ServiceRef::Port(addr.port()), provider: None });
    assert_eq!(closed.expect("no provider named").len(), 1);
    let refused = async { while TcpStream::connect(addr).await.is_ok() {} };
    tokio::time::timeout(SOON, refused).await.expect("the listener closes");
    tcp.write_all(b"b").await.expect("open");
    tcp.shutdown().await.expect("open");
    assert_eq!(read_all(tcp).await.expect("an orderly end"), b"b");
    assert!(services.disconnect(&Disconnect { service, provider: None }).expect("no provider named").is_empty());
}

#[tokio::test]
async fn a_drain_waits_for_streams_that_end_and_resets_those_that_do_not() {
    let cluster = Cluster::start(2);
    let port = server(echo).await;
    let addr = cluster.serve_and_connect("echo", Protocol::Tcp, port);
    let (mut ends, stays) = (dial(addr).await, dial(addr).await);
    cluster.0[1].until("both are open", |services| services.numbers().streams_open == 2).await;
    let draining = cluster.0[1].services.clone();
    let drained = tokio::spawn(async move { draining.drain(Duration::from_secs(4)).await });
    ends.write_all(b"bye").await.expect("open");
    ends.shutdown().await.expect("open");
    assert_eq!(read_all(ends).await.expect("an orderly end"), b"bye");
    expect_reset(stays).await;
    drained.await.expect("drained");
}

//! One service whose clients or whose server have stopped takes nothing from whatever else two nodes have together.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use tests::cluster::form;
use tests::lab::{Family, lab_or_skip};
use tests::patience::eventually;
use tests::pln::Pln;
use tests::traffic::{Gate, Server, allow_descriptors, dial, http_get, pattern};

use super::services::connect;

const READERS: usize = 1000;
const UPLOADS: usize = 64;
/// What the other service carries in one measurement.
const FILE_BYTES: usize = 64 << 20;
const TRIES: usize = 3;
const GROWTH_KIB_MAX: u64 = 64 << 10;
/// How long the stopped are given to fill all that they can.
const FILL: Duration = Duration::from_secs(5);
/// What one node says, the other knows within this, however busy the machine of the tests.
const GOSSIP_MAX: Duration = Duration::from_secs(2);

/// The best of a few: noise only ever slows.
fn fetch(client: &Pln, port: u16) -> Duration {
    let once = || {
        let started = Instant::now();
        assert_eq!(http_get(&client.host, port, "/").unwrap().len(), FILE_BYTES);
        started.elapsed()
    };
    (0..TRIES).map(|_| once()).min().unwrap()
}

/// How long it takes until the client knows a name that the server has just given.
fn gossip(server: &Pln, client: &Pln, name: &str, port: u16) -> Duration {
    server.ok(&["serve", &port.to_string(), name]).unwrap();
    let started = Instant::now();
    connect(client, name);
    started.elapsed()
}

#[test]
fn a_thousand_readers_and_a_server_that_have_stopped_take_nothing_from_others() {
    allow_descriptors(16_384).unwrap();
    let Some(mut lab) = lab_or_skip() else { return };
    let mut nodes = lab.hosts(Family::Both, ["a", "c"]).unwrap().map(Pln::on);
    form(&mut nodes, &[]).unwrap();
    let [server, client] = &nodes;
    let serve = |port: u16, name: &str| {
        server.ok(&["serve", &port.to_string(), name]).unwrap();
        connect(client, name)
    };
    let files = Server::http(&server.host, 0, pattern(1, FILE_BYTES)).unwrap();
    let file_port = serve(files.port, "files");
    let before = fetch(client, file_port);
    let resident = || [server, client].map(|node| node.resident_kib().unwrap());
    let small = resident();

    let flood = Server::tcp(&server.host, 0, |mut stream| {
        let block = [7; 64 * 1024];
        while stream.write_all(&block).is_ok() {}
    })
    .unwrap();
    let flood_port = serve(flood.port, "flood");
    let readers: Vec<TcpStream> = (0..READERS)
        .map(|_| {
            let mut stream = dial(&client.host, flood_port).unwrap();
            stream.read_exact(&mut [0]).unwrap();
            stream
        })
        .collect();
    let gate = Gate::default();
    let hung = {
        let gate = gate.clone();
        Server::tcp(&server.host, 0, move |_stream| gate.pass()).unwrap()
    };
    let hung_port = serve(hung.port, "hung");
    let uploads: Vec<TcpStream> = (0..UPLOADS).map(|_| dial(&client.host, hung_port).unwrap()).collect();
    let writing: Vec<_> = uploads
        .iter()
        .map(|stream| {
            let mut stream = stream.try_clone().unwrap();
            std::thread::spawn(move || {
                let block = [7; 64 * 1024];
                while stream.write_all(&block).is_ok() {}
            })
        })
        .collect();
    std::thread::sleep(FILL);

    let during = fetch(client, file_port);
    let told = gossip(server, client, "news", files.port);
    let large = resident();
    eprintln!(
        "{FILE_BYTES} bytes: {before:?} alone, {during:?} beside {READERS} readers and {UPLOADS} uploads that stand \
         still; a name was known in {told:?}; resident {small:?} and {large:?} KiB"
    );
    assert!(told <= GOSSIP_MAX, "a name was known after {told:?}");
    assert!(during.mul_f64(0.8) <= before, "{during:?} where it was {before:?}");
    for (small, large) in small.into_iter().zip(large) {
        assert!(large.saturating_sub(small) <= GROWTH_KIB_MAX, "from {small} to {large} KiB");
    }

    // They give up and go.
    drop(readers);
    for stream in uploads {
        let _gone = stream.shutdown(Shutdown::Both);
    }
    writing.into_iter().for_each(|thread| thread.join().unwrap());
    gate.open();
    let back = || match resident().into_iter().zip(small).all(|(now, small)| now <= small + GROWTH_KIB_MAX) {
        true if fetch(client, file_port).mul_f64(0.8) <= before => Ok(()),
        _ => Err("it is not as before".to_owned()),
    };
    eventually("all is as before", Duration::from_secs(30), back).unwrap();
}

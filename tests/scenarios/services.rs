//! A service on one machine is reached from another: whole, in both directions, under load, and within bounds.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::mpsc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tests::cluster::{TOGETHER_DEADLINE, form};
use tests::lab::{Family, Lab, lab_or_skip};
use tests::patience::eventually;
use tests::pln::Pln;
use tests::traffic::{
    Server, Xorshift, allow_descriptors, dial, dial_udp, exchange, http_get, pattern, reset_on_close,
};

/// Two nodes: what `server` serves, `client` connects to.
struct Pair {
    server: Pln,
    client: Pln,
    _lab: Lab,
}

impl Pair {
    fn new() -> Option<Self> {
        let mut lab = lab_or_skip()?;
        let mut nodes = lab.hosts(Family::Both, ["a", "c"]).unwrap().map(Pln::on);
        form(&mut nodes, &[]).unwrap();
        let [server, client] = nodes;
        Some(Self { server, client, _lab: lab })
    }

    /// Serves a port under a name, connects it on the other node; returns the local port there.
    fn connect(&self, port: u16, name: &str, flags: &[&str]) -> u16 {
        self.server.ok(&[&["serve", &port.to_string(), name], flags].concat()).unwrap();
        connect(&self.client, name)
    }
}

/// Connects a service as soon as the node knows it; returns the local port.
pub fn connect(client: &Pln, name: &str) -> u16 {
    let connect = || client.json(&["connect", name]).map_err(|error| format!("{error:#}"));
    let (answer, _) = eventually("the service is known", TOGETHER_DEADLINE, connect).unwrap();
    let local: std::net::SocketAddr = answer["local"][0].as_str().unwrap().parse().unwrap();
    assert!(local.ip().is_loopback(), "a listener on {local}");
    local.port()
}

#[test]
fn a_large_file_arrives_whole() {
    const LEN: usize = 200_000_000;
    let Some(pair) = Pair::new() else { return };
    let file = pattern(1, LEN);
    let expected = Sha256::digest(&file);
    let server = Server::http(&pair.server.host, 0, file).unwrap();
    let port = pair.connect(server.port, "files", &[]);
    let got = http_get(&pair.client.host, port, "/").unwrap();
    assert_eq!((got.len(), Sha256::digest(&got)), (LEN, expected));
}

#[test]
fn a_client_that_closes_its_writing_half_gets_the_whole_answer() {
    let Some(pair) = Pair::new() else { return };
    let server = Server::tcp_echo(&pair.server.host, 0).unwrap();
    let port = pair.connect(server.port, "echo", &[]);
    // More than every buffer on the way: the answer is still under way when the writing half closes.
    let question = pattern(2, 8 << 20);
    let stream = dial(&pair.client.host, port).unwrap();
    let answer = std::thread::scope(|scope| {
        scope.spawn(|| {
            (&stream).write_all(&question).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        let mut answer = Vec::new();
        (&stream).read_to_end(&mut answer).unwrap();
        answer
    });
    assert!(answer == question, "{} of {} bytes, or others", answer.len(), question.len());

    // A server that speaks only after it has heard the end of the question.
    let last = Server::tcp(&pair.server.host, 0, |mut stream| {
        let mut question = Vec::new();
        stream.read_to_end(&mut question).unwrap();
        stream.write_all(&Sha256::digest(&question)).unwrap();
    })
    .unwrap();
    let port = pair.connect(last.port, "digest", &[]);
    let answer = exchange(&mut dial(&pair.client.host, port).unwrap(), b"what was asked").unwrap();
    assert_eq!(answer, Sha256::digest(b"what was asked").to_vec());
}

#[test]
fn a_reset_arrives_as_a_reset_on_the_other_side() {
    let Some(pair) = Pair::new() else { return };
    let (heard, hears) = mpsc::channel();
    let server = Server::tcp(&pair.server.host, 0, move |mut stream| {
        let mut first = [0];
        stream.read_exact(&mut first).unwrap();
        if first == *b"r" {
            reset_on_close(&stream).unwrap();
            return;
        }
        stream.write_all(&first).unwrap();
        let ended = stream.read(&mut [0; 16]).map_err(|error| error.kind());
        heard.send(ended).unwrap();
    })
    .unwrap();
    let port = pair.connect(server.port, "moody", &[]);

    let mut stream = dial(&pair.client.host, port).unwrap();
    stream.write_all(b"r").unwrap();
    let ended = stream.read(&mut [0; 16]).map_err(|error| error.kind());
    assert_eq!(ended, Err(ErrorKind::ConnectionReset), "the server's reset reaches the client");

    let mut stream = dial(&pair.client.host, port).unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).unwrap();
    reset_on_close(&stream).unwrap();
    drop(stream);
    let ended = hears.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(ended, Err(ErrorKind::ConnectionReset), "the client's reset reaches the server");
}

#[test]
fn a_reader_that_stops_makes_no_process_grow() {
    const GROWTH_KIB_MAX: u64 = 16 << 10;
    const STOP: Duration = Duration::from_secs(10);
    let Some(pair) = Pair::new() else { return };
    let server = Server::tcp(&pair.server.host, 0, |mut stream| {
        let block = pattern(3, 1 << 20);
        // Far more than fits anywhere on the way; ends when the client is gone.
        while stream.write_all(&block).is_ok() {}
    })
    .unwrap();
    let port = pair.connect(server.port, "flood", &[]);
    let mut stream = dial(&pair.client.host, port).unwrap();
    // A first part is read, so that buffers which any transfer needs are not counted as growth.
    stream.read_exact(&mut vec![0; 32 << 20]).unwrap();
    let resident = || [&pair.server, &pair.client].map(|node| node.resident_kib().unwrap());
    let before = resident();
    let mut most = before;
    let stopped = std::time::Instant::now();
    while stopped.elapsed() < STOP {
        std::thread::sleep(Duration::from_millis(200));
        most = std::array::from_fn(|index| most[index].max(resident()[index]));
    }
    for (name, before, most) in [("server", before[0], most[0]), ("client", before[1], most[1])] {
        assert!(most - before <= GROWTH_KIB_MAX, "the {name}'s pln grew from {before} to {most} KiB");
    }
    stream.read_exact(&mut vec![0; 4 << 20]).expect("the transfer goes on when the reader does");
}

#[test]
fn a_thousand_connections_live_at_once() {
    const COUNT: usize = 1000;
    allow_descriptors(8192).unwrap();
    let Some(pair) = Pair::new() else { return };
    let server = Server::tcp_echo(&pair.server.host, 0).unwrap();
    let port = pair.connect(server.port, "many", &[]);
    let mut streams = Vec::new();
    for _ in 0..COUNT {
        streams.push(dial(&pair.client.host, port).unwrap());
    }
    // All of them speak before any of them is answered, and each hears its own.
    for (index, stream) in streams.iter_mut().enumerate() {
        stream.write_all(format!("{index:08}").as_bytes()).unwrap();
    }
    for (index, stream) in streams.iter_mut().enumerate() {
        let mut answer = [0; 8];
        stream.read_exact(&mut answer).unwrap_or_else(|error| panic!("connection {index}: {error}"));
        assert_eq!(answer, format!("{index:08}").as_bytes());
    }
    for (index, stream) in streams.iter_mut().enumerate() {
        stream.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap_or_else(|error| panic!("connection {index}: {error}"));
        assert!(rest.is_empty());
    }
}

#[test]
fn every_udp_client_gets_its_own_replies_whatever_their_size() {
    const CLIENTS: u64 = 50;
    const SIZES: [usize; 12] = [0, 1, 2, 100, 1199, 1200, 1201, 1452, 1500, 9000, 40_000, 65_507];
    let Some(pair) = Pair::new() else { return };
    let server = Server::udp_echo(&pair.server.host, 0).unwrap();
    let port = pair.connect(server.port, "udp-echo", &["--udp"]);
    let lost: u64 = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let socket = dial_udp(&pair.client.host, port).unwrap();
                scope.spawn(move || talk(&socket, client, &SIZES))
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    // UDP may lose; what is lost here is lost by full socket buffers of a crowded moment, and must be rare.
    let sent = CLIENTS * u64::try_from(SIZES.len()).unwrap() * 2;
    assert!(lost * 20 <= sent, "{lost} of {sent} datagrams were lost");
}

/// Sends a datagram of each size, twice, and waits for each one's echo; returns how many had to be sent again.
fn talk(socket: &std::net::UdpSocket, client: u64, sizes: &[usize]) -> u64 {
    const TRIES_MAX: usize = 6;
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut order: Vec<usize> = sizes.iter().chain(sizes).copied().collect();
    let mut numbers = Xorshift::new(client);
    for index in (1..order.len()).rev() {
        order.swap(index, usize::try_from(numbers.below(index as u64 + 1)).unwrap());
    }
    let mut lost = 0;
    let mut owed = BTreeMap::<Vec<u8>, usize>::new();
    let mut buffer = vec![0; 65_536];
    for (index, size) in order.into_iter().enumerate() {
        let datagram = pattern(client * 1000 + index as u64, size);
        let echoed = (0..TRIES_MAX).any(|attempt| {
            lost += u64::from(attempt > 0);
            socket.send(&datagram).unwrap();
            *owed.entry(datagram.clone()).or_default() += 1;
            loop {
                let Ok(len) = socket.recv(&mut buffer) else { return false };
                // A late echo of an earlier try is this client's own; anything else is somebody else's.
                let count = owed.get_mut(&buffer[..len]).filter(|count| **count > 0);
                *count.unwrap_or_else(|| panic!("client {client} got {len} bytes that it has not sent")) -= 1;
                if buffer[..len] == datagram {
                    return true;
                }
            }
        });
        assert!(echoed, "client {client}: {size} bytes never came back");
    }
    lost
}

#[test]
fn what_is_no_longer_served_is_no_longer_reached() {
    let Some(pair) = Pair::new() else { return };
    let server = Server::tcp_echo(&pair.server.host, 0).unwrap();
    let port = pair.connect(server.port, "echo", &[]);
    assert_eq!(exchange(&mut dial(&pair.client.host, port).unwrap(), b"hi").unwrap(), b"hi");
    pair.server.ok(&["unserve", "echo"]).unwrap();
    let closed = || match dial(&pair.client.host, port).and_then(|mut stream| exchange(&mut stream, b"hi")) {
        Ok(answer) if answer == b"hi" => Err("it still answers".to_owned()),
        _ => Ok(()),
    };
    eventually("new connections fail", Duration::from_secs(5), closed).unwrap();
    pair.client.ok(&["disconnect", "echo"]).unwrap();
    assert!(dial(&pair.client.host, port).is_err(), "a closed listener accepts nothing");
}

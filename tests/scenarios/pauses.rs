//! A pause ends nothing: a stream that is open, idle or in full flow, goes on when the path is back, wherever it leads by
//! then. Only a process that was restarted has lost what it had, and that is known at once.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tests::cluster::{TOGETHER_DEADLINE, form};
use tests::lab::{Family, Lab, Switch, lab_or_skip};
use tests::patience::eventually;
use tests::pln::Pln;
use tests::status::await_online;
use tests::traffic::{Server, dial, pattern};

use crate::services::connect;

/// From the moment at which packets can pass again until a stream has gone on: some 50 ms, and half a second or one and a
/// half when what was sent again was lost.
const RESUMED_DEADLINE: Duration = Duration::from_secs(3);
/// The same where it must first be noticed that packets no longer arrive.
const MOVED_DEADLINE: Duration = Duration::from_secs(6);
/// Longer than it takes to hold a node for dead.
const PAUSE: Duration = Duration::from_secs(6);

/// Two nodes on a switch; `echo`, served by the second, is connected on the first.
struct Pair {
    client: Pln,
    server: Pln,
    port: u16,
    switch: Switch,
    _echo: Server,
    _lab: Lab,
}

impl Pair {
    fn new() -> Option<Self> {
        let mut lab = lab_or_skip()?;
        let switch = lab.switch(Family::V4).unwrap();
        let mut nodes = ["c", "s"].map(|name| Pln::on(lab.host(name, &[switch], 1500).unwrap()));
        form(&mut nodes, &["--publisher"]).unwrap();
        let [client, server] = nodes;
        let echo = Server::tcp_echo(&server.host, 0).unwrap();
        server.ok(&["serve", &echo.port.to_string(), "echo"]).unwrap();
        let port = connect(&client, "echo");
        Some(Self { client, server, port, switch, _echo: echo, _lab: lab })
    }

    /// What `pause` does to the pair ends neither an idle stream nor one in full flow, and both go on within `deadline`
    /// of its end.
    fn goes_on_after(&self, pause: impl FnOnce(&Self), deadline: Duration) {
        let mut idle = dial(&self.client.host, self.port).unwrap();
        ask(&mut idle, b"before");
        let flow = Flow::over(dial(&self.client.host, self.port).unwrap());
        eventually("the flow has begun", TOGETHER_DEADLINE, || flow.beyond(1 << 20)).unwrap();
        pause(self);
        let moved = flow.moved();
        idle.set_read_timeout(Some(deadline)).unwrap();
        ask(&mut idle, b"after");
        eventually("the flow goes on", deadline, || flow.beyond(moved + (1 << 20))).unwrap();
        flow.end();
        await_online(&[&self.client, &self.server], &["c", "s"], TOGETHER_DEADLINE).unwrap();
    }
}

fn ask(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).unwrap();
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).expect("the stream goes on");
    assert_eq!(answer, text);
}

/// A stream through which as much flows as fits, each byte looked at.
struct Flow {
    moved: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    threads: [thread::JoinHandle<()>; 2],
}

impl Flow {
    fn over(stream: TcpStream) -> Self {
        const LEN: usize = 1 << 16;
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let (moved, over) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (mut writer, mut reader) = (stream.try_clone().unwrap(), stream);
        let (ends, counts, block) = (over.clone(), moved.clone(), pattern(5, LEN));
        let same = block.clone();
        let writing = thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                writer.write_all(&block).expect("the flow goes on");
            }
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let reading = thread::spawn(move || {
            let mut got = vec![0; LEN];
            loop {
                match reader.read_exact(&mut got) {
                    Ok(()) => assert!(got == same, "a block came back otherwise than it was sent"),
                    Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return,
                    Err(error) => panic!("the flow broke: {error}"),
                }
                counts.fetch_add(LEN as u64, Ordering::Relaxed);
            }
        });
        Self { moved, over, threads: [writing, reading] }
    }

    fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    fn beyond(&self, bytes: u64) -> Result<(), String> {
        let moved = self.moved();
        if moved > bytes { Ok(()) } else { Err(format!("{moved} of {bytes} bytes")) }
    }

    fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

#[test]
fn a_cable_that_is_out_ends_nothing_on_either_side() {
    let Some(pair) = Pair::new() else { return };
    for node in [&pair.client, &pair.server] {
        let pulled = |pair: &Pair| {
            node.host.unplug(pair.switch).unwrap();
            thread::sleep(PAUSE);
            node.host.plug(pair.switch).unwrap();
        };
        pair.goes_on_after(pulled, RESUMED_DEADLINE);
    }
}

#[test]
fn a_process_that_was_stopped_goes_on_with_what_it_had() {
    let Some(pair) = Pair::new() else { return };
    for node in [&pair.client, &pair.server] {
        pair.goes_on_after(|_| node.stopped(|| thread::sleep(PAUSE)).unwrap(), RESUMED_DEADLINE);
    }
}

#[test]
fn a_new_address_on_either_side_ends_nothing() {
    let Some(pair) = Pair::new() else { return };
    for (node, last) in [(&pair.client, 201), (&pair.server, 202)] {
        pair.goes_on_after(|pair| node.host.renumber(pair.switch, last).unwrap(), MOVED_DEADLINE);
    }
}

#[test]
fn a_silent_provider_is_offline_and_its_streams_wait_all_the_same() {
    let Some(pair) = Pair::new() else { return };
    let mut idle = dial(&pair.client.host, pair.port).unwrap();
    ask(&mut idle, b"before");
    pair.server
        .stopped(|| {
            await_online(&[&pair.client], &["c"], Duration::from_secs(4)).unwrap();
            let began = Instant::now();
            let mut refused = dial(&pair.client.host, pair.port).unwrap();
            refused.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            assert!(refused.read(&mut [0]).is_err(), "a new stream has nobody to go to");
            assert!(began.elapsed() < Duration::from_secs(8), "and that is known soon: {:?}", began.elapsed());
        })
        .unwrap();
    idle.set_read_timeout(Some(RESUMED_DEADLINE)).unwrap();
    ask(&mut idle, b"after");
}

#[test]
fn whoever_waits_no_longer_than_that_is_told_that_the_stream_is_over() {
    let Some(pair) = Pair::new() else { return };
    pair.client.ok(&["set", "stream-patience", "3s"]).unwrap();
    let mut idle = dial(&pair.client.host, pair.port).unwrap();
    ask(&mut idle, b"before");
    idle.set_read_timeout(Some(Duration::from_secs(12))).unwrap();
    let ended = pair.server.stopped(|| idle.read(&mut [0])).unwrap();
    assert!(ended.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset), "{ended:?}");
    assert_eq!(pair.client.json(&["set", "stream-patience"]).unwrap()["stream-patience"], "3s");
}

#[test]
fn a_process_that_was_restarted_has_lost_its_streams_and_that_is_known_at_once() {
    let Some(mut pair) = Pair::new() else { return };
    let mut idle = dial(&pair.client.host, pair.port).unwrap();
    ask(&mut idle, b"before");
    pair.server.kill().unwrap();
    pair.server.up().unwrap();
    let up = Instant::now();
    idle.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let ended = idle.read(&mut [0]);
    assert!(ended.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset), "{ended:?}");
    assert!(up.elapsed() < Duration::from_secs(1), "{:?}", up.elapsed());
    // And it is talked to again.
    eventually("a new stream", TOGETHER_DEADLINE, || {
        let mut stream = dial(&pair.client.host, pair.port).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).map_err(|error| error.to_string())?;
        stream.write_all(b"again").map_err(|error| error.to_string())?;
        stream.read_exact(&mut [0; 5]).map_err(|error| error.to_string())
    })
    .unwrap();
}

//! A measurement, not a check: one stream through the path socket beside one through quinn's own socket. Run it with
//! `cargo test -p pollen-daemon --lib --config 'profile.dev.package.pollen-daemon.opt-level=3' goodput -- --ignored
//! --nocapture`.

use std::thread;
use std::time::Instant;

use super::*;
use crate::transport::endpoint::{MEMBER, client, settings};
use crate::transport::open_stream;
use crate::transport::tls::Tls;

const ROUNDS: usize = 5;
const WARM: Duration = Duration::from_millis(500);
const MEASURED: Duration = Duration::from_secs(2);

/// Writes for ever.
async fn pour(mut send: SendStream) {
    let block = Bytes::from(vec![7; 1 << 20]);
    while send.write_chunk(block.clone()).await.is_ok() {}
}

/// Gbit/s that arrive, and Gbit per CPU-second of this process, which holds both ends.
async fn drink(mut recv: RecvStream) -> [f64; 2] {
    let begun = Instant::now();
    let (mut counted, mut since) = (0, None);
    while let Ok(Some(chunk)) = recv.read_chunk(usize::MAX, true).await {
        if begun.elapsed() >= WARM {
            let (since, cpu) = since.get_or_insert_with(|| (Instant::now(), cpu_seconds()));
            counted += chunk.bytes.len();
            if since.elapsed() >= MEASURED {
                let gbit = counted as f64 * 8e-9;
                return [gbit / since.elapsed().as_secs_f64(), gbit / (cpu_seconds() - *cpu)];
            }
        }
    }
    [0.0; 2]
}

/// CPU time of this process, user and system; ticks are hundredths on every Linux.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    [11, 12].map(|at: usize| fields[at].parse::<f64>().unwrap()).iter().sum::<f64>() / 100.0
}

async fn through_the_path_socket() -> [f64; 2] {
    let (a, _, mut b, _) = linked().await;
    let connection = a.mesh.connection(b.key).await.unwrap();
    let (send, _recv) = open_stream(&connection, StreamKind::Tcp).await.unwrap();
    let pouring = a.mesh.runtime().spawn(pour(send));
    let (_, _send, recv) = b.streams.recv().await.unwrap();
    let rate = b.mesh.runtime().spawn(drink(recv)).await.unwrap();
    pouring.abort();
    a.mesh.shutdown("measured").await;
    b.mesh.shutdown("measured").await;
    rate
}

/// quinn's own socket under the same settings, each end on a thread of its own as a mesh is.
fn through_quinns_socket() -> [f64; 2] {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let endpoint = |seed: u8| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
        socket.set_recv_buffer_size(4 << 20).unwrap();
        socket.set_send_buffer_size(4 << 20).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        let tls = Tls::new(&SecretKey::from_seed(&[seed; 32])).unwrap();
        let (config, server) = settings(&tls, PATIENCE).unwrap();
        (quinn::Endpoint::new(config, Some(server), socket.into(), Arc::new(quinn::TokioRuntime)).unwrap(), tls)
    };
    let (tell, told) = std::sync::mpsc::channel();
    let receiver = thread::spawn(move || {
        runtime().block_on(async {
            let (endpoint, _) = endpoint(2);
            tell.send(endpoint.local_addr().unwrap()).unwrap();
            let connection = endpoint.accept().await.unwrap().await.unwrap();
            MEMBER.grant(&connection);
            let (_send, recv) = connection.accept_bi().await.unwrap();
            let rate = drink(recv).await;
            connection.close(0_u8.into(), b"measured");
            rate
        })
    });
    let to = told.recv().unwrap();
    runtime().block_on(async {
        let (endpoint, tls) = endpoint(1);
        let key = SecretKey::from_seed(&[2; 32]).public();
        let connection = endpoint.connect_with(client(&tls, key, PATIENCE).unwrap(), to, "pln").unwrap().await.unwrap();
        let (send, _recv) = connection.open_bi().await.unwrap();
        pour(send).await;
    });
    receiver.join().unwrap()
}

#[tokio::test]
#[ignore = "a measurement of half a minute"]
async fn goodput_of_one_stream() {
    for _ in 0..ROUNDS {
        let plain = tokio::task::spawn_blocking(through_quinns_socket).await.unwrap();
        let path = through_the_path_socket().await;
        for (unit, plain, path) in [("Gbit/s", plain[0], path[0]), ("Gbit per CPU-second", plain[1], path[1])] {
            eprintln!("quinn's socket {plain:5.2}, path socket {path:5.2}, ratio {:4.2}, in {unit}", path / plain);
        }
    }
}

//! How fast the socket itself is: calls that a fake daemon answers at once, from a thread beside it.

use std::io::{Read as _, Write as _};
use std::time::Instant;

use super::*;

/// Makes `calls` calls on one connection; how long each took.
fn call_and_call(path: &Path, calls: usize) -> Vec<Duration> {
    let mut stream = std::os::unix::net::UnixStream::connect(path).expect("it listens");
    let request = b"POST /v1/calls/hello/echo HTTP/1.1\r\nhost: pln\r\ncontent-length: 64\r\n\r\n";
    let request = [&request[..], &[b'x'; 64]].concat();
    let mut answer = [0; 1024];
    let mut one = || {
        let begun = Instant::now();
        stream.write_all(&request).expect("it reads");
        let mut read = 0;
        while !answer[..read].ends_with(&[b'x'; 64]) {
            read += stream.read(&mut answer[read..]).expect("it answers");
        }
        begun.elapsed()
    };
    (0..calls).map(|_| one()).collect()
}

#[test]
#[ignore = "a measurement: run it alone, optimised, with --nocapture"]
fn calls_through_the_socket() {
    let dir = tempfile::tempdir().expect("a directory");
    let fake = Fake::new(dir.path());
    let path = super::super::socket::path(dir.path());
    let (up, is_up) = std::sync::mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an event loop");
        runtime.block_on(async move {
            let control = Control::start(fake).await.expect("an empty directory");
            up.send(()).expect("the test waits");
            let _ = stopped.await;
            control.stop().await;
        });
    });
    is_up.recv().expect("it starts");
    for callers in [1, 32] {
        let begun = Instant::now();
        let took = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..callers).map(|_| scope.spawn(|| call_and_call(&path, 60_000 / callers))).collect();
            let mut took: Vec<Duration> =
                threads.into_iter().flat_map(|thread| thread.join().expect("it ends")).collect();
            took.sort_unstable();
            took
        });
        let per_second = took.len() as f64 / begun.elapsed().as_secs_f64();
        let at = |percent: usize| took[took.len() * percent / 100].as_micros();
        let _ = writeln!(
            std::io::stderr(),
            "{callers} callers: p50 {} us, p99 {} us, {per_second:.0} calls/s",
            at(50),
            at(99)
        );
    }
    drop(stop);
    server.join().expect("it ends");
}

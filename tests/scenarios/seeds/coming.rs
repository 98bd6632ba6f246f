//! Nobody who publishes on one machine and uses it on another has to wait in between: what is asked for waits itself.

use tests::calls::{Call, Caller};
use tests::seeds::example;
use tests::traffic::{Server, dial, exchange};

use super::{Mesh, seed};

/// A node that did not wait would fail in the first few.
const ROUNDS: usize = 30;

#[test]
fn what_is_seeded_here_is_called_there_without_a_pause() {
    let Some(mesh) = Mesh::new() else { return };
    for round in 0..ROUNDS {
        let name = format!("job-{round}");
        let here = &mesh.nodes[round % mesh.nodes.len()];
        let there = &mesh.nodes[(round + 1) % mesh.nodes.len()];
        seed(here, &example("hello"), &name, &[]);
        let answer = Caller::on(there).call(&Call::once(&name, "greet", b"Ada")).unwrap();
        assert_eq!(answer.unwrap_or_else(|f| panic!("{name}: {f:?}")).output, b"Hello, Ada!");
    }
}

#[test]
fn what_is_served_here_is_connected_there_without_a_pause() {
    let Some(mesh) = Mesh::new() else { return };
    for round in 0..ROUNDS {
        let name = format!("web-{round}");
        let here = &mesh.nodes[round % mesh.nodes.len()];
        let there = &mesh.nodes[(round + 1) % mesh.nodes.len()];
        let server = Server::tcp_echo(&here.host, 0).unwrap();
        here.ok(&["serve", &server.port.to_string(), &name]).unwrap();
        let answer = there.json(&["connect", &name]).unwrap();
        let local: std::net::SocketAddr = answer["local"][0].as_str().unwrap().parse().unwrap();
        let mut stream = dial(&there.host, local.port()).unwrap();
        assert_eq!(exchange(&mut stream, b"hi").unwrap(), b"hi");
    }
}

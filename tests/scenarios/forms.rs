//! Services in the forms that people have them in: words that are wrong, names of two protocols, services that are their
//! own servers, listeners for others, and one connection over standard input and output.

use std::io::{Read as _, Write as _};
use std::process::Stdio;

use tests::cluster::{TOGETHER_DEADLINE, form};
use tests::lab::{Family, Lab, lab_or_skip};
use tests::patience::eventually;
use tests::pln::Pln;
use tests::traffic::{Server, address, dial, dial_at, dial_udp, exchange};

/// The node that serves, and the one that connects.
struct Pair {
    server: Pln,
    client: Pln,
    _lab: Lab,
}

fn pair() -> Option<Pair> {
    let mut lab = lab_or_skip()?;
    let mut nodes = lab.hosts(Family::Both, ["a", "c"]).unwrap().map(Pln::on);
    form(&mut nodes, &[]).unwrap();
    let [server, client] = nodes;
    Some(Pair { server, client, _lab: lab })
}

fn connected(client: &Pln, args: &[&str]) -> serde_json::Value {
    let args = [&["connect"], args].concat();
    let connect = || client.json(&args).map_err(|error| format!("{error:#}"));
    eventually("the service is known", TOGETHER_DEADLINE, connect).unwrap().0
}

#[test]
fn words_that_are_wrong_are_answered_with_what_to_type() {
    let Some(Pair { server, client, _lab }) = pair() else { return };
    let echo = Server::tcp_echo(&server.host, 0).unwrap();
    let port = echo.port.to_string();
    for (args, code, told) in [
        (&["serve", "web", &port][..], 2, format!("`pln serve {port} web`")),
        (&["serve", "53/udp", "dns"], 2, "`pln serve 53 dns --udp`".into()),
        (&["up"], 1, "`pln status` shows it".into()),
    ] {
        let said = server.fails(code, args).unwrap();
        assert!(said.contains(&told), "{args:?}: {said}");
        assert!(!said.contains("pln down"), "{args:?}: {said}");
    }
    assert!(client.fails(1, &["init"]).unwrap().contains("already a member"));
    let failure = server.fails(2, &["serve", "web", &port, "--json"]).unwrap();
    let object: serde_json::Value = serde_json::from_str(&failure).unwrap();
    assert_eq!(object["code"], "usage");

    let served = server.json(&["serve", &port, "web"]).unwrap();
    assert_eq!(served.get("warnings"), None, "{served}");
    let silent = server.json(&["serve", "9", "silent"]).unwrap();
    assert!(silent["warnings"][0].as_str().unwrap().contains("nothing listens on tcp port 9"), "{silent}");
    let local = connected(&client, &["web", "8080"])["local"].clone();
    assert_eq!(local[0], "127.0.0.1:8080");
    assert!(client.fails(3, &["connect", "wbe"]).unwrap().contains("did you mean `web`?"));
    assert!(client.fails(1, &["connect", "silent", "8080"]).unwrap().contains("listener for web"));
    assert!(client.fails(2, &["connect", "8080", "web"]).unwrap().contains("`pln connect web 8080`"));
}

#[test]
fn a_service_that_is_its_own_server_is_refused_and_costs_nothing() {
    let Some(Pair { server, client, _lab }) = pair() else { return };
    // A listener for what another node serves, whose port is then served under the same name.
    server.ok(&["serve", "9", "loop"]).unwrap();
    let echo = Server::tcp_echo(&server.host, 0).unwrap();
    server.ok(&["connect", "loop", "8097"]).unwrap();
    server.ok(&["serve", "8097", "loop"]).unwrap();
    assert!(server.fails(1, &["connect", "loop", "8097", "--bind", "0.0.0.0"]).unwrap().contains("itself"));
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", server.pid().unwrap())).unwrap().count();
    let before = descriptors();
    for _ in 0..20 {
        let asked = dial(&server.host, 8097).and_then(|mut stream| exchange(&mut stream, b"?"));
        assert!(asked.is_err(), "{asked:?}");
    }
    connected(&client, &["loop", "8098"]);
    let asked = dial(&client.host, 8098).and_then(|mut stream| exchange(&mut stream, b"?"));
    assert!(asked.is_err(), "{asked:?}");
    assert!(descriptors() < before + 20, "{before} descriptors became {}", descriptors());
    assert!(server.ok(&["why", "loop"]).unwrap().contains("leads back to itself"));
    // Whatever else it serves goes on.
    server.ok(&["serve", &echo.port.to_string(), "echo"]).unwrap();
    connected(&client, &["echo", "8099"]);
    assert_eq!(exchange(&mut dial(&client.host, 8099).unwrap(), b"hello").unwrap(), b"hello");
}

#[test]
fn one_name_is_tcp_and_udp_and_one_connect_brings_both() {
    let Some(Pair { server, client, _lab }) = pair() else { return };
    let tcp = Server::tcp_echo(&server.host, 0).unwrap();
    let udp = Server::udp_echo(&server.host, tcp.port).unwrap();
    assert_eq!(tcp.port, udp.port);
    let port = tcp.port.to_string();
    server.ok(&["serve", &port, "dns", "--udp"]).unwrap();
    server.ok(&["serve", &port, "dns"]).unwrap();
    server.ok(&["serve", &port, "both", "--tcp", "--udp"]).unwrap();
    for (name, local) in [("dns", 5300), ("both", 5301)] {
        let both = || match connected(&client, &[name, &local.to_string()]) {
            answer if answer["also"][0]["protocol"] == "udp" => Ok(answer),
            answer => Err(format!("{answer}")),
        };
        eventually("both protocols are known", TOGETHER_DEADLINE, both).unwrap();
        assert_eq!(exchange(&mut dial(&client.host, local).unwrap(), b"by tcp").unwrap(), b"by tcp");
        let socket = dial_udp(&client.host, local).unwrap();
        let mut answer = [0; 16];
        let heard = || {
            socket.send(b"by udp").map_err(|error| error.to_string())?;
            socket.recv(&mut answer).map(|length| answer[..length].to_vec()).map_err(|error| error.to_string())
        };
        assert_eq!(eventually("a reply", TOGETHER_DEADLINE, heard).unwrap().0, b"by udp");
    }
    let services = server.json(&["status", "services"]).unwrap();
    let ports =
        services.as_array().unwrap().iter().find(|service| service["name"] == "dns").unwrap()["providers"].clone();
    assert_eq!(ports.as_array().unwrap().len(), 2, "{ports}");
}

#[test]
fn a_listener_serves_the_lan_and_standard_input_and_output() {
    let Some(Pair { server, client, _lab }) = pair() else { return };
    let echo = Server::tcp_echo(&server.host, 0).unwrap();
    server.ok(&["serve", &echo.port.to_string(), "echo"]).unwrap();
    let lan = address(&client.host, false).unwrap();
    connected(&client, &["echo", "8080", "--bind", &lan.to_string()]);
    let mut stream = dial_at(&server.host, (lan, 8080).into()).unwrap();
    assert_eq!(exchange(&mut stream, b"from another machine").unwrap(), b"from another machine");
    assert!(dial(&client.host, 8080).is_err(), "on that address alone");

    for round in ["first", "second"] {
        let mut piped = client.command(&["connect", "echo", "--stdio"]);
        let mut piped = piped.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        piped.stdin.take().unwrap().write_all(round.as_bytes()).unwrap();
        let mut answer = String::new();
        piped.stdout.take().unwrap().read_to_string(&mut answer).unwrap();
        assert_eq!((answer.as_str(), piped.wait().unwrap().success()), (round, true));
    }
    let status = client.json(&["status"]).unwrap();
    assert_eq!(status["connections"].as_array().unwrap().len(), 2, "{}", status["connections"]);
}

//! Who may reach a service, as its publisher says it: by name, by tier, by property, over restarts and under open streams.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tests::cluster::{TOGETHER_DEADLINE, found, invite, join};
use tests::lab::{Family, lab_or_skip};
use tests::patience::eventually;
use tests::pln::{Pln, exit};
use tests::status::await_online;
use tests::traffic::{Server, dial, dial_udp};

use super::services::connect;

/// How soon a change must have cut what is open, on nodes that are connected.
const CUT_WITHIN: Duration = Duration::from_secs(2);

/// One word through a stream and back, or why not.
fn echoed(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(CUT_WITHIN))?;
    stream.write_all(b"hello")?;
    stream.read_exact(&mut [0; 5])
}

/// A stream that carried a word, as soon as the provider lets it in.
fn let_in(node: &Pln, port: u16) -> TcpStream {
    let open = || {
        let mut stream = dial(&node.host, port).map_err(|error| format!("{error:#}"))?;
        echoed(&mut stream).map_err(|error| error.to_string()).map(|()| stream)
    };
    eventually("it is let in", TOGETHER_DEADLINE, open).unwrap().0
}

fn kept_out(node: &Pln, port: u16) {
    let answer = dial(&node.host, port).and_then(|mut stream| Ok(echoed(&mut stream)?));
    assert!(answer.is_err(), "{} is let in", node.host.name());
}

/// Waits for the end of a stream that was open.
fn cut(stream: &mut TcpStream) {
    let begun = Instant::now();
    stream.set_read_timeout(Some(CUT_WITHIN)).unwrap();
    match stream.read(&mut [0]) {
        Ok(0) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => panic!("{other:?} after {:?}", begun.elapsed()),
    }
}

/// What `can` says, with its exit code.
fn can(asked: &Pln, peer: &str, target: &str) -> (Option<i32>, String) {
    let output = asked.run(&["can", peer, "connect", target]).unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

#[test]
fn a_service_is_reached_by_those_that_its_policy_lets_in_and_by_nobody_else() {
    let Some(mut lab) = lab_or_skip() else { return };
    let [mut server, mut named, mut outsider, mut prop] =
        lab.hosts(Family::Both, ["server", "named", "outsider", "prop"]).unwrap().map(Pln::on);
    found(&mut server).unwrap();
    join(&mut named, &invite(&server, &[]).unwrap()).unwrap();
    join(&mut outsider, &invite(&server, &["--prop", "env=dev"]).unwrap()).unwrap();
    join(&mut prop, &invite(&server, &["--prop", "env=prod"]).unwrap()).unwrap();
    let all = ["server", "named", "outsider", "prop"];
    await_online(&[&server, &named, &outsider, &prop], &all, TOGETHER_DEADLINE).unwrap();

    let echo = Server::tcp_echo(&server.host, 0).unwrap();
    let port = echo.port.to_string();
    // At a port of its own, so that a caller has a listener for each at the service's own port.
    let other = Server::tcp_echo(&server.host, 0).unwrap();
    let open = server.run(&["serve", &other.port.to_string(), "open"]).unwrap();
    assert!(String::from_utf8_lossy(&open.stderr).contains("every member of the cluster may reach it"), "{open:?}");
    let bounded = server.json(&["serve", &port, "db", "--allow", "named", "--allow-prop", "env=prod"]).unwrap();
    assert_eq!(bounded["allow"]["peers"][0]["name"], "named", "{bounded}");
    assert_eq!(bounded["allow"]["props"]["env"], "prod", "{bounded}");

    let ports = [&named, &outsider, &prop].map(|node| connect(node, "db"));
    let mut by_name = let_in(&named, ports[0]);
    let mut by_prop = let_in(&prop, ports[2]);
    kept_out(&outsider, ports[1]);
    let to_open = connect(&outsider, "open");
    drop(let_in(&outsider, to_open));

    // Anyone can ask who may; the one that is refused is told no more than that.
    assert_eq!(can(&server, "named", "db"), (Some(0), "yes: the policy names it".into()));
    let no = (Some(exit::DENIED), "no: the policy asks for env=prod, and it has env=dev".to_owned());
    assert_eq!([can(&server, "outsider", "db"), can(&prop, "outsider", "db")], [no.clone(), no]);
    let told = outsider.ok(&["why", "db"]).unwrap();
    assert!(told.contains("denied or absent"), "{told}");
    let why = server.ok(&["why", "db"]).unwrap();
    assert!(why.contains("refused to outsider") && why.contains("it has env=dev"), "{why}");
    let events = server.ok(&["events"]).unwrap();
    assert!(events.contains("db was refused to outsider"), "{events}");
    let shown = server.ok(&["status", "services"]).unwrap();
    assert!(shown.contains("env=prod"), "{shown}");

    // Under open streams: by what the roll says of a caller, and by what the publisher says.
    server.ok(&["grant", "prop", "--prop", "env=dev"]).unwrap();
    cut(&mut by_prop);
    echoed(&mut by_name).unwrap();
    server.ok(&["grant", "outsider", "--prop", "env=prod"]).unwrap();
    let mut granted = let_in(&outsider, ports[1]);
    server.ok(&["serve", &port, "db", "--allow", "named"]).unwrap();
    cut(&mut granted);
    echoed(&mut by_name).unwrap();
    drop(let_in(&outsider, to_open));

    // It lasts, without being said again.
    server.terminate().unwrap();
    server.up().unwrap();
    await_online(&[&server, &named, &outsider, &prop], &all, TOGETHER_DEADLINE).unwrap();
    drop(let_in(&named, ports[0]));
    kept_out(&outsider, ports[1]);
    let again = server.json(&["serve", &port, "db"]).unwrap();
    assert_eq!(again["allow"]["peers"][0]["name"], "named", "{again}");
    kept_out(&outsider, ports[1]);
    server.ok(&["serve", &port, "db", "--allow-all"]).unwrap();
    drop(let_in(&outsider, ports[1]));
}

#[test]
fn a_tier_is_asked_for_and_datagrams_are_bounded_too() {
    let Some(mut lab) = lab_or_skip() else { return };
    let [mut server, mut caller] = lab.hosts(Family::V4, ["server", "caller"]).unwrap().map(Pln::on);
    found(&mut server).unwrap();
    join(&mut caller, &invite(&server, &[]).unwrap()).unwrap();
    await_online(&[&server, &caller], &["server", "caller"], TOGETHER_DEADLINE).unwrap();
    let echo = Server::udp_echo(&server.host, 0).unwrap();
    server.ok(&["serve", &echo.port.to_string(), "dns", "--udp", "--allow-tier", "publisher"]).unwrap();
    let socket = dial_udp(&caller.host, connect(&caller, "dns")).unwrap();
    let exchange = || {
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket.send(b"question").map_err(|error| error.to_string())?;
        socket.recv(&mut [0; 64]).map_err(|error| error.to_string()).map(drop)
    };
    assert!(exchange().is_err() && exchange().is_err());
    let no = "no: the policy asks for the tier publisher, and it is a leaf";
    assert_eq!(can(&caller, "caller", "dns"), (Some(exit::DENIED), no.into()));
    server.ok(&["grant", "caller", "--publisher"]).unwrap();
    eventually("a publisher is answered", TOGETHER_DEADLINE, exchange).unwrap();
    server.ok(&["grant", "caller", "--leaf"]).unwrap();
    eventually("a leaf is not", CUT_WITHIN, || match exchange() {
        Ok(()) => Err("answered".to_owned()),
        Err(_) => Ok(()),
    })
    .unwrap();
}

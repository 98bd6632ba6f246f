//! The lab itself: what the other scenarios take for granted.

use std::io::Read as _;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use tests::lab::{Family, Whose, lab_or_skip, sweep};
use tests::netns;
use tests::patience::eventually;
use tests::traffic::{Server, address, dial_at, exchange};

#[test]
fn hosts_on_a_switch_reach_each_other_until_a_cable_is_pulled() {
    let Some(mut lab) = lab_or_skip() else { return };
    let switch = lab.switch(Family::Both).unwrap();
    let a = lab.host("a", &[switch], 1500).unwrap();
    let b = lab.host("b", &[switch], 1500).unwrap();
    for v6 in [false, true] {
        let at = SocketAddr::new(address(&a, v6).unwrap(), 4000);
        let listener = a.enter(|| std::net::TcpListener::bind(at)).unwrap().unwrap();
        let reach = |deadline| {
            b.enter(|| std::net::TcpStream::connect_timeout(&at, deadline)).unwrap().map_err(|error| error.to_string())
        };
        eventually("b reaches a", Duration::from_secs(5), || reach(Duration::from_secs(1))).unwrap();
        a.unplug(switch).unwrap();
        assert!(reach(Duration::from_millis(300)).is_err(), "a pulled cable carries nothing");
        a.plug(switch).unwrap();
        eventually("b reaches a again", Duration::from_secs(5), || reach(Duration::from_secs(1))).unwrap();
        drop(listener);
    }
}

#[test]
fn a_parted_switch_is_two_until_it_is_healed() {
    let Some(mut lab) = lab_or_skip() else { return };
    let switch = lab.switch(Family::V4).unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| lab.host(name, &[switch], 1500).unwrap());
    let at = SocketAddr::new(address(&a, false).unwrap(), 4000);
    let _listener = a.enter(|| std::net::TcpListener::bind(at)).unwrap().unwrap();
    let reach = |from: &tests::lab::Host| {
        from.enter(|| std::net::TcpStream::connect_timeout(&at, Duration::from_millis(500))).unwrap().is_ok()
    };
    assert!(reach(&b) && reach(&c));
    lab.part(switch, &[&a, &b]).unwrap();
    assert!(reach(&b) && !reach(&c));
    lab.heal(switch, &[&a, &b]).unwrap();
    let healed = || if reach(&c) { Ok(()) } else { Err("no answer".to_owned()) };
    eventually("c reaches a again", Duration::from_secs(5), healed).unwrap();
}

#[test]
fn a_switch_of_one_family_has_no_addresses_of_the_other() {
    let Some(mut lab) = lab_or_skip() else { return };
    let [a] = lab.hosts(Family::V6, ["a"]).unwrap();
    assert!(a.addresses().iter().all(std::net::IpAddr::is_ipv6));
    let bound = a.enter(|| std::net::UdpSocket::bind("10.61.0.1:0")).unwrap();
    assert!(bound.is_err(), "the host has no IPv4 address but loopback");
}

#[test]
fn servers_of_the_lab_answer_and_end() {
    let Some(mut lab) = lab_or_skip() else { return };
    let [a] = lab.hosts(Family::V4, ["a"]).unwrap();
    let server = Server::tcp_echo(&a, 0).unwrap();
    let at = SocketAddr::from(([127, 0, 0, 1], server.port));
    assert_eq!(exchange(&mut dial_at(&a, at).unwrap(), b"hello").unwrap(), b"hello");
    drop(server);
    assert!(dial_at(&a, at).is_err(), "an ended server accepts nothing");
}

#[test]
fn a_lab_leaves_nothing_behind_not_even_processes() {
    let Some(mut lab) = lab_or_skip() else { return };
    let run = lab.run().to_owned();
    let [a] = lab.hosts(Family::V4, ["a"]).unwrap();
    // It says so when it is inside: until then nothing ties it to the namespace.
    let mut process = a.command("sh").args(["-c", "echo; exec sleep 600"]).stdout(Stdio::piped()).spawn().unwrap();
    process.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    assert_eq!(netns::list(&run).unwrap().len(), 2, "a switch and a host");
    drop((a, lab));
    assert_eq!(netns::list(&run).unwrap(), Vec::<String>::new());
    assert!(!process.wait().unwrap().success(), "the process was killed with its namespace");
    assert!(!std::env::temp_dir().join(&run).exists());
}

#[test]
fn labs_of_dead_processes_are_swept() {
    let Some(lab) = lab_or_skip() else { return };
    // The kernel gives no process a number above 2^22.
    let orphan = format!("plnlab-{}-0-a", (1 << 22) + 1);
    std::mem::forget(netns::Namespace::create(&orphan).unwrap());
    assert!(sweep(Whose::Dead).unwrap().contains(&orphan));
    assert_eq!(netns::list(&orphan).unwrap(), Vec::<String>::new());
    drop(lab);
}

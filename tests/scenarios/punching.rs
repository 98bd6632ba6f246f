//! Nodes behind routers that translate addresses: a straight way where one can be had, a relay where none can.

use std::time::Duration;

use tests::cluster::{TOGETHER_DEADLINE, found, invite, join};
use tests::lab::{Family, Lab};
use tests::link::{BadLink, Quality};
use tests::nat::{Mapping, Router, Strangers, lab_with_routers_or_skip};
use tests::patience::eventually;
use tests::pln::Pln;
use tests::status::await_online;
use tests::traffic::{Server, dial};

use super::circuits::ask;
use super::services::connect;

/// How soon two behind easy routers are on a straight way.
const STRAIGHT_DEADLINE: Duration = Duration::from_secs(10);
/// How soon they are on the relay again: the dead way has to be noticed first.
const RELAYED_DEADLINE: Duration = Duration::from_secs(6);
/// Long enough for the kinds of the routers to be known, and for the rounds that are made all the same.
const SETTLED: Duration = Duration::from_secs(15);
/// From one router to the other, one way: what both ends have for beginning at once.
const APART: Duration = Duration::from_millis(20);
/// Rounds of one end before two that are behind hard routers give up for five minutes, and those before that is known.
const HOPELESS_ROUNDS_MAX: u64 = 6;

/// `a` and `b`, each alone behind a router, and `r` and `q`, which all can reach.
struct Behind {
    a: Pln,
    b: Pln,
    at_a: Router,
    at_b: Router,
    r: Pln,
    q: Pln,
    /// What is between `at_b` and everybody else.
    _link: BadLink,
    _lab: Lab,
}

impl Behind {
    fn new(family: Family, mappings: [Mapping; 2]) -> Option<Self> {
        Self::over(Duration::ZERO, family, mappings, Strangers::Dropped)
    }

    fn over(
        delay: Duration,
        family: Family,
        [before_a, before_b]: [Mapping; 2],
        strangers: Strangers<'_>,
    ) -> Option<Self> {
        let mut lab = lab_with_routers_or_skip()?;
        let outside = lab.switch(family).unwrap();
        let mut behind = |name: &str, mapping: Mapping| {
            let inside = lab.switch(family).unwrap();
            let router = Router::between(&mut lab, &format!("n{name}"), [inside, outside], mapping).unwrap();
            router.set(mapping, strangers).unwrap();
            let host = lab.host(name, &[inside], 1500).unwrap();
            host.route_by(&router.host, inside).unwrap();
            (Pln::on(host), router)
        };
        let ((mut a, at_a), (mut b, at_b)) = (behind("a", before_a), behind("b", before_b));
        let link = lab.part_by(outside, &[&at_b.host], Quality { delay, ..Quality::default() }).unwrap();
        let mut public = |name: &str| Pln::on(lab.host(name, &[outside], 1500).unwrap());
        let (mut r, mut q) = (public("r"), public("q"));
        found(&mut r).unwrap();
        for node in [&mut q, &mut a, &mut b] {
            join(node, &invite(&r, &["--publisher"]).unwrap()).unwrap();
        }
        let behind = Self { a, b, at_a, at_b, r, q, _link: link, _lab: lab };
        let Self { a, b, r, q, .. } = &behind;
        await_online(&[a, b, r, q], &["a", "b", "r", "q"], TOGETHER_DEADLINE).unwrap();
        Some(behind)
    }

    /// How `a` reaches `b`, as its status says.
    fn kind(&self) -> Result<String, String> {
        let nodes = self.a.json(&["status", "nodes"]).map_err(|error| format!("{error:#}"))?;
        let row = nodes.as_array().and_then(|rows| rows.iter().find(|row| row["name"] == "b")).ok_or("no row of b")?;
        Ok(row["path"]["kind"].as_str().unwrap_or_default().to_owned())
    }

    fn await_kind(&self, kind: &str, deadline: Duration) -> Duration {
        let reached = || self.kind().and_then(|is| if is == kind { Ok(()) } else { Err(is) });
        eventually(&format!("b is reached {kind}"), deadline, reached).unwrap().1
    }

    /// The kind of router before `node`, as `a` knows it.
    fn nat(&self, node: &str, family: &str) -> String {
        self.a.json(&["inspect", node]).unwrap()["nat"][family].as_str().unwrap_or_default().to_owned()
    }

    fn await_nats(&self, [of_a, of_b]: [&str; 2], family: &str) {
        let told = || {
            let are = [self.nat("a", family), self.nat("b", family)];
            if are == [of_a, of_b] { Ok(()) } else { Err(are.join(", ")) }
        };
        eventually("the kinds of both routers are known", SETTLED, told).unwrap();
    }

    /// No way between the routers, or one again.
    fn set_apart(&self, apart: bool) {
        for (one, other) in [(&self.at_a.host, &self.at_b.host), (&self.at_b.host, &self.at_a.host)] {
            if apart { one.shun(other) } else { one.reach(other) }.unwrap();
        }
    }

    fn rounds(node: &Pln) -> u64 {
        node.json(&["status"]).unwrap()["punching"]["rounds"].as_u64().unwrap()
    }

    /// A TCP connection from `a` through the mesh to an echo on `b`.
    fn stream(&self) -> (Server, std::net::TcpStream) {
        let echo = Server::tcp_echo(&self.b.host, 0).unwrap();
        self.b.ok(&["serve", &echo.port.to_string(), "echo"]).unwrap();
        let stream = dial(&self.a.host, connect(&self.a, "echo")).unwrap();
        stream.set_read_timeout(Some(RELAYED_DEADLINE)).unwrap();
        (echo, stream)
    }
}

#[test]
fn two_behind_easy_routers_are_soon_on_a_straight_way_and_a_stream_that_is_open_stays() {
    for (family, named) in [(Family::V4, "ipv4"), (Family::V6, "ipv6")] {
        let Some(behind) = Behind::new(family, [Mapping::Easy, Mapping::Easy]) else { return };
        behind.await_kind("direct", STRAIGHT_DEADLINE);
        behind.await_nats(["easy", "easy"], named);
        let shown = behind.a.ok(&["inspect", "b"]).unwrap();
        assert!(shown.contains("easy (IPv"), "{shown}");

        let (_echo, mut stream) = behind.stream();
        ask(&mut stream, b"straight");
        behind.set_apart(true);
        ask(&mut stream, b"around");
        behind.await_kind("relayed", RELAYED_DEADLINE);
        behind.set_apart(false);
        behind.await_kind("direct", STRAIGHT_DEADLINE);
        ask(&mut stream, b"straight again");
    }
}

#[test]
fn two_behind_hard_routers_stay_on_the_relay_and_soon_stop_trying_until_one_moves() {
    let Some(behind) = Behind::new(Family::V4, [Mapping::Hard, Mapping::Hard]) else { return };
    behind.await_kind("relayed", TOGETHER_DEADLINE);
    behind.await_nats(["hard", "hard"], "ipv4");
    let (_echo, mut stream) = behind.stream();
    std::thread::sleep(SETTLED);
    let ends = [&behind.a, &behind.b];
    let before = ends.map(Behind::rounds);
    assert!(before.iter().all(|rounds| *rounds <= HOPELESS_ROUNDS_MAX), "{before:?} rounds");
    ask(&mut stream, b"around");
    std::thread::sleep(SETTLED);
    assert_eq!(ends.map(Behind::rounds), before, "they do not try on");
    assert_eq!(behind.kind().unwrap(), "relayed");
    ask(&mut stream, b"around still");

    // Both move to behind other routers, which shows by the silence alone.
    for router in [&behind.at_a, &behind.at_b] {
        router.map(Mapping::Easy).unwrap();
        router.forget().unwrap();
    }
    behind.await_kind("direct", SETTLED);
    ask(&mut stream, b"straight");
}

#[test]
fn a_hard_router_is_no_hindrance_where_the_other_lets_in_what_comes() {
    let Some(behind) = Behind::new(Family::V4, [Mapping::Easy, Mapping::Hard]) else { return };
    behind.await_kind("relayed", TOGETHER_DEADLINE);
    behind.await_nats(["easy", "hard"], "ipv4");
    let (_echo, mut stream) = behind.stream();
    ask(&mut stream, b"around");
    behind.at_a.set(Mapping::Easy, Strangers::LetIn { to: &behind.a.host }).unwrap();
    behind.await_kind("direct", STRAIGHT_DEADLINE);
    ask(&mut stream, b"straight");
}

#[test]
fn a_router_that_forgets_its_mappings_or_gives_others_costs_no_stream() {
    let Some(behind) = Behind::new(Family::V4, [Mapping::Easy, Mapping::Easy]) else { return };
    behind.await_kind("direct", STRAIGHT_DEADLINE);
    let (_echo, mut stream) = behind.stream();
    ask(&mut stream, b"before");
    behind.at_a.forget().unwrap();
    ask(&mut stream, b"what was forgotten is made again");

    behind.at_a.map(Mapping::Hard).unwrap();
    behind.at_a.forget().unwrap();
    ask(&mut stream, b"no longer there");
    behind.await_kind("relayed", RELAYED_DEADLINE);
    ask(&mut stream, b"around");
    behind.at_a.map(Mapping::Easy).unwrap();
    behind.at_a.forget().unwrap();
    behind.await_kind("direct", STRAIGHT_DEADLINE);
    ask(&mut stream, b"straight again");
}

/// Where one end is early, its probe makes the other's router give away the very port that the answer should come from, and
/// that stays so for as long as they try. So both have to be under way before the first arrives.
#[test]
fn probes_that_cross_on_the_way_pass_routers_that_answer_strangers_themselves() {
    let behind = Behind::over(APART, Family::V4, [Mapping::Easy, Mapping::Easy], Strangers::Answered);
    let Some(behind) = behind else { return };
    behind.await_kind("direct", STRAIGHT_DEADLINE);
}

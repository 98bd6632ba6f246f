//! Snapshots of what operators and scripts see: a change here is a change of contract.

use super::table::{Layout, Section};
use pollen_common::identity::Digest;
use pollen_common::node::{SharedKey, Signs};
use pollen_common::views::{Inability, SeedVersion, VersionId};
use std::sync::Arc;

use super::*;
use crate::services::Export;
use crate::status::{About, Numbers};
use crate::store::health::{Cause, DiskHealth, Refusing};
use pollen_common::views::Protocol;

struct Sample {
    about: About,
    view: View,
    numbers: Numbers,
    listeners: Vec<Listener>,
    troubles: Troubles,
}

impl Sample {
    fn new() -> Self {
        Self {
            about: sample::about(),
            view: sample::view(),
            numbers: sample::numbers(),
            listeners: sample::listeners(),
            troubles: Troubles::default(),
        }
    }

    fn reading(&self) -> Reading<'_> {
        let Self { about, view, numbers, listeners, troubles } = self;
        Reading { about, view, numbers, listeners, troubles, now: sample::NOW }
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("the model serialises")
}

const NARROW: Layout = Layout { section: Section::All, wide: false, include_offline: false, colour: false };

#[test]
fn status_as_json() {
    insta::assert_snapshot!(json(&Status::of(Sample::new().reading())));
}

#[test]
fn status_as_tables() {
    insta::assert_snapshot!(table::status(&Status::of(Sample::new().reading()), NARROW));
}

#[test]
fn status_as_wide_tables_with_the_offline() {
    let wide = Layout { wide: true, include_offline: true, ..NARROW };
    insta::assert_snapshot!(table::status(&Status::of(Sample::new().reading()), wide));
}

#[test]
fn inspect_as_json_and_text() {
    let sample = Sample::new();
    let node = inspect::node(sample.reading(), sample::key(2)).expect("berlin stands");
    let service = inspect::service(sample.reading(), &"api".parse().expect("a name")).expect("api is claimed");
    let held = [(sample::hello_version().module, sample::held())].into();
    let seed = inspect::seed(sample.reading(), &"hello".parse().expect("a name"), &held).expect("hello is claimed");
    insta::assert_snapshot!("inspect_seed_json", json(&seed));
    insta::assert_snapshot!("inspect_seed_text", table::inspect(&seed));
    insta::assert_snapshot!("inspect_node_json", json(&node));
    insta::assert_snapshot!("inspect_node_text", table::inspect(&node));
    insta::assert_snapshot!("inspect_service_json", json(&service));
    insta::assert_snapshot!("inspect_service_text", table::inspect(&service));
}

#[test]
fn colour_is_confined_to_the_chips() {
    let coloured = table::status(&Status::of(Sample::new().reading()), Layout { colour: true, ..NARROW });
    let mut lines = coloured.lines();
    assert!(lines.next().is_some_and(|chips| chips.contains("\x1b[")));
    assert!(lines.all(|line| !line.contains('\x1b')));
}

#[test]
fn sections_show_their_table_alone() {
    let sample = Sample::new();
    let only = |section| table::status(&Status::of(sample.reading()), Layout { section, ..NARROW });
    assert!(only(Section::Nodes).starts_with("NODES\n") && !only(Section::Nodes).contains("SERVICES"));
    assert!(only(Section::Services).starts_with("SERVICES\n") && !only(Section::Services).contains("NODES"));
    assert!(only(Section::Seeds).starts_with("SEEDS\n") && !only(Section::Seeds).contains("SERVICES"));
    assert!(only(Section::Services).contains("CONNECTIONS\n") && !only(Section::Nodes).contains("CONNECTIONS"));
}

#[test]
fn an_upgrade_shows_both_versions_and_who_still_serves_an_older_one() {
    let mut sample = Sample::new();
    let hello = sample.view.seeds.values_mut().next().expect("it is in the sample");
    let next = SeedVersion { module: Digest([0xCD; 32]), image: true, idempotent: false, ..sample::hello_version() };
    hello.versions.push(next);
    let me = sample.view.nodes.get_mut(&sample::key(1)).expect("it is in the sample");
    me.unable.insert(next.id(), Inability::Image);
    hello.replicas.insert(next.id(), [sample::key(2)].into());
    hello.replicas.insert(VersionId(Digest([9; 32])), [sample::key(1)].into());
    let name = hello.name.clone();
    let seed = inspect::seed(sample.reading(), &name, &BTreeMap::new()).expect("hello is claimed");
    insta::assert_snapshot!("upgrade_inspected", table::inspect(&seed));
    let only = Layout { section: Section::Seeds, ..NARROW };
    insta::assert_snapshot!("upgrade_in_the_table", table::status(&Status::of(sample.reading()), only));
}

fn codes(health: &Health) -> Vec<Code> {
    health.conditions.iter().map(|condition| condition.code).collect()
}

fn messages(health: &Health) -> Vec<&str> {
    health.conditions.iter().map(|condition| condition.message.as_str()).collect()
}

#[test]
fn health_says_what_is_wrong() {
    let mut sample = Sample::new();
    assert_eq!(Health::of(sample.reading()), Health { state: HealthState::Healthy, conditions: Vec::new() });

    let berlin = sample.view.nodes.get_mut(&sample::key(2)).expect("it is in the sample");
    berlin.liveness = Liveness::Offline;
    let alone = Health::of(sample.reading());
    assert_eq!(alone.state, HealthState::Unhealthy);
    assert_eq!(messages(&alone), ["none of the 2 other nodes can be reached"]);

    let mut sample = Sample::new();
    let me = sample.view.nodes.get_mut(&sample::key(1)).expect("it is in the sample");
    me.member.rights.expires = Some(UnixMs(sample::NOW.0 + 3_600_000));
    assert_eq!(Health::of(sample.reading()).state, HealthState::Degraded);

    sample.view.nodes.remove(&sample::key(1));
    assert_eq!(Health::of(sample.reading()).state, HealthState::Unhealthy);

    let mut sample = Sample::new();
    let hello = sample.view.seeds.values_mut().next().expect("it is in the sample");
    (hello.owner, hello.replicas) = (sample.view.me, BTreeMap::new());
    assert_eq!(messages(&Health::of(sample.reading())), ["no node is ready to serve: hello"]);

    let mut sample = Sample::new();
    sample.view.me = sample::key(3);
    let health = Health::of(sample.reading());
    assert!(messages(&health).iter().any(|m| m.contains("belong to others: api")), "{health:?}");
    assert!(messages(&health).iter().any(|m| m.contains("do not count")), "{health:?}");
}

#[test]
fn what_the_parts_say_is_wrong_is_a_condition_each_with_what_to_do() {
    let mut sample = Sample::new();
    let refusing = Refusing { cause: Cause::Full, since: sample::NOW, error: "no room".into(), waiting: 3 };
    sample.troubles = Troubles {
        disk: DiskHealth::Refusing(refusing),
        signs: Arc::default(),
        metrics_wait: Some("cannot listen on :9090: address already in use".into()),
        unanswered: vec![Export {
            name: Some("web".parse().expect("a name")),
            protocol: Protocol::Tcp,
            port: 8000,
            shared: false,
            server: crate::services::Server::Here,
            policy: pollen_common::views::Policy::default(),
        }],
    };
    let datapath = &mut sample.numbers.datapath.standing;
    (datapath.is_refused, datapath.why_not_higher) = (true, "the driver of eth0 does no XDP in both directions".into());
    let listener = &mut sample.listeners[0];
    (listener.local, listener.waiting) = (Vec::new(), Some("address already in use".into()));
    let health = Health::of(sample.reading());
    assert_eq!(health.state, HealthState::Degraded);
    let all = [Code::Disk, Code::ListenerWaits, Code::MetricsWait, Code::DatapathRefused, Code::ServiceUnanswered];
    assert_eq!(codes(&health), all);
    insta::assert_snapshot!("troubles_as_json", json(&health));
    insta::assert_snapshot!("troubles_as_text", table::status(&Status::of(sample.reading()), NARROW));
}

#[test]
fn a_key_on_two_machines_is_told_with_both_addresses_and_what_to_do() {
    let mut sample = Sample::new();
    let shared = |witness| SharedKey {
        addrs: vec!["192.0.2.2:60611".parse().expect("an address"), "192.0.2.7:60611".parse().expect("an address")],
        witness,
        seen: sample::NOW,
    };
    let shared_keys = [(sample::key(1), shared(Some(sample::key(2)))), (sample::key(2), shared(None))].into();
    let signs = Signs { shared_keys, stalled: [sample::key(2)].into(), ..Signs::default() };
    sample.troubles.signs = Arc::new(signs);
    let health = Health::of(sample.reading());
    assert_eq!(health.state, HealthState::Unhealthy, "a node that may not publish is no part of a working mesh");
    insta::assert_snapshot!(
        "machines_as_text",
        health.conditions.iter().map(|c| format!("{}\n  {}\n", c.message, c.remedy)).collect::<String>()
    );
}

#[test]
fn the_clock_that_differs_from_most_is_the_one_that_is_off() {
    let mut sample = Sample::new();
    let mut told = |clocks: &[(u8, i64)], known| {
        let clocks = clocks.iter().map(|(node, off)| (sample::key(*node), *off)).collect();
        sample.troubles.signs = Arc::new(Signs { clocks, clocks_known: known, ..Signs::default() });
        let health = Health::of(sample.reading());
        health.conditions.into_iter().map(|condition| condition.message).collect::<Vec<_>>()
    };
    let berlin = sample::key(2).short();
    assert_eq!(told(&[(2, 86_400_400)], 1), [format!("the clock of berlin ({berlin}) is 1d ahead of this node's")]);
    assert_eq!(told(&[(2, -7_000)], 3), [format!("the clock of berlin ({berlin}) is 7s behind this node's")]);
    let own = told(&[(2, -600_000), (3, -600_400)], 2);
    assert_eq!(own, ["this node's clock is 10m ahead of those of most of its neighbours"]);
    assert_eq!(told(&[(2, -600_000), (3, 600_000)], 2).len(), 2, "nobody knows who is right");
}

#[test]
fn machines_that_chose_one_name_are_told_of_with_what_tells_them_apart() {
    let mut sample = Sample::new();
    let cork = sample.view.nodes.get_mut(&sample::key(3)).expect("it is in the sample");
    (cork.chosen_name, cork.name) = ("ams".parse().ok(), "ams-2".parse().ok());
    let health = Health::of(sample.reading());
    assert_eq!(codes(&health), [Code::NameShared]);
    assert_eq!(messages(&health), ["2 machines are called ams: they are told apart as ams, ams-2"]);
    assert!(health.conditions[0].remedy.contains("pln set name"));
}

#[test]
fn more_conditions_than_a_screen_takes_are_counted() {
    let mut sample = Sample::new();
    let waiting = |port| Listener {
        local_port: port,
        local: Vec::new(),
        waiting: Some("taken".into()),
        ..sample::listeners().remove(0)
    };
    sample.listeners = (1000..1040).map(waiting).collect();
    let text = table::status(&Status::of(sample.reading()), NARROW);
    assert!(text.contains("  28 more, shown by --json\n"), "{text}");
}

#[test]
fn a_status_reads_back_as_it_was_written() {
    let status = Status::of(Sample::new().reading());
    assert_eq!(serde_json::from_str::<Status>(&json(&status)).expect("our own JSON"), status);
}

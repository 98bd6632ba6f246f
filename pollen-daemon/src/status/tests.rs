//! Snapshots of what operators and scripts see: a change here is a change of contract.

use super::table::{Layout, Section};
use super::*;
use crate::control::handle::{About, Numbers};

struct Sample {
    about: About,
    view: View,
    numbers: Numbers,
    listeners: Vec<Listener>,
    datapath: Standing,
}

impl Sample {
    fn new() -> Self {
        Self {
            about: sample::about(),
            view: sample::view(),
            numbers: sample::numbers(),
            listeners: sample::listeners(),
            datapath: sample::datapath(),
        }
    }

    fn reading(&self) -> Reading<'_> {
        let Self { about, view, numbers, listeners, datapath } = self;
        Reading { about, view, numbers, listeners, datapath, now: sample::NOW }
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
    assert!(only(Section::Services).contains("CONNECTIONS\n") && !only(Section::Nodes).contains("CONNECTIONS"));
}

#[test]
fn health_says_what_is_wrong() {
    let mut sample = Sample::new();
    assert_eq!(Health::of(sample.reading()), Health { state: HealthState::Healthy, reasons: Vec::new() });

    let berlin = sample.view.nodes.get_mut(&sample::key(2)).expect("it is in the sample");
    berlin.liveness = Liveness::Offline;
    let alone = Health::of(sample.reading());
    assert_eq!(alone.state, HealthState::Unhealthy);
    assert_eq!(alone.reasons, ["none of the 2 other nodes can be reached"]);

    let mut sample = Sample::new();
    let me = sample.view.nodes.get_mut(&sample::key(1)).expect("it is in the sample");
    me.member.rights.expires = Some(UnixMs(sample::NOW.0 + 3_600_000));
    assert_eq!(Health::of(sample.reading()).state, HealthState::Degraded);

    sample.view.nodes.remove(&sample::key(1));
    assert_eq!(Health::of(sample.reading()).state, HealthState::Unhealthy);

    let mut sample = Sample::new();
    sample.view.me = sample::key(3);
    let reasons = Health::of(sample.reading()).reasons;
    assert!(reasons.iter().any(|r| r.contains("belong to others: api")), "{reasons:?}");
    assert!(reasons.iter().any(|r| r.contains("do not count")), "{reasons:?}");
}

#[test]
fn a_status_reads_back_as_it_was_written() {
    let status = Status::of(Sample::new().reading());
    assert_eq!(serde_json::from_str::<Status>(&json(&status)).expect("our own JSON"), status);
}

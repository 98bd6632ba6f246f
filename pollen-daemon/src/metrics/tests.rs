//! What a scrape says, and that the guide says what it means.

use std::collections::BTreeSet;
use std::sync::Arc;

use pollen_common::node::Signs;
use pollen_common::time::UnixMs;

use super::families;
use crate::handle::Daemon as _;
use crate::handle::fake::Fake;
use crate::http::refused::{Refused, Tallies};
use crate::services;
use crate::status::{Code, sample};
use crate::transport::DropReason;

pub(super) fn scraped() -> String {
    let dir = std::path::Path::new("/nowhere");
    let refused = Tallies::default();
    refused.control.count(Refused::HeadMalformed);
    refused.metrics.count(Refused::Route);
    let fake = Fake::new(dir);
    let signs = Signs { clocks: [(sample::key(2), -7250)].into(), ..Signs::default() };
    fake.asked().troubles.signs = Arc::new(signs);
    let mut view = (*fake.view()).clone();
    let me = view.me;
    view.nodes.get_mut(&me).expect("it stands").member.rights.expires = Some(UnixMs(sample::NOW.0 + 30 * 86_400_000));
    fake.sees(view);
    families::text(&*fake, &refused).expect("the sample encodes")
}

#[test]
fn a_scrape_of_the_sample_cluster() {
    insta::assert_snapshot!(scraped());
}

#[test]
fn every_metric_is_documented_and_every_documented_metric_exists() {
    let guide = include_str!("../../../docs/guide/metrics.md");
    let scraped = scraped() + &families::process_text().expect("the kernel says it");
    let documented = first_cells(guide).filter(|cell| cell.starts_with("pln_") || cell.starts_with("process_"));
    assert_eq!(names_of(&scraped), documented.collect());
}

/// The families of a scrape.
pub(super) fn names_of(scraped: &str) -> BTreeSet<&str> {
    scraped.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect()
}

/// What stands in backquotes at the beginning of the rows of tables, without labels.
fn first_cells(guide: &str) -> impl Iterator<Item = &str> {
    guide.lines().filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next())
}

/// The reasons that the guide explains under a heading.
fn reasons_under(heading: &str) -> BTreeSet<&'static str> {
    let guide = include_str!("../../../docs/guide/metrics.md");
    let (_, section) = guide.split_once(heading).expect("the guide has this heading");
    first_cells(section.split("\n## ").next().unwrap_or_default()).collect()
}

#[test]
fn every_reason_of_a_refusal_or_drop_is_explained() {
    assert_eq!(reasons_under("## Reasons of `pln_refusals_total`"), services::refusal_labels().collect());
    assert_eq!(reasons_under("## Reasons of `pln_service_datagrams_dropped_total`"), services::drop_labels().collect());
    let (core, transport): (BTreeSet<_>, BTreeSet<_>) =
        reasons_under("## Reasons of `pln_frames_dropped_total`").into_iter().partition(|r| r.starts_with("core_"));
    assert_eq!(transport, DropReason::ALL.iter().map(|reason| reason.label()).collect());
    // The core has no list of its own: each must at least be in its source.
    let source = core_source();
    for reason in core {
        let said = format!("refuse(\"{}\")", reason.trim_start_matches("core_"));
        assert!(source.contains(&said), "the core never says {reason}");
    }
}

#[test]
fn every_code_of_a_condition_is_explained() {
    assert_eq!(reasons_under("## Codes of `pln_condition`"), Code::ALL.iter().map(|code| code.label()).collect());
}

#[test]
fn every_reason_of_a_request_turned_away_is_explained() {
    let reasons = Refused::ALL.iter().map(|reason| reason.label()).collect();
    assert_eq!(reasons_under("## Reasons of `pln_http_refused_total`"), reasons);
}

fn core_source() -> String {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../pollen-common/src/node");
    let files = std::fs::read_dir(dir).expect("the core is beside this crate").filter_map(Result::ok);
    files.filter_map(|file| std::fs::read_to_string(file.path()).ok()).collect()
}

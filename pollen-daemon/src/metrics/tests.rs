//! What a scrape says, and that the guide says what it means.

use std::collections::BTreeSet;

use super::families;
use crate::control::fake::Fake;

fn scraped() -> String {
    let dir = std::path::Path::new("/nowhere");
    families::text(&*Fake::new(dir)).expect("the sample encodes")
}

#[test]
fn a_scrape_of_the_sample_cluster() {
    insta::assert_snapshot!(scraped());
}

#[test]
fn every_metric_is_documented_and_every_documented_metric_exists() {
    let guide = include_str!("../../../docs/guide/metrics.md");
    let scraped = scraped();
    let exported: BTreeSet<&str> =
        scraped.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let documented: BTreeSet<&str> =
        guide.lines().filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next()).collect();
    assert_eq!(exported, documented);
}

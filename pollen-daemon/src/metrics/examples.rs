//! The dashboard and the alerts under `docs/examples/prometheus` ask for metrics that there are.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::families;
use super::tests::{names_of, scraped};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/prometheus").join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(file(name)).expect("it is in the tree")
}

/// The metrics of ours that an expression names, outside of the strings in it.
fn named(expression: &str) -> BTreeSet<&str> {
    let outside = expression.split('"').step_by(2);
    let words = outside.flat_map(|part| part.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    words.filter(|word| word.starts_with("pln_") || word.starts_with("process_")).collect()
}

/// The expressions of a dashboard, wherever in it they are.
fn expressions(of: &Value, found: &mut Vec<String>) {
    match of {
        Value::Object(fields) => {
            found.extend(fields.get("expr").and_then(Value::as_str).map(ToOwned::to_owned));
            fields.values().for_each(|field| expressions(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        _ => {}
    }
}

/// The values of a rule's `expr:`, which are lines of their own there.
fn rules(text: &str) -> Vec<String> {
    let values = text.lines().filter_map(|line| line.trim_start().strip_prefix("expr: "));
    values.map(ToOwned::to_owned).collect()
}

#[test]
fn every_metric_that_the_examples_name_exists() {
    let scraped = scraped() + &families::process_text().expect("the kernel says it");
    let families = names_of(&scraped);
    let exists = |name: &str| {
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        families.contains(name) || of_histogram.is_some_and(|family| families.contains(family))
    };
    let dashboard: Value = serde_json::from_str(&read("dashboard.json")).expect("it is JSON");
    let (mut shown, alerts) = (Vec::new(), rules(&read("alerts.yml")));
    expressions(&dashboard, &mut shown);
    for (what, expressions) in [("dashboard", shown), ("alerts", alerts)] {
        let names: BTreeSet<&str> = expressions.iter().flat_map(|expression| named(expression)).collect();
        assert!(names.len() >= 8, "{what}: hardly any expressions were found: {expressions:?}");
        let absent: Vec<&&str> = names.iter().filter(|name| !exists(name)).collect();
        assert!(absent.is_empty(), "{what} asks for what there is not: {absent:?}");
    }
    assert!(!exists("pln_nothing_total") && named("sum(pln_a{b=\"pln_c\"})") == BTreeSet::from(["pln_a"]));
}

#[test]
fn prometheus_itself_takes_the_alerts() {
    let checked = Command::new("promtool").args(["check", "rules"]).arg(file("alerts.yml")).output();
    let Ok(checked) = checked else {
        eprintln!("skipped: there is no promtool (Debian: prometheus)");
        return;
    };
    let said = String::from_utf8_lossy(&checked.stdout) + String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success() && said.contains("SUCCESS"), "{said}");
}

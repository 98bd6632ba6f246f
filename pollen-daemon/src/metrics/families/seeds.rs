//! The metric families of seeds: what is published, what runs here, how calls went. Owns names and labels, which are
//! contract. Invariant: no label is a seed's name or a caller's: those are not ours to bound.

use std::collections::BTreeMap;

use pollen_common::views::View;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Metric, MetricFamily, MetricType};

use super::{Result, Scrape, as_u64, slices};
use crate::status::{ContentNumbers, EngineNumbers, SeedNumbers};
use crate::workload::{CallNumbers, Histogram};

pub(super) fn seeds(scrape: &Scrape, view: &View, numbers: &SeedNumbers) -> Result {
    scrape.gauge("pln_seeds", "Seeds of the cluster.", &[], &[(&[], as_u64(view.seeds.len()))])?;
    scrape.gauge(
        "pln_replicas",
        "Versions of seeds that this node hosts, by state.",
        &["state"],
        &slices(&by_label(&numbers.replicas)),
    )?;
    calls(scrape, &numbers.calls)?;
    engine(scrape, &numbers.engine)?;
    content(scrape, &numbers.content)
}

fn calls(scrape: &Scrape, calls: &CallNumbers) -> Result {
    scrape.gauge("pln_calls_running", "Calls that run here now.", &[], &[(&[], calls.running)])?;
    scrape.gauge("pln_calls_waiting", "Calls that wait here for their turn.", &[], &[(&[], calls.waiting)])?;
    scrape.counter(
        "pln_calls_total",
        "Calls of seeds that were made here or came here, by how they ended.",
        &["result"],
        &slices(&by_label(&calls.results)),
    )?;
    scrape.counter(
        "pln_calls_refused_total",
        "Calls that this node turned away before they ran, by reason.",
        &["reason"],
        &slices(&by_label(&calls.refused)),
    )?;
    scrape.counter("pln_call_retries_total", "Calls that were tried again elsewhere.", &[], &[(&[], calls.retries)])?;
    scrape.histogram("pln_call_seconds", "How long calls took that ran here.", &calls.seconds)
}

fn engine(scrape: &Scrape, engine: &EngineNumbers) -> Result {
    let standing = engine.standing.as_ref();
    let infos: Vec<([&str; 2], u64)> =
        standing.iter().map(|standing| ([standing.allocator.as_str(), standing.reset.as_str()], 1)).collect();
    scrape.gauge(
        "pln_engine_info",
        "Always 1; the labels say where instances come from and how their memory is made new.",
        &["allocator", "reset"],
        &slices(&infos),
    )?;
    scrape.gauge("pln_engine_instances", "Instances of guests there are now.", &[], &[(&[], engine.instances)])?;
    let slots = standing.map_or(0, |standing| standing.slots);
    scrape.gauge("pln_engine_slots", "Instances there can be.", &[], &[(&[], slots)])?;
    scrape.gauge(
        "pln_engine_memory_bytes",
        "Memory of guests, by state: `running`, or `kept` for the next call.",
        &["state"],
        &[(&["running"], engine.memory_bytes), (&["kept"], engine.kept_bytes)],
    )?;
    scrape.counter(
        "pln_compilations_total",
        "Modules made ready to run, by how.",
        &["result"],
        &slices(&by_label(&engine.compilations)),
    )
}

fn content(scrape: &Scrape, content: &ContentNumbers) -> Result {
    scrape.gauge("pln_content_modules", "Modules on this node's disk.", &[], &[(&[], content.modules)])?;
    scrape.gauge("pln_content_bytes", "Bytes of modules on this node's disk.", &[], &[(&[], content.bytes)])?;
    scrape.counter(
        "pln_content_fetched_total",
        "Modules fetched from other nodes, by how that ended.",
        &["result"],
        &slices(&by_label(&content.fetched)),
    )
}

fn by_label(counts: &BTreeMap<String, u64>) -> Vec<([&str; 1], u64)> {
    counts.iter().map(|(label, n)| ([label.as_str()], *n)).collect()
}

impl Scrape {
    fn histogram(&self, name: &str, help: &str, histogram: &Histogram) -> Result {
        let desc = Desc::new(name.into(), help.into(), Vec::new(), Default::default())?;
        self.registry.register(Box::new(Counted { desc, histogram: histogram.clone() }))
    }
}

/// A histogram that was counted elsewhere.
struct Counted {
    desc: Desc,
    histogram: Histogram,
}

impl Collector for Counted {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let buckets = self.histogram.buckets.iter().map(|(bound, count)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(*count);
            bucket
        });
        let mut counted = prometheus::proto::Histogram::default();
        counted.set_bucket(buckets.collect());
        counted.set_sample_count(self.histogram.count);
        counted.set_sample_sum(self.histogram.sum);
        let mut metric = Metric::default();
        metric.set_histogram(counted);
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(vec![metric]);
        vec![family]
    }
}

//! The numbers of those who do the work of seeds, as the control socket and the metrics show them. Owns that mapping.

use crate::content;
use crate::status::{ContentNumbers, EngineNumbers, EngineStanding, SeedNumbers};
use crate::workload::engine::{Engine, Instances, Reset};
use crate::workload::machine::NoEngine;

use super::running::Wiring;

/// What there is to tell of seeds now.
pub(super) fn of_seeds(parts: &Wiring) -> SeedNumbers {
    SeedNumbers {
        calls: parts.calls.numbers(),
        engine: parts.machine.found().map_or_else(EngineNumbers::default, of_engine),
        content: of_content(parts.content.numbers()),
        replicas: parts.replicas.counts().into_iter().map(|(state, count)| (state.to_owned(), count)).collect(),
    }
}

fn of_engine(found: Result<Engine, NoEngine>) -> EngineNumbers {
    let engine = match found {
        Ok(engine) => engine,
        Err(why) => {
            let standing = EngineStanding { allocator: "none".into(), why_not_better: why.0, ..Default::default() };
            return EngineNumbers { standing: Some(standing), ..EngineNumbers::default() };
        }
    };
    let numbers = engine.numbers();
    let made = [("compiled", numbers.compilations), ("cached", numbers.cache_hits), ("damaged", numbers.cache_damaged)];
    EngineNumbers {
        standing: Some(standing(&engine.standing().instances)),
        instances: numbers.running as u64,
        memory_bytes: numbers.memory_bytes,
        kept_bytes: numbers.kept_bytes,
        compilations: made.map(|(how, count)| (how.to_owned(), count)).into(),
    }
}

fn standing(instances: &Instances) -> EngineStanding {
    let slots = instances.slots() as u64;
    match instances {
        Instances::Pool { reset, stepped_down, .. } => {
            let (reset, coarse) = match reset {
                Reset::Scan => ("pagemap_scan", None),
                Reset::Blind => ("keep", Some(reset.sentence().to_owned())),
            };
            let whys: Vec<String> = stepped_down.iter().cloned().chain(coarse).collect();
            EngineStanding { allocator: "pooling".into(), reset: reset.into(), slots, why_not_better: whys.join("; ") }
        }
        Instances::OnDemand { why, .. } => EngineStanding {
            allocator: "on_demand".into(),
            reset: "decommit".into(),
            slots,
            why_not_better: why.clone(),
        },
    }
}

fn of_content(numbers: content::ContentNumbers) -> ContentNumbers {
    let fetched = [("ok", numbers.fetched), ("failed", numbers.failed), ("damaged", numbers.damaged + numbers.lied)];
    ContentNumbers {
        modules: numbers.held,
        bytes: numbers.held_bytes,
        fetched: fetched.map(|(how, count)| (how.to_owned(), count)).into(),
    }
}

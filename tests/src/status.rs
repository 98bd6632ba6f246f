//! What `pln status --json` says, as far as scenarios ask. Field names are contract: a change there must break here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::patience::eventually;
use crate::pln::Pln;

/// One answer of `pln status --json`.
#[derive(Clone, Debug)]
pub struct Status(pub Value);

impl Status {
    /// Asks a node.
    ///
    /// # Errors
    /// If it does not answer, or not with a status.
    pub fn of(node: &Pln) -> Result<Self> {
        node.json(&["status", "--include-offline"]).map(Self)
    }

    /// The names of the nodes that it holds for online, itself included.
    ///
    /// # Errors
    /// If the document has another shape.
    pub fn online(&self) -> Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for node in self.array("nodes")? {
            let state = node["state"].as_str().context("a node without a state")?;
            ensure!(["me", "online", "offline", "denied"].contains(&state), "a node is {state}");
            if matches!(state, "me" | "online") {
                names.insert(node["name"].as_str().context("a node without a name")?.to_owned());
            }
        }
        Ok(names)
    }

    /// The names of the services.
    ///
    /// # Errors
    /// If the document has another shape.
    pub fn services(&self) -> Result<BTreeSet<String>> {
        let services = self.array("services")?.iter();
        Ok(services.filter_map(|service| Some(service["name"].as_str()?.to_owned())).collect())
    }

    /// The names of the nodes that provide a service.
    ///
    /// # Errors
    /// If the document has another shape.
    pub fn providers(&self, service: &str) -> Result<BTreeSet<String>> {
        let Some(found) = self.array("services")?.iter().find(|found| found["name"] == service) else {
            return Ok(BTreeSet::new());
        };
        let providers = found["providers"].as_array().context("a service without providers")?;
        providers
            .iter()
            .map(|p| Ok(p["node"]["name"].as_str().context("a provider without a name")?.to_owned()))
            .collect()
    }

    /// What it says of a seed, if it knows it.
    ///
    /// # Errors
    /// If the document has another shape.
    pub fn seed(&self, name: &str) -> Result<Option<&Value>> {
        Ok(self.array("seeds")?.iter().find(|seed| seed["name"] == name))
    }

    /// The names of the nodes that are ready to serve the version of a seed that answers by name.
    ///
    /// # Errors
    /// If the document has another shape.
    pub fn hosts(&self, seed: &str) -> Result<BTreeSet<String>> {
        let Some(seed) = self.seed(seed)? else { return Ok(BTreeSet::new()) };
        let ready = seed["ready"].as_array().context("a seed without `ready`")?;
        ready.iter().map(|node| Ok(node["name"].as_str().context("a host without a name")?.to_owned())).collect()
    }

    /// The digests of the replicated document, equal on nodes whose documents are.
    ///
    /// # Errors
    /// If the document has another shape.
    pub fn roots(&self) -> Result<Vec<String>> {
        let roots = self.0["document"]["roots"].as_array().context("no document.roots")?;
        ensure!(!roots.is_empty(), "a document without roots");
        roots.iter().map(|root| Ok(root.as_str().context("a root that is no string")?.to_owned())).collect()
    }

    /// The headline: `healthy`, `degraded` or `unhealthy`.
    ///
    /// # Errors
    /// If the document has another shape.
    pub fn health(&self) -> Result<&str> {
        self.0["health"]["state"].as_str().context("no health.state")
    }

    /// What is wrong, by code, each with its sentence.
    ///
    /// # Errors
    /// If the document has another shape, or one of them says nothing to do.
    pub fn conditions(&self) -> Result<BTreeMap<String, String>> {
        let conditions = self.0["health"]["conditions"].as_array().context("no array health.conditions")?;
        let text = |condition: &Value, field: &str| {
            let text = condition[field].as_str().filter(|text| !text.is_empty());
            text.map(str::to_owned).with_context(|| format!("a condition without {field}"))
        };
        let told = |condition: &Value| {
            text(condition, "remedy")?;
            Ok((text(condition, "code")?, text(condition, "message")?))
        };
        conditions.iter().map(told).collect()
    }

    fn array(&self, field: &str) -> Result<&Vec<Value>> {
        self.0[field].as_array().with_context(|| format!("no array `{field}` in the status"))
    }
}

/// Waits until `node` says that this is wrong, in a sentence that has all of `parts`.
///
/// # Errors
/// After `deadline`: what it says instead.
pub fn await_condition(node: &Pln, code: &str, parts: &[&str], deadline: Duration) -> Result<Duration> {
    let told = || {
        let conditions =
            Status::of(node).and_then(|status| status.conditions()).map_err(|error| format!("{error:#}"))?;
        match conditions.get(code) {
            Some(message) if parts.iter().all(|part| message.contains(part)) => Ok(()),
            _ => Err(format!("{} says {conditions:?}", node.host.name())),
        }
    };
    Ok(eventually(&format!("{code} with {parts:?} is told"), deadline, told)?.1)
}

/// Waits until nothing is wrong with `node`, by its own words.
///
/// # Errors
/// After `deadline`: what it says instead.
pub fn await_healthy(node: &Pln, deadline: Duration) -> Result<Duration> {
    let healthy = || {
        let status = Status::of(node).map_err(|error| format!("{error:#}"))?;
        let conditions = status.conditions().map_err(|error| format!("{error:#}"))?;
        match status.health() {
            Ok("healthy") if conditions.is_empty() => Ok(()),
            other => Err(format!("{} is {other:?}: {conditions:?}", node.host.name())),
        }
    };
    Ok(eventually(&format!("{} is healthy", node.host.name()), deadline, healthy)?.1)
}

/// Waits until every one of `nodes` holds exactly the nodes named `online` for online; returns how long that took.
///
/// # Errors
/// After `deadline`: who saw what.
pub fn await_online(nodes: &[&Pln], online: &[&str], deadline: Duration) -> Result<Duration> {
    let expected: BTreeSet<String> = online.iter().map(|name| (*name).to_owned()).collect();
    let all_see = || {
        for node in nodes {
            let seen = Status::of(node).and_then(|status| status.online()).map_err(|error| format!("{error:#}"))?;
            if seen != expected {
                return Err(format!("{} sees {seen:?}", node.host.name()));
            }
        }
        Ok(())
    };
    Ok(eventually(&format!("all see {expected:?} online"), deadline, all_see)?.1)
}

/// Waits until all of `nodes` have equal documents; returns how long that took.
///
/// # Errors
/// After `deadline`: the digests of each.
pub fn await_equal(nodes: &[&Pln], deadline: Duration) -> Result<Duration> {
    let equal = || {
        let roots: Result<Vec<_>> = nodes.iter().map(|node| Status::of(node)?.roots()).collect();
        let roots = roots.map_err(|error| format!("{error:#}"))?;
        if roots.windows(2).all(|pair| pair[0] == pair[1]) { Ok(()) } else { Err(format!("{roots:#?}")) }
    };
    Ok(eventually("equal documents", deadline, equal)?.1)
}

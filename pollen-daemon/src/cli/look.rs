//! Commands that look and change nothing: `status`, `inspect`, `why`, `events`, `logs`.

use std::path::Path;

use clap::ValueEnum;
use pollen_common::time::UnixMs;

use super::output::Output;
use crate::control::api::{EventLine, LogLine, Reasons};
use crate::control::client::{Client, segment};
use crate::http::failure::{Code, Failure};
use crate::status::inspect::Inspected;
use crate::status::plain::plain;
use crate::status::table::{self, Layout, Section};
use crate::status::when::Moment;
use crate::{logs, status};

/// Show this node and the cluster as it sees it
#[derive(Debug, clap::Args)]
pub(super) struct Status {
    /// One table alone
    section: Option<Only>,
    /// More columns, and keys in full
    #[arg(long)]
    wide: bool,
    /// Also nodes that are offline, and services that none of the nodes online provides. JSON always has them
    #[arg(long)]
    include_offline: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Only {
    Nodes,
    Services,
    Seeds,
}

impl Status {
    pub(super) async fn run(self, client: &Client, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let status: status::Status = client.ask("/v1/status").await?;
        let layout = Layout {
            section: match self.section {
                None => Section::All,
                Some(Only::Nodes) => Section::Nodes,
                Some(Only::Services) => Section::Services,
                Some(Only::Seeds) => Section::Seeds,
            },
            wide: self.wide,
            include_offline: self.include_offline,
            colour: output.colour(),
        };
        match self.section {
            None => output.answer(&status, || table::status(&status, layout)),
            Some(Only::Nodes) => output.answer(&status.nodes, || table::status(&status, layout)),
            Some(Only::Services) => output.answer(&status.services, || table::status(&status, layout)),
            Some(Only::Seeds) => output.answer(&status.seeds, || table::status(&status, layout)),
        }
    }
}

/// Show one node, service or seed in full
#[derive(Debug, clap::Args)]
pub(super) struct Inspect {
    /// A node's name or the start of its key, a service's name, a seed's name or the start of its hash; node/X,
    /// service/X or seed/X where several exist
    target: String,
}

impl Inspect {
    pub(super) async fn run(self, client: &Client, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let inspected: Inspected = client.ask(&format!("/v1/inspect/{}", target(&self.target)?)).await?;
        output.answer(&inspected, || table::inspect(&inspected))
    }
}

/// Say why a node stands or does not, why a service is whose it is, why a seed runs where it does
///
/// Every rule that decided, by the functions that decided it.
#[derive(Debug, clap::Args)]
pub(super) struct Why {
    /// A node's name or the start of its key, a service's name, a seed's name or the start of its hash; node/X,
    /// service/X or seed/X where several exist
    target: String,
}

impl Why {
    pub(super) async fn run(self, client: &Client, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let reasons: Reasons = client.ask(&format!("/v1/why/{}", target(&self.target)?)).await?;
        output.answer(&reasons, || {
            let lines = reasons.reasons.iter().map(|reason| format!("\n- {}", plain(reason).replace('\n', " ")));
            format!("{} {}{}", reasons.kind, reasons.target, lines.collect::<String>())
        })
    }
}

/// Show what happened: peers come and gone, members admitted, names published, refusals
#[derive(Debug, clap::Args)]
pub(super) struct Events {
    /// Go on as more happens
    #[arg(short, long)]
    follow: bool,
    /// Only the newest so many
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,
}

impl Events {
    pub(super) async fn run(self, client: &Client, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let lines = self.lines.map_or_else(String::new, |lines| format!("&lines={lines}"));
        let path = format!("/v1/events?follow={}{lines}", self.follow);
        let take = |line: EventLine| {
            output.line(&line, || {
                let peer = line.peer.as_deref().and_then(|key| key.get(..8)).unwrap_or("-");
                let message = line.message.replace('\n', " ");
                format!("{}  {:<9}  {peer:<8}  {message}", Moment(UnixMs(line.at_unix_ms)), line.kind)
            })
        };
        client.lines(&path, take).await
    }
}

/// Show what the daemon logged
///
/// Without a daemon, what it last wrote.
#[derive(Debug, clap::Args)]
pub(super) struct Logs {
    /// Go on as more is logged
    #[arg(short, long)]
    follow: bool,
    /// Begin with the newest so many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
    lines: usize,
}

impl Logs {
    pub(super) async fn run(self, client: &Client, dir: &Path, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let path = format!("/v1/logs?follow={}&lines={}", self.follow, self.lines);
        let asked = client.lines(&path, |line: LogLine| output.line(&line, || line.line.clone())).await;
        match asked {
            Err(failure) if failure.code == Code::Unreachable && !self.follow => {
                self.written(dir, output)?.ok_or(failure)
            }
            asked => asked,
        }
    }

    /// What a daemon that is gone left in its log file; none if there is nothing.
    fn written(&self, dir: &Path, output: &mut Output<'_, '_>) -> Result<Option<()>, Failure> {
        let lines = logs::tail(dir, self.lines).map_err(|error| {
            Failure::new(Code::Failed, format!("the logs in {} cannot be read: {error}", dir.display()))
        })?;
        if lines.is_empty() {
            return Ok(None);
        }
        output.note("The daemon is down; this is what it last logged:");
        for line in lines {
            let line = LogLine { line };
            if !output.line(&line, || line.line.clone())? {
                break;
            }
        }
        Ok(Some(()))
    }
}

/// A target as the end of a path; an empty one would ask for another path.
fn target(target: &str) -> Result<String, Failure> {
    if target.is_empty() {
        return Err(Failure::new(Code::Usage, "an empty name means nothing"));
    }
    Ok(segment(target))
}

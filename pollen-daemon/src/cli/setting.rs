//! `set` and `unset`: what can be changed while the daemon runs.

use hyper::Method;
use serde_json::json;

use super::output::Output;
use crate::control::api::{SettingBody, SettingsShown};
use crate::control::client::Client;
use crate::control::settings::Key;
use crate::http::failure::Failure;

/// Change a setting at once and for good, or show what is set
#[derive(Debug, clap::Args)]
pub(super) struct Set {
    /// `name`: what this node is called, its host's name unless set. `http`: where metrics are served, e.g. :9090. `log-level`: e.g. debug. `seed-memory`: what all seeds here may use
    /// together, e.g. 4GiB. `stream-patience`: how long open streams wait for a peer that answers nothing, 15m unless set.
    /// `relay`: whether packets of nodes that cannot reach each other are passed on, `on` unless set to `off`. `datapath`:
    /// what passes them on, `auto` unless set to `xdp`, `xdp-generic` or `socket`
    #[arg(value_parser = parse_key)]
    key: Option<Key>,
    value: Option<String>,
}

/// Put a setting back at its default
#[derive(Debug, clap::Args)]
pub(super) struct Unset {
    #[arg(value_parser = parse_key)]
    key: Key,
}

fn parse_key(s: &str) -> Result<Key, String> {
    s.parse().map_err(|failure: Failure| failure.to_string())
}

impl Set {
    pub(super) async fn run(self, client: &Client, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let Some(key) = self.key else {
            let settings: SettingsShown = client.ask("/v1/settings").await?;
            return output.answer(&settings, || Key::ALL.map(|key| line(key, &settings)).join("\n"));
        };
        let settings: SettingsShown = match self.value {
            None => client.ask("/v1/settings").await?,
            Some(value) => {
                let path = format!("/v1/settings/{}", key.as_str());
                client.exchange(Method::PUT, &path, Some(&SettingBody { value })).await?
            }
        };
        show(key, &settings, output)
    }
}

impl Unset {
    pub(super) async fn run(self, client: &Client, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let path = format!("/v1/settings/{}", self.key.as_str());
        let settings: SettingsShown = client.exchange(Method::DELETE, &path, None::<&()>).await?;
        show(self.key, &settings, output)
    }
}

fn show(key: Key, settings: &SettingsShown, output: &mut Output<'_, '_>) -> Result<(), Failure> {
    output.answer(&json!({key.as_str(): value(key, settings)}), || line(key, settings))
}

fn line(key: Key, settings: &SettingsShown) -> String {
    format!("{:<15}  {}", key.as_str(), value(key, settings).unwrap_or("(default)"))
}

fn value(key: Key, settings: &SettingsShown) -> Option<&str> {
    match key {
        Key::Name => settings.name.as_deref(),
        Key::Http => settings.http.as_deref(),
        Key::LogLevel => settings.log_level.as_deref(),
        Key::SeedMemory => settings.seed_memory.as_deref(),
        Key::StreamPatience => settings.stream_patience.as_deref(),
        Key::Relay => settings.relay.as_deref(),
        Key::Datapath => settings.datapath.as_deref(),
    }
}

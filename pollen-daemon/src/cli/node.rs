//! Commands about this node itself: `init`, `up`, `join`, `down`, `id`, `purge`, `version`.

use std::io::{IsTerminal as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use hyper::Method;
use pollen_common::identity::NodeKey;
use serde_json::json;

use super::daemon::{self, Dirs};
use super::offline::Offline;
use super::output::Output;
use super::props::Props;
use crate::cli::offline::code_of_open;
use crate::config::{Excluded, UpOptions};
use crate::control::api::{self, Done};
use crate::control::client::Client;
use crate::control::invite::plain_props;
use crate::control::settings::parse_address;
use crate::enroll::{self, EnrollError};
use crate::http::failure::{Code, Failure};
use crate::keys;
use crate::store::owner::{self, Acting};
use crate::store::{self, OpenError, StateDir};
use crate::systemd::unit::STOP_TIMEOUT;

/// Make a new cluster, rooted on this machine
///
/// Prints the root's public key and the cluster's id. The root's keys stay in the state directory's `root`; the daemon
/// never reads them. Doing it again changes nothing.
#[derive(Debug, clap::Args)]
pub(super) struct Init {
    #[command(flatten)]
    props: Props,
}

impl Init {
    pub(super) fn run(self, dir: &Path, output: &mut Output<'_, '_>, offline: &dyn Offline) -> Result<(), Failure> {
        let _acting = act_for(dir)?;
        let props = self.props.resolve(std::io::stdin())?;
        plain_props(&props)?;
        let founded = offline.init(dir, props)?;
        let (root, cluster, node) = (founded.root, founded.cluster, founded.node);
        let document =
            json!({"root_pub": root.to_string(), "cluster_id": cluster.to_string(), "node": node.to_string()});
        output.answer(&document, || format!("root_pub    {root}\ncluster_id  {cluster}\nnode        {node}"))
    }
}

/// How a node runs; remembered for the next start.
#[derive(Debug, clap::Args)]
pub(super) struct UpArgs {
    /// UDP port of the mesh; 0 for any free one [default: 60611]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Addresses to announce instead of the interfaces' own; or, each behind `not:`, addresses, networks and interfaces to
    /// leave out (not:10.8.0.0/16,not:wg0)
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    ips: Vec<Told>,
    /// The node's name [default: the host's]
    #[arg(long)]
    name: Option<String>,
    /// This node can be reached from anywhere. Recorded and shown by `pln status`; it has no effect yet
    #[arg(long)]
    public: bool,
    /// Serve Prometheus metrics, as `pln set http` does
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = ":9090", require_equals = true,
          value_parser = parse_metrics)]
    metrics: Option<SocketAddr>,
}

fn parse_metrics(s: &str) -> Result<SocketAddr, String> {
    parse_address(s).map_err(|failure| failure.message)
}

/// One of `--ips`.
#[derive(Clone, Debug)]
enum Told {
    Yes(IpAddr),
    No(Excluded),
}

impl FromStr for Told {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(not) = text.strip_prefix("not:") {
            return not.parse().map(Self::No);
        }
        let wrong = |_| format!("`{text}` is no address; what is to be left out is written not:{text}");
        text.parse().map(Self::Yes).map_err(wrong)
    }
}

impl UpArgs {
    fn options(self) -> UpOptions {
        let Self { port, ips: told, name, public, metrics } = self;
        let (mut ips, mut not_ips) = (Vec::new(), Vec::new());
        for one in told {
            match one {
                Told::Yes(ip) => ips.push(ip),
                Told::No(not) => not_ips.push(not),
            }
        }
        UpOptions { name, port, ips, not_ips, public, http: metrics }
    }
}

/// Start the node, in the foreground or as a service
///
/// A machine without credentials becomes a cluster of one. Options are remembered.
#[derive(Debug, clap::Args)]
pub(super) struct Up {
    /// Start the installed service, now and at every boot (see `pln daemon install`)
    #[arg(short, long)]
    detach: bool,
    #[command(flatten)]
    args: UpArgs,
}

impl Up {
    pub(super) fn run(
        self,
        dirs: &Dirs<'_>,
        output: &mut Output<'_, '_>,
        offline: &dyn Offline,
    ) -> Result<(), Failure> {
        if self.detach {
            detached(dirs.of_service(), self.args, offline)?;
            return output.answer(&Done::YES, || daemon::STARTED.into());
        }
        let _acting = act_for(dirs.resolved)?;
        offline.run(dirs.resolved, self.args.options())
    }
}

/// Starts the service with these options.
fn detached(dir: &Path, args: UpArgs, offline: &dyn Offline) -> Result<(), Failure> {
    let (port, options) = (args.port, args.options());
    if daemon::governs(dir) && options != UpOptions::default() {
        let _acting = act_for(dir)?;
        offline.remember(dir, options)?;
    }
    daemon::start(dir, port)
}

/// Enter a cluster with an invite, and start
///
/// As a service where one is installed (see `pln daemon install`), else in the foreground.
///
/// The token is what `pln invite` printed on a member; `-` reads it from standard input, where other users of this machine
/// do not see it. A token that was entered once is spent.
#[derive(Debug, clap::Args)]
pub(super) struct Join {
    /// What `pln invite` printed, or -
    token: String,
    /// Enter the cluster, and do not start
    #[arg(long)]
    no_up: bool,
    #[command(flatten)]
    args: UpArgs,
}

/// The most that is read of a token, in bytes: an invite with a long lineage takes some 8 KiB.
const TOKEN_BYTES_MAX: u64 = 64 * 1024;

impl Join {
    pub(super) fn run(self, dir: &Path, output: &mut Output<'_, '_>, offline: &dyn Offline) -> Result<(), Failure> {
        let token = if self.token == "-" { read_token()? } else { self.token };
        let acting = act_for(dir)?;
        let joined = offline.join(dir, token.trim())?;
        let (cluster, node) = (joined.cluster, joined.node);
        let document = json!({"cluster_id": cluster.to_string(), "node": node.to_string()});
        output.answer(&document, || format!("joined cluster {cluster}\nas node {node}"))?;
        if self.no_up {
            return Ok(());
        }
        if matches!(StateDir::open(dir), Err(OpenError::Locked { .. })) {
            output.note("It runs already.");
            return Ok(());
        }
        if daemon::governs(dir) {
            // Starting a service is root's to do, not its user's.
            drop(acting);
            detached(dir, self.args, offline)?;
            output.note(daemon::STARTED);
            return Ok(());
        }
        offline.run(dir, self.args.options())
    }
}

fn read_token() -> Result<String, Failure> {
    use std::io::Read as _;
    let mut token = String::new();
    std::io::stdin()
        .take(TOKEN_BYTES_MAX)
        .read_to_string(&mut token)
        .map_err(|error| Failure::new(Code::Usage, format!("the token cannot be read: {error}")))?;
    Ok(token)
}

/// Stop the node
///
/// Open streams may finish for ten seconds; the other nodes are told.
#[derive(Debug, clap::Args)]
pub(super) struct Down {}

/// How long `down` waits for the daemon's end: as long as systemd would.
const DOWN_TIMEOUT: Duration = STOP_TIMEOUT;
/// How often it looks.
const DOWN_POLL: Duration = Duration::from_millis(50);

impl Down {
    pub(super) async fn run(self, client: &Client, dir: &Path, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        if daemon::stop(dir)? {
            return output.answer(&Done::YES, || "down".into());
        }
        let done: Done = client.exchange(Method::POST, "/v1/shutdown", None::<&()>).await?;
        // The socket goes first, the hold on the directory last: only then does `pln up` work again.
        let held = || matches!(StateDir::open(dir), Err(OpenError::Locked { .. }));
        let gone = async {
            while client.is_up().await || held() {
                tokio::time::sleep(DOWN_POLL).await;
            }
        };
        tokio::time::timeout(DOWN_TIMEOUT, gone).await.map_err(|_| {
            Failure::new(Code::Failed, format!("the daemon still runs after {} s", DOWN_TIMEOUT.as_secs()))
                .hint("look at `pln logs`")
        })?;
        output.answer(&done, || "down".into())
    }
}

/// Print this node's key
///
/// Made now if there is none yet, so that an invite can be bound to it before the machine joins.
#[derive(Debug, clap::Args)]
pub(super) struct Id {}

impl Id {
    pub(super) fn run(self, dir: &Path, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let _acting = act_for(dir)?;
        // Reading takes no lock, so that it works beside a running daemon.
        let known = enroll::id(dir).map_err(|error| match error {
            EnrollError::Open(error) => not_opened(error),
            error => Failure::new(Code::Failed, error.to_string()),
        })?;
        let (key, cluster, root) = match known {
            Some(identity) => (identity.node, identity.cluster, identity.root),
            None => (make_key(dir)?, None, None),
        };
        let hex = |bytes: &dyn std::fmt::Display| bytes.to_string();
        let document = json!({
            "key": hex(&key),
            "cluster_id": cluster.as_ref().map(|cluster| hex(cluster)),
            "root_pub": root.as_ref().map(|root| hex(root)),
        });
        // The key alone, so that `pln invite $(pln id)` works.
        output.answer(&document, || hex(&key))
    }
}

fn make_key(dir: &Path) -> Result<NodeKey, Failure> {
    let held = StateDir::create(dir).map_err(not_opened)?;
    let made = keys::load_or_make_node(held.path());
    made.map(|secret| secret.public()).map_err(|error| Failure::new(Code::Failed, error.to_string()))
}

/// Delete this node's state
///
/// The membership, what it published, settings and logs. Its key stays unless `--include-keys`. The daemon must be down.
#[derive(Debug, clap::Args)]
pub(super) struct Purge {
    /// Also delete the node's key, and the root's if they are here: what only they could do nobody can do any more
    #[arg(long)]
    include_keys: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

impl Purge {
    pub(super) fn run(self, dir: &Path, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let _acting = act_for(dir)?;
        let held = StateDir::open(dir).map_err(|error| {
            let runs = matches!(error, OpenError::Locked { .. });
            let failure = not_opened(error);
            if runs { failure.hint("stop it first: `pln down`") } else { failure }
        })?;
        if !self.yes && !confirmed(dir, self.include_keys)? {
            return Err(Failure::new(Code::Failed, "nothing was deleted"));
        }
        store::purge(held, self.include_keys)
            .map_err(|error| Failure::new(Code::Failed, format!("{}: {error}", dir.display())).hint("run it again"))?;
        output.answer(&Done::YES, || format!("deleted the state in {}", dir.display()))
    }
}

fn confirmed(dir: &Path, keys: bool) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(Code::Usage, "there is nobody to ask whether to delete").hint("add --yes"));
    }
    let what = if keys { "all state AND KEYS" } else { "all state but the keys" };
    let mut answer = String::new();
    write!(std::io::stderr(), "Delete {what} in {}? [y/N] ", dir.display())
        .and_then(|()| std::io::stdin().read_line(&mut answer))
        .map_err(|error| Failure::new(Code::Failed, format!("cannot ask: {error}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn act_for(dir: &Path) -> Result<Acting, Failure> {
    owner::act_for(dir).map_err(|error| Failure::new(Code::Denied, error.to_string()))
}

fn not_opened(error: OpenError) -> Failure {
    Failure::new(code_of_open(&error), error.to_string())
}

/// Print the version
#[derive(Debug, clap::Args)]
pub(super) struct Version {
    /// The number alone
    #[arg(long)]
    short: bool,
}

impl Version {
    pub(super) async fn run(self, client: &Client, output: &mut Output<'_, '_>) -> Result<(), Failure> {
        let own = api::Version::own();
        if self.short {
            return output.answer(&own.version, || own.version.clone());
        }
        // No daemon is no failure here.
        let daemon = client.ask::<api::Version>("/v1/version").await.ok();
        let document = json!({"version": own.version, "commit": own.commit, "daemon": daemon});
        output.answer(&document, || {
            let mut shown = format!("pln {}", own.version);
            if let Some(commit) = &own.commit {
                shown.push_str(&format!(" ({commit})"));
            }
            if let Some(daemon) = daemon.as_ref().filter(|daemon| **daemon != own) {
                shown.push_str(&format!("\nthe daemon runs {}: restart it", daemon.version));
            }
            shown
        })
    }
}

//! A daemon for tests: answers from the sample cluster, remembers what it was asked.
//! Invariant: what it says is fixed, so that snapshots can be taken through it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::future::BoxFuture;
use pollen_common::node::{Command, Event, EventKind, Refusal, RefusalKind, Reply};
use pollen_common::time::UnixMs;
use pollen_common::views::{Name, SeedVersion, View};
use tokio::sync::{broadcast, watch};

use crate::config::LiveSettings;
use crate::events::EventRecord;
use crate::handle::{Answer, Daemon, Phase, SeedProgress, SeedRequest, SeedStage, Seeded, Serving, Subject, Unseeded};
use crate::services::{Connect, Disconnect, Listener, Serve, ServiceRef};
use crate::status::{About, HeldModule, Numbers};
use crate::status::{Troubles, sample};
use crate::workload::{CallAnswer, CallFailure, CallRequest};

pub(crate) struct Fake {
    dir: PathBuf,
    view: watch::Sender<Arc<View>>,
    asked: Mutex<Asked>,
    events: broadcast::Sender<EventRecord>,
    logs: broadcast::Sender<String>,
}

/// What it was asked so far.
#[derive(Default)]
pub(crate) struct Asked {
    pub(crate) commands: Vec<Command>,
    pub(crate) served: Vec<Serve>,
    pub(crate) connected: Vec<Connect>,
    pub(crate) disconnected: Vec<Disconnect>,
    pub(crate) seeded: Vec<SeedRequest>,
    pub(crate) unseeded: Vec<Name>,
    pub(crate) called: Vec<CallRequest>,
    pub(crate) settings: LiveSettings,
    pub(crate) refuse_settings: bool,
    pub(crate) metrics_wait: Option<String>,
    pub(crate) shutdown: bool,
    /// What it says of itself; up unless a test sets otherwise.
    pub(crate) phase: Option<Phase>,
    pub(crate) troubles: Troubles,
}

impl Fake {
    pub(crate) fn new(dir: &Path) -> Arc<Self> {
        Arc::new(Self {
            dir: dir.to_owned(),
            view: watch::Sender::new(Arc::new(sample::view())),
            asked: Mutex::default(),
            events: broadcast::channel(4).0,
            logs: broadcast::channel(4).0,
        })
    }

    pub(crate) fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().expect("no test panics while it holds this")
    }

    /// From now on it sees this.
    pub(crate) fn sees(&self, view: View) {
        self.view.send_replace(Arc::new(view));
    }

    pub(crate) fn event(seq: u64) -> EventRecord {
        let message = format!("berlin is up ({seq})");
        let event = Event { kind: EventKind::PeerUp, peer: Some(sample::key(2)), message };
        EventRecord { seq, at: UnixMs(sample::NOW.0 + seq), event }
    }

    /// Makes an event happen; how many are following.
    pub(crate) fn happen(&self, seq: u64) -> usize {
        self.events.send(Self::event(seq)).unwrap_or(0)
    }
}

fn refusal(kind: RefusalKind, message: &str) -> Refusal {
    Refusal { kind, message: message.into(), hint: Some("do something else".into()) }
}

impl Daemon for Fake {
    fn now(&self) -> UnixMs {
        sample::NOW
    }

    fn about(&self) -> About {
        About { dir: self.dir.clone(), ..sample::about() }
    }

    fn phase(&self) -> Phase {
        self.asked().phase.unwrap_or(Phase::Up)
    }

    fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    fn views(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    fn numbers(&self) -> Numbers {
        sample::numbers()
    }

    fn metrics_wait(&self, why: Option<String>) {
        self.asked().metrics_wait = why;
    }

    fn troubles(&self) -> Troubles {
        self.asked().troubles.clone()
    }

    fn command(&self, command: Command) -> Answer<'_, Reply> {
        self.asked().commands.push(command);
        Box::pin(async { Ok(Reply::Token(vec![0xFB, 0xFF, 1])) })
    }

    fn why(&self, subject: Subject) -> Answer<'_, Vec<String>> {
        Box::pin(async move { Ok(vec![format!("{subject:?} is so"), "because it is".into()]) })
    }

    /// A port above 60000 stands for what a leaf may not publish.
    fn serve(&self, request: Serve) -> Answer<'_, Serving> {
        Box::pin(async move {
            if request.port > 60_000 {
                return Err(refusal(RefusalKind::Denied, "publishing takes a publisher and this node is a leaf"));
            }
            // Nobody listens on one below 100.
            let warning = (request.port < 100).then(|| "nothing listens there".to_owned());
            let policy = request.policy.clone().unwrap_or_default();
            self.asked().served.push(request);
            Ok(Serving { policy, warnings: warning.into_iter().collect() })
        })
    }

    fn unserve(&self, request: ServiceRef) -> Answer<'_, ()> {
        Box::pin(async move {
            if request.to_string() == "api" {
                return Ok(());
            }
            Err(refusal(RefusalKind::NotFound, "this node does not serve that"))
        })
    }

    fn connect(&self, request: Connect) -> Answer<'_, Vec<Listener>> {
        self.asked().connected.push(request);
        Box::pin(async { Ok(vec![sample::listeners().remove(0)]) })
    }

    fn disconnect(&self, request: Disconnect) -> Answer<'_, Vec<Listener>> {
        self.asked().disconnected.push(request);
        Box::pin(async { Ok(sample::listeners()) })
    }

    fn listeners(&self) -> Vec<Listener> {
        sample::listeners()
    }

    /// A module of one byte stands for what cannot be run.
    fn seed(&self, request: SeedRequest, progress: watch::Sender<SeedProgress>) -> Answer<'_, Seeded> {
        Box::pin(async move {
            progress.send_replace(SeedProgress::at(SeedStage::Compiling));
            tokio::task::yield_now().await;
            if request.module.len() == 1 {
                return Err(refusal(RefusalKind::Usage, "it imports env.fork, which nobody offers"));
            }
            progress.send_replace(SeedProgress { stage: SeedStage::Spreading, done: 1, total: 2 });
            tokio::task::yield_now().await;
            let seeded = Seeded {
                name: request.name.clone(),
                version: sample::hello_version().id(),
                module: sample::hello_version().module,
                ready: 2,
                floor: 2,
                note: None,
            };
            self.asked().seeded.push(request);
            Ok(seeded)
        })
    }

    fn unseed(&self, name: Name) -> Answer<'_, Unseeded> {
        // One that another node does not let go of.
        let still_served_by = if name.as_str() == "mine-that-lost" { vec![sample::key(2)] } else { Vec::new() };
        self.asked().unseeded.push(name);
        Box::pin(async { Ok(Unseeded { still_served_by, calls_running: 0 }) })
    }

    /// Answers with its input, unless the function's name says otherwise.
    fn call(&self, request: CallRequest) -> BoxFuture<'_, Result<CallAnswer, CallFailure>> {
        self.asked().called.push(request.clone());
        Box::pin(async move {
            let failure = |kind, message: &str, may_have_run| CallFailure {
                kind,
                message: message.into(),
                hint: None,
                may_have_run,
                served_by: may_have_run.then(|| sample::key(2)),
            };
            match request.function.as_str() {
                "die" => Err(failure(RefusalKind::Unreachable, "berlin died; it may have run", true)),
                "none" => Err(failure(RefusalKind::Unreachable, "no replica answers", false)),
                "trap" => Err(failure(RefusalKind::Failed, "it trapped: unreachable", true)),
                "wait" => std::future::pending().await,
                _ => Ok(CallAnswer {
                    output: request.input,
                    served_by: sample::key(2),
                    version: sample::hello_version().id(),
                    retries: 0,
                }),
            }
        })
    }

    fn held(&self, _: SeedVersion) -> Answer<'_, Option<HeldModule>> {
        Box::pin(async { Ok(Some(sample::held())) })
    }

    fn events(&self) -> (Vec<EventRecord>, broadcast::Receiver<EventRecord>) {
        ((1..=3).map(Self::event).collect(), self.events.subscribe())
    }

    fn logs(&self, lines: usize) -> (Vec<String>, broadcast::Receiver<String>) {
        let all = ["one", "two", "three"].map(ToOwned::to_owned);
        (all[all.len().saturating_sub(lines)..].to_vec(), self.logs.subscribe())
    }

    fn settings(&self) -> LiveSettings {
        self.asked().settings.clone()
    }

    fn apply(&self, settings: LiveSettings) -> Answer<'_, ()> {
        Box::pin(async move {
            let mut asked = self.asked();
            if asked.refuse_settings {
                return Err(refusal(RefusalKind::Failed, "the disk is full"));
            }
            asked.settings = settings;
            Ok(())
        })
    }

    fn shutdown(&self) {
        self.asked().shutdown = true;
    }
}

//! The control API's routes. Owns parsing of requests and the choice of the daemon's method that answers; holds no
//! state of its own. Invariant: bodies are bounded before they are read, requests before they are awaited.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::body::HttpBody as _;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post, put};
use http_body_util::BodyExt as _;
use pollen_common::views::{Name, Protocol};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, Semaphore};

use crate::control::api::{
    ConnectBody, Connected, Done, InviteBody, Invited, Reasons, ServeBody, Served, SettingBody, SettingsShown, Version,
};
use crate::control::settings::{self, Key};
use crate::control::{invite, members, policy, resolve, seeds, stream};
use crate::handle;
use crate::handle::{Daemon, Serving, Subject};
use crate::http::failure::{Code, Failure};
use crate::http::refused::Refused;
use crate::metrics::Exporter;
use crate::services::{Connect, Disconnect, Serve, ServiceRef};
use crate::services::{NoServer, Server};
use crate::status::inspect::{self, Inspected};
use crate::status::{AllowRow, Connection, Reading, Status};

/// The most that a request's body may hold, in bytes: the largest is a batch of signed statements.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// How long a client may take over its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the daemon may take over a request: a write to disk and, for some, a question to a peer.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Readers of endless streams at a time: half of the connections, so that there is always room for a command.
const FOLLOWERS_MAX: usize = 32;

/// What every handler works with.
pub struct Api {
    pub(super) daemon: Arc<dyn Daemon>,
    pub(super) exporter: Arc<Exporter>,
    pub(super) followers: Arc<Semaphore>,
    pub(super) uploads: Arc<Semaphore>,
    /// Held while a setting is changed: two changes at once would lose one.
    setting: Mutex<()>,
}

pub(super) type Shared = State<Arc<Api>>;
type Answered<T> = Result<Json<T>, Failure>;

impl Api {
    pub(super) fn new(daemon: Arc<dyn Daemon>, exporter: Arc<Exporter>) -> Self {
        let followers = Arc::new(Semaphore::new(FOLLOWERS_MAX));
        Self { daemon, exporter, followers, uploads: seeds::uploads(), setting: Mutex::new(()) }
    }

    /// Every route there is.
    pub(super) fn router(self) -> Router {
        Router::new()
            .route("/v1/status", get(status))
            .route("/v1/inspect/{*target}", get(inspect))
            .route("/v1/why/{*target}", get(why))
            .route("/v1/events", get(stream::events))
            .route("/v1/logs", get(stream::logs))
            .route("/v1/services", post(serve))
            .route("/v1/services/{service}", delete(unserve))
            .route("/v1/seeds", post(seeds::publish))
            .route("/v1/seeds/{seed}", delete(seeds::withdraw))
            .route("/v1/connections", post(connect))
            .route("/v1/connections/{service}", delete(disconnect))
            .route("/v1/invites", post(invite))
            .route("/v1/members/{node}/grant", post(members::grant))
            .route("/v1/members/{node}/deny", post(members::deny))
            .route("/v1/members/{node}/retire", post(members::retire))
            .route("/v1/members/{node}/allow", post(members::allow))
            .route("/v1/members/{node}/can/{action}/{*target}", get(policy::can))
            .route("/v1/settings", get(show_settings))
            .route("/v1/settings/{key}", put(set).delete(unset))
            .route("/v1/version", get(version))
            .route("/v1/shutdown", post(shutdown))
            .fallback(async |request: Request| {
                let failure = Failure::new(Code::NotFound, format!("there is no {} in this API", request.uri().path()))
                    .hint("the daemon may be older than this command: compare `pln version` with `pln status`");
                Refused::Route.mark(failure.into_response())
            })
            .method_not_allowed_fallback(async |request: Request| {
                let (method, path) = (request.method(), request.uri().path());
                Refused::Method.with(StatusCode::METHOD_NOT_ALLOWED, format!("{path} does not take {method}"))
            })
            .with_state(Arc::new(self))
    }
}

/// The daemon's answer, or that there is none in time.
pub(super) async fn within<T, E>(answer: impl Future<Output = Result<T, E>>) -> Result<T, Failure>
where
    Failure: From<E>,
{
    match tokio::time::timeout(REQUEST_TIMEOUT, answer).await {
        Ok(result) => result.map_err(Failure::from),
        Err(_) => Err(Failure::new(
            Code::Failed,
            format!("the daemon did not finish within {} s; whether it will is unknown", REQUEST_TIMEOUT.as_secs()),
        )
        .hint("look at `pln status` and `pln logs` before trying again")),
    }
}

async fn status(State(api): Shared) -> Json<Status> {
    Json(reading(&api, Status::of))
}

fn reading<T>(api: &Api, of: impl FnOnce(Reading<'_>) -> T) -> T {
    handle::read(&*api.daemon, of)
}

async fn inspect(State(api): Shared, Segment(target): Segment) -> Answered<Inspected> {
    let subjects = resolve::target(&api.daemon.view(), &target)?;
    let mut found = Vec::with_capacity(subjects.len());
    for subject in subjects {
        let inspected = match &subject {
            Subject::Node(key) => reading(&api, |reading| inspect::node(reading, *key)),
            Subject::Service(name) => reading(&api, |reading| inspect::service(reading, name)),
            Subject::Seed(name) => inspect_seed(&api, name).await?,
        };
        // The view may have changed since.
        found.extend(inspected);
    }
    match (found.len(), found.pop()) {
        (1, Some(only)) => Ok(Json(only)),
        (_, None) => Err(Failure::new(Code::NotFound, format!("`{target}` is gone"))),
        (_, Some(last)) => {
            found.push(last);
            Ok(Json(Inspected::Several { found }))
        }
    }
}

async fn inspect_seed(api: &Api, name: &Name) -> Result<Option<Inspected>, Failure> {
    let versions = api.daemon.view().seeds.get(name).map(|seed| seed.versions.clone()).unwrap_or_default();
    let mut held = BTreeMap::new();
    for version in versions {
        if let Some(module) = within(api.daemon.held(version)).await? {
            held.insert(version.module, module);
        }
    }
    Ok(reading(api, |reading| inspect::seed(reading, name, &held)))
}

async fn why(State(api): Shared, Segment(target): Segment) -> Answered<Reasons> {
    let mut subjects = resolve::concerned(&api.daemon.view(), &api.daemon.listeners(), &target)?;
    if subjects.len() == 1 {
        let subject = subjects.remove(0);
        let (kind, target) = shown(&subject);
        let reasons = within(api.daemon.why(subject)).await?;
        return Ok(Json(Reasons { kind: kind.into(), target, reasons }));
    }
    let mut all = Vec::new();
    for subject in subjects {
        let (kind, _) = shown(&subject);
        let reasons = within(api.daemon.why(subject)).await?;
        all.extend(reasons.into_iter().map(|reason| format!("the {kind}: {reason}")));
    }
    Ok(Json(Reasons { kind: "several".into(), target, reasons: all }))
}

/// A subject's kind, and what it is called.
fn shown(subject: &Subject) -> (&'static str, String) {
    match subject {
        Subject::Node(key) => ("node", key.to_string()),
        Subject::Service(name) => ("service", name.to_string()),
        Subject::Seed(name) => ("seed", name.to_string()),
    }
}

async fn serve(State(api): Shared, JsonBody(body): JsonBody<ServeBody>) -> Answered<Served> {
    let name = body.name.map(|name| parse_name(&name)).transpose()?;
    let shown = name.as_ref().map(ToString::to_string);
    let protocol = Protocol::from(body.protocol);
    let (port, server) = placed(body.port, body.server.as_deref(), name.as_ref())?;
    if !server.speaks(protocol) || body.also_udp && !server.speaks(Protocol::Udp) {
        return Err(Failure::new(Code::Usage, format!("{server} carries no datagrams")).hint("leave --udp out"));
    }
    let policy = body.allow.as_ref().map(|allow| policy::asked(&api.daemon.view(), allow)).transpose()?;
    let request = Serve { port, name, protocol, shared: body.shared, server, policy };
    let Serving { policy, mut warnings } = within(api.daemon.serve(request.clone())).await?;
    let also_udp = body.also_udp && protocol == Protocol::Tcp;
    if also_udp {
        warnings.extend(within(api.daemon.serve(Serve { protocol: Protocol::Udp, ..request })).await?.warnings);
    }
    let (server, name, shared) = (body.server, shown, body.shared);
    let allow = AllowRow::of(&api.daemon.view(), &policy);
    Ok(Json(Served { port, server, name, protocol: body.protocol, also_udp, shared, allow, warnings }))
}

/// Where a server is, and the port under which the mesh knows it.
fn placed(port: Option<u16>, server: Option<&str>, name: Option<&Name>) -> Result<(u16, Server), Failure> {
    match (port, server, name) {
        (Some(port), None, _) if port > 0 => Ok((port, Server::Here)),
        (None, Some(server), Some(name)) => {
            let server = server.parse().map_err(|error: NoServer| Failure::new(Code::Usage, error.to_string()))?;
            Ok((Server::port_for(name), server))
        }
        (None, Some(server), None) => {
            Err(Failure::new(Code::Usage, format!("{server} has no port of this machine, so it needs a name"))
                .hint(format!("`pln serve {server} NAME`")))
        }
        _ => Err(Failure::new(Code::Usage, "a service's port is between 1 and 65535")),
    }
}

async fn unserve(State(api): Shared, Segment(service): Segment) -> Answered<Done> {
    within(api.daemon.unserve(parse_service(&service)?)).await?;
    Ok(Json(Done::YES))
}

async fn connect(State(api): Shared, JsonBody(body): JsonBody<ConnectBody>) -> Answered<Connected> {
    let service = parse_service(&body.service)?;
    if matches!(service, ServiceRef::Port(_)) && body.provider.is_none() {
        return Err(Failure::new(Code::Usage, format!("port {service} is a service of some node: which?"))
            .hint(format!("pln connect {service} PROVIDER")));
    }
    let request = Connect { service, provider: body.provider, bind: body.bind, local_port: body.local_port };
    let listeners = within(api.daemon.connect(request)).await?;
    let connected = Connected::of(&listeners);
    connected.map(Json).ok_or_else(|| Failure::new(Code::NotFound, "nobody provides it any more"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OfProvider {
    provider: Option<String>,
}

async fn disconnect(
    State(api): Shared,
    Segment(service): Segment,
    Asked(OfProvider { provider }): Asked<OfProvider>,
) -> Answered<Vec<Connection>> {
    let request = Disconnect { service: parse_service(&service)?, provider };
    let closed = within(api.daemon.disconnect(request)).await?;
    Ok(Json(closed.iter().map(Connection::from).collect()))
}

async fn invite(State(api): Shared, JsonBody(body): JsonBody<InviteBody>) -> Answered<Invited> {
    let terms = invite::terms(&body, api.daemon.now())?;
    let not_after = terms.not_after;
    let expires = terms.rights.expires;
    let reply = within(api.daemon.command(pollen_common::node::Command::Invite { terms })).await?;
    Ok(Json(Invited {
        token: invite::token(reply)?,
        tier: body.tier,
        not_after_unix_ms: not_after.0,
        expires_unix_ms: expires.map(|at| at.0),
    }))
}

async fn show_settings(State(api): Shared) -> Json<SettingsShown> {
    Json(SettingsShown::from(&api.daemon.settings()))
}

async fn set(
    State(api): Shared,
    Segment(key): Segment,
    JsonBody(body): JsonBody<SettingBody>,
) -> Answered<SettingsShown> {
    change(api, key, Some(body.value)).await
}

async fn unset(State(api): Shared, Segment(key): Segment) -> Answered<SettingsShown> {
    change(api, key, None).await
}

/// On a task of its own: a client that goes away must not leave the listener moved and the setting forgotten.
async fn change(api: Arc<Api>, key: String, value: Option<String>) -> Answered<SettingsShown> {
    let changed = tokio::spawn(async move { change_now(&api, &key, value.as_deref()).await });
    within(async { changed.await.unwrap_or_else(|_| Err(Failure::new(Code::Failed, "the change was given up"))) }).await
}

async fn change_now(api: &Api, key: &str, value: Option<&str>) -> Answered<SettingsShown> {
    let _alone = api.setting.lock().await;
    let before = api.daemon.settings();
    let after = settings::changed(before.clone(), key.parse::<Key>()?, value)?;
    // The listener first: it is what can fail, and what failed must not be what the next start tries.
    api.exporter.listen(after.http).await?;
    if let Err(refusal) = api.daemon.apply(after.clone()).await {
        let restored = api.exporter.listen(before.http).await;
        restored.unwrap_or_else(|failure| tracing::warn!("metrics are off: {}", failure.message));
        return Err(refusal.into());
    }
    Ok(Json(SettingsShown::from(&after)))
}

async fn version() -> Json<Version> {
    Json(Version::own())
}

async fn shutdown(State(api): Shared) -> Json<Done> {
    api.daemon.shutdown();
    Json(Done::YES)
}

pub(super) fn parse_name(name: &str) -> Result<Name, Failure> {
    name.parse().map_err(|error| Failure::new(Code::Usage, format!("`{name}` is no name: {error}")))
}

fn parse_service(service: &str) -> Result<ServiceRef, Failure> {
    service.parse().map_err(|error| Failure::new(Code::Usage, format!("`{service}` is no service: {error}")))
}

/// The last segment of a path, decoded.
pub(super) struct Segment(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Response;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let segment = Path::<String>::from_request_parts(parts, state).await;
        segment
            .map(|Path(segment)| Self(segment))
            .map_err(|e| Refused::Target.with(StatusCode::BAD_REQUEST, e.body_text()))
    }
}

/// What follows the question mark.
pub(super) struct Asked<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Response;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        let asked = Query::<T>::from_request_parts(parts, state).await;
        asked.map(|Query(asked)| Self(asked)).map_err(|e| Refused::Target.with(StatusCode::BAD_REQUEST, e.body_text()))
    }
}

/// A JSON body, whatever the content type says: people type `curl -d`.
pub(super) struct JsonBody<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = Response;
    async fn from_request(request: Request, _: &S) -> Result<Self, Response> {
        let bytes = body_within(request.into_body(), BODY_BYTES_MAX, BODY_TIMEOUT).await?;
        // An array would be taken for the fields in their order: a shape that nobody means.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(Refused::BodyMalformed.with(StatusCode::BAD_REQUEST, "the body is no JSON object"));
        }
        serde_json::from_slice(&bytes).map(Self).map_err(|error| {
            let message = format!("the body is not what this request takes: {error}");
            Refused::BodyMalformed.with(StatusCode::BAD_REQUEST, message)
        })
    }
}

/// All of a body of at most `bytes_max`, that comes within `time`.
pub(super) async fn body_within(body: Body, bytes_max: usize, time: Duration) -> Result<axum::body::Bytes, Response> {
    let too_large = || {
        let message = format!("the body is larger than {bytes_max} bytes");
        Refused::BodyTooLarge.with(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    // A declared length is believed at once; where there is none, what comes is counted.
    if usize::try_from(body.size_hint().lower()).is_ok_and(|declared| declared > bytes_max) {
        return Err(too_large());
    }
    let limited = http_body_util::Limited::new(body, bytes_max);
    match tokio::time::timeout(time, limited.collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => {
            Err(Refused::BodyBroken.with(StatusCode::BAD_REQUEST, format!("the body broke off: {error}")))
        }
        Err(_) => {
            let message = format!("no body within {} s", time.as_secs());
            Err(Refused::BodySlow.with(StatusCode::REQUEST_TIMEOUT, message))
        }
    }
}

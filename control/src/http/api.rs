//! The handlers of the API: each turns a request into one question to the control plane, and its answer into JSON.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, RawQuery, Request, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use velo_object::{BlobId, IdPrefix, NodeId, ObjectId};
use velo_socket::{JobState, JobStatus};

use super::{ApiError, App};
use crate::client::*;
use crate::membership::Liveness;
use crate::node::Control;
use crate::now_ms;
use crate::refs::{Change, Held, RefError, RefName};

/// Things that one pull may name.
const MAX_ROOTS: usize = 1024;

/// A body, with our own words where it is wrong.
pub(super) struct Body<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        Ok(Self(Json::from_request(request, state).await?.0))
    }
}

/// A query, likewise.
pub(super) struct Query<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        Ok(Self(axum::extract::Query::from_request_parts(parts, state).await?.0))
    }
}

impl From<JsonRejection> for ApiError {
    fn from(error: JsonRejection) -> Self {
        Self::new(error.status(), "invalid", error.body_text())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(error: QueryRejection) -> Self {
        Self::invalid(error.body_text())
    }
}

impl From<PathRejection> for ApiError {
    fn from(error: PathRejection) -> Self {
        Self::invalid(error.body_text())
    }
}

type Answer<T> = Result<Json<T>, ApiError>;

pub(super) async fn unknown() -> ApiError {
    ApiError::not_found("there is nothing at this path")
}

pub(super) async fn health() -> &'static str {
    "ok\n"
}

pub(super) async fn ready(State(app): State<App>) -> Response {
    match app.control.velod.status().await {
        Ok(_) => "ready\n".into_response(),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    }
}

pub(super) async fn metrics(State(app): State<App>) -> impl IntoResponse {
    let control = &app.control;
    let alive = control.roster().iter().filter(|entry| entry.liveness == Liveness::Alive).count();
    control.metrics.members.set(i64::try_from(alive).unwrap_or(i64::MAX));
    let names = control.refs().iter_live().count();
    control.metrics.refs.set(i64::try_from(names).unwrap_or(i64::MAX));
    let status = control.velod.status().await.ok();
    let text = control.metrics.render(status.as_ref());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}

pub(super) async fn status(State(app): State<App>) -> Answer<StatusView> {
    let control = &app.control;
    let velod = control.velod.status().await;
    let mut notes = Vec::new();
    if let Err(error) = &velod {
        notes.push(error.to_string());
    }
    if control.knowledge().gossip_epoch.is_none() {
        notes.push("this node has no gossip key yet: it has not reached a member since it joined".to_owned());
    }
    let connected = velod.is_ok();
    let velod = velod.unwrap_or_default();
    notes.extend(velod.notes);
    let members = control.roster().iter().filter(|entry| entry.liveness == Liveness::Alive).count();
    let sessions = velod.sessions.into_iter().map(|session| SessionView {
        node: session.node.to_hex(),
        address: session.address.to_string(),
        up_ms: session.up_ms,
        fabric: session.fabric,
        received_bytes: session.received_bytes,
        sent_bytes: session.sent_bytes,
        bad_pieces: session.bad_pieces,
    });
    Ok(Json(StatusView {
        node: control.node.to_hex(),
        name: control.setup.name.clone(),
        zone: control.setup.zone.clone(),
        cluster: hex::encode(control.cluster),
        authority: control.authority.is_some(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        up_ms: u64::try_from(control.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        certificate_expires_ms: control.identity.load().expires_ms,
        members: members as u64,
        refs: control.refs().iter_live().count() as u64,
        http: app.addresses.http.to_string(),
        gossip: app.addresses.gossip.to_string(),
        velod_connected: connected,
        counters: velod.counters,
        gauges: velod.gauges,
        sessions: sessions.collect(),
        workers: velod.workers,
        notes,
    }))
}

pub(super) async fn peers(State(app): State<App>) -> Json<Vec<PeerView>> {
    let control = &app.control;
    let roster = control.roster();
    let peers = roster.iter().map(|entry| {
        let record = &entry.member.record;
        PeerView {
            node: entry.member.node().to_hex(),
            name: record.name.clone(),
            zone: record.zone.clone(),
            addresses: record.addresses.iter().map(ToString::to_string).collect(),
            gossip: record.gossip.to_string(),
            state: entry.state().to_owned(),
            this: entry.member.node() == control.node,
            free_bytes: record.free_bytes,
            fabrics: record.fabrics.clone(),
            version: record.software.clone(),
            updated_ms: record.version,
        }
    });
    let revoked = control.revocations().nodes().into_iter().map(|node| PeerView {
        node: node.to_hex(),
        name: String::new(),
        zone: String::new(),
        addresses: Vec::new(),
        gossip: String::new(),
        state: "revoked".to_owned(),
        this: false,
        free_bytes: 0,
        fabrics: Vec::new(),
        version: String::new(),
        updated_ms: 0,
    });
    Json(peers.chain(revoked).collect())
}

fn ref_view(control: &Control, held: &Held, history: bool) -> Option<RefView> {
    let record = &held.current.record;
    let value = held.current.value();
    let past = record.values.iter().filter(|_| history).filter_map(|value| {
        Some(RefPast { id: value.id?.to_string(), version: value.version, updated_ms: value.written_ms })
    });
    // Of a name that was deleted, what it meant last.
    let id = record.values.iter().find_map(|value| value.id)?;
    let writer = held.current.writer();
    Some(RefView {
        name: record.name.to_string(),
        id: id.to_string(),
        version: value.version,
        writer: writer.to_hex(),
        writer_name: control.name_of(&writer),
        updated_ms: value.written_ms,
        history: past.collect(),
        lost_to_this: held.lost.as_ref().map(|lost| RefLost {
            id: lost.id.map(|id| id.to_string()).unwrap_or_default(),
            writer: lost.writer.to_hex(),
            created_ms: lost.created_ms,
        }),
    })
}

fn name(text: &str) -> Result<RefName, ApiError> {
    text.parse().map_err(ApiError::invalid)
}

fn no_such_name(name: &str) -> ApiError {
    crate::names::ChangeError::Ref(RefError::Absent(name.to_owned())).into()
}

pub(super) async fn refs(State(app): State<App>) -> Json<Vec<RefView>> {
    let refs: Vec<Held> = app.control.refs().iter_live().cloned().collect();
    Json(refs.iter().filter_map(|held| ref_view(&app.control, held, false)).collect())
}

pub(super) async fn get_ref(
    State(app): State<App>,
    path: Result<Path<String>, PathRejection>,
) -> Answer<RefView> {
    let Path(text) = path?;
    let held = app.control.refs().live(&name(&text)?).cloned();
    let view = held.and_then(|held| ref_view(&app.control, &held, true));
    view.map(Json).ok_or_else(|| no_such_name(&text))
}

pub(super) async fn put_ref(
    State(app): State<App>,
    path: Result<Path<String>, PathRejection>,
    Body(put): Body<RefPut>,
) -> Answer<RefView> {
    let Path(text) = path?;
    let id: ObjectId = put.id.parse().map_err(ApiError::invalid)?;
    let change = Change { name: name(&text)?, id: Some(id), expect: put.expect };
    let held = app.control.change_ref(change).await?;
    ref_view(&app.control, &held, true).map(Json).ok_or_else(|| no_such_name(&text))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expect {
    expect: Option<u64>,
}

pub(super) async fn delete_ref(
    State(app): State<App>,
    path: Result<Path<String>, PathRejection>,
    Query(query): Query<Expect>,
) -> Answer<RefView> {
    let Path(text) = path?;
    let change = Change { name: name(&text)?, id: None, expect: query.expect };
    let held = app.control.change_ref(change).await?;
    ref_view(&app.control, &held, true).map(Json).ok_or_else(|| no_such_name(&text))
}

/// What a person means: a name, a whole id, or the beginning of one.
pub(super) async fn meaning(app: &App, what: &str) -> Result<Resolved, ApiError> {
    let as_name = what.parse::<RefName>();
    if let Ok(name) = &as_name
        && let Some((id, version)) = app.control.resolve_name(name)
    {
        return Ok(Resolved { id: id.to_string(), name: Some(what.to_owned()), version: Some(version) });
    }
    match what.parse::<IdPrefix>() {
        Ok(prefix) if prefix.kind.is_some() && prefix.whole().is_some() => {
            let id: ObjectId = what.parse().map_err(ApiError::invalid)?;
            Ok(Resolved { id: id.to_string(), name: None, version: None })
        }
        Ok(prefix) => {
            let id = app.control.resolve_prefix(&prefix).await?;
            Ok(Resolved { id: id.to_string(), name: None, version: None })
        }
        Err(_) if as_name.is_ok() => Err(no_such_name(what)),
        Err(error) => Err(ApiError::invalid(error)),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct What {
    what: String,
}

pub(super) async fn resolve(State(app): State<App>, Query(query): Query<What>) -> Answer<Resolved> {
    meaning(&app, &query.what).await.map(Json)
}

pub(super) async fn whereabouts(State(app): State<App>, RawQuery(query): RawQuery) -> Answer<Vec<Holders>> {
    let query = query.unwrap_or_default();
    let mut ids: Vec<ObjectId> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let text = pair.strip_prefix("id=").ok_or_else(|| ApiError::invalid("ask with `?id=ID[&id=ID…]`"))?;
        let text = text.replace("%3A", ":").replace("%3a", ":").replace("%2F", "/").replace("%2f", "/");
        let resolved = meaning(&app, &text).await?;
        ids.push(resolved.id.parse().map_err(ApiError::invalid)?);
    }
    if ids.is_empty() || ids.len() > MAX_ROOTS {
        return Err(ApiError::invalid("ask with one `id=` or more, 1024 at most"));
    }
    let control = &app.control;
    let blobs: Vec<BlobId> = ids.iter().map(|id| id.blob).collect();
    let mut answers = vec![(control.node, Some(control.holdings(&blobs).await?))];
    let mut asked = control.ask_all(&blobs, false);
    while let Some(answer) = asked.recv().await {
        answers.push(answer);
    }
    let silent: Vec<String> =
        answers.iter().filter(|(_, holdings)| holdings.is_none()).map(|(node, _)| node.to_hex()).collect();
    let mut found = Vec::with_capacity(ids.len());
    for (at, id) in ids.iter().enumerate() {
        let holders = answers.iter().filter_map(|(node, holdings)| {
            let holding = holdings.as_ref()?.get(at)?.as_ref()?;
            let zone = control.roster().get(node).map(|entry| entry.member.record.zone.clone());
            Some(Holder {
                node: node.to_hex(),
                name: control.name_of(node),
                zone: zone.unwrap_or_default(),
                complete: holding.complete,
                pulling: holding.pulling,
                pieces: holding.pieces,
                size_bytes: holding.size_bytes,
            })
        });
        let holders = holders.collect();
        let origin = match &control.origin {
            Some(origin) => Some(origin.has(&id.blob).await?),
            None => None,
        };
        found.push(Holders { id: id.to_string(), holders, silent: silent.clone(), origin });
    }
    Ok(Json(found))
}

pub(super) async fn pull(State(app): State<App>, Body(request): Body<PullRequest>) -> Answer<PullReply> {
    if request.what.is_empty() || request.what.len() > MAX_ROOTS {
        return Err(ApiError::invalid("name one thing or more, 1024 at most"));
    }
    let mut roots: Vec<ObjectId> = Vec::with_capacity(request.what.len());
    for what in &request.what {
        roots.push(meaning(&app, what).await?.id.parse().map_err(ApiError::invalid)?);
    }
    let ids = roots.iter().map(ToString::to_string).collect();
    let job = app.control.pull(roots, request.tables_only, request.priority).await?;
    Ok(Json(PullReply { job, ids }))
}

pub(super) async fn sources(
    State(app): State<App>,
    Body(request): Body<SourcesRequest>,
) -> Answer<SourcesReply> {
    let sources = app.control.feed_job(request.job).await?;
    Ok(Json(SourcesReply { sources: sources.iter().map(NodeId::to_hex).collect() }))
}

fn job_view(control: &Control, status: JobStatus) -> JobView {
    let (state, error) = match status.state {
        JobState::Running => ("running", None),
        JobState::Waiting => ("waiting", None),
        JobState::Complete => ("complete", None),
        JobState::Cancelled => ("cancelled", None),
        JobState::Failed(error) => {
            let code = super::error::code(error.code).1.to_owned();
            ("failed", Some(ErrorView { code, message: error.message }))
        }
    };
    let sources = status.sources.iter().map(|(node, bytes)| JobSource {
        node: node.to_hex(),
        name: control.name_of(node),
        bytes: *bytes,
    });
    JobView {
        job: status.job,
        roots: status.roots.iter().map(ToString::to_string).collect(),
        state: state.to_owned(),
        error,
        total_bytes: status.total_bytes,
        done_bytes: status.done_bytes,
        received_bytes: status.received_bytes,
        bad_pieces: status.bad_pieces,
        duplicate_pieces: status.duplicate_pieces,
        elapsed_ms: status.elapsed_ms,
        sources: sources.collect(),
        missing: status.missing.iter().map(ToString::to_string).collect(),
    }
}

pub(super) async fn jobs(State(app): State<App>) -> Answer<Vec<JobView>> {
    let jobs = app.control.velod.jobs().await?;
    Ok(Json(jobs.into_iter().map(|status| job_view(&app.control, status)).collect()))
}

pub(super) async fn job(State(app): State<App>, path: Result<Path<u64>, PathRejection>) -> Answer<JobView> {
    let Path(job) = path?;
    Ok(Json(job_view(&app.control, app.control.job(job).await?)))
}

pub(super) async fn cancel(
    State(app): State<App>,
    path: Result<Path<u64>, PathRejection>,
) -> Answer<JobView> {
    let Path(job) = path?;
    app.control.velod.cancel(job).await?;
    Ok(Json(job_view(&app.control, app.control.job(job).await?)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Every {
    every_ms: Option<u32>,
}

pub(super) async fn events(
    State(app): State<App>,
    path: Result<Path<u64>, PathRejection>,
    Query(query): Query<Every>,
) -> Result<Response, ApiError> {
    let Path(job) = path?;
    let turn = std::sync::Arc::clone(&app.streams).try_acquire_owned().map_err(|_| {
        ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "limit",
            "too many streams of events are open: close one",
        )
    })?;
    let every_ms = query.every_ms.unwrap_or(250).clamp(50, 60_000);
    let statuses = app.control.velod.watch(job, every_ms).await?;
    let control = app.control.clone();
    let stream =
        futures_util::stream::unfold((statuses, control, turn), |(mut statuses, control, turn)| async {
            let status = statuses.recv().await?;
            let event = Event::default().event("progress");
            let event = match serde_json::to_string(&job_view(&control, status)) {
                Ok(text) => event.data(text),
                Err(error) => event.comment(error.to_string()),
            };
            Some((Ok::<_, Infallible>(event), (statuses, control, turn)))
        });
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response())
}

pub(super) async fn origin_put(
    State(app): State<App>,
    Body(request): Body<OriginPut>,
) -> Answer<OriginPutReply> {
    let control = &app.control;
    let origin = control.origin.as_ref().ok_or_else(|| {
        ApiError::new(
            StatusCode::CONFLICT,
            "invalid",
            "no origin is configured: set `origin.url` to file:///… on this node",
        )
    })?;
    let id: ObjectId = meaning(&app, &request.id).await?.id.parse().map_err(ApiError::invalid)?;
    let moved = origin.put(&control.velod, id).await?;
    control.metrics.origin_written_bytes.inc_by(moved.bytes);
    // The origin has it durably: what was put here is cache from now on.
    if control.velod.pins().await?.contains(&id) {
        control.velod.pin(id, false).await?;
    }
    Ok(Json(OriginPutReply {
        id: id.to_string(),
        written: moved.blobs,
        bytes: moved.bytes,
        present: moved.present,
    }))
}

pub(super) async fn token(State(app): State<App>, Body(request): Body<TokenRequest>) -> Answer<TokenReply> {
    let control = app.control.clone();
    let made = tokio::task::spawn_blocking(move || {
        control.make_token(request.uses, Duration::from_secs(request.expires_s))
    });
    let token =
        made.await.map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "io", error))??;
    Ok(Json(TokenReply {
        token: token.to_string(),
        cluster: hex::encode(token.cluster),
        expires_ms: token.expires_s.saturating_mul(1000),
        uses: request.uses,
        addresses: app.control.addresses().iter().map(ToString::to_string).collect(),
    }))
}

pub(super) async fn revoke(
    State(app): State<App>,
    Body(request): Body<RevokeRequest>,
) -> Answer<RevokeReply> {
    let control = &app.control;
    let found = control.roster().find(&request.node);
    let node = match (found.as_slice(), NodeId::from_hex(&request.node)) {
        (_, Ok(whole)) => whole,
        ([node], _) => *node,
        ([], _) => return Err(ApiError::not_found(format!("no member is called `{}`", request.node))),
        (several, _) => {
            let ids: Vec<String> = several.iter().map(NodeId::short).collect();
            let message = format!("`{}` means several members: {}", request.node, ids.join(", "));
            return Err(ApiError::new(StatusCode::CONFLICT, "ambiguous", message));
        }
    };
    let name = control.name_of(&node);
    tracing::warn!(node = %node.short(), name, at_ms = now_ms(), "revoking a node");
    let revoked = control.revoke(node).await?;
    Ok(Json(RevokeReply {
        node: node.to_hex(),
        name,
        serial: revoked.serial,
        told: revoked.told.iter().map(NodeId::to_hex).collect(),
        silent: revoked.silent.iter().map(NodeId::to_hex).collect(),
    }))
}

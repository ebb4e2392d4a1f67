//! The handlers for the node, its cluster and names: each turns a request into one question to the control plane, and its answer into JSON.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use velo_object::{IdPrefix, NodeId, ObjectId};

use super::{ApiError, App};
use crate::client::*;
use crate::membership::Liveness;
use crate::node::Control;
use crate::now_ms;
use crate::refs::{Change, Held, RefError, RefName};

/// A body, with our own words where it is wrong.
pub(super) struct Body<T>(pub(super) T);

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

pub(super) type Answer<T> = Result<Json<T>, ApiError>;

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
    if connected && velod.sessions.is_empty() && !control.reachable().is_empty() {
        notes.push(
            "no other member can be reached: the network is down, or this node is revoked (`velo peers` on another one tells)"
                .to_owned(),
        );
    }
    notes.extend(velod.notes);
    let members = control.roster().iter().filter(|entry| entry.liveness == Liveness::Alive).count();
    let sessions = velod.sessions.into_iter().map(|session| SessionView {
        node: session.node.to_hex(),
        address: session.address.to_string(),
        up_ms: session.up_ms,
        fabric: session.fabric,
        rtt_us: session.rtt_us,
        loss_ppm: session.loss_ppm,
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
        origin: control.origin.is_some(),
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
    // A velod that is down has no sessions.
    let sessions = control.velod.status().await.map(|status| status.sessions).unwrap_or_default();
    let roster = control.roster();
    let peers = roster.iter().map(|entry| {
        let record = &entry.member.record;
        let session = sessions.iter().find(|session| session.node == entry.member.node());
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
            fabric: session.map(|session| session.fabric.clone()),
            rtt_us: session.and_then(|session| session.rtt_us),
            loss_ppm: session.and_then(|session| session.loss_ppm),
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
        fabric: None,
        rtt_us: None,
        loss_ppm: None,
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

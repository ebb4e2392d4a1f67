//! The handlers for transfers: who has what, pulls, their jobs and events, and the origin.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use velo_object::{BlobId, NodeId, ObjectId, ObjectKind};
use velo_socket::{JobState, JobStatus};

use super::api::{Answer, Body, Query, meaning};
use super::{ApiError, App};
use crate::client::*;
use crate::node::Control;

/// Things that one pull or one question may name.
const MAX_ROOTS: usize = 1024;

pub(super) async fn whereabouts(
    State(app): State<App>,
    Query(query): Query<Vec<(String, String)>>,
) -> Answer<Vec<Holders>> {
    let asked = 1..=MAX_ROOTS;
    if !asked.contains(&query.len()) || query.iter().any(|(key, _)| key != "id") {
        return Err(ApiError::invalid("ask with `?id=ID[&id=ID…]`, 1024 at most"));
    }
    let mut ids: Vec<ObjectId> = Vec::with_capacity(query.len());
    for (_, text) in &query {
        ids.push(meaning(&app, text).await?.id.parse().map_err(ApiError::invalid)?);
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
    let trees: Vec<BlobId> = ids.iter().filter(|id| id.kind == ObjectKind::Tree).map(|id| id.blob).collect();
    let trees = control.ask_trees(&trees).await;
    let mut found = Vec::with_capacity(ids.len());
    for (at, id) in ids.iter().enumerate() {
        let holders = answers.iter().filter_map(|(node, holdings)| {
            let holding = holdings.as_ref()?.get(at)?.as_ref()?;
            let zone = control.roster().get(node).map(|entry| entry.member.record.zone.clone());
            let parts = trees.get(&(*node, id.blob));
            // A tree is more than its table.
            let whole =
                id.kind == ObjectKind::Blob || parts.is_some_and(|parts| parts.complete == parts.total);
            Some(Holder {
                node: node.to_hex(),
                name: control.name_of(node),
                zone: zone.unwrap_or_default(),
                complete: holding.complete && whole,
                pulling: holding.pulling,
                pieces: holding.pieces,
                size_bytes: holding.size_bytes,
                blobs_complete: parts.map(|parts| parts.complete),
                blobs_total: parts.map(|parts| parts.total),
            })
        });
        let holders = holders.collect();
        let origin = match &control.origin {
            // Members may have it whatever is wrong there.
            Some(origin) => match origin.has(&id.blob).await {
                Ok(has) => Some(has),
                Err(error) => {
                    tracing::warn!(%error, %id, "whether the origin has it is not known");
                    None
                }
            },
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
    app.control.pulls.touch(job);
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
    let turn = Arc::clone(&app.streams).try_acquire_owned().map_err(|_| {
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
            control.pulls.touch(status.job);
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

//! The HTTP interface of a node: the API, content with ranges, health and metrics.
//!
//! It listens on loopback. A bearer token (from `run/token`, a file that only the node's user and group read) is asked for everything but health, and Host
//! and Origin must be this machine's, so that a page in a browser can neither read nor do anything here.

mod api;
mod content;
mod error;
mod guard;
mod range;
mod reading;
mod transfers;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{delete, get, post};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

pub(crate) use error::ApiError;

use crate::node::Control;

/// The largest body of a request, in bytes.
const MAX_BODY_BYTES: usize = 1 << 20;
/// Streams of events that are open at once.
const MAX_STREAMS: usize = 64;
/// Contents that are sent at once while they still arrive.
const MAX_READERS: usize = 256;
/// Requests that are worked on at once.
const MAX_REQUESTS: usize = 512;

/// What every handler has.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) control: Arc<Control>,
    token: Arc<str>,
    streams: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    pub(crate) addresses: Arc<Addresses>,
}

/// Where the daemon listens.
#[derive(Debug)]
pub(crate) struct Addresses {
    pub(crate) http: std::net::SocketAddr,
    pub(crate) gossip: std::net::SocketAddr,
}

/// All routes.
pub(crate) fn router(control: Arc<Control>, token: &str, addresses: Addresses) -> Router {
    let app = App {
        control,
        token: token.into(),
        streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        readers: Arc::new(Semaphore::new(MAX_READERS)),
        requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
        addresses: Arc::new(addresses),
    };
    Router::new()
        .route("/v1/status", get(api::status))
        .route("/v1/peers", get(api::peers))
        .route("/v1/refs", get(api::refs))
        .route("/v1/refs/{*name}", get(api::get_ref).put(api::put_ref).delete(api::delete_ref))
        .route("/v1/resolve", get(api::resolve))
        .route("/v1/where", get(transfers::whereabouts))
        .route("/v1/pull", post(transfers::pull))
        .route("/v1/sources", post(transfers::sources))
        .route("/v1/jobs", get(transfers::jobs))
        .route("/v1/jobs/{job}", get(transfers::job).merge(delete(transfers::cancel)))
        .route("/v1/jobs/{job}/events", get(transfers::events))
        .route("/v1/origin/put", post(transfers::origin_put))
        .route("/v1/cluster/token", post(api::token))
        .route("/v1/cluster/revoke", post(api::revoke))
        .route("/v1/blobs/{id}", get(content::blob))
        .route("/v1/trees/{id}", get(content::tree))
        .route("/v1/trees/{id}/{*path}", get(content::tree_path))
        .route("/metrics", get(api::metrics))
        .route("/healthz", get(api::health))
        .route("/readyz", get(api::ready))
        .fallback(api::unknown)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(axum::middleware::from_fn_with_state(app.clone(), guard::guard))
        .with_state(app)
}

/// Serves until `stop` ends.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(stop).await
}

#[cfg(test)]
mod tests;

//! The HTTP API: JSON in, JSON out, errors too. Documented in `docs/http-api.md`.
//!
//! It runs on the edge runtime and holds no state of exports: each request becomes a message to
//! the shard ([`crate::control`]). Bodies, connections and requests in flight are bounded. A body
//! is read as JSON whatever its content type says, because `curl -d` says "form"; so that no web
//! page can use that, requests that carry an `Origin` (browsers send one, tools do not) may change
//! nothing. Deliberately absent: TLS (bind to loopback, or put a proxy in front).

mod error;
mod groups;
mod guard;
mod server;
#[cfg(test)]
mod tests;

use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use world::sync::watch;

pub use error::{ApiError, ErrorBody, ErrorDocument};
pub use server::{API_CONNECTIONS_MAX, BindError, bind, serve};

use crate::config::Secret;
use crate::control::{
    AcceptLossDocument, Control, ControlError, ControlErrorKind, DataKeyDocument, DeleteQuery,
    ExportDocument, ForkDocument, ForkedDocument, GcDocument, IoDocument, MetersDocument,
    OperationDocument, PruneQuery, PutDocument, Request, SalvageDocument, SalvageRanges,
    ServerDocument, SnapshotDocument,
};
use crate::metrics;

/// A body larger than this is refused: the largest legal one has under 100 bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// `/healthz` answers "not healthy" if the shard has not answered for so long.
const HEALTH_WAIT_MAX: Duration = Duration::from_secs(5);
/// Exactly what the OpenMetrics text says of itself.
const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the handlers share.
#[derive(Clone, Debug)]
pub struct Api {
    control: Control,
    token: Option<Secret>,
    /// True from the first signal on.
    stopping: watch::Receiver<bool>,
    slots: guard::Slots,
}

/// The answer of `/healthz`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct HealthDocument {
    /// `ok`, or why not.
    pub status: String,
    pub version: String,
}

/// The answer of `/api/exports/{name}/metrics`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct MetricsDocument {
    pub name: String,
    pub clients: u32,
    pub dirty_bytes: u64,
    pub dirty_age_ms: u64,
    pub last_seq: u64,
    pub published_seq: u64,
    #[serde(flatten)]
    pub io: IoDocument,
}

impl Api {
    pub fn new(control: Control, token: Option<Secret>, stopping: watch::Receiver<bool>) -> Self {
        Self {
            control,
            token,
            stopping,
            slots: guard::Slots::new(),
        }
    }

    /// All routes, with their guards.
    pub fn router(self) -> Router {
        let guarded = Router::new()
            .route("/api/exports", get(list))
            .route(
                "/api/exports/{name}",
                get(get_one).put(put).delete(delete_one),
            )
            .route("/api/exports/{name}/drain", post(drain))
            .route("/api/exports/{name}/prepare", post(prepare))
            .route("/api/exports/{name}/promote", post(promote))
            .route("/api/exports/{name}/accept-loss", post(accept_loss))
            .route("/api/exports/{name}/metrics", get(export_metrics))
            .route(
                "/api/exports/{name}/snapshots",
                get(list_snapshots)
                    .post(take_snapshot)
                    .delete(prune_snapshots),
            )
            .route(
                "/api/exports/{name}/snapshots/{snapshot}",
                get(get_snapshot).delete(delete_snapshot),
            )
            .route("/api/exports/{name}/fork", post(fork))
            .route("/api/exports/{name}/forks", get(list_forks))
            .route("/api/exports/{name}/restore", post(restore))
            .route("/api/exports/{name}/renew-data", post(renew_data))
            .route("/api/groups", get(groups::list).post(groups::form))
            .route(
                "/api/groups/{which}",
                get(groups::get_one).delete(groups::end),
            )
            .route("/api/groups/{which}/fork", post(groups::fork))
            .route(
                "/api/groups/{which}/snapshots",
                get(groups::list_snapshots).post(groups::take_snapshot),
            )
            .route("/api/groups/{which}/restore", post(groups::restore))
            .route("/api/salvage", get(list_salvage))
            .route("/api/salvage/{id}", get(salvage_ranges))
            .route("/api/salvage/{id}/data", get(salvage_data))
            .route("/api/gc", post(gc))
            .route("/api/operations", get(operations))
            .route("/api/operations/{id}", get(operation))
            .route("/api/server", get(server_document))
            .route("/api/metrics", get(meters))
            .route("/metrics", get(all_metrics))
            .layer(middleware::from_fn_with_state(self.clone(), guard::admit));
        // Outside the guards: a busy or locked server is still alive.
        Router::new()
            .route("/healthz", get(health))
            .merge(guarded)
            .fallback(error::no_such_route)
            .method_not_allowed_fallback(error::no_such_method)
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .with_state(self)
    }

    async fn server(&self) -> Result<ServerDocument, ControlError> {
        self.control.ask(Request::Server).await
    }
}

type Answer<T> = Result<Json<T>, ApiError>;
type Name = Result<Path<String>, PathRejection>;
type Body = Result<Bytes, BytesRejection>;
/// An export, and a snapshot of it.
type Names = Result<Path<(String, String)>, PathRejection>;

/// What may stand behind the `?` of a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// Also what is only in the store, a page at a time.
    #[serde(default)]
    stored: bool,
    /// The page of the names behind this one.
    after: Option<String>,
}

async fn list(
    State(api): State<Api>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Answer<Vec<ExportDocument>> {
    let Query(query) = query?;
    let listed = match (query.stored, query.after) {
        (false, None) => api.control.ask(Request::List).await?,
        (false, Some(_)) => {
            let text = "`after` is for `stored=true`; the other list comes in one piece";
            return Err(ApiError::invalid(text));
        }
        (true, after) => {
            let after = after.unwrap_or_default();
            let request = |reply| Request::ListStored(after, reply);
            api.control.ask(request).await?
        }
    };
    Ok(Json(listed))
}

async fn get_one(State(api): State<Api>, name: Name) -> Answer<ExportDocument> {
    let Path(name) = name?;
    let answer = api.control.ask(|reply| Request::Get(name, reply)).await?;
    Ok(Json(answer))
}

async fn put(State(api): State<Api>, name: Name, body: Body) -> Answer<ExportDocument> {
    let Path(name) = name?;
    let wanted: PutDocument = parse(&body?, "{\"size_gb\": 100}")?;
    let answer = api
        .control
        .ask(|reply| Request::Put(name, wanted, reply))
        .await?;
    Ok(Json(answer))
}

async fn delete_one(
    State(api): State<Api>,
    name: Name,
    query: Result<Query<DeleteQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let (Path(name), Query(how)) = (name?, query?);
    if how.purge {
        let request = |reply| Request::Purge(name, how, reply);
        let operation = api.control.ask(request).await?;
        return Ok(Json(operation).into_response());
    }
    if how.request_id.is_some() || how.volume.is_some() {
        let text = "`request_id` and `volume` go with `purge=true`: a DELETE without that may be repeated as it is";
        return Err(ControlError::new(ControlErrorKind::Invalid, text).into());
    }
    let request = |reply| Request::Delete(name, how, reply);
    let answer = api.control.ask(request).await?;
    Ok(Json(answer).into_response())
}

async fn accept_loss(State(api): State<Api>, name: Name, body: Body) -> Answer<ExportDocument> {
    let Path(name) = name?;
    let wanted: AcceptLossDocument = parse(&body?, "{\"kept_seq\": 1041}")?;
    let answer = api
        .control
        .ask(|reply| Request::AcceptLoss(name, wanted, reply))
        .await?;
    Ok(Json(answer))
}

async fn drain(State(api): State<Api>, name: Name) -> Answer<ExportDocument> {
    let Path(name) = name?;
    let answer = api.control.ask(|reply| Request::Drain(name, reply)).await?;
    Ok(Json(answer))
}

async fn prepare(State(api): State<Api>, name: Name, body: Body) -> Answer<ExportDocument> {
    let Path(name) = name?;
    let wanted = parse_or_default(&body?, "{\"warm_bytes\": 268435456}")?;
    let request = |reply| Request::Prepare(name, wanted, reply);
    Ok(Json(api.control.ask(request).await?))
}

async fn promote(State(api): State<Api>, name: Name, body: Body) -> Answer<ExportDocument> {
    let Path(name) = name?;
    let wanted = parse_or_default(&body?, "{\"force\": true, \"expected_epoch\": 7}")?;
    let answer = api
        .control
        .ask(|reply| Request::Promote(name, wanted, reply))
        .await?;
    Ok(Json(answer))
}

async fn list_snapshots(State(api): State<Api>, name: Name) -> Answer<Vec<SnapshotDocument>> {
    let Path(name) = name?;
    let request = |reply| Request::Snapshots(name, reply);
    Ok(Json(api.control.ask(request).await?))
}

async fn get_snapshot(State(api): State<Api>, names: Names) -> Answer<SnapshotDocument> {
    let Path((name, snapshot)) = names?;
    let request = |reply| Request::Snapshot(name, snapshot, reply);
    Ok(Json(api.control.ask(request).await?))
}

async fn take_snapshot(State(api): State<Api>, name: Name, body: Body) -> Answer<SnapshotDocument> {
    let Path(name) = name?;
    let wanted = parse_or_default(&body?, "{\"name\": \"before-upgrade\"}")?;
    let request = |reply| Request::TakeSnapshot(name, wanted, reply);
    Ok(Json(api.control.ask(request).await?))
}

async fn delete_snapshot(State(api): State<Api>, names: Names) -> Answer<SnapshotDocument> {
    let Path((name, snapshot)) = names?;
    let request = |reply| Request::DeleteSnapshot(name, snapshot, reply);
    Ok(Json(api.control.ask(request).await?))
}

async fn prune_snapshots(
    State(api): State<Api>,
    name: Name,
    query: Result<Query<PruneQuery>, QueryRejection>,
) -> Answer<Vec<SnapshotDocument>> {
    let (Path(name), Query(how)) = (name?, query?);
    let request = |reply| Request::PruneSnapshots(name, how, reply);
    Ok(Json(api.control.ask(request).await?))
}

async fn restore(State(api): State<Api>, name: Name, body: Body) -> Answer<ExportDocument> {
    let Path(name) = name?;
    let wanted = parse(&body?, "{\"snapshot\": \"before-upgrade\"}")?;
    let request = |reply| Request::Restore(name, wanted, reply);
    Ok(Json(api.control.ask(request).await?))
}

async fn renew_data(State(api): State<Api>, name: Name, body: Body) -> Answer<DataKeyDocument> {
    let Path(name) = name?;
    let wanted = parse_or_default(&body?, "{\"request_id\": \"7f3e\"}")?;
    let request = |reply| Request::RenewData(name, wanted, reply);
    Ok(Json(api.control.ask(request).await?))
}

/// What may stand behind the `?` of a list of forks.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ForksQuery {
    /// The page of the ids behind this one.
    #[serde(default)]
    after: String,
}

async fn list_forks(
    State(api): State<Api>,
    name: Name,
    query: Result<Query<ForksQuery>, QueryRejection>,
) -> Answer<Vec<ForkedDocument>> {
    let (Path(name), Query(query)) = (name?, query?);
    let request = |reply| Request::Forks(name, query.after, reply);
    Ok(Json(api.control.ask(request).await?))
}

async fn fork(State(api): State<Api>, name: Name, body: Body) -> Answer<ForkDocument> {
    let Path(name) = name?;
    let wanted = parse(&body?, "{\"name\": \"vm-bob\"}")?;
    let request = |reply| Request::Fork(name, wanted, reply);
    Ok(Json(api.control.ask(request).await?))
}

async fn gc(State(api): State<Api>, body: Body) -> Answer<OperationDocument> {
    let body = body?;
    let wanted = if body.is_empty() {
        GcDocument::default()
    } else {
        parse(&body, "{\"export\": \"vm-alice\", \"dry_run\": true}")?
    };
    Ok(Json(
        api.control.ask(|reply| Request::Gc(wanted, reply)).await?,
    ))
}

async fn operations(State(api): State<Api>) -> Answer<Vec<OperationDocument>> {
    Ok(Json(api.control.ask(Request::Operations).await?))
}

async fn operation(State(api): State<Api>, id: Name) -> Answer<OperationDocument> {
    let Path(id) = id?;
    let request = |reply| Request::Operation(id, reply);
    Ok(Json(api.control.ask(request).await?))
}

async fn list_salvage(State(api): State<Api>) -> Answer<Vec<SalvageDocument>> {
    Ok(Json(api.control.ask(Request::Salvage).await?))
}

/// What may stand behind the `?` of a list of salvaged ranges.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RangesQuery {
    #[serde(default)]
    from: u64,
}

async fn salvage_ranges(
    State(api): State<Api>,
    id: Name,
    query: Result<Query<RangesQuery>, QueryRejection>,
) -> Answer<SalvageRanges> {
    let (Path(id), Query(query)) = (id?, query?);
    let request = |reply| Request::SalvageRanges(id, query.from, reply);
    Ok(Json(api.control.ask(request).await?))
}

/// Which salvaged bytes are asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DataQuery {
    at: u64,
    len: u64,
}

async fn salvage_data(
    State(api): State<Api>,
    id: Name,
    query: Result<Query<DataQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let (Path(id), Query(DataQuery { at, len })) = (id?, query?);
    let request = |reply| Request::SalvageData(id, at, len, reply);
    let bytes = api.control.ask(request).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}

async fn export_metrics(State(api): State<Api>, name: Name) -> Answer<MetricsDocument> {
    let Json(export) = get_one(State(api), name).await?;
    Ok(Json(MetricsDocument {
        name: export.name,
        clients: export.clients,
        dirty_bytes: export.dirty_bytes,
        dirty_age_ms: export.dirty_age_ms,
        last_seq: export.last_seq,
        published_seq: export.published_seq,
        io: export.io,
    }))
}

async fn server_document(State(api): State<Api>) -> Answer<ServerDocument> {
    Ok(Json(api.server().await?))
}

async fn meters(State(api): State<Api>) -> Answer<MetersDocument> {
    Ok(Json(api.control.ask(Request::Meters).await?))
}

async fn all_metrics(State(api): State<Api>) -> Result<Response, ApiError> {
    let meters = api.control.ask(Request::Meters).await?;
    let text = metrics::render(meters, metrics::Process::now());
    Ok(([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], text).into_response())
}

async fn health(State(api): State<Api>) -> Response {
    let (code, status) = match api.unhealthy().await {
        None => (axum::http::StatusCode::OK, "ok".to_owned()),
        Some(why) => (axum::http::StatusCode::SERVICE_UNAVAILABLE, why),
    };
    let document = HealthDocument {
        status,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    (code, Json(document)).into_response()
}

impl Api {
    /// Why no new work should come here; none if it may.
    async fn unhealthy(&self) -> Option<String> {
        if *self.stopping.borrow() {
            return Some("shutting down".into());
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "edge: the health of the shard is judged by real time"
        )]
        let answer = tokio::time::timeout(HEALTH_WAIT_MAX, self.server()).await;
        match answer {
            Err(_elapsed) => Some("the data path does not answer".into()),
            Ok(Err(error)) => Some(error.message),
            Ok(Ok(server)) => server.stopped,
        }
    }
}

/// An empty body asks for nothing special.
fn parse_or_default<T: DeserializeOwned + Default>(
    body: &[u8],
    example: &str,
) -> Result<T, ApiError> {
    if body.trim_ascii().is_empty() {
        Ok(T::default())
    } else {
        parse(body, example)
    }
}

fn parse<T: DeserializeOwned>(body: &[u8], example: &str) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::invalid(format!("body: {error}; send for example {example}")))
}

//! Who may ask, and how many at once.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use world::sync::{OwnedSemaphorePermit, Semaphore};

use super::Api;
use super::error::ApiError;

/// Requests that change something and are in progress (a drain can last long). One more is
/// answered `busy`. Fewer than the shard answers at a time, so that drains that hang leave it room
/// for those who only look.
pub(super) const CHANGES_MAX: usize = 16;
/// Requests that only look.
pub(super) const LOOKS_MAX: usize = 32;

/// Room for requests in progress.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    changes: Arc<Semaphore>,
    looks: Arc<Semaphore>,
}

impl Slots {
    pub(super) fn new() -> Self {
        Self {
            changes: Arc::new(Semaphore::new(CHANGES_MAX)),
            looks: Arc::new(Semaphore::new(LOOKS_MAX)),
        }
    }

    fn acquire_now(&self, kind: Kind) -> Option<OwnedSemaphorePermit> {
        let slots = match kind {
            Kind::Change => &self.changes,
            Kind::Look => &self.looks,
        };
        Arc::clone(slots).try_acquire_owned().ok()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Look,
    Change,
}

/// Lets a request through that is allowed and has room.
pub(super) async fn admit(State(api): State<Api>, request: Request, next: Next) -> Response {
    let kind = match *request.method() {
        Method::GET | Method::HEAD => Kind::Look,
        _ => Kind::Change,
    };
    if let Some(refusal) = refusal(&api, request.headers(), kind) {
        return refusal;
    }
    let Some(_slot) = api.slots.acquire_now(kind) else {
        let error = ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "busy",
            "too many requests are in progress; ask again in a moment",
        );
        return ([(header::RETRY_AFTER, "1")], error).into_response();
    };
    next.run(request).await
}

fn refusal(api: &Api, headers: &HeaderMap, kind: Kind) -> Option<Response> {
    // Else any web page in a browser on this machine could delete exports.
    if kind == Kind::Change && headers.contains_key(header::ORIGIN) {
        let error = ApiError::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            "requests from web pages may change nothing here",
        );
        return Some(error.into_response());
    }
    let token = api.token.as_ref()?;
    let offered = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    if offered.is_some_and(|offered| token.matches(offered)) {
        return None;
    }
    let error = ApiError::new(
        StatusCode::UNAUTHORIZED,
        "unauthorized",
        "send the header `Authorization: Bearer <servers.api.token>`",
    );
    let mut response = error.into_response();
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    Some(response)
}

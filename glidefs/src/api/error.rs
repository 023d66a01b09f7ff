//! Errors as JSON: `{"error": {"kind", "message", "export"}}` with the status that fits.

use axum::Json;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use crate::control::{ControlError, ControlErrorKind, ExportDocument};

/// What a client gets instead of what it asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

/// The outer object.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct ErrorDocument {
    pub error: ErrorBody,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct ErrorBody {
    /// For programs: `not_found`, `invalid`, `conflict`, `unavailable`, `failed`, or of the API
    /// itself `unauthorized`, `forbidden`, `method_not_allowed`, `too_large`, `busy`.
    pub kind: String,
    /// For people: what is wrong and what to do.
    pub message: String,
    /// The export whose numbers a refusal rests on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub export: Option<Box<ExportDocument>>,
    /// Of a member of a group: all members.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<ExportDocument>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, kind: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            body: ErrorBody {
                kind: kind.to_owned(),
                message: message.into(),
                export: None,
                members: Vec::new(),
            },
        }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", message)
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        let (status, kind) = match error.kind {
            ControlErrorKind::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            ControlErrorKind::Invalid => (StatusCode::BAD_REQUEST, "invalid"),
            ControlErrorKind::Conflict => (StatusCode::CONFLICT, "conflict"),
            ControlErrorKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "unavailable"),
            ControlErrorKind::Failed => (StatusCode::INTERNAL_SERVER_ERROR, "failed"),
        };
        let mut answer = Self::new(status, kind, error.message);
        answer.body.export = error.export;
        answer.body.members = error.members;
        answer
    }
}

impl From<BytesRejection> for ApiError {
    fn from(rejection: BytesRejection) -> Self {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            let message = format!("the body is larger than {} bytes", super::BODY_BYTES_MAX);
            return Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message);
        }
        Self::invalid(format!("the body cannot be read: {rejection}"))
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self::invalid(format!("the path cannot be read: {rejection}"))
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::invalid(format!(
            "the query cannot be read: {rejection}; send for example `?stored=true&after=vm-a`"
        ))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorDocument { error: self.body })).into_response()
    }
}

pub(super) async fn no_such_route(uri: Uri) -> ApiError {
    let message = format!(
        "no route {}; there are /api/exports, /api/exports/{{name}}[/drain|/prepare|/promote|/metrics], \
         /api/groups, /api/server, /healthz and /metrics",
        uri.path()
    );
    ApiError::new(StatusCode::NOT_FOUND, "not_found", message)
}

pub(super) async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!("{method} means nothing on {}", uri.path()),
    )
}

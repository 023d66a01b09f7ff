//! What a failed request means for the caller: pure, from the client library's error.
//!
//! The library keeps the HTTP status only in the words of its errors. So the words are read here,
//! in one place, and tests hold them against the real client talking to a real socket. An answer that
//! says when to come again has a type of its own (`retry_after.rs`).
//!
//! The rule when in doubt: a write is [`StoreErrorKind::Unknown`] (its effect may still come), a
//! read [`StoreErrorKind::Retry`].

use std::error::Error;
use std::time::Duration;

use object_store::client::{HttpError, HttpErrorKind};

use super::retry_after::Told;
use crate::store::StoreErrorKind;

/// Characters of a store's answer that are passed on: some answer with whole web pages.
const MESSAGE_CHARS_MAX: usize = 1000;

/// A failed request, without its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: StoreErrorKind,
    pub(super) message: String,
    pub(super) retry_after: Option<Duration>,
}

impl Failure {
    pub(super) fn new(kind: StoreErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            retry_after: None,
        }
    }

    pub(super) fn of(access: Access, error: &object_store::Error) -> Self {
        let message = words_of(error);
        Self {
            kind: kind_of(access, error, &message),
            message: shown(&message).chars().take(MESSAGE_CHARS_MAX).collect(),
            retry_after: find::<Told>(error).map(|told| told.wait),
        }
    }
}

/// Parts of a store's answer that people get to see, in this order.
const SHOWN: [&str; 3] = ["Code", "Message", "RequestId"];

/// The words without the rest of what S3 answers: to a request with an expired token it repeats the whole token, and to one
/// with a wrong signature all that was signed, the token too. That must not get into a log.
fn shown(words: &str) -> String {
    let Some((before, answer)) = words.split_once("<Error>") else {
        return words.to_owned();
    };
    let (answer, after) = answer.split_once("</Error>").unwrap_or((answer, ""));
    let before = before.split("<?xml").next().unwrap_or_default();
    let part = |name: &str| {
        let (_, rest) = answer.split_once(&format!("<{name}>"))?;
        Some(rest.split('<').next().unwrap_or_default().trim())
    };
    let parts: Vec<&str> = SHOWN.iter().filter_map(|name| part(name)).collect();
    format!("{before}{}{}", parts.join(": "), shown(after))
}

/// Whether a request that failed may have changed something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

impl Access {
    /// Nobody knows whether the request arrived.
    fn unclear(self) -> StoreErrorKind {
        match self {
            Self::Read => StoreErrorKind::Retry,
            Self::Write => StoreErrorKind::Unknown,
        }
    }
}

fn kind_of(access: Access, error: &object_store::Error, message: &str) -> StoreErrorKind {
    if let Some(status) = http_status(error) {
        return kind_of_status(access, status, message);
    }
    if let Some(http) = find::<HttpError>(error) {
        return match http.kind() {
            // No connection: the request has not left this machine.
            HttpErrorKind::Connect => StoreErrorKind::Retry,
            _ => access.unclear(),
        };
    }
    match error {
        object_store::Error::NotFound { .. } => StoreErrorKind::NotFound,
        object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. } => {
            StoreErrorKind::Conflict
        }
        object_store::Error::NotSupported { .. } | object_store::Error::NotImplemented { .. } => {
            StoreErrorKind::Unsupported
        }
        object_store::Error::InvalidPath { .. }
        | object_store::Error::PermissionDenied { .. }
        | object_store::Error::Unauthenticated { .. }
        | object_store::Error::UnknownConfigurationKey { .. } => StoreErrorKind::Refused,
        // Memory's only other complaint: a range that the object does not have.
        object_store::Error::Generic {
            store: "InMemory", ..
        } => StoreErrorKind::Refused,
        _ if message.contains("redirect without LOCATION") => StoreErrorKind::Refused,
        // The whole object came where a part of it was asked for.
        _ if message.contains("non-partial response") => StoreErrorKind::Unsupported,
        _ => access.unclear(),
    }
}

fn kind_of_status(access: Access, status: u16, message: &str) -> StoreErrorKind {
    let says = |codes: &[&str]| codes.iter().any(|code| message.contains(code));
    match status {
        // Success in the status and a failure in the body.
        200..=299 => access.unclear(),
        304 | 412 => StoreErrorKind::Conflict,
        400 if says(&["RequestTimeout"]) => access.unclear(),
        // A proxy's page, a missing bucket or a wrong path answer 404 too; they say nothing of the
        // object (protocol rule 16).
        404 if says(&["NoSuchKey", "BlobNotFound"]) => StoreErrorKind::NotFound,
        408 | 425 | 429 => access.unclear(),
        // Another conditional request was being worked on; this one was turned away.
        409 if says(&["ConditionalRequestConflict", "OperationAborted"]) => StoreErrorKind::Retry,
        409 => StoreErrorKind::Conflict,
        501 => StoreErrorKind::Unsupported,
        500..=599 => access.unclear(),
        _ => StoreErrorKind::Refused,
    }
}

/// The status that the store answered with, if it answered.
pub(super) fn http_status(error: &object_store::Error) -> Option<u16> {
    if let Some(told) = find::<Told>(error) {
        return Some(told.status);
    }
    chain(error).find_map(|error| {
        let text = error.to_string();
        if text.starts_with("Server returned error response") {
            return Some(200);
        }
        let status = text.strip_prefix("Server returned non-2xx status code: ")?;
        status.get(..3)?.parse().ok()
    })
}

/// What failed, and why: the library ends with "error sending request", and that a name does not resolve
/// or a certificate is not trusted stands in the causes below.
fn words_of(error: &object_store::Error) -> String {
    let mut words = error.to_string();
    for cause in chain(error).skip(1) {
        let cause = cause.to_string();
        if !words.contains(&cause) {
            words.push_str(": ");
            words.push_str(&cause);
        }
    }
    words
}

fn find<T: Error + 'static>(error: &object_store::Error) -> Option<&T> {
    chain(error).find_map(|error| error.downcast_ref())
}

fn chain(error: &object_store::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    let first: &(dyn Error + 'static) = error;
    std::iter::successors(Some(first), |&error| error.source())
}

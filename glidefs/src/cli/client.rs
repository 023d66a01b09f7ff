//! A thin HTTP client for the API of a running server. Plain http only, as the API speaks.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use super::{Failure, Remote};
use crate::api::ErrorDocument;
use crate::control::ExportDocument;

/// A server that does not take the connection for so long is not there.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
/// A look that takes longer is given up. Changes (a drain) may last.
const LOOK_WAIT_MAX: Duration = Duration::from_secs(30);
/// 10,000 exports need a tenth of this.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A server's API, by address.
#[derive(Debug)]
pub(super) struct Client<'a> {
    url: &'a str,
    authority: String,
    token: Option<&'a str>,
}

/// What the server said: a document, or a refusal.
#[derive(Debug)]
pub(super) enum Said<T> {
    Yes(T),
    No(Refusal),
}

/// An error document, with its status.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) message: String,
    pub(super) export: Option<Box<ExportDocument>>,
    /// Of a member of a group: all members.
    pub(super) members: Vec<ExportDocument>,
}

impl<'a> Client<'a> {
    pub(super) fn new(remote: &'a Remote) -> Result<Self, Failure> {
        let url = remote.api.trim_end_matches('/');
        let Some(authority) = url.strip_prefix("http://") else {
            return Err(Failure::unusable(format!(
                "--api {url}: write http://HOST:PORT (the API speaks plain http)"
            )));
        };
        if authority.is_empty() || authority.contains(['/', '@', '?', ' ']) {
            return Err(Failure::unusable(format!(
                "--api {url}: nothing but host and port may stand behind http://"
            )));
        }
        let has_port = authority
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let authority = if has_port {
            authority.to_owned()
        } else {
            format!("{authority}:80")
        };
        Ok(Self {
            url,
            authority,
            token: remote.token.as_deref(),
        })
    }

    /// Gets a document.
    pub(super) async fn look<T: DeserializeOwned>(&self, path: &str) -> Result<Said<T>, Failure> {
        self.look_within(LOOK_WAIT_MAX, path).await
    }

    /// Gets bytes that are no document.
    pub(super) async fn bytes(&self, path: &str) -> Result<Bytes, Failure> {
        let exchange = self.exchange(Method::GET, path, String::new());
        let answer = within(LOOK_WAIT_MAX, exchange).await;
        let (status, bytes) = answer.unwrap_or_else(|| Err(self.unreachable("no answer")))?;
        if status.is_success() {
            return Ok(bytes);
        }
        Err(refusal(status, &bytes).into_failure())
    }

    /// The same for who asks again and again, and must not wait long for one answer.
    pub(super) async fn look_within<T: DeserializeOwned>(
        &self,
        wait_max: Duration,
        path: &str,
    ) -> Result<Said<T>, Failure> {
        let call = self.call(Method::GET, path, String::new());
        within(wait_max, call)
            .await
            .unwrap_or_else(|| Err(self.unreachable("no answer")))
    }

    /// Changes something, and waits as long as it takes.
    pub(super) async fn change<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<Said<T>, Failure> {
        self.call(method, path, body).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<Said<T>, Failure> {
        let (status, bytes) = self.exchange(method, path, body).await?;
        if status.is_success() {
            let document = serde_json::from_slice(&bytes).map_err(|error| {
                self.unreachable(&format!("what answers there is no glidefs ({error})"))
            })?;
            return Ok(Said::Yes(document));
        }
        Ok(Said::No(refusal(status, &bytes)))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let broken = |error: &dyn std::fmt::Display| self.unreachable(&error.to_string());
        let stream = within(CONNECT_WAIT_MAX, TcpStream::connect(&self.authority))
            .await
            .ok_or_else(|| self.unreachable("no answer"))?
            .map_err(|error| broken(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(&error))?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.authority)
            .header(CONTENT_TYPE, "application/json");
        if let Some(token) = self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Failure::unusable(format!("cannot ask for {path}: {error}")))?;
        let answer = async move {
            let response = sender
                .send_request(request)
                .await
                .map_err(|error| broken(&error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|error| broken(&error))?;
            Ok((status, body.to_bytes()))
        };
        // The connection must be driven while the answer is awaited; its own error shows there. It
        // ends once the answer is in, because that drops `sender`.
        let (answer, _closed) = tokio::join!(answer, connection);
        answer
    }

    fn unreachable(&self, why: &str) -> Failure {
        Failure::unusable(format!(
            "cannot reach the API at {}: {why}; is the server running, and is this its \
             `servers.api.address`?",
            self.url
        ))
    }
}

/// What stands in an answer that is no success.
fn refusal(status: StatusCode, bytes: &[u8]) -> Refusal {
    match serde_json::from_slice::<ErrorDocument>(bytes) {
        Ok(document) => Refusal {
            status,
            message: document.error.message,
            export: document.error.export,
            members: document.error.members,
        },
        Err(_not_ours) => Refusal {
            status,
            message: format!("{status}: {}", String::from_utf8_lossy(bytes)),
            export: None,
            members: Vec::new(),
        },
    }
}

impl<T> Said<T> {
    /// The document, or a refusal as the end of the command.
    pub(super) fn or_refused(self) -> Result<T, Failure> {
        match self {
            Self::Yes(document) => Ok(document),
            Self::No(refusal) => Err(refusal.into_failure()),
        }
    }
}

impl Refusal {
    pub(super) fn into_failure(self) -> Failure {
        let mut message = self.message;
        let one = self.export.as_deref().filter(|_| self.members.is_empty());
        for export in self.members.iter().chain(one) {
            message.push_str(&format!(
                " (export {}: {}, owner {}, epoch {}, {}, {} clients)",
                export.name,
                export.role,
                export.owner,
                export.epoch,
                dirty_text(export),
                export.clients
            ));
        }
        Failure::refused(message)
    }
}

/// Of an export that another node owns, a 0 would be read as the owner's.
fn dirty_text(export: &ExportDocument) -> String {
    if export.role == "read-only" && export.dirty_bytes == 0 {
        return "what its owner holds dirty is not known here".to_owned();
    }
    let age = super::duration_text(Duration::from_millis(export.dirty_age_ms));
    format!("{} dirty for {age}", super::bytes_text(export.dirty_bytes))
}

/// The path of an export, whatever is in its name.
pub(super) fn export_path(name: &str, verb: &str) -> String {
    format!("/api/exports/{}{verb}", escaped(name))
}

/// The path of a snapshot, whatever is in the names.
pub(super) fn snapshot_path(export: &str, name: &str) -> String {
    export_path(export, &format!("/snapshots/{}", escaped(name)))
}

/// The path of salvaged writes.
pub(super) fn salvage_path(id: &str, verb: &str) -> String {
    format!("/api/salvage/{}{verb}", escaped(id))
}

/// The path of an operation.
pub(super) fn operation_path(id: &str) -> String {
    format!("/api/operations/{}", escaped(id))
}

/// The path of a page of all exports: the first, or the one behind a name.
pub(super) fn stored_path(after: Option<&str>) -> String {
    let after = after.map(|name| format!("&after={}", escaped(name)));
    format!("/api/exports?stored=true{}", after.unwrap_or_default())
}

pub(super) fn escaped(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// Runs one command's asking to its end.
pub(super) fn block_on<T>(asking: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::unusable(format!("cannot start: {error}")))?
        .block_on(asking)
}

/// None if it took longer.
pub(super) async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    #[expect(
        clippy::disallowed_methods,
        reason = "edge: a command line waits in real time"
    )]
    tokio::time::timeout(limit, work).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(api: &str) -> Remote {
        Remote {
            api: api.into(),
            token: None,
        }
    }

    #[test]
    fn urls_that_cannot_be_meant_are_usage_errors() {
        for (api, authority) in [
            ("http://127.0.0.1:8080", "127.0.0.1:8080"),
            ("http://node-a:8080/", "node-a:8080"),
            ("http://node-a", "node-a:80"),
            ("http://[::1]:8080", "[::1]:8080"),
        ] {
            let remote = remote(api);
            let client = Client::new(&remote).expect(api);
            assert_eq!(client.authority, authority);
        }
        for api in [
            "https://x:1",
            "localhost:8080",
            "http://",
            "http://u@h",
            "http://h/x",
        ] {
            let failure = Client::new(&remote(api)).map(|_| ()).expect_err(api);
            assert_eq!(failure.code, 2, "{api}");
        }
    }

    #[test]
    fn names_cannot_leave_their_place_in_the_path() {
        assert_eq!(export_path("vm-a", ""), "/api/exports/vm-a");
        assert_eq!(
            export_path("../x y", "/drain"),
            "/api/exports/..%2Fx%20y/drain"
        );
    }
}

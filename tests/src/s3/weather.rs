//! Bad weather between a server and its store: what the network, a proxy or the store itself does to
//! single requests. It sits before the endpoint, so a request may or may not have happened.

use std::io;
use std::pin::Pin;
#[expect(
    clippy::disallowed_types,
    reason = "the endpoint has threads of its own"
)]
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use hyper::body::{Frame, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use s3s::service::S3Service;
use s3s::{Body, HttpResponse};

/// What one in so many requests meets.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub meets: Meets,
    /// 1: each.
    pub every: u64,
    pub what: What,
}

/// Which requests it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meets {
    All,
    /// PUT and DELETE.
    Writes,
    /// GET and HEAD.
    Reads,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It does not happen, and this is the answer.
    Refused(Refusal),
    /// It happens, and this is the answer all the same.
    Denied(Refusal),
    /// It happens twice, and the answer is the second one: somebody on the way has repeated it.
    Twice,
    /// It happens, late.
    Slow(Duration),
    /// It does not happen, and no answer comes.
    Silent,
    /// The connection is closed without an answer, before or after it happened.
    Closed { happened: bool },
    /// Half of the body comes, then the connection is closed.
    Torn,
}

/// An answer as S3 gives it to a request that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub code: &'static str,
}

/// The weather; it may change at any time.
#[derive(Debug, Default)]
#[expect(
    clippy::disallowed_types,
    reason = "the endpoint has threads of its own"
)]
pub struct Weather {
    now: Mutex<Option<Fault>>,
    seen: AtomicU64,
    hit: AtomicU64,
}

impl Weather {
    pub fn set(&self, fault: Option<Fault>) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// Requests and connections that met a fault so far.
    pub fn hit(&self) -> u64 {
        self.hit.load(Ordering::SeqCst)
    }

    /// One met a fault that is not made here: it was turned away at the door.
    pub(super) fn met(&self) {
        self.hit.fetch_add(1, Ordering::SeqCst);
    }

    fn what(&self, method: &Method) -> Option<What> {
        let now = *self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = now?;
        let is_read = [Method::GET, Method::HEAD].contains(method);
        let meets = match fault.meets {
            Meets::All => true,
            Meets::Reads => is_read,
            Meets::Writes => !is_read,
        };
        if !meets {
            return None;
        }
        let number = self.seen.fetch_add(1, Ordering::SeqCst) + 1;
        if !number.is_multiple_of(fault.every) {
            return None;
        }
        self.hit.fetch_add(1, Ordering::SeqCst);
        Some(fault.what)
    }
}

/// One request through the weather. An error closes the connection.
pub(super) async fn serve(
    service: &S3Service,
    weather: &Weather,
    request: Request<Incoming>,
) -> io::Result<HttpResponse> {
    let Some(what) = weather.what(request.method()) else {
        return happen(service, request.map(Body::from)).await;
    };
    match what {
        What::Refused(refusal) => Ok(refusal.response()),
        What::Denied(refusal) => {
            happen(service, request.map(Body::from)).await?;
            Ok(refusal.response())
        }
        What::Twice => {
            let (head, body) = request.into_parts();
            let body = whole(Body::from(body)).await?;
            let again = || Request::from_parts(head.clone(), Body::from(body.clone()));
            happen(service, again()).await?;
            happen(service, again()).await
        }
        What::Slow(by) => {
            wait(by).await;
            happen(service, request.map(Body::from)).await
        }
        What::Silent => std::future::pending().await,
        What::Closed { happened } => {
            if happened {
                happen(service, request.map(Body::from)).await?;
            }
            Err(closed())
        }
        What::Torn => {
            let (head, body) = happen(service, request.map(Body::from)).await?.into_parts();
            let mut body = whole(body).await?;
            let rest = body.split_off(body.len() / 2);
            // A body that has no second half cannot be torn.
            let torn = Torn {
                first: Some(body),
                fails: !rest.is_empty(),
            };
            Ok(Response::from_parts(head, Body::http_body_unsync(torn)))
        }
    }
}

async fn happen(service: &S3Service, request: Request<Body>) -> io::Result<HttpResponse> {
    let response = service.call(request).await;
    response.map_err(|error| io::Error::other(format!("{error:?}")))
}

async fn whole(mut body: Body) -> io::Result<Bytes> {
    let mut bytes = BytesMut::new();
    while let Some(part) = body.next().await {
        bytes.extend_from_slice(&part.map_err(io::Error::other)?);
    }
    Ok(bytes.freeze())
}

#[expect(
    clippy::disallowed_methods,
    reason = "a slow store is slow in real time"
)]
async fn wait(by: Duration) {
    tokio::time::sleep(by).await;
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "by the weather")
}

impl Refusal {
    fn response(self) -> HttpResponse {
        let (code, request) = (self.code, "injected");
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code>\
             <Message>{request}</Message><RequestId>{request}</RequestId></Error>"
        );
        let mut response = Response::new(Body::from(text));
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response
    }
}

/// A body that ends before its length.
struct Torn {
    first: Option<Bytes>,
    fails: bool,
}

impl hyper::body::Body for Torn {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let next = match self.first.take() {
            Some(first) => Some(Ok(Frame::data(first))),
            None if std::mem::take(&mut self.fails) => Some(Err(closed())),
            None => None,
        };
        Poll::Ready(next)
    }
}

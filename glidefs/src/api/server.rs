//! The sockets under the API: binds, accepts, bounds how many.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use world::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections at once. One more waits in the kernel until another ends.
pub const API_CONNECTIONS_MAX: usize = 128;
/// A connection that sends no request for so long is closed.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// After a failed accept (no file descriptors): do not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The address cannot be had. The text names the key to change.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(
        "`servers.api.address`: {address} is in use by another program; stop that one, or set \
         another address (with no config file: `glidefs init` writes one)"
    )]
    InUse { address: SocketAddr },
    #[error("`servers.api.address`: cannot listen on {address}: {error}")]
    Other {
        address: SocketAddr,
        #[source]
        error: std::io::Error,
    },
}

pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address)
        .await
        .map_err(|error| match error.kind() {
            ErrorKind::AddrInUse => BindError::InUse { address },
            _ => BindError::Other { address, error },
        })
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, router: Router) {
    let slots = Arc::new(Semaphore::new(API_CONNECTIONS_MAX));
    let mut is_deaf = false;
    loop {
        let slot = Arc::clone(&slots)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _peer)) => {
                is_deaf = false;
                spawn(stream, router.clone(), slot);
            }
            Err(error) => {
                // Once, not for every attempt.
                if !std::mem::replace(&mut is_deaf, true) {
                    tracing::warn!(%error, "the API cannot accept a connection; trying on");
                }
                pause().await;
            }
        }
    }
}

fn spawn(stream: TcpStream, router: Router, slot: OwnedSemaphorePermit) {
    let connection = async move {
        let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_MAX);
        let service = TowerToHyperService::new(router);
        // A client that leaves in the middle is its own affair.
        let _ended = builder
            .serve_connection(TokioIo::new(stream), service)
            .await;
        drop(slot);
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "edge: HTTP connections live on the tokio runtime"
    )]
    let _detached = tokio::spawn(connection);
}

#[expect(
    clippy::disallowed_methods,
    reason = "edge: the API runs in real time only"
)]
async fn pause() {
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

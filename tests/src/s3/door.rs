//! How connections come to the endpoint: as they are, or by TLS with this certificate or that. It may change
//! while the endpoint runs.
//!
//! Promise: a change ends each connection behind the request that is on it, so that clients meet what is new.
//! Their pools would keep what was made before for minutes.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use hyper::rt::{Read, Write};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use s3s::service::S3Service;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::weather::{self, Weather};

/// So much of a client's first words is read before the door is slammed: all of them, or the client sees a
/// reset before it has said them.
const HELLO_BYTES_MAX: usize = 16 << 10;

/// What a connection meets.
#[derive(Clone, Debug, Default)]
pub enum Door {
    /// HTTP without TLS.
    #[default]
    Plain,
    Tls(Arc<ServerConfig>),
    /// The connection is closed once the client has begun to shake hands.
    Slammed,
}

impl Door {
    /// TLS with the certificate and the key of two PEM files.
    pub fn tls(certificate: &Path, key: &Path) -> Result<Self> {
        let reading = |path: &Path| format!("reading {}", path.display());
        let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate)
            .with_context(|| reading(certificate))?
            .collect();
        let chain = chain.with_context(|| reading(certificate))?;
        let key = PrivateKeyDer::from_pem_file(key).with_context(|| reading(key))?;
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        Ok(Self::Tls(Arc::new(config)))
    }
}

/// Takes connections until it is dropped.
#[expect(
    clippy::disallowed_methods,
    reason = "the endpoint is another machine: not in our world"
)]
pub(super) async fn serve(
    listener: TcpListener,
    service: S3Service,
    weather: Arc<Weather>,
    door: watch::Receiver<Door>,
) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        let guest = Guest {
            service: service.clone(),
            weather: Arc::clone(&weather),
            door: door.clone(),
        };
        tokio::spawn(guest.enter(stream));
    }
}

/// Who has knocked.
struct Guest {
    service: S3Service,
    weather: Arc<Weather>,
    door: watch::Receiver<Door>,
}

impl Guest {
    async fn enter(mut self, stream: TcpStream) {
        let door = self.door.borrow_and_update().clone();
        match door {
            Door::Plain => Box::pin(self.talk(TokioIo::new(stream))).await,
            Door::Tls(config) => {
                let shaken = Box::pin(TlsAcceptor::from(config).accept(stream)).await;
                match shaken {
                    Ok(stream) => Box::pin(self.talk(TokioIo::new(stream))).await,
                    // The client does not like what it is shown.
                    Err(_) => self.weather.met(),
                }
            }
            Door::Slammed => {
                self.weather.met();
                let mut hello = vec![0; HELLO_BYTES_MAX];
                if stream.readable().await.is_ok() {
                    stream.try_read(&mut hello).ok();
                }
            }
        }
    }

    async fn talk<I>(mut self, io: I)
    where
        I: Read + Write + Unpin + Send + 'static,
    {
        let (service, weather) = (self.service, self.weather);
        let through = service_fn(move |request| {
            let (service, weather) = (service.clone(), Arc::clone(&weather));
            async move { Box::pin(weather::serve(&service, &weather, request)).await }
        });
        let http = auto::Builder::new(TokioExecutor::new());
        let mut connection = Box::pin(http.serve_connection(io, through).into_owned());
        tokio::select! {
            done = connection.as_mut() => {
                // A client that hangs up is no concern of ours.
                done.ok();
                return;
            }
            changed = self.door.changed() => {
                // Also when the endpoint ends.
                changed.ok();
            }
        }
        connection.as_mut().graceful_shutdown();
        connection.await.ok();
    }
}

//! Who may ask the endpoint: whoever has its keys, which may be renewed while it runs.

use std::io;
use std::path::Path;
use std::sync::Arc;

use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3Result, s3_error};
use tokio::sync::watch;

use super::clock::Clock;
use super::weather::Weather;
use super::{ACCESS_KEY, SECRET_KEY};

/// Files of [`Keys::write`].
pub const ID_FILE: &str = "id";
pub const SECRET_FILE: &str = "secret";
pub const TOKEN_FILE: &str = "token";

/// The keys that the endpoint takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    pub access_key: String,
    pub secret_key: String,
    /// None: it does not look at tokens.
    pub token: Option<String>,
    /// From this second since 1970 on, by the endpoint's clock, they are not taken. None: they last.
    pub expires_at: Option<i64>,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            access_key: ACCESS_KEY.to_owned(),
            secret_key: SECRET_KEY.to_owned(),
            token: None,
            expires_at: None,
        }
    }
}

impl Keys {
    /// Into files of a folder, as whoever renews keys does it: each file as a whole.
    #[expect(
        clippy::disallowed_methods,
        reason = "whoever renews keys is another process"
    )]
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let token = self.token.as_deref().unwrap_or("no token");
        for (name, text) in [
            (ID_FILE, self.access_key.as_str()),
            (SECRET_FILE, self.secret_key.as_str()),
            (TOKEN_FILE, token),
        ] {
            let next = folder.join("next");
            std::fs::write(&next, text)?;
            std::fs::rename(&next, folder.join(name))?;
        }
        Ok(())
    }
}

/// Looks at what requests are signed with, and when.
#[derive(Clone, Debug)]
pub(super) struct Doorkeeper {
    pub(super) keys: watch::Receiver<Keys>,
    pub(super) clock: Arc<Clock>,
    /// Whom it turns away has met bad weather.
    pub(super) weather: Arc<Weather>,
}

#[async_trait::async_trait]
impl S3Auth for Doorkeeper {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let keys = self.keys.borrow().clone();
        if keys.access_key == access_key {
            Ok(SecretKey::from(keys.secret_key))
        } else {
            Err(s3_error!(InvalidAccessKeyId))
        }
    }
}

#[async_trait::async_trait]
impl S3Access for Doorkeeper {
    async fn check(&self, request: &mut S3AccessContext<'_>) -> S3Result<()> {
        if request.credentials().is_none() {
            return Err(s3_error!(AccessDenied, "nobody has signed it"));
        }
        let header = |name: &str| {
            let value = request.headers().get(name);
            value.and_then(|value| value.to_str().ok())
        };
        // The date is one of the headers that are signed.
        if !self.clock.takes(header("x-amz-date").unwrap_or_default()) {
            self.weather.met();
            return Err(s3_error!(RequestTimeTooSkewed));
        }
        let keys = self.keys.borrow().clone();
        let is_over = keys.expires_at.is_some_and(|at| at <= self.clock.seconds());
        let is_other =
            keys.token.is_some() && keys.token.as_deref() != header("x-amz-security-token");
        if is_over || is_other {
            self.weather.met();
            return Err(s3_error!(ExpiredToken));
        }
        Ok(())
    }
}

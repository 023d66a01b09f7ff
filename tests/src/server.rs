//! The real `glidefs` binary as a process: started with a config of its own, asked through its API,
//! stopped politely or with kill -9. Dropping it kills it, by its process id alone.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::blocking_client::{Address, Client};
use crate::http::{self, Response};
use crate::s3::{self, keys};

/// How long a start may take on a busy machine; a cache file is preallocated in it.
const START_WAIT_MAX: Duration = Duration::from_secs(60);
const STOP_WAIT_MAX: Duration = Duration::from_secs(120);
const GIVE_UP_WAIT_MAX: Duration = Duration::from_secs(60);
const POLL_EVERY: Duration = Duration::from_millis(20);
/// So many bytes of the server's log go into a failure's message.
const LOG_TAIL_BYTES: usize = 4000;

/// The store that a server is told to use.
#[derive(Clone, Debug)]
pub enum Store {
    /// The bucket at this endpoint, under this prefix.
    S3 { endpoint: String, prefix: String },
    /// A folder.
    File(PathBuf),
}

/// What the config file shall say.
#[derive(Clone, Debug)]
pub struct Settings {
    pub store: Store,
    pub cache_dir: PathBuf,
    pub disk_size_gb: f64,
    pub password: Option<String>,
    pub auto_create_size_gb: Option<f64>,
    pub sync_delay_ms: u64,
    /// None: the default of the product.
    pub compression: Option<String>,
    /// Where the keys of an S3 store are, in the files of [`keys::Keys::write`]. None: in the config.
    pub keys_dir: Option<PathBuf>,
    /// What the process finds in its environment beside ours.
    pub environment: Vec<(String, String)>,
    /// A program and its arguments that becomes the server, with the server's command line behind them. Empty: none.
    pub wrapper: Vec<String>,
}

impl Settings {
    /// Small and quick, as in most tests.
    pub fn new(store: Store, cache_dir: &Path) -> Self {
        Self {
            store,
            cache_dir: cache_dir.to_owned(),
            disk_size_gb: 1.0,
            password: Some("correct horse battery staple".to_owned()),
            auto_create_size_gb: Some(1.0),
            sync_delay_ms: 200,
            compression: None,
            keys_dir: None,
            environment: Vec::new(),
            wrapper: Vec::new(),
        }
    }

    fn toml(&self, socket: &Path, nbd: SocketAddr, api: SocketAddr) -> Result<String> {
        let mut text = String::new();
        let (url, endpoint) = match &self.store {
            Store::S3 { endpoint, prefix } => {
                (format!("s3://{}/{prefix}", s3::BUCKET), Some(endpoint))
            }
            Store::File(folder) => (format!("file://{}", folder.display()), None),
        };
        writeln!(text, "[cache]\ndir = {:?}", self.cache_dir)?;
        writeln!(text, "disk_size_gb = {:?}\n", self.disk_size_gb)?;
        writeln!(text, "[storage]\nurl = {url:?}")?;
        if let Some(password) = &self.password {
            writeln!(text, "encryption_password = {password:?}")?;
        }
        if let Some(compression) = &self.compression {
            writeln!(text, "compression = {compression:?}")?;
        }
        writeln!(text, "\n[servers.nbd]\nunix_socket = {socket:?}")?;
        writeln!(text, "address = \"{nbd}\"")?;
        if let Some(size) = self.auto_create_size_gb {
            writeln!(text, "auto_create_size_gb = {size:?}")?;
        }
        writeln!(text, "sync_delay_ms = {}\n", self.sync_delay_ms)?;
        writeln!(text, "[servers.api]\naddress = \"{api}\"")?;
        if let Some(endpoint) = endpoint {
            writeln!(text, "\n[aws]\nendpoint = {endpoint:?}")?;
            writeln!(text, "default_region = {:?}", s3::REGION)?;
            writeln!(text, "allow_http = true")?;
            text.push_str(&self.keys());
        }
        Ok(text)
    }

    /// How the config names the keys of an S3 store.
    fn keys(&self) -> String {
        let named = match &self.keys_dir {
            None => vec![
                ("access_key_id", s3::ACCESS_KEY.to_owned()),
                ("secret_access_key", s3::SECRET_KEY.to_owned()),
            ],
            Some(folder) => [
                ("access_key_id_file", keys::ID_FILE),
                ("secret_access_key_file", keys::SECRET_FILE),
                ("session_token_file", keys::TOKEN_FILE),
            ]
            .map(|(key, file)| (key, folder.join(file).display().to_string()))
            .to_vec(),
        };
        let line = |(key, value): (&str, String)| format!("{key} = {value:?}\n");
        named.into_iter().map(line).collect()
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    child: Child,
    folder: PathBuf,
    pub socket: PathBuf,
    pub nbd: SocketAddr,
    pub api: SocketAddr,
}

impl Server {
    /// Starts the binary with its config and log in `folder`, and waits until it says that it serves.
    #[expect(
        clippy::disallowed_methods,
        reason = "a test starts real processes on real files"
    )]
    pub fn start(folder: &Path, settings: &Settings) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let socket = folder.join("nbd.sock");
        let (nbd, api) = (free_address()?, free_address()?);
        let config = folder.join("glidefs.toml");
        std::fs::write(&config, settings.toml(&socket, nbd, api)?)?;
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.join("server.log"))?;
        let binary = binary()?;
        let mut words: Vec<&OsStr> = settings.wrapper.iter().map(OsStr::new).collect();
        words.push(binary.as_os_str());
        let child = std::process::Command::new(words[0])
            .args(&words[1..])
            .arg("run")
            .arg("-c")
            .arg(&config)
            // What the machine that runs the tests has set must not leak into them.
            .env_clear()
            .envs(std::env::vars().filter(|(name, _)| !name.starts_with("AWS_")))
            .envs(settings.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {words:?}"))?;
        let mut server = Self {
            child,
            folder: folder.to_owned(),
            socket,
            nbd,
            api,
        };
        server.wait_until_ready()?;
        Ok(server)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let mut exited = None;
        let is_ready = wait_until(START_WAIT_MAX, || {
            exited = self.child.try_wait().ok().flatten();
            let health = http::ask(self.api, "GET", "/healthz", None);
            exited.is_some() || health.is_ok_and(|response| response.status == 200)
        });
        if let Some(status) = exited {
            bail!("the server ended at start: {status}\n{}", self.log_tail());
        }
        ensure!(is_ready, "the server is not ready\n{}", self.log_tail());
        Ok(())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn unix(&self) -> Address {
        Address::Unix(self.socket.clone())
    }

    pub fn tcp(&self) -> Address {
        Address::Tcp(self.nbd)
    }

    /// As NBD tools want it.
    pub fn unix_uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    pub fn tcp_uri(&self, export: &str) -> String {
        format!("nbd://{}/{export}", self.nbd)
    }

    /// Connects our own client.
    pub fn connect(&self, export: &str) -> Result<Client> {
        let client = Client::connect(&self.unix(), export);
        client.with_context(|| format!("connecting to {export}\n{}", self.log_tail()))
    }

    /// The same, where an answer that takes longer than this is an error.
    pub fn connect_within(&self, export: &str, wait_max: Duration) -> Result<Client> {
        let client = Client::connect_within(&self.unix(), export, wait_max);
        client.with_context(|| format!("connecting to {export}\n{}", self.log_tail()))
    }

    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Response> {
        let body = body.map(Value::to_string);
        http::ask(self.api, method, path, body.as_deref())
    }

    /// The export's document.
    pub fn export(&self, name: &str) -> Result<Value> {
        self.ask_for_success("GET", &format!("/api/exports/{name}"), None)
    }

    /// Numbers of the whole server.
    pub fn numbers(&self) -> Result<Value> {
        self.ask_for_success("GET", "/api/server", None)
    }

    /// Everything answered so far is in the store after this.
    pub fn drain(&self, name: &str) -> Result<Value> {
        self.ask_for_success("POST", &format!("/api/exports/{name}/drain"), None)
    }

    /// Drained and detached, once the server has seen that its clients are gone.
    pub fn give_up(&self, name: &str) -> Result<()> {
        let path = format!("/api/exports/{name}");
        let mut last = "no answer".to_owned();
        let is_gone = || {
            let asked = self.ask("DELETE", &path, None);
            asked.is_ok_and(|answer| {
                last = answer.body;
                answer.status == 200
            })
        };
        let gone = wait_until(GIVE_UP_WAIT_MAX, is_gone);
        ensure!(gone, "{name} is not given up: {last}\n{}", self.log_tail());
        Ok(())
    }

    /// Takes the export from an owner that is lost.
    pub fn promote_by_force(&self, name: &str) -> Result<Value> {
        let epoch = self.export(name)?["epoch"].clone();
        let body = serde_json::json!({"force": true, "expected_epoch": epoch});
        self.ask_for_success("POST", &format!("/api/exports/{name}/promote"), Some(&body))
    }

    fn ask_for_success(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let response = self.ask(method, path, body)?;
        ensure!(
            response.status == 200,
            "{method} {path}: {} {}\n{}",
            response.status,
            response.body,
            self.log_tail()
        );
        response.json()
    }

    /// kill -9, and waits until the kernel has buried it.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        let status = self.child.wait()?;
        ensure!(
            status.signal() == Some(9),
            "the server ended before it was killed: {status}\n{}",
            self.log_tail()
        );
        Ok(())
    }

    /// SIGTERM, and waits for the drain.
    #[expect(
        clippy::disallowed_methods,
        reason = "the shell's kill: no unsafe for one signal"
    )]
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let status = std::process::Command::new("kill")
            .args(["-TERM", &self.pid().to_string()])
            .status()?;
        ensure!(status.success(), "kill -TERM: {status}");
        let mut ended = None;
        wait_until(STOP_WAIT_MAX, || {
            ended = self.child.try_wait().ok().flatten();
            ended.is_some()
        });
        ended.with_context(|| format!("the server does not stop\n{}", self.log_tail()))
    }

    /// All that the server said.
    #[expect(clippy::disallowed_methods, reason = "the log is a real file")]
    pub fn log(&self) -> String {
        let log = std::fs::read(self.folder.join("server.log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The end of what the server said.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let tail = &log.as_bytes()[log.len().saturating_sub(LOG_TAIL_BYTES)..];
        format!("--- server log ---\n{}", String::from_utf8_lossy(tail))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already dead is fine; both calls then only reap.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Looks again and again, for things that happen in other processes and tell nobody.
#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "other processes live in real time; no verdict rests on it, only when to give up"
)]
pub fn wait_until(wait_max: Duration, mut is_true: impl FnMut() -> bool) -> bool {
    let began = std::time::Instant::now();
    loop {
        if is_true() {
            return true;
        }
        if began.elapsed() > wait_max {
            return false;
        }
        std::thread::sleep(POLL_EVERY);
    }
}

/// A port that was free a moment ago.
fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// `GLIDEFS_BIN`, or the binary that the same build put beside this one.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("GLIDEFS_BIN") {
        return Ok(PathBuf::from(path));
    }
    built("glidefs")
}

/// A binary that the same build put beside this one.
pub fn built(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let beside = own.ancestors().skip(1).take(2);
    let mut candidates = beside.map(|folder| folder.join(name));
    candidates
        .find(|path| path.is_file())
        .with_context(|| format!("no {name} binary: build it (cargo build --workspace --bins)"))
}

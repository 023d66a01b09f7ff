//! `glidefs run`: one process from start to stop.
//!
//! ```text
//! main thread: tokio edge (HTTP API, signals, object store)      shard thread: io_uring
//!   bind the API ── start ───────────────────────────────────────► open cache, store; listen
//!   print how to connect, READY ◄──────────────────────── ready ──┤ serve NBD and control
//!   first signal: STOPPING ───────────────────────────── stop ───► drain, close clients, drain,
//!   show progress …                                                │ give up what is clean
//!   exit 0 (1 if something had to stay behind) ◄───────── ended ──┘
//!   second signal at any time: exit 130 or 143 at once
//! ```
//!
//! Promises: a second signal loses nothing that was answered, because an answered write is in the
//! kernel's hands (promise 2) and the next start goes on from the log. While the store is down the
//! drain keeps trying and says so. SIGHUP changes nothing and says what a restart would (`reload.rs`); it
//! ends no server, not even one that has only just begun (`cli/process.rs`).
//! Deliberately absent: becoming a background process (systemd does that).

mod banner;
mod drain;
mod keys;
mod notify;
mod probe;
mod reload;
mod settings;
mod shard_thread;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;
use world::sync::watch;

use crate::api::{self, Api};
use crate::cli::{Failure, Hangups, output};
use crate::config::{Config, Environment, LogFormat, LogSettings};
use crate::control::Control;
pub(crate) use keys::{KeyChanged, KeyWish, Renewed, SlotView, keys, renew_data_key};
use notify::Supervisor;
pub(crate) use probe::probe;
use reload::Reload;
use shard_thread::{Ended, ShardThread};

/// Calls each handshake that fails an error, once a request. The store's error says the same, and ours is
/// said once, with what to do.
const QUIET: &str = "rustls_platform_verifier=off";
/// Threads that wait for HTTP and the object store. Computing has threads of its own.
const EDGE_THREADS: usize = 2;
/// How long requests of the API in flight are given at the end.
const EDGE_END_WAIT_MAX: Duration = Duration::from_millis(500);

/// Serves until a signal. `named` is the file that the configuration came from, if one was named.
pub(crate) fn run(
    config: Config,
    named: Option<PathBuf>,
    environment: &Environment,
    hangups: Hangups,
) -> Result<ExitCode, Failure> {
    world::linux::return_large_buffers();
    start_logging(&config.log);
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let supervisor = Supervisor::from(environment);
    let reload = Reload::new(config.clone(), named, environment.clone());
    let runtime = edge()?;
    let outcome = runtime.block_on(Box::pin(serve(config, reload, hangups, &supervisor)));
    runtime.shutdown_timeout(EDGE_END_WAIT_MAX);
    outcome
}

async fn serve(
    config: Config,
    reload: Reload,
    hangups: Hangups,
    supervisor: &Supervisor,
) -> Result<ExitCode, Failure> {
    let mut signals = Signals::new()?;
    // Heard since the process began; what came before the server is ready is answered then.
    let hangups = match hangups.into_signal() {
        Some(hangups) => hangups,
        None => listen(SignalKind::hangup())?,
    };
    // Before the shard: a port that is taken must not cost a recovery of the cache.
    let listener = api::bind(config.api.address)
        .await
        .map_err(|error| Failure::unusable(error.to_string()))?;
    let api_address = listener.local_addr().unwrap_or(config.api.address);
    let (control, requests) = Control::new();
    let (stop, stopping) = watch::channel(false);
    let router = Api::new(control.clone(), config.api.token.clone(), stopping.clone()).router();
    spawn(api::serve(listener, router));
    let reloads = reload.answer(hangups, supervisor.clone(), stopping.clone());

    let mut shard = ShardThread::start(&config, requests, stopping, Handle::current())?;
    let ready = tokio::select! {
        ready = shard.ready() => ready?,
        signal = signals.next() => stop_at_once(signal),
    };
    tracing::info!(config = %config.origin, "ready");
    output::line(banner::text(&config, &ready, api_address));
    supervisor.ready();
    spawn(reloads);

    let first = tokio::select! {
        signal = signals.next() => signal,
        ended = shard.ended() => return Err(died(ended)),
    };
    supervisor.stopping();
    output::notice(format!(
        "{}: draining to the store. Again to stop at once; nothing that was answered is lost \
         either way.",
        first.name
    ));
    stop.send_replace(true);
    let mut progress = drain::Progress::new(&config.cache.dir, output::is_watched());
    let ended = tokio::select! {
        ended = drain::watch(&control, shard.ended(), &mut progress) => ended,
        signal = signals.next() => {
            progress.finish();
            stop_at_once(signal)
        }
    };
    match ended {
        Ended::Stopped(left) => {
            let (text, code) = drain::farewell(&left, &config.cache.dir);
            output::notice(text);
            Ok(code)
        }
        ended @ Ended::Failed(_) => Err(died(ended)),
    }
}

fn died(ended: Ended) -> Failure {
    match ended {
        Ended::Failed(failure) => failure,
        Ended::Stopped(_) => Failure::refused("the data path stopped without being told to"),
    }
}

/// Nothing is closed or flushed, as in a crash: that is the promise being used.
#[expect(
    clippy::exit,
    reason = "a second signal means now; all threads end with the process"
)]
fn stop_at_once(signal: Received) -> ! {
    output::notice(format!("{}: stopping at once.", signal.name));
    std::process::exit(signal.exit_code)
}

/// A signal that asks to stop.
#[derive(Clone, Copy, Debug)]
struct Received {
    name: &'static str,
    exit_code: i32,
}

#[derive(Debug)]
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Received {
        tokio::select! {
            _ = self.terminate.recv() => Received { name: "SIGTERM", exit_code: 143 },
            _ = self.interrupt.recv() => Received { name: "SIGINT", exit_code: 130 },
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::refused(format!("cannot hear signals: {error}")))
}

fn edge() -> Result<Runtime, Failure> {
    Builder::new_multi_thread()
        .worker_threads(EDGE_THREADS)
        .thread_name("edge")
        .enable_all()
        .build()
        .map_err(|error| Failure::refused(format!("cannot start threads: {error}")))
}

#[expect(clippy::disallowed_methods, reason = "edge: the API's accept loop")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

fn start_logging(settings: &LogSettings) {
    let wanted = EnvFilter::try_new(format!("{QUIET},{}", settings.filter));
    let filter = wanted.unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(output::is_watched());
    let started = match settings.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    if let Err(error) = started {
        output::notice(format!("no logs: {error}"));
        return;
    }
    // In the format that was asked for, or whoever collects the log misses it.
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(%panic, "this is a bug of glidefs: restart the server, which loses nothing that was answered, and report this line");
    }));
}

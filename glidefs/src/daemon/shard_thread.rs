//! The thread that moves data: one ring, one cache, all exports.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::rc::Rc;
use std::thread::Builder;

use blockcache::CacheError;
use tokio::runtime::Handle;
use world::linux::{LinuxConfig, LinuxStore, LinuxWorld, StoreConfig};
use world::sync::{Receiver, oneshot, watch};
use world::{Address, Listener, World};

use super::settings;
use crate::cli::Failure;
use crate::config::Config;
use crate::control::{ExportDocument, Request};
use crate::nbd;
use crate::shard::{Drain, Shard, ShardConfig, ShardError};

/// A shard on a thread of its own.
#[derive(Debug)]
pub(super) struct ShardThread {
    ready: Option<oneshot::Receiver<Vec<Address>>>,
    ended: oneshot::Receiver<Ended>,
}

/// How it ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// After it was told to stop, and drained.
    Stopped(Left),
    /// Why it did not start or could not go on.
    Failed(Failure),
}

/// What was there at the end.
#[derive(Debug)]
pub(super) struct Left {
    /// Those that were open.
    pub(super) exports: Vec<ExportDocument>,
    /// Bytes in the log that the store does not hold, of volumes that are not open too.
    pub(super) dirty_bytes: u64,
    /// Volumes that were not given up: another node needs force to open them.
    pub(super) owned: Vec<String>,
}

/// Everything that goes over to the thread.
#[derive(Debug)]
struct Plan {
    doors: Vec<(&'static str, Address)>,
    store: StoreConfig,
    shard: ShardConfig,
    requests: Receiver<Request>,
    stopping: watch::Receiver<bool>,
    ready: oneshot::Sender<Vec<Address>>,
    edge: Handle,
}

impl ShardThread {
    /// `stopping` turning true ends it, after a drain.
    pub(super) fn start(
        config: &Config,
        requests: Receiver<Request>,
        stopping: watch::Receiver<bool>,
        edge: Handle,
    ) -> Result<Self, Failure> {
        if let Some(folder) = config.nbd.unix_socket.as_deref().and_then(Path::parent) {
            // Whatever is wrong with the folder, binding says it better.
            let _made = std::fs::create_dir_all(folder);
        }
        let (ready, is_ready) = oneshot::channel();
        let (tell_end, ended) = oneshot::channel();
        let plan = Plan {
            doors: settings::doors(config),
            store: settings::store(config),
            shard: settings::shard(config),
            requests,
            stopping,
            ready,
            edge: edge.clone(),
        };
        let body = move || {
            let ended = match world::linux::run(linux(edge), |world| Box::pin(serve(world, plan))) {
                Ok(Ok(left)) => Ended::Stopped(left),
                Ok(Err(why)) => Ended::Failed(why),
                Err(error) => Ended::Failed(Failure::refused(ring_text(&error))),
            };
            // Nobody listens any more only if the process is ending.
            drop(tell_end.send(ended));
        };
        Builder::new()
            .name("shard-0".into())
            .spawn(body)
            .map_err(|error| Failure::refused(format!("cannot start a thread: {error}")))?;
        Ok(Self {
            ready: Some(is_ready),
            ended,
        })
    }

    /// Waits until it serves; the addresses that it listens on.
    pub(super) async fn ready(&mut self) -> Result<Vec<Address>, Failure> {
        let ready = self.ready.take().expect("asked once");
        match ready.await {
            Ok(addresses) => Ok(addresses),
            Err(_gone) => match self.ended().await {
                Ended::Failed(failure) => Err(failure),
                Ended::Stopped(_) => Err(Failure::refused("stopped while starting")),
            },
        }
    }

    /// Waits for its end. To be awaited to completion once.
    pub(super) async fn ended(&mut self) -> Ended {
        match (&mut self.ended).await {
            Ok(ended) => ended,
            Err(_gone) => Ended::Failed(Failure::refused(
                "the data path crashed; nothing that was answered is lost, start again",
            )),
        }
    }
}

pub(super) fn linux(edge: Handle) -> LinuxConfig {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    LinuxConfig::new(edge, threads)
}

pub(super) fn ring_text(error: &io::Error) -> String {
    format!(
        "the kernel gives no io_uring ({error}); it needs Linux 6.0 or later, and \
         `sysctl kernel.io_uring_disabled` at 0"
    )
}

/// The whole life of the shard. The order at the end: first a drain while clients go on being
/// served, so that they miss little; then they are sent away; then what they wrote meanwhile. An
/// export is given up behind its last client and its last drain, so that nothing that is answered
/// can come after the detach.
async fn serve(world: LinuxWorld, plan: Plan) -> Result<Left, Failure> {
    let store = LinuxStore::open(&plan.store, plan.edge)
        .map_err(|error| Failure::refused(format!("`storage.url`: {error}")))?;
    let shard = Box::pin(Shard::open(world.clone(), store, plan.shard))
        .await
        .map_err(|error| Failure::refused(start_text(&error)))?;
    let shard = Rc::new(shard);
    let mut listeners = Vec::new();
    for (key, address) in &plan.doors {
        let listener = world
            .listen(address)
            .await
            .map_err(|error| Failure::unusable(door_text(key, address, &error)))?;
        listeners.push(listener);
    }
    let addresses = listeners.iter().map(Listener::address).collect();
    let (close, closing) = watch::channel(false);
    let server = nbd::Server::new(
        world.clone(),
        shard.exports(),
        nbd::Limits::default(),
        closing,
    );
    let (open, mut still_open) = watch::channel(listeners.len());
    let open = Rc::new(open);
    for listener in listeners {
        let (server, open) = (server.clone(), Rc::clone(&open));
        world.spawn(async move {
            Box::pin(server.serve(listener)).await;
            open.send_modify(|count| *count -= 1);
        });
    }
    let answering = Rc::clone(&shard);
    world.spawn(async move { answering.serve_control(plan.requests).await });
    drop(plan.ready.send(addresses));

    let mut stopping = plan.stopping;
    // An error means that the edge is gone, and with it the process.
    let _told = stopping.wait_for(|stop| *stop).await;
    Box::pin(shard.shutdown(Drain::Everything)).await;
    close.send_replace(true);
    let _closed = still_open.wait_for(|count| *count == 0).await;
    let owned = Box::pin(shard.shutdown(Drain::Everything)).await;
    Ok(Left {
        exports: shard.documents(),
        dirty_bytes: shard.server().dirty_bytes,
        owned,
    })
}

/// With the setting to look at, where the words of the disk alone do not tell.
fn start_text(error: &ShardError) -> String {
    match error {
        ShardError::Cache(CacheError::Disk(_)) => format!(
            "`cache.dir`: {error}; look at the folder and those above it (missing, a link to \
             nowhere, no folder), or choose another"
        ),
        _ => error.to_string(),
    }
}

pub(super) fn door_text(key: &str, address: &Address, error: &io::Error) -> String {
    let remedy = match error.kind() {
        ErrorKind::AddrInUse => {
            "another program listens there: stop it, or set another (with no config file: \
             `glidefs init` writes one)"
        }
        ErrorKind::PermissionDenied => "give this user the right, or choose another place",
        ErrorKind::NotFound => "its folder does not exist and cannot be made",
        _ => "choose another",
    };
    format!("`{key}`: cannot listen on {address}: {error}; {remedy}")
}

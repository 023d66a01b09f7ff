//! One run of one case: a server of its own, filled, then drained while everything is counted.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use glidefs_benches::process::{self, CpuParts};
use glidefs_tests::blocking_client::Client;
use glidefs_tests::server::{Server, Settings};
use serde_json::Value;

use crate::case::{Case, Encryption, Pattern};
use crate::clock;
use crate::content::{Pages, block_bytes, places};
use crate::endpoint::Endpoint;

/// No sync begins by itself while exports are filled.
const SYNC_DELAY_MS: u64 = 3_600_000;
/// The product's own, so that its timers run.
const IDLE_SYNC_DELAY_MS: u64 = 8000;
/// Bytes a second. The log grows by some hundred MB/s at best.
const FILL_PACES: [u64; 4] = [100_000_000, 100_000_000, 50_000_000, 20_000_000];
const CACHE_GIB_MIN: f64 = 32.0;
/// Of what was written, one part in so many must be left when the order to drain comes: only that is measured. A writer
/// of one export that waits while the log grows makes all of them sync.
const LEFT_PARTS: u64 = 4;
/// So much may be written in a row.
const FILL_BURST_BYTES: u64 = 4 << 20;
const PASSWORD: &str = "a password for the bench";
/// Looks without any request or CPU time in between, until the work behind a publish counts as done.
const QUIET_LOOKS: u32 = 3;
/// Five minutes: a slow store is asked for many leaves, one by one.
const QUIET_LOOKS_MAX: u32 = 3000;
const LOOK_EVERY: Duration = Duration::from_millis(100);
const MIB_PER_GIB: f64 = 1024.0;

/// What one run found.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) bytes: u64,
    /// From the order to drain to the answer that all is published, of each export.
    pub(crate) seconds: Vec<f64>,
    /// Up to the last publish, and on until the process was quiet.
    pub(crate) cpu: CpuParts,
    pub(crate) endpoint_cpu: f64,
    pub(crate) puts: u64,
    /// All other requests.
    pub(crate) others: u64,
    pub(crate) segments: u64,
    pub(crate) stored_bytes: u64,
    /// Most that was resident while draining, and what was before.
    pub(crate) peak_bytes: u64,
    pub(crate) before_bytes: u64,
}

impl Measured {
    /// Until everything was published.
    pub(crate) fn longest(&self) -> f64 {
        self.seconds.iter().copied().fold(0.0, f64::max)
    }

    pub(crate) fn shortest(&self) -> f64 {
        self.seconds.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

/// A server with the exports of a case, connected to.
struct Node {
    server: Server,
    clients: Vec<Client>,
    cache: tempfile::TempDir,
}

/// Numbers of the server and of the store at one moment.
#[derive(Clone, Copy, Debug)]
struct Counted {
    cpu: CpuParts,
    endpoint_cpu: f64,
    puts: u64,
    others: u64,
    /// As the endpoint counts them itself; of a folder, as the server does.
    endpoint_puts: u64,
    sent_bytes: u64,
}

/// Where a run takes place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Site<'a> {
    pub(crate) endpoint: &'a Endpoint,
    /// For the cache.
    pub(crate) folder: &'a Path,
    /// In the store, of this run alone.
    pub(crate) prefix: &'a str,
}

pub(crate) fn measure(case: &Case, site: &Site<'_>, mib: u64) -> Result<Measured> {
    let endpoint = site.endpoint;
    let bytes = (mib << 20) / case.exports;
    let exports = names(case.exports);
    let node = filled(case, site, bytes, &exports)?;
    endpoint.set_delay(case.delay_ms)?;
    let pid = node.server.pid();
    process::reset_peak_memory(pid)?;
    let before_bytes = process::peak_memory_bytes(pid)?;
    let synced = packed_by_all(&node.server, &exports)?;
    let before = counted(&node.server, endpoint)?;
    let seconds = drain(&node.server, &exports)?;
    let peak_bytes = process::peak_memory_bytes(pid)?;
    let after = settled(&node.server, endpoint)?;
    check(&node.server, &exports, bytes)?;
    let drained = packed_by_all(&node.server, &exports)?;
    let puts = after.puts - before.puts;
    ensure!(
        puts == after.endpoint_puts - before.endpoint_puts,
        "the server and the endpoint count differently: {before:?}, {after:?}"
    );
    drop(node);
    Ok(Measured {
        bytes: drained.bytes - synced.bytes,
        seconds,
        cpu: after.cpu - before.cpu,
        endpoint_cpu: after.endpoint_cpu - before.endpoint_cpu,
        puts,
        others: after.others - before.others,
        segments: drained.segments - synced.segments,
        stored_bytes: after.sent_bytes - before.sent_bytes,
        peak_bytes,
        before_bytes,
    })
}

/// A node with everything written, most of it not synced, and at rest. Writers that wait while the log
/// grows start a sync whatever its delay is; so they are paced, and more slowly if that was not enough.
fn filled(case: &Case, site: &Site<'_>, bytes: u64, exports: &[String]) -> Result<Node> {
    for (attempt, pace) in FILL_PACES.into_iter().enumerate() {
        site.endpoint.set_delay(0)?;
        // What an earlier attempt has stored is another store's.
        let prefix = format!("{}/{attempt}", site.prefix);
        let site = Site {
            prefix: &prefix,
            ..*site
        };
        let mut node = Node::start(case, &site, bytes, SYNC_DELAY_MS)?;
        node.fill(case, bytes, pace)?;
        settled(&node.server, site.endpoint)?;
        let written = bytes * case.exports;
        if packed_by_all(&node.server, exports)?.bytes <= written - written / LEFT_PARTS {
            return Ok(node);
        }
    }
    anyhow::bail!("writers waited for the log, however slowly they wrote: is the disk busy?")
}

/// What syncs of an export have packed since the server's start.
#[derive(Clone, Copy, Debug, Default)]
struct Packed {
    bytes: u64,
    segments: u64,
}

fn packed(server: &Server, name: &str) -> Result<Packed> {
    let io = &server.export(name)?["io"];
    Ok(Packed {
        bytes: number(&io["packed_bytes"])?,
        segments: number(&io["uploaded_segments"])?,
    })
}

fn packed_by_all(server: &Server, exports: &[String]) -> Result<Packed> {
    exports.iter().try_fold(Packed::default(), |sum, name| {
        let one = packed(server, name)?;
        Ok(Packed {
            bytes: sum.bytes + one.bytes,
            segments: sum.segments + one.segments,
        })
    })
}

impl Node {
    fn start(case: &Case, site: &Site<'_>, bytes: u64, sync_delay_ms: u64) -> Result<Self> {
        let cache = tempfile::Builder::new()
            .prefix("node")
            .tempdir_in(site.folder)?;
        let mib = (bytes >> 20).max(1);
        let gib = |mib: u64| u32::try_from(mib).map(|mib| f64::from(mib) / MIB_PER_GIB);
        let mut settings = Settings::new(
            site.endpoint.store(site.prefix),
            &cache.path().join("cache"),
        );
        settings.auto_create_size_gb = Some(gib(mib * case.pattern.spread())?);
        // So large that neither one export nor all of them press for a sync.
        // The log grows as it is needed, by larger pieces where it may become larger.
        settings.disk_size_gb = gib(mib * case.exports * 8)?.max(CACHE_GIB_MIN);
        settings.sync_delay_ms = sync_delay_ms;
        settings.compression = Some(case.codec.name().to_owned());
        settings.password = match case.encryption {
            Encryption::Off => None,
            Encryption::On => Some(PASSWORD.to_owned()),
        };
        trust(&mut settings, site.endpoint);
        let server = Server::start(&cache.path().join("node"), &settings)?;
        let clients = names(case.exports)
            .iter()
            .map(|name| server.connect(name))
            .collect::<Result<_>>()?;
        Ok(Self {
            server,
            clients,
            cache,
        })
    }

    fn fill(&mut self, case: &Case, bytes: u64, pace: u64) -> Result<()> {
        for (client, seed) in self.clients.iter_mut().zip(1..) {
            let done = fill(client, case, bytes, &mut Pace::new(pace), seed);
            done.with_context(|| self.server.log_tail())?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

fn trust(settings: &mut Settings, endpoint: &Endpoint) {
    if let Some(path) = endpoint.certificate() {
        let pair = ("SSL_CERT_FILE".to_owned(), path.display().to_string());
        settings.environment.push(pair);
    }
}

fn names(exports: u64) -> Vec<String> {
    (0..exports).map(|n| format!("export-{n}")).collect()
}

/// Writes, and flushes at the end, so that the drain does not pay for the disk.
fn fill(client: &mut Client, case: &Case, bytes: u64, pace: &mut Pace, seed: u64) -> Result<()> {
    let depth = match case.pattern {
        Pattern::Sequential => 8,
        Pattern::Random => 64,
    };
    let mut pages = Pages::new(case.content, seed);
    let mut block = vec![0; block_bytes(case.pattern)];
    for place in places(case.pattern, bytes, seed) {
        while client.in_flight() >= depth {
            take_answer(client)?;
        }
        pages.fill(&mut block);
        pace.wait(block.len() as u64);
        client.submit_write(place, &block)?;
    }
    while client.in_flight() > 0 {
        take_answer(client)?;
    }
    client.flush()
}

/// Lets no more bytes pass than so many a second.
struct Pace {
    bytes_per_second: u64,
    began: f64,
    passed: u64,
    checked: u64,
}

impl Pace {
    fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            began: clock::now(),
            passed: 0,
            checked: 0,
        }
    }

    fn wait(&mut self, bytes: u64) {
        self.passed += bytes;
        if self.passed < self.checked + FILL_BURST_BYTES {
            return;
        }
        self.checked = self.passed;
        let due = self.began + self.passed as f64 / self.bytes_per_second as f64;
        clock::sleep(Duration::from_secs_f64((due - clock::now()).max(0.0)));
    }
}

fn take_answer(client: &mut Client) -> Result<()> {
    let answer = client.next_answer()?.context("the server is gone")?;
    ensure!(answer.error == 0, "NBD error {}", answer.error);
    Ok(())
}

/// All at once; how long each took.
fn drain(server: &Server, exports: &[String]) -> Result<Vec<f64>> {
    std::thread::scope(|scope| {
        let drains: Vec<_> = exports
            .iter()
            .map(|name| {
                scope.spawn(move || {
                    let (drained, seconds) = clock::timed(|| server.drain(name));
                    drained.map(|_| seconds)
                })
            })
            .collect();
        let mut drains = drains.into_iter();
        drains.try_fold(Vec::new(), |mut all, drain| {
            all.push(drain.join().expect("it does not panic")?);
            Ok(all)
        })
    })
}

fn counted(server: &Server, endpoint: &Endpoint) -> Result<Counted> {
    let metrics = server.ask("GET", "/api/metrics", None)?.json()?;
    let store = &metrics["store"];
    let requests = store["requests"].as_array().context("requests by kind")?;
    let (mut puts, mut others) = (0, 0);
    for row in requests {
        let count = number(&row["count"])?;
        match row["kind"].as_str() {
            Some("create" | "replace") => puts += count,
            _ => others += count,
        }
    }
    let own = endpoint.counts()?;
    let endpoint_puts = own.and_then(|counts| counts.get("put").copied());
    Ok(Counted {
        cpu: process::cpu_parts(server.pid())?,
        endpoint_cpu: endpoint.cpu_seconds()?,
        puts,
        others,
        endpoint_puts: endpoint_puts.unwrap_or(puts),
        sent_bytes: number(&store["sent_bytes"])?,
    })
}

fn number(value: &Value) -> Result<u64> {
    value
        .as_u64()
        .with_context(|| format!("no number: {value}"))
}

/// Waits for what goes on behind a publish: the map is folded and merged.
fn settled(server: &Server, endpoint: &Endpoint) -> Result<Counted> {
    let mut last = counted(server, endpoint)?;
    let mut quiet = 0;
    for _ in 0..QUIET_LOOKS_MAX {
        clock::sleep(LOOK_EVERY);
        let now = counted(server, endpoint)?;
        // A look itself costs less than the kernel counts, mostly.
        let is_quiet = now.cpu.compute - last.cpu.compute < 0.005
            && (now.puts, now.others) == (last.puts, last.others);
        quiet = if is_quiet { quiet + 1 } else { 0 };
        if quiet == QUIET_LOOKS {
            return Ok(last);
        }
        last = now;
    }
    anyhow::bail!("the server does not come to rest\n{}", server.log_tail())
}

/// Everything is published, and nothing but what was written was packed.
fn check(server: &Server, exports: &[String], bytes: u64) -> Result<()> {
    for name in exports {
        let export = server.export(name)?;
        let io = &export["io"];
        ensure!(
            export["dirty_bytes"] == 0 && export["published_seq"] == export["last_seq"],
            "drained, and not all is published: {export}"
        );
        ensure!(
            io["packed_bytes"] == bytes && io["sync_errors"] == 0,
            "{bytes} bytes were written: {export}"
        );
    }
    Ok(())
}

/// What a clean, open, connected server does when nobody asks it anything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Idle {
    pub(crate) seconds: u64,
    pub(crate) requests: u64,
    pub(crate) cpu_seconds: f64,
}

/// Exports that were written, drained and stay connected, with the product's own sync delay.
pub(crate) fn idle(case: &Case, site: &Site<'_>, seconds: u64) -> Result<Idle> {
    let endpoint = site.endpoint;
    endpoint.set_delay(0)?;
    let bytes = 16 << 20;
    let mut node = Node::start(case, site, bytes, IDLE_SYNC_DELAY_MS)?;
    node.fill(case, bytes, FILL_PACES[0])?;
    let exports = names(case.exports);
    drain(&node.server, &exports)?;
    settled(&node.server, endpoint)?;
    let requests = || -> Result<u64> {
        let counts = endpoint.counts()?.context("an endpoint that counts")?;
        let kinds = counts.iter().filter(|(kind, _)| !kind.ends_with("_bytes"));
        Ok(kinds.map(|(_, count)| count).sum())
    };
    let pid = node.server.pid();
    let before = (requests()?, process::cpu_seconds(pid)?);
    clock::sleep(Duration::from_secs(seconds));
    let after = (requests()?, process::cpu_seconds(pid)?);
    for name in &exports {
        let clients = number(&node.server.export(name)?["clients"])?;
        ensure!(clients == 1, "{clients} clients of {name}");
    }
    Ok(Idle {
        seconds,
        requests: after.0 - before.0,
        cpu_seconds: after.1 - before.1,
    })
}

//! Documents for the tests of those who show them.

use super::*;
use crate::meter::BOUNDS_NS;
use crate::meter::store::StoreLatency;

/// `count` answers within 200 µs.
pub(crate) fn latency(count: u64) -> Latency {
    let mut counts = vec![0; BOUNDS_NS.len() + 1];
    counts[3] = count;
    Latency {
        counts,
        sum_ns: count * 150_000,
    }
}

pub(crate) fn requests(kind: &str, outcome: &str, count: u64) -> StoreRequests {
    StoreRequests {
        kind: kind.into(),
        outcome: outcome.into(),
        count,
    }
}

fn store_latency(kind: &str, outcome: &str, count: u64) -> StoreLatency {
    StoreLatency {
        kind: kind.into(),
        outcome: outcome.into(),
        latency: latency(count),
    }
}

/// An export of which everything there is was counted.
pub(crate) fn export(name: &str) -> ExportMeters {
    ExportMeters {
        export: ExportDocument {
            name: name.into(),
            volume: "1f".repeat(16),
            size_bytes: 1 << 30,
            role: "read-write".into(),
            epoch: 3,
            owner: "node-a (cache 00)".into(),
            parent: None,
            group: None,
            published: true,
            clients: 2,
            dirty_bytes: 4096,
            dirty_age_ms: 1500,
            published_seq: 7,
            published_at: "2026-11-20T00:00:00.000Z".into(),
            last_seq: 8,
            stored_bytes: 0,
            dead_bytes: 0,
            damage: None,
            warm: None,
            io: IoDocument {
                reads: 4,
                read_bytes: 16_384,
                writes: 5,
                written_bytes: 20_480,
                ..IoDocument::default()
            },
        },
        published_unix_ms: 1_795_132_800_000,
        sync_lag_ms: 500,
        throttled_writes: 1,
        throttled_ms: 20,
        evicted_pages: 6,
        decayed_reads: 0,
        salvage_bytes: 0,
        store: vec![requests("create", "ok", 2)],
        latency: LatenciesDocument {
            read: latency(4),
            write: latency(5),
            flush: latency(1),
            zero: latency(1),
            sync: latency(2),
        },
    }
}

pub(crate) fn meters(at_ms: u64, exports: Vec<ExportMeters>) -> MetersDocument {
    MetersDocument {
        at_ms,
        server: ServerDocument {
            version: "0.1.0".into(),
            cache_id: "00".into(),
            cache_bytes: 1 << 34,
            cache_used_bytes: 1 << 30,
            dirty_bytes: exports.iter().map(|e| e.export.dirty_bytes).sum(),
            exports: u64::try_from(exports.len()).expect("few"),
            clients: exports.iter().map(|e| u64::from(e.export.clients)).sum(),
            stopped: None,
        },
        cache: CacheDocument::default(),
        store: StoreUse {
            requests: vec![requests("create", "ok", 2), requests("get", "retry", 1)],
            latency: vec![
                store_latency("create", "answered", 2),
                store_latency("get", "failed", 1),
            ],
            in_flight: 0,
            sent_bytes: 9000,
            received_bytes: 100,
        },
        exports,
        exports_left_out: 0,
    }
}

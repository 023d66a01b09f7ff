//! The families of metrics: names, help, and where the value stands. Pure.

use std::time::Duration;

use super::{Process, Row, float};
use crate::control::{ExportMeters, MetersDocument};

pub(super) const BUILD_INFO: (&str, &str) = (
    "glidefs_build_info",
    "Always 1; the version is in the label",
);
pub(super) const PROCESS_CPU: (&str, &str) = ("process_cpu_seconds", "Processor time spent");
pub(super) const STORE_REQUESTS: (&str, &str) = (
    "glidefs_store_requests",
    "Requests to the object store, each attempt by itself, by kind and outcome",
);
pub(super) const STORE_LATENCY: (&str, &str) = (
    "glidefs_store_request_duration_seconds",
    "Time from a request to the object store to its answer, or until it failed, by kind and by what came of it: answered, refused or failed",
);
pub(super) const EXPORT_STORE_REQUESTS: (&str, &str) = (
    "glidefs_export_store_requests",
    "Requests to the object store for objects of the export's volume",
);
pub(super) const EXPORT_LATENCY: (&str, &str) = (
    "glidefs_export_request_duration_seconds",
    "Time from a client's request to its answer, without the network; also of those that failed after a wait, not of those that were refused at once",
);
pub(super) const EXPORT_SYNC: (&str, &str) = (
    "glidefs_export_sync_duration_seconds",
    "Time from the beginning of a sync to its publish, repetitions included",
);

pub(super) const EXPORT_COUNTERS: &[Row<ExportMeters, f64>] = &[
    ("glidefs_export_reads", "Read requests answered", |e| {
        float(e.export.io.reads)
    }),
    ("glidefs_export_read_bytes", "Bytes read by clients", |e| {
        float(e.export.io.read_bytes)
    }),
    ("glidefs_export_writes", "Write requests answered", |e| {
        float(e.export.io.writes)
    }),
    (
        "glidefs_export_written_bytes",
        "Bytes written by clients",
        |e| float(e.export.io.written_bytes),
    ),
    ("glidefs_export_flushes", "Flush requests answered", |e| {
        float(e.export.io.flushes)
    }),
    (
        "glidefs_export_zeroes",
        "Trim and write-zeroes requests answered",
        |e| float(e.export.io.zeroes),
    ),
    (
        "glidefs_export_cache_hit_pages",
        "Pages of 4 KiB read that the cache held",
        |e| float(e.export.io.hit_pages),
    ),
    (
        "glidefs_export_cache_miss_pages",
        "Pages of 4 KiB read that came from the store",
        |e| float(e.export.io.miss_pages),
    ),
    (
        "glidefs_export_errors",
        "Requests answered with an error",
        |e| float(e.export.io.errors),
    ),
    ("glidefs_export_syncs", "Cuts published to the store", |e| {
        float(e.export.io.syncs)
    }),
    (
        "glidefs_export_sync_errors",
        "Failed attempts to sync",
        |e| float(e.export.io.sync_errors),
    ),
    (
        "glidefs_export_uploaded_segments",
        "Segments uploaded to the store",
        |e| float(e.export.io.uploaded_segments),
    ),
    (
        "glidefs_export_packed_bytes",
        "Bytes that went into uploaded segments, before compression",
        |e| float(e.export.io.packed_bytes),
    ),
    (
        "glidefs_export_uploaded_bytes",
        "Bytes of uploaded segments, after compression",
        |e| float(e.export.io.uploaded_bytes),
    ),
    (
        "glidefs_export_flattened_bytes",
        "Bytes of segments that were copied from volumes that this one was forked from",
        |e| float(e.export.io.flattened_bytes),
    ),
    (
        "glidefs_export_repacked_bytes",
        "Bytes of segments written anew because most of what lay beside them was dead",
        |e| float(e.export.io.repacked_bytes),
    ),
    (
        "glidefs_export_collected_objects",
        "Objects deleted in the store because nothing needs them any more",
        |e| float(e.export.io.collected_objects),
    ),
    (
        "glidefs_export_collected_bytes",
        "Bytes of deleted objects",
        |e| float(e.export.io.collected_bytes),
    ),
    (
        "glidefs_export_warmed_bytes",
        "Bytes fetched into the cache before anybody read them, because the export was prepared",
        |e| float(e.export.io.warmed_bytes),
    ),
    (
        "glidefs_export_throttled_writes",
        "Writes delayed because of the dirty bound or a full cache",
        |e| float(e.throttled_writes),
    ),
    (
        "glidefs_export_throttled_seconds",
        "Time that writes were delayed so, in all",
        |e| seconds(e.throttled_ms),
    ),
    (
        "glidefs_export_evicted_pages",
        "Pages of 4 KiB that the cache let go to make room",
        |e| float(e.evicted_pages),
    ),
    (
        "glidefs_export_cache_decayed_reads",
        "Reads that found damaged pages on the SSD and took them from the store",
        |e| float(e.decayed_reads),
    ),
];

pub(super) const EXPORT_GAUGES: &[Row<ExportMeters, f64>] = &[
    (
        "glidefs_export_size_bytes",
        "Size of the block device",
        |e| float(e.export.size_bytes),
    ),
    ("glidefs_export_clients", "Connections", |e| {
        f64::from(e.export.clients)
    }),
    (
        "glidefs_export_dirty_bytes",
        "Bytes in the log that the store does not hold yet",
        |e| float(e.export.dirty_bytes),
    ),
    (
        "glidefs_export_dirty_age_seconds",
        "Age of the oldest write that the store does not hold yet",
        |e| seconds(e.export.dirty_age_ms),
    ),
    (
        "glidefs_export_salvage_bytes",
        "Bytes that this node's log holds and that nobody will publish, because another node has taken the volume",
        |e| float(e.salvage_bytes),
    ),
    (
        "glidefs_export_stored_bytes",
        "Bytes of the export's own objects in the store, as far as this node knows",
        |e| float(e.export.stored_bytes),
    ),
    (
        "glidefs_export_dead_bytes",
        "The part of them that nothing names and that is not deleted yet, also because a snapshot or a fork needs it",
        |e| float(e.export.dead_bytes),
    ),
    (
        "glidefs_export_sync_lag_seconds",
        "By how much that write has waited longer than sync_delay_ms",
        |e| seconds(e.sync_lag_ms),
    ),
    ("glidefs_export_epoch", "The current right to write", |e| {
        float(e.export.epoch)
    }),
    (
        "glidefs_export_last_seq",
        "Position of the last write",
        |e| float(e.export.last_seq),
    ),
    (
        "glidefs_export_published_seq",
        "Position of the cut that the store holds",
        |e| float(e.export.published_seq),
    ),
    (
        "glidefs_export_published_timestamp_seconds",
        "When that cut was published, in Unix time; 0 if not known",
        |e| seconds(e.published_unix_ms),
    ),
    (
        "glidefs_export_read_write",
        "1 if this server may write the export",
        |e| is_role(e, "read-write"),
    ),
    (
        "glidefs_export_read_only",
        "1 if the export is open read-only, because another node owns it",
        |e| is_role(e, "read-only"),
    ),
    (
        "glidefs_export_damaged",
        "1 while unpublished writes are missing and the loss is not accepted",
        |e| f64::from(u8::from(e.export.damage.is_some())),
    ),
    (
        "glidefs_export_fenced",
        "1 if another owner has taken the export",
        |e| is_role(e, "fenced"),
    ),
    (
        "glidefs_export_vanished",
        "1 if the volume's root is gone from the store",
        |e| is_role(e, "vanished"),
    ),
];

pub(super) const SERVER_GAUGES: &[Row<MetersDocument, f64>] = &[
    (
        "glidefs_dirty_bytes",
        "Bytes in the log that the store does not hold yet",
        |m| float(m.server.dirty_bytes),
    ),
    (
        "glidefs_cache_size_bytes",
        "The cache never grows beyond this",
        |m| float(m.server.cache_bytes),
    ),
    ("glidefs_cache_used_bytes", "Bytes in the cache", |m| {
        float(m.server.cache_used_bytes)
    }),
    (
        "glidefs_cache_index_bytes",
        "Memory of the cache's index",
        |m| float(m.cache.index_bytes),
    ),
    (
        "glidefs_cache_kept_frames",
        "Frames from the store that the cache keeps",
        |m| float(m.cache.kept_frames),
    ),
    (
        "glidefs_cache_disk_full",
        "1 once the disk was full, so that the cache stays smaller than it may be",
        |m| f64::from(u8::from(m.cache.disk_full)),
    ),
    (
        "glidefs_cache_writers_waiting",
        "Writes that wait for room now",
        |m| float(m.cache.writers_waiting),
    ),
    ("glidefs_exports", "Exports open on this server", |m| {
        float(m.server.exports)
    }),
    (
        "glidefs_exports_left_out",
        "Exports that have no rows here because there are too many",
        |m| float(m.exports_left_out),
    ),
    ("glidefs_clients", "Connections of all exports", |m| {
        float(m.server.clients)
    }),
    (
        "glidefs_log_stopped",
        "1 once the log has stopped after a failed write or fsync",
        |m| f64::from(u8::from(m.server.stopped.is_some())),
    ),
    (
        "glidefs_store_requests_in_flight",
        "Requests to the object store without an answer yet",
        |m| float(m.store.in_flight),
    ),
];

pub(super) const SERVER_COUNTERS: &[Row<MetersDocument, f64>] = &[
    (
        "glidefs_cache_evicted_chunks",
        "Chunks of the log that were evicted to make room",
        |m| float(m.cache.evicted_chunks),
    ),
    (
        "glidefs_cache_persists",
        "Calls of fdatasync, each for all flushes that waited for one",
        |m| float(m.cache.persists),
    ),
    (
        "glidefs_cache_throttled_writes",
        "Writes of all exports delayed because of a dirty bound or a full cache",
        |m| float(m.cache.throttled_writes),
    ),
    (
        "glidefs_store_sent_bytes",
        "Bodies sent to the object store in requests that succeeded",
        |m| float(m.store.sent_bytes),
    ),
    (
        "glidefs_store_received_bytes",
        "Bodies received from the object store",
        |m| float(m.store.received_bytes),
    ),
];

pub(super) const PROCESS_GAUGES: &[Row<Process, f64>] = &[
    (
        "process_resident_memory_bytes",
        "Resident memory size",
        |p| float(p.resident_bytes),
    ),
    ("process_open_fds", "Open file descriptors", |p| {
        float(p.open_fds)
    }),
    ("process_threads", "Threads of the process", |p| {
        float(p.threads)
    }),
];

fn seconds(ms: u64) -> f64 {
    Duration::from_millis(ms).as_secs_f64()
}

fn is_role(meters: &ExportMeters, role: &str) -> f64 {
    f64::from(u8::from(meters.export.role == role))
}

//! What the operator's side (HTTP API, signals, status) asks of the shard, as messages.
//!
//! The API runs on the edge thread, exports live on the shard; nothing but these values crosses.

#[cfg(test)]
pub(crate) mod testing;

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use world::sync::{Receiver, Sender, channel, oneshot};

use crate::meter::Latency;
use crate::meter::store::{StoreRequests, StoreUse};

/// Requests that wait for the shard. A full queue makes the API wait.
pub const CONTROL_QUEUE_MAX: usize = 64;

/// What may be asked. Each carries the way back for its answer.
#[derive(Debug)]
pub enum Request {
    List(Reply<Vec<ExportDocument>>),
    /// A page of all volumes, those that are only in the store too: of the names behind this one.
    ListStored(String, Reply<Vec<ExportDocument>>),
    Get(String, Reply<ExportDocument>),
    /// Create, or grow to this size.
    Put(String, PutDocument, Reply<ExportDocument>),
    /// Drain, detach and forget; refused while clients are connected, and where something would be
    /// lost that nobody has accepted to lose.
    Delete(String, DeleteQuery, Reply<ExportDocument>),
    /// The same, and then the volume itself.
    Purge(String, DeleteQuery, Reply<OperationDocument>),
    /// Go on without the writes that are missing.
    AcceptLoss(String, AcceptLossDocument, Reply<ExportDocument>),
    /// Returns once everything answered before the call is in the store.
    Drain(String, Reply<ExportDocument>),
    /// Opens a volume for a promotion to come, or shows its newest cut to who waits for that.
    Prepare(String, PrepareDocument, Reply<ExportDocument>),
    /// Read-only to read-write.
    Promote(String, PromoteDocument, Reply<ExportDocument>),
    /// All snapshots of a volume, oldest first.
    Snapshots(String, Reply<Vec<SnapshotDocument>>),
    Snapshot(String, String, Reply<SnapshotDocument>),
    /// Returns once the store lists it.
    TakeSnapshot(String, TakeSnapshotDocument, Reply<SnapshotDocument>),
    /// Returns once the store does not list it any more.
    DeleteSnapshot(String, String, Reply<SnapshotDocument>),
    /// Returns once the root in the store lists a new data key of the volume.
    RenewData(String, RenewDataDocument, Reply<DataKeyDocument>),
    /// Deletes the snapshots that are too many or too old, and says which.
    PruneSnapshots(String, PruneQuery, Reply<Vec<SnapshotDocument>>),
    /// Makes the volume what it was; refused while clients are connected.
    Restore(String, RestoreDocument, Reply<ExportDocument>),
    /// A page of the forks that were made of a volume: of the ids behind this one.
    Forks(String, String, Reply<Vec<ForkedDocument>>),
    /// A new volume that begins as this one, or as a snapshot of it.
    Fork(String, MakeForkDocument, Reply<ForkDocument>),
    /// Exports whose order among each other is kept.
    Group(GroupRequest),
    /// What the log holds that nobody will publish.
    Salvage(Reply<Vec<SalvageDocument>>),
    /// Which bytes there are, from an offset on.
    SalvageRanges(String, u64, Reply<SalvageRanges>),
    /// Some of them: offset and length.
    SalvageData(String, u64, u64, Reply<Bytes>),
    /// Give space back, or show how much that would be. Returns at once.
    Gc(GcDocument, Reply<OperationDocument>),
    Operations(Reply<Vec<OperationDocument>>),
    Operation(String, Reply<OperationDocument>),
    /// Drain everything and detach nothing: the first half of what SIGTERM does.
    DrainAll(Reply<Vec<ExportDocument>>),
    /// Numbers of the whole server.
    Server(Reply<ServerDocument>),
    /// Everything that is counted, at one moment.
    Meters(Reply<MetersDocument>),
}

/// What may be asked about groups. Each is named by its id, or by its name.
#[derive(Debug)]
pub enum GroupRequest {
    /// A page of all groups of the prefix: of the ids behind this one.
    List(String, Reply<Vec<GroupDocument>>),
    Get(String, Reply<GroupDocument>),
    /// Gives the members up, and makes a group of them. Returns at once.
    Form(FormGroupDocument, Reply<OperationDocument>),
    /// Gives the members up, and makes exports of them that are in no group. Returns at once.
    End(String, EndGroupQuery, Reply<OperationDocument>),
    /// A new group that begins as this one, or as a snapshot of it.
    Fork(String, ForkGroupDocument, Reply<GroupDocument>),
    /// Those that all members have, oldest first.
    Snapshots(String, Reply<Vec<GroupSnapshotDocument>>),
    /// Returns once the store lists it.
    TakeSnapshot(String, TakeSnapshotDocument, Reply<GroupSnapshotDocument>),
    /// Gives the members up, and makes them what they were. Returns at once.
    Restore(String, RestoreDocument, Reply<OperationDocument>),
}

pub type Reply<T> = oneshot::Sender<Result<T, ControlError>>;

/// The sending end, for the edge.
#[derive(Clone, Debug)]
pub struct Control {
    sender: Sender<Request>,
}

impl Control {
    /// The pair of ends: this one for the edge, the other for the shard.
    pub fn new() -> (Self, Receiver<Request>) {
        let (sender, receiver) = channel(CONTROL_QUEUE_MAX);
        (Self { sender }, receiver)
    }

    /// Asks and waits: `control.ask(|reply| Request::Get(name, reply)).await`.
    pub async fn ask<T>(
        &self,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, ControlError> {
        let (reply, answer) = oneshot::channel();
        self.sender
            .send(request(reply))
            .await
            .map_err(|_gone| ControlError::stopping())?;
        answer.await.map_err(|_gone| ControlError::stopping())?
    }
}

/// One export, for people and programs. Sizes in bytes; times in RFC 3339.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct ExportDocument {
    pub name: String,
    /// The volume's id, by which it is told from an earlier or a later one of the name; empty where it is not known.
    #[serde(default)]
    pub volume: String,
    pub size_bytes: u64,
    /// `read-write`, `read-only`, `prepared` (announced writable; writes wait for a promotion), `fenced`, `vanished`, `closed` (known to the store or the log, not
    /// open), `unreadable` (in the store, with a root that is not to be had).
    pub role: String,
    pub epoch: u64,
    /// The owner in the root, for people: host name and cache id.
    pub owner: String,
    /// The export that it was forked from.
    #[serde(default)]
    pub parent: Option<String>,
    /// The group that it is a member of, as far as this node knows.
    #[serde(default)]
    pub group: Option<GroupNameDocument>,
    /// It is in the store. False: a fork that only this node has so far.
    #[serde(default = "is_published")]
    pub published: bool,
    pub clients: u32,
    /// Unpublished bytes in the log of this node, and the age of the oldest: since it was written, or
    /// since a start found it. What another owner holds is not known here.
    pub dirty_bytes: u64,
    pub dirty_age_ms: u64,
    /// The cut that the store holds: its seq and when it was published.
    pub published_seq: u64,
    pub published_at: String,
    pub last_seq: u64,
    /// Bytes of the export's own objects in the store, and of those that are dead and not deleted yet, as far as
    /// this node knows; 0 where it has not opened the export.
    #[serde(default)]
    pub stored_bytes: u64,
    #[serde(default)]
    pub dead_bytes: u64,
    /// Set while unpublished writes are missing from the cache and nobody has accepted the loss.
    #[serde(default)]
    pub damage: Option<DamageDocument>,
    /// Of one that is prepared: how warm it is.
    #[serde(default)]
    pub warm: Option<WarmDocument>,
    pub io: IoDocument,
}

/// A group as its members name it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct GroupNameDocument {
    pub id: String,
    pub name: String,
}

/// How far an export's way into the cache is, before it is promoted. Bytes are those that the cache spends on it: with
/// each frame comes a page that says what it is.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct WarmDocument {
    pub state: WarmState,
    /// What was asked for, or what the cache has room for.
    pub bytes_max: u64,
    /// What of it is in the cache: fetched for this, or there before.
    pub bytes: u64,
    /// Why it is over before all is there.
    pub note: Option<String>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum WarmState {
    Running,
    /// All that was asked for is there, or all that there is.
    Done,
    /// Not all; preparing again goes on.
    Stopped,
}

fn is_published() -> bool {
    true
}

/// Unpublished writes that should be in the cache and are not.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct DamageDocument {
    pub what: String,
    /// The last write of the unbroken run that is left.
    pub kept_seq: u64,
}

/// Counts since the server started.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct IoDocument {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
    pub flushes: u64,
    pub zeroes: u64,
    /// Pages read that the cache held, and that came from the store.
    pub hit_pages: u64,
    pub miss_pages: u64,
    pub errors: u64,
    /// Publishes of a cut, segments and bytes uploaded for them.
    pub syncs: u64,
    pub sync_errors: u64,
    pub uploaded_segments: u64,
    /// Bytes of those objects: compressed, sealed, with their index.
    pub uploaded_bytes: u64,
    /// Bytes of the frames in them before compression.
    #[serde(default)]
    pub packed_bytes: u64,
    /// Bytes of segments that were moved because most of what lay beside them was dead, and objects that were
    /// deleted in the store.
    #[serde(default)]
    pub repacked_bytes: u64,
    /// Bytes copied from the volumes that it was forked from.
    #[serde(default)]
    pub flattened_bytes: u64,
    #[serde(default)]
    pub collected_objects: u64,
    #[serde(default)]
    pub collected_bytes: u64,
    /// Bytes fetched into the cache before anybody read them, because the export was prepared.
    #[serde(default)]
    pub warmed_bytes: u64,
}

/// Everything that is counted, at one moment: what `/metrics` and `glidefs top` show.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct MetersDocument {
    /// Of a clock that never jumps: only the distance of two samples means something.
    pub at_ms: u64,
    pub server: ServerDocument,
    pub cache: CacheDocument,
    pub store: StoreUse,
    pub exports: Vec<ExportMeters>,
    /// Exports beyond the bound of one document, which are not in it.
    pub exports_left_out: u64,
}

/// What the cache did since the server started.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct CacheDocument {
    /// Chunks of the log that were evicted.
    pub evicted_chunks: u64,
    /// Calls of fdatasync, each for all who waited for one.
    pub persists: u64,
    pub throttled_writes: u64,
    /// Writes that wait for room now.
    pub writers_waiting: u64,
    /// Frames from the store that are kept, and memory of the index.
    pub kept_frames: u64,
    pub index_bytes: u64,
    /// The disk is full, so the cache stays smaller than it may be.
    pub disk_full: bool,
}

/// One export with all that is counted of it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct ExportMeters {
    #[serde(flatten)]
    pub export: ExportDocument,
    /// When the store's cut was published; 0 where that is not known.
    pub published_unix_ms: u64,
    /// By how much the oldest unpublished write has waited longer than `sync_delay_ms`.
    pub sync_lag_ms: u64,
    /// Writes that were delayed because too much was dirty or the log was full, and how long in all.
    pub throttled_writes: u64,
    pub throttled_ms: u64,
    /// Pages of 4 KiB that the cache let go to make room.
    pub evicted_pages: u64,
    /// Reads that found damaged pages in the cache which the store holds as well.
    pub decayed_reads: u64,
    /// What the log holds of it that nobody will publish: `glidefs salvage list`.
    #[serde(default)]
    pub salvage_bytes: u64,
    pub store: Vec<StoreRequests>,
    pub latency: LatenciesDocument,
}

/// From a request to its answer, by what was asked; of those that succeeded.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct LatenciesDocument {
    pub read: Latency,
    pub write: Latency,
    pub flush: Latency,
    pub zero: Latency,
    /// From the beginning of a sync to its publish.
    pub sync: Latency,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct ServerDocument {
    pub version: String,
    pub cache_id: String,
    pub cache_bytes: u64,
    pub cache_used_bytes: u64,
    pub dirty_bytes: u64,
    pub exports: u64,
    pub clients: u64,
    /// Set once the log has stopped after a failed write or fsync.
    pub stopped: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct PutDocument {
    /// GiB (2^30 bytes), may have a fraction.
    pub size_gb: f64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct AcceptLossDocument {
    /// As the export's `damage` tells: writes after it are lost.
    pub kept_seq: u64,
}

/// What may stand behind the `?` of a DELETE.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct DeleteQuery {
    /// Unpublished writes that can never be published may be dropped.
    pub accept_loss: bool,
    /// Delete the volume in the store too. The answer is an operation then.
    pub purge: bool,
    /// Of a purge: repeated, it is the same operation, as long as this server runs.
    pub request_id: Option<String>,
    /// Of a purge: only if the name is that of this volume (`volume` of the export's document). With it a purge may be
    /// repeated at any time, by any node, and never deletes what has the name by then.
    pub volume: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct PrepareDocument {
    /// Bring at most so many bytes into the cache, what was written last first; 0: none. Without it: 256 MiB.
    pub warm_bytes: Option<u64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct PromoteDocument {
    pub force: bool,
    pub expected_epoch: Option<u64>,
    /// The least that the root must hold to be taken (rule 24): whoever saw newer knows that it was
    /// rolled back, which a node that is new to the volume cannot.
    pub min_epoch: Option<u64>,
    pub min_seq: Option<u64>,
}

/// A snapshot of a volume.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct SnapshotDocument {
    pub export: String,
    pub name: String,
    pub id: String,
    pub size_bytes: u64,
    /// The write up to which it holds everything.
    pub cut_seq: u64,
    /// RFC 3339, by the clock of the node that took it.
    pub taken_at: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct TakeSnapshotDocument {
    /// Without it: the date.
    pub name: Option<String>,
    /// Asked again with the same one, the answer is the same snapshot and not a second one.
    pub request_id: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct RenewDataDocument {
    /// Asked again with the same one, the answer is the same data key and not a second one.
    pub request_id: Option<String>,
    /// Only if the name is that of this volume (`volume` of the export's document).
    pub volume: Option<String>,
}

/// The data key under which a volume is sealed from now on.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct DataKeyDocument {
    /// Of the export.
    pub name: String,
    pub id: String,
    /// The epoch in which it begins to seal.
    pub from_epoch: u64,
    /// Data keys that the volume has, and how many more it can be given.
    pub keys: usize,
    pub left: usize,
}

/// What may stand behind the `?` when several snapshots are deleted: at least one of the two.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct PruneQuery {
    /// So many of the newest stay.
    pub keep: Option<usize>,
    /// Younger ones stay, by the clock of the node that answers.
    pub older_than_s: Option<u64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct RestoreDocument {
    pub snapshot: String,
    /// The name under which the state until now is kept; without it: `before-` and the date.
    #[serde(default)]
    pub before: Option<String>,
    /// Asked again with the same one, it is not restored a second time.
    #[serde(default)]
    pub request_id: Option<String>,
}

/// Answered writes in this node's log that were never published, of a volume that is not its own any more.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct SalvageDocument {
    /// Of the volume.
    pub id: String,
    pub export: String,
    pub size_bytes: u64,
    /// Under which they were written.
    pub epoch: u64,
    pub first_seq: u64,
    pub last_seq: u64,
    pub dirty_bytes: u64,
    /// Some of them are not readable: what, for people.
    pub damage: Option<String>,
}

/// Where the salvaged bytes belong, in order.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct SalvageRanges {
    pub salvage: SalvageDocument,
    pub ranges: Vec<SalvageRange>,
    /// From where to ask for more.
    pub next: Option<u64>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct SalvageRange {
    pub at: u64,
    pub len: u64,
    pub kind: SalvageKind,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum SalvageKind {
    Data,
    /// Trimmed, or written as zeros.
    Zero,
}

/// What is to be given back.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct GcDocument {
    /// Without it: all that are open here for writing.
    pub export: Option<String>,
    /// Nothing is changed.
    pub dry_run: bool,
    /// What the export shares with the volumes that it was forked from is copied, so that it needs them no more.
    pub flatten: bool,
    /// Asked again with the same one, it is the same operation.
    pub request_id: Option<String>,
}

/// Something that takes longer than an answer should.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct OperationDocument {
    pub id: String,
    pub kind: String,
    pub state: OperationState,
    pub dry_run: bool,
    /// Exports that are done, or were given up, of so many; and the one that it is at. Of a purge: objects that are deleted, and 0.
    pub done: u64,
    pub total: u64,
    pub at: String,
    /// RFC 3339.
    pub started_at: String,
    pub ended_at: Option<String>,
    /// What failed last. Other exports may be done all the same.
    pub error: Option<String>,
    pub exports: Vec<CollectedDocument>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    Running,
    Done,
    Failed,
}

/// What was given back of one export, or would be.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct CollectedDocument {
    pub export: String,
    /// Written anew, because most of what lay beside it was dead.
    pub repacked_bytes: u64,
    /// Copied from the volumes that the export was forked from.
    pub flattened_bytes: u64,
    /// Nothing named them any more.
    pub deleted_objects: u64,
    pub deleted_bytes: u64,
    /// Only snapshots and forks need them.
    pub held_objects: u64,
    pub held_bytes: u64,
    /// Nothing ever named them: interrupted uploads.
    pub swept_objects: u64,
    pub swept_bytes: u64,
    /// In the store afterwards, and what of it is in use.
    pub stored_bytes: u64,
    pub live_bytes: u64,
    pub note: Option<String>,
}

/// A fork that was made.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct ForkDocument {
    pub name: String,
    pub parent: String,
    pub snapshot: Option<String>,
    pub size_bytes: u64,
    /// The parent's write up to which it holds everything.
    pub cut_seq: u64,
    /// It is in the store. False: only this node has it, which is on its way to publish it.
    pub published: bool,
}

/// A fork as the volume knows it that it was made of.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct ForkedDocument {
    pub name: String,
    pub id: String,
    /// False: it is a fork of a fork.
    pub direct: bool,
    /// Why nothing but its id is known: what the volume's folder has of it cannot be read.
    #[serde(default)]
    pub error: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct MakeForkDocument {
    /// Of the fork.
    pub name: String,
    /// Without it: the export as it is now.
    #[serde(default)]
    pub snapshot: Option<String>,
    /// Asked again with the same one, the answer is the same fork and not an error.
    #[serde(default)]
    pub request_id: Option<String>,
    #[serde(default)]
    pub wait: Option<ForkWait>,
}

/// For what the answer waits.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ForkWait {
    /// The fork is in the store. The same without a word.
    Published,
    /// One of an export that is open here for writing answers before that: it is here, and survives a crash as what was
    /// flushed does. Of any other, the same as `Published`.
    Local,
}

/// Exports that are cut, published, taken and given up together, so that the order of writes between them is kept.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct GroupDocument {
    pub id: String,
    pub name: String,
    /// `forming`, `formed`, `dissolved` (and not tidied up after), `given-up` (before it was formed).
    pub state: String,
    /// In the group's order.
    pub members: Vec<ExportDocument>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct FormGroupDocument {
    pub name: String,
    /// Exports.
    pub members: Vec<String>,
    /// Asked again with the same one, it is the same group.
    #[serde(default)]
    pub request_id: Option<String>,
}

/// What may stand behind the `?` of a DELETE of a group.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
pub struct EndGroupQuery {
    /// Repeated, it is the same operation, as long as this server runs.
    pub request_id: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ForkGroupDocument {
    /// Of the new group.
    pub name: String,
    /// Of each member the name of its fork.
    pub members: BTreeMap<String, String>,
    /// Without it: the group as it is now.
    #[serde(default)]
    pub snapshot: Option<String>,
    /// Asked again with the same one, the answer is the same group and not an error.
    #[serde(default)]
    pub request_id: Option<String>,
}

/// A snapshot of all members, of one moment.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct GroupSnapshotDocument {
    /// The group's name.
    pub group: String,
    pub name: String,
    pub id: String,
    pub taken_at: String,
    /// Of each member, in the group's order.
    pub members: Vec<SnapshotDocument>,
}

/// A refusal or a failure, with the HTTP status that fits it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    pub kind: ControlErrorKind,
    /// What is wrong and what to do.
    pub message: String,
    /// The numbers that a refusal rests on.
    pub export: Option<Box<ExportDocument>>,
    /// Of a member of a group: those of all members.
    #[serde(default)]
    pub members: Vec<ExportDocument>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ControlErrorKind {
    /// 404
    NotFound,
    /// 400
    Invalid,
    /// 409
    Conflict,
    /// 503
    Unavailable,
    /// 500
    Failed,
}

impl ControlError {
    pub fn new(kind: ControlErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            export: None,
            members: Vec::new(),
        }
    }

    fn stopping() -> Self {
        Self::new(ControlErrorKind::Unavailable, "the server is shutting down")
    }
}

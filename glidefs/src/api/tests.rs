//! The router against a control loop that answers from a list.

use std::collections::BTreeMap;

use axum::body::Body as HttpBody;
use axum::http::{Request as HttpRequest, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;
use world::sync::Receiver;

use super::*;
use crate::control::{
    CollectedDocument, ControlErrorKind, ExportMeters, ForkWait, GroupDocument, GroupNameDocument,
    GroupRequest, GroupSnapshotDocument, OperationState, PrepareDocument, RenewDataDocument,
    SalvageKind, SalvageRange, WarmDocument, WarmState, testing,
};

fn export(name: &str) -> ExportDocument {
    ExportDocument {
        name: name.into(),
        volume: "1f".repeat(16),
        size_bytes: 1 << 30,
        role: "read-write".into(),
        epoch: 2,
        owner: "node-a 0011".into(),
        parent: None,
        group: None,
        published: true,
        clients: 1,
        dirty_bytes: 8192,
        dirty_age_ms: 40,
        published_seq: 5,
        published_at: "2026-11-20T00:00:00.000Z".into(),
        last_seq: 7,
        stored_bytes: 0,
        dead_bytes: 0,
        damage: None,
        warm: None,
        io: IoDocument {
            reads: 3,
            ..Default::default()
        },
    }
}

/// It warms up if it is said how much.
fn prepared(name: &str, wanted: &PrepareDocument) -> ExportDocument {
    ExportDocument {
        role: "prepared".into(),
        warm: wanted.warm_bytes.map(|bytes_max| WarmDocument {
            state: WarmState::Running,
            bytes_max,
            bytes: 4096,
            note: None,
        }),
        ..export(name)
    }
}

fn server_of(exports: usize, stopped: Option<&str>) -> ServerDocument {
    ServerDocument {
        version: "0.1.0".into(),
        cache_id: "ab".into(),
        cache_bytes: 10,
        cache_used_bytes: 5,
        dirty_bytes: 1,
        exports: exports as u64,
        clients: 0,
        stopped: stopped.map(str::to_owned),
    }
}

/// Stands in for the shard.
async fn answer(mut requests: Receiver<Request>, stopped: Option<&'static str>) {
    let mut exports: BTreeMap<String, ExportDocument> = BTreeMap::new();
    exports.insert("vm-a".into(), export("vm-a"));
    let missing = || ControlError::new(ControlErrorKind::NotFound, "no export of this name");
    while let Some(request) = requests.recv().await {
        // A reply nobody waits for any more is no error.
        let _sent = match request {
            Request::List(reply) => reply.send(Ok(exports.values().cloned().collect())).is_ok(),
            Request::ListStored(after, reply) => {
                let mut all = exports.clone();
                all.insert("only-stored".into(), export("only-stored"));
                all.retain(|name, _| *name > after);
                reply.send(Ok(all.into_values().collect())).is_ok()
            }
            Request::Get(name, reply) | Request::Drain(name, reply) => reply
                .send(exports.get(&name).cloned().ok_or_else(missing))
                .is_ok(),
            Request::Put(name, wanted, reply) => {
                let mut made = export(&name);
                made.size_bytes = crate::config::bytes_from_gib(wanted.size_gb);
                exports.insert(name, made.clone());
                reply.send(Ok(made)).is_ok()
            }
            Request::Delete(name, how, reply) => {
                let text = match how.accept_loss {
                    true => "a client is connected all the same",
                    false => "a client is connected",
                };
                let mut refusal = ControlError::new(ControlErrorKind::Conflict, text);
                refusal.export = exports.get(&name).cloned().map(Box::new);
                reply.send(Err(refusal)).is_ok()
            }
            Request::Purge(name, how, reply) => {
                let mut purge = operation(Some(&GcDocument::default()));
                "purge".clone_into(&mut purge.kind);
                purge.id = how.request_id.unwrap_or_default();
                purge.at = name;
                reply.send(Ok(purge)).is_ok()
            }
            Request::AcceptLoss(name, wanted, reply) => {
                let mut left = export(&name);
                left.last_seq = wanted.kept_seq;
                reply.send(Ok(left)).is_ok()
            }
            Request::Prepare(name, wanted, reply) => {
                reply.send(Ok(prepared(&name, &wanted))).is_ok()
            }
            Request::Promote(name, wanted, reply) => {
                let mut promoted = export(&name);
                promoted.epoch = wanted.expected_epoch.unwrap_or(0) + u64::from(wanted.force);
                reply.send(Ok(promoted)).is_ok()
            }
            Request::DrainAll(reply) => reply.send(Ok(Vec::new())).is_ok(),
            Request::Server(reply) => reply.send(Ok(server_of(exports.len(), stopped))).is_ok(),
            Request::Meters(reply) => {
                let exports = exports.values().map(|export| ExportMeters {
                    export: export.clone(),
                    ..testing::export("")
                });
                let meters = testing::meters(7, exports.collect());
                reply.send(Ok(meters)).is_ok()
            }
            copies => answer_copies(copies),
        };
    }
}

/// An operation that runs when it is asked for, and is done when it is looked at.
fn operation(wanted: Option<&GcDocument>) -> OperationDocument {
    let running = wanted.is_some();
    let dry_run = wanted.is_some_and(|it| it.dry_run);
    let collected = CollectedDocument {
        export: "vm-a".to_owned(),
        repacked_bytes: 4096,
        flattened_bytes: 0,
        deleted_objects: 3,
        deleted_bytes: 3 << 20,
        held_objects: 1,
        held_bytes: 1 << 20,
        swept_objects: 0,
        swept_bytes: 0,
        stored_bytes: 5 << 20,
        live_bytes: 4 << 20,
        note: Some("a note".to_owned()),
    };
    OperationDocument {
        id: "09".repeat(16),
        kind: "gc".to_owned(),
        state: if running {
            OperationState::Running
        } else {
            OperationState::Done
        },
        dry_run,
        done: u64::from(!running),
        total: 1,
        at: String::new(),
        started_at: "2026-11-26T12:00:00.000Z".to_owned(),
        ended_at: None,
        error: None,
        exports: if running { Vec::new() } else { vec![collected] },
    }
}

fn salvaged() -> SalvageDocument {
    SalvageDocument {
        id: "05".repeat(16),
        export: "vm-a".to_owned(),
        size_bytes: 1 << 20,
        epoch: 3,
        first_seq: 8,
        last_seq: 9,
        dirty_bytes: 9216,
        damage: None,
    }
}

/// Forks of an export, by the ids behind one. The last cannot be read.
fn forked(of: &str, after: &str) -> Vec<ForkedDocument> {
    let fork = |name: &str, id: &str, direct: bool| ForkedDocument {
        name: name.to_owned(),
        id: id.repeat(16),
        direct,
        error: None,
    };
    let unreadable = ForkedDocument {
        error: Some("object `nbd/v/pins/09` is damaged".to_owned()),
        ..fork("", "09", false)
    };
    let mut forks = vec![
        fork("child", "07", true),
        fork("grandchild", "08", false),
        unreadable,
    ];
    forks.retain(|it| it.id.as_str() > after && of != "child");
    forks
}

/// Snapshots and forks: of every export there is one, `s1`.
fn answer_copies(request: Request) -> bool {
    let missing = || ControlError::new(ControlErrorKind::NotFound, "no snapshot of this name");
    match request {
        Request::Snapshots(name, reply) => reply.send(Ok(vec![snapshot(&name, "s1")])).is_ok(),
        Request::TakeSnapshot(name, wanted, reply) => {
            let dated = wanted
                .name
                .unwrap_or_else(|| "2026-11-26t07.49.04.123z".into());
            reply.send(Ok(snapshot(&name, &dated))).is_ok()
        }
        Request::Snapshot(name, which, reply) | Request::DeleteSnapshot(name, which, reply) => {
            let found = (which == "s1").then(|| snapshot(&name, &which));
            reply.send(found.ok_or_else(missing)).is_ok()
        }
        Request::PruneSnapshots(name, how, reply) => {
            let gone = how.keep.map(|_| snapshot(&name, "s1"));
            reply.send(Ok(gone.into_iter().collect())).is_ok()
        }
        Request::Restore(name, wanted, reply) => {
            let found = (wanted.snapshot == "s1").then(|| export(&name));
            reply.send(found.ok_or_else(missing)).is_ok()
        }
        Request::Forks(name, after, reply) => reply.send(Ok(forked(&name, &after))).is_ok(),
        Request::Fork(name, wanted, reply) => {
            let fork = ForkDocument {
                name: wanted.name,
                parent: name,
                snapshot: wanted.snapshot,
                size_bytes: 1 << 30,
                cut_seq: 7,
                published: wanted.wait != Some(ForkWait::Local),
            };
            reply.send(Ok(fork)).is_ok()
        }
        Request::Salvage(reply) => reply.send(Ok(vec![salvaged()])).is_ok(),
        Request::SalvageRanges(id, from, reply) => {
            // Two pages.
            let range = |at, len, kind| SalvageRange { at, len, kind };
            let (ranges, next) = match from {
                0 => (vec![range(512, 1024, SalvageKind::Data)], Some(4096)),
                _ => (vec![range(4096, 8192, SalvageKind::Zero)], None),
            };
            let salvage = salvaged();
            let ranges = SalvageRanges {
                salvage,
                ranges,
                next,
            };
            let found = (id == salvaged().id).then_some(ranges);
            reply.send(found.ok_or_else(missing)).is_ok()
        }
        Request::SalvageData(_, at, len, reply) => {
            let byte = u8::try_from(at / 512).expect("small");
            let bytes = vec![byte; usize::try_from(len).expect("small")];
            reply.send(Ok(bytes.into())).is_ok()
        }
        other => answer_operations(other),
    }
}

fn answer_operations(request: Request) -> bool {
    let missing = || ControlError::new(ControlErrorKind::NotFound, "no operation of this id");
    match request {
        Request::Gc(wanted, reply) => reply.send(Ok(operation(Some(&wanted)))).is_ok(),
        Request::Operations(reply) => reply.send(Ok(vec![operation(None)])).is_ok(),
        Request::Operation(id, reply) => {
            let found = (id == operation(None).id).then(|| operation(None));
            reply.send(found.ok_or_else(missing)).is_ok()
        }
        Request::RenewData(name, wanted, reply) => reply.send(Ok(data_key(name, wanted))).is_ok(),
        Request::Group(request) => answer_groups(request),
        other => panic!("{other:?} is answered elsewhere"),
    }
}

fn group(name: &str, members: &[&str]) -> GroupDocument {
    let name = name.to_owned();
    let id = "0a".repeat(16);
    let named = Some(GroupNameDocument {
        id: id.clone(),
        name: name.clone(),
    });
    let members = members.iter().map(|member| ExportDocument {
        group: named.clone(),
        ..export(member)
    });
    GroupDocument {
        id,
        name,
        state: "formed".to_owned(),
        members: members.collect(),
    }
}

/// One is there, `db`. What is asked for is shown in the answer.
fn answer_groups(request: GroupRequest) -> bool {
    let missing = || ControlError::new(ControlErrorKind::NotFound, "no group of this name");
    let begun = |kind: &str, at: String| OperationDocument {
        kind: kind.to_owned(),
        at,
        ..operation(Some(&GcDocument::default()))
    };
    let taken = |name: &str| GroupSnapshotDocument {
        group: "db".to_owned(),
        name: name.to_owned(),
        id: "06".repeat(16),
        taken_at: "2026-11-20T00:00:00.000Z".to_owned(),
        members: vec![snapshot("log", name), snapshot("data", name)],
    };
    match request {
        GroupRequest::List(after, reply) => {
            let mut all = vec![group("db", &["log", "data"])];
            all.retain(|it| it.id > after);
            reply.send(Ok(all)).is_ok()
        }
        GroupRequest::Get(which, reply) => {
            let found = (which == "db").then(|| group("db", &["log", "data"]));
            reply.send(found.ok_or_else(missing)).is_ok()
        }
        GroupRequest::Form(wanted, reply) => {
            let at = format!("{} {}", wanted.name, wanted.members.join(" "));
            reply.send(Ok(begun("group-form", at))).is_ok()
        }
        GroupRequest::End(which, how, reply) => {
            // A member has clients.
            let mut refusal = ControlError::new(ControlErrorKind::Conflict, format!("{how:?}"));
            refusal.members = group(&which, &["log", "data"]).members;
            reply.send(Err(refusal)).is_ok()
        }
        GroupRequest::Fork(_, wanted, reply) => {
            let members: Vec<&str> = wanted.members.values().map(String::as_str).collect();
            reply.send(Ok(group(&wanted.name, &members))).is_ok()
        }
        GroupRequest::Snapshots(_, reply) => reply.send(Ok(vec![taken("s1")])).is_ok(),
        GroupRequest::TakeSnapshot(_, wanted, reply) => {
            let name = wanted.name.unwrap_or_else(|| "dated".to_owned());
            reply.send(Ok(taken(&name))).is_ok()
        }
        GroupRequest::Restore(which, wanted, reply) => {
            let at = format!("{which}@{}", wanted.snapshot);
            reply.send(Ok(begun("group-restore", at))).is_ok()
        }
    }
}

/// Its id is what was asked for.
fn data_key(name: String, wanted: RenewDataDocument) -> DataKeyDocument {
    let asked = [wanted.request_id, wanted.volume];
    DataKeyDocument {
        name,
        id: asked.into_iter().flatten().collect::<Vec<_>>().join(" "),
        from_epoch: 2,
        keys: 3,
        left: 61,
    }
}

fn snapshot(export: &str, name: &str) -> SnapshotDocument {
    SnapshotDocument {
        export: export.to_owned(),
        name: name.to_owned(),
        id: "06".repeat(16),
        size_bytes: 1 << 30,
        cut_seq: 7,
        taken_at: "2026-11-20T00:00:00.000Z".to_owned(),
    }
}

struct Fixture {
    router: Router,
    stop: watch::Sender<bool>,
}

impl Fixture {
    fn new(token: Option<&str>, stopped: Option<&'static str>) -> Self {
        let (control, requests) = Control::new();
        spawn(answer(requests, stopped));
        let (stop, stopping) = watch::channel(false);
        let token = token.map(|token| Secret::new(token.to_owned()));
        let router = Api::new(control, token, stopping).router();
        Self { router, stop }
    }

    async fn send(&self, request: HttpRequest<HttpBody>) -> (StatusCode, String) {
        let response = self
            .router
            .clone()
            .oneshot(request)
            .await
            .expect("infallible");
        let status = response.status();
        let body = response.into_body().collect().await.expect("whole body");
        let text = String::from_utf8(body.to_bytes().to_vec()).expect("UTF-8");
        (status, text)
    }

    async fn json(&self, method: &str, path: &str, body: &str) -> (StatusCode, Value) {
        let (status, text) = self.send(request(method, path, body)).await;
        (status, serde_json::from_str(&text).expect(&text))
    }
}

#[expect(clippy::disallowed_methods, reason = "a test's stand-in for the shard")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

fn request(method: &str, path: &str, body: &str) -> HttpRequest<HttpBody> {
    HttpRequest::builder()
        .method(method)
        .uri(path)
        .body(HttpBody::from(body.to_owned()))
        .expect("a legal request")
}

#[tokio::test]
async fn exports_are_listed_and_shown() {
    let api = Fixture::new(None, None);
    let (status, body) = api.json("GET", "/api/exports", "").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body[0]["name"], "vm-a");
    let (status, body) = api.json("GET", "/api/exports/vm-a", "").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body["dirty_bytes"], 8192);
    let (status, body) = api.json("GET", "/api/exports/vm-a/metrics", "").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!((&body["reads"], &body["name"]), (&json!(3), &json!("vm-a")));
    let (status, body) = api.json("GET", "/api/server", "").await;
    assert_eq!((status, &body["exports"]), (StatusCode::OK, &json!(1)));
    let (status, body) = api.json("GET", "/api/metrics", "").await;
    assert_eq!(status, StatusCode::OK);
    let meters: MetersDocument = serde_json::from_value(body).expect("it reads back");
    assert_eq!(meters.exports[0].export.io.reads, 3);
    assert_eq!(meters.exports[0].latency.write.count(), 5);
}

#[tokio::test]
async fn what_is_only_in_the_store_is_listed_when_asked_for() {
    let api = Fixture::new(None, None);
    let names = |body: &Value| -> Vec<String> {
        let rows = body.as_array().expect("a list").iter();
        rows.map(|row| row["name"].as_str().expect("text").to_owned())
            .collect()
    };
    for (query, expected) in [
        ("", &["vm-a"][..]),
        ("?stored=false", &["vm-a"]),
        ("?stored=true", &["only-stored", "vm-a"]),
        ("?stored=true&after=only-stored", &["vm-a"]),
    ] {
        let (status, body) = api.json("GET", &format!("/api/exports{query}"), "").await;
        assert_eq!(status, StatusCode::OK, "{query}: {body}");
        assert_eq!(names(&body), expected, "{query}");
    }
    for query in ["?stored=maybe", "?after=a", "?all=true"] {
        let (status, body) = api.json("GET", &format!("/api/exports{query}"), "").await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{query}: {body}");
        assert_eq!(body["error"]["kind"], "invalid");
    }
}

#[tokio::test]
async fn space_is_given_back_by_an_operation() {
    let api = Fixture::new(None, None);
    for body in ["", "{}", "{\"export\": \"vm-a\", \"dry_run\": true}"] {
        let (status, begun) = api.json("POST", "/api/gc", body).await;
        assert_eq!(
            (status, &begun["state"]),
            (StatusCode::OK, &json!("running")),
            "{body}"
        );
        assert_eq!(begun["dry_run"], body.contains("dry_run"));
        let path = format!("/api/operations/{}", begun["id"].as_str().expect("text"));
        let (status, done) = api.json("GET", &path, "").await;
        assert_eq!((status, &done["done"]), (StatusCode::OK, &json!(1)));
    }
    let (_, all) = api.json("GET", "/api/operations", "").await;
    assert_eq!(all[0]["kind"], "gc");
    let (status, _) = api.json("GET", "/api/operations/x", "").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let (status, _) = api.json("POST", "/api/gc", "{\"name\": 1}").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn the_curl_lines_of_the_product_description_work() {
    let api = Fixture::new(None, None);
    let mut put = request("PUT", "/api/exports/vm-alice", "{\"size_gb\": 1000}");
    let form = "application/x-www-form-urlencoded".parse().expect("legal");
    put.headers_mut().insert(header::CONTENT_TYPE, form);
    let (status, body) = api.send(put).await;
    assert_eq!(status, StatusCode::OK);
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(body["size_bytes"], 1000_u64 << 30);
    let (status, _) = api.json("POST", "/api/exports/vm-a/drain", "").await;
    assert_eq!(status, StatusCode::OK);
    let (status, body) = api.json("DELETE", "/api/exports/vm-a", "").await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(body["error"]["kind"], "conflict");
    assert_eq!(body["error"]["message"], "a client is connected");
    assert_eq!(body["error"]["export"]["dirty_bytes"], 8192);
    let accepting = "/api/exports/vm-a?accept_loss=true";
    let (_, body) = api.json("DELETE", accepting, "").await;
    let told = body["error"]["message"].as_str().expect("a text");
    assert!(told.ends_with("all the same"), "{told}");
    let (status, _) = api.json("DELETE", "/api/exports/vm-a?force=1", "").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let accept = "/api/exports/vm-a/accept-loss";
    let (status, body) = api.json("POST", accept, "{\"kept_seq\": 5}").await;
    assert_eq!((status, &body["last_seq"]), (StatusCode::OK, &5.into()));
    let (status, _) = api.json("POST", accept, "").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn snapshots_are_taken_listed_and_deleted_by_name() {
    let api = Fixture::new(None, None);
    let path = "/api/exports/v/snapshots";
    let (status, body) = api.json("POST", path, "").await;
    assert_eq!(
        (status, &body["name"]),
        (StatusCode::OK, &json!("2026-11-26t07.49.04.123z"))
    );
    let wanted = "{\"name\": \"s1\", \"request_id\": \"r-7\"}";
    let (status, body) = api.json("POST", path, wanted).await;
    assert_eq!((status, &body["name"]), (StatusCode::OK, &json!("s1")));
    let (status, body) = api.json("GET", path, "").await;
    assert_eq!((status, &body[0]["export"]), (StatusCode::OK, &json!("v")));
    for method in ["GET", "DELETE"] {
        let (status, body) = api.json(method, &format!("{path}/s1"), "").await;
        assert_eq!((status, &body["cut_seq"]), (StatusCode::OK, &json!(7)));
        let (status, _) = api.json(method, &format!("{path}/s2"), "").await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    }
    let (status, body) = api.json("POST", path, "{\"nam\": 1}").await;
    assert_eq!(
        (status, &body["error"]["kind"]),
        (StatusCode::BAD_REQUEST, &json!("invalid"))
    );
}

#[tokio::test]
async fn a_new_data_key_is_asked_for_with_or_without_a_request_id() {
    let api = Fixture::new(None, None);
    let path = "/api/exports/v/renew-data";
    for (body, id) in [
        ("", ""),
        ("{}", ""),
        ("{\"request_id\": \"r-7\"}", "r-7"),
        ("{\"request_id\": \"r-7\", \"volume\": \"1f\"}", "r-7 1f"),
    ] {
        let (status, key) = api.json("POST", path, body).await;
        assert_eq!((status, &key["id"]), (StatusCode::OK, &json!(id)), "{body}");
        let told = (&key["name"], &key["from_epoch"], &key["keys"], &key["left"]);
        assert_eq!(told, (&json!("v"), &json!(2), &json!(3), &json!(61)));
    }
    let (status, body) = api.json("POST", path, "{\"requestid\": 1}").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(body["error"]["kind"], "invalid");
    let (status, _) = api.json("GET", path, "").await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn prepare_takes_an_empty_body_or_how_much_is_to_be_warm() {
    let api = Fixture::new(None, None);
    let path = "/api/exports/v/prepare";
    for body in ["", "{}", "{\"warm_bytes\": null}"] {
        let (status, export) = api.json("POST", path, body).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        assert_eq!(
            (&export["role"], &export["warm"]),
            (&json!("prepared"), &Value::Null)
        );
    }
    let (status, export) = api.json("POST", path, "{\"warm_bytes\": 8192}").await;
    assert_eq!(status, StatusCode::OK);
    let expected = json!({"state": "running", "bytes_max": 8192, "bytes": 4096, "note": null});
    assert_eq!(export["warm"], expected);
    for body in ["{\"warm_bytes\": -1}", "{\"warm\": 1}", "7"] {
        let (status, refused) = api.json("POST", path, body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert_eq!(refused["error"]["kind"], "invalid");
    }
}

#[tokio::test]
async fn a_fork_that_cannot_be_read_is_listed_beside_the_others() {
    let api = Fixture::new(None, None);
    let (status, forks) = api.json("GET", "/api/exports/v/forks", "").await;
    assert_eq!(status, StatusCode::OK);
    let errors: Vec<bool> = forks
        .as_array()
        .expect("a list")
        .iter()
        .map(|fork| fork["error"].is_string())
        .collect();
    assert_eq!(errors, [false, false, true]);
    assert_eq!(
        (&forks[0]["name"], &forks[2]["id"]),
        (&json!("child"), &json!("09".repeat(16)))
    );
}

#[tokio::test]
async fn a_fork_is_waited_for_unless_it_may_be_local() {
    let api = Fixture::new(None, None);
    let path = "/api/exports/v/fork";
    for (wanted, published) in [
        ("{\"name\": \"w\"}", true),
        ("{\"name\": \"w\", \"wait\": \"local\"}", false),
        ("{\"name\": \"w\", \"wait\": \"published\"}", true),
    ] {
        let (status, body) = api.json("POST", path, wanted).await;
        assert_eq!(
            (status, &body["name"], &body["published"]),
            (StatusCode::OK, &json!("w"), &json!(published))
        );
    }
    let wrong = "{\"name\": \"w\", \"wait\": \"for ever\"}";
    let (status, _) = api.json("POST", path, wrong).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn promote_takes_an_empty_body_or_force_with_an_epoch() {
    let api = Fixture::new(None, None);
    let (status, body) = api.json("POST", "/api/exports/v/promote", "").await;
    assert_eq!((status, &body["epoch"]), (StatusCode::OK, &json!(0)));
    let force = "{\"force\": true, \"expected_epoch\": 7}";
    let (status, body) = api.json("POST", "/api/exports/v/promote", force).await;
    assert_eq!((status, &body["epoch"]), (StatusCode::OK, &json!(8)));
}

#[tokio::test]
async fn mistakes_are_json_with_the_right_status() {
    let api = Fixture::new(None, None);
    for (method, path, body, status, kind) in [
        ("GET", "/api/exports/none", "", 404, "not_found"),
        ("GET", "/nowhere", "", 404, "not_found"),
        ("GET", "/api/exports/a/b/c", "", 404, "not_found"),
        ("PATCH", "/api/exports", "", 405, "method_not_allowed"),
        ("GET", "/api/exports/a/drain", "", 405, "method_not_allowed"),
        ("PUT", "/api/exports/a", "", 400, "invalid"),
        ("PUT", "/api/exports/a", "{", 400, "invalid"),
        ("PUT", "/api/exports/a", "{}", 400, "invalid"),
        ("PUT", "/api/exports/a", "{\"size_gib\": 1}", 400, "invalid"),
        ("POST", "/api/exports/a/promote", "[7]", 400, "invalid"),
        ("GET", "/api/exports/%ff", "", 400, "invalid"),
    ] {
        let (found, document) = api.json(method, path, body).await;
        assert_eq!(found.as_u16(), status, "{method} {path}: {document}");
        assert_eq!(document["error"]["kind"], kind, "{method} {path}");
        assert!(document["error"]["message"].is_string());
    }
    let large = "x".repeat(BODY_BYTES_MAX + 1);
    let (status, document) = api.json("PUT", "/api/exports/a", &large).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(document["error"]["kind"], "too_large");
}

#[tokio::test]
async fn health_tells_stopping_and_a_stopped_log() {
    let api = Fixture::new(None, None);
    let (status, body) = api.json("GET", "/healthz", "").await;
    assert_eq!((status, &body["status"]), (StatusCode::OK, &json!("ok")));
    api.stop.send(true).expect("the router listens");
    let (status, body) = api.json("GET", "/healthz", "").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body["status"], "shutting down");

    let stopped = Fixture::new(None, Some("fsync failed"));
    let (status, body) = stopped.json("GET", "/healthz", "").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body["status"], "fsync failed");
}

#[tokio::test]
async fn a_shard_that_is_gone_is_unavailable() {
    let (control, requests) = Control::new();
    drop(requests);
    let (_stop, stopping) = watch::channel(false);
    let router = Api::new(control, None, stopping).router();
    let response = router
        .oneshot(request("GET", "/api/exports", ""))
        .await
        .expect("infallible");
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn metrics_name_each_export() {
    let api = Fixture::new(None, None);
    let (status, text) = api.send(request("GET", "/metrics", "")).await;
    assert_eq!(status, StatusCode::OK);
    assert!(text.contains("glidefs_export_reads_total{export=\"vm-a\"} 3.0"));
    assert!(text.ends_with("# EOF\n"));
}

#[tokio::test]
async fn a_token_guards_everything_but_health() {
    let api = Fixture::new(Some("sesame"), None);
    for path in ["/api/exports", "/metrics"] {
        let (status, body) = api.json("GET", path, "").await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert_eq!(body["error"]["kind"], "unauthorized");
    }
    for (offered, expected) in [
        ("Bearer sesame", 200),
        ("Bearer open", 401),
        ("sesame", 401),
    ] {
        let mut get = request("GET", "/api/exports", "");
        get.headers_mut()
            .insert(header::AUTHORIZATION, offered.parse().expect("legal"));
        assert_eq!(api.send(get).await.0.as_u16(), expected, "{offered}");
    }
    assert_eq!(api.json("GET", "/healthz", "").await.0, StatusCode::OK);
}

#[tokio::test]
async fn web_pages_may_look_but_not_change() {
    let api = Fixture::new(None, None);
    let with_origin = |method: &str, path: &str| {
        let mut request = request(method, path, "");
        let origin = "http://evil.example".parse().expect("legal");
        request.headers_mut().insert(header::ORIGIN, origin);
        request
    };
    let (status, _) = api
        .send(with_origin("POST", "/api/exports/vm-a/drain"))
        .await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let (status, _) = api.send(with_origin("GET", "/api/exports")).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn drains_that_hang_leave_room_to_look() {
    let (control, mut requests) = Control::new();
    let (_stop, stopping) = watch::channel(false);
    let router = Api::new(control, None, stopping).router();
    let call = |method: &'static str, path: &'static str| {
        let router = router.clone();
        async move {
            let response = router.oneshot(request(method, path, "")).await;
            response.expect("infallible").status()
        }
    };
    let mut held = Vec::new();
    for _ in 0..guard::CHANGES_MAX {
        let drain = call("POST", "/api/exports/a/drain");
        spawn(async move {
            drain.await;
        });
        held.push(requests.recv().await.expect("the drain arrives"));
    }
    let busy = call("POST", "/api/exports/a/drain").await;
    assert_eq!(busy, StatusCode::SERVICE_UNAVAILABLE);
    spawn(async move {
        let Some(Request::List(reply)) = requests.recv().await else {
            panic!("a list was asked for");
        };
        reply.send(Ok(Vec::new())).expect("somebody waits");
    });
    assert_eq!(call("GET", "/api/exports").await, StatusCode::OK);
    drop(held);
}

#[tokio::test]
async fn a_taken_port_names_the_key() {
    let first = bind("127.0.0.1:0".parse().expect("legal"))
        .await
        .expect("a free port");
    let address = first.local_addr().expect("bound");
    let error = bind(address).await.expect_err("taken");
    let said = error.to_string();
    assert!(said.contains("`servers.api.address`") && said.contains("in use"));
}

#[tokio::test]
async fn groups_are_made_shown_copied_and_ended_by_name() {
    let api = Fixture::new(None, None);
    let (status, all) = api.json("GET", "/api/groups", "").await;
    assert_eq!((status, &all[0]["name"]), (StatusCode::OK, &json!("db")));
    let behind = format!("/api/groups?after={}", "0a".repeat(16));
    let (_, none) = api.json("GET", &behind, "").await;
    assert_eq!(none, json!([]));
    let (status, one) = api.json("GET", "/api/groups/db", "").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(one["members"][1]["name"], "data");
    assert_eq!(one["members"][1]["group"]["name"], "db");
    let (status, _) = api.json("GET", "/api/groups/other", "").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let body = "{\"name\": \"db\", \"members\": [\"log\", \"data\"], \"request_id\": \"r\"}";
    let (status, begun) = api.json("POST", "/api/groups", body).await;
    let told = (status, &begun["kind"], &begun["at"]);
    let expected = (StatusCode::OK, &json!("group-form"), &json!("db log data"));
    assert_eq!(told, expected);
    let body = "{\"name\": \"db2\", \"members\": {\"log\": \"log2\", \"data\": \"data2\"}}";
    let (_, forked) = api.json("POST", "/api/groups/db/fork", body).await;
    assert_eq!(forked["members"][0]["name"], "data2");
    let (_, taken) = api.json("POST", "/api/groups/db/snapshots", "").await;
    assert_eq!(taken["name"], "dated");
    let (_, listed) = api.json("GET", "/api/groups/db/snapshots", "").await;
    assert_eq!(listed[0]["members"][0]["export"], "log");
    let body = "{\"snapshot\": \"s1\"}";
    let (_, begun) = api.json("POST", "/api/groups/db/restore", body).await;
    assert_eq!(begun["at"], "db@s1");
    // The numbers of all members, where a refusal rests on them.
    let (status, refused) = api.json("DELETE", "/api/groups/db?request_id=r", "").await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(refused["error"]["members"][0]["name"], "log");
    for (method, path) in [
        ("POST", "/api/groups"),
        ("POST", "/api/groups/db/fork"),
        ("POST", "/api/groups/db/restore"),
        ("GET", "/api/groups?name=db"),
    ] {
        let (status, body) = api.json(method, path, "").await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {body}");
    }
}

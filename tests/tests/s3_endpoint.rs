//! The endpoint that the other tests trust: conditions hold under races, faults do what they say, and
//! the product's own store client keeps the whole contract of its seam on it.

use std::sync::atomic::Ordering;
use std::time::Duration;

use glidefs_tests::endpoint::check_contract;
use glidefs_tests::s3::door::Door;
use glidefs_tests::s3::identity::{Flaw, Identities};
use glidefs_tests::s3::keys::Keys;
use glidefs_tests::s3::{ACCESS_KEY, BUCKET, REGION, S3Server, SECRET_KEY};
use glidefs_tests::server::wait_until;
use glidefs_tests::tool::are_here;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{
    Certificate, ClientOptions, Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload, PutResult,
    RetryConfig, UpdateVersion,
};
use world::contract::Losers;

const RACERS: usize = 16;
/// Until a connection of before has ended.
const END_WAIT_MAX: Duration = Duration::from_secs(30);

fn client(server: &S3Server) -> AmazonS3 {
    builder(server.url()).build().expect("a client")
}

fn builder(endpoint: String) -> AmazonS3Builder {
    AmazonS3Builder::new()
        .with_endpoint(endpoint)
        .with_bucket_name(BUCKET)
        .with_region(REGION)
        .with_access_key_id(ACCESS_KEY)
        .with_secret_access_key(SECRET_KEY)
        .with_allow_http(true)
        // A client's own retry would hide the faults.
        .with_retry(RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        })
}

async fn put(store: &AmazonS3, key: &str, body: String, mode: PutMode) -> Result<PutResult, Error> {
    let key = Path::from(key);
    store
        .put_opts(&key, PutPayload::from(body), mode.into())
        .await
}

fn on_a_runtime(test: impl Future<Output = ()>) {
    runtime().block_on(test);
}

fn runtime() -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime")
}

#[test]
fn of_many_creators_one_wins() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = S3Server::start(folder.path(), 0).expect("an endpoint");
    on_a_runtime(async {
        let store = client(&server);
        let racers = (0..RACERS).map(|n| put(&store, "key", n.to_string(), PutMode::Create));
        let outcomes = futures_util::future::join_all(racers).await;
        assert_eq!(outcomes.iter().filter(|it| it.is_ok()).count(), 1);
        let lost = |it: &Result<_, Error>| matches!(it, Err(Error::AlreadyExists { .. }));
        assert_eq!(outcomes.iter().filter(|it| lost(it)).count(), RACERS - 1);
    });
}

#[test]
fn of_many_replacers_one_wins_and_an_absent_object_is_404() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = S3Server::start(folder.path(), 0).expect("an endpoint");
    on_a_runtime(async {
        let store = client(&server);
        let first = put(&store, "key", "first".into(), PutMode::Create)
            .await
            .expect("created");
        let seen = || {
            PutMode::Update(UpdateVersion {
                e_tag: first.e_tag.clone(),
                version: None,
            })
        };
        let racers = (0..RACERS).map(|n| put(&store, "key", n.to_string(), seen()));
        let outcomes = futures_util::future::join_all(racers).await;
        assert_eq!(outcomes.iter().filter(|it| it.is_ok()).count(), 1);
        // The client library calls this a failed condition too; what S3 said is in its source.
        let absent = put(&store, "absent", "x".into(), seen()).await;
        let said = absent.expect_err("nothing to replace");
        assert!(format!("{said:?}").contains("NoSuchKey"), "{said:?}");
    });
}

/// The same suite as for memory, folders and the simulation.
#[test]
fn the_store_over_http_keeps_the_contract() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = S3Server::start(folder.path(), 0).expect("an endpoint");
    for prefix in ["", "/some/prefix"] {
        check_contract(&server.url(), prefix, Losers::Know).expect("it can be asked");
    }
    // What the contract needs went over the wire.
    let counts = server.counts.snapshot();
    for kind in ["put", "get", "list", "delete"] {
        assert!(counts[kind] > 0, "no {kind}: {counts:?}");
    }
}

#[test]
fn faults_come_before_or_after_the_effect() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = S3Server::start(folder.path(), 0).expect("an endpoint");
    on_a_runtime(async {
        let store = client(&server);
        server.faults.outage.store(true, Ordering::SeqCst);
        put(&store, "out", "x".into(), PutMode::Create)
            .await
            .expect_err("an outage");
        server.faults.outage.store(false, Ordering::SeqCst);
        let absent = store.head(&Path::from("out")).await;
        assert!(matches!(absent, Err(Error::NotFound { .. })), "{absent:?}");

        server.faults.lost_answers.store(1, Ordering::SeqCst);
        put(&store, "lost", "x".into(), PutMode::Create)
            .await
            .expect_err("a lost answer");
        store
            .head(&Path::from("lost"))
            .await
            .expect("the effect is there");
        assert_eq!(server.counts.snapshot()["put"], 2);
    });
}

#[test]
fn another_process_steers_it_by_http() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = S3Server::start(folder.path(), 0).expect("an endpoint");
    let ask = |method, path| glidefs_tests::http::ask(server.address, method, path, None);
    let set = ask("POST", "/test-control/faults?delay_ms=3&outage=1").expect("an answer");
    assert_eq!(set.status, 200, "{}", set.body);
    assert_eq!(server.faults.delay_ms.load(Ordering::SeqCst), 3);
    assert!(server.faults.outage.load(Ordering::SeqCst));
    let wrong = ask("POST", "/test-control/faults?colour=1").expect("an answer");
    assert_eq!(wrong.status, 400, "{}", wrong.body);
    let counts = ask("GET", "/test-control/faults")
        .expect("an answer")
        .json()
        .expect("JSON");
    assert_eq!(counts["put"], 0);
}

#[test]
fn a_signature_of_another_time_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = S3Server::start(folder.path(), 0).expect("an endpoint");
    on_a_runtime(async {
        let store = client(&server);
        for (minutes, is_taken) in [
            (14, true),
            (16, false),
            (0, true),
            (-16, false),
            (-14, true),
        ] {
            server.clock.set_ahead(minutes * 60);
            let hit = server.weather.hit();
            let said = put(&store, "key", "x".into(), PutMode::Overwrite).await;
            assert_eq!(said.is_ok(), is_taken, "{minutes} minutes: {said:?}");
            if let Err(said) = said {
                let said = format!("{said:?}");
                assert!(said.contains("RequestTimeTooSkewed"), "{said}");
                assert_eq!(server.weather.hit(), hit + 1);
            }
        }
    });
}

#[test]
fn a_token_is_refused_once_it_has_expired() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = S3Server::start(folder.path(), 0).expect("an endpoint");
    server.keys.send_replace(Keys {
        token: Some("of-a-role".to_owned()),
        expires_at: Some(server.clock.seconds() + 300),
        ..Keys::default()
    });
    on_a_runtime(async {
        let with_token = builder(server.url()).with_token("of-a-role").build();
        let store = with_token.expect("a client");
        let put_one = || put(&store, "key", "x".into(), PutMode::Overwrite);
        put_one().await.expect("five minutes are left");
        server.clock.set_ahead(301);
        let said = format!("{:?}", put_one().await.expect_err("it has expired"));
        assert!(said.contains("ExpiredToken"), "{said}");
        assert_eq!(server.weather.hit(), 1);
    });
}

/// A client keeps its connections for minutes: they must not hide what is new.
#[test]
fn a_door_that_changes_is_met_by_clients_that_were_connected() {
    if !are_here(&["openssl"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let server = S3Server::start(&folder.path().join("objects"), 0).expect("an endpoint");
    let made = Identities::make(&folder.path().join("tls")).expect("certificates");
    let door = |flaw| made.door(flaw).expect("a door");
    server.door.send_replace(door(None));
    let authority = std::fs::read_to_string(made.authority()).expect("a file");
    let authority = Certificate::from_pem(authority.as_bytes()).expect("a certificate");
    let store = builder(format!("https://{}", server.address))
        .with_client_options(ClientOptions::new().with_root_certificate(authority))
        .build()
        .expect("a client");
    let runtime = runtime();
    let put_one = || runtime.block_on(put(&store, "key", "x".into(), PutMode::Overwrite));
    put_one().expect("it is trusted");
    for (bad, words) in [
        (door(Some(Flaw::Expired)), "certificate expired"),
        (door(Some(Flaw::Stranger)), "UnknownIssuer"),
        (
            door(Some(Flaw::OtherName)),
            "certificate not valid for name",
        ),
        (Door::Slammed, "handshake eof"),
    ] {
        server.door.send_replace(bad);
        let mut said = String::new();
        let is_met = wait_until(END_WAIT_MAX, || {
            // One that was under way when its connection ended says something else.
            said = put_one()
                .err()
                .map(|error| words_of(&error))
                .unwrap_or_default();
            said.contains(words)
        });
        assert!(is_met, "{words}: {said}");
        server.door.send_replace(door(None));
        put_one().expect("it is trusted again");
    }
    assert!(server.weather.hit() >= 4);
}

/// All causes, for people.
fn words_of(error: &Error) -> String {
    let first: &(dyn std::error::Error + 'static) = error;
    let causes = std::iter::successors(Some(first), |&error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

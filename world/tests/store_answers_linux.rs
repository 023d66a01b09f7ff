//! What the answers of an S3 store mean, through the real client and a real socket: a server that
//! says what each test tells it to.
//!
//! The client library passes statuses on in words only; these tests fail when it changes them.

use std::future::Future;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use world::linux::{LinuxStore, StoreConfig};
use world::store::{ETag, Part, Store, StoreError, StoreErrorKind};

/// One answer of the server.
#[derive(Clone)]
enum Answer {
    /// Status, further header lines, body.
    Http(u16, String, String),
    /// The connection ends in the middle of the body.
    CutOff,
    /// The request is read and never answered: the connection ends.
    HangUp,
    /// The request is read and the connection stays open, silent, until the client gives up.
    Silence,
}

fn status(status: u16, body: &str) -> Answer {
    Answer::Http(status, String::new(), body.to_owned())
}

fn with(status: u16, headers: &str, body: &str) -> Answer {
    Answer::Http(status, headers.to_owned(), body.to_owned())
}

fn edge() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime")
}

/// It was free a moment ago.
fn port_where_nobody_listens() -> u16 {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bound");
    taken.local_addr().expect("bound").port()
}

/// Serves `answers`, one request each; returns the heads of the requests.
fn serve(listener: &TcpListener, answers: &[Answer]) -> Vec<String> {
    let mut heads = Vec::new();
    for answer in answers {
        let (mut client, _) = listener.accept().expect("the client connects");
        let head = read_request(&mut client);
        let head_only = head.starts_with("HEAD");
        heads.push(head);
        match answer {
            Answer::Http(status, headers, body) => {
                let len = body.len();
                let body = if head_only { "" } else { body };
                let answer = format!(
                    "HTTP/1.1 {status} Told\r\n{headers}content-length: {len}\r\n\
                     connection: close\r\n\r\n{body}"
                );
                client.write_all(answer.as_bytes()).expect("sent");
            }
            Answer::CutOff => {
                let answer = format!("HTTP/1.1 200 Told\r\n{META}content-length: 100\r\n\r\nabc");
                client.write_all(answer.as_bytes()).expect("sent");
            }
            Answer::HangUp => {}
            Answer::Silence => {
                // Until the client closes.
                let ended = client.read(&mut [0; 1]);
                assert!(matches!(ended, Ok(0) | Err(_)), "a second request");
            }
        }
    }
    heads
}

/// Reads a request with its body.
fn read_request(client: &mut TcpStream) -> String {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        match client.read(&mut byte) {
            Ok(1) => request.push(byte[0]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => panic!("the request ends early: {other:?}"),
        }
    }
    let head = String::from_utf8(request).expect("text").to_lowercase();
    let len = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |len| len.trim().parse().expect("a length"));
    let mut body = vec![0; len];
    client.read_exact(&mut body).expect("the body arrives");
    head
}

/// Runs `requests` against a server that gives `answers`; returns the result and what was asked.
fn told<T, F>(answers: Vec<Answer>, requests: impl FnOnce(LinuxStore) -> F) -> (T, Vec<String>)
where
    F: Future<Output = T>,
{
    let edge = edge();
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = listener.local_addr().expect("bound").port();
    let silent = answers
        .iter()
        .any(|answer| matches!(answer, Answer::Silence));
    let server = Arc::new(listener);
    let serving = edge.spawn_blocking(move || serve(&server, &answers));
    let store = store_at(port, silent, edge.handle().clone());
    let outcome = edge.block_on(requests(store));
    let heads = edge.block_on(serving).expect("every answer was asked for");
    (outcome, heads)
}

fn store_at(port: u16, impatient: bool, edge: tokio::runtime::Handle) -> LinuxStore {
    let mut config = StoreConfig::new("s3://bucket/prefix");
    config.endpoint = Some(format!("http://127.0.0.1:{port}"));
    config.access_key_id = Some("id".to_owned());
    config.secret_access_key = Some("secret".to_owned());
    config.allow_http = true;
    if impatient {
        config.request_timeout = Duration::from_millis(100);
    }
    LinuxStore::open(&config, edge).expect("the store opens")
}

const META: &str = "etag: \"v1\"\r\nlast-modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n";

fn code(code: &str) -> String {
    format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>m</Message></Error>")
}

fn kind<T: std::fmt::Debug>(outcome: Result<T, StoreError>) -> StoreErrorKind {
    outcome.expect_err("it must fail").kind
}

async fn get(store: LinuxStore) -> StoreErrorKind {
    kind(store.get("key", Part::All).await)
}

async fn list(store: LinuxStore) -> StoreErrorKind {
    kind(store.list("", None, 10).await)
}

async fn create(store: LinuxStore) -> StoreErrorKind {
    kind(store.create("key", Bytes::from_static(b"body")).await)
}

async fn replace(store: LinuxStore) -> StoreErrorKind {
    let seen = ETag("\"v1\"".to_owned());
    kind(
        store
            .replace("key", &seen, Bytes::from_static(b"body"))
            .await,
    )
}

async fn delete(store: LinuxStore) -> StoreErrorKind {
    kind(store.delete("key").await)
}

#[test]
fn only_a_missing_key_is_not_found() {
    use StoreErrorKind::{NotFound, Refused};
    for (body, expected) in [
        (code("NoSuchKey"), NotFound),
        (code("NoSuchBucket"), Refused),
        ("<html>no page here</html>".to_owned(), Refused),
        (String::new(), Refused),
    ] {
        let answer = vec![status(404, &body)];
        assert_eq!(told(answer.clone(), get).0, expected, "get: {body}");
        assert_eq!(told(answer.clone(), create).0, Refused, "create: {body}");
        assert_eq!(told(answer, replace).0, expected, "replace: {body}");
    }
    let missing = vec![status(404, &code("NoSuchBucket"))];
    assert_eq!(told(missing, list).0, Refused);
}

#[test]
fn a_failed_condition_is_a_conflict() {
    let (outcome, heads) = told(vec![status(412, &code("PreconditionFailed"))], create);
    assert_eq!(outcome, StoreErrorKind::Conflict);
    assert!(heads[0].starts_with("put /bucket/prefix/key "), "{heads:?}");
    assert!(heads[0].contains("if-none-match: *"), "{heads:?}");

    let answers = vec![
        status(412, &code("PreconditionFailed")),
        with(
            200,
            "etag: \"v2\"\r\nlast-modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n",
            "",
        ),
    ];
    let (outcome, heads) = told(answers, replace);
    assert_eq!(outcome, StoreErrorKind::Conflict);
    assert!(heads[0].contains("if-match: \"v1\""), "{heads:?}");
}

#[test]
fn a_replace_of_what_is_gone_is_not_found_also_where_the_store_says_precondition() {
    let answers = vec![
        status(412, &code("PreconditionFailed")),
        status(404, ""),
        status(404, &code("NoSuchKey")),
    ];
    assert_eq!(told(answers, replace).0, StoreErrorKind::NotFound);
}

/// The answer to a HEAD has no body, so a gateway's 404 looks like the store's.
#[test]
fn a_404_to_a_head_is_no_absence_unless_a_get_says_so() {
    let answers = vec![
        status(412, &code("PreconditionFailed")),
        status(404, ""),
        status(404, "<html>no route</html>"),
    ];
    assert_eq!(told(answers, replace).0, StoreErrorKind::Conflict);
}

#[test]
fn a_turned_away_condition_may_be_repeated() {
    let answer = vec![status(409, &code("ConditionalRequestConflict"))];
    assert_eq!(told(answer.clone(), create).0, StoreErrorKind::Retry);
    assert_eq!(told(answer, replace).0, StoreErrorKind::Retry);
}

#[test]
fn a_store_that_compares_bare_etags_is_asked_its_way() {
    let answers = vec![
        status(412, &code("PreconditionFailed")),
        with(200, META, ""),
        with(200, "etag: \"v2\"\r\n", ""),
        with(200, "etag: \"v3\"\r\n", ""),
    ];
    let ((first, second), heads) = told(answers, |store| async move {
        let body = Bytes::from_static(b"body");
        let seen = ETag("\"v1\"".to_owned());
        let first = store.replace("key", &seen, body.clone()).await;
        let first = first.expect("replaced");
        let second = store.replace("key", &first, body).await;
        (first, second.expect("replaced"))
    });
    assert_eq!((&*first.0, &*second.0), ("\"v2\"", "\"v3\""));
    assert!(heads[2].contains("if-match: v1\r\n"), "{heads:?}");
    assert!(
        heads[3].contains("if-match: v2\r\n"),
        "it is remembered: {heads:?}"
    );
}

/// So is one behind a proxy that changes ETags: the condition fails, whatever is made of a bare one.
#[test]
fn a_store_that_does_not_understand_a_bare_etag_has_refused_the_condition() {
    let answers = vec![
        status(412, &code("PreconditionFailed")),
        with(200, META, ""),
        status(400, &code("InvalidArgument")),
    ];
    let (outcome, heads) = told(answers, replace);
    assert_eq!(outcome, StoreErrorKind::Conflict);
    assert!(heads[2].contains("if-match: v1\r\n"), "{heads:?}");
}

#[test]
fn a_broken_answer_leaves_a_write_unknown_and_a_read_to_be_repeated() {
    use StoreErrorKind::{Retry, Unknown};
    for answer in [
        status(500, &code("InternalError")),
        status(502, "<html>bad gateway</html>"),
        status(503, &code("SlowDown")),
        status(429, ""),
        status(408, ""),
        status(400, &code("RequestTimeout")),
        Answer::HangUp,
        Answer::Silence,
    ] {
        let answer = vec![answer];
        assert_eq!(told(answer.clone(), get).0, Retry);
        assert_eq!(told(answer.clone(), list).0, Retry);
        assert_eq!(told(answer.clone(), create).0, Unknown);
        assert_eq!(told(answer.clone(), replace).0, Unknown);
        assert_eq!(told(answer, delete).0, Unknown);
    }
}

/// What it means stays what it meant, in kind and words.
#[test]
fn a_wait_that_the_store_asks_for_is_passed_on_with_the_rest_of_its_answer() {
    use StoreErrorKind::{Retry, Unknown};
    let dates = "date: Tue, 31 Dec 2030 23:59:50 GMT\r\n\
                 retry-after: Wed, 01 Jan 2031 00:00:05 GMT\r\n";
    for (number, headers, wait) in [
        (503, "retry-after: 7\r\n", Some(7)),
        (429, "Retry-After: 7\r\n", Some(7)),
        (503, dates, Some(15)),
        (503, "retry-after: 3600\r\n", Some(60)),
        (503, "retry-after: soon\r\n", None),
        (500, "retry-after: 7\r\n", None),
        (503, "", None),
    ] {
        let answers = vec![with(number, headers, &code("SlowDown")); 2];
        let asked = |store: LinuxStore| async move {
            let read = store.get("key", Part::All).await;
            let written = store.create("key", Bytes::from_static(b"body")).await;
            (read.expect_err("it fails"), written.expect_err("it fails"))
        };
        let ((read, written), heads) = told(answers, asked);
        assert_eq!((read.kind, written.kind), (Retry, Unknown), "{headers}");
        for error in [read, written] {
            let told = error.retry_after.map(|wait| wait.as_secs());
            assert_eq!(told, wait, "{number} {headers}");
            let said = &error.message;
            assert!(said.contains(&number.to_string()), "{said}");
            assert!(said.contains("SlowDown: m"), "{said}");
        }
        assert_eq!(heads.len(), 2, "the library repeats nothing");
    }
}

#[test]
fn a_store_that_cannot_be_reached_has_done_nothing() {
    let edge = edge();
    let port = port_where_nobody_listens();
    let store = store_at(port, false, edge.handle().clone());
    edge.block_on(async move {
        assert_eq!(get(store.clone()).await, StoreErrorKind::Retry);
        assert_eq!(create(store.clone()).await, StoreErrorKind::Retry);
        assert_eq!(replace(store).await, StoreErrorKind::Retry);
    });
}

/// Who reads the log must see what to put right, not only that something failed.
#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the other end is not of our world"
)]
fn the_words_of_a_failed_connection_say_why() {
    let edge = edge();
    let port = port_where_nobody_listens();
    let words = |endpoint: String| {
        let mut config = StoreConfig::new("s3://bucket/prefix");
        config.endpoint = Some(endpoint);
        config.access_key_id = Some("id".to_owned());
        config.secret_access_key = Some("secret".to_owned());
        config.allow_http = true;
        let store = LinuxStore::open(&config, edge.handle().clone()).expect("it opens");
        let failed = edge.block_on(store.get("key", Part::All));
        failed.expect_err("nobody is there").message.to_lowercase()
    };
    let refused = words(format!("http://127.0.0.1:{port}"));
    assert!(refused.contains("refused"), "{refused}");
    let nameless = words("http://store.invalid".to_owned());
    assert!(nameless.contains("dns"), "{nameless}");

    // A port that speaks, but not TLS.
    let plain = TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = plain.local_addr().expect("bound").port();
    let serving = std::thread::spawn(move || {
        let (mut client, _) = plain.accept().expect("the client connects");
        client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").ok();
        // Until the client closes.
        while client.read(&mut [0; 512]).is_ok_and(|len| len > 0) {}
    });
    let plain = words(format!("https://127.0.0.1:{port}"));
    assert!(plain.contains("corrupt message"), "{plain}");
    serving.join().expect("it ends with its client");
}

#[test]
fn a_person_must_act_on_credentials_and_configuration() {
    for answer in [
        status(401, ""),
        status(403, &code("AccessDenied")),
        status(403, &code("SignatureDoesNotMatch")),
        status(400, &code("InvalidBucketName")),
        status(301, ""),
        status(405, ""),
    ] {
        let answer = vec![answer];
        assert_eq!(told(answer.clone(), get).0, StoreErrorKind::Refused);
        assert_eq!(told(answer.clone(), create).0, StoreErrorKind::Refused);
        assert_eq!(told(answer, replace).0, StoreErrorKind::Refused);
    }
    let answer = vec![status(501, &code("NotImplemented"))];
    assert_eq!(told(answer, create).0, StoreErrorKind::Unsupported);
}

/// S3 repeats a token that has expired, and all that was signed.
#[test]
fn an_answer_that_repeats_secrets_is_not_passed_on_whole() {
    let answer = "<?xml version=\"1.0\"?>\n<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message>\
        <Token-0>the-secret-token</Token-0><CanonicalRequest>x-amz-security-token:the-secret-token</CanonicalRequest>\
        <RequestId>4711</RequestId></Error>";
    let failed = |store: LinuxStore| async move { store.get("key", Part::All).await };
    let (failed, _) = told(vec![status(400, answer)], failed);
    let error = failed.expect_err("refused");
    assert_eq!(error.kind, StoreErrorKind::Refused);
    let text = error.message;
    assert!(!text.contains("secret") && !text.contains('<'), "{text}");
    assert!(
        text.contains("ExpiredToken: The provided token has expired.: 4711"),
        "{text}"
    );
}

#[test]
fn an_object_that_does_not_come_in_full_is_asked_for_again() {
    assert_eq!(told(vec![Answer::CutOff], get).0, StoreErrorKind::Retry);
}

#[test]
fn a_part_is_exactly_what_was_asked_for_or_an_error() {
    let ranged = |store: LinuxStore| async move { store.get("key", Part::Range(2..6)).await };
    let part = format!("{META}content-range: bytes 2-5/10\r\n");
    let (object, heads) = told(vec![with(206, &part, "2345")], ranged);
    let object = object.expect("what was asked for");
    assert_eq!((&*object.bytes, object.size), (&b"2345"[..], 10));
    assert_eq!(object.etag, ETag("\"v1\"".to_owned()));
    assert!(heads[0].contains("range: bytes=2-5"), "{heads:?}");

    let shorter = format!("{META}content-range: bytes 2-3/4\r\n");
    let (object, _) = told(vec![with(206, &shorter, "23")], ranged);
    assert_eq!(kind(object), StoreErrorKind::Refused);
    let (object, _) = told(vec![status(416, &code("InvalidRange"))], ranged);
    assert_eq!(kind(object), StoreErrorKind::Refused);
}

#[test]
fn a_suffix_of_an_empty_object_is_empty_also_where_the_store_says_invalid_range() {
    let answers = vec![status(416, &code("InvalidRange")), with(200, META, "")];
    let (object, _) = told(answers, |store| async move {
        store.get("key", Part::Suffix(7)).await
    });
    assert!(object.expect("it is there").bytes.is_empty());
}

#[test]
fn a_write_whose_version_is_not_told_is_unknown() {
    let (outcome, _) = told(vec![status(200, "")], create);
    assert_eq!(outcome, StoreErrorKind::Unknown);
}

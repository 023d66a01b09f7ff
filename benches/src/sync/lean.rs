//! An S3 endpoint that costs as little as one can: what the client is worth shows against it.
//!
//! It keeps conditions, versions, ranges and lists as S3 means them, and every object but those of
//! many bytes under `/seg/`: of these only the length. Signatures are not looked at and nothing is
//! hashed. It counts and delays as the endpoint of the tests does, and is steered at the same path.
//! Deliberately absent: multipart, more than one page of a list, HTTP/2.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
#[expect(clippy::disallowed_types, reason = "the endpoint is another machine")]
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use glidefs_tests::s3::Counts;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Connections at a time; more are closed at once.
const CONNECTIONS_MAX: u64 = 256;
const HEADERS_MAX: usize = 100;
const BODY_BYTES_MAX: usize = 1 << 30;
/// Segments of more are not kept.
const KEPT_SEGMENT_BYTES_MAX: usize = 4096;
const LISTED_MAX: usize = 1000;
/// The first byte of a TLS connection.
const TLS_HANDSHAKE: u8 = 22;
const CONTROL_PATH: &str = "/test-control/faults";

/// What all connections share.
#[derive(Debug, Default)]
#[expect(clippy::disallowed_types, reason = "the endpoint is another machine")]
struct Shared {
    objects: Mutex<BTreeMap<String, Object>>,
    counts: Counts,
    delay_ms: AtomicU64,
    versions: AtomicU64,
    connections: AtomicU64,
}

#[derive(Clone, Debug)]
struct Object {
    /// None: only its length is known.
    body: Option<Arc<[u8]>>,
    len: usize,
    etag: String,
}

#[derive(Debug, Default)]
struct Request {
    method: String,
    path: String,
    query: String,
    if_none_match: bool,
    if_match: Option<String>,
    range: Option<String>,
    /// The client wants no more answers.
    is_last: bool,
    body: Body,
}

#[derive(Debug, Default)]
struct Body {
    len: usize,
    kept: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Answer {
    status: &'static str,
    headers: String,
    body: Vec<u8>,
    /// Of a HEAD: the length of what is not sent.
    len: usize,
}

/// A certificate and its key, as PEM files.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) certificate: std::path::PathBuf,
    pub(crate) key: std::path::PathBuf,
}

/// Serves on a free port of the loopback until the process is killed; says the address on stdout.
#[expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "the endpoint is another machine; its line on stdout is its interface"
)]
pub(crate) fn serve(identity: Option<&Identity>) -> Result<()> {
    let tls = identity.map(server_config).transpose()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    io::stdout().flush()?;
    let shared = Arc::new(Shared::default());
    loop {
        let (stream, _) = listener.accept()?;
        if shared.connections.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS_MAX {
            shared.connections.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        stream.set_nodelay(true)?;
        let (shared, tls) = (Arc::clone(&shared), tls.clone());
        std::thread::spawn(move || {
            // A client that hangs up is no concern of ours.
            shared.welcome(stream, tls).ok();
            shared.connections.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

fn server_config(identity: &Identity) -> Result<Arc<ServerConfig>> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&identity.certificate)?.collect();
    let key = PrivateKeyDer::from_pem_file(&identity.key)?;
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain?, key)?;
    Ok(Arc::new(config))
}

impl Shared {
    fn welcome(&self, mut stream: TcpStream, tls: Option<Arc<ServerConfig>>) -> Result<()> {
        let Some(config) = tls else {
            return self.serve(stream);
        };
        // Being steered is done without TLS, by a client that has none.
        let mut first = [0];
        if stream.peek(&mut first)? == 1 && first[0] != TLS_HANDSHAKE {
            return self.serve(stream);
        }
        let mut session = ServerConnection::new(config)?;
        session.complete_io(&mut stream)?;
        self.serve(StreamOwned::new(session, stream))
    }

    /// One connection, request after request.
    fn serve(&self, stream: impl Read + Write) -> Result<()> {
        let mut stream = BufReader::with_capacity(64 << 10, stream);
        let mut scratch = vec![0; 256 << 10];
        while let Some(request) = Request::read(&mut stream, &mut scratch)? {
            let answer = self.answer(&request);
            stream.get_mut().write_all(answer.head().as_bytes())?;
            stream.get_mut().write_all(&answer.body)?;
            stream.get_mut().flush()?;
            if request.is_last {
                break;
            }
        }
        Ok(())
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a slow store is slow in real time"
    )]
    fn answer(&self, request: &Request) -> Answer {
        if request.path == CONTROL_PATH {
            return self.control(request);
        }
        let (counter, bytes) = match request.method.as_str() {
            "PUT" => (&self.counts.put, request.body.len),
            "GET" if request.key().is_empty() => (&self.counts.list, 0),
            "GET" => (&self.counts.get, 0),
            "HEAD" => (&self.counts.head, 0),
            _ => (&self.counts.delete, 0),
        };
        counter.fetch_add(1, Ordering::SeqCst);
        self.counts
            .put_bytes
            .fetch_add(bytes as u64, Ordering::SeqCst);
        let delay_ms = self.delay_ms.load(Ordering::SeqCst);
        if delay_ms > 0 {
            std::thread::sleep(Duration::from_millis(delay_ms));
        }
        let mut objects = self.objects.lock().expect("no panic holds the lock");
        match request.method.as_str() {
            "PUT" => self.put(&mut objects, request),
            "GET" if request.key().is_empty() => list(&objects, request),
            "GET" | "HEAD" => get(&objects, request),
            "DELETE" => {
                objects.remove(request.key());
                Answer::bare("204 No Content")
            }
            _ => Answer::error("405 Method Not Allowed", "MethodNotAllowed"),
        }
    }

    fn put(&self, objects: &mut BTreeMap<String, Object>, request: &Request) -> Answer {
        let key = request.key();
        let found = objects.get(key);
        if request.if_none_match && found.is_some() {
            return Answer::error("412 Precondition Failed", "PreconditionFailed");
        }
        if let Some(wanted) = &request.if_match {
            match found {
                None => return Answer::error("404 Not Found", "NoSuchKey"),
                Some(found) if found.etag != *wanted => {
                    return Answer::error("412 Precondition Failed", "PreconditionFailed");
                }
                Some(_) => {}
            }
        }
        let version = self.versions.fetch_add(1, Ordering::SeqCst);
        let object = Object {
            body: request.body.kept.as_deref().map(Arc::from),
            len: request.body.len,
            etag: format!("\"{version:032x}\""),
        };
        let answer = Answer::bare("200 OK").with_etag(&object.etag);
        objects.insert(key.to_owned(), object);
        answer
    }

    fn control(&self, request: &Request) -> Answer {
        if let Some(("delay_ms", value)) = request.query.split_once('=')
            && let Ok(value) = value.parse()
        {
            self.delay_ms.store(value, Ordering::SeqCst);
        }
        let text = serde_json::to_string(&self.counts.snapshot()).expect("numbers by name");
        Answer::with_body("200 OK", text.into_bytes())
    }
}

fn get(objects: &BTreeMap<String, Object>, request: &Request) -> Answer {
    let Some(object) = objects.get(request.key()) else {
        return Answer::error("404 Not Found", "NoSuchKey");
    };
    if request.method == "HEAD" {
        let bare = Answer::bare("200 OK").with_etag(&object.etag);
        return Answer {
            len: object.len,
            ..bare
        };
    }
    let Some(body) = &object.body else {
        return Answer::error("501 Not Implemented", "SegmentsAreNotKept");
    };
    let Some(range) = &request.range else {
        return Answer::with_body("200 OK", body.to_vec()).with_etag(&object.etag);
    };
    let Some((start, end)) = bounds(range, body.len()) else {
        return Answer::error("416 Range Not Satisfiable", "InvalidRange");
    };
    let mut answer = Answer::with_body("206 Partial Content", body[start..end].to_vec());
    let len = body.len();
    let last = end - 1;
    write!(
        answer.headers,
        "Content-Range: bytes {start}-{last}/{len}\r\n"
    )
    .expect("a String");
    answer.with_etag(&object.etag)
}

/// Of `bytes=1-2`, `bytes=1-` and `bytes=-2`.
fn bounds(range: &str, len: usize) -> Option<(usize, usize)> {
    let (start, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let (start, end) = match (start, last) {
        ("", suffix) => (len.saturating_sub(suffix.parse().ok()?), len),
        (start, "") => (start.parse().ok()?, len),
        (start, last) => (start.parse().ok()?, last.parse::<usize>().ok()? + 1),
    };
    let end = end.min(len);
    (start < end).then_some((start, end))
}

fn list(objects: &BTreeMap<String, Object>, request: &Request) -> Answer {
    let wanted = |name: &str| {
        let mut pairs = request.query.split('&').filter_map(|it| it.split_once('='));
        let found = pairs.find(|(key, _)| *key == name);
        found.map_or_else(String::new, |(_, value)| decoded(value))
    };
    let (prefix, after) = (wanted("prefix"), wanted("start-after"));
    let rows = objects
        .iter()
        .filter(|(key, _)| key.starts_with(&prefix) && **key > after)
        .take(LISTED_MAX);
    let mut text = "<ListBucketResult><IsTruncated>false</IsTruncated>".to_owned();
    for (key, object) in rows {
        let (len, etag) = (object.len, object.etag.replace('"', "&quot;"));
        write!(text, "<Contents><Key>{key}</Key><Size>{len}</Size><ETag>{etag}</ETag><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>").expect("a String");
    }
    text.push_str("</ListBucketResult>");
    Answer::with_body("200 OK", text.into_bytes())
}

fn decoded(text: &str) -> String {
    text.replace("%2F", "/").replace("%2f", "/")
}

impl Request {
    /// None: the client has hung up between two requests.
    fn read(stream: &mut impl BufRead, scratch: &mut [u8]) -> Result<Option<Self>> {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let method = words.next().context("a request has a method")?.to_owned();
        let target = words.next().context("a request has a target")?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut request = Self {
            method,
            path: path.to_owned(),
            query: query.to_owned(),
            ..Self::default()
        };
        for _ in 0..HEADERS_MAX {
            line.clear();
            stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            request.header(name, value.trim())?;
        }
        request.read_body(stream, scratch)?;
        Ok(Some(request))
    }

    fn header(&mut self, name: &str, value: &str) -> Result<()> {
        match name.to_ascii_lowercase().as_str() {
            "content-length" => self.body.len = value.parse()?,
            "if-none-match" => self.if_none_match = value == "*",
            "if-match" => self.if_match = Some(value.to_owned()),
            "connection" => self.is_last = value.eq_ignore_ascii_case("close"),
            "range" => self.range = Some(value.to_owned()),
            "transfer-encoding" => bail!("a body without a length"),
            _ => {}
        }
        Ok(())
    }

    fn read_body(&mut self, stream: &mut impl Read, scratch: &mut [u8]) -> Result<()> {
        ensure!(
            self.body.len <= BODY_BYTES_MAX,
            "a body of {}",
            self.body.len
        );
        if self.body.len <= KEPT_SEGMENT_BYTES_MAX || !self.path.contains("/seg/") {
            let mut body = vec![0; self.body.len];
            stream.read_exact(&mut body)?;
            self.body.kept = Some(body);
            return Ok(());
        }
        let mut left = self.body.len;
        while left > 0 {
            let piece = left.min(scratch.len());
            stream.read_exact(&mut scratch[..piece])?;
            left -= piece;
        }
        Ok(())
    }

    /// Behind the bucket; empty for requests about the bucket itself.
    fn key(&self) -> &str {
        let path = self.path.trim_start_matches('/');
        path.split_once('/').map_or("", |(_, key)| key)
    }
}

impl Answer {
    fn bare(status: &'static str) -> Self {
        Self::with_body(status, Vec::new())
    }

    fn with_body(status: &'static str, body: Vec<u8>) -> Self {
        Self {
            status,
            headers: String::new(),
            len: body.len(),
            body,
        }
    }

    fn error(status: &'static str, code: &str) -> Self {
        let body = format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>");
        Self::with_body(status, body.into_bytes())
    }

    fn with_etag(mut self, etag: &str) -> Self {
        write!(self.headers, "ETag: {etag}\r\n").expect("a String");
        self
    }

    fn head(&self) -> String {
        let (status, headers, len) = (self.status, &self.headers, self.len);
        format!(
            "HTTP/1.1 {status}\r\n{headers}Content-Length: {len}\r\n\
             Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(shared: &Shared, text: &str) -> (String, Vec<u8>) {
        let mut stream = text.as_bytes();
        let request = Request::read(&mut stream, &mut [0; 64]);
        let request = request.expect("well formed").expect("one request");
        let answer = shared.answer(&request);
        (answer.head(), answer.body)
    }

    #[test]
    fn conditions_mean_what_s3_says() {
        let shared = Shared::default();
        let create = "PUT /b/k HTTP/1.1\r\nIf-None-Match: *\r\nContent-Length: 3\r\n\r\nabc";
        let (first, _) = ask(&shared, create);
        assert!(first.starts_with("HTTP/1.1 200"), "{first}");
        assert!(ask(&shared, create).0.starts_with("HTTP/1.1 412"));
        let etag = first.lines().find_map(|line| line.strip_prefix("ETag: "));
        let etag = etag.expect("a version");
        let replace =
            format!("PUT /b/k HTTP/1.1\r\nIf-Match: {etag}\r\nContent-Length: 2\r\n\r\nde");
        assert!(ask(&shared, &replace).0.starts_with("HTTP/1.1 200"));
        assert!(ask(&shared, &replace).0.starts_with("HTTP/1.1 412"));
        let ranged = ask(&shared, "GET /b/k HTTP/1.1\r\nRange: bytes=1-1\r\n\r\n");
        assert!(ranged.0.contains("Content-Range: bytes 1-1/2\r\n"));
        assert_eq!(ranged.1, b"e");
        let listed = ask(&shared, "GET /b?list-type=2&prefix=k HTTP/1.1\r\n\r\n").1;
        assert!(String::from_utf8_lossy(&listed).contains("<Key>k</Key>"));
        ask(&shared, "DELETE /b/k HTTP/1.1\r\n\r\n");
        let gone = ask(&shared, "GET /b/k HTTP/1.1\r\n\r\n");
        assert!(gone.0.starts_with("HTTP/1.1 404"));
        assert_eq!(shared.counts.snapshot()["put"], 4);
    }

    #[test]
    fn large_segments_are_counted_and_dropped() {
        let shared = Shared::default();
        let body = "x".repeat(5000);
        let put = format!("PUT /b/nbd/a/seg/1 HTTP/1.1\r\nContent-Length: 5000\r\n\r\n{body}");
        assert!(ask(&shared, &put).0.starts_with("HTTP/1.1 200"));
        let head = ask(&shared, "HEAD /b/nbd/a/seg/1 HTTP/1.1\r\n\r\n");
        assert!(head.0.contains("Content-Length: 5000\r\n"));
        let got = ask(&shared, "GET /b/nbd/a/seg/1 HTTP/1.1\r\n\r\n");
        assert!(got.0.starts_with("HTTP/1.1 501"));
        assert_eq!(shared.counts.snapshot()["put_bytes"], 5000);
    }
}

//! The least HTTP client that can ask the API: one request per connection, JSON back.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Longer than any drain in these tests; a server that hangs fails the test instead of stopping it.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(120);

/// Status and body.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub body: String,
}

impl Response {
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.body).with_context(|| format!("no JSON: {}", self.body))
    }
}

/// Asks and waits for the whole answer.
pub fn ask(address: SocketAddr, method: &str, path: &str, body: Option<&str>) -> Result<Response> {
    let mut stream = TcpStream::connect(address).context("connecting to the API")?;
    stream.set_read_timeout(Some(ANSWER_WAIT_MAX))?;
    let body = body.unwrap_or_default();
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n");
    request.push_str("Connection: close\r\nContent-Type: application/json\r\n");
    request.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse(&String::from_utf8(answer)?)
}

fn parse(answer: &str) -> Result<Response> {
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    let is_chunked = head
        .lines()
        .any(|line| line.eq_ignore_ascii_case("transfer-encoding: chunked"));
    let body = if is_chunked {
        unchunked(body)?
    } else {
        body.to_owned()
    };
    Ok(Response { status, body })
}

fn unchunked(mut body: &str) -> Result<String> {
    let mut whole = String::new();
    loop {
        let (length, rest) = body
            .split_once("\r\n")
            .context("a chunk without a length")?;
        let length = usize::from_str_radix(length.trim(), 16)?;
        if length == 0 {
            return Ok(whole);
        }
        ensure!(rest.len() >= length + 2, "a chunk that is cut off");
        whole.push_str(&rest[..length]);
        body = &rest[length + 2..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_body_are_read() {
        let plain = parse("HTTP/1.1 409 Conflict\r\nContent-Length: 2\r\n\r\n{}").expect("plain");
        assert_eq!((plain.status, plain.body.as_str()), (409, "{}"));
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).expect("chunked").body, "abcd");
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(parse("hello").is_err());
        assert!(unchunked("ff\r\nabc\r\n").is_err());
    }
}

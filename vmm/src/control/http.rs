// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! HTTP/1.1 (RFC 9112) over a Unix socket, as little of it as one request and one answer a connection take.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

/// The most that a request line with its headers, or a status line with its, may have.
const MAX_HEAD: usize = 16 << 10;
/// The most that a request may carry.
const MAX_REQUEST: usize = 64 << 10;
/// The most that an answer may carry: metrics of every vector of a large machine are some MiB.
const MAX_ANSWER: usize = 64 << 20;
const MAX_HEADERS: usize = 32;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) body: Vec<u8>,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) kind: &'static str,
    pub(crate) body: Vec<u8>,
}

/// Why a message cannot be understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("the message ends too early")]
    Short,
    #[error("this is not HTTP: {0}")]
    Syntax(#[from] httparse::Error),
    #[error("the message is longer than {0} bytes")]
    TooLong(usize),
    #[error("Transfer-Encoding is not taken: say how long the body is with Content-Length")]
    Encoding,
    #[error("Content-Length is no number, or given twice")]
    Length,
}

/// A stream that is read within some time in all, however slowly the other side writes.
pub(crate) trait Patient: Read {
    /// Sets how long the next read may take.
    fn wait_at_most(&self, time: Duration) -> io::Result<()>;
}

impl Patient for std::os::unix::net::UnixStream {
    fn wait_at_most(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))
    }
}

fn read_some(stream: &mut impl Patient, buffer: &mut Vec<u8>, end: Option<Instant>) -> Result<(), HttpError> {
    if let Some(end) = end {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        stream.wait_at_most(left)?;
    }
    let mut chunk = [0; 4096];
    match stream.read(&mut chunk)? {
        0 => Err(HttpError::Short),
        n => {
            buffer.extend_from_slice(chunk.get(..n).unwrap_or_default());
            Ok(())
        }
    }
}

/// How long the body is.
fn body_length(headers: &[httparse::Header<'_>], most: usize) -> Result<usize, HttpError> {
    let named =
        |name: &'static str| headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
    if named("transfer-encoding").next().is_some() {
        return Err(HttpError::Encoding);
    }
    let mut lengths = named("content-length");
    let Some(header) = lengths.next() else { return Ok(0) };
    if lengths.next().is_some() || !header.value.iter().all(u8::is_ascii_digit) {
        return Err(HttpError::Length);
    }
    let text = std::str::from_utf8(header.value).map_err(|_| HttpError::Length)?;
    let length = text.parse().map_err(|_| HttpError::Length)?;
    if length > most { Err(HttpError::TooLong(most)) } else { Ok(length) }
}

/// Reads until `head` has found the end of the headers, and the body after them. Returns what `head` made of the headers, and the body.
fn read_message<T>(
    stream: &mut impl Patient,
    patience: Option<Duration>,
    most: usize,
    head: impl Fn(&[u8]) -> Result<Option<(T, usize, usize)>, HttpError>,
) -> Result<(T, Vec<u8>), HttpError> {
    let end = patience.map(|patience| Instant::now() + patience);
    let mut buffer = Vec::new();
    let (head, start, length) = loop {
        if let Some(found) = head(&buffer)? {
            break found;
        }
        if buffer.len() > MAX_HEAD {
            return Err(HttpError::TooLong(MAX_HEAD));
        }
        read_some(stream, &mut buffer, end)?;
    };
    let all = start + length.min(most);
    while buffer.len() < all {
        read_some(stream, &mut buffer, end)?;
    }
    buffer.truncate(all);
    Ok((head, buffer.split_off(start)))
}

/// Reads a request, within `patience` in all.
pub(crate) fn read_request(stream: &mut impl Patient, patience: Duration) -> Result<Request, HttpError> {
    let ((method, path), body) = read_message(stream, Some(patience), MAX_REQUEST, |bytes| {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let httparse::Status::Complete(start) = request.parse(bytes)? else { return Ok(None) };
        let length = body_length(request.headers, MAX_REQUEST)?;
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        Ok(Some(((text(request.method), text(request.path)), start, length)))
    })?;
    Ok(Request { method, path, body })
}

/// Reads an answer: its status and its body.
pub(crate) fn read_answer(stream: &mut impl Patient) -> Result<(u16, Vec<u8>), HttpError> {
    read_message(stream, None, MAX_ANSWER, |bytes| {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut answer = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(start) = answer.parse(bytes)? else { return Ok(None) };
        let length = body_length(answer.headers, MAX_ANSWER)?;
        Ok(Some((answer.code.unwrap_or(0), start, length)))
    })
}

/// Writes a request.
pub(crate) fn write_request(stream: &mut impl Write, request: &Request) -> io::Result<()> {
    let Request { method, path, body } = request;
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: doorbell\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body].concat())
}

/// Writes an answer.
pub(crate) fn write_answer(stream: &mut impl Write, answer: &Answer) -> io::Result<()> {
    let Answer { status, kind, body } = answer;
    let reason = match status {
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    };
    let head = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes that come so many at a time.
    struct Slow<'a>(&'a [u8], usize);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(buffer.len()).min(self.0.len());
            let (now, later) = self.0.split_at(n);
            buffer[..n].copy_from_slice(now);
            self.0 = later;
            Ok(n)
        }
    }

    impl Patient for Slow<'_> {
        fn wait_at_most(&self, _: Duration) -> io::Result<()> {
            Ok(())
        }
    }

    const LONG: Duration = Duration::from_secs(600);

    fn request(bytes: &[u8]) -> Result<Request, HttpError> {
        read_request(&mut Slow(bytes, 4096), LONG)
    }

    #[test]
    fn what_is_written_is_read_however_it_arrives() {
        let request = Request { method: "PUT".into(), path: "/vm/pause".into(), body: b"{}".to_vec() };
        let answer = Answer { status: 409, kind: "application/json", body: b"{\"error\":\"x\"}".to_vec() };
        for chunk in [1, 2, 7, 4096] {
            let mut bytes = Vec::new();
            write_request(&mut bytes, &request).unwrap();
            assert_eq!(read_request(&mut Slow(&bytes, chunk), LONG).unwrap(), request);
            let mut bytes = Vec::new();
            write_answer(&mut bytes, &answer).unwrap();
            assert_eq!(read_answer(&mut Slow(&bytes, chunk)).unwrap(), (409, answer.body.clone()));
        }
    }

    #[test]
    fn what_is_no_request_is_said() {
        for (text, word) in [
            ("", "too early"),
            ("GET / HTTP/1.1\r\n", "too early"),
            ("hello\r\n\r\n", "not HTTP"),
            ("GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab", "too early"),
            ("GET / HTTP/1.1\r\nContent-Length: +5\r\n\r\nabcde", "no number"),
            ("GET / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n", "no number"),
            ("GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na", "twice"),
            ("GET / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n", "longer than"),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "Content-Length"),
        ] {
            let error = request(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(word), "{text:?}: {error}");
        }
        let endless = [b"GET /".as_slice(), &[b'a'; 20 << 10]].concat();
        assert!(matches!(request(&endless), Err(HttpError::TooLong(_))));
    }

    #[test]
    fn who_writes_too_slowly_is_not_waited_for() {
        let error = read_request(&mut Slow(b"GET / HTTP/1.1\r\n\r\n", 1), Duration::ZERO).unwrap_err();
        assert!(matches!(error, HttpError::Io(e) if e.kind() == io::ErrorKind::TimedOut));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512), chunk in 1_usize..64) {
            let _ = read_request(&mut Slow(&bytes, chunk), LONG);
            let _ = read_answer(&mut Slow(&bytes, chunk));
        }
    }
}

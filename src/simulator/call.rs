//! Calls between services: HTTP/1.1 over loopback, one request per connection, found by name.
//!
//! A service writes its address into the shop's folder; a caller reads it anew when a call fails, so that a restarted
//! service may listen anywhere.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::Error;

/// How long a caller waits for an answer. Shorter than a visitor's patience, longer than a slow service.
pub const PATIENCE: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);
/// Longest head of a request or an answer that is read.
const HEAD_BYTES_MAX: u64 = 8 * 1024;

/// The trace a request belongs to (W3C `traceparent`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    pub trace_id: [u8; 16],
    pub span_id: [u8; 8],
}

impl TraceContext {
    fn header(&self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        format!("00-{}-{}-01", hex(&self.trace_id), hex(&self.span_id))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('-').skip(1);
        Some(Self {
            trace_id: unhex(parts.next()?)?,
            span_id: unhex(parts.next()?)?,
        })
    }
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

fn address_file(folder: &Path, service: &str) -> PathBuf {
    folder.join(format!("{service}.address"))
}

/// Listens on a free port and tells the others.
pub fn listen(folder: &Path, service: &str) -> Result<TcpListener, Error> {
    let listener =
        TcpListener::bind(("127.0.0.1", 0)).map_err(Error::system("cannot listen on the loopback address"))?;
    let address = listener
        .local_addr()
        .map_err(Error::system("cannot learn the port listened on"))?;
    let path = address_file(folder, service);
    let fresh = path.with_extension("address.new");
    fs::write(&fresh, address.to_string()).map_err(Error::path("cannot write", &fresh))?;
    fs::rename(&fresh, &path).map_err(Error::path("cannot write", &path))?;
    Ok(listener)
}

/// Calls a service and returns its status code.
pub fn call(folder: &Path, service: &str, operation: &str, trace: TraceContext) -> io::Result<u16> {
    let address: SocketAddr = fs::read_to_string(address_file(folder, service))?
        .parse()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not an address"))?;
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let head = format!(
        "GET /{operation} HTTP/1.1\r\nhost: {service}\r\ntraceparent: {}\r\nconnection: close\r\n\r\n",
        trace.header()
    );
    stream.write_all(head.as_bytes())?;
    let mut first = String::new();
    BufReader::new(stream.take(HEAD_BYTES_MAX)).read_line(&mut first)?;
    first
        .split_ascii_whitespace()
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "no status line"))
}

/// Reads a request's head and returns the trace it belongs to, if it names one.
pub fn read_request(stream: &TcpStream) -> io::Result<Option<TraceContext>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut trace = None;
    let mut reader = BufReader::new(stream.take(HEAD_BYTES_MAX));
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            return Ok(trace);
        }
        if let Some(value) = line.strip_prefix("traceparent:") {
            trace = TraceContext::parse(value);
        }
    }
}

/// Answers a request.
pub fn respond(mut stream: &TcpStream, status: u16) -> io::Result<()> {
    let reason = match status {
        200 => "OK",
        502 => "Bad Gateway",
        _ => "Internal Server Error",
    };
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "HTTP/1.1 {status} {reason}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    )
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const TRACE: TraceContext = TraceContext {
        trace_id: [0xab; 16],
        span_id: [7; 8],
    };

    #[test]
    fn a_call_carries_its_trace_and_brings_the_status_back() {
        let folder = tempfile::tempdir().unwrap();
        let listener = listen(folder.path(), "cart").unwrap();
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let trace = read_request(&stream).unwrap();
            respond(&stream, 502).unwrap();
            trace
        });
        assert_eq!(call(folder.path(), "cart", "show", TRACE).unwrap(), 502);
        assert_eq!(server.join().unwrap(), Some(TRACE));
    }

    #[test]
    fn a_service_that_is_not_there_fails_at_once() {
        let folder = tempfile::tempdir().unwrap();
        assert!(call(folder.path(), "cart", "show", TRACE).is_err());
        drop(listen(folder.path(), "cart").unwrap());
        assert!(call(folder.path(), "cart", "show", TRACE).is_err());
    }

    #[test]
    fn what_is_no_trace_is_none() {
        for text in ["", "00", "00-zz-11-01", "00-é-é-01"] {
            assert_eq!(TraceContext::parse(text), None, "{text}");
        }
    }
}

//! One authenticated connection to one broker: frames there, frames back, in order.
//!
//! Knows of requests only their header. A connection that has failed is of no further use: its owner opens another.

mod sasl;
mod tls;

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs},
    time::{Duration, Instant},
};

use openssl::ssl::SslStream;
use socket2::{SockRef, TcpKeepalive};

use super::wire::Body;
use crate::{Error, KafkaConfig};

const WHAT: &str = "broker connection";
/// The longest silence while an answer is due: far above the wait that a fetch asks for, and below the time after which a partition
/// without records is taken for idle, which one that cannot be read must not be.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer that is believed. A fetch asks for a few megabytes.
const FRAME_BYTES_MAX: usize = 256 << 20;
/// Where an address names none, as librdkafka has it.
const DEFAULT_PORT: u16 = 9092;
const KEEPALIVE_TIME: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

enum Stream {
    Plain(TcpStream),
    Tls(SslStream<TcpStream>),
}

impl Stream {
    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(session) => session.get_ref(),
        }
    }

    fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.read_exact(bytes),
            Self::Tls(session) => session.read_exact(bytes),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.write_all(bytes),
            Self::Tls(session) => session.write_all(bytes),
        }
    }
}

/// One authenticated connection to one broker.
pub(super) struct Connection {
    /// As people know it.
    address: String,
    client_id: String,
    stream: Stream,
    timeout: Duration,
    correlation: i32,
    /// Correlation ids of what has not been answered, oldest first.
    outstanding: VecDeque<i32>,
    /// The last request, kept for its memory.
    request: Vec<u8>,
    /// Whether the broker has answered anything: until then it may want something else of this client.
    answered: bool,
    /// What it may want.
    demand: &'static str,
}

impl Connection {
    /// Resolves `host:port`, tries its addresses in turn, and does TLS and SASL as `config` says.
    ///
    /// Each step waits for what is left of `timeout`; resolving takes as long as the system lets it.
    ///
    /// # Errors
    /// [`Error::Config`] when the configuration cannot work, else retriable: it may pass, or be mended elsewhere.
    pub fn open(config: &KafkaConfig, client_id: &str, address: &str, timeout: Duration) -> Result<Self, Error> {
        let deadline = Instant::now() + timeout;
        let (host, port) = host_and_port(address)?;
        let socket = connect(host, port, deadline)
            .map_err(|error| Error::retriable(WHAT, format!("{address} cannot be reached: {error}")))?;
        let stream = match &config.tls {
            None => Stream::Plain(socket),
            Some(tls) => Stream::Tls(tls::handshake(tls, host, address, socket)?),
        };
        let demand = match (&config.tls, &config.sasl) {
            (None, None) => {
                "TLS or SASL: set tls or sasl as its listener has it, or use the port of a plaintext listener"
            }
            (None, Some(_)) => "TLS: set tls, or use the port of a SASL listener without TLS",
            (Some(_), None) => "SASL or a client's certificate: set sasl, or tls.certificate_file and tls.key_file",
            (Some(_), Some(_)) => "a client's certificate: set tls.certificate_file and tls.key_file",
        };
        let mut connection = Self {
            address: address.to_owned(),
            client_id: client_id.to_owned(),
            stream,
            timeout,
            correlation: 0,
            outstanding: VecDeque::new(),
            request: Vec::new(),
            answered: false,
            demand,
        };
        if let Some(sasl) = &config.sasl {
            sasl::authenticate(&mut connection, sasl, deadline)?;
        }
        connection.wait_at_most(ANSWER_TIMEOUT)?;
        Ok(connection)
    }

    /// Sends a request with header version 1, and does not wait for its answer. Returns the correlation id.
    pub fn send(&mut self, api_key: i16, api_version: i16, body: &Body) -> Result<i32, Error> {
        let correlation = self.correlation;
        self.correlation = (correlation + 1) & i32::MAX;
        let mut request = Body(std::mem::take(&mut self.request));
        request.0.clear();
        request
            .i32(0)
            .i16(api_key)
            .i16(api_version)
            .i32(correlation)
            .string(&self.client_id);
        request.0.extend_from_slice(&body.0);
        let length = request.0.len() - size_of::<i32>();
        request.0[..size_of::<i32>()].copy_from_slice(&(length as i32).to_be_bytes());
        self.request = request.0;
        // In one piece: without delay on the socket, each write is a packet.
        self.stream
            .write_all(&self.request)
            .map_err(|error| self.failed(&error))?;
        self.outstanding.push_back(correlation);
        Ok(correlation)
    }

    /// Waits for the answer to the oldest request that has none.
    ///
    /// The frame behind its length, correlation id first, comes to stand at the front of `buffer`; returns its length. `buffer`
    /// only grows: what stands behind the frame is of older ones.
    pub fn receive(&mut self, buffer: &mut Vec<u8>) -> Result<usize, Error> {
        let Some(due) = self.outstanding.front().copied() else {
            let reason = format!("no request to {} is waiting for an answer", self.address);
            return Err(Error::retriable(WHAT, reason));
        };
        let mut prefix = [0; size_of::<i32>()];
        self.stream
            .read_exact(&mut prefix)
            .map_err(|error| self.failed(&error))?;
        let length = match usize::try_from(i32::from_be_bytes(prefix)) {
            Ok(length) if (size_of::<i32>()..=FRAME_BYTES_MAX).contains(&length) => length,
            _ => return Err(self.alien(prefix)),
        };
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        let frame = &mut buffer[..length];
        self.stream.read_exact(frame).map_err(|error| self.failed(&error))?;
        match frame.first_chunk().copied().map(i32::from_be_bytes) {
            Some(given) if given == due => {}
            given => {
                let given = given.unwrap_or_default();
                return Err(self.unfit(format!("it answers request {given} where {due} is due")));
            }
        }
        self.outstanding.pop_front();
        self.answered = true;
        Ok(length)
    }

    /// Sends a request and waits until `deadline` for its answer, of which it returns what follows the header.
    fn ask(&mut self, api_key: i16, api_version: i16, body: &Body, deadline: Instant) -> Result<Vec<u8>, Error> {
        self.wait_at_most(left(deadline))?;
        self.send(api_key, api_version, body)?;
        let mut answer = Vec::new();
        self.receive(&mut answer)?;
        Ok(answer.split_off(size_of::<i32>()))
    }

    /// A handle with which another thread can break a [`Self::receive`] that waits, by shutting it down.
    pub fn breaker(&self) -> io::Result<TcpStream> {
        self.stream.socket().try_clone()
    }

    fn wait_at_most(&mut self, timeout: Duration) -> Result<(), Error> {
        self.timeout = timeout;
        limit(self.stream.socket(), timeout).map_err(|error| self.failed(&error))
    }

    /// An answer that cannot be made sense of.
    fn unfit(&self, reason: impl std::fmt::Display) -> Error {
        Error::retriable(
            WHAT,
            format!("{} answers in a way that Kafka does not: {reason}", self.address),
        )
    }

    fn alien(&self, prefix: [u8; 4]) -> Error {
        // An alert of TLS: content type 21, version 3.x.
        if prefix[..2] == [21, 3] && matches!(self.stream, Stream::Plain(_)) {
            let reason = format!(
                "{} speaks TLS: set tls, or use the port of a plaintext listener",
                self.address
            );
            return Error::retriable(WHAT, reason);
        }
        self.unfit(format!("a frame of {} bytes", i32::from_be_bytes(prefix)))
    }

    fn failed(&self, error: &io::Error) -> Error {
        if let Some(error) = tls::broken_off(&self.address, error) {
            return error;
        }
        let address = &self.address;
        let reason = match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                format!("{address} does not answer: nothing for {} ms", self.timeout.as_millis())
            }
            ErrorKind::UnexpectedEof
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::Other => match self.answered {
                true => format!("{address} closed the connection"),
                false => format!(
                    "{address} closed the connection before it answered anything; it may demand {}",
                    self.demand
                ),
            },
            _ => format!("{address}: {error}"),
        };
        Error::retriable(WHAT, reason)
    }
}

fn limit(socket: &TcpStream, timeout: Duration) -> io::Result<()> {
    socket.set_read_timeout(Some(timeout))?;
    socket.set_write_timeout(Some(timeout))
}

/// Never zero, which would be for ever.
fn left(deadline: Instant) -> Duration {
    deadline
        .saturating_duration_since(Instant::now())
        .max(Duration::from_millis(1))
}

/// Takes `host`, `host:port` and `[v6]:port`, each also behind a `protocol://`, as librdkafka does, and `v6:port`.
fn host_and_port(address: &str) -> Result<(&str, u16), Error> {
    let unfit = |why: &str| Error::Config(format!("{address:?} is no address of a broker: {why}"));
    let bare = address.split_once("://").map_or(address, |(_, bare)| bare);
    let (host, port) = match bare.rsplit_once(':') {
        // Colons that are left over belong to an IPv6 address, or this is one without a port.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') || host.parse::<IpAddr>().is_ok() => {
            let port = port
                .parse()
                .map_err(|_| unfit("what stands behind the last colon is no port"))?;
            (host, port)
        }
        _ => (bare, DEFAULT_PORT),
    };
    let unbracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match unbracketed.unwrap_or(host) {
        "" => Err(unfit("it names no host")),
        host => Ok((host, port)),
    }
}

fn connect(host: &str, port: u16, deadline: Instant) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    let mut failure = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for (index, address) in addresses.iter().enumerate() {
        // One that does not answer leaves time for the others.
        let share = left(deadline) / (addresses.len() - index) as u32;
        match TcpStream::connect_timeout(address, share) {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                let keepalive = TcpKeepalive::new()
                    .with_time(KEEPALIVE_TIME)
                    .with_interval(KEEPALIVE_INTERVAL);
                SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
                limit(&socket, left(deadline))?;
                return Ok(socket);
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

#[cfg(test)]
mod tests;

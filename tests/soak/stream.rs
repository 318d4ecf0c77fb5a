//! TCP connections, one after the other, each byte compared at the far end.
//!
//! Lengths follow from the flow's key and the connection's number, so both ends know them. The
//! client sends its part and says that it is complete; then the server sends its own.
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::pattern::{Pattern, mix};
use crate::stop::Stop;
use crate::support::daemon::PATIENCE;
use crate::windows::Windows;

/// How a flow uses its connections.
pub(crate) struct Style {
    /// What it is called in the summary.
    pub(crate) name: &'static str,
    /// Bytes from client to server.
    request_bytes: RangeInclusive<u64>,
    /// Bytes from server to client.
    reply_bytes: RangeInclusive<u64>,
    /// Bytes of one write.
    write_bytes: RangeInclusive<u64>,
    /// `TCP_NODELAY`: each write leaves at once, as a packet of its own if it can.
    no_delay: bool,
}

/// All styles.
pub(crate) static STYLES: [Style; 3] = [
    Style {
        name: "bulk streams",
        request_bytes: 1..=16 << 20,
        reply_bytes: 0..=1 << 20,
        write_bytes: 65_536..=65_536,
        no_delay: false,
    },
    Style {
        name: "short connections",
        request_bytes: 0..=4_096,
        reply_bytes: 0..=16_384,
        write_bytes: 1..=16_384,
        no_delay: false,
    },
    Style {
        name: "odd writes",
        request_bytes: 1..=200_000,
        reply_bytes: 1..=200_000,
        write_bytes: 1..=3_000,
        no_delay: true,
    },
];

/// What arrived and was right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Connections that were complete.
    pub(crate) connections: u64,
    /// Bytes that were compared.
    pub(crate) bytes: u64,
}

/// A flow of connections, as both ends know it.
#[derive(Clone, Copy)]
pub(crate) struct Flow<'a> {
    /// How it behaves.
    pub(crate) style: &'a Style,
    /// What its bytes are cut from.
    pub(crate) pattern: &'a Pattern,
    /// Tells it from other flows.
    pub(crate) key: u64,
}

/// One connection, as both ends know it.
struct Connection<'a> {
    flow: Flow<'a>,
    number: u64,
    request_bytes: u64,
    reply_bytes: u64,
}

impl<'a> Flow<'a> {
    fn connection(self, number: u64) -> Connection<'a> {
        let mut rng = StdRng::seed_from_u64(mix(self.key, number));
        Connection {
            flow: self,
            number,
            request_bytes: rng.random_range(self.style.request_bytes.clone()),
            reply_bytes: rng.random_range(self.style.reply_bytes.clone()),
        }
    }

    /// The client: makes connections until the soak is over or one fails.
    pub(crate) fn ask(
        self,
        connect: impl Fn() -> io::Result<TcpStream>,
        stop: &Stop,
        windows: &Windows,
    ) -> Result<Counts, String> {
        let mut counts = Counts::default();
        while !stop.is_set() {
            let connection = self.connection(counts.connections);
            let began = Instant::now();
            let ask = || -> Result<(), String> {
                let mut stream = reach(&connect, windows)?;
                connection.prepare(&stream)?;
                connection.send(&mut stream, REQUEST, connection.request_bytes)?;
                connection.receive(&mut stream, REPLY, connection.reply_bytes)
            };
            match ask() {
                Ok(()) => {}
                // A server that is told "unreachable" before the last step of the handshake
                // forgets the connection (tcp_req_err in net/ipv4/tcp_ipv4.c), and resets it at the
                // next packet. If it had accepted it, it fails itself.
                Err(error)
                    if error.contains(RESET)
                        && windows.explain_unreachable(began, began + HANDSHAKE) =>
                {
                    continue;
                }
                Err(error) => return Err(connection.blame("client", &error)),
            }
            counts.connections += 1;
            counts.bytes += connection.reply_bytes;
        }
        Ok(counts)
    }

    /// The server: takes connections until one comes after `ended` was set, or one fails.
    pub(crate) fn serve(
        self,
        listener: &TcpListener,
        ended: &AtomicBool,
    ) -> Result<Counts, String> {
        let mut counts = Counts::default();
        loop {
            let connection = self.connection(counts.connections);
            let (mut stream, _) = listener
                .accept()
                .map_err(|error| connection.blame("server", &format!("no connection: {error}")))?;
            if ended.load(Relaxed) {
                return Ok(counts);
            }
            let mut serve = || -> Result<(), String> {
                connection.prepare(&stream)?;
                connection.receive(&mut stream, REQUEST, connection.request_bytes)?;
                connection.send(&mut stream, REPLY, connection.reply_bytes)
            };
            serve().map_err(|error| connection.blame("server", &error))?;
            counts.connections += 1;
            counts.bytes += connection.request_bytes;
        }
    }
}

/// What a handshake takes, with segments that are sent again.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How the system names ECONNRESET.
const RESET: &str = "Connection reset by peer";

/// Between two attempts where no route leads to the server.
const PAUSE: Duration = Duration::from_millis(100);

/// Connects. While a fault explains that no route leads there, it is tried again: the server has
/// seen nothing of it.
fn reach(
    connect: impl Fn() -> io::Result<TcpStream>,
    windows: &Windows,
) -> Result<TcpStream, String> {
    use io::ErrorKind::{HostUnreachable, NetworkUnreachable};
    loop {
        let began = Instant::now();
        match connect() {
            Ok(stream) => return Ok(stream),
            Err(error)
                if matches!(error.kind(), HostUnreachable | NetworkUnreachable)
                    && windows.explain_unreachable(began, Instant::now()) =>
            {
                sleep(PAUSE);
            }
            Err(error) => return Err(format!("no connection: {error}")),
        }
    }
}

/// The two directions of a connection carry different bytes.
const REQUEST: u64 = 1;
const REPLY: u64 = 2;

impl Connection<'_> {
    fn blame(&self, who: &str, error: &str) -> String {
        let (style, key) = (self.flow.style.name, self.flow.key);
        format!("{style}, flow {key}, connection {}, {who}: {error}", self.number)
    }

    fn prepare(&self, stream: &TcpStream) -> Result<(), String> {
        stream
            .set_nodelay(self.flow.style.no_delay)
            .and_then(|()| stream.set_read_timeout(Some(PATIENCE)))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
            .map_err(|error| format!("cannot prepare the socket: {error}"))
    }

    fn key(&self, direction: u64) -> u64 {
        mix(mix(self.flow.key, self.number), direction)
    }

    fn send(&self, stream: &mut TcpStream, direction: u64, bytes: u64) -> Result<(), String> {
        let key = self.key(direction);
        let mut rng = StdRng::seed_from_u64(key);
        let mut source = self.flow.pattern.stream(key);
        while source.position() < bytes {
            let write_bytes = rng.random_range(self.flow.style.write_bytes.clone());
            let chunk = source.take(write_bytes.min(bytes - source.position()));
            stream.write_all(chunk).map_err(|error| {
                format!("cannot send {bytes} bytes, stuck near {}: {error}", source.position())
            })?;
        }
        stream.shutdown(Shutdown::Write).map_err(|error| format!("cannot end: {error}"))
    }

    /// Compares what arrives until the far end says that it is complete.
    fn receive(&self, stream: &mut TcpStream, direction: u64, bytes: u64) -> Result<(), String> {
        let mut wanted = self.flow.pattern.stream(self.key(direction));
        let mut buffer = vec![0; 65_536];
        loop {
            let position = wanted.position();
            let length = match stream.read(&mut buffer) {
                Ok(0) if position == bytes => return Ok(()),
                Ok(0) => return Err(format!("{position} of {bytes} bytes arrived")),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(format!("broke at byte {position} of {bytes}: {error}")),
            };
            wanted.check(&buffer[..length]).map_err(|wrong| format!("{wrong}, of {bytes}"))?;
        }
    }
}

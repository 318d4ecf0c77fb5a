//! Sending datagrams and taking them, at a pace that the receiver can keep.
#![forbid(unsafe_code)]

use std::io;
use std::net::{SocketAddrV4, UdpSocket};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use flanneld::dataplane::sys::send::Sender;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::event::{PollFd, PollFlags, poll};

use crate::datagram::{Counts, Ledger, Sequence, Shape, TRAIN_NUMBERS};
use crate::stop::Stop;
use crate::windows::Windows;

/// Datagrams, or trains, and bytes of one burst at most. Sockets and queues have room for it, so
/// what is lost is lost to other traffic.
const BURST_SENDS: u32 = 256;
const BURST_BYTES: usize = 256 << 10;

/// After so long, what has not arrived yet is no longer waited for.
const LOST_AFTER: Duration = Duration::from_millis(500);

/// After so long, nothing that is not there is in a queue any more: a starved daemon may leave it there
/// far longer than anybody waits, and then be killed.
pub(crate) const UNDER_WAY: Duration = Duration::from_secs(2);

/// Bursts that begin within this time are told apart from later ones, but not from each other.
const SPAN: Duration = Duration::from_millis(100);

/// The longest pause between two bursts: the data path sleeps in some and stays awake in others.
const PAUSE_MS: u64 = 10;

/// The most that a datagram can have.
const DATAGRAM_BYTES: usize = 65_536;

/// How a datagram travels.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// As the payload of a UDP datagram.
    Udp,
    /// As the payload of an ICMP echo request, back as that of the reply.
    Echo,
}

/// Bytes of an ICMP echo header.
const ECHO_BYTES: usize = 8;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;

/// What a flow's two ends tell each other past the network.
#[derive(Default)]
pub(crate) struct Flight {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    sent: u64,
    arrived: u64,
    given_up: u64,
    /// One more than the highest number that was sent.
    limit: u64,
    spans: Vec<Span>,
    ended: bool,
}

/// Bursts that went out at about one time.
#[derive(Clone, Copy)]
struct Span {
    /// When the first began.
    from: Instant,
    /// When the last had landed.
    until: Instant,
    /// What the state said then.
    sent: u64,
    limit: u64,
}

impl State {
    /// How many of those that are missing were under way while a fault may have shown.
    fn excused(&self, ledger: &Ledger, windows: &Windows) -> u64 {
        let (mut excused, mut sent, mut limit) = (0, 0, 0);
        for span in &self.spans {
            if windows.explain(span.from, span.until + UNDER_WAY) {
                excused += span.sent - sent - ledger.count(limit..span.limit);
            }
            (sent, limit) = (span.sent, span.limit);
        }
        excused
    }
}

impl Flight {
    /// Before the datagrams go out, for they may be faster than the news of them.
    fn announce(&self, count: u64, limit: u64) {
        let mut state = self.state.lock().unwrap();
        state.sent += count;
        state.limit = limit;
    }

    /// Waits until all of the burst that began at `from` is there, or held for lost.
    fn land(&self, from: Instant) {
        let flying = |state: &mut State| state.arrived + state.given_up < state.sent;
        let state = self.state.lock().unwrap();
        let mut state = self.arrived.wait_timeout_while(state, LOST_AFTER, flying).unwrap().0;
        state.given_up = state.sent.saturating_sub(state.arrived);
        let span = Span { from, until: Instant::now(), sent: state.sent, limit: state.limit };
        match state.spans.last_mut() {
            Some(last) if from - last.from < SPAN => *last = Span { from: last.from, ..span },
            _ => state.spans.push(span),
        }
    }

    fn end(&self) {
        self.state.lock().unwrap().ended = true;
    }
}

/// Sends bursts until the soak is over.
pub(crate) fn send(
    sequence: Sequence<'_>,
    carrier: Carrier,
    socket: &UdpSocket,
    target: SocketAddrV4,
    flight: &Flight,
    stop: &Stop,
    windows: &Windows,
) -> Result<(), String> {
    let mut rng = StdRng::seed_from_u64(sequence.key);
    let mut sender = Sender::new(1, 1);
    let mut buffer = Vec::with_capacity(DATAGRAM_BYTES);
    let (mut sends, mut result) = (0, Ok(()));
    while result.is_ok() && !stop.is_set() {
        // As often short as long, by the powers of two.
        let most = 1 << rng.random_range(0..=BURST_SENDS.ilog2());
        let (began, mut burst_sends, mut burst_bytes) = (Instant::now(), 0, 0);
        while result.is_ok() && burst_sends < most && burst_bytes < BURST_BYTES {
            buffer.clear();
            let segment_bytes = fill(sequence, carrier, sends, flight, &mut buffer);
            let mut batch = sender.batch();
            batch.push(target, segment_bytes, [&buffer[..]]);
            result = match hand_over(|| batch.send(socket, 0), socket) {
                // Without a device or a route, what is refused is as lost as what is dropped.
                Err(error) if !windows.explain(Instant::now(), Instant::now()) => {
                    Err(format!("cannot send {} bytes: {error}", buffer.len()))
                }
                _ => Ok(()),
            };
            sends += 1;
            burst_sends += 1;
            burst_bytes += buffer.len();
        }
        flight.land(began);
        stop.wait(Duration::from_millis(rng.random_range(0..=PAUSE_MS)));
    }
    flight.end();
    result
}

/// Makes what goes out by call `number`: a datagram or a train; returns how the latter is cut.
fn fill(
    sequence: Sequence<'_>,
    carrier: Carrier,
    number: u64,
    flight: &Flight,
    buffer: &mut Vec<u8>,
) -> Option<u16> {
    if carrier == Carrier::Echo {
        // The kernel writes identifier and checksum itself.
        let [.., high, low] = number.to_be_bytes();
        buffer.extend_from_slice(&[ECHO_REQUEST, 0, 0, 0, 0, 0, high, low]);
    }
    let (first, count, segment_bytes) = match sequence.shape {
        Shape::Single(_) => (number, 1, None),
        Shape::Trains => {
            let train = sequence.train(number);
            (TRAIN_NUMBERS * number, train.count, Some(train.segment_bytes))
        }
    };
    flight.announce(count, first + count);
    for number in first..first + count {
        sequence.write(number, buffer);
    }
    segment_bytes
}

/// Calls `send` until the socket takes the message.
fn hand_over(
    mut send: impl FnMut() -> io::Result<usize>,
    socket: &UdpSocket,
) -> Result<(), io::Error> {
    loop {
        match send() {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(socket, PollFlags::OUT)], None)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Takes datagrams until the sender has ended and nothing comes any more.
pub(crate) fn receive(
    sequence: Sequence<'_>,
    carrier: Carrier,
    socket: &UdpSocket,
    flight: &Flight,
    windows: &Windows,
) -> Result<Counts, String> {
    socket.set_read_timeout(Some(LOST_AFTER)).map_err(|error| error.to_string())?;
    let mut ledger = Ledger::default();
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        let received = socket.recv(&mut buffer);
        let mut state = flight.state.lock().unwrap();
        match received {
            Ok(length) => {
                let datagram = match (carrier, &buffer[..length]) {
                    (Carrier::Echo, [ECHO_REPLY, rest @ ..]) => &rest[ECHO_BYTES - 1..],
                    (Carrier::Echo, other) => return Err(format!("no echo reply: {other:?}")),
                    (Carrier::Udp, datagram) => datagram,
                };
                ledger.enter(&sequence, state.limit, datagram);
                state.arrived += 1;
                flight.arrived.notify_all();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if state.ended {
                    let excused = state.excused(&ledger, windows);
                    return Ok(Counts { sent: state.sent, excused, ..ledger.counts });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("cannot receive: {error}")),
        }
    }
}

//! Traffic that runs while something happens: TCP streams whose bytes are compared, and probes
//! whose gaps are measured.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use super::daemon::PATIENCE;
use super::traffic::{End, Noise};

/// Bytes that a stream sends at once, and the pause until the next: 8 streams make 50 Mbit/s,
/// which leaves the machine time for what is tested.
const CHUNK_BYTES: usize = 8 * 1024;
const CHUNK_PAUSE: Duration = Duration::from_millis(10);

/// A probe leaves so often.
const PROBE_INTERVAL: Duration = Duration::from_millis(1);

/// Room for ten seconds of probes, which take up a kilobyte each.
const PROBES_BUFFER_BYTES: usize = 10 << 20;

/// Bytes of a probe: its number, and noise that comes of that.
const PROBE_BYTES: usize = 64;

/// How often a thread that waits for data looks whether it shall end.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Probes are on their way for so many looks after the last one at most, on a busy machine.
const LOOKS_FOR_PROBES: u32 = 20;

/// Streams and probes from one end to another, until [`Traffic::stop`].
#[derive(Debug)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    probes_sent: Arc<AtomicU64>,
    arrivals: Arc<Arrivals>,
    streams: Vec<Stream>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Arrivals {
    probes: Mutex<Vec<(u64, Instant)>>,
    arrived: Condvar,
}

#[derive(Debug)]
struct Stream {
    received_bytes: Arc<AtomicU64>,
    sender: JoinHandle<u64>,
    receiver: JoinHandle<()>,
}

/// What became of the traffic.
#[derive(Debug)]
pub struct Outcome {
    /// Bytes of TCP that arrived; each was compared.
    pub tcp_bytes: u64,
    /// Probes that left.
    pub probes_sent: u64,
    /// Those of them that arrived, each counted once.
    pub probes_received: u64,
    /// Probes that arrived twice or more.
    pub probes_doubled: u64,
    /// The longest time without a probe.
    pub longest_gap: Duration,
}

impl Outcome {
    /// Probes that left and did not arrive.
    pub fn probes_lost(&self) -> u64 {
        self.probes_sent - self.probes_received
    }
}

impl Traffic {
    /// Starts so many TCP streams, and the probes, and returns when all of them flow.
    pub fn start(from: End<'_>, to: End<'_>, streams: usize) -> Traffic {
        let stop = Arc::new(AtomicBool::new(false));
        let listener = to.netns.listen(SocketAddrV4::new(to.address, 0));
        let streams =
            (0..streams).map(|seed| Stream::start(from, &listener, seed as u64, &stop)).collect();
        let receiver = to.netns.udp(SocketAddrV4::new(to.address, 0));
        // What waited somewhere for a second or two comes all at once.
        set_socket_recv_buffer_size_force(&receiver, PROBES_BUFFER_BYTES).expect("we are root");
        let sender = from.netns.udp(SocketAddrV4::new(from.address, 0));
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        let mut traffic = Traffic {
            stop,
            probes_sent: Arc::default(),
            arrivals: Arc::default(),
            streams,
            threads: Vec::new(),
        };
        traffic.start_probes(sender, receiver);
        traffic.wait_for_probe_after(Instant::now());
        traffic.wait_for_all_streams();
        traffic
    }

    fn start_probes(&mut self, sender: UdpSocket, receiver: UdpSocket) {
        let (stop, sent) = (Arc::clone(&self.stop), Arc::clone(&self.probes_sent));
        self.threads.push(std::thread::spawn(move || {
            let started = Instant::now();
            while !stop.load(Relaxed) {
                let number = sent.load(Relaxed);
                // Refused by the kernel is lost as well: the gap tells.
                let _ = sender.send(&probe(number));
                sent.store(number + 1, Relaxed);
                let due = started + PROBE_INTERVAL * u32::try_from(number + 1).unwrap();
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        }));
        let (stop, arrivals) = (Arc::clone(&self.stop), Arc::clone(&self.arrivals));
        let sent = Arc::clone(&self.probes_sent);
        receiver.set_read_timeout(Some(LOOK_INTERVAL)).unwrap();
        self.threads.push(std::thread::spawn(move || {
            let mut got = [0; PROBE_BYTES + 1];
            // What is on its way when the senders end still arrives.
            let (mut quiet, mut arrived) = (0, 0);
            let looks = |arrived| if arrived < sent.load(Relaxed) { LOOKS_FOR_PROBES } else { 3 };
            while !stop.load(Relaxed) || quiet < looks(arrived) {
                match receiver.recv(&mut got) {
                    Ok(bytes) => {
                        let number = u64::from_le_bytes(*got.first_chunk().unwrap());
                        assert!(got[..bytes] == probe(number), "a probe arrived wrong: {got:?}");
                        arrivals.probes.lock().unwrap().push((number, Instant::now()));
                        arrivals.arrived.notify_all();
                        (quiet, arrived) = (0, arrived + 1);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => quiet += 1,
                    Err(error) => panic!("probes: {error}"),
                }
            }
        }));
    }

    /// Waits for the first probe that arrives after `since`; how long after it that was.
    pub fn wait_for_probe_after(&self, since: Instant) -> Duration {
        let deadline = Instant::now() + PATIENCE;
        let mut probes = self.arrivals.probes.lock().unwrap();
        loop {
            let first = probes.partition_point(|&(_, at)| at < since);
            if let Some(&(_, at)) = probes.get(first) {
                return at - since;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(probes);
                panic!("no probe arrives any more");
            }
            probes = self.arrivals.arrived.wait_timeout(probes, left).unwrap().0;
        }
    }

    /// Waits until each stream has delivered bytes that left after now.
    pub fn wait_for_all_streams(&self) {
        let deadline = Instant::now() + PATIENCE;
        // A buffer full of old bytes may come first.
        let wanted =
            |stream: &Stream| stream.received_bytes.load(Relaxed) + 20 * CHUNK_BYTES as u64;
        let wanted: Vec<u64> = self.streams.iter().map(wanted).collect();
        for (number, (stream, wanted)) in self.streams.iter().zip(wanted).enumerate() {
            while stream.received_bytes.load(Relaxed) < wanted {
                assert!(Instant::now() < deadline, "stream {number} stands still");
                assert!(!stream.receiver.is_finished(), "stream {number} broke");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Ends all traffic. Panics if a connection was reset, or a byte arrived wrong, or one of TCP
    /// not at all.
    pub fn stop(self) -> Outcome {
        self.stop.store(true, Relaxed);
        let mut tcp_bytes = 0;
        for (number, stream) in self.streams.into_iter().enumerate() {
            let sent = stream.sender.join().unwrap_or_else(|_| panic!("stream {number} broke"));
            stream.receiver.join().unwrap_or_else(|_| panic!("stream {number} broke"));
            assert_eq!(stream.received_bytes.load(Relaxed), sent, "bytes of stream {number}");
            tcp_bytes += sent;
        }
        for thread in self.threads {
            thread.join().unwrap();
        }
        let probes = self.arrivals.probes.lock().unwrap();
        let gaps = probes.windows(2).map(|pair| pair[1].1 - pair[0].1);
        let mut numbers: Vec<u64> = probes.iter().map(|&(number, _)| number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        Outcome {
            tcp_bytes,
            probes_sent: self.probes_sent.load(Relaxed),
            probes_received: numbers.len() as u64,
            probes_doubled: (probes.len() - numbers.len()) as u64,
            longest_gap: gaps.max().unwrap_or_default(),
        }
    }
}

impl Stream {
    fn start(from: End<'_>, listener: &TcpListener, seed: u64, stop: &Arc<AtomicBool>) -> Stream {
        let SocketAddr::V4(target) = listener.local_addr().unwrap() else { unreachable!() };
        let sender = from.netns.connect(target).expect("the peer listens");
        let (receiver, _) = listener.accept().unwrap();
        let received_bytes = Arc::new(AtomicU64::new(0));
        let (stop, received) = (Arc::clone(stop), Arc::clone(&received_bytes));
        Stream {
            received_bytes,
            sender: std::thread::spawn(move || send(sender, Noise::new(seed), &stop)),
            receiver: std::thread::spawn(move || receive(receiver, Noise::new(seed), &received)),
        }
    }
}

fn probe(number: u64) -> [u8; PROBE_BYTES] {
    let mut probe = [0; PROBE_BYTES];
    let (head, noise) = probe.split_at_mut(8);
    head.copy_from_slice(&number.to_le_bytes());
    Noise::new(number).fill(noise);
    probe
}

/// Sends until told to stop; how many bytes that were.
fn send(mut stream: TcpStream, mut noise: Noise, stop: &AtomicBool) -> u64 {
    let (mut chunk, mut sent_bytes) = ([0; CHUNK_BYTES], 0);
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    while !stop.load(Relaxed) {
        noise.fill(&mut chunk);
        stream.write_all(&chunk).expect("the connection lives");
        sent_bytes += CHUNK_BYTES as u64;
        std::thread::sleep(CHUNK_PAUSE);
    }
    sent_bytes
}

fn receive(mut stream: TcpStream, mut noise: Noise, received_bytes: &AtomicU64) {
    let (mut got, mut wanted) = ([0; CHUNK_BYTES], [0; CHUNK_BYTES]);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    loop {
        match stream.read_exact(&mut got) {
            Ok(()) => {}
            // Senders only send whole chunks.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return,
            Err(error) => panic!("the connection broke: {error}"),
        }
        noise.fill(&mut wanted);
        assert!(got == wanted, "bytes after {} arrived wrong", received_bytes.load(Relaxed));
        received_bytes.fetch_add(CHUNK_BYTES as u64, Relaxed);
    }
}

//! Real traffic between namespaces, compared byte for byte.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::admin::until;
use super::netns::Netns;

/// An end of a connection: a namespace and the address to use there.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    /// Where.
    pub netns: &'a Netns,
    /// The address there.
    pub address: Ipv4Addr,
}

/// Pseudo-random bytes that both ends can make: splitmix64.
#[derive(Clone, Debug)]
pub struct Noise(u64);

impl Noise {
    /// The same seed gives the same bytes.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next bytes. Whole buffers of a length that 8 divides join without a gap.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            chunk.copy_from_slice(&z.to_le_bytes()[..chunk.len()]);
        }
    }
}

const CHUNK: usize = 64 * 1024;

/// Sends `bytes` random bytes over one TCP connection from `from` to `to`, and panics unless
/// exactly those arrive. Returns how long it took.
pub fn tcp_transfer(from: End<'_>, to: End<'_>, bytes: usize) -> Duration {
    let listener = to.netns.listen(SocketAddrV4::new(to.address, 0));
    let SocketAddr::V4(target) = listener.local_addr().expect("it is bound") else {
        unreachable!("bound to IPv4")
    };
    let seed = u64::from(target.port());
    let started = Instant::now();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let (mut stream, _) = listener.accept().expect("somebody connects");
            stream.set_read_timeout(Some(Duration::from_secs(30))).expect("not zero");
            let (mut noise, mut position) = (Noise::new(seed), 0);
            let (mut wanted, mut got) = (vec![0; CHUNK], vec![0; CHUNK]);
            while position < bytes {
                let length = CHUNK.min(bytes - position);
                noise.fill(&mut wanted[..length]);
                stream.read_exact(&mut got[..length]).unwrap_or_else(|error| {
                    panic!("TCP broke after about {position} of {bytes} bytes: {error}")
                });
                if let Some(at) = (0..length).find(|&at| got[at] != wanted[at]) {
                    panic!("byte {} of {bytes} arrived wrong", position + at);
                }
                position += length;
            }
            assert_eq!(stream.read(&mut got).expect("a clean end"), 0, "more than was sent");
        });
        let mut stream = from.netns.connect(target).unwrap_or_else(|error| {
            // Nobody will connect any more: free the receiver, or the panic would wait for it.
            let _ = to.netns.connect(target);
            panic!("no TCP connection from {} to {target}: {error}", from.address)
        });
        stream.set_write_timeout(Some(Duration::from_secs(30))).expect("not zero");
        let (mut noise, mut left) = (Noise::new(seed), bytes);
        let mut chunk = vec![0; CHUNK];
        while left > 0 {
            let length = CHUNK.min(left);
            noise.fill(&mut chunk[..length]);
            stream.write_all(&chunk[..length]).expect("TCP takes the bytes");
            left -= length;
        }
        stream.shutdown(Shutdown::Write).expect("it is connected");
        receiver.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    started.elapsed()
}

/// Sends one UDP datagram of each of `sizes`, each answered before the next goes out, and panics
/// unless each arrives as it was sent. Sizes above the MTU travel as fragments.
pub fn udp_exchange(from: End<'_>, to: End<'_>, sizes: &[usize]) {
    let server = to.netns.udp(SocketAddrV4::new(to.address, 0));
    let client = from.netns.udp(SocketAddrV4::new(from.address, 0));
    let target = server.local_addr().expect("it is bound");
    let mut buffer = vec![0; 65_536];
    for (seed, &size) in sizes.iter().enumerate() {
        let mut payload = vec![0; size];
        Noise::new(seed as u64).fill(&mut payload);
        client.send_to(&payload, target).expect("the socket takes it");
        let (length, source) = server
            .recv_from(&mut buffer)
            .unwrap_or_else(|error| panic!("a datagram of {size} bytes was lost: {error}"));
        assert!(buffer[..length] == payload, "a datagram of {size} bytes arrived changed");
        assert_eq!(Some(source), client.local_addr().ok(), "the source address was changed");
        server.send_to(&payload, source).expect("the socket takes it");
        let (length, _) = client
            .recv_from(&mut buffer)
            .unwrap_or_else(|error| panic!("the answer of {size} bytes was lost: {error}"));
        assert!(buffer[..length] == payload, "the answer of {size} bytes arrived changed");
    }
}

/// `ping -f` from a namespace to an address: a question as soon as there is an answer, at least a
/// hundred each second. Ends when dropped. Nobody else may ping from there meanwhile.
#[derive(Debug)]
pub struct PingFlood {
    child: Child,
    /// Questions and answers before.
    before: (u64, u64),
}

impl PingFlood {
    /// Starts it.
    pub fn start(from: &Netns, to: Ipv4Addr) -> Self {
        let before = echoes(from);
        let mut command = from.command("ping");
        command.args(["-f", "-q", "-n", &to.to_string()]);
        let child = command.stdout(Stdio::null()).spawn().expect("ip netns exec starts");
        Self { child, before }
    }

    /// Waits until more answers arrive where it was started than have so far.
    pub fn wait_for_replies(&self, from: &Netns) {
        let (_, so_far) = echoes(from);
        until("pings are answered", || echoes(from).1, |&now| now > so_far);
    }

    /// Ends it; how many questions left where it was started, and how many of them had no answer.
    pub fn stop(mut self, from: &Netns) -> (u64, u64) {
        self.end();
        let (sent, answered) = echoes(from);
        let (sent, answered) = (sent - self.before.0, answered - self.before.1);
        (sent, sent - answered)
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for PingFlood {
    fn drop(&mut self) {
        self.end();
    }
}

/// Echo requests that a namespace has sent, and replies that it has got.
fn echoes(netns: &Netns) -> (u64, u64) {
    let counters = netns.counters();
    (counters.of("Icmp", "OutEchos"), counters.of("Icmp", "InEchoReps"))
}

/// Whether `count` pings from `netns` to `to` are all answered; `options` are `ping`'s, such as
/// `-s 1400 -M do`.
pub fn ping(netns: &Netns, to: Ipv4Addr, count: u32, options: &str) -> Result<(), String> {
    // One by one: of several, ping does not wait long for the last one, and a busy machine is slow.
    (0..count).try_for_each(|_| {
        let output = netns.try_exec(&format!("ping -n -q -W 5 -c 1 {options} {to}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(()) } else { Err(text) }
    })
}

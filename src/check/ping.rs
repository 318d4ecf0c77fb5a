//! ICMP echoes of chosen sizes that must not be fragmented: many at once over one socket.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Slice, Icmpv4Type, Ipv4HeaderSlice};
use futures::future::join_all;
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Bytes of an IPv4 and an ICMP header.
const HEADER_BYTES: u16 = 28;

/// The smallest probe: what every path of IPv4 carries (RFC 791, 3.2).
pub(super) const SMALL_BYTES: u16 = 68;

/// How long an answer is waited for. Paths are mostly faster by two orders of magnitude.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// So many sizes are tried at once when the largest is looked for.
const SIZES_AT_ONCE: u16 = 16;

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The echo, after this time.
    Reply(Duration),
    /// A router says that the packet is too large for its next link of `mtu` bytes.
    TooLarge { mtu: u16, router: Ipv4Addr },
    /// A router or the host says that there is no way.
    Unreachable { by: Ipv4Addr },
    /// The kernel did not send it.
    NotSent(io::ErrorKind),
    /// Nothing.
    Silence,
}

impl Answer {
    pub(super) fn is_reply(self) -> bool {
        matches!(self, Self::Reply(_))
    }
}

/// The largest packet that goes to a host and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PathMtu {
    /// In bytes.
    pub(super) bytes: u16,
    /// The router that said so; without one, larger packets vanish.
    pub(super) router: Option<Ipv4Addr>,
}

type Waiting = HashMap<u16, oneshot::Sender<Answer>>;

/// The socket and who waits at it.
pub(super) struct Pinger {
    shared: Arc<Shared>,
    receiver: JoinHandle<()>,
}

struct Shared {
    /// A raw one: `sendto` and `recv`, all that this type does here, are the same for both.
    socket: UdpSocket,
    id: u16,
    next: AtomicU16,
    waiting: Mutex<Waiting>,
}

impl Pinger {
    /// Opens the socket, with `source` as the address that is sent from.
    ///
    /// # Errors
    /// What the kernel reports; without CAP_NET_RAW, that it is not permitted.
    pub(super) fn open(source: Ipv4Addr) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddrV4::new(source, 0).into())?;
        // Nothing is fragmented, and nothing believed that was learned of the path before.
        set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?;
        let shared = Arc::new(Shared {
            socket: UdpSocket::from_std(socket.into())?,
            id: rand::random(),
            next: AtomicU16::new(0),
            waiting: Mutex::default(),
        });
        let receiver = tokio::spawn(receive(Arc::clone(&shared)));
        Ok(Self { shared, receiver })
    }

    /// Sends one echo of so many bytes, IPv4's header included, and waits for its answer.
    pub(super) async fn echo(&self, to: Ipv4Addr, bytes: u16) -> Answer {
        let shared = &self.shared;
        let seq = shared.next.fetch_add(1, Relaxed);
        let (answer, answered) = oneshot::channel();
        shared.waiting().insert(seq, answer);
        let started = Instant::now();
        let result = match shared.send(to, bytes, seq).await {
            Err(error) => Answer::NotSent(error.kind()),
            Ok(()) => match timeout(ANSWER_TIME, answered).await {
                Ok(Ok(Answer::Reply(_))) => Answer::Reply(started.elapsed()),
                Ok(Ok(answer)) => answer,
                _ => Answer::Silence,
            },
        };
        shared.waiting().remove(&seq);
        result
    }

    /// The same up to `tries` times, as long as there is silence: the first packet may get lost
    /// while the addresses of neighbours are asked for.
    pub(super) async fn echo_patiently(&self, to: Ipv4Addr, bytes: u16, tries: usize) -> Answer {
        let mut answer = Answer::Silence;
        for _ in 0..tries {
            answer = self.echo(to, bytes).await;
            if answer != Answer::Silence {
                break;
            }
        }
        answer
    }

    /// The largest packet up to `most` that `to` answers, which must answer small ones.
    pub(super) async fn path_mtu(&self, to: Ipv4Addr, most: u16) -> PathMtu {
        match self.echo_patiently(to, most, 2).await {
            Answer::Reply(_) => return PathMtu { bytes: most, router: None },
            Answer::TooLarge { mtu, router } if (SMALL_BYTES..most).contains(&mtu) => {
                // The next narrow link may be narrower still.
                let bytes = match self.echo_patiently(to, mtu, 2).await {
                    Answer::Reply(_) => mtu,
                    _ => self.search(to, mtu).await,
                };
                return PathMtu { bytes, router: Some(router) };
            }
            _ => {}
        }
        PathMtu { bytes: self.search(to, most).await, router: None }
    }

    /// Looks for the largest size below `too_large`, some sizes at once: each round costs the time
    /// of a silence.
    async fn search(&self, to: Ipv4Addr, too_large: u16) -> u16 {
        let (mut passes, mut fails) = (SMALL_BYTES, too_large);
        while fails - passes > 1 {
            let step = (fails - passes).div_ceil(SIZES_AT_ONCE);
            let sizes: Vec<u16> = (passes + 1..fails).step_by(usize::from(step)).collect();
            // Twice, so that a lost packet does not look like a narrow path.
            let answers = join_all(sizes.iter().map(|&size| async move {
                let (a, b) = tokio::join!(self.echo(to, size), self.echo(to, size));
                a.is_reply() || b.is_reply()
            }))
            .await;
            let passed = sizes.iter().zip(&answers).filter(|(_, passed)| **passed);
            let best = passed.map(|(size, _)| *size).max().unwrap_or(passes);
            fails = sizes.iter().copied().find(|size| *size > best).unwrap_or(fails);
            passes = best;
        }
        passes
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.receiver.abort();
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, to: Ipv4Addr, bytes: u16, seq: u16) -> io::Result<()> {
        let payload = vec![0; usize::from(bytes.saturating_sub(HEADER_BYTES))];
        let echo = Icmpv4Type::EchoRequest(IcmpEchoHeader { id: self.id, seq });
        let mut packet = Icmpv4Header::with_checksum(echo, &payload).to_bytes().to_vec();
        packet.extend(payload);
        self.socket.send_to(&packet, SocketAddrV4::new(to, 0)).await.map(|_| ())
    }
}

/// Hands every answer to whoever waits for it.
async fn receive(shared: Arc<Shared>) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        // Errors of single packets: others may come.
        let Ok(bytes) = shared.socket.recv(&mut buffer).await else { continue };
        if let Some((seq, answer)) = buffer.get(..bytes).and_then(|p| read(p, shared.id))
            && let Some(waiting) = shared.waiting().remove(&seq)
        {
            // Who does not wait any more needs no answer.
            let _ = waiting.send(answer);
        }
    }
}

/// What a packet, its IPv4 header first, says about the echo of which number. The time of a reply
/// is left to whoever sent it.
fn read(packet: &[u8], id: u16) -> Option<(u16, Answer)> {
    let ip = Ipv4HeaderSlice::from_slice(packet).ok()?;
    let icmp = Icmpv4Slice::from_slice(packet.get(ip.slice().len()..)?).ok()?;
    let by = ip.source_addr();
    let answer = match icmp.icmp_type() {
        Icmpv4Type::EchoReply(echo) if echo.id == id => {
            return Some((echo.seq, Answer::Reply(Duration::ZERO)));
        }
        Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
            next_hop_mtu,
        }) => Answer::TooLarge { mtu: next_hop_mtu, router: by },
        Icmpv4Type::DestinationUnreachable(_) => Answer::Unreachable { by },
        _ => return None,
    };
    // The error quotes our packet's header and its first 8 bytes.
    let quoted = Ipv4HeaderSlice::from_slice(icmp.payload()).ok()?;
    let echo = Icmpv4Slice::from_slice(icmp.payload().get(quoted.slice().len()..)?).ok()?;
    match echo.icmp_type() {
        Icmpv4Type::EchoRequest(echo) if echo.id == id => Some((echo.seq, answer)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn packet(icmp: Icmpv4Type, payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 9], [10, 0, 0, 1], 64)
            .icmpv4(icmp)
            .write(&mut packet, payload)
            .unwrap();
        packet
    }

    #[test]
    fn answers_are_told_from_strangers() {
        let ours = IcmpEchoHeader { id: 7, seq: 300 };
        let reply = packet(Icmpv4Type::EchoReply(ours), &[0; 40]);
        assert_eq!(read(&reply, 7), Some((300, Answer::Reply(Duration::ZERO))));
        assert_eq!(read(&reply, 8), None);
        // Our own request, as the loopback shows it.
        let request = packet(Icmpv4Type::EchoRequest(ours), &[0; 40]);
        assert_eq!(read(&request, 7), None);

        let quote = &request[..28];
        let router = Ipv4Addr::new(10, 0, 0, 9);
        let narrow = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 };
        let error = packet(Icmpv4Type::DestinationUnreachable(narrow), quote);
        assert_eq!(read(&error, 7), Some((300, Answer::TooLarge { mtu: 1400, router })));
        assert_eq!(read(&error, 8), None);
        let host = Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Host);
        assert_eq!(read(&packet(host, quote), 7), Some((300, Answer::Unreachable { by: router })));
        for short in [&[][..], &error[..30], &error[..50]] {
            assert_eq!(read(short, 7), None);
        }
    }
}

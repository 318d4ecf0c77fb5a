//! Trains that would be merged wrongly by who merges too much. A daemon that merges and one that
//! does nothing of the kind get the same packets, and their pods must see the same.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddrV4};

use flanneld::dataplane::packet::checksum::{fold, pseudo_header_v4, sum};
use flanneld::dataplane::sys::send::Sender;
use flanneld::dataplane::sys::socket::{Sharing, UdpSocket, UdpWish};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};
use socket2::{Domain, Protocol, Socket, Type};

use super::ATTACKER;
use super::packets::{DONT_FRAGMENT, Ip, TCP, Tcp, UDP};
use crate::cluster::Cluster;
use crate::support::admin::report as told;
use crate::support::daemon::PATIENCE;
use crate::support::root_or_skip;

/// One packet of a sequence, before it is known where it goes.
#[derive(Clone)]
struct Packet {
    ip: Ip,
    /// None: a UDP datagram.
    tcp: Option<Tcp>,
    payload: Vec<u8>,
    /// What the checksum is wrong by.
    wrong_by: u16,
}

impl Packet {
    fn bytes(&self, destination: Ipv4Addr, port: u16) -> Vec<u8> {
        let ip = Ip { destination, ..self.ip.clone() };
        let (mut packet, checksum_at) = match &self.tcp {
            Some(tcp) => {
                let tcp = Tcp { ports: (port, tcp.ports.1), ..tcp.clone() };
                (ip.tcp(&tcp, &self.payload), 36)
            }
            None => (ip.udp(port, 9, &self.payload), 26),
        };
        let checksum = u16::from_be_bytes([packet[checksum_at], packet[checksum_at + 1]]);
        let checksum = checksum.wrapping_add(self.wrong_by);
        packet[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());
        packet
    }
}

/// What makes a packet unfit for its train, one at a time.
type Oddity = fn(&mut Packet);

fn tcp(packet: &mut Packet, change: impl Fn(&mut Tcp)) {
    packet.tcp.iter_mut().for_each(change);
}

const ODDITIES: [(&str, Oddity); 24] = [
    ("sequence with a gap", |p| tcp(p, |t| t.seq = t.seq.wrapping_add(1))),
    ("sequence that overlaps", |p| tcp(p, |t| t.seq = t.seq.wrapping_sub(1))),
    ("sequence far away", |p| tcp(p, |t| t.seq ^= 0x8000_0000)),
    ("acknowledgement", |p| tcp(p, |t| t.ack = t.ack.wrapping_add(1))),
    ("window", |p| tcp(p, |t| t.window ^= 1)),
    ("urgent pointer", |p| tcp(p, |t| t.urgent = 3)),
    ("URG", |p| tcp(p, |t| t.flags |= 0x20)),
    ("PSH", |p| tcp(p, |t| t.flags |= 0x08)),
    ("ECE", |p| tcp(p, |t| t.flags |= 0x40)),
    ("CWR", |p| tcp(p, |t| t.flags |= 0x80)),
    ("FIN", |p| tcp(p, |t| t.flags |= 0x01)),
    ("SYN", |p| tcp(p, |t| t.flags |= 0x02)),
    ("RST", |p| tcp(p, |t| t.flags |= 0x04)),
    ("no ACK", |p| tcp(p, |t| t.flags &= !0x10)),
    ("another timestamp", |p| tcp(p, |t| t.options[5] ^= 1)),
    ("no options", |p| tcp(p, |t| t.options.clear())),
    ("wrong checksum", |p| p.wrong_by = 1),
    ("TTL", |p| p.ip.ttl -= 7),
    ("congestion experienced", |p| p.ip.tos |= 3),
    ("DSCP", |p| p.ip.tos ^= 0x28),
    ("may be fragmented", |p| p.ip.fragment ^= DONT_FRAGMENT),
    ("identification", |p| p.ip.id ^= 0x5555),
    ("no payload", |p| p.payload.clear()),
    ("one byte more", |p| p.payload.push(7)),
];

/// Packets of one flow as a sender with offloads makes them, of `odd` each packet that `is_odd`.
fn sequence(
    dice: &mut SmallRng,
    is_tcp: bool,
    odd: impl Fn(&mut SmallRng, usize) -> Vec<Oddity>,
) -> Vec<Packet> {
    // Often next to nothing.
    let most = if dice.random_ratio(1, 4) { 2 } else { 1_400 };
    let payload_bytes = dice.random_range(0..most);
    let (fragment, mut id) = (if dice.random() { DONT_FRAGMENT } else { 0 }, dice.random());
    let mut seq: u32 = dice.random();
    (0..dice.random_range(3..20))
        .map(|place| {
            let mut payload = vec![0; payload_bytes];
            dice.fill_bytes(&mut payload);
            let ip = Ip {
                id,
                fragment,
                ..Ip::to(Ipv4Addr::UNSPECIFIED, if is_tcp { TCP } else { UDP })
            };
            let segment = Tcp {
                ports: (0, 5201),
                seq,
                ack: 7,
                flags: 0x10,
                window: 501,
                urgent: 0,
                options: vec![1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 9],
            };
            (seq, id) = (seq.wrapping_add(payload_bytes as u32), id.wrapping_add(1));
            let tcp = is_tcp.then_some(segment);
            let mut packet = Packet { ip, tcp, payload, wrong_by: 0 };
            odd(dice, place).into_iter().for_each(|oddity| oddity(&mut packet));
            packet
        })
        .collect()
}

/// Every oddity by itself in the second, the third and the last packets, then as the dice fall.
fn sequences() -> Vec<Vec<Packet>> {
    let mut dice = SmallRng::seed_from_u64(5);
    let mut all = Vec::new();
    for is_tcp in [true, false] {
        for (_, oddity) in ODDITIES {
            let odd = |_: &mut SmallRng, place| {
                if matches!(place, 1 | 2 | 5) { vec![oddity] } else { vec![] }
            };
            all.push(sequence(&mut dice, is_tcp, odd));
        }
        for _ in 0..40 {
            all.push(sequence(&mut dice, is_tcp, |dice, _| {
                if dice.random_range(0..3) > 0 {
                    return Vec::new();
                }
                (0..dice.random_range(1..3))
                    .map(|_| ODDITIES[dice.random_range(0..ODDITIES.len())].1)
                    .collect()
            }));
        }
    }
    all
}

/// The attacker's socket.
struct Peer {
    socket: UdpSocket,
    sender: Sender,
}

impl Peer {
    fn new(cluster: &Cluster) -> Peer {
        let wish = UdpWish { gso: true, gro: false };
        let address = SocketAddrV4::new(ATTACKER, 0);
        let socket =
            cluster.lab.switch().enter(|| UdpSocket::bind(address, wish, Sharing::Never).unwrap());
        assert!(socket.segments(), "this kernel has no UDP_SEGMENT");
        Peer { socket, sender: Sender::new(64, 64) }
    }

    /// One datagram for each packet.
    fn send_singly(&mut self, to: SocketAddrV4, packets: &[Vec<u8>]) {
        let mut batch = self.sender.batch();
        for packet in packets {
            assert!(batch.push(to, None, [&packet[..]]));
        }
        assert_eq!(batch.send(&self.socket, 0).unwrap(), packets.len());
    }

    /// All in one train: what is shorter than the longest is followed by bytes that do not count.
    fn send_as_train(&mut self, to: SocketAddrV4, packets: &[Vec<u8>]) {
        let longest = packets.iter().map(Vec::len).max().unwrap();
        let mut train = Vec::new();
        for packet in packets {
            train.extend_from_slice(packet);
            train.resize(train.len().next_multiple_of(longest), 0xee);
        }
        let mut batch = self.sender.batch();
        assert!(batch.push(to, Some(longest as u16), [&train[..]]));
        assert_eq!(batch.send(&self.socket, 0).unwrap(), 1);
    }
}

/// Hears every TCP or UDP packet that reaches a pod, whole, right or wrong.
fn ear(cluster: &Cluster, host: usize, protocol: u8) -> Socket {
    cluster.pod(host).netns.enter(|| {
        let protocol = Protocol::from(i32::from(protocol));
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(protocol)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    })
}

/// What a pod sees of a packet: all, but for what differs between pods or on the way. Checksums are
/// as good as the bytes that they are over; the identification counts where it may be needed.
fn seen(packet: &[u8]) -> Vec<u8> {
    let mut seen = packet.to_vec();
    let (is_tcp, segment) = (packet[9] == TCP, &packet[20..]);
    let source = packet[12..16].try_into().unwrap();
    let destination = packet[16..20].try_into().unwrap();
    let pseudo = pseudo_header_v4(source, destination, packet[9], segment.len() as u16);
    let is_right = fold(sum(segment, pseudo)) == 0xffff;
    let checksum_at = if is_tcp { 36 } else { 26 };
    seen[checksum_at..checksum_at + 2].copy_from_slice(&u16::from(is_right).to_be_bytes());
    seen[10..12].fill(0);
    seen[16..20].fill(0);
    if packet[6] & 0x40 != 0 {
        seen[4..6].fill(0);
    }
    seen
}

#[test]
fn trains_built_to_confuse_merging_arrive_as_they_were_sent() {
    let test = "trains_built_to_confuse_merging_arrive_as_they_were_sent";
    if !root_or_skip(test) {
        return;
    }
    let cluster =
        Cluster::with_args(2, |host| if host == 0 { vec!["--offload=off"] } else { vec![] });
    cluster.make_attacker_a_peer();
    for host in 0..2 {
        // The kernel cuts superpackets on their way to the pod, and finishes their checksums.
        let netns = &cluster.lab.host(host).netns;
        netns.exec("ethtool -K pod1 tx off");
    }
    let mut peer = Peer::new(&cluster);
    let mut ears = [TCP, UDP].map(|protocol| [0, 1].map(|host| ear(&cluster, host, protocol)));
    let all = sequences();
    let mut count = 0;
    for (number, packets) in all.iter().enumerate() {
        let protocol = packets[0].ip.protocol;
        for is_train in [false, true] {
            let port = 10_000 + 2 * number as u16 + u16::from(is_train);
            let [plain, merging] = [0, 1].map(|host| {
                let pod = cluster.pod(host).address;
                let bytes: Vec<_> = packets.iter().map(|packet| packet.bytes(pod, port)).collect();
                if is_train {
                    peer.send_as_train(cluster.door(host), &bytes);
                } else {
                    peer.send_singly(cluster.door(host), &bytes);
                }
                let ear = &mut ears[usize::from(protocol == UDP)][host];
                let mut buffer = [0; 65_536];
                let heard = (0..packets.len()).map(|_| {
                    let bytes = ear.read(&mut buffer).unwrap();
                    assert_eq!(buffer[20..22], port.to_be_bytes(), "another flow's packet");
                    seen(&buffer[..bytes])
                });
                heard.collect::<Vec<_>>()
            });
            assert!(plain == merging, "sequence {number}, train {is_train}");
            count += packets.len();
        }
    }
    let merged =
        [0, 1].map(|host| told(cluster.lab.host(host))["ingress"]["superpackets_out"].clone());
    eprintln!("{test}: {count} packets, in {} superpackets", merged[1]);
    assert!(merged[0] == 0 && merged[1] != 0, "{merged:?}");
}

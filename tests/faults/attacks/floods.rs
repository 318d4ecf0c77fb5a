//! As much as can be sent, of what makes no sense.

use std::net::{Ipv4Addr, SocketAddrV4};

use flanneld::dataplane::packet::checksum::{finish, sum};
use flanneld::dataplane::sys::send::Sender;
use flanneld::dataplane::sys::socket::{Sharing, UdpSocket, UdpWish};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::packets::{Ip, MORE_FRAGMENTS, UDP};
use super::{ATTACKER, ATTACKERS_POD, FLOOD, LITTLE, again_and_again, first_heard};
use crate::cluster::Cluster;
use crate::support::netns::Netns;
use crate::support::root_or_skip;
use crate::support::traffic::Noise;

/// Sends to the daemon of host 1 what `datagram` makes of 64 bytes of noise. By its own account so
/// many have `arrived`.
fn flood(
    case: &str,
    cluster: &Cluster,
    arrived: impl Fn() -> u64,
    datagram: impl Fn(&[u8; 64], &mut Vec<u8>),
) {
    let socket = cluster.lab.switch().udp(SocketAddrV4::new(ATTACKER, 0));
    let (mut noise, mut seed, mut packet) = (Noise::new(5), [0; 64], Vec::new());
    let sent = cluster.withstand(case, LITTLE, || {
        again_and_again(|| {
            noise.fill(&mut seed);
            datagram(&seed, &mut packet);
            let _ = socket.send_to(&packet, cluster.door(1));
        })
    });
    let arrived = arrived();
    eprintln!("{case}: {sent} datagrams, {arrived} arrived");
    assert!(arrived > FLOOD, "{arrived} arrived");
}

#[test]
fn garbage_of_a_stranger_harms_nobody() {
    let test = "garbage_of_a_stranger_harms_nobody";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    cluster.let_attacker_in();
    let arrived = || cluster.drops("unknown_peer");
    flood(test, &cluster, arrived, |seed, packet| {
        packet.clear();
        let bytes = usize::from(seed[0]) * 5;
        packet.extend(seed.iter().cycle().skip(1).take(bytes));
    });
}

/// Its outer and inner source are right, its packets go to the pod that the honest streams go to,
/// and everything behind is noise: headers of TCP that contradict themselves, fragments, options.
#[test]
fn malformed_packets_of_a_peer_harm_nobody() {
    let test = "malformed_packets_of_a_peer_harm_nobody";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    cluster.make_attacker_a_peer();
    let pod = cluster.pod(1).address;
    let arrived = || cluster.admitted_of_attacker();
    flood(test, &cluster, arrived, |seed, packet| {
        packet.clear();
        let bytes = 20 + usize::from(seed[1]) % 44;
        packet.extend_from_slice(&seed[..bytes]);
        // Mostly a header without options; now and then whatever the noise says.
        packet[0] = if seed[0] < 200 { 0x45 } else { 0x40 | seed[0] & 0xf };
        let length = if seed[2] < 200 { bytes as u16 } else { u16::from(seed[2]) };
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        if seed[3] < 200 {
            packet[6..8].copy_from_slice(&[0x40, 0]);
        }
        packet[8] |= 2;
        packet[9] = if seed[4] < 200 { 6 } else { 17 };
        packet[10..12].fill(0);
        packet[12..16].copy_from_slice(&ATTACKERS_POD);
        packet[16..20].copy_from_slice(&pod.octets());
        let checksum = finish(sum(&packet[..20], 0));
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    });
}

/// Trains of up to 65,000 bytes, cut by the kernel on arrival at the latest: many times more
/// datagrams than by single sends. From the attacker's own address, and with that of a peer.
#[test]
fn trains_of_garbage_harm_nobody() {
    let test = "trains_of_garbage_harm_nobody";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    cluster.let_attacker_in();
    // Allows to bind to an address that is another host's.
    cluster.lab.switch().sysctl("net.ipv4.ip_nonlocal_bind", "1");
    for (who, source, reason) in [
        ("a stranger", ATTACKER, "unknown_peer"),
        ("a peer's address", cluster.lab.host(0).address, "malformed"),
    ] {
        let socket = spoofed(&cluster, source);
        assert!(socket.segments(), "this kernel has no UDP_SEGMENT");
        let (mut noise, mut garbage, mut sender) =
            (Noise::new(6), vec![0; 64_000], Sender::new(1, 1));
        noise.fill(&mut garbage);
        let mut segment_bytes = 0_u16;
        let case = format!("{test}, {who}");
        let trains = cluster.withstand(&case, LITTLE, || {
            again_and_again(|| {
                segment_bytes = segment_bytes % 1_380 + 92;
                noise.fill(&mut garbage[..1_472]);
                // At most 64 segments: what every kernel takes.
                let bytes = garbage.len().min(64 * usize::from(segment_bytes));
                let mut batch = sender.batch();
                batch.push(cluster.door(1), Some(segment_bytes), [&garbage[..bytes]]);
                let _ = batch.send(&socket, 0);
            })
        });
        let dropped = cluster.drops(reason);
        eprintln!("{case}: {trains} trains, {dropped} datagrams of them dropped");
        assert!(dropped > FLOOD, "{dropped}");
    }
}

/// A socket in the switch that sends from any address.
fn spoofed(cluster: &Cluster, source: Ipv4Addr) -> UdpSocket {
    let wish = UdpWish { gso: true, gro: false };
    cluster.lab.switch().enter(|| {
        let socket = UdpSocket::bind(SocketAddrV4::new(source, 0), wish, Sharing::Never).unwrap();
        SockRef::from(&socket).set_ip_transparent_v4(true).unwrap();
        SockRef::from(&socket).set_nonblocking(false).unwrap();
        socket
    })
}

/// Fragments of the datagrams that carry packets: the kernel puts them together, or not, before the
/// daemon sees anything.
#[test]
fn outer_fragments_that_fit_nowhere_harm_nobody() {
    let test = "outer_fragments_that_fit_nowhere_harm_nobody";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    cluster.make_attacker_a_peer();
    let socket = cluster.lab.switch().enter(|| {
        // IPPROTO_RAW: what is sent begins with an IP header of our own.
        Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).unwrap()
    });
    let outer = Ip { source: ATTACKER.octets(), ..Ip::to(cluster.lab.host(1).address, UDP) };
    let pod = cluster.pod(1).address;
    let datagram = outer.datagram(8285, 8285, &Ip::to(pod, UDP).udp(1, 2, &[7; 1_000]));
    let sets = misfits(&outer, &datagram);
    let target = cluster.door(1).into();
    let host = &cluster.lab.host(1).netns;
    let before = fragments_received(host);
    let sent = cluster.withstand(test, LITTLE, || {
        send_again_and_again(&sets, |packet| {
            let _ = socket.send_to(packet, &target);
        })
    });
    let received = fragments_received(host) - before;
    eprintln!("{test}: {sent} sets of fragments, {received} fragments received");
    assert!(received > FLOOD, "{received} fragments");
    assert_eq!(cluster.admitted_of_attacker(), 0);
    // What is whole arrives as ever.
    let pod = cluster.pod(1);
    let ear = pod.netns.udp(SocketAddrV4::new(pod.address, 7_000));
    let socket = cluster.lab.switch().udp(SocketAddrV4::new(ATTACKER, 0));
    let whole = Ip::to(pod.address, UDP).udp(6_000, 7_000, b"whole");
    let send = || socket.send_to(&whole, cluster.door(1));
    assert_eq!(first_heard(&ear, send), b"whole");
}

/// Fragments that the kernel has looked at, in order to put them together.
fn fragments_received(netns: &Netns) -> u64 {
    netns.counters().of("Ip", "ReasmReqds")
}

/// Fragments of the packets inside: the daemon passes them on, as a router does, and the pod's
/// kernel makes nothing of them.
#[test]
fn inner_fragments_that_fit_nowhere_reach_no_program() {
    let test = "inner_fragments_that_fit_nowhere_reach_no_program";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    cluster.make_attacker_a_peer();
    let pod = cluster.pod(1);
    let ear = pod.netns.udp(SocketAddrV4::new(pod.address, 7_000));
    let inner = Ip::to(pod.address, UDP);
    let datagram = inner.datagram(6_000, 7_000, &[7; 1_000]);
    let sets = misfits(&inner, &datagram);
    let socket = cluster.lab.switch().udp(SocketAddrV4::new(ATTACKER, 0));
    let before = fragments_received(pod.netns);
    let sent = cluster.withstand(test, LITTLE, || {
        send_again_and_again(&sets, |packet| {
            let _ = socket.send_to(packet, cluster.door(1));
        })
    });
    let received = fragments_received(pod.netns) - before;
    eprintln!("{test}: {sent} sets of fragments, {received} fragments received by the pod");
    assert!(received > FLOOD, "{received} fragments");
    // The first thing that the program hears is what is whole.
    let whole = inner.udp(6_000, 7_000, b"whole");
    let send = || socket.send_to(&whole, cluster.door(1));
    assert_eq!(first_heard(&ear, send), b"whole");
}

/// Sets of fragments of this payload from which no packet can be made.
fn misfits(ip: &Ip, payload: &[u8]) -> [Vec<(Ip, Vec<u8>)>; 6] {
    let fragment = |offset_bytes: u16, more: bool, bytes: &[u8]| {
        let fragment = (offset_bytes / 8) | if more { MORE_FRAGMENTS } else { 0 };
        (Ip { fragment, ..ip.clone() }, bytes.to_vec())
    };
    [
        // The second lies within the first (teardrop).
        vec![fragment(0, true, &payload[..640]), fragment(320, false, &payload[320..400])],
        // The second begins before the first ends.
        vec![fragment(0, true, &payload[..640]), fragment(632, false, &payload[632..])],
        // The same in the other order, and with other bytes where they overlap.
        vec![fragment(320, false, &payload[320..]), fragment(0, true, &[9; 640])],
        // It would end behind 65,535 bytes.
        vec![fragment(0, true, &payload[..640]), fragment(65_528, false, &payload[640..])],
        // Pieces that are no multiple of 8, or nothing at all.
        vec![fragment(0, true, &payload[..633]), fragment(640, true, &[])],
        // The rest never comes.
        vec![fragment(0, true, &payload[..640])],
    ]
}

/// Sends all sets, each time under other identifications; how many sets.
fn send_again_and_again(sets: &[Vec<(Ip, Vec<u8>)>; 6], send: impl Fn(&[u8])) -> u64 {
    // A multiple of the number of sets: an identification that comes again has the same set.
    const IDENTIFICATIONS: u64 = 60_000;
    let mut number = 0;
    again_and_again(|| {
        let set = &sets[(number % 6) as usize];
        for (ip, payload) in set {
            send(&Ip { id: (number % IDENTIFICATIONS) as u16, ..ip.clone() }.packet(payload));
        }
        number += 1;
    })
}

//! Datagrams larger than any that a daemon sends, up to the largest that there can be.

use std::net::{SocketAddrV4, UdpSocket};

use super::packets::{Ip, UDP};
use super::{ATTACKER, LITTLE, again_and_again, first_heard};
use crate::cluster::Cluster;
use crate::support::admin::until;
use crate::support::root_or_skip;

/// What fits into a slot of a socket that does not merge (`DATAGRAM_SLOT_BYTES` in
/// src/dataplane/ingress.rs), and the most that a datagram can carry.
const SLOT: usize = 9_216;
const LARGEST: usize = 65_507;

/// A byte more than the tunnel's MTU, than a slot, and as many as there can be.
const SIZES: [usize; 3] = [1_473, SLOT + 1, LARGEST];

/// What a packet of this length carries.
fn payload(packet_bytes: usize) -> Vec<u8> {
    (0..packet_bytes - 28).map(|place| (place / 7) as u8).collect()
}

/// A datagram of so many bytes: a packet that says that it has `packet_bytes`, without its end, or
/// with bytes behind it that do not count.
fn datagram(ip: &Ip, port: u16, packet_bytes: usize, bytes: usize) -> Vec<u8> {
    let mut datagram = ip.udp(6_000, port, &payload(packet_bytes));
    datagram.resize(bytes, 0xee);
    datagram
}

/// The attacker's socket, and a packet to the pod of host 1 that routers may cut.
fn attacker(cluster: &Cluster) -> (UdpSocket, Ip) {
    let socket = cluster.lab.switch().udp(SocketAddrV4::new(ATTACKER, 0));
    (socket, Ip { fragment: 0, ..Ip::to(cluster.pod(1).address, UDP) })
}

#[test]
fn oversized_datagrams_harm_nobody() {
    let test = "oversized_datagrams_harm_nobody";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    cluster.let_attacker_in();
    let (socket, ip) = attacker(&cluster);
    let (pod, door) = (cluster.pod(1), cluster.door(1));
    let ear = |port| pod.netns.udp(SocketAddrV4::new(pod.address, port));
    let uncut = Ip::to(pod.address, UDP);
    let flood = SIZES.map(|bytes| {
        [
            // Too large for the device, and not to be cut; or already cut.
            datagram(&uncut, 7_000, bytes, bytes),
            datagram(&ip, 7_000, bytes + 28, bytes),
            // A router would cut it; and a small one in front of much that is nothing.
            datagram(&ip, 7_001, bytes, bytes),
            datagram(&ip, 7_001, 600, bytes),
        ]
    });
    let deaf = ear(7_000);
    let mut datagrams = flood.as_flattened().iter().cycle();
    let mut send_all = |who: &str| {
        let case = format!("{test}, {who}");
        let sent = cluster.withstand(&case, LITTLE, || {
            again_and_again(|| drop(socket.send_to(datagrams.next().unwrap(), door)))
        });
        eprintln!("{case}: {sent} datagrams; {}", cluster.ingress()["drops"]);
    };
    send_all("a stranger");
    assert!(cluster.drops("unknown_peer") > 0);
    cluster.lease_to_attacker();
    send_all("a peer");
    assert!(cluster.admitted_of_attacker() > 0 && cluster.drops("malformed") > 0);

    // The pod hears as much as a packet says that it has, byte for byte, and else nothing.
    for (number, bytes) in SIZES.into_iter().enumerate() {
        for (port, packet_bytes) in [(7_010, bytes), (7_020, 600)] {
            let port = port + number as u16;
            let sent = datagram(&ip, port, packet_bytes, bytes);
            let heard = first_heard(&ear(port), || socket.send_to(&sent, door));
            assert!(heard == payload(packet_bytes), "{packet_bytes} in {bytes} bytes");
        }
    }
    let whole = ip.udp(6_000, 7_000, b"whole");
    assert_eq!(first_heard(&deaf, || socket.send_to(&whole, door)), b"whole");
}

/// Where the kernel merges nothing, slots are smaller: what does not fit is not taken for a packet
/// that is cut, nor for the beginning of one.
#[test]
fn what_is_larger_than_a_slot_is_dropped() {
    if !root_or_skip("what_is_larger_than_a_slot_is_dropped") {
        return;
    }
    let cluster = Cluster::new(&["--udp-gro=false"]);
    cluster.make_attacker_a_peer();
    let (socket, ip) = attacker(&cluster);
    let pod = cluster.pod(1);
    let ear = pod.netns.udp(SocketAddrV4::new(pod.address, 7_000));
    for (bytes, count) in [(SLOT + 1, 1), (LARGEST, 2)] {
        // Its packet, too, would fit.
        let datagram = datagram(&ip, 7_000, 600, bytes);
        socket.send_to(&datagram, cluster.door(1)).unwrap();
        until("drops", || cluster.drops("truncated"), |drops| *drops == count);
    }
    let fitting = datagram(&ip, 7_000, SLOT, SLOT);
    let send = || socket.send_to(&fitting, cluster.door(1));
    assert!(first_heard(&ear, send) == payload(SLOT));
}

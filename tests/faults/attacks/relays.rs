//! A peer that wants its packets carried to where it has no business.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::packets::{Ip, UDP};
use super::{ATTACKER, LITTLE, first_heard};
use crate::cluster::Cluster;
use crate::support::admin::until;
use crate::support::netns::Netns;
use crate::support::root_or_skip;

/// So many packets go to each place, a few at a time: fewer than a socket has room for.
const PACKETS: usize = 200;
const AT_ONCE: usize = 10;

/// Where the attacker's packets would come out of the tunnel: counts those that did.
fn watch(netns: &Netns) {
    netns.exec("nft add table ip watch");
    netns.exec("nft add chain ip watch in { type filter hook prerouting priority -300 ; }");
    netns.exec("nft add rule ip watch in ip saddr 172.7.198.0/24 counter");
}

fn packets_seen(netns: &Netns) -> u64 {
    let table = netns.exec("nft list table ip watch");
    let (_, count) = table.split_once("counter packets ").unwrap();
    count.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_host_is_no_relay() {
    let test = "a_host_is_no_relay";
    if !root_or_skip(test) {
        return;
    }
    let mut cluster = Cluster::new(&[]);
    cluster.make_attacker_a_peer();
    let host = &cluster.lab.host(1).netns;
    host.ip("link add docker0 type bridge");
    host.ip("addr add 172.17.0.1/16 dev docker0");
    host.ip("link set docker0 up");
    let switch = cluster.lab.switch();
    let watched = [switch, &cluster.lab.host(0).netns, host];
    watched.iter().for_each(|netns| watch(netns));
    let places = [
        // The host's own.
        cluster.lab.host(1).address,
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::new(172, 17, 0, 1),
        // Others on the underlay, and the internet by the default route.
        ATTACKER,
        cluster.lab.host(0).address,
        Ipv4Addr::new(192, 0, 2, 1),
        // Another peer's pod, nobody's subnet, and the attacker's own.
        cluster.pod(0).address,
        Ipv4Addr::new(172, 7, 200, 9),
        Ipv4Addr::new(172, 7, 198, 9),
        // Everybody.
        Ipv4Addr::BROADCAST,
        Ipv4Addr::new(172, 7, 255, 255),
        Ipv4Addr::new(224, 0, 0, 1),
        Ipv4Addr::UNSPECIFIED,
    ];
    let socket = switch.udp(SocketAddrV4::new(ATTACKER, 0));
    let pod = cluster.pod(1);
    let ear = pod.netns.udp(SocketAddrV4::new(pod.address, 7_000));
    let mut honest = 0;
    cluster.withstand(test, LITTLE, || {
        for sent in (AT_ONCE..=PACKETS).step_by(AT_ONCE) {
            for place in places.iter().flat_map(|place| [*place; AT_ONCE]) {
                let packet = Ip::to(place, UDP).udp(6_000, 7_000, b"let me through");
                socket.send_to(&packet, cluster.door(1)).unwrap();
            }
            let dropped = || cluster.drops("foreign_destination");
            until("drops", dropped, |count| *count == (sent * places.len()) as u64);
        }
        // What the host takes is delivered, and behind all that it does not take.
        let packet = Ip::to(pod.address, UDP).udp(6_000, 7_000, b"honest");
        let heard = first_heard(&ear, || {
            honest += 1;
            socket.send_to(&packet, cluster.door(1))
        });
        assert_eq!(heard, b"honest");
    });
    let [elsewhere @ .., here] = watched.map(packets_seen);
    assert_eq!(elsewhere, [0, 0]);
    assert!((1..=honest).contains(&here), "{here} of {honest}");
    let log = cluster.take(1).stop().log;
    let dropped = format!(" drop_foreign_destination={}", PACKETS * places.len());
    assert!(log.contains(&dropped), "no{dropped} in {log}");
}

//! Hosts that want to do harm: one that is no peer, and a peer that lies.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use flanneld::dataplane::packet::checksum::{finish, sum};

use crate::cluster::{Cluster, report};
use crate::support::daemon::PATIENCE;
use crate::support::root_or_skip;
use crate::support::traffic::Noise;

/// The switch's own address: a host of the underlay that runs no daemon.
const ATTACKER: Ipv4Addr = Ipv4Addr::new(10, 4, 7, 1);

/// How long it tries.
const ATTACK: Duration = Duration::from_secs(3);

/// What a daemon may log about it each second.
const LINES_PER_SECOND: u64 = 5;

/// What a daemon's memory may grow by meanwhile.
const GROWTH_KIB: u64 = 4096;

/// The attack runs beside honest traffic through the host that is attacked; `datagram` makes each
/// one, from 64 bytes of noise.
fn withstand(case: &str, cluster: &Cluster, datagram: impl Fn(&[u8; 64], &mut Vec<u8>)) {
    let traffic = cluster.traffic();
    let daemon = cluster.daemon(1);
    let (lines, before_kib) = (daemon.log().lines().count() as u64, daemon.memory_kib("RssAnon"));
    let socket = cluster.lab.switch().udp(SocketAddrV4::new(ATTACKER, 0));
    let target = SocketAddrV4::new(cluster.lab.host(1).address, 8285);
    let (mut noise, mut seed, mut packet) = (Noise::new(5), [0; 64], Vec::new());
    let (started, mut sent) = (Instant::now(), 0_u64);
    while started.elapsed() < ATTACK {
        for _ in 0..64 {
            noise.fill(&mut seed);
            datagram(&seed, &mut packet);
            sent += u64::from(socket.send_to(&packet, target).is_ok());
        }
    }
    traffic.wait_for_all_streams();
    let outcome = traffic.stop();
    eprintln!("{case}: {sent} datagrams in {} s", ATTACK.as_secs());
    report(case, outcome.longest_gap, &outcome);
    let more = daemon.log().lines().count() as u64 - lines;
    assert!(more <= LINES_PER_SECOND * ATTACK.as_secs(), "{more} lines\n{}", daemon.log());
    let grown_kib = daemon.memory_kib("RssAnon").saturating_sub(before_kib);
    assert!(grown_kib <= GROWTH_KIB, "{grown_kib} KiB more than before");
}

#[test]
fn garbage_of_a_stranger_harms_nobody() {
    let test = "garbage_of_a_stranger_harms_nobody";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    cluster.lab.switch().ip(&format!("addr add {ATTACKER}/24 dev br0"));
    withstand(test, &cluster, |seed, packet| {
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
    cluster.lab.switch().ip(&format!("addr add {ATTACKER}/24 dev br0"));
    let lease = format!("{}/subnets/172.7.198.0-24", cluster.store);
    std::fs::write(lease, format!(r#"{{"PublicIP":"{ATTACKER}","PublicIPv6":null}}"#)).unwrap();
    cluster.daemon(1).wait_log("172.7.198.0/24 at 10.4.7.1 is up", PATIENCE);
    let pod = cluster.pod(1).address;
    withstand(test, &cluster, |seed, packet| {
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
        packet[12..16].copy_from_slice(&[172, 7, 198, 5]);
        packet[16..20].copy_from_slice(&pod.octets());
        let checksum = finish(sum(&packet[..20], 0));
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    });
}

//! Packets that are meant to be answered: by ICMP errors, and for ever.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use flanneld::dataplane::limit::{ICMP_BURST, ICMP_PER_SECOND};

use super::packets::{ICMP, Ip, MORE_FRAGMENTS, UDP};
use super::{ATTACKER, ATTACKERS_POD, LITTLE, again_and_again};
use crate::cluster::Cluster;
use crate::support::admin::{report as told, until};
use crate::support::daemon::{Daemon, PATIENCE};
use crate::support::lab::Lab;
use crate::support::root_or_skip;

/// The attacker's end of its tunnel.
fn tunnel(cluster: &Cluster) -> UdpSocket {
    cluster.lab.switch().udp(SocketAddrV4::new(ATTACKER, 8285))
}

/// The next packet that comes out of the tunnel.
fn answer(tunnel: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 2048];
    let (bytes, _) = tunnel.recv_from(&mut buffer).unwrap();
    buffer[..bytes].to_vec()
}

/// Is this a "time exceeded" about the packet with this identification?
fn is_time_exceeded(answer: &[u8], id: u16) -> bool {
    answer[9] == ICMP && answer[20] == 11 && answer[32..34] == id.to_be_bytes()
}

#[test]
fn what_must_not_be_answered_by_icmp_is_not() {
    let test = "what_must_not_be_answered_by_icmp_is_not";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    cluster.make_attacker_a_peer();
    let tunnel = tunnel(&cluster);
    let mut questions = 0;
    cluster.withstand(test, LITTLE, || {
        for ttl in [0, 1] {
            for question in unanswerable(&cluster, ttl) {
                tunnel.send_to(&question, cluster.door(1)).unwrap();
                questions += 1;
            }
            // This one is, behind all of those.
            let ip = Ip { ttl, id: 7 + u16::from(ttl), ..Ip::to(cluster.pod(1).address, UDP) };
            tunnel.send_to(&ip.udp(1, 2, b"question"), cluster.door(1)).unwrap();
            let answer = answer(&tunnel);
            assert!(is_time_exceeded(&answer, ip.id), "{answer:?}");
            assert_eq!(answer[16..20], ATTACKERS_POD);
            questions += 1;
        }
    });
    // All were looked at, and not even to somebody else was anything said about the others.
    let dropped = || {
        let drops = &cluster.ingress()["drops"];
        drops.as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum::<u64>()
    };
    until("drops", dropped, |count| *count == questions);
    until("answers", || cluster.ingress()["icmp_errors"].clone(), |count| *count == 2);
}

/// Packets whose last hop host 1 is, and about which it must be silent.
fn unanswerable(cluster: &Cluster, ttl: u8) -> Vec<Vec<u8>> {
    let pod = cluster.pod(1).address;
    let last_hop = Ip { ttl, ..Ip::to(pod, UDP) };
    let from = |source: Ipv4Addr| Ip { source: source.octets(), ..last_hop.clone() };
    let to = |destination: Ipv4Addr| Ip { destination, ..last_hop.clone() };
    let mut packets: Vec<_> = [
        // Not of this peer, of nobody, of many.
        from(cluster.lab.host(0).address),
        from(cluster.pod(0).address),
        from(pod),
        from(Ipv4Addr::LOCALHOST),
        from(Ipv4Addr::UNSPECIFIED),
        from(Ipv4Addr::new(224, 0, 0, 1)),
        from(Ipv4Addr::BROADCAST),
        to(Ipv4Addr::new(224, 0, 0, 1)),
        to(Ipv4Addr::BROADCAST),
    ]
    .iter()
    .map(|ip| ip.udp(1, 2, b"question"))
    .collect();
    // All but the first of a packet's fragments.
    for fragment in [1, MORE_FRAGMENTS | 5] {
        packets.push(Ip { fragment, ..last_hop.clone() }.packet(&[7; 40]));
    }
    // Whatever ICMP may say that is not a question or its answer.
    for kind in [1, 2, 3, 4, 5, 6, 9, 10, 11, 12, 19, 30, 40, 41, 255] {
        let message = [&[kind, 0][..], &[0; 38]].concat();
        packets.push(Ip { protocol: ICMP, ..last_hop.clone() }.packet(&message));
    }
    packets
}

#[test]
fn icmp_errors_are_no_amplifier() {
    let test = "icmp_errors_are_no_amplifier";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&["--threads=1"]);
    cluster.make_attacker_a_peer();
    let tunnel = tunnel(&cluster);
    let question =
        Ip { ttl: 1, id: 7, ..Ip::to(cluster.pod(1).address, UDP) }.udp(1, 2, b"question");
    let started = Instant::now();
    let (sent, answers) = cluster.withstand(test, LITTLE, || {
        tunnel.set_nonblocking(true).unwrap();
        let (mut answers, mut buffer) = (0_u32, [0; 2048]);
        let sent = again_and_again(|| {
            let _ = tunnel.send_to(&question, cluster.door(1));
            match tunnel.recv(&mut buffer) {
                Ok(bytes) => {
                    assert!(bytes <= question.len() + 28, "{bytes} bytes");
                    assert!(is_time_exceeded(&buffer, 7));
                    answers += 1;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        });
        (sent, answers)
    });
    eprintln!("{test}: {sent} questions, {answers} answers");
    let allowed =
        f64::from(ICMP_BURST) + f64::from(ICMP_PER_SECOND) * started.elapsed().as_secs_f64();
    assert!(answers > 0 && f64::from(answers) <= allowed, "{answers}, allowed {allowed}");
}

/// Two hosts of which each takes the other for the owner of one subnet.
struct Ring {
    lab: Lab,
    _daemons: [Daemon; 2],
}

impl Ring {
    fn new(check: &str) -> Ring {
        let mut lab = Lab::new(2);
        let daemons = [0, 1].map(|number| {
            let (own, peer) = (21 + number, 22 - number);
            let host = lab.host(number);
            let store = host.dir.join("store");
            std::fs::create_dir_all(store.join("subnets")).unwrap();
            let config = format!(
                r#"{{"Network":"172.7.0.0/16","SubnetMin":"172.7.{own}.0","SubnetMax":"172.7.{own}.0"}}"#
            );
            std::fs::write(store.join("config"), config).unwrap();
            for subnet in [peer, 200] {
                let lease = store.join(format!("subnets/172.7.{subnet}.0-24"));
                std::fs::write(lease, format!(r#"{{"PublicIP":"10.4.7.{peer}"}}"#)).unwrap();
            }
            let store = format!("--store-dir={}", store.display());
            let check = format!("--source-check={check}");
            let daemon = host.spawn_daemon(&[&store, &check, "--threads=1"], &[]);
            daemon.wait_ready();
            daemon.wait_log("172.7.200.0/24 at", PATIENCE);
            // Its own pods' packets may come back to a host, and it does not wonder aloud.
            for (setting, device) in
                ["rp_filter", "send_redirects"].iter().flat_map(|s| [(s, "all"), (s, "flannel0")])
            {
                host.netns.sysctl(&format!("net.ipv4.conf.{device}.{setting}"), "0");
            }
            daemon
        });
        lab.add_pods();
        Ring { lab, _daemons: daemons }
    }

    /// Packets that both daemons have sent.
    fn sent(&self) -> u64 {
        self.lab.hosts().iter().map(|host| told(host)["egress"]["packets"].as_u64().unwrap()).sum()
    }
}

/// Without checks, as flannel is, the time to live ends a loop; nobody is told without end.
#[test]
fn a_loop_of_two_hosts_ends_by_the_time_to_live() {
    if !root_or_skip("a_loop_of_two_hosts_ends_by_the_time_to_live") {
        return;
    }
    let ring = Ring::new("off");
    let pod = &ring.lab.host(0).pod(0).netns;
    let output = pod.try_exec("ping -n -c 1 -W 10 172.7.200.9");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("Time to live exceeded"), "{text}");
    let started = Instant::now();
    let socket = pod.udp(SocketAddrV4::new(ring.lab.host(0).pod(0).address, 0));
    let packets = 1_000;
    for _ in 0..packets {
        let _ = socket.send_to(b"round and round", "172.7.200.9:9");
    }
    // Until nothing goes round any more.
    let mut before = 0;
    until(
        "the end of the loop",
        || {
            std::thread::sleep(Duration::from_millis(300));
            std::mem::replace(&mut before, ring.sent()) == ring.sent()
        },
        |is_over| *is_over,
    );
    eprintln!("{} packets of {packets} went round", ring.sent());
    assert!(ring.sent() <= 64 * (packets + 1), "{}", ring.sent());
    let allowed =
        u64::from(ICMP_BURST) + u64::from(ICMP_PER_SECOND) * (started.elapsed().as_secs() + 1);
    for host in ring.lab.hosts() {
        for direction in ["egress", "ingress"] {
            let errors = told(host)[direction]["icmp_errors"].as_u64().unwrap();
            assert!(errors <= allowed, "{errors} of {direction}, allowed {allowed}");
        }
    }
}

/// With the checks there is none: nobody carries what is not for its own pods.
#[test]
fn a_loop_of_two_hosts_is_cut_by_the_checks() {
    if !root_or_skip("a_loop_of_two_hosts_is_cut_by_the_checks") {
        return;
    }
    let ring = Ring::new("peer");
    let address = ring.lab.host(0).pod(0).address;
    let pod = &ring.lab.host(0).pod(0).netns;
    let socket = pod.udp(SocketAddrV4::new(address, 0));
    for _ in 0..100 {
        socket.send_to(b"round and round", "172.7.200.9:9").unwrap();
    }
    let dropped = || told(ring.lab.host(1))["ingress"]["drops"]["foreign_destination"].clone();
    until("drops", dropped, |count| *count == 100);
    assert_eq!(ring.sent(), 100);
}

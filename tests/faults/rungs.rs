//! A kernel that lacks something, or a sandbox that refuses it: the daemon goes down a rung, says
//! so, and carries packets all the same. The daemon of host 1 misses it, that of host 0 does not.

use std::net::SocketAddrV4;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use libc::{EINVAL, ENOBUFS, ENOPROTOOPT, ENOSYS, EPERM};

use crate::cluster::{Cluster, FEW_LINES, flood, report};
use crate::support::admin;
use crate::support::daemon::PATIENCE;
use crate::support::lab::LabHost;
use crate::support::rules::tools_or_skip;
use crate::support::running::Traffic;
use crate::support::seccomp::{Refusal, refused};
use crate::support::traffic::{End, tcp_transfer, udp_exchange};
use crate::support::{root_or_skip, skip};

/// What a transfer of each direction carries.
const TCP_BYTES: usize = 4_000_000;

/// Payloads of UDP: none, the largest that fits into a packet of 1,472 bytes, fragments.
const UDP_BYTES: [usize; 5] = [0, 1, 1444, 1445, 20_000];

/// What `flanneld status` calls the offloads.
const TUN: [&str; 3] = ["tun_tso", "tun_uso", "merging"];
const UDP: [&str; 2] = ["udp_gso", "udp_gro"];

fn no_offload() -> Refusal {
    Refusal::of_ioctl(libc::TUNSETOFFLOAD, EINVAL)
}

fn no_option(level: i32, option: i32) -> Refusal {
    Refusal::of_option(level, option, ENOPROTOOPT)
}

/// Of a socket, but for those that make rungs.
fn no_lesser_options() -> [Refusal; 6] {
    [
        Refusal::of_option(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, EPERM),
        Refusal::of_option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, EPERM),
        Refusal::of_option(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, EPERM),
        no_option(libc::SOL_SOCKET, libc::SO_RXQ_OVFL),
        no_option(libc::SOL_IP, libc::IP_MTU_DISCOVER),
        no_option(libc::SOL_IP, libc::IP_RECVFRAGSIZE),
    ]
}

impl Cluster {
    /// Ends the daemon of host 1 as a crash would, and starts one that is refused all this.
    fn restart_without(&mut self, args: &[&str], refusals: &[Refusal]) {
        self.take(1).kill9();
        refused(refusals, || self.spawn(1, args));
        self.daemon(1).wait_ready();
        self.daemon(1).wait_log("at 10.4.7.21 is up", PATIENCE);
    }

    /// Checks each byte both ways, and that the daemon of host 1 says which offloads are off.
    fn carries_without(&self, case: &str, off: &[&str]) {
        let (near, far) = (self.pod(0), self.pod(1));
        let both = |way: &dyn Fn(End<'_>, End<'_>)| {
            way(near, far);
            way(far, near);
        };
        both(&|from, to| _ = tcp_transfer(from, to, TCP_BYTES));
        both(&|from, to| udp_exchange(from, to, &UDP_BYTES));
        let offload = &admin::report(self.lab.host(1))["offload"];
        for name in TUN.iter().chain(&UDP) {
            assert_eq!(offload[*name], !off.contains(name), "{case}: {name} in {offload}");
        }
        let lines = |host: usize| self.daemon(host).log().lines().count();
        assert!(lines(1) <= lines(0) + FEW_LINES, "{case}: {}", self.daemon(1).log());
        eprintln!("{case}: {} MB compared each way, off: {off:?}", TCP_BYTES / 1_000_000);
    }
}

fn device(host: &LabHost) -> String {
    host.netns.ip("-d link show flannel0")
}

/// Packets that a host's kernel did not take from the daemon.
fn refused_packets(cluster: &Cluster, host: usize) -> u64 {
    let drops = &admin::report(cluster.lab.host(host))["egress"]["drops"];
    drops["kernel_refused"].as_u64().expect("a counter")
}

#[test]
fn a_device_that_can_less_carries_packets() {
    if !root_or_skip("a_device_that_can_less_carries_packets") {
        return;
    }
    let mut cluster = Cluster::new(&[]);

    // As before Linux 6.2.
    let uso = libc::TUN_F_USO4 | libc::TUN_F_USO6;
    cluster.restart_without(&[], &[no_offload().with_bits(2, uso)]);
    assert_eq!(cluster.daemon(1).count("taking over flannel0"), 1);
    cluster.carries_without("no USO", &["tun_uso"]);

    // The device that is taken over has offloads, which the next daemon cannot set.
    cluster.restart_without(&[], &[no_offload()]);
    cluster.daemon(1).wait_log("tun tso=off uso=off merging=off", PATIENCE);
    assert!(device(cluster.lab.host(1)).contains("vnet_hdr off"));
    cluster.carries_without("no TUNSETOFFLOAD", &TUN);

    cluster.restart_without(&[], &[Refusal::of_ioctl(libc::TUNSETPERSIST, EPERM)]);
    cluster.daemon(1).wait_log("flannel0 will go with this daemon", PATIENCE);
    assert!(device(cluster.lab.host(1)).contains("persist off"));
    cluster.carries_without("no TUNSETPERSIST", &[]);
    // The next one makes it anew.
    cluster.restart_without(&[], &[]);
    assert_eq!(cluster.daemon(1).count("taking over flannel0"), 0);
    cluster.carries_without("nothing missing", &[]);
}

#[test]
fn sockets_that_can_less_carry_packets() {
    if !root_or_skip("sockets_that_can_less_carry_packets") {
        return;
    }
    let mut cluster = Cluster::new(&[]);

    // Before Linux 4.18, and before 5.0.
    cluster.restart_without(&[], &[no_option(libc::SOL_UDP, libc::UDP_SEGMENT)]);
    cluster.carries_without("no UDP_SEGMENT", &["udp_gso"]);
    cluster.restart_without(&[], &[no_option(libc::SOL_UDP, libc::UDP_GRO)]);
    cluster.carries_without("no UDP_GRO", &["udp_gro"]);

    // Before Linux 3.9.
    cluster.restart_without(&[], &[no_option(libc::SOL_SOCKET, libc::SO_REUSEPORT)]);
    assert_eq!(cluster.daemon(1).count("cannot share UDP port"), 1);
    cluster.carries_without("no SO_REUSEPORT", &[]);

    cluster.restart_without(&[], &no_lesser_options());
    cluster.carries_without("nothing that sockets can do without", &[]);
    // Nobody reads the sockets that only send: what is sent to them must not take much memory.
    let netns = &cluster.lab.host(1).netns;
    let sockets = netns.exec("ss -uamnH src 10.4.7.22 and not sport = :8285");
    let buffers_bytes = sockets.split(",rb").skip(1).map(|rest| rest.split(',').next().unwrap());
    let buffers_bytes: Vec<usize> = buffers_bytes.map(|bytes| bytes.parse().unwrap()).collect();
    assert!(buffers_bytes.len() >= 16, "{sockets}");
    assert!(buffers_bytes.iter().all(|&bytes| bytes < 10_000), "{sockets}");
}

/// Every rung at once, on both hosts, down to one packet by each call.
#[test]
fn the_plain_loop_carries_packets() {
    if !root_or_skip("the_plain_loop_carries_packets") {
        return;
    }
    let all = [
        no_offload(),
        Refusal::of_ioctl(libc::TUNSETPERSIST, EPERM),
        no_option(libc::SOL_UDP, libc::UDP_SEGMENT),
        no_option(libc::SOL_UDP, libc::UDP_GRO),
        no_option(libc::SOL_SOCKET, libc::SO_REUSEPORT),
        no_option(libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK),
        no_option(libc::SOL_NETLINK, libc::NETLINK_EXT_ACK),
    ];
    let all = [all.as_slice(), &no_lesser_options()].concat();
    let off = [TUN.as_slice(), &UDP].concat();
    let mut cluster = refused(&all, || Cluster::new(&[]));
    cluster.carries_without("everything missing", &off);
    cluster.restart_without(&["--offload=off"], &all);
    cluster.carries_without("everything missing, and --offload=off", &off);
    assert_eq!(cluster.take(1).stop().status.code(), Some(0));
}

/// System calls that came after Linux 3.8, each with what Rust, its libraries or we do without it.
#[test]
fn a_kernel_without_the_calls_of_a_decade_will_do() {
    let test = "a_kernel_without_the_calls_of_a_decade_will_do";
    if !root_or_skip(test) || !tools_or_skip(test) {
        return;
    }
    let mut cluster = Cluster::new(&[]);
    let calls = [
        libc::SYS_renameat2,   // 3.15
        libc::SYS_getrandom,   // 3.17
        libc::SYS_statx,       // 4.11
        libc::SYS_clone3,      // 5.3
        libc::SYS_pidfd_open,  // 5.3
        libc::SYS_openat2,     // 5.6
        libc::SYS_faccessat2,  // 5.8
        libc::SYS_close_range, // 5.9
    ];
    // Root needs CAP_DAC_OVERRIDE here, which a kernel before 5.8 does not tell.
    let dir = &cluster.lab.host(1).dir;
    std::fs::set_permissions(dir, PermissionsExt::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(dir, Some(65_534), None).unwrap();
    cluster.restart_without(&["--ip-masq"], &calls.map(|call| Refusal::of(call, ENOSYS)));
    cluster.carries_without("no call younger than Linux 3.8", &[]);
    let rules = || admin::report(cluster.lab.host(1))["rules"]["set"].clone();
    admin::until("the rules are set", rules, |set| set == true);
    assert_eq!(cluster.take(1).stop().status.code(), Some(0));
}

/// Of eight messages or more that leave by one call the kernel takes the last seven only: the others
/// are lost, and no connection breaks.
#[test]
fn a_kernel_without_memory_to_send_breaks_no_connection() {
    let test = "a_kernel_without_memory_to_send_breaks_no_connection";
    if !root_or_skip(test) {
        return;
    }
    let mut cluster = Cluster::new(&[]);
    let of_many = Refusal::of(libc::SYS_sendmmsg, ENOBUFS).at_least(2, 8);
    cluster.restart_without(&[], &[of_many]);
    let (from, to) = (cluster.pod(1), cluster.pod(0));
    let traffic = Traffic::start(from, to, 8);
    let socket = from.netns.udp(SocketAddrV4::new(from.address, 0));
    let dropped = || {
        // Each is longer than the one before, so that they cannot leave as one message.
        for bytes in 0..1400 {
            socket.send_to(&vec![0; bytes], (to.address, 9)).unwrap();
        }
        refused_packets(&cluster, 1)
    };
    admin::until("packets are refused", dropped, |&packets| packets > 0);
    traffic.wait_for_all_streams();
    let outcome = traffic.stop();
    report(test, outcome.longest_gap, &outcome);
    let log = cluster.daemon(1).log();
    assert!(log.lines().count() <= cluster.daemon(0).log().lines().count() + FEW_LINES, "{log}");
}

/// IPsec that has no key yet, to one peer: the kernel holds a hundred packets, and says `EAGAIN` to
/// more although the socket has room.
#[test]
fn a_peer_whose_packets_wait_for_ipsec_stops_no_other() {
    const WAIT: &str = "net.core.xfrm_larval_drop";
    let test = "a_peer_whose_packets_wait_for_ipsec_stops_no_other";
    if !root_or_skip(test) {
        return;
    }
    if !Path::new("/proc/sys").join(WAIT.replace('.', "/")).exists() {
        return skip(test, "a kernel with CONFIG_XFRM_USER");
    }
    let cluster = Cluster::of(3, &[]);
    let netns = &cluster.lab.host(0).netns;
    netns.sysctl(WAIT, "0");
    cluster.endure(test, || {
        let wanted = "tmpl src 10.4.7.21 dst 10.4.7.23 proto esp mode transport";
        netns.ip(&format!("xfrm policy add dir out dst 10.4.7.23/32 {wanted}"));
        flood(cluster.pod(0), cluster.pod(2).address, Duration::from_secs(2));
        netns.ip("xfrm policy flush");
        Instant::now()
    });
    assert!(refused_packets(&cluster, 0) > 0);
}

/// A firewall on the way out: the kernel says `EPERM` to each send.
#[test]
fn sends_that_a_firewall_refuses_cost_themselves_only() {
    let test = "sends_that_a_firewall_refuses_cost_themselves_only";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    let netns = &cluster.lab.host(0).netns;
    let refuse = || netns.block("output", "udp dport 8285");
    cluster.suffer_silence(test, Duration::from_secs(2), refuse, || netns.unblock());
    assert!(refused_packets(&cluster, 0) > 0);
}

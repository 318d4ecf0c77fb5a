//! What the traffic rules do to packets: who sees which address, who is let through.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};

use socket2::SockRef;
use support::daemon::{Daemon, PATIENCE};
use support::lab::{CONFIG, Lab};
use support::root_or_skip;
use support::rules::{Kind, Toolbox, tools_or_skip, wait_for};
use support::traffic::{End, ping, tcp_transfer, udp_exchange};

/// Two hosts of an overlay with a pod each, and a third host that is not part of it.
struct Neighbours {
    lab: Lab,
    daemons: Vec<Daemon>,
    _toolbox: Toolbox,
}

impl Neighbours {
    fn new(kind: Kind, args: &[&str]) -> Self {
        let mut lab = Lab::new(3);
        let store = lab.store_dir(kind.config());
        let toolbox = Toolbox::new(kind);
        let all = [&["--store-dir", store.to_str().unwrap()], args].concat();
        let daemons: Vec<Daemon> =
            (0..2).map(|host| lab.host(host).spawn_daemon(&all, &[toolbox.path()])).collect();
        for (host, daemon) in daemons.iter().enumerate() {
            daemon.wait_ready();
            daemon.wait_log("is up", PATIENCE);
            lab.host_mut(host).add_pod();
        }
        // The network around knows where the pods are, so that only rules decide what is seen.
        for host in 0..2 {
            let (gateway, subnet) = (lab.host(host).address, lab.host(host).tunnel().address);
            lab.host(2).netns.ip(&format!("route add {subnet}/24 via {gateway}"));
        }
        Self { lab, daemons, _toolbox: toolbox }
    }

    fn host(&self, host: usize) -> End<'_> {
        self.lab.host(host).end()
    }

    fn pod(&self, host: usize) -> End<'_> {
        self.lab.host(host).pod(0).end()
    }

    /// A host by its address on flannel0.
    fn tunnel(&self, host: usize) -> End<'_> {
        self.lab.host(host).tunnel()
    }

    /// The host outside of the overlay.
    fn outside(&self) -> End<'_> {
        self.host(2)
    }

    fn stop(self) {
        for daemon in self.daemons {
            let ended = daemon.stop();
            assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
        }
    }
}

/// The source that `to` sees in a datagram of `from`.
fn seen(from: End<'_>, to: End<'_>) -> IpAddr {
    let server = to.netns.udp(SocketAddrV4::new(to.address, 0));
    let client = from.netns.udp(SocketAddrV4::new(from.address, 0));
    source_of(&client, &server, to.address)
}

/// The same for a group that `to` joins; the datagram leaves by the host's `eth0`.
fn seen_by_group(from: End<'_>, eth0: Ipv4Addr, to: End<'_>, group: Ipv4Addr) -> IpAddr {
    let server = to.netns.udp(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
    server.join_multicast_v4(&group, &to.address).unwrap();
    let client = from.netns.udp(SocketAddrV4::new(from.address, 0));
    SockRef::from(&client).set_multicast_if_v4(&eth0).unwrap();
    source_of(&client, &server, group)
}

fn source_of(client: &UdpSocket, server: &UdpSocket, to: Ipv4Addr) -> IpAddr {
    let target = SocketAddrV4::new(to, server.local_addr().unwrap().port());
    client.send_to(b"who am I?", target).unwrap();
    let (_, source) = server
        .recv_from(&mut [0; 16])
        .unwrap_or_else(|error| panic!("nothing came from {client:?} to {target}: {error}"));
    source.ip()
}

#[test]
fn what_leaves_the_overlay_is_masqueraded_and_nothing_else() {
    for kind in Kind::ALL {
        let test = "what_leaves_the_overlay_is_masqueraded_and_nothing_else";
        if !root_or_skip(test) || !tools_or_skip(test) {
            return;
        }
        let net = Neighbours::new(kind, &["--ip-masq"]);
        let (pod, far, outside) = (net.pod(0), net.pod(1), net.outside());

        // Rule 5: out of the overlay by the host's address, and the answers come back.
        assert_eq!(seen(pod, outside), net.host(0).address, "{kind:?}");
        tcp_transfer(pod, outside, 1_000_000);
        assert_eq!(seen(net.tunnel(0), outside), net.host(0).address, "{kind:?}");
        // But not to multicast addresses.
        let group = Ipv4Addr::new(239, 7, 7, 7);
        let (tunnel, eth0) = (net.tunnel(0), net.host(0).address);
        assert_eq!(seen_by_group(tunnel, eth0, outside, group), tunnel.address, "{kind:?}");

        // Rules 2 and 3: inside the overlay everybody keeps his address.
        assert_eq!(seen(pod, far), pod.address, "{kind:?}");
        assert_eq!(seen(far, pod), far.address, "{kind:?}");
        assert_eq!(seen(pod, net.tunnel(1)), pod.address, "{kind:?}");
        udp_exchange(pod, far, &[0, 1_400, 9_000]);
        tcp_transfer(far, pod, 1_000_000);

        // Rule 4: whoever is reached from outside sees from where.
        assert_eq!(seen(outside, pod), outside.address, "{kind:?}");
        assert_eq!(seen(net.host(0), pod), net.host(0).address, "{kind:?}");

        // Rule 6: into the overlay from a host's other address, by the tunnel's; also where
        // upstream's nftables rules do not.
        assert_eq!(seen(net.host(0), far), net.tunnel(0).address, "{kind:?}");

        // Rule 1: what kube-proxy marked is left to kube-proxy; other bits of the mark are others'.
        let nft = |script: &str| net.host(0).netns.exec(&format!("nft {script}"));
        nft("add table ip marking");
        nft("add chain ip marking pre { type filter hook prerouting priority -150 ; }");
        for (mark, source) in
            [("0x4000", pod.address), ("0x4001", pod.address), ("0x8000", net.host(0).address)]
        {
            nft("flush chain ip marking pre");
            nft(&format!("add rule ip marking pre ip saddr {} meta mark set {mark}", pod.address));
            assert_eq!(seen(pod, outside), source, "{kind:?}, mark {mark}");
        }
        net.stop();
    }
}

#[test]
fn without_the_flag_nothing_is_masqueraded() {
    let test = "without_the_flag_nothing_is_masqueraded";
    if !root_or_skip(test) || !tools_or_skip(test) {
        return;
    }
    for kind in Kind::ALL {
        let net = Neighbours::new(kind, &[]);
        let (pod, outside) = (net.pod(0), net.outside());
        assert_eq!(seen(pod, outside), pod.address, "{kind:?}");
        assert_eq!(seen(pod, net.pod(1)), pod.address, "{kind:?}");
        net.stop();
    }
}

/// As Docker leaves it: the policy of FORWARD is DROP.
#[test]
fn forwarded_packets_are_accepted_whatever_the_policy() {
    let test = "forwarded_packets_are_accepted_whatever_the_policy";
    if !root_or_skip(test) || !tools_or_skip(test) {
        return;
    }
    for kind in [Kind::Legacy, Kind::Nft] {
        for accepted in [true, false] {
            let flag = format!("--iptables-forward-rules={accepted}");
            let net = Neighbours::new(kind, &[&flag]);
            for host in 0..2 {
                let policy = format!("iptables-{} --wait -P FORWARD DROP", kind.suffix());
                net.host(host).netns.exec(&policy);
            }
            let answer = ping(net.pod(0).netns, net.pod(1).address, 2, "-W 1");
            assert_eq!(answer.is_ok(), accepted, "{kind:?} {flag}: {answer:?}");
            net.stop();
        }
    }
}

/// Packets for pods that do not exist end here; those that do exist are reached, whichever came
/// first, the blackhole or the bridge.
#[test]
fn the_blackhole_swallows_only_what_has_no_other_way() {
    let test = "the_blackhole_swallows_only_what_has_no_other_way";
    if !root_or_skip(test) {
        return;
    }
    let mut lab = Lab::new(1);
    let store = lab.store_dir(CONFIG);
    let store = format!("--store-dir={}", store.to_str().unwrap());
    let args = [store.as_str(), "--ip-blackhole-route", "--iptables-resync=1"];
    let ours = ["blackhole 172.7.21.0/24 metric 4294967295".to_owned()];
    let blackholes = |lab: &Lab| -> Vec<String> {
        let routes = lab.host(0).netns.ip("route show type blackhole");
        routes.lines().map(|line| line.trim().to_owned()).collect()
    };
    std::fs::write(lab.host(0).subnet_file(), "FLANNEL_SUBNET=172.7.21.1/24\n").unwrap();
    // What upstream leaves behind.
    lab.host(0).netns.ip("route add blackhole 172.7.21.0/24");

    let daemon = lab.host(0).spawn_daemon(&args, &[]);
    daemon.wait_ready();
    assert_eq!(blackholes(&lab), ours);
    // The kernel's answer for a blackhole: EINVAL.
    let answer = lab.host(0).netns.try_exec("ip route get 172.7.21.2");
    assert!(String::from_utf8_lossy(&answer.stderr).contains("Invalid argument"), "{answer:?}");

    lab.host_mut(0).add_pod();
    ping(&lab.host(0).netns, lab.host(0).pod(0).address, 2, "").unwrap();
    lab.host(0).netns.ip("route del blackhole 172.7.21.0/24 metric 4294967295");
    wait_for("the route that was taken away", &ours, || blackholes(&lab));
    ping(&lab.host(0).netns, lab.host(0).pod(0).address, 2, "").unwrap();
    daemon.stop();
    assert_eq!(blackholes(&lab), ours, "it stays at exit");

    let daemon = lab.host(0).spawn_daemon(&args, &[]);
    daemon.wait_ready();
    assert_eq!(blackholes(&lab), ours, "once");
    daemon.stop();
}

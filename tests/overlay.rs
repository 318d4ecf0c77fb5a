//! The whole daemon on real hosts: what a user of the overlay sees.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use support::admin;
use support::daemon::{Daemon, PATIENCE};
use support::lab::{CONFIG, Lab, LinkModel};
use support::root_or_skip;
use support::traffic::{ping, tcp_transfer, udp_exchange};

/// Hosts with one pod each, on a directory store, that know each other.
struct Overlay {
    lab: Lab,
    daemons: Vec<Daemon>,
}

impl Overlay {
    fn new(hosts: u8, args: &[&str]) -> Overlay {
        Overlay::with_lab(Lab::new(hosts), |_| args.to_vec())
    }

    /// `args` gives each host's flags beside the store and what the lab sets.
    fn with_lab<'a>(mut lab: Lab, args: impl Fn(usize) -> Vec<&'a str>) -> Overlay {
        let daemons = lab.start_overlay(&lab.store_dir(CONFIG), args);
        lab.add_pods();
        Overlay { lab, daemons }
    }

    fn pod(&self, host: usize) -> support::traffic::End<'_> {
        self.lab.host(host).pod(0).end()
    }

    /// Stops the daemons; returns their logs.
    fn stop(self) -> Vec<String> {
        let mut logs = Vec::new();
        for daemon in self.daemons {
            let ended = daemon.stop();
            assert!(ended.status.success(), "{:?}\n{}", ended.status, ended.log);
            logs.push(ended.log);
        }
        logs
    }
}

/// The counter `name` of the line that the daemon logs for `direction` when it ends.
fn counter(log: &str, direction: &str, name: &str) -> u64 {
    let line = log
        .lines()
        .find(|line| line.contains(&format!("] {direction}: ")))
        .unwrap_or_else(|| panic!("no counters of {direction} in\n{log}"));
    line.split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
        .unwrap_or(0)
}

/// Every kind of traffic, both ways, contents compared.
fn exercise(overlay: &Overlay, a: usize, b: usize, bytes: usize) {
    ping(overlay.pod(b).netns, overlay.pod(a).address, 2, "-s 1444 -M do").unwrap();
    exercise_with_fragments(overlay, a, b, bytes);
}

/// The same where packets of the full MTU need not pass in one piece.
fn exercise_with_fragments(overlay: &Overlay, a: usize, b: usize, bytes: usize) {
    let (a, b) = (overlay.pod(a), overlay.pod(b));
    ping(a.netns, b.address, 3, "").unwrap();
    // Fragments of an echo request, and IP options (record route).
    ping(a.netns, b.address, 2, "-s 4000 -M dont").unwrap();
    ping(a.netns, b.address, 1, "-R").unwrap();
    // Up to the MTU, just over it, and as many fragments as there can be.
    udp_exchange(a, b, &[0, 1, 7, 64, 1_443, 1_444, 1_445, 9_000, 65_507]);
    std::thread::scope(|scope| {
        scope.spawn(|| tcp_transfer(a, b, bytes));
        scope.spawn(|| tcp_transfer(b, a, bytes));
    });
}

#[test]
fn three_hosts_carry_every_kind_of_traffic() {
    if !root_or_skip("three_hosts_carry_every_kind_of_traffic") {
        return;
    }
    let overlay = Overlay::new(3, &[]);
    for (a, b) in [(0, 1), (1, 2), (2, 0)] {
        exercise(&overlay, a, b, 20_000_000);
    }
    // Host to host, through the tunnel's own addresses.
    ping(&overlay.lab.host(0).netns, overlay.lab.host(1).tunnel().address, 2, "").unwrap();
    for log in overlay.stop() {
        for direction in ["egress", "ingress"] {
            for drop in ["malformed", "kernel_refused", "too_big", "truncated", "foreign_source"] {
                assert_eq!(counter(&log, direction, &format!("drop_{drop}")), 0, "{drop}\n{log}");
            }
        }
    }
}

/// Each rung below the top, on links that cut like a plain network card.
#[test]
fn every_rung_carries_the_same_traffic() {
    if !root_or_skip("every_rung_carries_the_same_traffic") {
        return;
    }
    let rungs: [&[&str]; 6] = [
        &["--offload=tso"],
        &["--offload=auto", "--udp-gso=false"],
        &["--offload=auto", "--udp-gro=false"],
        &["--offload=off", "--udp-gso=true", "--udp-gro=true"],
        &["--offload=off", "--udp-gso=true"],
        &["--offload=off"],
    ];
    for rung in rungs {
        let lab = Lab::with_links(2, 1500, LinkModel::Wire);
        let overlay = Overlay::with_lab(lab, |_| rung.to_vec());
        exercise(&overlay, 0, 1, 4_000_000);
        for log in overlay.stop() {
            let word = |on: bool| if on { "on" } else { "off" };
            let off = rung[0] == "--offload=off";
            let gso = !rung.contains(&"--udp-gso=false") && (!off || rung.len() > 1);
            let gro = !rung.contains(&"--udp-gro=false") && (!off || rung.len() > 2);
            let state = format!("tso={}", word(!off));
            assert!(log.contains(&state), "{rung:?}: {state}\n{log}");
            let state = format!("udp gso={} gro={}", word(gso), word(gro));
            assert!(log.contains(&state), "{rung:?}: {state}\n{log}");
        }
    }
}

/// From the width of a plain daemon to several threads, which differ from host to host.
#[test]
fn every_width_carries_the_same_traffic() {
    if !root_or_skip("every_width_carries_the_same_traffic") {
        return;
    }
    let widths: [[&[&str]; 2]; 3] = [
        [&["--queues=1"], &["--queues=1"]],
        [&["--queues=1"], &["--queues=3", "--threads=2"]],
        [&["--queues=63", "--threads=4"], &["--queues=2", "--threads=16"]],
    ];
    for width in widths {
        let lab = Lab::with_links(2, 1500, LinkModel::Whole);
        let overlay = Overlay::with_lab(lab, |host| width[host].to_vec());
        exercise(&overlay, 0, 1, 10_000_000);
    }
}

/// Peers that stand on different rungs; also with jumbo frames, and with an MTU beyond those.
#[test]
fn the_top_rung_talks_to_the_bottom_rung() {
    if !root_or_skip("the_top_rung_talks_to_the_bottom_rung") {
        return;
    }
    for mtu in [1500, 9000, 16_000] {
        let lab = Lab::with_links(2, mtu, LinkModel::Whole);
        let overlay =
            Overlay::with_lab(lab, |host| if host == 0 { vec![] } else { vec!["--offload=off"] });
        exercise(&overlay, 0, 1, 10_000_000);
    }
}

/// Fails when an offload silently fell back: the counters must show that it was used.
#[test]
fn the_offloads_engage() {
    if !root_or_skip("the_offloads_engage") {
        return;
    }
    for model in [LinkModel::Whole, LinkModel::Wire] {
        let overlay = Overlay::with_lab(Lab::with_links(2, 1500, model), |_| vec![]);
        tcp_transfer(overlay.pod(0), overlay.pod(1), 50_000_000);
        let logs = overlay.stop();
        let (sender, receiver) = (&logs[0], &logs[1]);
        let packets = counter(sender, "egress", "packets");
        for (log, direction, name, service) in [
            (sender, "egress", "superpackets_in", "TSO from the TUN device"),
            (sender, "egress", "superpackets_out", "UDP GSO"),
            (receiver, "ingress", "superpackets_in", "UDP GRO"),
            (receiver, "ingress", "superpackets_out", "merging to the TUN device"),
        ] {
            let superpackets = counter(log, direction, name);
            assert!(superpackets > 0, "{model:?}: {service} did not engage\n{log}");
            assert!(
                superpackets * 4 < packets,
                "{model:?}: {service}: {superpackets} superpackets for {packets} packets"
            );
        }
        // What was sent whole arrived whole: 50 MB in packets of 1,420 bytes of payload.
        assert!(packets >= 50_000_000 / 1_420, "{packets}");
        assert!(counter(receiver, "ingress", "syscalls") < packets / 4, "{receiver}");
    }
}

/// A peer that knows no offload and speaks plain datagrams, as flannel's C proxy does: written
/// here, on a plain socket.
#[test]
fn a_plain_peer_is_understood_and_understands() {
    if !root_or_skip("a_plain_peer_is_understood_and_understands") {
        return;
    }
    for width in [&[][..], &["--queues=1"]] {
        a_plain_peer(width);
    }
}

fn a_plain_peer(width: &[&str]) {
    let mut lab = Lab::new(2);
    let store = lab.store_dir(CONFIG);
    // The plain peer's lease, made by hand: the value that upstream writes, nothing else.
    std::fs::create_dir_all(store.join("subnets")).unwrap();
    std::fs::write(
        store.join("subnets/172.7.199.0-24"),
        r#"{"PublicIP":"10.4.7.22","PublicIPv6":null}"#,
    )
    .unwrap();
    let mut args = vec!["--store-dir", store.to_str().unwrap()];
    args.extend(width);
    let daemon = lab.host(0).spawn_daemon(&args, &[]);
    daemon.wait_ready();
    daemon.wait_log("at 10.4.7.22 is up", PATIENCE);
    let pod = lab.host_mut(0).add_pod().address;

    let peer = lab.host(1).netns.udp(SocketAddrV4::new(Ipv4Addr::new(10, 4, 7, 22), 8285));
    let daemon_at = SocketAddrV4::new(Ipv4Addr::new(10, 4, 7, 21), 8285);
    let far = Ipv4Addr::new(172, 7, 199, 7);
    let mut buffer = [0; 65_536];

    // Plain → daemon → pod and back, a datagram at a time: an echo request from our "pod".
    for (sequence, size) in [0_usize, 1, 56, 1_400, 1_444].into_iter().enumerate() {
        let payload = vec![sequence as u8; size];
        let mut packet = Vec::new();
        etherparse::PacketBuilder::ipv4(far.octets(), pod.octets(), 64)
            .icmpv4_echo_request(7, sequence as u16)
            .write(&mut packet, &payload)
            .unwrap();
        peer.send_to(&packet, daemon_at).unwrap();
        let (length, source) = peer.recv_from(&mut buffer).unwrap();
        assert_eq!(source.ip(), *daemon_at.ip());
        // With one queue the daemon looks like flannel's from outside, for the strictest firewall.
        assert_eq!(source.port() == daemon_at.port(), width == ["--queues=1"]);
        check_packet(&buffer[..length]);
        let answer = etherparse::SlicedPacket::from_ip(&buffer[..length]).unwrap();
        let Some(etherparse::TransportSlice::Icmpv4(icmp)) = answer.transport else {
            panic!("no ICMP came back")
        };
        assert_eq!(icmp.payload(), payload);
    }

    // Daemon → plain: TCP superpackets and UDP bursts arrive as single complete packets.
    let client = lab.host(0).pod(0);
    let sender = client.netns.udp(SocketAddrV4::new(pod, 0));
    for size in [1_usize, 100, 1_444] {
        for _ in 0..10 {
            sender.send_to(&vec![9; size], SocketAddrV4::new(far, 5000)).unwrap();
        }
        for _ in 0..10 {
            let (length, _) = peer.recv_from(&mut buffer).unwrap();
            check_packet(&buffer[..length]);
            assert_eq!(length, size + 28);
            // 64, less one by the host's own forwarding, less one by the daemon.
            assert_eq!(buffer[8], 62);
        }
    }
    assert!(daemon.stop().status.success());
}

/// One complete IPv4 packet of at most the tunnel's MTU, every checksum right.
fn check_packet(packet: &[u8]) {
    assert!(packet.len() <= 1_472, "{} bytes", packet.len());
    let sliced = etherparse::SlicedPacket::from_ip(packet).unwrap();
    let Some(etherparse::NetSlice::Ipv4(ip)) = &sliced.net else { panic!("not IPv4") };
    let header = ip.header();
    assert_eq!(usize::from(header.total_len()), packet.len());
    assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
    match sliced.transport.unwrap() {
        etherparse::TransportSlice::Udp(udp) => {
            let computed =
                udp.to_header().calc_checksum_ipv4(&header.to_header(), udp.payload()).unwrap();
            assert_eq!(computed, udp.checksum());
        }
        etherparse::TransportSlice::Icmpv4(icmp) => {
            assert_eq!(icmp.icmp_type().calc_checksum(icmp.payload()), icmp.checksum());
        }
        other => panic!("unexpected {other:?}"),
    }
}

#[test]
fn the_kernel_is_told_what_cannot_be_carried() {
    if !root_or_skip("the_kernel_is_told_what_cannot_be_carried") {
        return;
    }
    let overlay = Overlay::new(2, &[]);
    let (pod, host) = (overlay.pod(0), &overlay.lab.host(0).netns);
    for netns in [pod.netns, host] {
        // Nobody leases 172.7.200.0/24.
        let text = ping(netns, Ipv4Addr::new(172, 7, 200, 1), 1, "").unwrap_err();
        assert!(text.contains("Net Unreachable") || text.contains("+1 errors"), "{text}");
    }
    // A connection fails at once instead of timing out.
    let started = Instant::now();
    let error = host
        .connect(SocketAddrV4::new(Ipv4Addr::new(172, 7, 200, 1), 80))
        .expect_err("nobody is there");
    assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH), "{error}");
    assert!(started.elapsed() < PATIENCE);

    // One hop costs two: the daemons' own decrements, between those of the two kernels.
    let far = overlay.pod(1).address;
    for (ttl, host) in [(2, 0), (3, 1)] {
        let from = overlay.lab.host(host).tunnel().address;
        let output = pod.netns.try_exec(&format!("ping -n -c 1 -W 5 -t {ttl} {far}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            text.contains(&format!("From {from}")) && text.contains("Time to live exceeded"),
            "TTL {ttl}: {text}"
        );
    }
    // Made larger than the tunnel by somebody else, the device tells the sender, too.
    host.ip("link set flannel0 txqueuelen 1000 mtu 1500");
    overlay.daemons[0].wait_log("flannel0 was changed from outside", PATIENCE);
    ping(pod.netns, far, 1, "-s 1444 -M do").unwrap();
    overlay.stop();
}

#[test]
fn lies_are_dropped_and_counted() {
    if !root_or_skip("lies_are_dropped_and_counted") {
        return;
    }
    for (check, delivered, refused) in [("off", 4, 0), ("peer", 1, 3), ("strict", 0, 4)] {
        let flag = format!("--source-check={check}");
        // The third host knows the store, but has no lease; its socket is ours.
        let mut lab = Lab::new(3);
        let store = lab.store_dir(CONFIG);
        let args = ["--store-dir", store.to_str().unwrap(), &flag];
        std::fs::create_dir_all(store.join("subnets")).unwrap();
        for (subnet, host) in [("172.7.198.0-24", "10.4.7.22"), ("172.7.197.0-24", "10.4.7.24")] {
            let lease = format!(r#"{{"PublicIP":"{host}"}}"#);
            std::fs::write(store.join("subnets").join(subnet), lease).unwrap();
        }
        let daemon = lab.host(0).spawn_daemon(&args, &[]);
        daemon.wait_ready();
        daemon.wait_log("at 10.4.7.22 is up", PATIENCE);
        daemon.wait_log("at 10.4.7.24 is up", PATIENCE);
        // A lie that is delivered is routed to the pod, so the source must have a way back for
        // the kernel's reverse-path filter to be content.
        let pod = lab.host_mut(0).add_pod().address;
        let ear = lab.host(0).pod(0).netns.udp(SocketAddrV4::new(pod, 7000));

        let peer = lab.host(1).netns.udp(SocketAddrV4::new(Ipv4Addr::new(10, 4, 7, 22), 8285));
        let stranger = lab.host(2).netns.udp(SocketAddrV4::new(Ipv4Addr::new(10, 4, 7, 23), 8285));
        let to = SocketAddrV4::new(Ipv4Addr::new(10, 4, 7, 21), 8285);
        let packet = |source: [u8; 4], destination: Ipv4Addr| {
            let mut packet = Vec::new();
            etherparse::PacketBuilder::ipv4(source, destination.octets(), 64)
                .udp(6000, 7000)
                .write(&mut packet, &source)
                .unwrap();
            packet
        };
        let honest = packet([172, 7, 198, 5], pod);
        // From a host that is no peer; from another peer's subnet; from nobody's subnet; from
        // outside the overlay network.
        stranger.send_to(&honest, to).unwrap();
        let another = packet([172, 7, 197, 5], pod);
        peer.send_to(&another, to).unwrap();
        peer.send_to(&packet([172, 7, 201, 1], pod), to).unwrap();
        peer.send_to(&packet([10, 4, 7, 22], pod), to).unwrap();
        // To another host: we are no relay, whatever is checked the kernel's routing decides.
        if check != "off" {
            peer.send_to(&packet([172, 7, 198, 5], Ipv4Addr::new(10, 4, 7, 23)), to).unwrap();
        }
        // Too short, and not IPv4: dropped in every mode.
        peer.send_to(&honest[..19], to).unwrap();
        peer.send_to(&[0x60; 40], to).unwrap();
        peer.send_to(&honest, to).unwrap();

        // Packets of different flows may overtake each other, so they are counted.
        let mut buffer = [0; 64];
        let sources: Vec<String> = (0..delivered + 1)
            .map(|_| ear.recv_from(&mut buffer).unwrap().1.ip().to_string())
            .collect();
        let honest = sources.iter().filter(|source| *source == "172.7.198.5").count();
        assert_eq!(honest, if check == "off" { 2 } else { 1 }, "{check}: {sources:?}");
        // The liar is charged, not the peer whose address it took.
        let report = admin::report(lab.host(0));
        let charged = |host: &str| {
            let mut peers = report["peers"].as_array().unwrap().iter();
            peers.find(|peer| peer["public_ip"] == host).unwrap()["ingress"]["drops"].clone()
        };
        assert_eq!(charged("10.4.7.22"), refused, "{check}: {report}");
        assert_eq!(charged("10.4.7.24"), 0, "{check}: {report}");
        let log = daemon.stop().log;
        let dropped = |reason: &str| counter(&log, "ingress", &format!("drop_{reason}"));
        let checked = u64::from(check != "off");
        assert_eq!(dropped("malformed"), 2, "{log}");
        assert_eq!(dropped("unknown_peer"), checked, "{log}");
        assert_eq!(dropped("foreign_source"), 2 * checked, "{log}");
        assert_eq!(dropped("foreign_destination"), checked, "{log}");
        assert_eq!(dropped("outside_source"), u64::from(check == "strict"), "{log}");
        if check == "peer" {
            assert_eq!(log.matches("--source-check=off would deliver it").count(), 3, "{log}");
        }
    }
}

#[test]
fn a_deleted_device_comes_back_and_traffic_resumes() {
    if !root_or_skip("a_deleted_device_comes_back_and_traffic_resumes") {
        return;
    }
    let overlay = Overlay::new(2, &[]);
    let (host, daemon) = (&overlay.lab.host(0).netns, &overlay.daemons[0]);
    let (pod, far) = (overlay.pod(0), overlay.pod(1));
    let back = "flannel0 was changed from outside: put back";
    for (n, damage) in [
        "link delete flannel0",
        "link set flannel0 down",
        "addr flush dev flannel0",
        "route del 172.7.0.0/16",
    ]
    .into_iter()
    .enumerate()
    {
        host.ip(damage);
        daemon.wait_nth_log(back, n + 1, PATIENCE);
        ping(pod.netns, far.address, 2, "").unwrap_or_else(|text| panic!("{damage}: {text}"));
        tcp_transfer(far, pod, 1_000_000);
    }
    overlay.stop();
}

#[test]
fn a_signal_ends_it_within_a_second_even_under_load() {
    if !root_or_skip("a_signal_ends_it_within_a_second_even_under_load") {
        return;
    }
    let overlay = Overlay::new(2, &[]);
    let flood = overlay.pod(0).netns.command("ping");
    let mut flood = { flood }
        .args(["-n", "-q", "-f", "-w", "60", &overlay.pod(1).address.to_string()])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // Besides, packets so close together that a thread which looks again finds one each time.
    let far = SocketAddrV4::new(overlay.pod(1).address, 9);
    let socket = overlay.pod(0).netns.udp(SocketAddrV4::new(overlay.pod(0).address, 0));
    let ended = Arc::new(AtomicBool::new(false));
    let stream = std::thread::spawn({
        let ended = Arc::clone(&ended);
        move || {
            while !ended.load(Relaxed) {
                let _ = socket.send_to(&[0; 64], far);
            }
        }
    });
    let Overlay { lab, daemons } = overlay;
    for daemon in daemons {
        let started = Instant::now();
        let ended = daemon.stop();
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
    }
    ended.store(true, Relaxed);
    stream.join().unwrap();
    flood.kill().unwrap();
    flood.wait().unwrap();
    // The device stays, for the next daemon; this one has let it go.
    let device = lab.host(0).netns.ip("link show flannel0");
    assert!(device.contains("NO-CARRIER"), "{device}");
}

/// A path narrower than when the daemons started: segmented sends are refused by the kernel, and
/// the same packets go out one by one, as fragments.
#[test]
fn a_path_that_became_narrower_still_carries_everything() {
    if !root_or_skip("a_path_that_became_narrower_still_carries_everything") {
        return;
    }
    let overlay = Overlay::new(2, &[]);
    for host in overlay.lab.hosts() {
        host.netns.ip("link set eth0 mtu 1300");
    }
    // Who forbids fragments is told what passes without: 1,300 bytes less the outer headers.
    let (pod, far) = (overlay.pod(0), overlay.pod(1).address);
    // That, or the answer to what came in fragments, whichever is there first, ends the ping.
    let _ = ping(pod.netns, far, 1, "-s 1444 -M do");
    let deadline = Instant::now() + PATIENCE;
    while !pod.netns.ip(&format!("route get {far}")).contains("mtu 1272") {
        assert!(Instant::now() < deadline, "{}", pod.netns.ip(&format!("route get {far}")));
    }
    exercise_with_fragments(&overlay, 0, 1, 3_000_000);
    // One bad path is no reason to give up segmentation at once, nor may it cost a packet.
    let logs = overlay.stop();
    assert_eq!(counter(&logs[0], "egress", "drop_kernel_refused"), 0, "{}", logs[0]);
}

/// What does not fit and does not forbid fragments is refused again and again: segmentation rests
/// then, and works again when the path does.
#[test]
fn segmentation_comes_back_with_the_path() {
    if !root_or_skip("segmentation_comes_back_with_the_path") {
        return;
    }
    let overlay = Overlay::new(2, &[]);
    let (pod, far, host) = (overlay.pod(0), overlay.pod(1), &overlay.lab.host(0).netns);
    // Its datagrams do not carry DF then.
    pod.netns.sysctl("net.ipv4.ip_no_pmtu_disc", "1");
    let socket = pod.netns.udp(SocketAddrV4::new(pod.address, 0));
    let flood_until = |text: &str| {
        let deadline = Instant::now() + PATIENCE;
        while overlay.daemons[0].count(text) == 0 {
            assert!(Instant::now() < deadline, "no {text:?}");
            for _ in 0..1000 {
                let _ = socket.send_to(&[0; 1400], SocketAddrV4::new(far.address, 9));
            }
        }
    };
    host.ip("link set eth0 mtu 1300");
    flood_until("refuses UDP segmentation");
    host.ip("link set eth0 mtu 1500");
    flood_until("accepts UDP segmentation again");
    overlay.stop();
}

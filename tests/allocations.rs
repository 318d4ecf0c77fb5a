//! The data path allocates nothing once it runs: counted over two real data paths under traffic.
//!
//! The counter is the process's, so this file holds one test, and the traffic comes from other
//! processes while this one waits.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::alloc::System;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::Duration;

use flanneld::dataplane::routes::{Route, Routes, SharedRoutes};
use flanneld::dataplane::stats::Stats;
use flanneld::dataplane::sys::socket::UdpWish;
use flanneld::dataplane::sys::tun::{Tun, TunOffload};
use flanneld::dataplane::worker::{Dataplane, Settings, Sockets, SourceCheck, Width};
use ipnet::Ipv4Net;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use support::lab::{Lab, LabHost};
use support::root_or_skip;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn subnet(host: u8) -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::new(172, 7, host, 0), 24).unwrap()
}

/// A data path on `host` towards the only peer there is.
fn carry(host: &LabHost, own: u8, peer: u8) -> (Dataplane, Arc<Stats>) {
    let bind = SocketAddrV4::new(host.address, 8285);
    let width = Width { queues: 16, pairs: 1 };
    let (tun, sockets) = host.netns.enter(|| {
        (
            Tun::create("flannel%d", TunOffload::TsoUso, width.queues).unwrap(),
            Sockets::bind(bind, UdpWish { gso: true, gro: true }, width, Vec::new()).unwrap(),
        )
    });
    assert_eq!(tun.name(), "flannel0");
    host.netns.ip(&format!("addr add {}/32 dev flannel0", subnet(own).network()));
    host.netns.ip("link set flannel0 mtu 1472 up");
    host.netns.ip("route add 172.7.0.0/16 dev flannel0");
    let route = Route {
        subnet: subnet(peer),
        endpoint: SocketAddrV4::new(Ipv4Addr::new(10, 4, 7, peer), 8285),
        stats: Arc::default(),
    };
    let routes = Routes::build("172.7.0.0/16".parse().unwrap(), subnet(own), vec![route]);
    let settings = Settings {
        mtu: 1472,
        source_check: SourceCheck::Peer,
        busy_poll: Duration::from_micros(50),
        one_by_one: false,
    };
    let stats: Arc<Stats> = Arc::default();
    let routes = SharedRoutes::new(routes);
    let dataplane = Dataplane::start(settings, tun, &sockets, &routes, &stats, || {}).unwrap();
    (dataplane, stats)
}

/// TCP both ways, UDP of odd sizes, a ping flood, and packets that nobody owns.
fn traffic(lab: &Lab) -> Vec<Child> {
    let far = subnet(22).network();
    let near = lab.host(0);
    [
        format!("iperf3 -c {far} -p 5001 -t 2 -P 4"),
        format!("iperf3 -c {far} -p 5002 -t 2 -R"),
        format!("iperf3 -c {far} -p 5003 -t 2 -u -b 200M -l 333"),
        format!("ping -q -f -w 2 -s 1400 {far}"),
        "ping -q -f -w 2 172.7.200.1".to_owned(),
    ]
    .iter()
    .map(|line| {
        let mut words = line.split(' ');
        let mut command = near.netns.command(words.next().unwrap());
        command.args(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    })
    .collect()
}

#[test]
fn the_hot_path_allocates_nothing() {
    if !root_or_skip("the_hot_path_allocates_nothing") {
        return;
    }
    let lab = Lab::new(2);
    let (near, near_stats) = carry(lab.host(0), 21, 22);
    let (far, far_stats) = carry(lab.host(1), 22, 21);
    for port in [5001, 5002, 5003] {
        lab.host(1).netns.exec(&format!("iperf3 -s -D --logfile /dev/null -p {port}"));
    }
    // The servers listen once they accept.
    for port in [5001, 5002, 5003] {
        let at = SocketAddrV4::new(subnet(22).network(), port);
        while lab.host(0).netns.connect(at).is_err() {
            std::thread::yield_now();
        }
    }
    let mut children = traffic(&lab);
    // Everything that is only done once (a thread's first log line, lazy statics) is over when
    // the first packets went through in both directions.
    while near_stats.ingress.packets.get() < 1_000 || far_stats.ingress.packets.get() < 1_000 {
        std::thread::yield_now();
    }
    let region = Region::new(ALLOCATOR);
    let before = near_stats.egress.packets.get() + far_stats.egress.packets.get();
    for child in &mut children {
        child.wait().unwrap();
    }
    let packets = near_stats.egress.packets.get() + far_stats.egress.packets.get() - before;
    let change = region.change();
    assert!(packets > 10_000, "only {packets} packets");
    assert_eq!(change.allocations + change.reallocations, 0, "for {packets} packets: {change:?}");
    for stats in [&near_stats, &far_stats] {
        assert!(
            stats.egress.superpackets_out.get() > 0 && stats.ingress.superpackets_out.get() > 0
        );
    }
    assert!(near_stats.egress.icmp_errors.get() > 0);
    near.stop();
    far.stop();
}

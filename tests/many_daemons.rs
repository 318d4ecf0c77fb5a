//! Fifty real daemons on one real etcd: what the simulation says of thousands is true of these.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use rustix::process::Signal;
use support::daemon::{Daemon, PATIENCE};
use support::etcd::{Etcd, PREFIX, Security, etcd_or_skip};
use support::lab::{CONFIG, Lab};
use support::traffic::ping;
use support::{relay, root_or_skip};

const HOSTS: u8 = 50;

/// What one daemon may take with all its buffers, of which one queue's are wanted here.
const MAX_RESIDENT_KIB: u64 = 64 * 1024;

/// Waits until a daemon has told of each peer: one by one, or many in one line.
fn wait_for_all_peers(daemon: &Daemon) {
    let wanted = u64::from(HOSTS) - 1;
    let mut lines = 0;
    loop {
        let known: u64 = peers_told(&daemon.log());
        if known >= wanted {
            return;
        }
        lines += 1;
        daemon.wait_nth_log(" up", lines, PATIENCE);
    }
}

/// How many peers a log says to be up, at least: `N peers are up, M are gone`, `peer … is up`.
fn peers_told(log: &str) -> u64 {
    log.lines()
        .filter_map(|line| match line.split_once(" peers are up") {
            Some((before, _)) => before.rsplit(' ').next()?.parse().ok(),
            None => (line.contains("peer ") && line.ends_with(" is up")).then_some(1),
        })
        .sum()
}

fn neighbours_reach_each_other(lab: &Lab) {
    let hosts = lab.hosts().len();
    for host in 0..hosts {
        ping(&lab.host(host).netns, lab.host((host + 1) % hosts).tunnel().address, 1, "").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_daemons_start_together_and_survive_a_restart_of_etcd() {
    let test = "fifty_daemons_start_together_and_survive_a_restart_of_etcd";
    if !root_or_skip(test) || !etcd_or_skip(test) {
        return;
    }
    let mut etcd = Etcd::start(Security::Plain).await;
    etcd.client().await.put(format!("{PREFIX}/config"), CONFIG, None).await.unwrap();
    let lab = Lab::new(HOSTS);
    let target: SocketAddrV4 = etcd.endpoint().strip_prefix("http://").unwrap().parse().unwrap();
    let endpoints = format!("--etcd-endpoints=http://{}", relay::into_lab(&lab, target));
    let args = [endpoints.as_str(), "--queues=1", "--threads=1"];
    let daemons: Vec<Daemon> =
        lab.hosts().iter().map(|host| host.spawn_daemon(&args, &[])).collect();
    daemons.iter().for_each(Daemon::wait_ready);
    daemons.iter().for_each(wait_for_all_peers);
    let subnets: BTreeSet<Ipv4Addr> =
        lab.hosts().iter().map(|host| host.tunnel().address).collect();
    assert_eq!(subnets.len(), daemons.len(), "each has its own");
    neighbours_reach_each_other(&lab);
    let hosts = u64::from(HOSTS);
    let (reads, grants) =
        (etcd.answered("grpc_method", "Range"), etcd.answered("grpc_method", "LeaseGrant"));
    println!("{HOSTS} hosts started with {reads} reads and {grants} grants");
    // The simulation's bound: the config twice, two lists, and one more for each race lost.
    assert!(reads <= 10 * hosts && grants <= 7 * hosts, "{reads} reads, {grants} grants");

    etcd.kill();
    for daemon in &daemons {
        daemon.wait_log("watch of leases interrupted", PATIENCE);
    }
    neighbours_reach_each_other(&lab);
    etcd.start_again().await;
    for daemon in &daemons {
        daemon.wait_log("watching leases again", PATIENCE);
    }
    let reads = etcd.answered("grpc_method", "Range");
    println!("{HOSTS} hosts came back with {reads} reads");
    // One list each, and a second one for who was interrupted once more.
    assert!(reads <= 4 * hosts, "{reads} reads");
    assert_eq!(etcd.answered("grpc_method", "LeaseGrant"), 0, "nobody lost its lease");

    // Whoever lost two races may have drawn from all subnets.
    let free = (1..255).map(|number| Ipv4Addr::new(172, 7, number, 0));
    let free = free.into_iter().find(|subnet| !subnets.contains(subnet)).unwrap();
    let news = r#"{"PublicIP":"10.4.7.199","PublicIPv6":null}"#;
    etcd.client().await.put(format!("{PREFIX}/subnets/{free}-24"), news, None).await.unwrap();
    for daemon in &daemons {
        daemon.wait_log(&format!("{free}/24 at 10.4.7.199 is up"), PATIENCE);
        assert_eq!(daemon.count("is gone"), 0, "routes were dropped");
        let resident = daemon.memory_kib("VmRSS");
        assert!(resident <= MAX_RESIDENT_KIB, "{resident} KiB");
    }
    neighbours_reach_each_other(&lab);
    let most = daemons.iter().map(|daemon| daemon.memory_kib("VmRSS")).max();
    println!("the largest daemon holds {} KiB", most.unwrap());
    // Asked all at once, as they take their time.
    daemons.iter().for_each(|daemon| daemon.signal(Signal::TERM));
    for daemon in daemons {
        let ended = daemon.wait();
        assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
    }
}

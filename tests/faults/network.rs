//! The network below, and what the kernel gives, get worse for a while.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

use crate::cluster::{Cluster, FEW_LINES, flood, report};
use crate::support::daemon::PATIENCE;
use crate::support::root_or_skip;

#[test]
fn a_daemon_that_stood_still_for_ten_seconds_goes_on() {
    let test = "a_daemon_that_stood_still_for_ten_seconds_goes_on";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    cluster.suffer(
        test,
        Duration::from_secs(10),
        || cluster.daemon(1).signal(Signal::STOP),
        || cluster.daemon(1).signal(Signal::CONT),
    );
}

#[test]
fn an_interface_goes_down_and_comes_up() {
    let test = "an_interface_goes_down_and_comes_up";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    let netns = &cluster.lab.host(1).netns;
    let set = |state: &str| drop(netns.ip(&format!("link set eth0 {state}")));
    cluster.suffer(test, Duration::from_secs(2), || set("down"), || set("up"));
}

#[test]
fn a_third_of_the_datagrams_is_lost_for_a_while() {
    let test = "a_third_of_the_datagrams_is_lost_for_a_while";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    let netns = &cluster.lab.host(1).netns;
    let block = || netns.block("input", "udp dport 8285 numgen random mod 10 < 3");
    cluster.suffer(test, Duration::from_secs(3), block, || netns.unblock());
}

#[test]
fn the_port_is_blocked_one_way_for_a_while() {
    let test = "the_port_is_blocked_one_way_for_a_while";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    let netns = &cluster.lab.host(1).netns;
    let block = || netns.block("input", "udp dport 8285");
    cluster.suffer(test, Duration::from_secs(2), block, || netns.unblock());
}

/// A host that died, with its lease still there: what is sent to it is lost, and nothing else.
#[test]
fn a_flood_to_a_dead_peer_harms_nobody() {
    let test = "a_flood_to_a_dead_peer_harms_nobody";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    cluster.write_lease("172.7.200.0-24", "10.4.7.99");
    cluster.daemon(0).wait_log("172.7.200.0/24 at 10.4.7.99 is up", PATIENCE);
    let traffic = cluster.traffic();
    let lines = cluster.daemon(0).log().lines().count();
    flood(cluster.pod(0), Ipv4Addr::new(172, 7, 200, 9), Duration::from_secs(3));
    let outcome = traffic.stop();
    report(test, outcome.longest_gap, &outcome);
    let more = cluster.daemon(0).log().lines().count() - lines;
    assert!(more <= FEW_LINES, "{more} lines\n{}", cluster.daemon(0).log());
}

#[test]
fn a_device_is_put_back_as_soon_as_there_are_descriptors() {
    let test = "a_device_is_put_back_as_soon_as_there_are_descriptors";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    let daemon = cluster.daemon(1);
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
    // The daemon has inherited ours.
    let usual = getrlimit(Resource::Nofile);
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(3), ..usual }).unwrap();
    cluster.lab.host(1).netns.ip("link delete flannel0");
    daemon.wait_log("trying again", PATIENCE);
    let healed = Instant::now();
    prlimit(pid, Resource::Nofile, usual).unwrap();
    daemon.wait_log("put back as it must be", PATIENCE);
    let gap = healed.elapsed();
    report(test, gap, &cluster.traffic().stop());
    assert!(daemon.log().lines().count() < 30, "{}", daemon.log());
}

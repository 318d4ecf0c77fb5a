//! Leases are deleted, expire, are taken, doubled and moved while traffic runs.

use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use flanneld::subnet::keeper::now;

use crate::cluster::Cluster;
use crate::support::daemon::PATIENCE;
use crate::support::lab::CONFIG;
use crate::support::root_or_skip;
use crate::support::traffic::ping;

#[test]
fn a_deleted_lease_is_won_back_under_traffic() {
    let test = "a_deleted_lease_is_won_back_under_traffic";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    let running = cluster.run();
    let subnet = cluster.subnet(1);
    let before = fs::read_to_string(cluster.lease(&subnet)).unwrap();
    fs::remove_file(cluster.lease(&subnet)).unwrap();
    cluster.daemon(1).wait_log(&format!("{subnet} was gone: won it back"), PATIENCE);
    let after = fs::read_to_string(cluster.lease(&subnet)).unwrap();
    assert_eq!(before.lines().next(), after.lines().next());
    cluster.wait_until_seen(&[0, 1], "172.7.199.0-24");
    cluster.finish(test, running);
    assert_eq!(cluster.subnet(1), subnet);
}

/// As a host does that slept for a day: it finds its lease gone, and its peers find it again.
#[test]
fn a_lease_that_ended_while_the_daemon_stood_still_is_won_back() {
    let test = "a_lease_that_ended_while_the_daemon_stood_still_is_won_back";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    let running = cluster.run();
    let subnet = cluster.subnet(1);
    cluster.daemon(1).freeze();
    cluster.expire(&subnet);
    let peer = format!("peer {}", subnet.replace('-', "/"));
    cluster.daemon(0).wait_log(&format!("{peer} is gone"), PATIENCE);
    cluster.daemon(1).thaw();
    cluster.daemon(1).wait_log("won it back", PATIENCE);
    cluster.daemon(0).wait_nth_log(&format!("{peer} at 10.4.7.22 is up"), 2, PATIENCE);
    cluster.finish(test, running);
    assert_eq!(cluster.subnet(1), subnet);
}

/// It stood still for longer than its lease, and a real daemon won the subnet meanwhile.
#[test]
fn a_lease_that_another_host_has_is_left_to_it() {
    let test = "a_lease_that_another_host_has_is_left_to_it";
    if !root_or_skip(test) {
        return;
    }
    let mut cluster = Cluster::of(4, &[]);
    let (victim, thief) = (2, 3);
    let subnet = cluster.subnet(victim);
    let own = cluster.subnet(thief);
    cluster.take(thief).stop();
    fs::remove_file(cluster.lease(&own)).unwrap();
    // The subnet that the next daemon asks for.
    let host = |host| cluster.lab.host(host).subnet_file();
    fs::copy(host(victim), host(thief)).unwrap();

    cluster.daemon(victim).freeze();
    cluster.expire(&subnet);
    cluster.daemon(0).wait_log(&format!("peer {} is gone", subnet.replace('-', "/")), PATIENCE);
    cluster.spawn(thief, &[]);
    cluster.daemon(thief).wait_ready();
    assert_eq!(cluster.subnet(thief), subnet);
    let running = cluster.run();
    cluster.daemon(victim).thaw();
    cluster
        .daemon(victim)
        .wait_log(&format!("{subnet} is another host's now: moving to"), PATIENCE);
    cluster.daemon(victim).wait_nth_log("wrote", 2, PATIENCE);
    let moved = cluster.subnet(victim);
    assert_ne!(moved, subnet);
    assert_eq!(cluster.subnet(thief), subnet);
    // Both have their own, and a third host finds them there.
    let up =
        |subnet: &str, address: &str| format!("{} at {address} is up", subnet.replace('-', "/"));
    cluster.daemon(0).wait_log(&up(&subnet, "10.4.7.24"), PATIENCE);
    cluster.daemon(0).wait_log(&up(&moved, "10.4.7.23"), PATIENCE);
    for host in [victim, thief] {
        ping(&cluster.lab.host(0).netns, cluster.lab.host(host).tunnel().address, 2, "").unwrap();
    }
    cluster.finish_lossless(test, running);
    cluster.stop_all();
}

#[test]
fn a_second_host_with_the_same_public_address_is_told_once() {
    let test = "a_second_host_with_the_same_public_address_is_told_once";
    if !root_or_skip(test) {
        return;
    }
    let mut cluster = Cluster::of(3, &[]);
    let running = cluster.run();
    let shared = cluster.subnet(1);
    // Ends are written in whole seconds: a lease that is written anew within one says the same.
    sleep(Duration::from_secs(1));
    for start in 0..3 {
        cluster.take(2).stop();
        cluster.spawn(2, &["--public-ip=10.4.7.22"]);
        cluster.daemon(2).wait_log("took over lease", PATIENCE);
        cluster.daemon(2).wait_ready();
        assert_eq!(cluster.subnet(2), shared, "as upstream: the address decides");
        cluster.wait_until_seen(&[0, 1], &format!("172.7.20{start}.0-24"));
    }
    let told = cluster.daemon(1).wait_log("somebody else wrote our lease", PATIENCE);
    assert!(told.contains("10.4.7.22") && told.contains("--public-ip"), "{told}");
    assert_eq!(cluster.daemon(1).count("somebody else wrote our lease"), 1);
    assert_eq!(cluster.daemon(1).count("moving to"), 0);
    cluster.finish(test, running);
    cluster.stop_all();
}

/// One that lies inside of a host's subnet, and one that spans all hosts' subnets.
#[test]
fn a_lease_that_overlaps_others_takes_nothing_from_them() {
    let test = "a_lease_that_overlaps_others_takes_nothing_from_them";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    let running = cluster.run();
    let inside = cluster.subnet(1).replace("-24", "-26");
    cluster.write_lease(&inside, "10.4.7.99");
    let around = "172.7.0.0-17";
    cluster.write_lease(around, "10.4.7.98");
    cluster.wait_until_seen(&[0, 1], "172.7.199.0-24");
    for host in 0..2 {
        let told = cluster.daemon(host).wait_log(&format!("lease {inside} of 10.4.7.99"), PATIENCE);
        assert!(told.contains("ignored") && told.contains(&cluster.subnet(1)), "{told}");
        let told = cluster.daemon(host).wait_log(&format!("lease {around} of 10.4.7.98"), PATIENCE);
        let own = cluster.subnet(host);
        assert!(told.contains("the longer prefix wins") && told.contains(&own), "{told}");
        for lease in [inside.as_str(), around] {
            assert_eq!(cluster.daemon(host).count(lease), 1, "{}", cluster.daemon(host).log());
        }
    }
    cluster.finish_lossless(test, running);
}

#[test]
fn a_peer_is_followed_to_another_address() {
    let test = "a_peer_is_followed_to_another_address";
    if !root_or_skip(test) {
        return;
    }
    let mut cluster = Cluster::new(&[]);
    let running = cluster.run();
    let subnet = cluster.subnet(1);
    cluster.take(1).stop();
    let netns = &cluster.lab.host(1).netns;
    netns.ip("addr del 10.4.7.22/24 dev eth0");
    netns.ip("addr add 10.4.7.50/24 dev eth0");
    // The operator says which host has the subnet now: by the old address it would stay reserved.
    let lease = fs::read_to_string(cluster.lease(&subnet)).unwrap();
    cluster.write(&format!("subnets/{subnet}"), &lease.replace("10.4.7.22", "10.4.7.50"));
    let started = cluster.spawn(1, &["--public-ip=10.4.7.50"]);
    cluster.daemon(1).wait_ready();
    let up = format!("{} at 10.4.7.50 is up", subnet.replace('-', "/"));
    cluster.daemon(0).wait_log(&up, PATIENCE);
    let gap = running.traffic.wait_for_probe_after(started);
    eprintln!("{test}: a probe arrives {} ms after the start", gap.as_millis());
    cluster.finish(test, running);
    assert_eq!(cluster.subnet(1), subnet);
}

/// A machine that sleeps cannot be had here. In a time namespace `CLOCK_BOOTTIME` alone can be set
/// ahead, which shows that it is the one that the keeper goes by.
#[test]
fn the_clock_of_the_keeper_counts_the_time_that_a_host_sleeps() {
    const INSIDE: &str = "FLANNELD_TEST_SLEPT";
    let test = "leases::the_clock_of_the_keeper_counts_the_time_that_a_host_sleeps";
    if std::env::var_os(INSIDE).is_some() {
        println!("steady={}", now().steady.as_secs());
        return;
    }
    if !root_or_skip(test) {
        return;
    }
    let before = now().steady.as_secs();
    let output = Command::new("unshare")
        .args(["--time", "--boottime", "86400"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let steady = text.lines().find_map(|line| line.split("steady=").nth(1));
    let steady: u64 = steady.unwrap_or_else(|| panic!("{output:?}")).parse().unwrap();
    assert!(steady >= before + 86_400, "{steady} s, {before} s outside");
}

#[test]
fn a_changed_config_is_told_and_applied_by_the_next_daemon() {
    let test = "a_changed_config_is_told_and_applied_by_the_next_daemon";
    if !root_or_skip(test) {
        return;
    }
    let mut cluster = Cluster::new(&[]);
    let running = cluster.run();
    let other_port = CONFIG.replace(r#""udp""#, r#""udp","Port":8286"#);
    for text in [&other_port, &format!("{other_port}\n")] {
        cluster.write("config", text);
        for host in 0..2 {
            cluster.daemon(host).wait_log("Backend.Port from 8285 to 8286", PATIENCE);
        }
    }
    cluster.write("config", "{}");
    for host in 0..2 {
        cluster.daemon(host).wait_log("it is not valid: network config: Network", PATIENCE);
    }
    cluster.write("config", CONFIG);
    for host in 0..2 {
        cluster.daemon(host).wait_log("is again the one that this daemon runs by", PATIENCE);
        assert_eq!(cluster.daemon(host).count("the network config in"), 3);
    }
    running.traffic.wait_for_probe_after(Instant::now());
    cluster.write("config", &other_port);
    for host in 0..2 {
        cluster.take(host).stop();
        cluster.spawn(host, &[]);
        cluster.daemon(host).wait_log("by UDP port 8286", PATIENCE);
    }
    cluster.finish(test, running);

    // Whoever loses its subnet meanwhile takes another one of the network that it runs by.
    cluster.write("config", &CONFIG.replace("172.7.", "172.8."));
    cluster.daemon(1).wait_log("Network from 172.7.0.0/16 to 172.8.0.0/16", PATIENCE);
    let lost = cluster.subnet(1);
    cluster.write_lease(&lost, "10.4.7.99");
    cluster.daemon(1).wait_nth_log("wrote", 2, PATIENCE);
    let next = cluster.subnet(1);
    assert!(next != lost && next.starts_with("172.7."), "{next}");
}

//! The daemon ends, in whatever way, and the next one goes on where it left.

use crate::cluster::Cluster;
use crate::support::daemon::{Daemon, PATIENCE};
use crate::support::lab::CONFIG;
use crate::support::root_or_skip;
use crate::support::traffic::{PingFlood, ping, tcp_transfer};

#[test]
fn a_killed_daemon_is_followed_without_a_broken_connection() {
    let test = "a_killed_daemon_is_followed_without_a_broken_connection";
    if !root_or_skip(test) {
        return;
    }
    let mut cluster = Cluster::new(&[]);
    let running = cluster.run();
    let flood = PingFlood::start(cluster.pod(0).netns, cluster.pod(1).address);
    flood.wait_for_replies(cluster.pod(0).netns);
    let index = cluster.lab.host(1).netns.exec("cat /sys/class/net/flannel0/ifindex");
    cluster.take(1).kill9();
    // The device is there without a daemon, and the network leads to it.
    let device = cluster.device(1);
    assert!(device.contains("172.7.0.0/16") && device.contains("persist on"), "{device}");
    let started = cluster.spawn(1, &[]);
    let gap = running.traffic.wait_for_probe_after(started);
    eprintln!("{test}: a probe arrives {} ms after the start", gap.as_millis());
    cluster.daemon(1).wait_log("taking over flannel0", PATIENCE);
    flood.wait_for_replies(cluster.pod(0).netns);
    let (sent, lost) = flood.stop(cluster.pod(0).netns);
    eprintln!("{test}: {lost} of {sent} pings lost");
    let outcome = cluster.finish(test, running);
    assert_eq!(outcome.probes_doubled, 0);
    assert_eq!(cluster.lab.host(1).netns.exec("cat /sys/class/net/flannel0/ifindex"), index);
    cluster.stop_all();
}

#[test]
fn changed_settings_are_applied_by_the_next_daemon() {
    if !root_or_skip("changed_settings_are_applied_by_the_next_daemon") {
        return;
    }
    let mut cluster = Cluster::new(&[]);
    let lines = cluster.lines();
    let flows = |cluster: &Cluster| {
        ping(cluster.pod(0).netns, cluster.pod(1).address, 2, "").unwrap();
        tcp_transfer(cluster.pod(0), cluster.pod(1), 1_000_000);
    };

    // Another MTU of the interface to the peers.
    cluster.take(1).stop();
    cluster.lab.host(1).netns.ip("link set eth0 mtu 1400");
    cluster.spawn(1, &[]);
    cluster.daemon(1).wait_ready();
    assert!(cluster.device(1).contains("mtu 1372"), "{}", cluster.device(1));
    assert_eq!(cluster.daemon(1).count("taking over flannel0"), 1);
    // The other host still sends larger ones, which would be lost.
    cluster.lab.host(1).netns.ip("link set eth0 mtu 1500");

    // Other flags, which a device of that kind cannot serve.
    for (args, wanted) in [
        (["--queues=1"].as_slice(), "vnet_hdr on"),
        (["--offload=off"].as_slice(), "vnet_hdr off"),
        ([].as_slice(), "multi_queue numqueues 16"),
    ] {
        cluster.take(1).kill9();
        cluster.spawn(1, args);
        cluster.daemon(1).wait_ready();
        assert_eq!(cluster.daemon(1).count("removing flannel0"), 1);
        assert!(cluster.device(1).contains(wanted), "{args:?}: {}", cluster.device(1));
        cluster.daemon(1).wait_log("is up", PATIENCE);
        flows(&cluster);
        cluster.assert_few_lines(&lines);
    }

    // Another subnet: somebody else has ours by now.
    let old = cluster.lab.host(1).subnet_env()["FLANNEL_SUBNET"].clone();
    cluster.take(1).stop();
    let subnet = old.replace(".1/24", ".0-24");
    let lease = format!("{}/subnets/{subnet}", cluster.store);
    let foreign = std::fs::read_to_string(&lease).unwrap().replace("10.4.7.22", "10.4.7.99");
    std::fs::write(&lease, foreign).unwrap();
    cluster.spawn(1, &[]);
    cluster.daemon(1).wait_ready();
    let new = cluster.lab.host(1).subnet_env()["FLANNEL_SUBNET"].clone();
    assert_ne!(old, new);
    let device = cluster.device(1);
    assert!(device.contains(&new.replace(".1/24", ".0/32")), "{new}: {device}");
    assert!(!device.contains(&old.replace(".1/24", ".0/32")), "{old}: {device}");

    // Another network.
    for host in 0..2 {
        cluster.take(host).stop();
    }
    std::fs::remove_dir_all(format!("{}/subnets", cluster.store)).unwrap();
    std::fs::write(format!("{}/config", cluster.store), CONFIG.replace("172.7.", "172.8."))
        .unwrap();
    for host in 0..2 {
        cluster.spawn(host, &[]);
    }
    for host in 0..2 {
        cluster.daemon(host).wait_ready();
        let device = cluster.device(host);
        assert!(device.contains("172.8.0.0/16") && !device.contains("172.7."), "{device}");
        cluster.daemon(host).wait_log("is up", PATIENCE);
    }
    let far = cluster.lab.host(1).tunnel().address;
    ping(&cluster.lab.host(0).netns, far, 2, "").unwrap();
    cluster.assert_few_lines(&lines);
}

#[test]
fn a_second_daemon_leaves_the_first_alone() {
    let test = "a_second_daemon_leaves_the_first_alone";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    let running = cluster.run();
    let host = cluster.lab.host(1);
    // The same port, and then another address, so that only the device is the same.
    host.netns.ip("link add other0 type bridge");
    host.netns.ip("addr add 10.9.9.9/24 dev other0");
    host.netns.ip("link set other0 up");
    for (iface, wanted) in [
        ("eth0", "UDP port 10.4.7.22:8285 is in use"),
        ("other0", "flannel0 is held by another program"),
    ] {
        let subnet_file = host.subnet_file();
        let args = [
            "--store-dir",
            &cluster.store,
            "--subnet-file",
            subnet_file.to_str().unwrap(),
            "--iface",
            iface,
        ];
        let ended = Daemon::spawn(&host.netns, &args, &[]).wait();
        assert_eq!(ended.status.code(), Some(1), "{}", ended.log);
        assert!(ended.log.contains(wanted), "{iface}: {}", ended.log);
    }
    cluster.finish_lossless(test, running);
}

#[test]
fn a_renamed_device_is_replaced() {
    let test = "a_renamed_device_is_replaced";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    let running = cluster.run();
    let netns = &cluster.lab.host(1).netns;
    // A device has to be down to be renamed, on kernels before 6.2.
    let script = "ip link set flannel0 down && ip link set flannel0 name strange0";
    assert!(netns.command("sh").args(["-c", script]).status().unwrap().success());
    cluster.daemon(1).wait_log("put back as it must be", PATIENCE);
    cluster.finish(test, running);
    assert!(!netns.ip("link show").contains("strange0"));
}

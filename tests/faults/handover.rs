//! A planned restart under a service manager, which keeps device and sockets open meanwhile.

use crate::cluster::Cluster;
use crate::support::daemon::PATIENCE;
use crate::support::root_or_skip;
use crate::support::service_manager::ServiceManager;
use crate::support::traffic::{ping, tcp_transfer};

/// Queues of a device, and the sockets that share the port, by default.
const QUEUES: usize = 16;
const RECEIVERS: usize = 8;

/// A cluster whose daemons a service manager starts.
pub(crate) struct Managed {
    pub(crate) cluster: Cluster,
    managers: [ServiceManager; 2],
}

impl Managed {
    pub(crate) fn new() -> Managed {
        let mut cluster = Cluster::new(&[]);
        let managers = [0, 1].map(|host| ServiceManager::new(cluster.lab.host(host)));
        for host in [0, 1] {
            cluster.take(host).stop();
        }
        let mut managed = Managed { cluster, managers };
        for host in [0, 1] {
            managed.start(host, &[]);
            managed.wait_kept(host, QUEUES, RECEIVERS);
        }
        managed
    }

    pub(crate) fn start(&mut self, host: usize, args: &[&str]) {
        let args = [&["--store-dir", self.cluster.store.as_str()], args].concat();
        let daemon = self.managers[host].start(self.cluster.lab.host(host), &args);
        daemon.wait_ready();
        daemon.wait_log("is up", PATIENCE);
        self.cluster.put(host, daemon);
    }

    fn wait_kept(&self, host: usize, queues: usize, receivers: usize) {
        self.managers[host].wait_kept("tun", queues);
        self.managers[host].wait_kept("udp", receivers);
    }

    pub(crate) fn traffic_flows(&self) {
        ping(self.cluster.pod(0).netns, self.cluster.pod(1).address, 2, "").unwrap();
        tcp_transfer(self.cluster.pod(0), self.cluster.pod(1), 1_000_000);
    }
}

#[test]
fn a_planned_restart_loses_no_packet() {
    let test = "a_planned_restart_loses_no_packet";
    if !root_or_skip(test) {
        return;
    }
    let mut managed = Managed::new();
    let running = managed.cluster.run();
    // Those that send probes wait in the device of host 0, then in the sockets of host 1.
    for host in [0, 1, 0, 1] {
        let ended = managed.cluster.take(host).stop();
        assert_eq!(ended.status.code(), Some(0));
        assert_eq!(managed.managers[host].kept()["tun"], QUEUES);
        managed.start(host, &[]);
        managed.wait_kept(host, QUEUES, RECEIVERS);
        assert_eq!(managed.cluster.daemon(host).count("taking over flannel0"), 1);
    }
    let outcome = managed.cluster.finish_lossless(test, running);
    assert_eq!(outcome.probes_doubled, 0);
}

/// What is kept and does not fit is let go, and then the new can be had.
#[test]
fn changed_settings_are_applied_by_a_planned_restart() {
    if !root_or_skip("changed_settings_are_applied_by_a_planned_restart") {
        return;
    }
    let mut managed = Managed::new();
    let lines = managed.cluster.lines();
    for (args, shape, queues, receivers) in [
        (["--queues=1"].as_slice(), "vnet_hdr on", 1, 1),
        (["--udp-gro=false"].as_slice(), "numqueues 16", 16, 8),
        (["--offload=off"].as_slice(), "vnet_hdr off", 1, 1),
        (["--tun-name=other0"].as_slice(), "numqueues 16", 16, 8),
        ([].as_slice(), "numqueues 16", 16, 8),
    ] {
        managed.cluster.take(1).stop();
        managed.start(1, args);
        managed.wait_kept(1, queues, receivers);
        let devices = managed.cluster.lab.host(1).netns.ip("-d link show type tun");
        assert!(devices.contains(shape), "{args:?}: {devices}");
        assert_eq!(devices.matches("tun type tun").count(), 1, "{args:?}: {devices}");
        managed.traffic_flows();
        managed.cluster.assert_few_lines(&lines);
    }
}

/// Of a device that was deleted while the daemon ran, nothing is kept.
#[test]
fn a_replaced_device_is_kept_instead_of_the_first() {
    if !root_or_skip("a_replaced_device_is_kept_instead_of_the_first") {
        return;
    }
    let mut managed = Managed::new();
    let lines = managed.cluster.lines();
    let manager = &managed.managers[1];
    let removals = manager.removals("tun");
    managed.cluster.lab.host(1).netns.ip("link delete flannel0");
    manager.wait_kept_anew("tun", QUEUES, removals + 1);
    managed.cluster.take(1).kill9();
    // The carrier goes with the last descriptor: it is this device's queues that are kept.
    let device = managed.cluster.device(1);
    assert!(device.contains("LOWER_UP"), "{device}");
    managed.start(1, &[]);
    assert_eq!(managed.cluster.daemon(1).count("taking over flannel0"), 1);
    managed.traffic_flows();
    managed.cluster.assert_few_lines(&lines);
}

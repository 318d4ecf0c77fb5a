//! More leases than any network has hosts, for every kind of store.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use super::{ATTACKER, Cost, LITTLE};
use crate::cluster::Cluster;
use crate::support::daemon::{Daemon, PATIENCE};

/// So many, beside those of the cluster's hosts.
pub(super) const LEASES: u32 = 100_000 - 2;

/// What they may cost a daemon: 2.6 KiB of memory for each.
pub(super) const COST: Cost = Cost { growth_kib: 256 * 1024, ..LITTLE };

/// The last of them is the attacker's own, so that it can be seen when the hosts know it.
const LAST: &str = "172.7.201.0-24";
const LAST_POD: &str = "172.7.201.9";

/// All of them, name and value, in alphabetical order: each of another host, and outside of the
/// overlay network but for the last.
pub(super) fn leases() -> impl Iterator<Item = (String, String)> {
    let value = |host| format!(r#"{{"PublicIP":"{host}","PublicIPv6":null}}"#);
    let usual = (0..LEASES - 1).map(move |number| {
        let subnet = Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 0, 0).to_bits() + 4 * number);
        let host = Ipv4Addr::from_bits(Ipv4Addr::new(11, 0, 0, 1).to_bits() + number);
        (format!("{subnet}-30"), value(host))
    });
    usual.chain([(LAST.to_owned(), value(ATTACKER))])
}

/// The far end of the last lease.
pub(super) struct Last(UdpSocket);

impl Last {
    pub(super) fn new(cluster: &Cluster) -> Last {
        let socket = cluster.lab.switch().udp(SocketAddrV4::new(ATTACKER, 8285));
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Last(socket)
    }

    /// Waits until both hosts know the last lease, and so all.
    pub(super) fn wait_until_known(&self, cluster: &Cluster) {
        for host in 0..2 {
            let pod = cluster.pod(host);
            let socket = pod.netns.udp(SocketAddrV4::new(pod.address, 0));
            let mut buffer = [0; 128];
            wait_while_it_works(cluster.daemon(host), || {
                // Refused as long as there is no route.
                let _ = socket.send_to(b"do you know me?", (LAST_POD, 9));
                let arrived = self.0.recv(&mut buffer).is_ok();
                arrived && buffer[12..16] == pod.address.octets()
            });
        }
    }

    /// Waits until neither does.
    pub(super) fn wait_until_forgotten(&self, cluster: &Cluster) {
        for host in 0..2 {
            let netns = cluster.pod(host).netns;
            wait_while_it_works(cluster.daemon(host), || {
                let output = netns.try_exec(&format!("ping -n -c 1 -W 1 {LAST_POD}"));
                String::from_utf8_lossy(&output.stdout).contains("Net Unreachable")
            });
        }
    }
}

/// Waits for something. So many leases may take a busy machine minutes; but while it gets on, the
/// daemon tells of more and more of them.
fn wait_while_it_works(daemon: &Daemon, mut is_done: impl FnMut() -> bool) {
    let (mut lines, mut since) = (0, Instant::now());
    while !is_done() {
        let now = daemon.count("peers are up");
        if now > lines {
            (lines, since) = (now, Instant::now());
        }
        assert!(since.elapsed() < 2 * PATIENCE, "the last lease is not seen");
    }
}

//! What a host must be like again after a fault, and what its daemon must not count without one.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;
use std::path::PathBuf;

use flanneld::admin::report::{DirectionReport, Report};
use serde_json::Value;

use crate::overlay::Overlay;
use crate::support::admin::{self, until};
use crate::support::lab::NETWORK;

/// 172.7.251.0/24: neither a daemon's nor one of the churn.
const MARKER: u8 = 251;

impl Overlay {
    /// The file of a host's lease.
    pub(crate) fn lease(&self, host: usize) -> PathBuf {
        self.store().file(&format!("{}-24", self.host(host).tunnel().address))
    }

    /// Makes hosts and pods forget what they have learnt about paths, their MTUs above all.
    pub(crate) fn forget_paths(&self) {
        for netns in self.namespaces() {
            netns.ip("route flush cache");
        }
    }

    /// What each host is like: its lease, its device, and what its daemon says that must not change.
    pub(crate) fn health(&self) -> Vec<String> {
        let health = |host: usize| {
            let netns = &self.host(host).netns;
            let ip = |args: &str| {
                let output = netns.try_exec(&format!("ip -o {args}")).stdout;
                let text = String::from_utf8_lossy(&output).into_owned();
                // A device that was made again has another index.
                text.split_once(": ").map_or(String::new(), |(_, text)| text.to_owned())
            };
            let status = admin::status(self.host(host), &["--json"]).stdout;
            let status: Value = serde_json::from_slice(&status).unwrap_or_default();
            [
                format!("lease {}", self.lease(host).exists()),
                // The kernel is sure that it is up once the carrier was away.
                ip("link show flannel0").replace("state UP", "state UNKNOWN"),
                ip("-4 addr show flannel0"),
                netns.ip(&format!("route show {NETWORK}")),
                format!("ready {} {}", status["ready"], status["lease"]["subnet"]),
                format!("connected {}", status["store"]["connected"]),
                format!("offload {}", status["offload"]),
            ]
            .join("\n")
        };
        self.hosts().map(health).collect()
    }

    /// Gives a lease to another host, and waits until all daemons know it: then they know whatever was
    /// done to the store before, too. `number` must not be that of the time before.
    pub(crate) fn wait_until_known(&self, number: u64) {
        // Neither a host's address nor one of the churn.
        let (subnet, host) = (MARKER, 251 + (number % 3) as u8);
        self.store().put(subnet, host).unwrap();
        let (ip, subnet) = (Ipv4Addr::new(10, 4, 7, host), format!("172.7.{subnet}.0/24"));
        let know = |host: usize| {
            let peers = self.report(host).peers;
            peers.iter().any(|peer| peer.public_ip == ip && peer.subnets.contains(&subnet))
        };
        until("all know a lease", || self.hosts().all(know), |&known| known);
    }

    /// What the daemon of a host tells.
    fn report(&self, host: usize) -> Report {
        serde_json::from_value(admin::report(self.host(host))).unwrap()
    }

    /// How many packets each daemon has dropped, and errors it has seen.
    pub(crate) fn refused(&self) -> Vec<u64> {
        let of_direction = |direction: &DirectionReport| {
            let drops = direction.drops.iter();
            // The host's own multicast on flannel0 may be anything but IPv4.
            let drops = drops.filter(|(reason, _)| *reason != "not_ipv4").map(|(_, n)| n);
            drops.sum::<u64>() + direction.errors + direction.icmp_errors
        };
        let of_host = |host: usize| {
            let report = self.report(host);
            of_direction(&report.egress) + of_direction(&report.ingress)
        };
        self.hosts().map(of_host).collect()
    }
}

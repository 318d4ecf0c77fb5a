//! What the daemon knows of itself at one moment: the JSON of `flanneld status --json`.
//!
//! Fields are only ever added. Times are seconds since the Unix epoch, ages seconds; counters count
//! from the daemon's start; packets and bytes are those of the pods, without the tunnel's headers.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The daemon's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// When it started.
    pub started_at: u64,
    /// Whether the overlay works on this host: what `/readyz` says.
    pub ready: bool,
    /// What is missing for that.
    pub not_ready: Vec<String>,
    /// Where the leases are; none before it was opened.
    pub store: Option<StoreReport>,
    /// This host's lease; none before there was one.
    pub lease: Option<LeaseReport>,
    /// The device that takes the pods' packets; none before it was set up.
    pub device: Option<DeviceReport>,
    /// The traffic rules.
    pub rules: RulesReport,
    /// Whether `subnet.env` says what is true.
    pub subnet_file_written: bool,
    /// Which of the kernel's offloads are in use.
    pub offload: OffloadReport,
    /// Subnets in the table of routes.
    pub routes: usize,
    /// From the pods to the peers.
    pub egress: DirectionReport,
    /// From the peers to the pods.
    pub ingress: DirectionReport,
    /// The other hosts, by their addresses.
    pub peers: Vec<PeerReport>,
}

/// The store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StoreReport {
    /// Which one: `etcd at http://127.0.0.1:2379`.
    pub name: String,
    /// Whether it has ever answered.
    pub reached: bool,
    /// Whether it answers now: the last request, and the watch.
    pub connected: bool,
    /// Why not.
    pub trouble: Option<String>,
}

/// This host's lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeaseReport {
    /// The overlay network.
    pub network: String,
    /// This host's part of it.
    pub subnet: String,
    /// Where the peers send to.
    pub public_ip: Ipv4Addr,
    /// Whether it is ours now.
    pub held: bool,
    /// When it ends unless it is renewed; none for a reservation.
    pub expires_at: Option<u64>,
}

/// The device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// Its name.
    pub name: String,
    /// The largest packet of a pod.
    pub mtu_bytes: u16,
    /// Why it does not carry packets; none if it does.
    pub trouble: Option<String>,
}

/// The traffic rules.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RulesReport {
    /// Whether there are any, as there shall be.
    pub set: bool,
    /// Why they are not as they shall be.
    pub trouble: Option<String>,
}

/// What the kernel does for us. Each is on at first if it was wished and the kernel can do it, and
/// stays off once it was switched off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffloadReport {
    /// TCP superpackets at the device.
    pub tun_tso: bool,
    /// UDP superpackets at the device.
    pub tun_uso: bool,
    /// Merging before writing to the device.
    pub merging: bool,
    /// Segmentation by the socket.
    pub udp_gso: bool,
    /// Merging by the socket.
    pub udp_gro: bool,
}

impl OffloadReport {
    /// Each with its name.
    pub fn each(self) -> [(&'static str, bool); 5] {
        [
            ("tun_tso", self.tun_tso),
            ("tun_uso", self.tun_uso),
            ("merging", self.merging),
            ("udp_gso", self.udp_gso),
            ("udp_gro", self.udp_gro),
        ]
    }
}

/// One direction's counters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DirectionReport {
    /// Packets that were passed on.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Their speed over the last second.
    pub bits_per_second: u64,
    /// Wake-ups that found work.
    pub batches: u64,
    /// System calls that moved packets.
    pub syscalls: u64,
    /// Superpackets that came in whole.
    pub superpackets_in: u64,
    /// Superpackets that went out whole.
    pub superpackets_out: u64,
    /// ICMP errors that were sent.
    pub icmp_errors: u64,
    /// Errors that the kernel reported.
    pub errors: u64,
    /// Packets that went no further, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Packets that the kernel dropped before we could take them, as a queue was full: the
    /// device's (since it was last made), or the sockets', where a wrong UDP checksum counts as
    /// well. None while there is no device.
    pub queue_drops: Option<u64>,
}

/// Another host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Where it is sent to.
    pub public_ip: Ipv4Addr,
    /// What it leases.
    pub subnets: Vec<String>,
    /// How long this daemon has known its (oldest) lease, unchanged.
    pub lease_age_seconds: u64,
    /// When a packet of it was last seen, to a second.
    pub last_seen_at: Option<u64>,
    /// Sent to it.
    pub egress: PeerDirectionReport,
    /// Received from it.
    pub ingress: PeerDirectionReport,
}

/// One direction of a peer's traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerDirectionReport {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Their speed over the last second.
    pub bits_per_second: u64,
    /// Packets that were dropped by the checks, or could not be sent.
    pub drops: u64,
}

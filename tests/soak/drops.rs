//! What the kernel says that it dropped, in all namespaces of a lab.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs::read_to_string;
use std::ops::{AddAssign, Sub};

use serde_json::Value;

use crate::support::netns::Netns;

/// Counters of the kernel. Each counts buffers, and a buffer may hold a train of many packets. Those
/// of a device go with it, so a difference may be negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Drops {
    /// By devices: a full queue of `flannel0` or of a veth.
    pub(crate) devices: i64,
    /// By full UDP sockets, the daemons' among them.
    pub(crate) sockets: i64,
    /// Fragments whose siblings did not come.
    pub(crate) fragments: i64,
    /// Between two devices, by a full queue of a processor; on the whole machine.
    pub(crate) backlogs: i64,
    /// Because of a wrong checksum: in nobody's stack may one arrive.
    pub(crate) checksums: i64,
}

impl Drops {
    /// The counters now, over all of `namespaces`.
    pub(crate) fn read<'n>(namespaces: impl IntoIterator<Item = &'n Netns>) -> Drops {
        let mut drops = Drops { backlogs: backlogs(), ..Drops::default() };
        for netns in namespaces {
            let links: Value = serde_json::from_str(&netns.ip("-s -j link")).unwrap();
            for link in links.as_array().unwrap() {
                for direction in ["rx", "tx"] {
                    drops.devices += link["stats64"][direction]["dropped"].as_i64().unwrap();
                }
            }
            let counters = netns.counters();
            let of =
                |protocol: &str, name: &str| i64::try_from(counters.of(protocol, name)).unwrap();
            drops.sockets += of("Udp", "RcvbufErrors") + of("Udp", "SndbufErrors");
            drops.sockets += of("Udp", "MemErrors");
            drops.fragments += of("Ip", "ReasmFails");
            for protocol in ["Udp", "Tcp", "Icmp"] {
                drops.checksums += of(protocol, "InCsumErrors");
            }
        }
        drops
    }

    /// How many buffers, at most, did not reach a program.
    pub(crate) fn buffers(&self) -> i64 {
        self.devices + self.sockets + self.fragments + self.backlogs + self.checksums
    }
}

impl Sub for Drops {
    type Output = Drops;

    fn sub(self, before: Drops) -> Drops {
        Drops {
            devices: self.devices - before.devices,
            sockets: self.sockets - before.sockets,
            fragments: self.fragments - before.fragments,
            backlogs: self.backlogs - before.backlogs,
            checksums: self.checksums - before.checksums,
        }
    }
}

impl AddAssign for Drops {
    fn add_assign(&mut self, more: Drops) {
        self.devices += more.devices;
        self.sockets += more.sockets;
        self.fragments += more.fragments;
        self.backlogs += more.backlogs;
        self.checksums += more.checksums;
    }
}

impl fmt::Display for Drops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Drops { devices, sockets, fragments, backlogs, checksums } = self;
        write!(
            f,
            "devices={devices} sockets={sockets} fragments={fragments} backlogs={backlogs} \
             checksums={checksums}"
        )
    }
}

/// The second column of `/proc/net/softnet_stat`, over all processors.
fn backlogs() -> i64 {
    let text = read_to_string("/proc/net/softnet_stat").unwrap();
    let dropped = |line: &str| line.split_whitespace().nth(1).map(|n| i64::from_str_radix(n, 16));
    text.lines().filter_map(dropped).map(Result::unwrap).sum()
}

//! Somebody takes `flannel0` away under traffic, or a part of what makes it.

use std::time::Instant;

use crate::cluster::Cluster;
use crate::support::daemon::PATIENCE;
use crate::support::root_or_skip;

/// On both hosts at once: where the probes leave, and where they arrive.
#[test]
fn what_is_taken_from_the_device_is_put_back() {
    if !root_or_skip("what_is_taken_from_the_device_is_put_back") {
        return;
    }
    let cluster = Cluster::new(&[]);
    for (n, damage) in [
        "link delete flannel0",
        "link set flannel0 down",
        "addr flush dev flannel0",
        "route del 172.7.0.0/16",
        "link set flannel0 mtu 1000",
    ]
    .into_iter()
    .enumerate()
    {
        cluster.endure(damage, || {
            for host in cluster.lab.hosts() {
                host.netns.ip(damage);
            }
            let mended = "flannel0 was changed from outside: put back";
            for host in 0..2 {
                cluster.daemon(host).wait_nth_log(mended, n + 1, PATIENCE);
            }
            Instant::now()
        });
        for (number, host) in cluster.lab.hosts().iter().enumerate() {
            let device = cluster.device(number);
            let address = format!("inet {}/32", host.tunnel().address);
            for part in ["UP,LOWER_UP", "mtu 1472", &address, "172.7.0.0/16"] {
                assert!(device.contains(part), "{damage}: no {part:?} in {device}");
            }
        }
    }
}

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
    for damage in [
        "link delete flannel0",
        "link set flannel0 down",
        "addr flush dev flannel0",
        "route del 172.7.0.0/16",
        "link set flannel0 mtu 1000",
    ] {
        let mended = "flannel0 was changed from outside: put back";
        cluster.endure(damage, || {
            let before = [0, 1].map(|host| cluster.daemon(host).count(mended));
            for host in cluster.lab.hosts() {
                host.netns.ip(damage);
            }
            for (host, times) in before.into_iter().enumerate() {
                cluster.daemon(host).wait_nth_log(mended, times + 1, PATIENCE);
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

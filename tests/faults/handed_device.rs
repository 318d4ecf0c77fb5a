//! Somebody takes `flannel0` away while a service manager holds it as well.

use std::time::Instant;

use crate::cluster::Cluster;
use crate::handover::Managed;
use crate::support::daemon::PATIENCE;
use crate::support::{root_or_skip, skip};

#[test]
fn a_device_that_is_renamed_while_it_is_up_is_replaced() {
    let test = "a_device_that_is_renamed_while_it_is_up_is_replaced";
    if !root_or_skip(test) {
        return;
    }
    let managed = Managed::new();
    let cluster: &Cluster = &managed.cluster;
    let netns = &cluster.lab.host(1).netns;
    netns.ip("link add before0 up type bridge");
    if !netns.try_exec("ip link set before0 name after0").status.success() {
        return skip(test, "Linux 6.2, where a device need not be down to be renamed");
    }
    cluster.endure(test, || {
        netns.ip("link set flannel0 name strange0");
        cluster.daemon(1).wait_log("put back as it must be", PATIENCE);
        Instant::now()
    });
    assert!(!netns.ip("link show").contains("strange0"));
}

//! Somebody takes `flannel0` away while a service manager holds it as well.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::handover::Managed;
use crate::support::daemon::PATIENCE;
use crate::support::{root_or_skip, skip};

/// Time between two changes of a lease.
const CHURN: Duration = Duration::from_millis(300);

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

/// A device that cannot be put back for a while, beside a store whose leases change all the time.
#[test]
fn a_device_is_put_back_soon_after_its_route_is_free() {
    let test = "a_device_is_put_back_soon_after_its_route_is_free";
    if !root_or_skip(test) {
        return;
    }
    let managed = Managed::new();
    let cluster: &Cluster = &managed.cluster;
    let (netns, daemon) = (&cluster.lab.host(1).netns, cluster.daemon(1));
    let (done, is_done) = channel::<()>();
    let write = move || {
        let mut addresses = ["10.4.7.98", "10.4.7.99"].into_iter().cycle();
        while is_done.recv_timeout(CHURN) == Err(RecvTimeoutError::Timeout) {
            cluster.write_lease("172.7.150.0-24", addresses.next().unwrap());
        }
    };
    scope(|threads| {
        let _done = done;
        threads.spawn(write);
        netns.ip("link add stray0 up type bridge");
        netns.ip("route replace 172.7.0.0/16 dev stray0");
        netns.ip("link delete flannel0");
        daemon.wait_log("flannel0 is not as it must be", PATIENCE);
        sleep(Duration::from_millis(2_500));
        assert_eq!(daemon.count("put back as it must be"), 0);
        netns.ip("link delete stray0");
        let healed = Instant::now();
        daemon.wait_log("put back as it must be", PATIENCE);
        eprintln!("{test}: put back {} ms after the route was free", healed.elapsed().as_millis());
    });
    managed.traffic_flows();
}

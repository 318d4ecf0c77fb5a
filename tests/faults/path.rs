//! What lies between the hosts treats their datagrams badly.

use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::support::root_or_skip;
use crate::support::routed::RoutedPath;
use crate::support::wire::{Harm, Wire};

/// How long a wire is bad.
const BAD_TIME: Duration = Duration::from_secs(3);

/// Traffic by a bad wire; the cluster afterwards.
fn by_a_wire_that(case: &str, harms: &[(Harm, u64)]) -> Cluster {
    let cluster = Cluster::new(&[]);
    // As behind a network card: the kernel merges datagrams before the daemon sees them.
    for host in cluster.lab.hosts() {
        host.netns.exec("ethtool -K eth0 gro on");
    }
    cluster.endure(case, || {
        let wire = Wire::insert(&cluster.lab, 1, harms);
        sleep(BAD_TIME);
        let healed = Instant::now();
        for ((harm, _), datagrams) in harms.iter().zip(wire.harmed()) {
            eprintln!("{case}: {datagrams} times {harm:?}");
            assert_ne!(datagrams, 0, "{harm:?}");
        }
        healed
    });
    cluster
}

#[test]
fn a_tenth_of_the_datagrams_is_overtaken() {
    let test = "a_tenth_of_the_datagrams_is_overtaken";
    if root_or_skip(test) {
        by_a_wire_that(test, &[(Harm::HoldBack, 10)]);
    }
}

#[test]
fn a_tenth_of_the_datagrams_comes_twice() {
    let test = "a_tenth_of_the_datagrams_comes_twice";
    if root_or_skip(test) {
        by_a_wire_that(test, &[(Harm::Double, 10)]);
    }
}

/// Nothing but the packets' own checksums tells what the outer one does not: it must arrive as
/// wrong as it came, whatever is merged or cut on the way.
#[test]
fn corrupted_datagrams_reach_no_program() {
    let test = "corrupted_datagrams_reach_no_program";
    if !root_or_skip(test) {
        return;
    }
    let flips = [Harm::FlipBit, Harm::FlipBitUnseen, Harm::FlipBitWithoutChecksum];
    let cluster = by_a_wire_that(test, &flips.map(|flip| (flip, 1)));
    // The first kind is refused by the host's kernel, the others by the pod's.
    assert_ne!(cluster.lab.host(1).netns.counters().of("Udp", "InCsumErrors"), 0);
    assert_ne!(cluster.pod(1).netns.counters().of("Tcp", "InCsumErrors"), 0);
}

/// A path narrows while connections are open. They go on, and the pods learn what it carries.
fn by_a_path_that_narrows(case: &str, routers_tell: bool) {
    let cluster = Cluster::new(&[]);
    let path = RoutedPath::between_hosts(&cluster.lab);
    if !routers_tell {
        path.silence();
    }
    cluster.endure(case, || {
        path.set_mtu(1400);
        Instant::now()
    });
    // 1,400 bytes hold fragments of 1,396, for these carry multiples of 8; less the headers.
    let route = cluster.pod(0).netns.ip(&format!("route get {}", cluster.pod(1).address));
    assert!(route.contains("mtu 1368"), "{route}");
}

#[test]
fn a_path_narrows_and_routers_tell() {
    let test = "a_path_narrows_and_routers_tell";
    if root_or_skip(test) {
        by_a_path_that_narrows(test, true);
    }
}

#[test]
fn a_path_narrows_and_routers_are_silent() {
    let test = "a_path_narrows_and_routers_are_silent";
    if root_or_skip(test) {
        by_a_path_that_narrows(test, false);
    }
}

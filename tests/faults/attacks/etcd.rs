//! Whoever can write the subnets in etcd.

use std::net::SocketAddrV4;
use std::time::Instant;

use etcd_client::{Txn, TxnOp};
use tokio::runtime::Runtime;

use super::leases::{COST, Last, leases};
use super::names::{NAMES, VALUE, assert_each_is_told_once};
use super::{Cost, LITTLE};
use crate::cluster::Cluster;
use crate::support::daemon::PATIENCE;
use crate::support::etcd::{Etcd, PREFIX, Security, etcd_or_skip};
use crate::support::lab::{CONFIG, Lab};
use crate::support::{relay, root_or_skip};

/// Operations in one transaction: below the 1.5 MiB of a request that etcd takes.
const AT_ONCE: usize = 8_000;

/// The cluster, its etcd, and what runs the attacker's client.
struct Scene {
    cluster: Cluster,
    etcd: Etcd,
    runtime: Runtime,
}

impl Scene {
    fn new() -> Scene {
        let runtime = Runtime::new().unwrap();
        let etcd = Etcd::prepare(Security::Plain);
        let mut etcd = etcd.with_args(&["--max-txn-ops", &AT_ONCE.to_string()]);
        runtime.block_on(async {
            etcd.start_again().await;
            etcd.client().await.put(format!("{PREFIX}/config"), CONFIG, None).await.unwrap();
        });
        let lab = Lab::new(2);
        let target: SocketAddrV4 =
            etcd.endpoint().strip_prefix("http://").unwrap().parse().unwrap();
        let endpoints = format!("--etcd-endpoints=http://{}", relay::into_lab(&lab, target));
        let cluster = Cluster::on_etcd(lab, vec![vec![endpoints]; 2]);
        Scene { cluster, etcd, runtime }
    }

    /// Puts these under the subnets.
    fn put(&self, entries: impl Iterator<Item = (impl AsRef<[u8]>, String)>) {
        self.change(entries.map(|(name, value)| TxnOp::put(key(&name), value, None)).collect());
    }

    /// Leases a subnet to an honest host; both daemons see that.
    fn news(&self, subnet: &str) {
        self.put([(format!("{subnet}-24"), VALUE.to_owned())].into_iter());
        for host in 0..2 {
            let wanted = format!("{subnet}/24 at 10.4.7.66 is up");
            self.cluster.daemon(host).wait_log(&wanted, PATIENCE);
        }
    }

    /// Deletes them, one by one: etcd takes far longer for as many by their prefix.
    fn delete(&self, names: impl Iterator<Item = String>) {
        self.change(names.map(|name| TxnOp::delete(key(&name), None)).collect());
    }

    fn change(&self, operations: Vec<TxnOp>) {
        self.runtime.block_on(async {
            let mut client = self.etcd.client().await;
            for operations in operations.chunks(AT_ONCE) {
                client.txn(Txn::new().and_then(operations)).await.unwrap();
            }
        });
    }
}

fn key(name: impl AsRef<[u8]>) -> Vec<u8> {
    [format!("{PREFIX}/subnets/").as_bytes(), name.as_ref()].concat()
}

#[test]
fn a_hundred_thousand_leases_in_etcd_harm_nobody() {
    let test = "a_hundred_thousand_leases_in_etcd_harm_nobody";
    if !root_or_skip(test) || !etcd_or_skip(test) {
        return;
    }
    let scene = Scene::new();
    let last = Last::new(&scene.cluster);
    scene.cluster.withstand(test, COST, || {
        let started = Instant::now();
        scene.put(leases());
        eprintln!("{test}: written after {:?}", started.elapsed());
        last.wait_until_known(&scene.cluster);
        let kib = scene.cluster.daemon(1).memory_kib("RssAnon");
        eprintln!("{test}: known after {:?}, with {kib} KiB in all", started.elapsed());
        let started = Instant::now();
        scene.delete(leases().map(|(name, _)| name));
        last.wait_until_forgotten(&scene.cluster);
        eprintln!("{test}: forgotten after {:?}", started.elapsed());
    });
}

#[test]
fn huge_keys_and_values_harm_nobody() {
    let test = "huge_keys_and_values_harm_nobody";
    if !root_or_skip(test) || !etcd_or_skip(test) {
        return;
    }
    const EACH: usize = 30;
    const MESSAGES_KIB: u64 = 6 * 4096;
    let mut scene = Scene::new();
    let megabyte = "x".repeat(1 << 20);
    // A line for each; and gRPC's messages of 4 MiB at most, a few of them at a time.
    let cost = Cost { lines: 2 * EACH + 2, growth_kib: LITTLE.growth_kib + MESSAGES_KIB };
    let usual_kib = scene.cluster.daemon(0).memory_kib("VmHWM");
    scene.cluster.withstand(test, cost, || {
        for number in 0..EACH {
            // Keys that are no subnet's, and subnets whose values are no lease's.
            scene.put([(format!("{number}{megabyte}"), VALUE.to_owned())].into_iter());
            scene.put([(format!("172.7.{}.0-24", 150 + number), megabyte.clone())].into_iter());
        }
        scene.news("172.7.200.0");
    });
    // Who comes to such a store reads all of it, and holds no more of it at a time.
    let ended = scene.cluster.take(1).stop();
    scene.cluster.spawn(1, &[]);
    let daemon = scene.cluster.daemon(1);
    daemon.wait_ready();
    scene.news("172.7.201.0");
    let most_kib = daemon.memory_kib("VmHWM");
    eprintln!("{test}: at most {most_kib} KiB at the start, {usual_kib} KiB usually");
    assert!(most_kib <= usual_kib + cost.growth_kib, "{most_kib} KiB");
    for log in [ended.log, daemon.log(), scene.cluster.daemon(0).log()] {
        assert_each_is_told_once(&log, 2 * EACH);
        assert!(log.lines().all(|line| line.len() < 1_000), "{log}");
    }
}

/// What no file can be called, but a key.
const KEYS: [&[u8]; 7] = [
    b"",
    b"/",
    b"../config",
    b"../subnets/172.7.190.0-24",
    b"pods/172.7.190.0-24",
    b"172.7.190.0-24/",
    b"172.7.190.0-24\0",
];

#[test]
fn names_in_etcd_that_mean_harm_are_left_alone() {
    let test = "names_in_etcd_that_mean_harm_are_left_alone";
    if !root_or_skip(test) || !etcd_or_skip(test) {
        return;
    }
    let scene = Scene::new();
    let strays = NAMES.len() + KEYS.len();
    scene.cluster.withstand(test, Cost { lines: strays + 1, ..LITTLE }, || {
        scene.put(NAMES.iter().chain(&KEYS).map(|name| (name, VALUE.to_owned())));
        // Behind all that, an honest lease is seen as ever.
        scene.news("172.7.200.0");
    });
    for host in 0..2 {
        assert_each_is_told_once(&scene.cluster.daemon(host).log(), strays);
    }
}

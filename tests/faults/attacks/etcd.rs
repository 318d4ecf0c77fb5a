//! Whoever can write the subnets in etcd.

use std::net::SocketAddrV4;
use std::time::Instant;

use etcd_client::{Txn, TxnOp};
use tokio::runtime::Runtime;

use super::leases::{COST, Last, leases};
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
    fn put(&self, entries: impl Iterator<Item = (String, String)>) {
        self.change(entries.map(|(name, value)| TxnOp::put(key(&name), value, None)).collect());
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

fn key(name: &str) -> String {
    format!("{PREFIX}/subnets/{name}")
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
    let lease = |host: u8| format!(r#"{{"PublicIP":"10.4.7.{host}","PublicIPv6":null}}"#);
    let megabyte = "x".repeat(1 << 20);
    let news = |scene: &Scene, host: usize, number: u8| {
        let subnet = format!("172.7.{number}.0");
        scene.put([(format!("{subnet}-24"), lease(number))].into_iter());
        let wanted = format!("{subnet}/24 at 10.4.7.{number} is up");
        scene.cluster.daemon(host).wait_log(&wanted, PATIENCE);
    };
    // A line for each; and gRPC's messages of 4 MiB at most, a few of them at a time.
    let cost = Cost { lines: 2 * EACH + 2, growth_kib: LITTLE.growth_kib + MESSAGES_KIB };
    scene.cluster.withstand(test, cost, || {
        for number in 0..EACH {
            // Keys that are no subnet's, and subnets whose values are no lease's.
            scene.put([(format!("{number}{megabyte}"), lease(1))].into_iter());
            scene.put([(format!("172.7.{}.0-24", 150 + number), megabyte.clone())].into_iter());
        }
        for host in 0..2 {
            news(&scene, host, 200 + host as u8);
        }
    });
    // Who comes to such a store reads all of it, and holds no more of it at a time.
    let usual_kib = scene.cluster.daemon(0).memory_kib("VmHWM");
    scene.cluster.take(1).stop();
    scene.cluster.spawn(1, &[]);
    let daemon = scene.cluster.daemon(1);
    daemon.wait_ready();
    news(&scene, 1, 202);
    let most_kib = daemon.memory_kib("VmHWM");
    eprintln!("{test}: at most {most_kib} KiB at the start, {usual_kib} KiB in the other daemon");
    assert!(most_kib <= usual_kib + MESSAGES_KIB, "{most_kib} KiB");
    assert!(daemon.log().lines().all(|line| line.len() < 1_000), "{}", daemon.log());
}

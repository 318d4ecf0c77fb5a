//! Two daemons on a real etcd that is killed, emptied, compacted and littered: packets go on, and
//! leases come back.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::{Ipv4Addr, SocketAddrV4};

use etcd_client::{CompactionOptions, GetOptions};
use support::daemon::{Daemon, PATIENCE};
use support::etcd::{Etcd, PREFIX, Security, etcd_or_skip};
use support::lab::{CONFIG, Lab};
use support::traffic::{ping, tcp_transfer};
use support::{relay, root_or_skip};

struct Cluster {
    etcd: Etcd,
    lab: Lab,
    daemons: Vec<Daemon>,
}

fn may_run(test: &str) -> bool {
    root_or_skip(test) && etcd_or_skip(test)
}

impl Cluster {
    async fn new() -> Cluster {
        let etcd = Etcd::start(Security::Plain).await;
        etcd.client().await.put(format!("{PREFIX}/config"), CONFIG, None).await.unwrap();
        let mut lab = Lab::new(2);
        let target: SocketAddrV4 =
            etcd.endpoint().strip_prefix("http://").unwrap().parse().unwrap();
        let endpoints = format!("--etcd-endpoints=http://{}", relay::into_lab(&lab, target));
        let daemons: Vec<Daemon> =
            lab.hosts().iter().map(|host| host.spawn_daemon(&[&endpoints], &[])).collect();
        for (host, daemon) in daemons.iter().enumerate() {
            daemon.wait_ready();
            daemon.wait_log("is up", PATIENCE);
            lab.host_mut(host).add_pod();
        }
        Cluster { etcd, lab, daemons }
    }

    fn traffic_flows(&self) {
        let (a, b) = (self.lab.host(0).pod(0).end(), self.lab.host(1).pod(0).end());
        ping(a.netns, b.address, 2, "").unwrap();
        tcp_transfer(b, a, 1_000_000);
    }

    /// Waits until a host has its lease in etcd.
    async fn wait_for_lease(&self, host: usize, subnet: &str) {
        self.etcd.wait_for_lease(subnet, self.lab.host(host).address).await;
    }

    fn stop(self) -> Vec<String> {
        self.daemons
            .into_iter()
            .map(|daemon| {
                let ended = daemon.stop();
                assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
                ended.log
            })
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_is_away_stops_nothing() {
    if !may_run("an_etcd_that_is_away_stops_nothing") {
        return;
    }
    let mut cluster = Cluster::new().await;
    // Byte for byte what upstream writes.
    for host in 0..2 {
        cluster.wait_for_lease(host, &cluster.lab.host(host).lease()).await;
    }
    cluster.etcd.kill();
    cluster.traffic_flows();
    cluster.etcd.start_again().await;
    cluster.traffic_flows();
    for log in cluster.stop() {
        assert!(!log.contains("is gone"), "routes were dropped\n{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_etcd_gets_the_same_leases_again() {
    if !may_run("an_emptied_etcd_gets_the_same_leases_again") {
        return;
    }
    let mut cluster = Cluster::new().await;
    let leases = [0, 1].map(|host| cluster.lab.host(host).lease());
    cluster.etcd.kill();
    cluster.etcd.empty();
    cluster.etcd.start_again().await;
    cluster.traffic_flows();
    cluster.wait_for_lease(0, &leases[0]).await;
    cluster.wait_for_lease(1, &leases[1]).await;
    cluster.traffic_flows();
    for log in cluster.stop() {
        assert!(!log.contains("is gone"), "routes were dropped\n{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn litter_under_subnets_costs_no_peer() {
    if !may_run("litter_under_subnets_costs_no_peer") {
        return;
    }
    let cluster = Cluster::new().await;
    let mut client = cluster.etcd.client().await;
    for (name, content) in [
        ("stray", "x"),
        ("172.7.300.0-24", "{}"),
        ("172.7.177.0-24", "no JSON"),
        ("172.7.178.0-24", r#"{"PublicIP":null}"#),
        ("172.7.179.0-24", r#"{"PublicIP":"255.255.255.255"}"#),
        ("../../etc/passwd", "{}"),
    ] {
        client.put(format!("{PREFIX}/subnets/{name}"), content, None).await.unwrap();
    }
    // An honest lease behind the litter: when it is seen, the litter was, too.
    cluster.etcd.put_lease("172.7.199.0-24", Ipv4Addr::new(10, 4, 7, 199)).await;
    for daemon in &cluster.daemons {
        daemon.wait_log("172.7.199.0/24 at 10.4.7.199 is up", PATIENCE);
        assert_eq!(daemon.count("is gone"), 0);
        daemon.wait_log("172.7.179.0/24 names 255.255.255.255 as its host", PATIENCE);
    }
    cluster.traffic_flows();
    let leases = client
        .get(format!("{PREFIX}/subnets/"), Some(GetOptions::new().with_prefix()))
        .await
        .unwrap();
    assert_eq!(leases.kvs().len(), 2 + 6 + 1, "nothing was deleted");
    cluster.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_while_away_is_made_up_for() {
    if !may_run("a_compaction_while_away_is_made_up_for") {
        return;
    }
    let mut cluster = Cluster::new().await;
    let mut client = cluster.etcd.client().await;
    let revision = client.put("other", "1", None).await.unwrap().header().unwrap().revision();
    // Frozen, the daemons see neither the change nor the compaction.
    for daemon in &cluster.daemons {
        daemon.freeze();
    }
    cluster.etcd.put_lease("172.7.199.0-24", Ipv4Addr::new(10, 4, 7, 199)).await;
    for _ in 0..10 {
        client.put("other", "2", None).await.unwrap();
    }
    let physical = CompactionOptions::new().with_physical();
    client.compact(revision + 8, Some(physical)).await.unwrap();
    cluster.etcd.kill();
    cluster.etcd.start_again().await;
    for daemon in &cluster.daemons {
        daemon.thaw();
        daemon.wait_log("172.7.199.0/24 at 10.4.7.199 is up", PATIENCE);
    }
    cluster.traffic_flows();
    cluster.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_lease_is_won_back_and_a_taken_one_is_left() {
    if !may_run("a_deleted_lease_is_won_back_and_a_taken_one_is_left") {
        return;
    }
    let cluster = Cluster::new().await;
    let lease = cluster.lab.host(0).lease();
    cluster.etcd.remove_lease(&lease).await;
    cluster.wait_for_lease(0, &lease).await;
    cluster.daemons[1].wait_nth_log("at 10.4.7.21 is up", 2, PATIENCE);
    cluster.traffic_flows();

    // Another host has the key now: ours moves, with device, route and subnet.env.
    let before = cluster.lab.host(0).subnet_env()["FLANNEL_SUBNET"].clone();
    let other = Ipv4Addr::new(10, 4, 7, 23);
    cluster.etcd.put_lease(&lease, other).await;
    cluster.daemons[0].wait_nth_log("wrote", 2, PATIENCE);
    let after = cluster.lab.host(0).subnet_env()["FLANNEL_SUBNET"].clone();
    assert_ne!(before, after);
    cluster.etcd.wait_for_lease(&lease, other).await;
    cluster.wait_for_lease(0, &cluster.lab.host(0).lease()).await;
    let base = after.replace(".1/24", ".0/32");
    let device = cluster.lab.host(0).netns.ip("addr show flannel0");
    assert!(device.contains(&base) && !device.contains(&before.replace(".1/24", ".0/32")));
    // Host to host through the new address.
    cluster.daemons[1].wait_nth_log("at 10.4.7.21 is up", 3, PATIENCE);
    let to = base.trim_end_matches("/32").parse().unwrap();
    ping(&cluster.lab.host(1).netns, to, 2, "").unwrap();
    cluster.stop();
}

//! All hosts want something of the store at once.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, DAY, Setup, daemons, simulate};

/// Lists are what costs: each carries all leases. Hosts that lost the store together list again
/// over a time that grows with the number of leases, 670 per second on average
/// (`subnet::reconnect`), and chance makes some more of it for a tenth of a second.
const LISTS_PER_SECOND: u64 = 1_200;

/// Enough for a herd to be seen.
const HERD: usize = 400;

const MINUTE: Duration = Duration::from_secs(60);

async fn started(cluster: &mut Cluster) {
    cluster.start_all();
    cluster.settle().await;
    // Until whatever a start leaves behind has ended.
    sleep(MINUTE).await;
}

#[test]
fn all_start_at_once() {
    simulate("all_start_at_once", Setup::roomy(daemons(HERD)), async |cluster: &mut Cluster| {
        cluster.start_all();
        let took = cluster.settle().await;
        let hosts = cluster.hosts.len() as u64;
        let load = cluster.whole_load(&format!("all have a lease after {took:?}"));
        // Two to choose from, more for those who lose races, and one for the watch.
        assert!(load.total.lists <= 6 * hosts, "{load}");
        assert!(load.total.requests() <= 22 * hosts, "{load}");
        assert!(took <= MINUTE, "{took:?}");
    });
}

#[test]
fn an_outage_of_minutes() {
    simulate("an_outage_of_minutes", Setup::roomy(daemons(HERD)), async |cluster: &mut Cluster| {
        started(cluster).await;
        let before = cluster.subnets();
        cluster.outage(5 * MINUTE, |_| {}).await;
        let back = Instant::now();
        let took = cluster.settle().await;
        sleep(2 * MINUTE).await;
        let load = cluster.load(back, &format!("in order {took:?} after an outage"));
        assert!(load.peak.lists <= LISTS_PER_SECOND, "{load}");
        assert_eq!(load.total.writes, 0, "nobody lost anything");
        assert_eq!(before, cluster.subnets());
        assert!(cluster.hosts.iter().all(|host| host.seen().routes_lost == 0));
    });
}

#[test]
fn all_watches_break_while_the_store_serves() {
    simulate(
        "all_watches_break_while_the_store_serves",
        Setup::roomy(daemons(HERD)),
        async |cluster: &mut Cluster| {
            started(cluster).await;
            let broken = Instant::now();
            cluster.etcd().compact();
            cluster.etcd().break_connections();
            sleep(2 * MINUTE).await;
            cluster.settle().await;
            let load = cluster.load(broken, "all watches broken");
            assert!(load.peak.lists <= LISTS_PER_SECOND, "{load}");
            let hosts = cluster.hosts.len() as u64;
            assert_eq!((load.total.lists, load.total.watches), (hosts, hosts));
        },
    );
}

#[test]
fn an_emptied_store() {
    simulate("an_emptied_store", Setup::roomy(daemons(HERD)), async |cluster: &mut Cluster| {
        started(cluster).await;
        let before = cluster.subnets();
        cluster.restore(MINUTE, None).await;
        let back = Instant::now();
        // Before the snapshots come all is as it was but for the keys.
        let took = cluster.settle().await;
        sleep(2 * MINUTE).await;
        cluster.settle().await;
        let load = cluster.load(back, &format!("all won back after {took:?}"));
        assert!(load.peak.lists <= LISTS_PER_SECOND, "{load}");
        assert!(load.peak.writes <= LISTS_PER_SECOND, "{load}");
        assert_eq!(before, cluster.subnets());
        assert!(cluster.hosts.iter().all(|host| host.seen().routes_lost == 0), "traffic went on");
    });
}

#[test]
fn all_restart_one_after_the_other() {
    simulate("all_restart_one_after_the_other", Setup::roomy(daemons(200)), async |cluster| {
        started(cluster).await;
        let before = cluster.subnets();
        let begin = Instant::now();
        for host in &mut cluster.hosts {
            host.crash();
            sleep(Duration::from_millis(50)).await;
            host.start();
            sleep(Duration::from_millis(50)).await;
        }
        cluster.settle().await;
        sleep(MINUTE).await;
        let hosts = cluster.hosts.len() as u64;
        let load = cluster.load(begin, "restarts, ten per second");
        assert_eq!(before, cluster.subnets());
        // Two times the config, its lease renewed by three requests; two lists, one watch.
        assert_eq!((load.total.lists, load.total.requests()), (2 * hosts, 8 * hosts), "{load}");
        assert!(cluster.hosts.iter().all(|host| host.seen().routes_lost == 0));
    });
}

#[test]
fn renewals_of_hosts_that_started_together() {
    let setup = Setup::roomy(daemons(100));
    simulate("renewals_of_hosts_that_started_together", setup, async |cluster| {
        started(cluster).await;
        let begin = Instant::now();
        sleep(3 * DAY.ttl).await;
        assert_eq!(cluster.disorder(), None);
        let hosts = cluster.hosts.len() as u64;
        let load = cluster.load(begin, "three days");
        assert!((3 * hosts..=4 * hosts).contains(&load.total.writes), "{load}");
        // A renewal is an event for each watcher: n hosts cost n² of them a day. Spread over an
        // hour, six minutes see a tenth, and chance some more.
        let most = cluster.etcd().load.most_writes(begin, 6 * MINUTE);
        assert!(most <= hosts / 4, "{most} renewals within six minutes");
    });
}

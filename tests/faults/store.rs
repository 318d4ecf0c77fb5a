//! etcd goes away, comes back with less than it knew, cannot be reached or is slow: packets go on.

use std::net::Ipv4Addr;
use std::time::Duration;

use etcd_client::CompactionOptions;
use tokio::time::sleep;

use crate::support::daemon::PATIENCE;
use crate::support::etcd::{Etcd, Security, etcdctl_or_skip};
use crate::support::traffic::ping;
use crate::trial::{PAIR, THIRD, Trial, may_run};

/// How long a fault lasts.
const FAULT: Duration = Duration::from_secs(3);

/// Leases that somebody makes and deletes during a fault.
const OTHERS: [&str; 2] = ["172.7.150.0-24", "172.7.151.0-24"];

/// The host that those are leased to.
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 4, 7, 150);

async fn trial(test: &'static str) -> Trial {
    Trial::start(test, Etcd::start(Security::Plain).await, &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_etcd_is_followed_by_itself() {
    let test = "a_killed_etcd_is_followed_by_itself";
    if !may_run(test) {
        return;
    }
    let mut trial = trial(test).await;
    trial.etcd.kill();
    sleep(FAULT).await;
    trial.etcd.start_again().await;
    let healed = trial.healed().await;
    trial.shorten_leases().await;
    trial.recovered(healed).await;
    trial.finish();
}

/// Neither leases nor the network config are there any more.
#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_lost_everything_gets_the_leases_back() {
    let test = "an_etcd_that_lost_everything_gets_the_leases_back";
    if !may_run(test) {
        return;
    }
    let mut trial = trial(test).await;
    trial.etcd.kill();
    trial.etcd.empty();
    trial.etcd.start_again().await;
    let healed = trial.healed().await;
    for host in PAIR {
        let (subnet, address) = trial.lease(host);
        trial.etcd.wait_for_lease(&subnet, address).await;
    }
    trial.shorten_leases().await;
    trial.recovered(healed).await;
    trial.finish();
}

/// The snapshot knows neither what was done since then nor the host that joined since.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_snapshot_is_believed_and_what_lives_is_added() {
    let test = "a_restored_snapshot_is_believed_and_what_lives_is_added";
    if !may_run(test) || !etcdctl_or_skip(test) {
        return;
    }
    let mut trial = trial(test).await;
    let gone = format!("peer {} is gone", OTHERS[0].replace('-', "/"));
    let up = format!("{} at {OTHER} is up", OTHERS[0].replace('-', "/"));
    trial.etcd.put_lease(OTHERS[0], OTHER).await;
    let snapshot = trial.etcd.save_snapshot();
    trial.cluster.spawn(THIRD, &[]);
    trial.cluster.daemon(THIRD).wait_ready();
    let (third, address) = trial.lease(THIRD);
    trial.etcd.remove_lease(OTHERS[0]).await;
    for host in PAIR {
        trial.cluster.daemon(host).wait_log(&format!("at {address} is up"), PATIENCE);
        trial.cluster.daemon(host).wait_log(&gone, PATIENCE);
    }
    // Revisions that the restored one will not reach.
    for _ in 0..50 {
        trial.etcd.put_lease(OTHERS[1], OTHER).await;
    }
    trial.etcd.remove_lease(OTHERS[1]).await;

    trial.etcd.kill();
    trial.etcd.restore_snapshot(&snapshot);
    trial.etcd.start_again().await;
    let healed = trial.healed().await;
    for host in PAIR {
        trial.cluster.daemon(host).wait_nth_log(&up, 2, PATIENCE);
    }
    trial.etcd.wait_for_lease(&third, address).await;
    let [us, them] = [0, THIRD].map(|host| trial.cluster.lab.host(host).tunnel());
    ping(us.netns, them.address, 2, "").unwrap();
    let dropped = format!("peer {} is gone", third.replace('-', "/"));
    for host in PAIR {
        assert_eq!(trial.cluster.daemon(host).count(&dropped), 0, "its route stays meanwhile");
    }
    trial.shorten_leases().await;
    trial.recovered(healed).await;
    trial.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_was_cut_off_makes_up_for_compacted_history() {
    let test = "a_host_that_was_cut_off_makes_up_for_compacted_history";
    if !may_run(test) {
        return;
    }
    let trial = trial(test).await;
    trial.relays[1].cut();
    trial.cluster.daemon(1).wait_log("watch of leases interrupted", PATIENCE);
    trial.etcd.put_lease(OTHERS[0], OTHER).await;
    trial.shorten_leases().await;
    let mut client = trial.etcd.client().await;
    let last = client.put("other", "1", None).await.unwrap().header().unwrap().revision();
    let physical = CompactionOptions::new().with_physical();
    client.compact(last, Some(physical)).await.unwrap();
    sleep(FAULT).await;
    trial.relays[1].heal();
    let healed = trial.healed().await;
    trial.cluster.daemon(1).wait_log(&format!("at {OTHER} is up"), PATIENCE);
    trial.recovered(healed).await;
    trial.finish();
}

/// Nothing of etcd arrives at one host, and nobody tells it so.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_etcd_learns_afterwards_what_it_missed() {
    let test = "a_host_without_etcd_learns_afterwards_what_it_missed";
    if !may_run(test) {
        return;
    }
    let trial = trial(test).await;
    trial.etcd.put_lease(OTHERS[0], OTHER).await;
    let [before, after] = OTHERS.map(|subnet| format!("peer {}", subnet.replace('-', "/")));
    trial.cluster.daemon(1).wait_log(&format!("{before} at {OTHER} is up"), PATIENCE);
    let netns = &trial.cluster.lab.host(1).netns;
    netns.block("input", &format!("tcp sport {}", trial.relays[1].address.port()));
    trial.etcd.remove_lease(OTHERS[0]).await;
    trial.etcd.put_lease(OTHERS[1], OTHER).await;
    trial.cluster.daemon(0).wait_log(&format!("{after} at {OTHER} is up"), PATIENCE);
    sleep(FAULT).await;
    assert_eq!(trial.cluster.daemon(1).count(&after), 0, "it is cut off");
    netns.unblock();
    let healed = trial.healed().await;
    trial.shorten_leases().await;
    for host in PAIR {
        trial.cluster.daemon(host).wait_log(&format!("{before} is gone"), PATIENCE);
        trial.cluster.daemon(host).wait_log(&format!("{after} at {OTHER} is up"), PATIENCE);
    }
    trial.recovered(healed).await;
    trial.finish();
}

/// Every answer takes two seconds: leases are renewed, and a daemon that starts gets one.
#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_answers_after_two_seconds_serves() {
    let test = "an_etcd_that_answers_after_two_seconds_serves";
    if !may_run(test) {
        return;
    }
    let mut trial = trial(test).await;
    for relay in &trial.relays {
        relay.delay_answers(Duration::from_secs(2));
    }
    trial.cluster.spawn(THIRD, &[]);
    // It stays slow: news come by way of that.
    let healed = trial.healed().await;
    trial.shorten_leases().await;
    trial.recovered(healed).await;
    trial.cluster.daemon(THIRD).wait_ready();
    let third = trial.cluster.lab.host(THIRD).address;
    for host in PAIR {
        trial.cluster.daemon(host).wait_log(&format!("at {third} is up"), PATIENCE);
        assert_eq!(trial.cluster.daemon(host).count("interrupted"), 0);
    }
    trial.finish();
}

//! Hosts that want the same, and hosts that do not hear what they should.

use std::net::Ipv4Addr;
use std::time::Duration;

use flanneld::subnet::lease::LeaseAttrs;
use rand::RngExt;
use rand::seq::SliceRandom;
use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, SHORT, Setup, daemons, play, simulate};
use crate::etcd::Key;

const MINUTE: Duration = Duration::from_secs(60);

/// Enough for all kinds of races, and few enough that each host can know all others.
const HOSTS: usize = 90;

/// How long a host may be wrong that was cut off, where no other request fails: two time-outs of
/// 5 s for the watch that tries to begin anew and as much for the keeper's request, and the pauses
/// of the watch, 5 s, and of the keeper, 1 s.
const CUT_OFF_BOUND: Duration = Duration::from_secs(26);

/// Starts the first so many hosts and waits until they have their leases.
async fn start_first(cluster: &mut Cluster, hosts: usize) {
    for host in &mut cluster.hosts[..hosts] {
        host.start();
    }
    cluster.settle().await;
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let setup = Setup { faults: 0.1, ..Setup::tight(60, 60) };
    let scenario = async |cluster: &mut Cluster| {
        cluster.start_all();
        sleep(MINUTE).await;
        cluster.restore(MINUTE, None).await;
        sleep(SHORT.ttl).await;
        cluster.trace()
    };
    let run = |seed| play("the_same_seed_gives_the_same_run", setup, seed, scenario);
    let first = run(1);
    assert_eq!(first, run(1));
    assert_ne!(first, run(2));
}

#[test]
fn requests_fail_before_and_after_they_are_done() {
    let hosts = daemons(HOSTS);
    let setup = Setup { faults: 0.2, subnets: hosts + hosts / 8, ..Setup::roomy(hosts) };
    simulate("requests_fail_before_and_after_they_are_done", setup, async |cluster| {
        cluster.start_all();
        cluster.settle().await;
        for round in 0..4 {
            let mut order: Vec<usize> = (0..cluster.hosts.len()).collect();
            order.shuffle(&mut cluster.rng);
            for number in order.into_iter().take(hosts / 4) {
                let host = &mut cluster.hosts[number];
                host.crash();
                sleep(Duration::from_millis(cluster.rng.random_range(0..20))).await;
                host.start();
            }
            if round % 2 == 1 {
                cluster.restore(Duration::from_secs(10), None).await;
            }
            cluster.settle().await;
        }
        assert_eq!(cluster.etcd().keys().len(), hosts, "each holds one");
        cluster.whole_load("a fifth of the requests fails");
    });
}

#[test]
fn a_store_that_comes_back_as_it_was_once() {
    let hosts = daemons(HOSTS);
    simulate(
        "a_store_that_comes_back_as_it_was_once",
        Setup::tight(hosts, hosts),
        async |cluster| {
            // A third is in the backup and stays; a third is in it, and others have its subnets later.
            let third = hosts / 3;
            start_first(cluster, 2 * third).await;
            let backup = cluster.etcd().back_up();
            for host in &mut cluster.hosts[third..2 * third] {
                host.crash();
            }
            for host in &mut cluster.hosts[2 * third..] {
                host.start();
            }
            sleep(2 * SHORT.ttl).await;
            cluster.settle().await;
            cluster.restore(MINUTE, Some(backup)).await;
            // They come back as well, and find their old leases; there is room for all.
            for host in &mut cluster.hosts[third..2 * third] {
                host.start();
            }
            sleep(SHORT.ttl).await;
            cluster.settle().await;
            assert_eq!(cluster.etcd().keys().len(), hosts, "each holds one");
            let stayed = cluster.hosts[..third].iter().all(|host| host.seen().moves == 0);
            assert!(stayed, "who was in the backup stays where it is");
        },
    );
}

#[test]
fn half_of_the_hosts_end_and_others_race_for_their_subnets() {
    let old = daemons(HOSTS);
    let setup = Setup::tight(old + old / 2, old);
    simulate("half_of_the_hosts_end_and_others_race_for_their_subnets", setup, async |cluster| {
        start_first(cluster, old).await;
        for host in &mut cluster.hosts[..old / 2] {
            host.crash();
        }
        let begin = Instant::now();
        for host in &mut cluster.hosts[old..] {
            host.start();
        }
        // Their leases end after their time to live, and who waits tries again within 15 s.
        sleep(SHORT.ttl + MINUTE).await;
        cluster.settle().await;
        assert_eq!(cluster.etcd().keys().len(), old);
        let load = cluster.load(begin, "waiting and racing");
        assert!(load.total.lists < 100 * old as u64, "{load}");
        let stayed = cluster.hosts[old / 2..old].iter().all(|host| host.seen().moves == 0);
        assert!(stayed, "who lives stays where it is");
    });
}

#[test]
fn more_hosts_than_subnets() {
    let hosts = daemons(HOSTS);
    let setup = Setup::tight(hosts, hosts * 3 / 4);
    simulate("more_hosts_than_subnets", setup, async |cluster| {
        cluster.start_all();
        sleep(2 * MINUTE).await;
        let begin = Instant::now();
        let winners = cluster.subnets();
        sleep(10 * MINUTE).await;
        assert_eq!(winners, cluster.subnets(), "who has one keeps it");
        assert_eq!(winners.iter().flatten().count(), hosts * 3 / 4);
        let load = cluster.load(begin, "a quarter waits for ten minutes");
        // Each once in 3.75 s to 15 s.
        assert!(load.total.lists <= (hosts / 4) as u64 * 10 * 60 / 7, "{load}");
    });
}

#[test]
fn hosts_are_cut_off_longer_than_their_leases_live() {
    let hosts = daemons(HOSTS);
    let setup = Setup::tight(hosts + hosts / 3, hosts + hosts / 3);
    simulate("hosts_are_cut_off_longer_than_their_leases_live", setup, async |cluster| {
        start_first(cluster, hosts).await;
        let cut = hosts / 3;
        cluster.hosts[..cut].iter().for_each(|host| host.link.cut(true));
        sleep(2 * SHORT.ttl).await;
        // The free subnets are gone once as many have started: some have those of the cut off.
        for host in &mut cluster.hosts[hosts..] {
            host.start();
        }
        sleep(MINUTE).await;
        cluster.hosts[..cut].iter().for_each(|host| host.link.cut(false));
        sleep(MINUTE).await;
        cluster.settle().await;
        let etcd = cluster.etcd();
        assert_eq!(etcd.keys().len(), cluster.hosts.len(), "there is room for all");
        assert!(etcd.truth.errors > 0, "nobody was wrong: it proves nothing");
        // The connection is found dead, a request hangs, and the keeper asks again.
        assert!(etcd.truth.longest <= CUT_OFF_BOUND, "{:?}", etcd.truth.longest);
        println!(
            "a host was wrong for {:?} at most, {} times",
            etcd.truth.longest, etcd.truth.errors
        );
    });
}

#[test]
fn a_subnet_that_is_free_again_is_won_back() {
    let setup = Setup { subnets: 100, ..Setup::roomy(1) };
    simulate("a_subnet_that_is_free_again_is_won_back", setup, async |cluster| {
        start_first(cluster, 1).await;
        let own = cluster.hosts[0].subnet().unwrap();
        let other = LeaseAttrs::udp(Ipv4Addr::new(172, 16, 9, 9));
        let begin = Instant::now();
        let theirs = cluster.etcd().grant(MINUTE);
        let ours = cluster.etcd().keys()[&own].modified;
        cluster.etcd().put(own, &other, theirs, ours).unwrap();
        // It tries to create its key anew. Before it asks whose that is now, it is nobody's.
        while cluster.etcd().load.since(begin).total.revokes == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        cluster.etcd().revoke(theirs);
        cluster.settle().await;
        assert_eq!(cluster.etcd().load.since(begin).total.lists, 1, "it looked for a free one");
        assert_eq!(cluster.hosts[0].subnet(), Some(own));
        assert_eq!(cluster.hosts[0].seen().moves, 0);
    });
}

#[test]
fn a_host_sleeps_longer_than_its_lease_lives() {
    let setup = Setup::tight(3, 3);
    simulate("a_host_sleeps_longer_than_its_lease_lives", setup, async |cluster| {
        start_first(cluster, 2).await;
        let before = cluster.subnets();
        cluster.hosts[0].link.fall_asleep();
        // Another host wants the very same subnet.
        let key: Key = cluster.etcd().keys()[&before[0].unwrap()].clone();
        assert_eq!(key.attrs.public_ip, cluster.hosts[0].ip);
        cluster.hosts[2].seen().subnet = before[0];
        sleep(2 * SHORT.ttl).await;
        cluster.hosts[2].start();
        sleep(MINUTE).await;
        assert_eq!(cluster.hosts[2].subnet(), before[0]);
        cluster.hosts[0].link.wake_up();
        let woken = Instant::now();
        while cluster.disorder().is_some() {
            sleep(Duration::from_millis(100)).await;
        }
        println!("the sleeper moved after {:?}", woken.elapsed());
        assert_eq!(cluster.hosts[0].seen().moves, 1);
        assert_eq!(cluster.hosts[1].subnet(), before[1]);
    });
}

#[test]
fn a_clock_is_set_forward() {
    simulate("a_clock_is_set_forward", Setup::tight(3, 9), async |cluster| {
        start_first(cluster, 3).await;
        let (before, begin) = (cluster.subnets(), Instant::now());
        cluster.hosts[0].link.set_clock_forward(100 * SHORT.ttl);
        sleep(2 * MINUTE).await;
        assert_eq!(cluster.etcd().load.since(begin).total.writes, 1, "it renews, once");
        assert_eq!(before, cluster.subnets());
        cluster.settle().await;
    });
}

#[test]
fn two_hosts_with_one_address() {
    let hosts = 20;
    simulate("two_hosts_with_one_address", Setup::tight(hosts, 2 * hosts), async |cluster| {
        let twin = cluster.hosts[0].ip;
        cluster.set_address(1, twin);
        cluster.start_all();
        sleep(MINUTE).await;
        let begin = Instant::now();
        sleep(SHORT.ttl).await;
        let load = cluster.load(begin, "twins");
        // The others renew once or twice, the twins not more than once a minute each.
        let minutes = SHORT.ttl.as_secs() / 60;
        assert!(load.total.writes <= 2 * hosts as u64 + 2 * minutes, "{load}");
        let etcd = cluster.etcd();
        let others = cluster.hosts[2..].iter();
        for host in others {
            assert_eq!(etcd.holder(&host.subnet().unwrap()), Some(host.ip));
            assert_eq!(host.seen().moves, 0);
        }
    });
}

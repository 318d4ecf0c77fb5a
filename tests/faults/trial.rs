//! What happens to an etcd, done under traffic, and what must hold afterwards.

use std::net::Ipv4Addr;
use std::time::Instant;

use crate::cluster::{Cluster, FEW_LINES, report};
use crate::support::daemon::PATIENCE;
use crate::support::etcd::{Etcd, PREFIX, etcd_or_skip};
use crate::support::lab::{CONFIG, Lab};
use crate::support::relay::Relay;
use crate::support::root_or_skip;
use crate::support::running::Traffic;

/// Hosts with a daemon and a pod from the start.
pub(crate) const PAIR: [usize; 2] = [0, 1];

/// A host without a daemon, to be started on a store in trouble.
pub(crate) const THIRD: usize = 2;

/// A peer that is only a lease, made when the fault is over, and where it is said to be.
const NEWS: (&str, Ipv4Addr) = ("172.7.199.0-24", Ipv4Addr::new(10, 4, 7, 199));

/// Two hosts under traffic on an etcd, which each host reaches by a relay of its own.
pub(crate) struct Trial {
    test: &'static str,
    pub(crate) etcd: Etcd,
    pub(crate) cluster: Cluster,
    pub(crate) relays: Vec<Relay>,
    traffic: Traffic,
    lines: [usize; 2],
    dropped_before: u64,
}

/// Whether the test may run. Says so loudly if not.
pub(crate) fn may_run(test: &str) -> bool {
    root_or_skip(test) && etcd_or_skip(test)
}

impl Trial {
    /// Starts everything on a member that runs, and waits until all traffic flows. Each daemon is
    /// given `flags` beside the endpoint.
    pub(crate) async fn start(test: &'static str, etcd: Etcd, flags: &[String]) -> Trial {
        etcd.client().await.put(format!("{PREFIX}/config"), CONFIG, None).await.unwrap();
        let lab = Lab::new(3);
        let endpoint = etcd.endpoint();
        let (scheme, target) = endpoint.split_once("://").unwrap();
        let target = target.parse().unwrap();
        let relays: Vec<Relay> = lab.hosts().iter().map(|_| Relay::start(&lab, target)).collect();
        let flags = relays.iter().map(|relay| {
            let endpoint = format!("--etcd-endpoints={scheme}://{}", relay.address);
            [&[endpoint], flags].concat()
        });
        let cluster = Cluster::on_etcd(lab, flags.collect());
        let dropped_before = cluster.dropped_by_kernel();
        let traffic = cluster.traffic();
        let lines = PAIR.map(|host| troubles(&cluster.daemon(host).log()));
        Trial { test, etcd, cluster, relays, traffic, lines, dropped_before }
    }

    /// A host's subnet as its key names it, and the host's address.
    pub(crate) fn lease(&self, host: usize) -> (String, Ipv4Addr) {
        let host = self.cluster.lab.host(host);
        (host.lease(), host.address)
    }

    /// Makes the daemons of the pair renew their leases, as soon as they can.
    pub(crate) async fn shorten_leases(&self) {
        for host in PAIR {
            let (subnet, address) = self.lease(host);
            self.etcd.shorten_lease(&subnet, address).await;
        }
    }

    /// The fault is over from now on: a new peer comes. Returns when that was, for
    /// [`Trial::recovered`].
    pub(crate) async fn healed(&self) -> Instant {
        let healed = Instant::now();
        let (subnet, address) = NEWS;
        self.etcd.put_lease(subnet, address).await;
        healed
    }

    /// Waits until both daemons have heard of the new peer since the fault was over, and renewed
    /// their leases, which were shortened; tells how long that took.
    pub(crate) async fn recovered(&self, healed: Instant) {
        let (_, address) = NEWS;
        for host in PAIR {
            self.cluster.daemon(host).wait_log(&format!("at {address} is up"), PATIENCE);
        }
        let news = healed.elapsed();
        for host in PAIR {
            let (subnet, address) = self.lease(host);
            self.etcd.wait_for_renewal(&subnet, address).await;
        }
        eprintln!(
            "{}: news after {} ms, with renewed leases after {} ms",
            self.test,
            news.as_millis(),
            healed.elapsed().as_millis()
        );
    }

    /// No probe was lost, no byte is wrong, few lines were logged; all daemons end well.
    pub(crate) fn finish(self) {
        let Trial { test, mut cluster, traffic, lines, dropped_before, .. } = self;
        traffic.wait_for_all_streams();
        let outcome = traffic.stop();
        report(test, outcome.longest_gap, &outcome);
        cluster.assert_lossless(test, &outcome, dropped_before);
        for host in PAIR {
            let log = cluster.daemon(host).log();
            let peer = cluster.lab.host(1 - host).lease().replace('-', "/");
            assert!(!log.contains(&format!("peer {peer} is gone")), "{log}");
            let more = troubles(&log) - lines[host];
            assert!(more <= FEW_LINES, "{more} more lines\n{log}");
        }
        cluster.stop_all();
    }
}

/// How many lines are not news of a peer: those are wanted.
fn troubles(log: &str) -> usize {
    log.lines().filter(|line| !line.contains("] peer ")).count()
}

//! Two hosts with a pod each, and the daemons between them.

use std::time::{Duration, Instant};

use crate::support::daemon::{Daemon, PATIENCE};
use crate::support::lab::{CONFIG, Lab};
use crate::support::running::{Outcome, Traffic};
use crate::support::traffic::End;

/// Lines that a daemon may log about one trouble, however long it lasts.
pub(crate) const FEW_LINES: usize = 10;

/// Two hosts on a directory store, that know each other.
pub(crate) struct Cluster {
    pub(crate) lab: Lab,
    /// The store's directory, if it is one.
    pub(crate) store: String,
    /// What leads each host to the store.
    flags: Vec<Vec<String>>,
    daemons: Vec<Option<Daemon>>,
}

impl Cluster {
    /// Starts both daemons with these flags beside the store's, and waits until packets flow.
    pub(crate) fn new(args: &[&str]) -> Cluster {
        let mut lab = Lab::new(2);
        let store = lab.store_dir(CONFIG);
        let daemons = lab.start_overlay(&store, |_| args.to_vec());
        lab.add_pods();
        let store = store.to_str().unwrap().to_owned();
        let flags = vec![vec![format!("--store-dir={store}")]; 2];
        Cluster { lab, store, flags, daemons: daemons.into_iter().map(Some).collect() }
    }

    /// The same on an etcd, which each of the lab's hosts reaches by flags of its own. Those beyond
    /// the second one have no daemon yet.
    pub(crate) fn on_etcd(lab: Lab, flags: Vec<Vec<String>>) -> Cluster {
        let daemons = flags.iter().map(|_| None).collect();
        let mut cluster = Cluster { lab, store: String::new(), flags, daemons };
        for host in 0..2 {
            cluster.spawn(host, &[]);
        }
        for host in 0..2 {
            let peer = cluster.lab.host(1 - host).address;
            cluster.daemon(host).wait_ready();
            cluster.daemon(host).wait_log(&format!("at {peer} is up"), PATIENCE);
            cluster.lab.host_mut(host).add_pod();
        }
        cluster
    }

    /// Starts the daemon of a host; returns when the process was started.
    pub(crate) fn spawn(&mut self, host: usize, args: &[&str]) -> Instant {
        let mut all: Vec<&str> = self.flags[host].iter().map(String::as_str).collect();
        all.extend(args);
        let started = Instant::now();
        self.daemons[host] = Some(self.lab.host(host).spawn_daemon(&all, &[]));
        started
    }

    /// Another daemon runs on a host from now on.
    pub(crate) fn put(&mut self, host: usize, daemon: Daemon) {
        self.daemons[host] = Some(daemon);
    }

    /// The daemon that runs on a host.
    pub(crate) fn daemon(&self, host: usize) -> &Daemon {
        self.daemons[host].as_ref().expect("it runs")
    }

    /// Takes the daemon of a host, in order to end it.
    pub(crate) fn take(&mut self, host: usize) -> Daemon {
        self.daemons[host].take().expect("it runs")
    }

    /// Stops every daemon that runs; none may complain.
    pub(crate) fn stop_all(&mut self) {
        for daemon in self.daemons.iter_mut().filter_map(Option::take) {
            let ended = daemon.stop();
            assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
        }
    }

    /// The pod of a host.
    pub(crate) fn pod(&self, host: usize) -> End<'_> {
        self.lab.host(host).pod(0).end()
    }

    /// Eight streams and probes from the pod of host 0 to the pod of host 1.
    pub(crate) fn traffic(&self) -> Traffic {
        Traffic::start(self.pod(0), self.pod(1), 8)
    }

    /// What `ip` says about the device of a host: flags, addresses, route.
    pub(crate) fn device(&self, host: usize) -> String {
        let netns = &self.lab.host(host).netns;
        let mut text = netns.ip("-d link show flannel0");
        text += &netns.ip("-4 addr show flannel0");
        text += &netns.ip("route show dev flannel0");
        text
    }
}

/// Prints one line for docs/reliability.md.
pub(crate) fn report(case: &str, gap: Duration, outcome: &Outcome) {
    eprintln!(
        "{case}: gap {} ms, longest {} ms, {} of {} probes lost, {} doubled, {} MB compared",
        gap.as_millis(),
        outcome.longest_gap.as_millis(),
        outcome.probes_sent - outcome.probes_received,
        outcome.probes_sent,
        outcome.probes_doubled,
        outcome.tcp_bytes / 1_000_000,
    );
}

//! Two hosts with a pod each, and the daemons between them.

use std::time::{Duration, Instant};

use crate::support::daemon::Daemon;
use crate::support::lab::{CONFIG, Lab};
use crate::support::running::{Outcome, Traffic};
use crate::support::traffic::End;

/// Two hosts on a directory store, that know each other.
pub(crate) struct Cluster {
    pub(crate) lab: Lab,
    pub(crate) store: String,
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
        Cluster { lab, store, daemons: daemons.into_iter().map(Some).collect() }
    }

    /// Starts the daemon of a host; returns when the process was started.
    pub(crate) fn spawn(&mut self, host: usize, args: &[&str]) -> Instant {
        let mut all = vec!["--store-dir", &self.store];
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

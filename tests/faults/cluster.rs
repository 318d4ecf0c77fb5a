//! Two hosts or more with a pod each, and the daemons between them.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::daemon::{Daemon, PATIENCE};
use crate::support::lab::{CONFIG, Lab, LabHost};
use crate::support::leases::lease_value;
use crate::support::running::{Outcome, Traffic};
use crate::support::traffic::End;

/// Lines that a daemon may log about one trouble, however long it lasts.
pub(crate) const FEW_LINES: usize = 10;

/// By so much the last probe before a fault may seem to have arrived later: a busy machine does not
/// read it at once.
const READ_LATE: Duration = Duration::from_millis(500);

/// Traffic from host 0 to host 1, and what the daemons had logged when it began.
pub(crate) struct Running {
    pub(crate) traffic: Traffic,
    lines: Vec<usize>,
    dropped_before: u64,
}

/// Hosts on one store, that know each other.
pub(crate) struct Cluster {
    pub(crate) lab: Lab,
    /// The store's directory, if it is one.
    pub(crate) store: String,
    /// What leads each host to the store.
    flags: Vec<Vec<String>>,
    daemons: Vec<Option<Daemon>>,
}

impl Cluster {
    /// Two hosts on a directory store; see [`Cluster::of`].
    pub(crate) fn new(args: &[&str]) -> Cluster {
        Cluster::of(2, args)
    }

    /// Starts the daemons of so many hosts on a directory store, with these flags beside the
    /// store's, and waits until they know each other.
    pub(crate) fn of(hosts: u8, args: &[&str]) -> Cluster {
        Cluster::with_args(hosts, |_| args.to_vec())
    }

    /// The same, with flags of its own for each host.
    pub(crate) fn with_args<'a>(hosts: u8, args: impl Fn(usize) -> Vec<&'a str>) -> Cluster {
        let lab = Lab::new(hosts);
        let store = lab.store_dir(CONFIG);
        Cluster::in_directory(lab, &store, args)
    }

    /// The same in this directory, which has the network's config.
    pub(crate) fn in_directory<'a>(
        mut lab: Lab,
        store: &Path,
        args: impl Fn(usize) -> Vec<&'a str>,
    ) -> Cluster {
        let daemons = lab.start_overlay(store, args);
        lab.add_pods();
        let store = store.to_str().unwrap().to_owned();
        let flags = vec![vec![format!("--store-dir={store}")]; daemons.len()];
        Cluster { lab, store, flags, daemons: daemons.into_iter().map(Some).collect() }
    }

    /// Two hosts on an etcd, which each of the lab's hosts reaches by flags of its own. Those beyond
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

    /// Starts the daemon of a host by another command; see `LabHost::daemon_command_by`.
    pub(crate) fn spawn_by(&mut self, host: usize, by: &[&str]) {
        let flags: Vec<&str> = self.flags[host].iter().map(String::as_str).collect();
        let command = self.lab.host(host).daemon_command_by(by, &flags);
        self.put(host, Daemon::run(command));
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

    /// The file of a subnet's lease, in a directory store.
    pub(crate) fn lease(&self, subnet: &str) -> PathBuf {
        PathBuf::from(format!("{}/subnets/{subnet}", self.store))
    }

    /// Writes a lease by hand, for the host at `address` and without an end.
    pub(crate) fn write_lease(&self, subnet: &str, address: &str) {
        self.write(&format!("subnets/{subnet}"), &lease_value(address.parse().unwrap()));
    }

    /// Replaces a file of the store in one step, so that nobody reads a half of it.
    pub(crate) fn write(&self, file: &str, text: &str) {
        let new = format!("{}/.new", self.store);
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, format!("{}/{file}", self.store)).unwrap();
    }

    /// The subnet of a host as keys spell it: `172.7.5.0-24`.
    pub(crate) fn subnet(&self, host: usize) -> String {
        self.lab.host(host).lease()
    }

    /// The pod of a host.
    pub(crate) fn pod(&self, host: usize) -> End<'_> {
        self.lab.host(host).pod(0).end()
    }

    /// Eight streams and probes from the pod of host 0 to the pod of host 1.
    pub(crate) fn traffic(&self) -> Traffic {
        Traffic::start(self.pod(0), self.pod(1), 8)
    }

    /// How many lines each daemon has logged.
    pub(crate) fn lines(&self) -> Vec<usize> {
        (0..self.lab.hosts().len()).map(|host| self.daemon(host).log().lines().count()).collect()
    }

    /// No daemon has logged much since it had logged so much; nor has one that was started
    /// meanwhile, beside what the start of the one before took.
    pub(crate) fn assert_few_lines(&self, before: &[usize]) {
        for (host, (before, after)) in before.iter().zip(self.lines()).enumerate() {
            let log = self.daemon(host).log();
            assert!(after <= before + FEW_LINES, "host {host} logged too much\n{log}");
        }
    }

    /// Starts the traffic that shall go on whatever is done meanwhile.
    pub(crate) fn run(&self) -> Running {
        let dropped_before = self.dropped_by_kernel();
        Running { traffic: self.traffic(), lines: self.lines(), dropped_before }
    }

    /// Everything still flows, no connection broke, and nobody has logged much.
    pub(crate) fn finish(&self, case: &str, running: Running) -> Outcome {
        self.finish_since(Instant::now(), case, running)
    }

    fn finish_since(&self, over: Instant, case: &str, running: Running) -> Outcome {
        let gap = running.traffic.wait_for_probe_after(over);
        running.traffic.wait_for_all_streams();
        let outcome = running.traffic.stop();
        report(case, gap, &outcome);
        self.assert_few_lines(&running.lines);
        outcome
    }

    /// The same, and nothing was lost; see [`Cluster::assert_lossless`].
    pub(crate) fn finish_lossless(&self, case: &str, running: Running) -> Outcome {
        let dropped_before = running.dropped_before;
        let outcome = self.finish(case, running);
        self.assert_lossless(case, &outcome, dropped_before);
        outcome
    }

    /// No probe was lost: but a machine that is busy for long may have no room for all that waits
    /// meanwhile. The devices must still be those of before, for a new one counts from 0.
    pub(crate) fn assert_lossless(&self, case: &str, outcome: &Outcome, dropped_before: u64) {
        let (lost, dropped) = (outcome.probes_lost(), self.dropped_by_kernel() - dropped_before);
        eprintln!("{case}: {lost} probes lost, {dropped} packets dropped by the kernel");
        assert!(lost <= dropped, "{outcome:?}, {dropped} dropped by the kernel");
    }

    /// Makes a lease end now.
    pub(crate) fn expire(&self, subnet: &str) {
        let value = std::fs::read_to_string(self.lease(subnet)).unwrap();
        let value = value.lines().next().unwrap();
        let ended = format!("{value}\nexpires=2000-01-01T00:00:00Z\n");
        self.write(&format!("subnets/{subnet}"), &ended);
    }

    /// Waits until these daemons have seen all that was written to the store before.
    pub(crate) fn wait_until_seen(&self, hosts: &[usize], mark: &str) {
        self.write_lease(mark, "10.4.7.99");
        for &host in hosts {
            let seen = format!("{} at 10.4.7.99 is up", mark.replace('-', "/"));
            self.daemon(host).wait_log(&seen, PATIENCE);
        }
    }

    /// Does `harm` to the hosts for a while under traffic; afterwards everything flows again, no
    /// connection broke, and nobody has logged much about it.
    pub(crate) fn suffer(
        &self,
        case: &str,
        lasts: Duration,
        harm: impl FnOnce(),
        heal: impl FnOnce(),
    ) -> Outcome {
        self.endure(case, || {
            harm();
            sleep(lasts);
            let healed = Instant::now();
            heal();
            healed
        })
    }

    /// The same for harm that lets nothing pass.
    pub(crate) fn suffer_silence(
        &self,
        case: &str,
        lasts: Duration,
        harm: impl FnOnce(),
        heal: impl FnOnce(),
    ) {
        let outcome = self.suffer(case, lasts, harm, heal);
        assert!(outcome.longest_gap + READ_LATE >= lasts, "it harms nothing: {outcome:?}");
    }

    /// The same for a `fault` that says itself when it was over.
    pub(crate) fn endure(&self, case: &str, fault: impl FnOnce() -> Instant) -> Outcome {
        let running = self.run();
        let over = fault();
        self.finish_since(over, case, running)
    }

    /// Packets so far that the kernel had no room for, on the hosts that traffic runs between.
    pub(crate) fn dropped_by_kernel(&self) -> u64 {
        self.lab.hosts()[..2].iter().map(LabHost::dropped_by_kernel).sum()
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

/// Sends datagrams for a while, in bursts of 100: as fast as can be would take the CPU from the
/// probes.
pub(crate) fn flood(from: End<'_>, to: Ipv4Addr, lasts: Duration) {
    let socket = from.netns.udp(SocketAddrV4::new(from.address, 0));
    let until = Instant::now() + lasts;
    while Instant::now() < until {
        for _ in 0..100 {
            let _ = socket.send_to(&[0; 512], SocketAddrV4::new(to, 9));
        }
        sleep(Duration::from_millis(5));
    }
}

/// Prints one line for docs/reliability.md.
pub(crate) fn report(case: &str, gap: Duration, outcome: &Outcome) {
    eprintln!(
        "{case}: gap {} ms, longest {} ms, {} of {} probes lost, {} doubled, {} MB compared",
        gap.as_millis(),
        outcome.longest_gap.as_millis(),
        outcome.probes_lost(),
        outcome.probes_sent,
        outcome.probes_doubled,
        outcome.tcp_bytes / 1_000_000,
    );
}

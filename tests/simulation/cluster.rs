//! Many hosts on one simulated etcd, and what must be true of them.

use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use flanneld::subnet::keeper::Timing;
use flanneld::subnet::lease::Subnet;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep};

use crate::etcd::{Backup, Etcd, View};
use crate::host::Host;
use crate::link::Link;
use crate::load::Stretch;

/// Up to so many hosts all know the whole table; of more only some do.
const ALL_WHOLE: usize = 256;
const SOME_WHOLE: usize = 16;

/// Whatever happened, after so long all must be in order again.
const SETTLE_WITHIN: Duration = Duration::from_secs(300);

/// A day, renewed an hour before its end: the daemon's defaults.
pub(crate) const DAY: Timing =
    Timing { ttl: Duration::from_secs(86_400), margin: Duration::from_secs(3_600) };

/// For scenarios in which leases end.
pub(crate) const SHORT: Timing =
    Timing { ttl: Duration::from_secs(600), margin: Duration::from_secs(120) };

#[derive(Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) hosts: usize,
    /// How many subnets there are to be leased.
    pub(crate) subnets: usize,
    pub(crate) timing: Timing,
    /// The part of the requests that fail.
    pub(crate) faults: f64,
}

impl Setup {
    /// More subnets than hosts, and a network without faults.
    pub(crate) fn roomy(hosts: usize) -> Self {
        Self { hosts, subnets: 2 * hosts, timing: DAY, faults: 0.0 }
    }

    /// The same, with so many subnets whose leases end soon.
    pub(crate) fn tight(hosts: usize, subnets: usize) -> Self {
        Self { hosts, subnets, timing: SHORT, faults: 0.0 }
    }
}

pub(crate) struct Cluster {
    etcd: Arc<Mutex<Etcd>>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) rng: StdRng,
    name: &'static str,
    seed: u64,
    begin: Instant,
}

/// A variable of the environment, if it is set.
pub(crate) fn variable<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: expected a number")))
}

/// So many hosts, unless `FLANNELD_SIM_DAEMONS` says otherwise.
pub(crate) fn daemons(usual: usize) -> usize {
    variable("FLANNELD_SIM_DAEMONS").unwrap_or(usual)
}

/// Plays a scenario with each seed.
pub(crate) fn simulate(name: &'static str, setup: Setup, scenario: impl AsyncFn(&mut Cluster)) {
    let seeds = match variable("FLANNELD_SIM_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=variable("FLANNELD_SIM_SEEDS").unwrap_or(2),
    };
    for seed in seeds {
        play(name, setup, seed, &scenario);
    }
}

/// Plays a scenario with one seed.
pub(crate) fn play<T>(
    name: &'static str,
    setup: Setup,
    seed: u64,
    scenario: impl AsyncFn(&mut Cluster) -> T,
) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let _replay = Replay { name, seed };
    runtime.block_on(async {
        let mut cluster = Cluster::new(name, setup, seed);
        let result = scenario(&mut cluster).await;
        cluster.etcd().truth.check();
        result
    })
}

/// Tells how to repeat a run that failed.
struct Replay {
    name: &'static str,
    seed: u64,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { name, seed } = self;
            eprintln!(
                "to repeat it: FLANNELD_SIM_SEED={seed} cargo test --test simulation {name}, with \
                 the same FLANNELD_SIM_DAEMONS"
            );
        }
    }
}

impl Cluster {
    fn new(name: &'static str, setup: Setup, seed: u64) -> Self {
        let first = Ipv4Addr::new(10, 1, 0, 0).to_bits();
        let last = first + 256 * (u32::try_from(setup.subnets).unwrap() - 1);
        let etcd = Etcd::new(format!(
            r#"{{"Network":"10.0.0.0/8","SubnetLen":24,"SubnetMin":"10.1.0.0","SubnetMax":"{}"}}"#,
            Ipv4Addr::from_bits(last)
        ));
        let mut rng = StdRng::seed_from_u64(seed);
        let hosts = (0..setup.hosts)
            .map(|number| {
                let view = match number {
                    _ if setup.hosts <= ALL_WHOLE => View::Whole,
                    number if number < SOME_WHOLE => View::Whole,
                    _ => View::Own,
                };
                let link = Link::new(number, etcd.clone(), setup.faults, rng.random());
                let ip = Ipv4Addr::new(172, 16, 0, 1).to_bits() + u32::try_from(number).unwrap();
                let ip = Ipv4Addr::from_bits(ip);
                etcd.lock().unwrap().truth.add(number, ip);
                Host::new(link, ip, view, setup.timing)
            })
            .collect();
        Self { etcd, hosts, rng, name, seed, begin: Instant::now() }
    }

    pub(crate) fn etcd(&self) -> MutexGuard<'_, Etcd> {
        self.etcd.lock().unwrap()
    }

    /// Gives a host that does not run yet another address.
    pub(crate) fn set_address(&mut self, host: usize, ip: Ipv4Addr) {
        self.hosts[host].ip = ip;
        self.etcd().truth.add(host, ip);
    }

    pub(crate) fn start_all(&mut self) {
        self.hosts.iter_mut().for_each(Host::start);
    }

    /// Everything there is to compare two runs by.
    pub(crate) fn trace(&self) -> String {
        let etcd = self.etcd();
        format!("{:?} {:?}", etcd.load.since(self.begin), etcd.keys())
    }

    /// The subnets of all hosts.
    pub(crate) fn subnets(&self) -> Vec<Option<Subnet>> {
        self.hosts.iter().map(Host::subnet).collect()
    }

    /// The store is away for so long; `meanwhile` is done to it then.
    pub(crate) async fn outage(&mut self, length: Duration, meanwhile: impl FnOnce(&mut Etcd)) {
        self.etcd().stop();
        self.all_reach(false);
        sleep(length).await;
        meanwhile(&mut self.etcd());
        self.etcd().start();
        self.all_reach(true);
    }

    /// The store comes back with these leases, or none.
    pub(crate) async fn restore(&mut self, length: Duration, backup: Option<Backup>) {
        self.outage(length, |etcd| etcd.restore(backup)).await;
    }

    fn all_reach(&self, reach: bool) {
        let mut etcd = self.etcd();
        (0..self.hosts.len()).for_each(|host| etcd.truth.reach(host, reach));
    }

    /// Waits until everything is in order and says how long that took. Fails if it takes too long.
    pub(crate) async fn settle(&self) -> Duration {
        let begin = Instant::now();
        while let Some(reason) = self.disorder() {
            assert!(
                begin.elapsed() < SETTLE_WITHIN,
                "not in order after {SETTLE_WITHIN:?}: {reason}"
            );
            sleep(Duration::from_secs(1)).await;
        }
        begin.elapsed()
    }

    /// What is not as it should be at last: each host that runs holds the subnet that it takes for
    /// its own, and knows all others.
    pub(crate) fn disorder(&self) -> Option<String> {
        let etcd = self.etcd();
        self.hosts.iter().filter(|host| host.is_running()).find_map(|host| {
            let (ip, seen) = (host.ip, host.seen());
            let Some(peers) = &seen.peers else { return Some(format!("{ip} has no subnet yet")) };
            let own = seen.subnet.expect("it has one since it has peers");
            let holder = etcd.holder(&own);
            if holder != Some(ip) {
                return Some(format!("{own} is held by {holder:?}, but {ip} takes it for its own"));
            }
            if host.view == View::Own {
                return None;
            }
            let theirs = etcd
                .keys()
                .iter()
                .filter(|(_, key)| key.attrs.public_ip != ip)
                .map(|(subnet, key)| (subnet, &key.attrs));
            let known = || peers.leases().map(|lease| (&lease.subnet, &lease.attrs));
            if theirs.clone().ne(known()) {
                let (theirs, known) = (theirs.count(), known().count());
                return Some(format!("{ip} knows {known} peers, not these {theirs}"));
            }
            peers.next_expiry().map(|_| format!("{ip} still misses a peer"))
        })
    }

    /// The load since `from`, told under the scenario's name and `what`.
    pub(crate) fn load(&self, from: Instant, what: &str) -> Stretch {
        let stretch = self.etcd().load.since(from);
        let (name, seed, hosts) = (self.name, self.seed, self.hosts.len());
        println!("{name}, {hosts} hosts, seed {seed}, {what}: {stretch}");
        stretch
    }

    /// Since the beginning.
    pub(crate) fn whole_load(&self, what: &str) -> Stretch {
        self.load(self.begin, what)
    }
}

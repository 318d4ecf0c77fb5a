//! The daemon's control plane: peers that change, and a backend that is told of it.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs;
use std::future::pending;
use std::net::Ipv4Addr;
use std::sync::mpsc;
use std::thread::Scope;
use std::time::Duration;

use flanneld::backend::kept::Kept;
use flanneld::backend::udp::{UdpBackend, UdpOptions};
use flanneld::backend::{Backend, time_to_next_publish};
use flanneld::config::NetworkConfig;
use flanneld::dataplane::sys::socket::UdpWish;
use flanneld::dataplane::sys::tun::TunOffload;
use flanneld::dataplane::worker::{SourceCheck, Width};
use flanneld::host::interface::ExternalInterface;
use flanneld::host::netlink::Host;
use flanneld::subnet::lease::{Expiry, Lease, LeaseAttrs, Subnet};
use flanneld::subnet::peers::Peers;
use flanneld::subnet::store::WatchEvent;
use ipnet::Ipv4Net;
use tokio::time::{Instant, interval, sleep_until};

use crate::support::netns::Netns;
use crate::support::{FAR, NEAR, OVERLAY};

/// Subnets in the large table: /24s of a /8, of which there are 65,536.
const MANY: u32 = 10_000;
/// One lease changes in this time.
const CHANGE_INTERVAL: Duration = Duration::from_millis(1);

/// What the control plane is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// One peer, and nothing changes.
    One,
    /// Many peers, and nothing changes.
    Many,
    /// A thousand of them change every second, and the daemon gathers changes.
    Gathered,
    /// The same, if each change were published by itself.
    AtOnce,
}

impl State {
    /// From the least work to the most.
    pub(crate) const ALL: [State; 4] = [State::One, State::Many, State::Gathered, State::AtOnce];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::One => "1 subnet",
            State::Many => "10,000 subnets",
            State::Gathered => "10,000 subnets, 1,000 changes/s, published as the daemon does",
            State::AtOnce => "10,000 subnets, 1,000 changes/s, each published at once",
        })
    }
}

/// What was done between two reports.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Report {
    elapsed: Duration,
    cpu: Duration,
    pub(crate) changes: u32,
    pub(crate) publishes: u32,
    publishing: Duration,
}

impl Report {
    pub(crate) fn per_second(&self, count: u32) -> f64 {
        f64::from(count) / self.elapsed.as_secs_f64()
    }

    pub(crate) fn cpu_percent(&self) -> f64 {
        100.0 * self.cpu.as_secs_f64() / self.elapsed.as_secs_f64()
    }

    pub(crate) fn ms_per_publish(&self) -> f64 {
        1e3 * self.publishing.as_secs_f64() / f64::from(self.publishes.max(1))
    }
}

/// What more peers need in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    peers: u32,
    /// How many of them are new.
    added: u32,
    /// Resident memory of the process before them, with their leases, and with their routes.
    before_kib: u64,
    leases_kib: u64,
    routes_kib: u64,
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = |kib: u64| kib as f64 * 1024.0 / f64::from(self.added);
        write!(
            f,
            "{} more peers, {} together: {} KiB for leases ({:.0} bytes each), {} KiB for routes and \
             counters ({:.0} bytes each)",
            self.added,
            self.peers,
            self.leases_kib - self.before_kib,
            each(self.leases_kib - self.before_kib),
            self.routes_kib - self.leases_kib,
            each(self.routes_kib - self.leases_kib),
        )
    }
}

enum Order {
    Enter(State),
    Report,
    Stop,
}

/// The handle of the thread that is the control plane.
pub(crate) struct Control {
    orders: tokio::sync::mpsc::UnboundedSender<Order>,
    memory: mpsc::Receiver<Memory>,
    reports: mpsc::Receiver<Report>,
}

impl Control {
    /// Starts it and the data path.
    pub(crate) fn start<'scope>(scope: &'scope Scope<'scope, '_>, netns: &'scope Netns) -> Control {
        let (orders, inbox) = tokio::sync::mpsc::unbounded_channel();
        let (memory_in, memory) = mpsc::channel();
        let (reports_in, reports) = mpsc::channel();
        scope.spawn(move || {
            netns.block_on(|| async move {
                let mut plane = Plane::start().await;
                for peers in [MANY, 6 * MANY] {
                    memory_in.send(plane.grow_to(peers)).unwrap();
                }
                drop(memory_in);
                plane.serve(inbox, &reports_in).await;
            });
        });
        Control { orders, memory, reports }
    }

    /// What growing numbers of peers need; returns when the data path runs.
    pub(crate) fn memory(&self) -> Vec<Memory> {
        self.memory.iter().collect()
    }

    /// Enters a state; returns when its routes are published.
    pub(crate) fn enter(&mut self, state: State) {
        self.orders.send(Order::Enter(state)).unwrap();
        self.reports.recv().unwrap();
    }

    /// What was done since the last report.
    pub(crate) fn report(&mut self) -> Report {
        self.orders.send(Order::Report).unwrap();
        self.reports.recv().unwrap()
    }

    /// Ends the data path and the thread.
    pub(crate) fn stop(self) {
        self.orders.send(Order::Stop).unwrap();
    }
}

/// What the daemon is made of, as far as peers go.
struct Plane {
    backend: Box<UdpBackend>,
    peers: Peers,
    changes: u32,
}

impl Plane {
    async fn start() -> Plane {
        let config = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"udp"}}"#;
        let config = NetworkConfig::parse(config).unwrap();
        let options = UdpOptions {
            tun_name: "flannel%d".into(),
            tun_alias: "flanneld bench".into(),
            tun_offload: TunOffload::TsoUso,
            udp: UdpWish { gso: true, gro: true },
            source_check: SourceCheck::Peer,
            width: Width { queues: 16, pairs: 1 },
            busy_poll: Duration::from_micros(50),
        };
        let external = ExternalInterface {
            index: 1,
            name: "lo".into(),
            mtu: 1500,
            address: *NEAR.endpoint.ip(),
            public_ip: *NEAR.endpoint.ip(),
        };
        let host = Host::open().unwrap();
        let mut backend =
            UdpBackend::prepare(&config, options, &external, host, Kept::default()).await.unwrap();
        let own = own();
        backend.start(OVERLAY, &own, &mut std::iter::empty()).await.unwrap();
        let mut plane = Plane { backend: Box::new(backend), peers: Peers::new(own), changes: 0 };
        plane.hold(1);
        plane.publish();
        plane
    }

    /// Knows so many peers, and no others.
    fn hold(&mut self, count: u32) {
        self.peers = Peers::new(own());
        let leases = (0..count).map(lease).collect();
        self.peers.apply(WatchEvent::Snapshot(leases), std::time::Instant::now());
    }

    fn publish(&mut self) {
        self.backend.publish(&mut self.peers.leases());
    }

    fn publish_timed(&mut self, report: &mut Report) {
        let started = Instant::now();
        self.publish();
        report.publishes += 1;
        report.publishing += started.elapsed();
    }

    fn grow_to(&mut self, peers: u32) -> Memory {
        let (before_kib, known) = (resident_kib(), self.peers.leases().count() as u32);
        self.hold(peers);
        let leases_kib = resident_kib();
        // While a table is built, the one before is still in use.
        for _ in 0..3 {
            self.publish();
        }
        Memory { peers, added: peers - known, before_kib, leases_kib, routes_kib: resident_kib() }
    }

    /// One peer but the one that the load goes to gets another address, never used before.
    fn change_one(&mut self) {
        self.changes += 1;
        let mut changed = lease(1 + self.changes % (MANY - 1));
        changed.attrs.public_ip = Ipv4Addr::from_bits(0x6440_0000 + self.changes % (1 << 22));
        let told = self.peers.apply(WatchEvent::Put(changed), std::time::Instant::now());
        assert_eq!(told.len(), 1, "a change");
    }

    /// The daemon's loop, with a clock for a store.
    async fn serve(
        mut self,
        mut orders: tokio::sync::mpsc::UnboundedReceiver<Order>,
        reports: &mpsc::Sender<Report>,
    ) {
        let mut state = State::One;
        let mut changes = interval(CHANGE_INTERVAL);
        let mut publish_at: Option<Instant> = None;
        let mut next_publish = Instant::now();
        let mut report = Report::default();
        let (mut reported, mut cpu) = (Instant::now(), thread_cpu());
        loop {
            tokio::select! {
                // In this order, so that a control plane that cannot keep up still obeys.
                biased;
                order = orders.recv() => match order {
                    None | Some(Order::Stop) => break,
                    Some(Order::Enter(new)) => {
                        state = new;
                        self.hold(if state == State::One { 1 } else { MANY });
                        publish_at = None;
                        self.publish();
                        changes.reset();
                        reports.send(report).unwrap();
                    }
                    Some(Order::Report) => {
                        let now = thread_cpu();
                        report.elapsed = reported.elapsed();
                        report.cpu = now - cpu;
                        reports.send(report).unwrap();
                        (reported, cpu, report) = (Instant::now(), now, Report::default());
                    }
                },
                () = sleep_until_some(publish_at) => {
                    publish_at = None;
                    let start = Instant::now();
                    self.publish_timed(&mut report);
                    next_publish = start + time_to_next_publish(start.elapsed());
                }
                _ = changes.tick(), if matches!(state, State::Gathered | State::AtOnce) => {
                    self.change_one();
                    report.changes += 1;
                    if state == State::Gathered {
                        publish_at.get_or_insert(next_publish);
                    } else {
                        self.publish_timed(&mut report);
                    }
                }
            }
        }
        self.backend.stop();
    }
}

fn own() -> Lease {
    Lease {
        subnet: Subnet::new(NEAR.subnet(0)),
        attrs: LeaseAttrs::udp(*NEAR.endpoint.ip()),
        expiry: Expiry::Unknown,
    }
}

/// The lease of peer `number`; 0 is the one that the load goes to.
fn lease(number: u32) -> Lease {
    if number == 0 {
        return Lease {
            subnet: Subnet::new(FAR.subnet(0)),
            attrs: LeaseAttrs::udp(*FAR.endpoint.ip()),
            expiry: Expiry::Unknown,
        };
    }
    // From 10.1.0.0 on, behind the subnets of both sides; addresses for benchmarks (RFC 2544).
    let subnet = Ipv4Net::new_assert(Ipv4Addr::from_bits(0x0A01_0000 + (number << 8)), 24);
    let attrs = LeaseAttrs::udp(Ipv4Addr::from_bits(0xC612_0000 + number));
    Lease { subnet: Subnet::new(subnet), attrs, expiry: Expiry::Unknown }
}

async fn sleep_until_some(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

/// CPU time of the calling thread.
fn thread_cpu() -> Duration {
    let schedstat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(schedstat.split(' ').next().unwrap().parse().unwrap())
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

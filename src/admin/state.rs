//! The shared state: filled by the daemon as it comes up, read by whoever asks.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use ipnet::Ipv4Net;
use tokio::sync::watch;

use super::rates::{PeerRates, Rates, Speed};
use super::report::{
    DeviceReport, DirectionReport, LeaseReport, OffloadReport, PeerDirectionReport, PeerReport,
    Report, RulesReport, StoreReport,
};
use crate::backend::view::View;
use crate::dataplane::stats::{DirectionStats, Drop, PeerDirection, PeerStats};
use crate::host::netlink::Host;
use crate::host::rules::RulesHealth;
use crate::subnet::lease::{Expiry, Lease, Subnet};
use crate::subnet::peers::Change;
use crate::subnet::store::SubnetStore;

/// What the daemon knows of itself.
pub struct State {
    started: SystemTime,
    parts: Mutex<Parts>,
    rates: Mutex<Rates>,
}

/// What there is already.
#[derive(Default)]
struct Parts {
    store: Option<Arc<dyn SubnetStore>>,
    lease: Option<OwnLease>,
    backend: Option<Backend>,
    rules: Option<watch::Receiver<RulesHealth>>,
    env_file_written: bool,
    peers: BTreeMap<Subnet, KnownLease>,
    stopping: bool,
}

struct OwnLease {
    network: Ipv4Net,
    lease: Lease,
    held: bool,
}

#[derive(Clone)]
struct Backend {
    view: Arc<View>,
    host: Host,
}

/// A peer's lease.
struct KnownLease {
    public_ip: Ipv4Addr,
    since: Instant,
}

/// Why the daemon is not ready. Whoever may ask for health may read it: it says what is missing,
/// not why; the report does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The store has never answered.
    Store,
    /// There is no lease yet, or it was lost.
    Lease,
    /// The lease has ended, and could not be renewed.
    LeaseExpired,
    /// The device is not as it must be.
    Device,
    /// A thread of the data path panicked.
    DataPath,
    /// The address that peers send to is not on this host any more.
    Address,
    /// Rules that were asked for are not set.
    Rules,
    /// `subnet.env` was not written.
    EnvFile,
    /// The daemon is ending.
    Running,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Missing::Store => "the store has not answered yet",
            Missing::Lease => "no lease is held",
            Missing::LeaseExpired => "the lease has expired",
            Missing::Device => "the device does not carry packets",
            Missing::Address => "the address that the peers send to is not on this host",
            Missing::DataPath => "a thread of the data path is dead",
            Missing::Rules => "the traffic rules are not set",
            Missing::EnvFile => "subnet.env is not written",
            Missing::Running => "the daemon is stopping",
        })
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("started", &self.started).finish_non_exhaustive()
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

/// What the daemon says.
impl State {
    /// Nothing is there yet.
    #[must_use]
    pub fn new() -> State {
        State { started: SystemTime::now(), parts: Mutex::default(), rates: Mutex::default() }
    }

    /// This is where the leases are.
    pub fn store_is(&self, store: Arc<dyn SubnetStore>) {
        self.parts().store = Some(store);
    }

    /// This lease is ours.
    pub fn leased(&self, network: Ipv4Net, lease: Lease) {
        self.parts().lease = Some(OwnLease { network, lease, held: true });
    }

    /// Our lease is ours until then.
    pub fn lease_is_held(&self, expiry: Expiry) {
        if let Some(own) = &mut self.parts().lease {
            own.lease.expiry = expiry;
            own.held = true;
        }
    }

    /// Our lease is not ours any more.
    pub fn lease_is_lost(&self) {
        if let Some(own) = &mut self.parts().lease {
            own.held = false;
        }
    }

    /// This carries the packets, on this host.
    pub fn backend_is(&self, view: Arc<View>, host: Host) {
        self.parts().backend = Some(Backend { view, host });
    }

    /// This is how it stands with the rules.
    pub fn rules_are(&self, health: watch::Receiver<RulesHealth>) {
        self.parts().rules = Some(health);
    }

    /// `subnet.env` says what is true now, or does not.
    pub fn env_file_is_written(&self, written: bool) {
        self.parts().env_file_written = written;
    }

    /// These peers came, changed or went.
    pub fn peers_changed(&self, changes: &[Change], now: Instant) {
        let mut parts = self.parts();
        for change in changes {
            match change {
                Change::Up(lease) => {
                    let known = KnownLease { public_ip: lease.attrs.public_ip, since: now };
                    parts.peers.insert(lease.subnet, known);
                }
                Change::Down(subnet) => {
                    parts.peers.remove(subnet);
                }
            }
        }
    }

    /// The daemon ends.
    pub fn stopping(&self) {
        self.parts().stopping = true;
    }

    /// Looks at the counters.
    pub(super) fn sample(&self, now: Instant, wall: SystemTime) {
        let view = self.parts().backend.as_ref().map(|backend| Arc::clone(&backend.view));
        if let Some(view) = view {
            self.rates().look(&view, now, wall);
        }
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rates(&self) -> MutexGuard<'_, Rates> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is asked.
impl State {
    /// What is missing until the overlay works on this host, in the order in which it comes.
    #[must_use]
    pub fn missing(&self) -> Vec<Missing> {
        self.parts().missing(SystemTime::now())
    }

    /// The state in a few words: `172.7.21.0/24, 7 peers`, or what is missing.
    #[must_use]
    pub fn summary(&self) -> String {
        let parts = self.parts();
        match (parts.missing(SystemTime::now()).first(), &parts.lease) {
            (None, Some(own)) => {
                let peers = parts.peers.len();
                let noun = if peers == 1 { "peer" } else { "peers" };
                format!("{}, {peers} {noun}", own.lease.subnet.v4)
            }
            (Some(missing), _) => format!("not ready: {missing}"),
            (None, None) => "not ready".to_owned(),
        }
    }

    /// Everything.
    pub async fn report(&self) -> Report {
        let backend = self.parts().backend.clone();
        let queue_drops = match &backend {
            Some(backend) => device_queue_drops(backend).await,
            None => None,
        };
        let mut report = self.parts().report(SystemTime::now(), Instant::now());
        report.started_at = unix_seconds(self.started);
        if let Some(Backend { view, .. }) = backend {
            let rates = self.rates();
            report.egress = direction(&view.stats.egress, rates.egress, queue_drops);
            let kernel_drops = view.stats.ingress.kernel_drops.get();
            report.ingress = direction(&view.stats.ingress, rates.ingress, Some(kernel_drops));
            for peer in &mut report.peers {
                if let Some(stats) = view.peers.get(&peer.public_ip) {
                    fill(peer, &stats, &rates.of(peer.public_ip));
                }
            }
        }
        report
    }
}

impl Parts {
    fn missing(&self, now: SystemTime) -> Vec<Missing> {
        let reached = self.store.as_ref().is_some_and(|store| store.contact().now().reached);
        let held = self.lease.as_ref().is_some_and(|own| own.held);
        let expired = self.lease.as_ref().is_some_and(|own| own.lease.expiry.is_past(now));
        let device = self.backend.as_ref().and_then(|backend| backend.view.device());
        let address_gone =
            self.backend.as_ref().is_some_and(|backend| backend.view.address_is_gone());
        let panicked =
            self.backend.as_ref().is_some_and(|backend| backend.view.stats.panicked.load(Relaxed));
        let rules = match self.rules.as_ref().map(|rules| rules.borrow().clone()) {
            None => false,
            // What nobody asked for by name, a host may do without, as at the start.
            Some(RulesHealth::Trouble { asked_for, .. }) => !asked_for,
            Some(RulesHealth::None | RulesHealth::Set) => true,
        };
        let conditions = [
            (!reached, Missing::Store),
            (!held, Missing::Lease),
            (held && expired, Missing::LeaseExpired),
            (device.is_none_or(|device| device.trouble.is_some()), Missing::Device),
            (panicked, Missing::DataPath),
            (address_gone, Missing::Address),
            (!rules, Missing::Rules),
            (!self.env_file_written, Missing::EnvFile),
            (self.stopping, Missing::Running),
        ];
        conditions.into_iter().filter_map(|(is_missing, what)| is_missing.then_some(what)).collect()
    }

    /// The report, but for what the data path counts.
    fn report(&self, now: SystemTime, steady: Instant) -> Report {
        let missing = self.missing(now);
        let view = self.backend.as_ref().map(|backend| &backend.view);
        Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            ready: missing.is_empty(),
            not_ready: missing.iter().map(Missing::to_string).collect(),
            store: self.store.as_ref().map(|store| {
                let contact = store.contact().now();
                StoreReport {
                    name: store.describe(),
                    reached: contact.reached,
                    connected: contact.reached && contact.trouble.is_none(),
                    trouble: contact.trouble,
                }
            }),
            lease: self.lease.as_ref().map(|own| LeaseReport {
                network: own.network.to_string(),
                subnet: own.lease.subnet.v4.to_string(),
                public_ip: own.lease.attrs.public_ip,
                held: own.held && !own.lease.expiry.is_past(now),
                expires_at: match own.lease.expiry {
                    Expiry::At(end) => Some(unix_seconds(end)),
                    Expiry::Permanent | Expiry::Unknown => None,
                },
            }),
            device: view.and_then(|view| view.device()).map(|device| DeviceReport {
                name: device.name,
                mtu_bytes: device.mtu_bytes,
                trouble: device.trouble,
            }),
            rules: self.rules.as_ref().map_or_else(RulesReport::default, |rules| {
                match rules.borrow().clone() {
                    RulesHealth::None => RulesReport::default(),
                    RulesHealth::Set => RulesReport { set: true, trouble: None },
                    RulesHealth::Trouble { reason, .. } => {
                        RulesReport { set: false, trouble: Some(reason) }
                    }
                }
            }),
            subnet_file_written: self.env_file_written,
            offload: view.map_or_else(OffloadReport::default, |view| offload(view)),
            routes: view.map_or(0, |view| view.routes()),
            peers: self.peers(steady),
            ..Report::default()
        }
    }

    /// The hosts behind the peers' leases: most have one, but a host may hold several.
    fn peers(&self, now: Instant) -> Vec<PeerReport> {
        let mut peers: BTreeMap<Ipv4Addr, PeerReport> = BTreeMap::new();
        for (subnet, known) in &self.peers {
            let age = now.saturating_duration_since(known.since).as_secs();
            let peer = peers.entry(known.public_ip).or_insert_with(|| PeerReport {
                public_ip: known.public_ip,
                subnets: Vec::new(),
                lease_age_seconds: age,
                last_seen_at: None,
                egress: PeerDirectionReport::default(),
                ingress: PeerDirectionReport::default(),
            });
            peer.subnets.push(subnet.v4.to_string());
            peer.lease_age_seconds = peer.lease_age_seconds.max(age);
        }
        peers.into_values().collect()
    }
}

/// Packets that the device's queue had no room for, asked of the kernel.
async fn device_queue_drops(backend: &Backend) -> Option<u64> {
    let device = backend.view.device()?;
    let link = backend.host.link(&device.name).await.ok()??;
    link.is_tun.then_some(link.tx_dropped)
}

fn offload(view: &View) -> OffloadReport {
    let is_on = |rung: &AtomicBool| rung.load(Relaxed);
    let rungs = &view.stats.rungs;
    OffloadReport {
        tun_tso: is_on(&rungs.tun_tso),
        tun_uso: is_on(&rungs.tun_uso),
        merging: is_on(&rungs.merging),
        udp_gso: is_on(&rungs.udp_gso),
        udp_gro: is_on(&rungs.udp_gro),
    }
}

fn direction(stats: &DirectionStats, speed: Speed, queue_drops: Option<u64>) -> DirectionReport {
    let drops = Drop::ALL.map(|reason| (reason.name().to_owned(), stats.dropped(reason)));
    DirectionReport {
        packets: stats.packets.get(),
        bytes: stats.bytes.get(),
        bits_per_second: speed.bits_per_second,
        batches: stats.batches.get(),
        syscalls: stats.syscalls.get(),
        superpackets_in: stats.superpackets_in.get(),
        superpackets_out: stats.superpackets_out.get(),
        icmp_errors: stats.icmp_errors.get(),
        errors: stats.errors.get(),
        drops: drops.into(),
        queue_drops,
    }
}

fn fill(peer: &mut PeerReport, stats: &PeerStats, rates: &PeerRates) {
    let direction = |stats: &PeerDirection, speed: Speed| PeerDirectionReport {
        packets: stats.packets.get(),
        bytes: stats.bytes.get(),
        bits_per_second: speed.bits_per_second,
        drops: stats.drops.get(),
    };
    peer.egress = direction(&stats.egress, rates.egress);
    peer.ingress = direction(&stats.ingress, rates.ingress);
    peer.last_seen_at = rates.last_seen.map(unix_seconds);
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

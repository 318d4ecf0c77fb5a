//! flannel's `udp` backend: every packet in one UDP datagram, through a TUN device.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use ipnet::Ipv4Net;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{self, sleep_until};
use tracing::{info, warn};

use super::kept::{self, Kept, ToKeep};
use super::view::View;
use super::{Backend, BackendError, LeasesOf};
use crate::config::NetworkConfig;
use crate::dataplane::routes::{Route, Routes, SharedRoutes};
use crate::dataplane::sys::socket::UdpWish;
use crate::dataplane::sys::tun::{Tun, TunError, TunOffload};
use crate::dataplane::worker::{Dataplane, Settings, Sockets, SourceCheck, Width};
use crate::host::error::HostError;
use crate::host::interface::ExternalInterface;
use crate::host::link::TunShape;
use crate::host::monitor::LinkChange;
use crate::host::netlink::Host;
use crate::host::tun_devices::WantedTun;
use crate::host::tun_setup::{TunSetup, accept_local};
use crate::logging::limit::LogGate;
use crate::subnet::backoff::Complaint;
use crate::subnet::lease::{Lease, LeaseAttrs};

/// Bytes that the tunnel adds to a packet: an IPv4 and a UDP header (flannel
/// `pkg/backend/udp/udp_network_amd64.go`, encapOverhead).
const ENCAPSULATION_BYTES: u32 = 28;

/// The smallest MTU of a link that IPv4 demands (RFC 791, 3.2), carried by the tunnel.
const MIN_TUNNEL_MTU: u32 = 68;

/// Packets that flannel0 queues while our threads wait for their turn, in all of its queues: the
/// kernel's 500 are a few superpackets at a high product of delay and bandwidth.
///
/// Not more, for a packet may have 64 KB, and what waits here counts for no socket's buffer
/// (`skb_orphan` in drivers/net/tun.c, tun_net_xmit): any pod can fill all queues.
const TX_QUEUE_PACKETS: u32 = 10_000;

/// But so many in each queue, as TAP devices have: what one flow sends within a short stop.
const TX_QUEUE_MIN_PACKETS: u32 = 1_000;

/// Pause between attempts to put the device back.
const REPAIR_INTERVAL: Duration = Duration::from_secs(1);

/// An operator at work causes a few; another agent that disagrees causes twenty a second.
const REPAIRS_TOLD_AT_ONCE: u32 = 10;

/// The largest packet, in bytes, that the tunnel carries over this interface.
///
/// # Errors
/// [`BackendError::MtuTooSmall`].
pub fn tunnel_mtu(external: &ExternalInterface) -> Result<u16, BackendError> {
    // An IPv4 packet has at most 65,535 bytes, whatever the link takes (loopback: 65,536).
    let link_mtu = external.mtu.min(u32::from(u16::MAX));
    link_mtu
        .checked_sub(ENCAPSULATION_BYTES)
        .filter(|&mtu| mtu >= MIN_TUNNEL_MTU)
        .and_then(|mtu| u16::try_from(mtu).ok())
        .ok_or_else(|| BackendError::MtuTooSmall { name: external.name.clone(), mtu: external.mtu })
}

/// What the operator chose for this backend.
#[derive(Clone, Debug)]
pub struct UdpOptions {
    /// The device's name; `%d` is replaced by the first free number.
    pub tun_name: String,
    /// The device's alias, by which the next daemon knows it again.
    pub tun_alias: String,
    /// The most that the TUN device shall do for us.
    pub tun_offload: TunOffload,
    /// What the socket shall do for us.
    pub udp: UdpWish,
    /// What is checked on arrival.
    pub source_check: SourceCheck,
    /// How many queues and threads there are.
    pub width: Width,
    /// How long a thread looks for more packets before it sleeps.
    pub busy_poll: Duration,
}

impl UdpOptions {
    fn create_tun(&self, name: &str) -> Result<Tun, TunError> {
        Tun::create(name, self.tun_offload, self.width.queues)
    }

    /// Takes over the device that an earlier daemon left, with its queues if they were `kept` open,
    /// or creates one.
    async fn claim_tun(
        &self,
        host: &Host,
        network: Ipv4Net,
        kept: Vec<OwnedFd>,
    ) -> Result<Tun, BackendError> {
        let kept = Tun::adopt(kept, self.tun_offload, self.width.queues);
        let (multi_queue, vnet_hdr) = Tun::shape(self.tun_offload, self.width.queues);
        let wanted = WantedTun {
            alias: &self.tun_alias,
            name: &self.tun_name,
            shape: TunShape { multi_queue, vnet_hdr },
            network,
            held: kept.as_ref().map(Tun::name),
        };
        let left = host.left_tun(&wanted).await?;
        if let Some(tun) = kept {
            if left.as_deref() == Some(tun.name()) {
                return Ok(tun);
            }
            // Closed, or the new one could not have its name.
            drop(tun);
        }
        Ok(self.create_tun(left.as_deref().unwrap_or(&self.tun_name))?)
    }
}

/// The backend.
pub struct UdpBackend {
    options: UdpOptions,
    host: Host,
    public_ip: Ipv4Addr,
    /// What the sockets are bound to.
    address: Ipv4Addr,
    /// Whether that is an address of this host.
    address_is_here: watch::Receiver<bool>,
    /// Upstream agrees on one port for all hosts; it is not exchanged.
    port: u16,
    mtu: u16,
    sockets: Sockets,
    /// Its counters outlive every device and every table.
    view: Arc<View>,
    prepared: Option<Tun>,
    running: Option<Running>,
    complaint: Complaint,
    put_back: LogGate,
}

/// What exists once the lease is held.
struct Running {
    overlay: Ipv4Net,
    own: Ipv4Net,
    name: String,
    routes: SharedRoutes,
    dataplane: Option<Dataplane>,
    device_gone: Arc<Notify>,
    changes: mpsc::Receiver<LinkChange>,
    trouble: Option<Trouble>,
    /// How many devices there were.
    launched: u64,
}

/// What [`Backend::repair`] has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// The device may look different from what it should.
    Changed,
    /// The device is not there any more, or was renamed.
    Gone,
    /// The last repair failed; the next is due then. A point in time and not a pause, which would
    /// begin anew with each call of [`Backend::disturbed`].
    Unrepaired(time::Instant),
}

impl Trouble {
    /// A repair failed just now.
    fn unrepaired() -> Trouble {
        Trouble::Unrepaired(time::Instant::now() + REPAIR_INTERVAL)
    }
}

impl UdpBackend {
    /// Claims the sockets and the device, or takes over those that were kept, so that whatever is
    /// wrong with them is known before a lease is taken.
    ///
    /// # Errors
    /// See [`BackendError`].
    pub async fn prepare(
        config: &NetworkConfig,
        mut options: UdpOptions,
        external: &ExternalInterface,
        host: Host,
        kept: Kept,
    ) -> Result<UdpBackend, BackendError> {
        if options.tun_offload == TunOffload::None {
            // Such a device has one queue.
            options.width = Width { queues: 1, pairs: 1 };
        }
        let port = config.backend.udp_port()?;
        let mtu = tunnel_mtu(external)?;
        let address = SocketAddrV4::new(external.address, port);
        let sockets = Sockets::bind(address, options.udp, options.width, kept.udp)?;
        let address_is_here = host.watch_address(external.address).await?;
        let tun = options.claim_tun(&host, config.network, kept.tun).await?;
        Ok(UdpBackend {
            public_ip: external.public_ip,
            address: external.address,
            address_is_here,
            port,
            mtu,
            sockets,
            view: Arc::default(),
            prepared: Some(tun),
            running: None,
            complaint: Complaint::default(),
            put_back: LogGate::after(REPAIRS_TOLD_AT_ONCE),
            options,
            host,
        })
    }

    /// The table of routes to these peers; counters of others are forgotten.
    fn routes(&self, overlay: Ipv4Net, own: Ipv4Net, peers: LeasesOf<'_, '_>) -> Routes {
        let routes: Vec<Route> = peers
            .filter(|lease| lease.attrs.names_one_host())
            .map(|lease| {
                let ip = lease.attrs.public_ip;
                Route {
                    subnet: lease.subnet.v4,
                    endpoint: SocketAddrV4::new(ip, self.port),
                    stats: Arc::clone(&self.view.peers.entry(ip).or_default()),
                }
            })
            .collect();
        let routes = Routes::build(overlay, own, routes);
        self.view.peers.retain(|&ip, _| routes.is_peer(ip));
        self.view.set_routes(routes.len());
        routes
    }

    fn settings(&self) -> Settings {
        // With every help switched off, the plain loop is what is left.
        let one_by_one = self.options.tun_offload == TunOffload::None
            && !self.options.udp.gso
            && !self.options.udp.gro;
        Settings {
            mtu: self.mtu,
            source_check: self.options.source_check,
            busy_poll: if one_by_one { Duration::ZERO } else { self.options.busy_poll },
            one_by_one,
        }
    }

    /// Sets the device up and starts the threads on it.
    async fn launch(&self, tun: Tun, running: &mut Running) -> Result<(), BackendError> {
        running.name = tun.name().to_owned();
        self.configure(running).await?;
        running.changes = self.host.watch_link(&running.name, running.overlay).await?;
        // A notification of the old device must not be taken for one of the new.
        running.device_gone = Arc::default();
        let gone = Arc::clone(&running.device_gone);
        let dataplane = Dataplane::start(
            self.settings(),
            tun,
            &self.sockets,
            &running.routes,
            &self.view.stats,
            move || gone.notify_one(),
        )?;
        // Nothing can fail any more, and it has what the next daemon knows it by.
        if let Err(error) = dataplane.persist_device() {
            warn!("{} will go with this daemon and come with the next one: {error}", running.name);
        }
        running.dataplane = Some(dataplane);
        running.launched += 1;
        Ok(())
    }

    /// Makes the device look as it must; changes nothing that is right.
    async fn configure(&self, running: &Running) -> Result<bool, BackendError> {
        let wanted = TunSetup {
            name: running.name.clone(),
            mtu: u32::from(self.mtu),
            address: running.own.network(),
            network: running.overlay,
            tx_queue_len: self.tx_queue_len(),
            alias: self.options.tun_alias.clone(),
        };
        let changed = self.host.configure_tun(&wanted).await?;
        if let Err(error) = accept_local(&running.name) {
            warn!("ICMP errors of the overlay will not reach local programs: {error}");
        }
        Ok(changed)
    }

    /// The length of each of the device's queues, in packets.
    fn tx_queue_len(&self) -> u32 {
        let queues = u32::try_from(self.options.width.queues.max(1)).unwrap_or(u32::MAX);
        (TX_QUEUE_PACKETS / queues).max(TX_QUEUE_MIN_PACKETS)
    }

    /// Brings the device back to what it must be; says whether it had to change anything.
    async fn mend(&self, running: &mut Running, trouble: Trouble) -> Result<bool, BackendError> {
        if trouble != Trouble::Gone && running.dataplane.is_some() {
            match self.configure(running).await {
                // It went, or got another name, since the trouble was noticed.
                Err(BackendError::Host(HostError::NoSuchLink { .. })) => {}
                done => return done,
            }
        }
        // The old device, which may have another name now, must go before a new one can have its
        // name, address and route.
        if let Some(dataplane) = running.dataplane.take() {
            dataplane.stop_and_remove_device();
        }
        // A service manager that holds its queues as well keeps it alive (decision 017).
        self.host.remove_tuns(&self.options.tun_alias).await?;
        let tun = self.options.create_tun(&running.name)?;
        self.launch(tun, running).await.map(|()| true)
    }
}

/// Says that the sockets' address went, or returned. Nothing else is done: another address would be
/// another host to the peers, and with the old one the sockets work again.
fn tell_address(address: Ipv4Addr, here: bool, view: &View) {
    match (here, view.address_is_gone()) {
        (false, false) => warn!(
            "{address}, which peers send to, is no address of this host any more: nothing is \
             carried until it is back; restart the daemon if another one takes its place"
        ),
        (true, true) => info!("{address} is an address of this host again: packets flow"),
        _ => {}
    }
    view.set_address_gone(!here);
}

#[async_trait]
impl Backend for UdpBackend {
    fn attrs(&self) -> LeaseAttrs {
        LeaseAttrs::udp(self.public_ip)
    }

    fn mtu(&self) -> u16 {
        self.mtu
    }

    fn view(&self) -> Arc<View> {
        Arc::clone(&self.view)
    }

    async fn start(
        &mut self,
        overlay: Ipv4Net,
        own: &Lease,
        peers: LeasesOf<'_, '_>,
    ) -> Result<(), BackendError> {
        let tun = match self.prepared.take() {
            Some(tun) => tun,
            None => self.options.create_tun(&self.options.tun_name)?,
        };
        let own = own.subnet.v4.trunc();
        let (_, changes) = mpsc::channel(1);
        let mut running = Running {
            overlay,
            own,
            name: String::new(),
            routes: SharedRoutes::new(self.routes(overlay, own, peers)),
            dataplane: None,
            device_gone: Arc::default(),
            changes,
            trouble: None,
            launched: 0,
        };
        self.launch(tun, &mut running).await?;
        self.view.device_is_up(&running.name, self.mtu);
        info!(
            "{} carries {overlay} by UDP port {} with an MTU of {} bytes: {}; receive buffer {} KiB",
            running.name,
            self.port,
            self.mtu,
            self.view.stats.rungs,
            self.sockets.receive_buffer_bytes() / 1024,
        );
        self.running = Some(running);
        Ok(())
    }

    fn publish(&mut self, peers: LeasesOf<'_, '_>) {
        let Some(running) = &self.running else { return };
        running.routes.publish(self.routes(running.overlay, running.own, peers));
    }

    async fn move_to(&mut self, own: &Lease) -> Result<(), BackendError> {
        let Some(mut running) = self.running.take() else { return Ok(()) };
        running.own = own.subnet.v4.trunc();
        let result = self.configure(&running).await;
        if let Err(error) = &result {
            self.view.device_is_not(error.to_string());
            running.trouble = Some(Trouble::unrepaired());
        }
        self.running = Some(running);
        result.map(|_| ())
    }

    async fn disturbed(&mut self) {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        if let Some(Trouble::Unrepaired(due)) = running.trouble {
            return sleep_until(due).await;
        }
        let trouble = loop {
            tokio::select! {
                () = running.device_gone.notified() => break Trouble::Gone,
                change = running.changes.recv() => break match change {
                    Some(LinkChange::Changed) => Trouble::Changed,
                    Some(LinkChange::Vanished) | None => Trouble::Gone,
                },
                Ok(()) = self.address_is_here.changed() => {
                    let here = *self.address_is_here.borrow_and_update();
                    tell_address(self.address, here, &self.view);
                }
            }
        };
        running.trouble = Some(trouble);
        if running.trouble == Some(Trouble::Gone) {
            self.view.device_is_not("it was removed");
        }
    }

    async fn repair(&mut self) -> bool {
        let Some(mut running) = self.running.take() else { return false };
        let launched = running.launched;
        if let Some(trouble) = running.trouble.take() {
            let mended = self.mend(&mut running, trouble).await;
            match &mended {
                Ok(_) => self.view.device_is_up(&running.name, self.mtu),
                Err(error) => self.view.device_is_not(error.to_string()),
            }
            match mended {
                Ok(changed) => {
                    self.complaint.clear();
                    let name = &running.name;
                    if changed && let Some(withheld) = self.put_back.pass(Instant::now()) {
                        warn!("{name} was changed from outside: put back as it must be{withheld}");
                    }
                }
                Err(error) => {
                    let (name, text) = (&running.name, error.to_string());
                    if let Some(withheld) = self.complaint.due(&text, Instant::now()) {
                        warn!("{name} is not as it must be: {text}; trying again{withheld}");
                    }
                    running.trouble = Some(Trouble::unrepaired());
                }
            }
        }
        let replaced = running.launched != launched;
        self.running = Some(running);
        replaced
    }

    fn to_keep(&self) -> ToKeep<'_> {
        let dataplane = self.running.as_ref().and_then(|running| running.dataplane.as_ref());
        let queues = dataplane.into_iter().flat_map(Dataplane::queues);
        kept::to_keep(queues.collect(), self.sockets.receivers().collect())
    }

    fn stop(self: Box<Self>) {
        if let Some(dataplane) = self.running.and_then(|running| running.dataplane) {
            dataplane.stop();
        }
        info!("egress: {}", self.view.stats.egress);
        info!("ingress: {}", self.view.stats.ingress);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A backend whose device cannot be made: its name is too long.
    fn hopeless() -> UdpBackend {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let options = UdpOptions {
            tun_name: "a-name-of-too-many-bytes".to_owned(),
            tun_alias: "flanneld /run/no/such/subnet.env".to_owned(),
            tun_offload: TunOffload::Tso,
            udp: UdpWish { gso: false, gro: false },
            source_check: SourceCheck::Peer,
            width: Width { queues: 2, pairs: 1 },
            busy_poll: Duration::ZERO,
        };
        let (overlay, own) = ("172.7.0.0/16".parse().unwrap(), "172.7.5.0/24".parse().unwrap());
        let running = Running {
            overlay,
            own,
            name: options.tun_name.clone(),
            routes: SharedRoutes::new(Routes::build(overlay, own, Vec::new())),
            dataplane: None,
            device_gone: Arc::default(),
            changes: mpsc::channel(1).1,
            trouble: Some(Trouble::Gone),
            launched: 0,
        };
        UdpBackend {
            host: Host::open().unwrap(),
            public_ip: *address.ip(),
            address: *address.ip(),
            address_is_here: watch::channel(true).1,
            port: address.port(),
            mtu: 1472,
            sockets: Sockets::bind(address, options.udp, options.width, Vec::new()).unwrap(),
            view: Arc::default(),
            prepared: None,
            running: Some(running),
            complaint: Complaint::default(),
            put_back: LogGate::after(REPAIRS_TOLD_AT_ONCE),
            options,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_repair_is_due_in_time_however_often_it_is_asked_for() {
        let mut backend = hopeless();
        for _ in 0..2 {
            assert!(!backend.repair().await, "there is no such device");
            let failed = time::Instant::now();
            for _ in 0..9 {
                let tenth = time::timeout(REPAIR_INTERVAL / 10, backend.disturbed()).await;
                assert!(tenth.is_err(), "{:?}", failed.elapsed());
            }
            backend.disturbed().await;
            let due = REPAIR_INTERVAL..REPAIR_INTERVAL + REPAIR_INTERVAL / 10;
            assert!(due.contains(&failed.elapsed()), "{:?}", failed.elapsed());
        }
    }
}

//! The order of starting, supervising and stopping.
//!
//! What can be wrong on this host (interface, port, device, rights) is found before a lease is
//! taken; `subnet.env` is written, and readiness told, only when packets are carried.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context, anyhow};
use rand::rngs::StdRng;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use crate::admin::Admin;
use crate::admin::state::State;
use crate::admin::supervisor::Supervisor;
use crate::backend::kept::{self, Kept};
use crate::backend::udp::{UdpBackend, UdpOptions};
use crate::backend::{self, Backend, BackendError};
use crate::cli::{OffloadMode, Options, StoreOptions};
use crate::config::NetworkConfig;
use crate::dataplane::sys::socket::UdpWish;
use crate::dataplane::sys::tun::TunOffload;
use crate::dataplane::worker::Width;
use crate::host::interface::{self, InterfaceWish};
use crate::host::kernel;
use crate::host::netlink::Host;
use crate::host::rules::{Family, KeptRules, Nets, Rules};
use crate::host::tun_setup::MAX_ALIAS_BYTES;
use crate::subnet::config_watch;
use crate::subnet::directory::DirectoryStore;
use crate::subnet::env_file::{self, EnvFile};
use crate::subnet::etcd::{EtcdConfig, EtcdStore, TlsFiles};
use crate::subnet::keeper::{self, Timing, Update, acquire};
use crate::subnet::lease::{Lease, Subnet};
use crate::subnet::peers::{Change, Peers};
use crate::subnet::store::{LEASE_TTL, StoreError, SubnetStore, WatchEvent};

/// Updates of the store that may wait while the backend is busy.
const UPDATE_QUEUE: usize = 256;

/// More changes than this at once are told in one line.
const PEERS_TOLD_ONE_BY_ONE: usize = 32;

/// The store has just given us our lease, and lists the others as fast.
const FIRST_PEERS_PATIENCE: Duration = Duration::from_secs(5);

/// Pause between attempts to write `subnet.env`.
const ENV_FILE_INTERVAL: Duration = Duration::from_secs(10);

/// Time between two looks at whether the threads of the data path live.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Runs the daemon until a signal ends it. `passed` are the descriptors that the service manager
/// has kept for it, with their names.
///
/// # Errors
/// Whatever keeps it from starting; each names the thing, the value and the fix. Later, that a part
/// of it is dead: then only a new daemon helps.
pub async fn run(options: Options, passed: Vec<(String, OwnedFd)>) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    // Before anything else, so that whoever asks is told what is missing.
    let admin = Admin::start(options.healthz, options.admin_socket.as_deref()).await?;
    let mut supervisor = Supervisor::new(|name| std::env::var_os(name));
    let kept = take_over(passed, &supervisor);
    let mut start = std::pin::pin!(Daemon::start(&options, &admin.state, kept));
    let started = loop {
        tokio::select! {
            started = &mut start => break started?,
            () = supervisor.due() => supervisor.tell(&admin.state),
            name = signals.end() => {
                info!("{name}: stopping before the start was complete");
                supervisor.stopping();
                return Ok(());
            }
        }
    };
    started.serve(&mut signals, &mut supervisor).await
}

struct Daemon<'o> {
    options: &'o Options,
    state: &'o State,
    config: NetworkConfig,
    backend: Box<dyn Backend>,
    rules: KeptRules,
    peers: Peers,
    own: Lease,
    updates: mpsc::Receiver<Update>,
    /// The store's config may be another one now.
    config_written: Arc<Notify>,
    /// What changed since the routes were last published.
    unpublished: Vec<Change>,
    /// When `subnet.env` is tried again, if it could not be written.
    env_file_due: Option<Instant>,
    /// It was written, and that this host is ready was not told yet.
    ready_untold: bool,
}

impl<'o> Daemon<'o> {
    async fn start(
        options: &'o Options,
        state: &'o State,
        mut kept: Kept,
    ) -> anyhow::Result<Daemon<'o>> {
        let store = open_store(&options.store).await?;
        info!("the store is {}", store.describe());
        state.store_is(Arc::clone(&store));
        let mut rng: StdRng = rand::make_rng();
        let host = Host::open()?;
        let udp = udp_wish(options);
        let (config, rules, mut backend, own) = loop {
            let config = acquire::wait_for_config(&*store, &mut rng).await?;
            let rules =
                Rules::prepare(options.rules, config.enable_nftables, families(&config)).await?;
            let kept = std::mem::take(&mut kept);
            let backend = prepare(options, &config, udp, host.clone(), kept).await?;
            let (leased_by, own) = acquire::acquire_with_retry(
                &*store,
                &backend.attrs(),
                previous_subnet(&options.subnet_file),
                LEASE_TTL,
                &mut rng,
            )
            .await?;
            if leased_by == config {
                break (config, rules, backend, own);
            }
            // Its port and rules may be others. The lease is found again.
            info!("the network config was changed during the start: beginning anew with it");
        };
        info!("this host leases {} of {}", own.subnet.v4, config.network);
        state.leased(config.network, own.clone());

        let (updates_in, mut updates) = mpsc::channel(UPDATE_QUEUE);
        let timing = Timing { ttl: LEASE_TTL, margin: options.renew_margin };
        let config_written = Arc::new(Notify::new());
        let look = Arc::clone(&config_written);
        tokio::spawn(config_watch::run(Arc::clone(&store), config.clone(), look));
        tokio::spawn(keeper::run(store, config.clone(), own.clone(), timing, updates_in));
        let mut peers = Peers::new(own.clone());
        // What waits in device and socket is dropped if its peer is not known by then.
        let (unpublished, others) = first_peers(&mut updates, &mut peers).await;
        backend.start(config.network, &own, &mut peers.leases()).await?;
        state.backend_is(backend.view(), host.clone());
        let rules = rules.start(host, nets(&config, &own.subnet)).await;
        state.rules_are(rules.health());
        let mut daemon = Daemon {
            options,
            state,
            config,
            backend,
            rules,
            peers,
            own,
            updates,
            config_written,
            unpublished,
            env_file_due: None,
            ready_untold: false,
        };
        // The backend has started with them.
        daemon.tell_published();
        for update in others {
            if daemon.take(update).await {
                daemon.publish();
            }
        }
        // It may have been written since it was read.
        daemon.config_written.notify_one();
        daemon.write_env_file();
        Ok(daemon)
    }

    /// Writes `subnet.env`, which container runtimes wait for: with it, and with the rules that
    /// were asked for, this host is ready. A failure stops no packet; it is tried again.
    fn write_env_file(&mut self) {
        let path = &self.options.subnet_file;
        let mtu = u32::from(self.backend.mtu());
        let file = EnvFile::new(&self.config, &self.own.subnet, mtu, self.options.rules.masquerade);
        match file.write_atomic(path) {
            Ok(()) => {
                self.state.env_file_is_written(true);
                info!("wrote {}", path.display());
                self.ready_untold = true;
                self.env_file_due = None;
            }
            Err(error) => {
                if self.env_file_due.is_none() {
                    warn!("not ready: {error}; trying again");
                }
                self.env_file_due = Some(Instant::now() + ENV_FILE_INTERVAL);
            }
        }
    }

    /// Follows the store, keeps the device as it must be, and ends with a signal.
    ///
    /// # Errors
    /// If a part that does not end by itself has ended.
    async fn serve(
        mut self,
        signals: &mut Signals,
        supervisor: &mut Supervisor,
    ) -> anyhow::Result<()> {
        let mut publish_at: Option<Instant> = None;
        let mut next_publish = Instant::now();
        let mut look_at = Instant::now();
        let view = self.backend.view();
        self.keep_descriptors(supervisor);
        supervisor.tell(self.state);
        let end = loop {
            tokio::select! {
                name = signals.end() => {
                    info!("{name}: stopping");
                    break Ok(());
                }
                () = tokio::time::sleep_until(look_at) => {
                    look_at = Instant::now() + LOOK_EVERY;
                    if view.stats.panicked.load(Relaxed) {
                        break Err(anyhow!(
                            "a thread of the data path is dead: this is a bug; ending, so that a \
                             new daemon can be started"
                        ));
                    }
                }
                () = supervisor.due() => supervisor.tell(self.state),
                () = self.backend.disturbed() => {
                    if self.backend.repair().await {
                        self.keep_descriptors(supervisor);
                    }
                }
                update = self.updates.recv() => {
                    let Some(update) = update else {
                        break Err(anyhow!(
                            "the lease is not kept any more: this is a bug; ending, so that a new \
                             daemon can be started"
                        ));
                    };
                    if self.take(update).await {
                        publish_at.get_or_insert(next_publish);
                    }
                }
                () = sleep_until(self.env_file_due) => self.write_env_file(),
                () = self.rules.in_place(), if self.ready_untold => {
                    info!("flanneld is ready");
                    self.ready_untold = false;
                }
                () = sleep_until(self.peers.next_expiry().map(Instant::from_std)) => {
                    let changes = self.peers.expire(Instant::now().into_std());
                    if self.note(changes) {
                        publish_at.get_or_insert(next_publish);
                    }
                }
                () = sleep_until(publish_at) => {
                    publish_at = None;
                    let start = Instant::now();
                    self.publish();
                    next_publish = start + backend::time_to_next_publish(start.elapsed());
                }
            }
        };
        self.state.stopping();
        supervisor.stopping();
        self.rules.stop().await;
        self.backend.stop();
        end
    }

    fn publish(&mut self) {
        self.backend.publish(&mut self.peers.leases());
        self.tell_published();
    }

    /// Tells what has changed: only once it was published is it true.
    fn tell_published(&mut self) {
        let changes = std::mem::take(&mut self.unpublished);
        self.state.peers_changed(&changes, Instant::now().into_std());
        tell(&changes);
    }

    fn keep_descriptors(&self, supervisor: &Supervisor) {
        for (name, fds) in self.backend.to_keep() {
            supervisor.keep(name, &fds);
        }
    }

    /// Remembers what the next table of routes will change; says whether that is anything.
    fn note(&mut self, changes: Vec<Change>) -> bool {
        let any = !changes.is_empty();
        self.unpublished.extend(changes);
        any
    }

    /// Takes over what the keeper reports; says whether the routes changed.
    async fn take(&mut self, update: Update) -> bool {
        match update {
            Update::Store(event) => {
                // What was written before a snapshot is not reported by itself.
                if matches!(event, WatchEvent::Config | WatchEvent::Snapshot(_)) {
                    self.config_written.notify_one();
                }
                let changes = self.peers.apply(event, Instant::now().into_std());
                self.note(changes)
            }
            Update::Held(expiry) => {
                self.state.lease_is_held(expiry);
                false
            }
            Update::Lost => {
                self.state.lease_is_lost();
                false
            }
            Update::Moved(lease) => {
                self.own = lease;
                self.state.env_file_is_written(false);
                self.state.leased(self.config.network, self.own.clone());
                let changes = self.peers.set_own(self.own.clone());
                self.note(changes);
                if let Err(error) = self.backend.move_to(&self.own).await {
                    warn!("cannot move to {}: {error}; trying again", self.own.subnet.v4);
                }
                self.rules.follow(nets(&self.config, &self.own.subnet));
                self.write_env_file();
                true
            }
        }
    }
}

/// Sorts what was passed. Only we hold it from here on: what turns out not to fit is closed, and
/// must be free to be opened anew then.
fn take_over(passed: Vec<(String, OwnedFd)>, supervisor: &Supervisor) -> Kept {
    if !passed.is_empty() {
        for name in kept::NAMES {
            supervisor.forget(name);
        }
        supervisor.settle();
    }
    Kept::sort(passed)
}

/// Takes the peers from the first report of the store, unless that is long in coming: what is
/// carried then has no peers yet. Gives back as well what was told before it.
async fn first_peers(
    updates: &mut mpsc::Receiver<Update>,
    peers: &mut Peers,
) -> (Vec<Change>, Vec<Update>) {
    let deadline = Instant::now() + FIRST_PEERS_PATIENCE;
    let mut others = Vec::new();
    while let Ok(Some(update)) = timeout_at(deadline, updates.recv()).await {
        match update {
            Update::Store(event) => {
                return (peers.apply(event, Instant::now().into_std()), others);
            }
            other => others.push(other),
        }
    }
    (Vec::new(), others)
}

/// Says which peers came and went; of many at once only how many.
fn tell(changes: &[Change]) {
    if changes.len() > PEERS_TOLD_ONE_BY_ONE {
        let up = changes.iter().filter(|change| matches!(change, Change::Up(_))).count();
        info!("{up} peers are up, {} are gone", changes.len() - up);
        return;
    }
    for change in changes {
        match change {
            Change::Up(lease) if !lease.attrs.names_one_host() => warn!(
                "peer {} names {} as its host: no route is set; correct its PublicIP",
                lease.subnet.v4, lease.attrs.public_ip
            ),
            Change::Up(lease) => {
                info!("peer {} at {} is up", lease.subnet.v4, lease.attrs.public_ip);
            }
            Change::Down(subnet) => info!("peer {} is gone", subnet.v4),
        }
    }
}

/// Opens the store that the operator named; etcd is asked by the first request.
///
/// # Errors
/// If what was given cannot work.
pub(crate) async fn open_store(options: &StoreOptions) -> Result<Arc<dyn SubnetStore>, StoreError> {
    Ok(match options {
        StoreOptions::Directory(dir) => Arc::new(DirectoryStore::open(dir)?),
        StoreOptions::Etcd(etcd) => {
            let cert = etcd.client_cert.as_ref();
            let path = |path: Option<&PathBuf>| path.cloned().unwrap_or_default();
            let credentials = etcd.credentials.as_ref();
            let config = EtcdConfig {
                endpoints: etcd.endpoints.clone(),
                prefix: etcd.prefix.clone(),
                tls: TlsFiles {
                    ca: path(etcd.cafile.as_ref()),
                    cert: path(cert.map(|cert| &cert.certfile)),
                    key: path(cert.map(|cert| &cert.keyfile)),
                },
                username: credentials.map(|user| user.username.clone()).unwrap_or_default(),
                password: credentials
                    .map(|user| user.password.expose().to_owned())
                    .unwrap_or_default(),
            };
            Arc::new(EtcdStore::connect(config).await?)
        }
    })
}

/// Chooses the external interface and claims socket and device.
async fn prepare(
    options: &Options,
    config: &NetworkConfig,
    udp: UdpWish,
    host: Host,
    kept: Kept,
) -> anyhow::Result<Box<dyn Backend>> {
    if config.backend.kind != "udp" {
        return Err(BackendError::Unknown { kind: config.backend.kind.clone() }.into());
    }
    let external = interface::select(&host, &interface_wish(options)).await?;
    info!(
        "peers reach this host at {} by interface {} ({}, MTU {})",
        external.public_ip, external.name, external.address, external.mtu
    );
    let udp = UdpOptions {
        tun_name: options.tun_name.clone(),
        tun_alias: tun_alias(&options.subnet_file),
        tun_offload: tun_offload(options.offload),
        udp,
        source_check: options.source_check,
        width: Width {
            queues: options.queues,
            pairs: options.threads.unwrap_or_else(pairs_for_this_machine),
        },
        busy_poll: options.busy_poll,
    };
    Ok(Box::new(UdpBackend::prepare(config, udp, &external, host, kept).await?))
}

/// What tells this daemon's device from another's: each has a `subnet.env` of its own.
pub(crate) fn tun_alias(subnet_file: &Path) -> String {
    let path = std::path::absolute(subnet_file).unwrap_or_else(|_| subnet_file.to_owned());
    let mut alias = format!("flanneld {}", path.display());
    // Of a path that is too long, the beginning will do.
    while alias.len() > MAX_ALIAS_BYTES {
        alias.pop();
    }
    alias
}

/// What the operator says about the external interface.
pub(crate) fn interface_wish(options: &Options) -> InterfaceWish {
    InterfaceWish {
        iface: options.iface.clone(),
        iface_regex: options.iface_regex.clone(),
        can_reach: options.iface_can_reach,
        public_ip: options.public_ip,
    }
}

/// The most that is asked of the TUN device.
pub(crate) fn tun_offload(mode: OffloadMode) -> TunOffload {
    match mode {
        OffloadMode::Auto => TunOffload::TsoUso,
        OffloadMode::Tso => TunOffload::Tso,
        OffloadMode::Off => TunOffload::None,
    }
}

/// What is asked of the UDP sockets; told if it is less than usual.
fn udp_wish(options: &Options) -> UdpWish {
    let release = kernel::release();
    let wish = options.udp_wish(&release);
    if options.udp_gso.is_none() && !wish.gso {
        info!(
            "Linux {release} breaks trains of datagrams (UDP_SEGMENT): they go out one by one; \
             --udp-gso sends trains all the same, --udp-gso=false ends this message"
        );
    }
    wish
}

/// Each pair keeps two CPUs busy at most; more than four would cost more memory and wake-ups than a
/// network card for which one needs them is worth by default.
fn pairs_for_this_machine() -> usize {
    std::thread::available_parallelism().map_or(1, |cpus| (cpus.get() / 2).clamp(1, 4))
}

/// The address families of the overlay.
pub(crate) fn families(config: &NetworkConfig) -> &'static [Family] {
    if config.ipv6.is_some() { &[Family::V4, Family::V6] } else { &[Family::V4] }
}

/// What the traffic rules are about.
fn nets(config: &NetworkConfig, own: &Subnet) -> Vec<Nets> {
    let mut nets = vec![Nets::v4(config.network, own.v4)];
    if let (Some(ipv6), Some(subnet)) = (&config.ipv6, own.v6) {
        nets.push(Nets::v6(ipv6.network, subnet));
    }
    nets
}

/// The subnet that this host had before, if `subnet.env` tells; a file that cannot be read costs
/// the memory of it, not the start.
fn previous_subnet(path: &Path) -> Option<Subnet> {
    match env_file::read_previous(path) {
        Ok(previous) => previous.wanted(),
        Err(error) => {
            warn!("the previous subnet is unknown: {error}");
            None
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The signals that end the daemon.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Signals> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn end(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

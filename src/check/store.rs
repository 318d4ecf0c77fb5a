//! The store: can it be read, is its config valid, do the leases make sense.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use ipnet::Ipv4Net;
use rand::rngs::StdRng;
use rustix::fs::Access;
use tokio::time::timeout;

use super::Report;
use crate::cli::{Options, StoreOptions};
use crate::config::NetworkConfig;
use crate::daemon::open_store;
use crate::host::interface::ExternalInterface;
use crate::host::link::Link;
use crate::subnet::lease::{Expiry, Lease, LeaseAttrs, Subnet};
use crate::subnet::store::{LEASE_TTL, StoreError, same_holder};
use crate::subnet::{allocate, env_file};

/// How long the store may take for its config, and again for its leases: each member of etcd is
/// given some seconds by the store itself.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Clocks may differ by so much unnoticed.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// What the store said.
pub(super) struct Stored {
    pub(super) config: NetworkConfig,
    /// The backend's UDP port.
    pub(super) port: u16,
    pub(super) leases: Vec<Lease>,
    /// The lease under this host's public address.
    pub(super) own: Option<Lease>,
    /// Its subnet, else the one that `subnet.env` remembers.
    pub(super) own_subnet: Option<Ipv4Net>,
}

/// Examines it.
pub(super) async fn examine(
    options: &Options,
    external: Option<&ExternalInterface>,
    device: Option<&Link>,
    report: &mut Report,
) -> Option<Stored> {
    subnet_file(&options.subnet_file, report);
    if let StoreOptions::Directory(dir) = &options.store
        && !dir.join("config").exists()
    {
        // Opening it would make it.
        report.failure(
            "store",
            format!("there is no network config at {}", dir.join("config").display()),
            "mount the directory that all hosts share, or put the config there, for example \
             {\"Network\":\"10.5.0.0/16\"}",
        );
        return None;
    }
    let text = async {
        let store = open_store(&options.store).await?;
        let text = store.config().await?;
        Ok((store, text))
    };
    let (store, text) = answer(timeout(ANSWER_TIME, text).await, report)?;
    let (config, port) = config(&text, report)?;
    report.ok("store", format!("{} holds the network {}", store.describe(), config.network));

    let leases = answer(timeout(ANSWER_TIME, store.list()).await, report)?;
    let own = external.and_then(|external| {
        let attrs = LeaseAttrs::udp(external.public_ip);
        leases.iter().find(|lease| same_holder(&lease.attrs, &attrs)).cloned()
    });
    let remembered =
        env_file::read_previous(&options.subnet_file).ok().and_then(|previous| previous.subnet);
    let stored = Stored {
        own_subnet: own.as_ref().map(|own| own.subnet.v4.trunc()).or(remembered),
        config,
        port,
        leases,
        own,
    };
    own_lease(&stored, device, report);
    all_leases(&stored, report);
    Some(stored)
}

type Timed<T> = Result<Result<T, StoreError>, tokio::time::error::Elapsed>;

fn answer<T>(answer: Timed<T>, report: &mut Report) -> Option<T> {
    let error = match answer {
        Ok(Ok(answer)) => return Some(answer),
        Ok(Err(error)) => error,
        Err(_) => {
            let text = format!("no answer within {} s", ANSWER_TIME.as_secs());
            report.failure("store", text, REACH_FIX);
            return None;
        }
    };
    let fix = match &error {
        StoreError::Unreachable { .. } => REACH_FIX,
        StoreError::NoConfig { .. } => {
            "etcdctl put PREFIX/config '{\"Network\":\"10.5.0.0/16\"}', and compare --etcd-prefix \
             with the other hosts'"
        }
        _ => "correct the flags of the store",
    };
    report.failure("store", error.to_string(), fix);
    None
}

const REACH_FIX: &str = "start the store, compare --etcd-endpoints and the certificates with those \
                         of a host that works, and open its TCP port in the firewalls";

fn config(text: &str, report: &mut Report) -> Option<(NetworkConfig, u16)> {
    let fix = "correct the network config in the store; all hosts read the same one";
    let parsed = NetworkConfig::parse(text)
        .and_then(|config| config.backend.udp_port().map(|port| (config, port)));
    match parsed {
        Ok((config, _)) if config.backend.kind != "udp" => {
            report.failure(
                "store",
                format!("Backend.Type is {:?}, this daemon serves \"udp\"", config.backend.kind),
                fix,
            );
            None
        }
        Ok(parsed) => Some(parsed),
        Err(error) => {
            report.failure("store", error.to_string(), fix);
            None
        }
    }
}

/// Whether `subnet.env` could be written.
fn subnet_file(path: &Path, report: &mut Report) {
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    let mut directory = parent.unwrap_or(Path::new("."));
    // The daemon makes what is missing.
    while let Some(parent) = directory.parent()
        && !directory.exists()
    {
        directory = if parent == Path::new("") { Path::new(".") } else { parent };
    }
    let outcome = match directory.is_dir() {
        true => rustix::fs::access(directory, Access::WRITE_OK | Access::EXEC_OK),
        false => Err(rustix::io::Errno::NOTDIR),
    };
    match outcome {
        Ok(()) => report.ok("subnet.env", format!("{} can be written", path.display())),
        Err(errno) => report.failure(
            "subnet.env",
            format!("{} cannot be written: {}: {errno}", path.display(), directory.display()),
            "make the directory writable, or choose another file by --subnet-file",
        ),
    }
}

fn own_lease(stored: &Stored, device: Option<&Link>, report: &mut Report) {
    let restart = "look into the daemon's log; restart it";
    let Some(own) = &stored.own else {
        if device.is_some() {
            let text = "the daemon runs, but the store has no lease with its public address";
            report.warning("lease", text, restart);
        } else if let Some(taken) = full(stored) {
            report.failure(
                "lease",
                format!("no free subnet is left for this host: {taken} leases"),
                "make Network larger or SubnetLen longer, or delete leases of hosts that are gone",
            );
        } else {
            report.ok("lease", "none yet; a subnet is free");
        }
        return;
    };
    let subnet = own.subnet.v4;
    let here = |device: &Link| device.addresses.iter().any(|a| a.net.addr() == subnet.network());
    match device {
        Some(device) if !here(device) => report.warning(
            "lease",
            format!("the store leases {subnet} to this host, but {} has not its address", {
                &device.name
            }),
            restart,
        ),
        _ => report.ok("lease", format!("this host has {subnet}")),
    }
}

/// How many leases there are, if they leave no room.
fn full(stored: &Stored) -> Option<usize> {
    let taken: Vec<Subnet> = stored.leases.iter().map(|lease| lease.subnet).collect();
    let mut rng: StdRng = rand::make_rng();
    allocate::pick(&stored.config, &taken, 1, &mut rng).is_none().then_some(taken.len())
}

fn all_leases(stored: &Stored, report: &mut Report) {
    let leases = &stored.leases;
    let before = report.findings.len();
    let remove = "delete the lease of the host that is gone; a running one takes a new subnet";
    let mut by_host: HashMap<Ipv4Addr, &Lease> = HashMap::new();
    for lease in leases {
        let (ip, subnet) = (lease.attrs.public_ip, lease.subnet.v4);
        if !lease.attrs.names_one_host() {
            let text = format!("the lease of {subnet} names {ip} as its host");
            report.warning("leases", text, "correct its PublicIP, or delete it");
        } else if let Some(other) = by_host.insert(ip, lease) {
            report.warning(
                "leases",
                format!("{ip} holds two subnets, {} and {subnet}", other.subnet.v4),
                "delete the one that is not in that host's subnet.env; if two hosts have this \
                 address, give each its own --public-ip",
            );
        }
        if !stored.config.network.contains(&subnet) {
            let text = format!("{subnet} lies outside the network {}", stored.config.network);
            report.warning("leases", text, remove);
        }
        if let Expiry::At(end) = lease.expiry
            && end.duration_since(SystemTime::now()).is_ok_and(|ttl| ttl > LEASE_TTL + CLOCK_SLACK)
        {
            report.warning(
                "clock",
                format!("the lease of {subnet} ends later than any daemon makes it end"),
                format!("this host's clock is behind, or that of {ip} ahead: set both right"),
            );
        }
    }
    // Sorted by their bases, nets that overlap include neighbours that do.
    let mut sorted: Vec<&Lease> = leases.iter().collect();
    sorted.sort_by_key(|lease| lease.subnet.v4);
    for pair in sorted.windows(2).filter(|pair| pair[0].subnet.overlaps(&pair[1].subnet)) {
        let (a, b) = (pair[0].subnet.v4, pair[1].subnet.v4);
        report.warning("leases", format!("{a} and {b} overlap"), remove);
    }
    if report.findings.len() == before {
        report.ok("leases", format!("{} in the store, no two in conflict", leases.len()));
    }
}

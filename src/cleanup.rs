//! `flanneld cleanup`: removes what a daemon left on this host, and says what that was.
//!
//! Device, routes, rules and files stay on purpose, for the next start; this is for hosts where
//! there will be none.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use ipnet::IpNet;
use rustix::thread::CapabilitySet;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::cli::Options;
use crate::daemon;
use crate::host::netlink::Host;
use crate::host::rules;
use crate::subnet::env_file;

/// How long a daemon may take to accept at its admin socket.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// What came of it.
#[derive(Debug, Default)]
pub struct Cleaned {
    /// What was there, and is gone unless it was only looked for.
    pub removed: Vec<String>,
    /// What could not be removed, and why.
    pub failed: Vec<String>,
}

/// Removes what daemons left here; with `dry_run`, only finds it. Must be called within a tokio
/// runtime.
///
/// # Errors
/// If a daemon runs, the rights are missing, or the kernel cannot be asked: nothing is removed
/// then.
pub async fn run(options: &Options, dry_run: bool) -> anyhow::Result<Cleaned> {
    let effective = rustix::thread::capabilities(None).context("cannot read the capabilities")?;
    ensure!(
        dry_run || effective.effective.contains(CapabilitySet::NET_ADMIN),
        "not permitted: it needs CAP_NET_ADMIN: run flanneld cleanup as root"
    );
    let host = Host::open()?;
    if let Some(socket) = &options.admin_socket {
        // Without a daemon it refuses at once; a daemon that is slow to answer is one.
        if !matches!(timeout(ANSWER_TIME, UnixStream::connect(socket)).await, Ok(Err(_))) {
            bail!("a daemon runs: it answers at {}; stop it first", socket.display());
        }
    }
    let mut devices = host.tuns_named(&options.tun_name).await?;
    // Another daemon's is left alone; upstream's bear no alias.
    let alias = daemon::tun_alias(&options.subnet_file);
    devices.retain(|device| device.alias.is_empty() || device.alias == alias);
    if let Some(held) = devices.iter().find(|device| device.carrier) {
        bail!(
            "a daemon runs: a process holds the device {}; stop it first, for example by systemctl \
             stop flanneld",
            held.name
        );
    }

    let mut cleaned = Cleaned::default();
    for device in devices {
        let what = format!("the device {}, with its addresses and routes", device.name);
        let done = if dry_run { Ok(true) } else { host.delete_link(&device.name).await };
        cleaned.note(what, done.map(|_| ()));
    }
    // What cannot be read tells no subnet; removing it will say why.
    let subnet = env_file::read_previous(&options.subnet_file).ok().and_then(|file| file.subnet);
    for network in host.left_blackholes(subnet.map(IpNet::from)).await? {
        let done = if dry_run { Ok(()) } else { host.remove_blackholes(network).await };
        cleaned.note(format!("the blackhole route {network}"), done);
    }
    let rules = rules::remove_all(dry_run).await;
    cleaned.removed.extend(rules.found);
    cleaned.failed.extend(rules.failed);
    for path in files(options) {
        let done = if dry_run { Ok(()) } else { std::fs::remove_file(&path) };
        cleaned.note(format!("the file {}", path.display()), done);
    }
    Ok(cleaned)
}

impl Cleaned {
    fn note<E: std::fmt::Display>(&mut self, what: String, done: Result<(), E>) {
        match done {
            Ok(()) => self.removed.push(what),
            Err(error) => self.failed.push(format!("cannot remove {what}: {error}")),
        }
    }

    /// Writes it for people.
    ///
    /// # Errors
    /// What `out` reports.
    pub fn write(&self, out: &mut dyn io::Write, dry_run: bool) -> io::Result<()> {
        let verb = if dry_run { "would remove" } else { "removed" };
        for what in &self.removed {
            writeln!(out, "{verb} {what}")?;
        }
        for what in &self.failed {
            writeln!(out, "{what}")?;
        }
        if self.removed.is_empty() && self.failed.is_empty() {
            writeln!(out, "nothing is left of a daemon on this host")?;
        }
        writeln!(
            out,
            "kept: the leases in the store. This host's own gives it its subnet back at the next \
             start; without a daemon it ends within 24 hours, unless it is a reservation"
        )
    }
}

/// The files of a daemon that are there: `subnet.env`, its unfinished copies, the admin socket.
fn files(options: &Options) -> Vec<PathBuf> {
    let subnet_file = &options.subnet_file;
    let mut files = Vec::new();
    if let (Some(directory), Some(name)) = (subnet_file.parent(), subnet_file.file_name()) {
        let directory = if directory == Path::new("") { Path::new(".") } else { directory };
        let prefix = env_file::unfinished_prefix(name);
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        files.extend(entries.filter_map(|entry| {
            let unfinished = entry.file_name().to_string_lossy().starts_with(&prefix);
            (unfinished && entry.file_type().is_ok_and(|kind| kind.is_file())).then(|| entry.path())
        }));
        files.sort();
    }
    for path in [Some(subnet_file), options.admin_socket.as_ref()].into_iter().flatten() {
        // Without following a link: what it leads to is not the daemon's.
        if path.symlink_metadata().is_ok() {
            files.insert(0, path.to_owned());
        }
    }
    files
}

//! `subnet.env`: what this host tells the container runtime, and what it remembers of itself.
//!
//! Written once per run after the lease is held (facts 8.1); read back at the next start, so that
//! the host asks for the same subnet again. People also write it by hand before the first start to
//! choose the subnet, hence the generous reader.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fmt;
use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};
use thiserror::Error;
use tracing::{error, warn};

use super::lease::Subnet;
use crate::config::NetworkConfig;
use crate::go_json::excerpt;

/// The longest file that is read back, in bytes: real ones have some hundreds.
const MAX_FILE_BYTES: u64 = 64 * 1024;

pub(crate) const NETWORK: &str = "FLANNEL_NETWORK";
pub(crate) const SUBNET: &str = "FLANNEL_SUBNET";
pub(crate) const IPV6_NETWORK: &str = "FLANNEL_IPV6_NETWORK";
pub(crate) const IPV6_SUBNET: &str = "FLANNEL_IPV6_SUBNET";
pub(crate) const MTU: &str = "FLANNEL_MTU";
pub(crate) const IPMASQ: &str = "FLANNEL_IPMASQ";

/// Why a subnet file could not be read or written.
#[derive(Debug, Error)]
pub enum EnvFileError {
    /// The file is there but unreadable.
    #[error("cannot read subnet file {path}: {source}; make it readable or remove it")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file cannot be put in its place.
    #[error(
        "cannot write subnet file {path}: {source}; {} or choose another file by --subnet-file",
        remedy(source)
    )]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room for it",
        _ => "make its directory writable",
    }
}

/// The content of `subnet.env`. Its [`fmt::Display`] is the file's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnvFile {
    /// The whole overlay network.
    pub network: Ipv4Net,
    /// This host's subnet, as leased.
    pub subnet: Ipv4Net,
    /// The same for IPv6: network and subnet.
    pub ipv6: Option<(Ipv6Net, Ipv6Net)>,
    /// The MTU of the overlay, in bytes.
    pub mtu: u32,
    /// Whether the daemon masquerades, so that nobody else needs to.
    pub ip_masq: bool,
}

impl EnvFile {
    /// What there is to say about a lease of `subnet`.
    pub fn new(config: &NetworkConfig, subnet: &Subnet, mtu: u32, ip_masq: bool) -> Self {
        let ipv6 = config.ipv6.as_ref().map(|config| config.network).zip(subnet.v6);
        Self { network: config.network, subnet: subnet.v4, ipv6, mtu, ip_masq }
    }

    /// Replaces the file at `path` by this content in one step, so that no reader ever sees a part
    /// of it. Missing directories are created; the mode is 0644 whatever the umask.
    pub fn write_atomic(&self, path: &Path) -> Result<(), EnvFileError> {
        replace(path, self.to_string().as_bytes(), 0o644, 0o755)
            .map_err(|source| EnvFileError::Write { path: path.to_owned(), source })
    }
}

/// What the names of files begin with while [`replace`] writes them.
pub(crate) fn unfinished_prefix(name: &OsStr) -> String {
    format!(".{}.", name.to_string_lossy())
}

/// Replaces the file at `path` in one step; missing directories are created. The file gets `mode`
/// whatever the umask, new directories get `directory_mode` less the umask.
pub(crate) fn replace(
    path: &Path,
    content: &[u8],
    mode: u32,
    directory_mode: u32,
) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    DirBuilder::new().recursive(true).mode(directory_mode).create(directory)?;

    let prefix = unfinished_prefix(name);
    let mut file = tempfile::Builder::new().prefix(&prefix).tempfile_in(directory)?;
    file.write_all(content)?;
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    // Without this, a crash of the machine could leave the new name with no content.
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

impl fmt::Display for EnvFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The bridge's address comes first in the subnet.
        let gateway = u32::from(self.subnet.network()).saturating_add(1);
        let gateway = Ipv4Addr::from(gateway);
        writeln!(f, "{NETWORK}={}", self.network)?;
        writeln!(f, "{SUBNET}={gateway}/{}", self.subnet.prefix_len())?;
        if let Some((network, subnet)) = self.ipv6 {
            let gateway = u128::from(subnet.network()).saturating_add(1);
            let gateway = Ipv6Addr::from(gateway);
            writeln!(f, "{IPV6_NETWORK}={network}")?;
            writeln!(f, "{IPV6_SUBNET}={gateway}/{}", subnet.prefix_len())?;
        }
        writeln!(f, "{MTU}={}", self.mtu)?;
        writeln!(f, "{IPMASQ}={}", self.ip_masq)
    }
}

/// What an earlier run, or the operator, left in `subnet.env`. All networks are masked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreviousSubnet {
    /// `FLANNEL_NETWORK`.
    pub network: Option<Ipv4Net>,
    /// `FLANNEL_SUBNET`.
    pub subnet: Option<Ipv4Net>,
    /// `FLANNEL_IPV6_NETWORK`.
    pub ipv6_network: Option<Ipv6Net>,
    /// `FLANNEL_IPV6_SUBNET`.
    pub ipv6_subnet: Option<Ipv6Net>,
}

impl PreviousSubnet {
    /// The subnet to ask for again.
    pub fn wanted(&self) -> Option<Subnet> {
        self.subnet.map(|v4| Subnet { v4, v6: self.ipv6_subnet })
    }

    /// Reads the file's text by the dotenv rules: comments, `export`, quotes, `key: value`, the
    /// last of equal keys. Values that are no network are skipped and logged.
    pub fn parse(text: &str) -> Self {
        Self {
            network: network(text, NETWORK),
            subnet: network(text, SUBNET),
            ipv6_network: network(text, IPV6_NETWORK),
            ipv6_subnet: network(text, IPV6_SUBNET),
        }
    }
}

/// Reads `subnet.env` back. A missing file is an empty one.
pub fn read_previous(path: &Path) -> Result<PreviousSubnet, EnvFileError> {
    let error = |source| EnvFileError::Read { path: path.to_owned(), source };
    match read_text(path) {
        Ok(text) => Ok(PreviousSubnet::parse(&text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(PreviousSubnet::default()),
        Err(e) => Err(error(e)),
    }
}

/// The whole text of a subnet file.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    // Opening a pipe would wait for its writer.
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("longer than {MAX_FILE_BYTES} bytes")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A network that can be masked; the families share no trait for it.
trait Network: FromStr + fmt::Display {
    fn masked(self) -> Option<Self>;
}

impl Network for Ipv4Net {
    fn masked(self) -> Option<Self> {
        (self.prefix_len() > 0).then(|| self.trunc())
    }
}

impl Network for Ipv6Net {
    fn masked(self) -> Option<Self> {
        (self.prefix_len() > 0).then(|| self.trunc())
    }
}

/// The one network that `key` names. Upstream's releases with several networks wrote lists there;
/// of these, one item is understood and more are refused.
fn network<N: Network>(text: &str, key: &str) -> Option<N> {
    let value = text.lines().filter_map(assignment).rfind(|(k, _)| *k == key)?.1;
    let mut found = None;
    let mut invalid = None;
    for item in value.split(',') {
        match item.parse::<N>().ok().and_then(N::masked) {
            Some(_) if found.is_some() => {
                error!(key, value = %excerpt(value), "several networks in the subnet file, none used");
                return None;
            }
            Some(network) => found = Some(network),
            None => invalid = Some(item),
        }
    }
    // One line, however many items there are.
    if let Some(item) = invalid {
        warn!(key, item = %excerpt(item), "skipped what is no network in the subnet file");
    }
    found
}

/// The key and value of a line such as `KEY=VALUE`, `export KEY="VALUE"` or `KEY: VALUE # note`.
pub(crate) fn assignment(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let (key, value) = line.split_once(['=', ':'])?;
    let key = match key.split_once(char::is_whitespace) {
        Some(("export", key)) => key.trim(),
        _ => key.trim(),
    };
    let value = value.trim();
    for quote in ['"', '\''] {
        if let Some((value, _)) = value.strip_prefix(quote).and_then(|v| v.split_once(quote)) {
            return Some((key, value));
        }
    }
    // A comment needs a blank before it.
    let starts_comment = |at: &usize| {
        let before = value.split_at(*at).0;
        before.is_empty() || before.ends_with(char::is_whitespace)
    };
    let comment = value.match_indices('#').map(|(at, _)| at).find(starts_comment);
    Some((key, value.split_at(comment.unwrap_or(value.len())).0.trim_end()))
}

#[cfg(test)]
mod tests;

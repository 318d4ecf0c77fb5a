//! What can go wrong with the kernel's settings.
#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;

use ipnet::Ipv4Net;
use rustix::io::Errno;
use thiserror::Error;

/// Why the kernel could not be asked, or did not do what it was asked.
#[derive(Debug, Error)]
pub enum HostError {
    /// No netlink socket could be opened.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] io::Error),
    /// The process lacks the capability.
    #[error("{action}: not permitted: it needs CAP_NET_ADMIN: run flanneld as root")]
    NotPermitted {
        /// What was tried, with the names and values.
        action: String,
    },
    /// The kernel refused.
    #[error("{action}: {source}")]
    Refused {
        /// What was tried, with the names and values.
        action: String,
        /// The kernel's errno.
        source: io::Error,
    },
    /// The netlink connection ended, or answered something that makes no sense.
    #[error("{action}: the netlink connection failed: {reason}")]
    Connection {
        /// What was tried, with the names and values.
        action: String,
        /// What the connection said.
        reason: String,
    },
    /// There is no such device (any more).
    #[error("there is no network device {name}")]
    NoSuchLink {
        /// The device's name.
        name: String,
    },
    /// The device's name belongs to something that is not a TUN device.
    #[error(
        "{name} is not a TUN device but {kind}: it is not ours; rename it or remove it: ip link del {name}"
    )]
    NotTun {
        /// The device's name.
        name: String,
        /// What it is instead, with its article: "a dummy device".
        kind: String,
    },
    /// Another daemon with the same `subnet.env` holds the device.
    #[error(
        "{name} is held by another program, and its alias says {alias:?}: stop the daemon that \
         runs there already, or give this one another --subnet-file"
    )]
    TunHeld {
        /// The device's name.
        name: String,
        /// What is written on it.
        alias: String,
    },
    /// Traffic for the overlay network would leave through something else.
    #[error(
        "the route for the overlay network {network} exists already, {owner}: remove it (ip route del {network}) or choose another network"
    )]
    RouteTaken {
        /// The overlay network.
        network: Ipv4Net,
        /// Where the existing route leads: "via 10.4.7.1 on eth0".
        owner: String,
    },
    /// A kernel setting could not be read or written.
    #[error("cannot set {} to {value}: {source}", path.display())]
    Sysctl {
        /// The file under `/proc/sys`.
        path: PathBuf,
        /// The value that it should hold.
        value: &'static str,
        /// What the system call said.
        source: io::Error,
    },
}

/// The errno that the kernel answered with, if it answered.
pub(super) fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => {
            Some(Errno::from_raw_os_error(message.raw_code().saturating_neg()))
        }
        _ => None,
    }
}

/// Names what failed: `action` holds the thing and the value.
pub(super) fn failed(action: String, error: rtnetlink::Error) -> HostError {
    match (errno(&error), error) {
        (Some(Errno::PERM | Errno::ACCESS), _) => HostError::NotPermitted { action },
        (Some(errno), _) => HostError::Refused { action, source: errno.into() },
        (None, error) => HostError::Connection { action, reason: error.to_string() },
    }
}

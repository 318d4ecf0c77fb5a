//! What one daemon leaves open for the next, so that packets wait instead of being dropped
//! (docs/decisions/017).
#![forbid(unsafe_code)]

use std::os::fd::{BorrowedFd, OwnedFd};

use tracing::warn;

/// The name of the TUN device's queues.
const TUN: &str = "tun";

/// The name of the sockets that receive.
const UDP: &str = "udp";

/// All names.
pub const NAMES: [&str; 2] = [TUN, UDP];

/// What the daemon before has left.
#[derive(Debug, Default)]
pub struct Kept {
    /// Queues of its device.
    pub tun: Vec<OwnedFd>,
    /// Its sockets.
    pub udp: Vec<OwnedFd>,
}

/// What this daemon leaves: names, and what goes by them.
pub type ToKeep<'a> = [(&'static str, Vec<BorrowedFd<'a>>); NAMES.len()];

impl Kept {
    /// Sorts what was passed by its names; closes what is not ours.
    #[must_use]
    pub fn sort(passed: Vec<(String, OwnedFd)>) -> Kept {
        let mut kept = Kept::default();
        for (name, fd) in passed {
            match name.as_str() {
                TUN => kept.tun.push(fd),
                UDP => kept.udp.push(fd),
                _ => warn!("a descriptor named {name:?} was passed to flanneld, which takes none"),
            }
        }
        kept
    }
}

/// What is to be left.
pub(super) fn to_keep<'a>(tun: Vec<BorrowedFd<'a>>, udp: Vec<BorrowedFd<'a>>) -> ToKeep<'a> {
    [(TUN, tun), (UDP, udp)]
}

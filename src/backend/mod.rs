//! What is done with the peers' leases: one backend per way to carry packets.
//!
//! The daemon knows a backend by this trait alone. Making one claims what
//! can fail (socket, device) before a lease is taken; [`Backend::start`] carries packets from
//! then on; [`Backend::publish`] and [`Backend::move_to`] follow the store; [`Backend::disturbed`]
//! and [`Backend::repair`] put back what somebody took away; [`Backend::stop`] ends.
#![forbid(unsafe_code)]

pub mod kept;
pub mod udp;
pub mod view;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ipnet::Ipv4Net;
use thiserror::Error;

use self::kept::ToKeep;
use self::view::View;
use crate::dataplane::sys::socket::SocketError;
use crate::dataplane::sys::tun::TunError;
use crate::host::error::HostError;
use crate::subnet::lease::{Lease, LeaseAttrs};

/// Routes are published at most this often: a burst of changes becomes one table.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(20);

/// And so many times the time that publishing took passes until the next time, so that a store that
/// changes a thousand times a second costs a fiftieth of a core at most.
const PUBLISH_SHARE: u32 = 50;

/// But no more than this: of a table so large that a busy machine takes a second for it, changes
/// would wait for a minute.
const PUBLISH_PAUSE_MAX: Duration = Duration::from_secs(5);

/// How long after a publish that `took` so long began the next one may begin.
#[must_use]
pub fn time_to_next_publish(took: Duration) -> Duration {
    (took * PUBLISH_SHARE).clamp(PUBLISH_INTERVAL, PUBLISH_PAUSE_MAX)
}

/// Why a backend cannot work.
#[derive(Debug, Error)]
pub enum BackendError {
    /// The network config asks for a backend that this build has not.
    #[error(
        "unknown backend type {kind:?} in the network config: this daemon serves \"udp\"; \
         set Backend.Type to it on all hosts, or run upstream's daemon for the others"
    )]
    Unknown {
        /// What the config says.
        kind: String,
    },
    /// The network config's options for the backend are wrong.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// The external interface cannot carry tunnelled packets.
    #[error("interface {name} has an MTU of {mtu}, too small for a tunnel: at least 96 are needed")]
    MtuTooSmall {
        /// The interface.
        name: String,
        /// Its MTU, in bytes.
        mtu: u32,
    },
    /// The UDP socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The TUN device.
    #[error(transparent)]
    Tun(#[from] TunError),
    /// Addresses, routes, links.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Threads and descriptors.
    #[error("cannot start the data path: {0}")]
    Start(#[from] std::io::Error),
}

/// The leases of all peers, one after the other.
pub type LeasesOf<'a, 'leases> = &'a mut (dyn Iterator<Item = &'leases Lease> + Send);

/// One way to carry packets between hosts.
#[async_trait]
pub trait Backend: Send {
    /// What this host publishes in its lease.
    fn attrs(&self) -> LeaseAttrs;

    /// The largest packet of a pod, in bytes: what subnet.env says.
    fn mtu(&self) -> u16;

    /// What it shows of itself, the same for its whole life.
    fn view(&self) -> Arc<View>;

    /// Starts to carry packets for the lease `own` of the network `overlay`, with these peers.
    ///
    /// # Errors
    /// When device or threads cannot be set up.
    async fn start(
        &mut self,
        overlay: Ipv4Net,
        own: &Lease,
        peers: LeasesOf<'_, '_>,
    ) -> Result<(), BackendError>;

    /// These are the peers now; replaces what was published before.
    fn publish(&mut self, peers: LeasesOf<'_, '_>);

    /// Our own subnet is another one now. Peers are published again after this.
    ///
    /// # Errors
    /// When the device cannot be changed; [`Backend::repair`] tries it again.
    async fn move_to(&mut self, own: &Lease) -> Result<(), BackendError>;

    /// Waits until something that the backend has set up was changed by somebody else, or an
    /// earlier [`Backend::repair`] wants another try. May be dropped at any time.
    async fn disturbed(&mut self);

    /// Puts back what somebody took away; says whether [`Backend::to_keep`] is something else now.
    /// A failure is logged and tried again later.
    async fn repair(&mut self) -> bool;

    /// What the next daemon shall find open, if it comes soon.
    fn to_keep(&self) -> ToKeep<'_>;

    /// Ends. What the kernel frees with our descriptors needs nothing else.
    fn stop(self: Box<Self>);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_wait_in_proportion_to_the_table_and_not_for_ever() {
        for (took_ms, pause_ms) in [(0, 20), (1, 50), (40, 2_000), (1_200, 5_000)] {
            let pause = time_to_next_publish(Duration::from_millis(took_ms));
            assert_eq!(pause, Duration::from_millis(pause_ms), "{took_ms}");
        }
    }
}

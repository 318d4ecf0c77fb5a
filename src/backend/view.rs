//! What a backend shows of itself.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;

use crate::dataplane::stats::{PeerStats, Stats};

/// Shared by a backend with whoever shows it; may be read at any time, from any thread.
#[derive(Debug, Default)]
pub struct View {
    /// All counters.
    pub stats: Arc<Stats>,
    /// The peers' counters, by their public addresses.
    pub peers: DashMap<Ipv4Addr, Arc<PeerStats>>,
    routes: AtomicUsize,
    device: Mutex<Option<Device>>,
    address_gone: AtomicBool,
}

/// The device that takes the pods' packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// The largest packet of a pod.
    pub mtu_bytes: u16,
    /// Why it does not carry packets as it must; none if it does.
    pub trouble: Option<String>,
}

impl View {
    /// How many routes the published table has.
    #[must_use]
    pub fn routes(&self) -> usize {
        self.routes.load(Relaxed)
    }

    /// The device, once it was set up.
    #[must_use]
    pub fn device(&self) -> Option<Device> {
        self.lock().clone()
    }

    /// Whether the address that datagrams are sent from has gone from this host.
    #[must_use]
    pub fn address_is_gone(&self) -> bool {
        self.address_gone.load(Relaxed)
    }

    /// The address that datagrams are sent from has gone, or returned.
    pub(super) fn set_address_gone(&self, gone: bool) {
        self.address_gone.store(gone, Relaxed);
    }

    /// A table of so many routes was published.
    pub(super) fn set_routes(&self, routes: usize) {
        self.routes.store(routes, Relaxed);
    }

    /// The device is as it must be.
    pub(super) fn device_is_up(&self, name: &str, mtu_bytes: u16) {
        *self.lock() = Some(Device { name: name.to_owned(), mtu_bytes, trouble: None });
    }

    /// The device is not as it must be.
    pub(super) fn device_is_not(&self, trouble: impl Into<String>) {
        if let Some(device) = &mut *self.lock() {
            device.trouble = Some(trouble.into());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Device>> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

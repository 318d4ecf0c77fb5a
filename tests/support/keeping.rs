//! A host that holds a lease and keeps it.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use flanneld::subnet::keeper::acquire::acquire_with_retry;
use flanneld::subnet::keeper::{self, Timing, Update};
use flanneld::subnet::lease::Lease;
use flanneld::subnet::store::{LEASE_TTL, SubnetStore, WatchEvent};
use tokio::sync::mpsc;

use super::events::{attrs, until};

/// A day, renewed an hour before its end.
pub const TIMING: Timing = Timing { ttl: LEASE_TTL, margin: Duration::from_secs(3600) };

pub struct Host {
    pub lease: Lease,
    pub updates: mpsc::Receiver<Update>,
}

impl Host {
    pub async fn start(store: Arc<dyn SubnetStore>, ip: &str, timing: Timing) -> Self {
        let (us, mut rng) = (attrs(ip), rand::make_rng());
        let (config, lease) =
            acquire_with_retry(&*store, &us, None, timing.ttl, &mut rng).await.unwrap();
        let (sender, updates) = mpsc::channel(16);
        tokio::spawn(keeper::run(store, config, lease.clone(), timing, sender));
        Self { lease, updates }
    }

    pub fn name(&self) -> String {
        self.lease.subnet.to_string()
    }

    /// Waits until the store reports our lease as ours.
    pub async fn ours(&mut self) -> Lease {
        let own = self.lease.clone();
        until(&mut self.updates, |update| match update {
            Update::Store(WatchEvent::Put(l)) if l.subnet == own.subnet && l.attrs == own.attrs => {
                Some(l.clone())
            }
            Update::Store(WatchEvent::Snapshot(leases)) => {
                leases.iter().find(|l| l.subnet == own.subnet && l.attrs == own.attrs).cloned()
            }
            _ => None,
        })
        .await
    }

    pub async fn event(&mut self, wanted: impl Fn(&WatchEvent) -> bool) {
        until(&mut self.updates, |update| {
            matches!(update, Update::Store(event) if wanted(event)).then_some(())
        })
        .await;
    }
}

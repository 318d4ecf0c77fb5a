//! One host's store: the daemon's own etcd store (`src/subnet/etcd`), request for request, on the
//! model of etcd. Its pauses are the real ones: `subnet::reconnect`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use flanneld::subnet::lease::{Expiry, Lease, LeaseAttrs, Subnet};
use flanneld::subnet::reconnect::Reconnect;
use flanneld::subnet::store::{Contact, StoreError, SubnetStore, WatchEvent, same_holder};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::etcd::{Change, Etcd, Key, View};
use crate::link::{Link, PING_TIMEOUT};
use crate::load::Request;

/// As in the daemon.
const WATCH_QUEUE: usize = 256;
const MAX_CHANGES: usize = 5;

#[derive(Clone)]
pub(crate) struct SimStore {
    inner: Arc<Inner>,
}

struct Inner {
    link: Arc<Link>,
    view: View,
    written: Mutex<Written>,
    /// Nobody asks the simulation for it.
    contact: Contact,
}

/// What was written through this store.
#[derive(Default)]
struct Written {
    ends: BTreeMap<i64, SystemTime>,
    subnets: BTreeSet<Subnet>,
}

struct Grant {
    id: i64,
    end: SystemTime,
}

impl SimStore {
    pub(crate) fn new(link: Arc<Link>, view: View) -> Self {
        Self {
            inner: Arc::new(Inner {
                link,
                view,
                written: Mutex::default(),
                contact: Contact::default(),
            }),
        }
    }
}

impl Inner {
    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap()
    }

    fn lease(&self, subnet: Subnet, key: &Key) -> Lease {
        let end = self.written().ends.get(&key.grant).copied();
        let expiry = end.map_or(Expiry::Unknown, Expiry::At);
        Lease { subnet, attrs: key.attrs.clone(), expiry }
    }

    fn leases(&self, etcd: &Etcd) -> Vec<Lease> {
        etcd.keys().iter().map(|(subnet, key)| self.lease(*subnet, key)).collect()
    }

    async fn grant(&self, ttl: Duration) -> Result<Grant, StoreError> {
        let now = self.link.now().wall;
        let id = self.link.call(Request::Grant, |etcd| etcd.grant(ttl)).await?;
        Ok(Grant { id, end: now + ttl })
    }

    async fn revoke(&self, grant: &Grant) {
        // If that fails it ends by itself.
        let _ = self.link.call(Request::Revoke, |etcd| etcd.revoke(grant.id)).await;
    }

    /// `true` if it was written, if need be by the first of two tries whose answer was lost.
    async fn put(
        &self,
        subnet: Subnet,
        attrs: &LeaseAttrs,
        grant: &Grant,
        expected: i64,
    ) -> Result<bool, StoreError> {
        self.written().ends.insert(grant.id, grant.end);
        if self.view == View::Own {
            self.link.etcd().want(self.link.host, subnet);
        }
        let put = |etcd: &mut Etcd| etcd.put(subnet, attrs, grant.id, expected);
        let done = match self.link.call(Request::Write, put).await? {
            Ok(()) => true,
            Err(found) => found.is_some_and(|key| key.grant == grant.id && key.attrs == *attrs),
        };
        if done {
            self.written().subnets.insert(subnet);
        }
        Ok(done)
    }

    fn lost(&self, subnet: &Subnet, reason: String) -> StoreError {
        self.written().subnets.remove(subnet);
        StoreError::Lost { subnet: *subnet, reason }
    }

    async fn get(&self, subnet: &Subnet) -> Result<Option<Key>, StoreError> {
        self.link.call(Request::Get, |etcd| etcd.keys().get(subnet).cloned()).await
    }
}

#[async_trait]
impl SubnetStore for SimStore {
    fn describe(&self) -> String {
        "the simulated etcd".into()
    }

    fn contact(&self) -> &Contact {
        &self.inner.contact
    }

    async fn config(&self) -> Result<String, StoreError> {
        self.inner.link.call(Request::Get, |etcd| etcd.config.clone()).await
    }

    async fn list(&self) -> Result<Vec<Lease>, StoreError> {
        self.inner.link.call(Request::List(0), |etcd| self.inner.leases(etcd)).await
    }

    async fn create(
        &self,
        subnet: &Subnet,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Expiry, StoreError> {
        let grant = self.inner.grant(ttl).await?;
        match self.inner.put(*subnet, attrs, &grant, 0).await {
            Ok(true) => Ok(Expiry::At(grant.end)),
            Ok(false) => {
                self.inner.revoke(&grant).await;
                Err(StoreError::Taken { subnet: *subnet })
            }
            Err(error) => {
                self.inner.revoke(&grant).await;
                Err(error)
            }
        }
    }

    async fn renew(
        &self,
        subnet: &Subnet,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Expiry, StoreError> {
        for _ in 0..MAX_CHANGES {
            let Some(found) = self.inner.get(subnet).await? else {
                return Err(self.inner.lost(subnet, "its key is gone".into()));
            };
            if !same_holder(&found.attrs, attrs) {
                let reason = format!("{} holds it now", found.attrs.public_ip);
                return Err(self.inner.lost(subnet, reason));
            }
            let grant = self.inner.grant(ttl).await?;
            if self.inner.put(*subnet, attrs, &grant, found.modified).await? {
                return Ok(Expiry::At(grant.end));
            }
            self.inner.revoke(&grant).await;
        }
        let (store, reason) = (self.describe(), "the key changes all the time".into());
        Err(StoreError::Unreachable { store, reason })
    }

    async fn delete(&self, subnet: &Subnet, _: &LeaseAttrs) -> Result<(), StoreError> {
        panic!("no scenario changes the network, but {subnet} is deleted");
    }

    fn watch(&self) -> mpsc::Receiver<WatchEvent> {
        let (events, receiver) = mpsc::channel(WATCH_QUEUE);
        let (inner, sender) = (self.inner.clone(), events.clone());
        let watch = Watch { inner, known: 0, opened: None, events: sender };
        tokio::spawn(async move {
            let host = watch.inner.link.host;
            let etcd = watch.inner.clone();
            tokio::select! {
                biased;
                () = events.closed() => {}
                () = watch.run() => {}
            }
            etcd.link.etcd().unwatch(host);
        });
        receiver
    }
}

/// Why a watch must begin anew.
struct Broken;

impl<T> From<mpsc::error::SendError<T>> for Broken {
    fn from(_: mpsc::error::SendError<T>) -> Self {
        Self
    }
}

impl From<StoreError> for Broken {
    fn from(_: StoreError) -> Self {
        Self
    }
}

struct Watch {
    inner: Arc<Inner>,
    /// How many leases there were when it was last told, and since when it is told.
    known: usize,
    opened: Option<Instant>,
    events: mpsc::Sender<WatchEvent>,
}

impl Watch {
    async fn run(mut self) {
        let rng = StdRng::seed_from_u64(self.inner.link.seed());
        let mut reconnect = Reconnect::new(rng);
        loop {
            let Err(Broken) = self.watch_once().await;
            {
                let mut etcd = self.inner.link.etcd();
                etcd.unwatch(self.inner.link.host);
                if self.opened.is_some() {
                    // It was told of all, even if only of its own here.
                    self.known = etcd.keys().len();
                }
            }
            let lived = self.opened.take().map_or(Duration::ZERO, |opened| opened.elapsed());
            sleep(reconnect.pause(lived, self.known)).await;
        }
    }

    async fn watch_once(&mut self) -> Result<std::convert::Infallible, Broken> {
        let inner = self.inner.clone();
        let link = &inner.link;
        let losses = link.losses();
        let listing = |etcd: &mut Etcd| (self.snapshot(etcd), etcd.revision(), etcd.keys().len());
        let (mut leases, mut revision, known) = link.call(Request::List(0), listing).await?;
        self.known = known;
        for lease in &mut leases {
            self.complete(lease).await;
        }
        self.events.send(WatchEvent::Snapshot(leases)).await?;
        let (view, wake) = (self.inner.view, &link.wake);
        link.call(Request::Watch, |etcd| etcd.watch(link.host, view, wake.clone())).await?;
        self.opened = Some(Instant::now());
        loop {
            if link.is_asleep() {
                sleep(PING_TIMEOUT).await;
                continue;
            }
            if let Some(since) = link.cut_since() {
                tokio::select! {
                    biased;
                    () = link.wake.notified() => continue,
                    () = sleep_until(since + PING_TIMEOUT) => return Err(Broken),
                }
            }
            if link.losses() != losses {
                return Err(Broken);
            }
            let (changes, now) = self.changes_since(revision).ok_or(Broken)?;
            revision = now;
            for change in changes {
                self.report(change).await?;
            }
            link.wake.notified().await;
            sleep(link.latency()).await;
        }
    }

    fn snapshot(&self, etcd: &Etcd) -> Vec<Lease> {
        match self.inner.view {
            View::Whole => self.inner.leases(etcd),
            View::Own => {
                let own = self.inner.written().subnets.clone();
                let keys = own.iter().filter_map(|own| etcd.keys().get_key_value(own));
                keys.map(|(subnet, key)| self.inner.lease(*subnet, key)).collect()
            }
        }
    }

    /// What happened after `revision`, and the revision that it leads to.
    fn changes_since(&self, revision: i64) -> Option<(Vec<Change>, i64)> {
        let etcd = self.inner.link.etcd();
        let written = self.inner.written();
        let is_wanted = |change: &&Change| match change {
            Change::Put(subnet, _) | Change::Removed(subnet) => {
                self.inner.view == View::Whole || written.subnets.contains(subnet)
            }
        };
        let changes = etcd.changes_since(revision)?.iter().filter(is_wanted).cloned().collect();
        Some((changes, etcd.revision()))
    }

    async fn report(&self, change: Change) -> Result<(), Broken> {
        let event = match change {
            Change::Put(subnet, key) => {
                let mut lease = self.inner.lease(subnet, &key);
                self.complete(&mut lease).await;
                WatchEvent::Put(lease)
            }
            Change::Removed(subnet) => WatchEvent::Removed(subnet),
        };
        Ok(self.events.send(event).await?)
    }

    /// Asks when our own lease ends if somebody else wrote it.
    async fn complete(&self, lease: &mut Lease) {
        let link = &self.inner.link;
        let is_own = self.inner.written().subnets.contains(&lease.subnet);
        if lease.expiry != Expiry::Unknown || !is_own {
            return;
        }
        let (now, subnet) = (link.now().wall, lease.subnet);
        let left = |etcd: &mut Etcd| etcd.time_to_live(etcd.keys().get(&subnet)?.grant);
        if let Ok(Some(left)) = link.call(Request::Get, left).await {
            lease.expiry = Expiry::At(now + left);
        }
    }
}

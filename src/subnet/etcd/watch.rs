//! Watching all leases, through whatever happens to the store.
//!
//! Every time that the watch begins anew, all keys are listed and a snapshot is sent. Going on
//! where the last watch ended would spare etcd a listing, but a cluster that was emptied or
//! restored from a backup counts its revisions anew, keeps its name, and would let us wait for a
//! future that never comes, or miss what was deleted (upstream does).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use etcd_client::{WatchOptions, WatchResponse, WatchStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::transport::{REQUEST_TIMEOUT, Session, classify};
use super::{Entry, Inner, Listing};
use crate::subnet::backoff::Complaint;
use crate::subnet::lease::{Expiry, Lease, Subnet};
use crate::subnet::reconnect::Reconnect;
use crate::subnet::store::{StoreError, WatchEvent};

/// The number of the config's watch in the stream; the subnets' gets the first one, zero.
const CONFIG_WATCH: i64 = 1;

/// The reader is gone.
struct Closed;

/// Why a watch must begin anew.
enum Break {
    Closed,
    Trouble(String),
}

impl From<Closed> for Break {
    fn from(Closed: Closed) -> Self {
        Self::Closed
    }
}

impl From<StoreError> for Break {
    fn from(error: StoreError) -> Self {
        Self::Trouble(error.to_string())
    }
}

/// Watches until the receiver of `events` is dropped.
pub(super) async fn run(inner: Arc<Inner>, events: mpsc::Sender<WatchEvent>) {
    let closed = events.clone();
    tokio::select! {
        () = closed.closed() => {}
        () = Watch::new(inner, events).run() => {}
    }
}

struct Watch {
    inner: Arc<Inner>,
    events: mpsc::Sender<WatchEvent>,
    /// Every lease as it was last readable: one whose value becomes unreadable stays in force.
    known: BTreeMap<Subnet, Lease>,
    /// Since when etcd tells us what happens.
    opened: Option<Instant>,
    complaint: Complaint,
}

impl Watch {
    fn new(inner: Arc<Inner>, events: mpsc::Sender<WatchEvent>) -> Self {
        let (known, complaint) = (BTreeMap::new(), Complaint::default());
        Self { inner, events, known, opened: None, complaint }
    }

    async fn run(mut self) {
        let mut reconnect = Reconnect::new(rand::make_rng());
        loop {
            match self.watch_once().await {
                Break::Closed => return,
                Break::Trouble(reason) => {
                    self.inner.transport.contact().lost(reason.as_str());
                    if let Some(withheld) = self.complaint.due(&reason, Instant::now()) {
                        tracing::warn!(
                            "watch of leases interrupted, known routes stay: {reason}; trying \
                             again{withheld}"
                        );
                    }
                }
            }
            let lived = self.opened.take().map_or(Duration::ZERO, |opened| opened.elapsed());
            tokio::time::sleep(reconnect.pause(lived, self.known.len())).await;
        }
    }

    /// A snapshot and what follows it, until something is wrong.
    async fn watch_once(&mut self) -> Break {
        let listing = match self.inner.entries().await {
            Ok(listing) => listing,
            Err(error) => return error.into(),
        };
        let (mut revision, cluster) = (listing.revision, listing.cluster);
        if let Err(closed) = self.snapshot(listing).await {
            return closed.into();
        }
        let session = match self.inner.transport.session().await {
            Ok(session) => session,
            Err(fault) => return self.inner.transport.unreachable(fault.reason()).into(),
        };
        let mut stream = match self.open(&session, revision).await {
            Ok(stream) => stream,
            Err(reason) => {
                self.inner.transport.give_up(&session).await;
                return Break::Trouble(reason);
            }
        };
        self.inner.transport.contact().made();
        self.opened = Some(Instant::now());
        if self.complaint.clear() {
            tracing::info!("{}: watching leases again", self.inner.transport.describe());
        }
        loop {
            match self.next(&mut stream, &mut revision, cluster).await {
                Ok(()) => {}
                Err(Break::Closed) => return Break::Closed,
                Err(trouble) => {
                    self.inner.transport.give_up(&session).await;
                    return trouble;
                }
            }
        }
    }

    /// Opens a watch that begins after `revision` and waits until etcd has taken it. The config has
    /// one of its own: a range from its key to the subnets' may be more than a user may read.
    async fn open(&self, session: &Session, revision: i64) -> Result<WatchStream, String> {
        let from_then = WatchOptions::new().with_start_revision(revision.saturating_add(1));
        let subnets = from_then.clone().with_prefix().with_progress_notify().with_fragment();
        let config = from_then.with_watch_id(CONFIG_WATCH);
        let mut client = session.client.clone();
        let opened = timeout(REQUEST_TIMEOUT, async {
            let mut stream = client.watch(self.inner.keys.subnets(), Some(subnets)).await?;
            stream.watch(self.inner.keys.config(), Some(config)).await?;
            Ok(stream)
        });
        match opened.await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(classify(&error).reason()),
            Err(_) => Err(format!("no watch within {REQUEST_TIMEOUT:?}")),
        }
    }

    async fn next(
        &mut self,
        stream: &mut WatchStream,
        revision: &mut i64,
        cluster: u64,
    ) -> Result<(), Break> {
        // No time limit: a quiet network is quiet, and a dead connection is found by its pings.
        let response = match stream.message().await {
            Ok(Some(response)) => response,
            Ok(None) => return Err(Break::Trouble("etcd ended the watch".into())),
            Err(error) => return Err(Break::Trouble(classify(&error).reason())),
        };
        if response.canceled() {
            return Err(Break::Trouble(cancel_reason(&response)));
        }
        if let Some(header) = response.header() {
            if header.cluster_id() != cluster {
                return Err(Break::Trouble("this is another etcd cluster now".into()));
            }
            if response.watch_id() == CONFIG_WATCH {
                // Its revisions are not in step with those of the other watch.
                let written = !response.events().is_empty();
                return if written { Ok(self.send(WatchEvent::Config).await?) } else { Ok(()) };
            }
            // A member that was restored from a backup while our connection was being made.
            if header.revision() < *revision {
                let (now, before) = (header.revision(), *revision);
                return Err(Break::Trouble(format!(
                    "etcd went back from revision {before} to {now}"
                )));
            }
            *revision = header.revision();
        }
        for event in response.events() {
            let Some(kv) = event.kv() else { continue };
            let entry = self.inner.entry(kv);
            // Deleting sets a key's version back to zero. (The library's own `event_type` panics
            // on kinds that it does not know.)
            if kv.version() > 0 {
                self.put(entry).await?;
            } else {
                self.removed(&entry).await?;
            }
        }
        Ok(())
    }

    async fn put(&mut self, entry: Entry) -> Result<(), Closed> {
        let Some(mut lease) = self.inner.read(&entry) else {
            return self.unreadable(&entry).await;
        };
        self.complete(&mut lease, entry.lease).await;
        self.known.insert(lease.subnet, lease.clone());
        self.send(WatchEvent::Put(lease)).await
    }

    /// A peer's lease stays as it was. Our own is reported as gone, so that it is put right at
    /// once: who begins to watch now would not know of us.
    async fn unreadable(&mut self, entry: &Entry) -> Result<(), Closed> {
        match entry.subnet {
            Ok(subnet) if self.is_own(&subnet) => self.send(WatchEvent::Removed(subnet)).await,
            _ => Ok(()),
        }
    }

    /// The peer's subnet whose value cannot be read.
    fn unreadable_peer(&self, entry: &Entry) -> Option<Subnet> {
        entry.subnet.as_ref().ok().copied().filter(|subnet| !self.is_own(subnet))
    }

    fn is_own(&self, subnet: &Subnet) -> bool {
        self.inner.own().subnets.contains(subnet)
    }

    async fn removed(&mut self, entry: &Entry) -> Result<(), Closed> {
        self.inner.strays().forget(&entry.key);
        let Ok(subnet) = entry.subnet else { return Ok(()) };
        self.known.remove(&subnet);
        self.send(WatchEvent::Removed(subnet)).await
    }

    async fn snapshot(&mut self, listing: Listing) -> Result<(), Closed> {
        let mut known = BTreeMap::new();
        for entry in &listing.entries {
            let lease = match self.inner.read(entry) {
                Some(mut lease) => {
                    self.complete(&mut lease, entry.lease).await;
                    lease
                }
                None => match self.unreadable_peer(entry).and_then(|s| self.known.remove(&s)) {
                    Some(lease) => lease,
                    None => continue,
                },
            };
            known.insert(lease.subnet, lease);
        }
        self.known = known;
        // Some may have been deleted while nobody told us.
        let is_there = |key: &[u8]| listing.entries.iter().any(|entry| entry.key == key);
        self.inner.strays().retain(is_there);
        self.send(WatchEvent::Snapshot(self.known.values().cloned().collect())).await
    }

    /// Asks when our own lease ends if somebody else gave its key another time to live.
    async fn complete(&self, lease: &mut Lease, id: i64) {
        if lease.expiry != Expiry::Unknown || !self.is_own(&lease.subnet) {
            return;
        }
        let now = SystemTime::now();
        let answer = self
            .inner
            .transport
            .call(|mut client| async move { client.lease_time_to_live(id, None).await })
            .await;
        // Negative: it has ended, and its removal will be reported.
        let left = answer.ok().and_then(|answer| u64::try_from(answer.ttl()).ok());
        if let Some(end) = left.and_then(|left| now.checked_add(Duration::from_secs(left))) {
            lease.expiry = Expiry::At(end);
        }
    }

    async fn send(&self, event: WatchEvent) -> Result<(), Closed> {
        self.events.send(event).await.map_err(|_| Closed)
    }
}

fn cancel_reason(response: &WatchResponse) -> String {
    match (response.compact_revision(), response.cancel_reason()) {
        (0, "") => "etcd cancelled the watch".into(),
        (0, reason) => format!("etcd cancelled the watch: {reason}"),
        (compacted, _) => format!("etcd compacted its history up to revision {compacted}"),
    }
}

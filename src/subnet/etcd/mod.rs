//! The etcd v3 store, key for key and byte for byte as flannel's (facts 3).
#![forbid(unsafe_code)]

mod endpoint;
mod keys;
mod transport;
mod watch;
mod write;

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use etcd_client::{GetOptions, KeyValue};
use tokio::sync::mpsc;

pub use self::endpoint::TlsFiles;
use self::keys::Keys;
use self::transport::{Fault, Transport};
use super::lease::{Expiry, Lease, LeaseAttrs, Subnet};
use super::once::Strays;
use super::store::{Contact, StoreError, SubnetStore, WATCH_QUEUE, WatchEvent};

/// So many keys are read by one request: well below the 4 MiB that a gRPC answer may have.
const PAGE_KEYS: i64 = 2000;

/// Of a longer key so many bytes are kept: more than prefix and subnet have.
const KEPT_KEY_BYTES: usize = 512;

/// So many of our own last writes are remembered, to know their ends in the watch.
const REMEMBERED_WRITES: usize = 16;

/// How to reach etcd.
#[derive(Clone)]
pub struct EtcdConfig {
    /// URLs of the cluster's members. The first one's scheme decides for all.
    pub endpoints: Vec<String>,
    /// What flannel's keys begin with: `/coreos.com/network`.
    pub prefix: String,
    /// Certificates; they serve with `https` endpoints.
    pub tls: TlsFiles,
    /// User of etcd's own authentication; empty for none.
    pub username: String,
    /// Its password. It is never logged.
    pub password: String,
}

impl fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Endpoints may carry user information: they are shown by `EtcdStore::describe` instead.
        f.debug_struct("EtcdConfig")
            .field("prefix", &self.prefix)
            .field("tls", &self.tls)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// Leases in etcd. Clones share one connection.
#[derive(Clone)]
pub struct EtcdStore {
    inner: Arc<Inner>,
}

struct Inner {
    transport: Transport,
    keys: Keys,
    strays: Mutex<Strays>,
    own: Mutex<Own>,
}

/// What was written through this store.
#[derive(Default)]
struct Own {
    /// Our last leases and their ends.
    writes: VecDeque<(i64, SystemTime)>,
    /// The subnets that are ours: for these alone it matters when they end.
    subnets: HashSet<Subnet>,
}

impl Own {
    fn remember(&mut self, lease: i64, end: SystemTime) {
        self.writes.truncate(REMEMBERED_WRITES - 1);
        self.writes.push_front((lease, end));
    }

    fn end_of(&self, lease: i64) -> Option<SystemTime> {
        self.writes.iter().find(|(id, _)| *id == lease).map(|(_, end)| *end)
    }
}

/// A key and its value, as far as they are understood. What they say is read at once and nothing
/// else kept: there may be thousands of 1.5 MB.
struct Entry {
    /// Its beginning, for the log.
    key: Vec<u8>,
    subnet: Result<Subnet, String>,
    attrs: Result<LeaseAttrs, String>,
    lease: i64,
}

/// All keys under the subnets' prefix at one revision.
struct Listing {
    entries: Vec<Entry>,
    revision: i64,
    cluster: u64,
}

impl EtcdStore {
    /// Reads the certificates and checks the endpoints. etcd itself is asked by the first request,
    /// so a cluster that is not up yet is no error here.
    ///
    /// Fails with [`StoreError::Refused`] if what was given cannot work.
    pub async fn connect(config: EtcdConfig) -> Result<Self, StoreError> {
        Ok(Self {
            inner: Arc::new(Inner {
                transport: Transport::new(&config).await?,
                keys: Keys::new(&config.prefix),
                strays: Mutex::new(Strays::new()),
                own: Mutex::new(Own::default()),
            }),
        })
    }
}

impl Inner {
    fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn strays(&self) -> MutexGuard<'_, Strays> {
        self.strays.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads all subnet keys: one request in most clusters, more if there are very many.
    async fn entries(&self) -> Result<Listing, StoreError> {
        let first = self.keys.subnets().into_bytes();
        let mut end = first.clone();
        if let Some(slash) = end.last_mut() {
            *slash = b'/' + 1;
        }
        let mut listing = Listing { entries: Vec::new(), revision: 0, cluster: 0 };
        let (mut from, mut limit) = (first, PAGE_KEYS);
        loop {
            let options = GetOptions::new()
                .with_range(end.as_slice())
                .with_limit(limit)
                .with_revision(listing.revision);
            let (key, options) = (&from, &options);
            let page = self
                .transport
                .try_call(|mut client| async move {
                    client.get(key.as_slice(), Some(options.clone())).await
                })
                .await;
            let mut page = match page {
                Ok(page) => page,
                // Values are at most 1.5 MB in etcd: a small enough page always fits.
                Err(Fault::TooLarge(_)) if limit > 1 => {
                    limit = (limit / 8).max(1);
                    continue;
                }
                Err(Fault::Refused(reason)) => return Err(self.transport.refused(reason)),
                Err(Fault::Retry(reason) | Fault::TooLarge(reason)) => {
                    return Err(self.transport.unreachable(reason));
                }
            };
            if listing.revision == 0 {
                let header = page.header();
                listing.revision = header.map_or(0, etcd_client::ResponseHeader::revision);
                listing.cluster = header.map_or(0, etcd_client::ResponseHeader::cluster_id);
            }
            let more = page.more();
            let kvs = page.take_kvs();
            listing.entries.extend(kvs.iter().map(|kv| self.entry(kv)));
            match kvs.last() {
                Some(last) if more => {
                    from = last.key().to_vec();
                    from.push(0);
                }
                _ => return Ok(listing),
            }
            limit = limit.saturating_mul(2).min(PAGE_KEYS);
        }
    }

    fn entry(&self, kv: &KeyValue) -> Entry {
        let key = kv.key();
        Entry {
            key: key.get(..KEPT_KEY_BYTES).unwrap_or(key).to_vec(),
            subnet: self.keys.parse(key),
            attrs: keys::parse_value(kv.value()),
            lease: kv.lease(),
        }
    }

    /// When an entry ends, as far as that is known without asking.
    fn expiry(&self, lease: i64) -> Expiry {
        match lease {
            0 => Expiry::Permanent,
            lease => self.own().end_of(lease).map_or(Expiry::Unknown, Expiry::At),
        }
    }

    /// The lease that an entry says, else why it says none.
    fn parse(&self, entry: &Entry) -> Result<Lease, String> {
        let (subnet, attrs) = (entry.subnet.clone()?, entry.attrs.clone()?);
        Ok(Lease { subnet, attrs, expiry: self.expiry(entry.lease) })
    }

    /// The lease that an entry says; one that says none is logged once.
    fn read(&self, entry: &Entry) -> Option<Lease> {
        match self.parse(entry) {
            Ok(lease) => {
                self.strays().forget(&entry.key);
                Some(lease)
            }
            Err(reason) => {
                self.strays().skip(&self.transport.describe(), &entry.key, &reason);
                None
            }
        }
    }
}

#[async_trait]
impl SubnetStore for EtcdStore {
    fn describe(&self) -> String {
        self.inner.transport.describe()
    }

    fn contact(&self) -> &Contact {
        self.inner.transport.contact()
    }

    async fn config(&self) -> Result<String, StoreError> {
        let key = self.inner.keys.config();
        let wanted = key.as_str();
        let answer = self
            .inner
            .transport
            .call(|mut client| async move { client.get(wanted, None).await })
            .await?;
        match answer.kvs().first() {
            Some(kv) => Ok(String::from_utf8_lossy(kv.value()).into_owned()),
            None => Err(StoreError::NoConfig { key: format!("{key} in {}", self.describe()) }),
        }
    }

    async fn list(&self) -> Result<Vec<Lease>, StoreError> {
        let listing = self.inner.entries().await?;
        Ok(listing.entries.iter().filter_map(|entry| self.inner.read(entry)).collect())
    }

    async fn create(
        &self,
        subnet: &Subnet,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Expiry, StoreError> {
        self.inner.create(subnet, attrs, ttl).await
    }

    async fn renew(
        &self,
        subnet: &Subnet,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Expiry, StoreError> {
        self.inner.renew(subnet, attrs, ttl).await
    }

    async fn delete(&self, subnet: &Subnet, holder: &LeaseAttrs) -> Result<(), StoreError> {
        self.inner.delete(subnet, holder).await
    }

    fn watch(&self) -> mpsc::Receiver<WatchEvent> {
        let (events, receiver) = mpsc::channel(WATCH_QUEUE);
        tokio::spawn(watch::run(self.inner.clone(), events));
        receiver
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_not_shown() {
        let config = EtcdConfig {
            endpoints: vec!["http://root:s3cret@a:1".into()],
            prefix: "/coreos.com/network".into(),
            tls: TlsFiles::default(),
            username: "root".into(),
            password: "s3cret".into(),
        };
        assert!(!format!("{config:?}").contains("s3cret"));
    }

    #[test]
    fn only_the_last_writes_are_remembered() {
        let mut own = Own::default();
        for lease in 1..=100 {
            own.remember(lease, SystemTime::UNIX_EPOCH + Duration::from_secs(lease as u64));
        }
        assert_eq!(own.writes.len(), REMEMBERED_WRITES);
        assert_eq!(own.end_of(100), Some(SystemTime::UNIX_EPOCH + Duration::from_secs(100)));
        assert_eq!(own.end_of(1), None);
    }
}

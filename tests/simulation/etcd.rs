//! A model of etcd: revisions, compare-and-write, leases that end, watches that break.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flanneld::subnet::lease::{LeaseAttrs, Subnet};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::load::Load;
use crate::truth::Truth;

/// etcd looks for leases that have ended this often.
const REAP_EVERY: Duration = Duration::from_millis(500);

/// A key that holds a host's lease.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Key {
    pub(crate) attrs: LeaseAttrs,
    /// The etcd lease that it lives by.
    pub(crate) grant: i64,
    /// The revision that wrote it.
    pub(crate) modified: i64,
}

/// What one revision did.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Put(Subnet, Key),
    Removed(Subnet),
}

/// How much of the network a watcher wants to hear of. etcd sends all to everybody, and so it is
/// counted; but ten thousand tables of ten thousand leases do not fit into this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    Whole,
    /// The keys alone that the host wrote itself: all that its keeper looks at.
    Own,
}

struct Watcher {
    wake: Arc<Notify>,
    view: View,
}

#[derive(Clone)]
struct Grant {
    ends: Instant,
    ttl: Duration,
    /// The key that was last written with it.
    key: Option<Subnet>,
}

/// What a backup holds.
#[derive(Clone)]
pub(crate) struct Backup {
    revision: i64,
    keys: BTreeMap<Subnet, Key>,
    grants: BTreeMap<i64, Grant>,
}

pub(crate) struct Etcd {
    up: bool,
    /// Counts the times that all connections broke.
    breaks: u64,
    pub(crate) config: String,
    revision: i64,
    keys: BTreeMap<Subnet, Key>,
    grants: BTreeMap<i64, Grant>,
    ends: BTreeSet<(Instant, i64)>,
    next_grant: i64,
    /// What revision `compacted + 1` did, and all after it.
    history: Vec<Change>,
    compacted: i64,
    watchers: BTreeMap<usize, Watcher>,
    /// Which watchers of [`View::Own`] want to hear of a subnet.
    wanted: BTreeMap<Subnet, BTreeSet<usize>>,
    pub(crate) load: Load,
    pub(crate) truth: Truth,
}

impl Etcd {
    /// An empty store with a network config.
    pub(crate) fn new(config: String) -> Arc<Mutex<Self>> {
        let etcd = Self {
            up: true,
            breaks: 0,
            config,
            revision: 1,
            keys: BTreeMap::new(),
            grants: BTreeMap::new(),
            ends: BTreeSet::new(),
            next_grant: 1,
            history: Vec::new(),
            compacted: 1,
            watchers: BTreeMap::new(),
            wanted: BTreeMap::new(),
            load: Load::new(),
            truth: Truth::default(),
        };
        let etcd = Arc::new(Mutex::new(etcd));
        let reaped = etcd.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(REAP_EVERY).await;
                reaped.lock().unwrap().reap();
            }
        });
        etcd
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up
    }

    /// Changes whenever all connections break.
    pub(crate) fn breaks(&self) -> u64 {
        self.breaks
    }

    pub(crate) fn revision(&self) -> i64 {
        self.revision
    }

    pub(crate) fn keys(&self) -> &BTreeMap<Subnet, Key> {
        &self.keys
    }

    pub(crate) fn holder(&self, subnet: &Subnet) -> Option<Ipv4Addr> {
        self.keys.get(subnet).map(|key| key.attrs.public_ip)
    }

    pub(crate) fn grant(&mut self, ttl: Duration) -> i64 {
        let id = self.next_grant;
        self.next_grant += 1;
        let ends = Instant::now() + ttl;
        self.grants.insert(id, Grant { ends, ttl, key: None });
        self.ends.insert((ends, id));
        id
    }

    /// What is left of a lease.
    pub(crate) fn time_to_live(&self, id: i64) -> Option<Duration> {
        self.grants.get(&id).map(|grant| grant.ends.duration_since(Instant::now()))
    }

    /// Ends a lease, and with it the key that lives by it.
    pub(crate) fn revoke(&mut self, id: i64) {
        let Some(grant) = self.grants.remove(&id) else { return };
        self.ends.remove(&(grant.ends, id));
        let lives_by_it = |subnet: &Subnet| self.keys.get(subnet).is_some_and(|k| k.grant == id);
        if let Some(subnet) = grant.key.filter(lives_by_it) {
            self.remove(subnet);
        }
    }

    /// Writes a key if it was last written by revision `expected`; 0: if there is none. Gives what
    /// stands there if not, or if the lease has ended.
    pub(crate) fn put(
        &mut self,
        subnet: Subnet,
        attrs: &LeaseAttrs,
        grant: i64,
        expected: i64,
    ) -> Result<(), Option<Key>> {
        let found = self.keys.get(&subnet);
        let Some(lease) = self.grants.get_mut(&grant) else { return Err(found.cloned()) };
        if found.map_or(0, |key| key.modified) != expected {
            return Err(found.cloned());
        }
        lease.key = Some(subnet);
        let key = Key { attrs: attrs.clone(), grant, modified: self.revision + 1 };
        self.keys.insert(subnet, key.clone());
        self.no_overlap_at(&subnet);
        self.truth.given(&subnet, Some(attrs.public_ip));
        self.commit(subnet, Change::Put(subnet, key));
        Ok(())
    }

    fn remove(&mut self, subnet: Subnet) {
        if self.keys.remove(&subnet).is_some() {
            self.truth.given(&subnet, None);
            self.commit(subnet, Change::Removed(subnet));
        }
    }

    /// The subnets are disjoint but for the one just written: only its neighbours can overlap it.
    fn no_overlap_at(&self, subnet: &Subnet) {
        let before = self.keys.range(..subnet).next_back();
        let after = self.keys.range(subnet..).nth(1);
        for (other, key) in before.into_iter().chain(after) {
            assert!(!other.overlaps(subnet), "{subnet} overlaps {other} of {:?}", key.attrs);
        }
    }

    fn commit(&mut self, subnet: Subnet, change: Change) {
        self.revision += 1;
        self.history.push(change);
        self.load.count_events(self.watchers.len());
        let wanted = self.wanted.get(&subnet);
        for watcher in wanted.into_iter().flatten().filter_map(|host| self.watchers.get(host)) {
            watcher.wake.notify_one();
        }
        self.watchers.values().filter(|w| w.view == View::Whole).for_each(|w| w.wake.notify_one());
    }

    /// A watch begins; `wake` is told whenever there is something new.
    pub(crate) fn watch(&mut self, host: usize, view: View, wake: Arc<Notify>) {
        self.watchers.insert(host, Watcher { wake, view });
    }

    pub(crate) fn unwatch(&mut self, host: usize) {
        self.watchers.remove(&host);
    }

    /// A host of [`View::Own`] wrote this key.
    pub(crate) fn want(&mut self, host: usize, subnet: Subnet) {
        self.wanted.entry(subnet).or_default().insert(host);
    }

    /// What happened after `revision`, or `None` if that is compacted already.
    pub(crate) fn changes_since(&self, revision: i64) -> Option<&[Change]> {
        let first = usize::try_from(revision - self.compacted).ok()?;
        self.history.get(first..)
    }

    /// Forgets the history, so that whoever is behind must begin anew.
    pub(crate) fn compact(&mut self) {
        self.compacted = self.revision;
        self.history.clear();
    }

    /// The machine is off.
    pub(crate) fn stop(&mut self) {
        self.up = false;
        self.break_connections();
    }

    /// The machine is on again. A new leader gives each lease its whole time anew.
    pub(crate) fn start(&mut self) {
        self.up = true;
        self.ends.clear();
        for (id, grant) in &mut self.grants {
            grant.ends = Instant::now() + grant.ttl;
            self.ends.insert((grant.ends, *id));
        }
    }

    pub(crate) fn break_connections(&mut self) {
        self.breaks += 1;
        std::mem::take(&mut self.watchers).into_values().for_each(|w| w.wake.notify_one());
    }

    pub(crate) fn back_up(&self) -> Backup {
        Backup { revision: self.revision, keys: self.keys.clone(), grants: self.grants.clone() }
    }

    /// Replaces everything, while the machine is off.
    pub(crate) fn restore(&mut self, backup: Option<Backup>) {
        assert!(!self.up);
        let empty = Backup { revision: 1, keys: BTreeMap::new(), grants: BTreeMap::new() };
        let backup = backup.unwrap_or(empty);
        for subnet in self.keys.keys() {
            self.truth.given(subnet, None);
        }
        for (subnet, key) in &backup.keys {
            self.truth.given(subnet, Some(key.attrs.public_ip));
        }
        (self.revision, self.keys, self.grants) = (backup.revision, backup.keys, backup.grants);
        self.compact();
    }

    fn reap(&mut self) {
        while let Some(&(ends, id)) = self.ends.first() {
            if !self.up || ends > Instant::now() {
                return;
            }
            self.revoke(id);
        }
    }
}

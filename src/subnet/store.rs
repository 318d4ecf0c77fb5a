//! The contract that every store keeps.
#![forbid(unsafe_code)]

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use thiserror::Error;
use tokio::sync::mpsc;

use super::lease::{Expiry, Lease, LeaseAttrs, Subnet};

/// How long a lease lives unless it is renewed (flannel `pkg/subnet/etcd/local_manager.go`).
pub const LEASE_TTL: Duration = Duration::from_secs(86_400);

/// How many events of a watch may wait for their reader before the store is made to wait.
pub(crate) const WATCH_QUEUE: usize = 256;

/// Why a store could not do what it was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The store could not be reached, did not answer in time, or cannot serve now: worth another
    /// try.
    #[error("{store} does not serve: {reason}")]
    Unreachable {
        /// The store, as [`SubnetStore::describe`] names it.
        store: String,
        /// What the transport said.
        reason: String,
    },
    /// There is no network config in the store yet.
    #[error(
        "no network config at {key}: put one there, for example {{\"Network\":\"10.5.0.0/16\"}}"
    )]
    NoConfig {
        /// Where it was looked for.
        key: String,
    },
    /// Somebody else holds the key.
    #[error("subnet {subnet} is already leased")]
    Taken {
        /// The subnet that was asked for.
        subnet: Subnet,
    },
    /// The key that should be renewed is gone, or another host holds it.
    #[error("the lease of {subnet} is lost: {reason}")]
    Lost {
        /// The subnet that was asked for.
        subnet: Subnet,
        /// What stands there instead.
        reason: String,
    },
    /// The store answered, and refused for good: wrong password, unreadable file…
    #[error("{store}: {reason}")]
    Refused {
        /// The store, as [`SubnetStore::describe`] names it.
        store: String,
        /// The reason and the fix.
        reason: String,
    },
}

/// Whether a store answers: noted by the store, read by whoever shows it.
#[derive(Debug, Default)]
pub struct Contact(Mutex<ContactNow>);

/// How it stands with the store at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContactNow {
    /// It has answered at least once.
    pub reached: bool,
    /// Why the last request, or the watch, failed; none if it did not.
    pub trouble: Option<String>,
}

impl Contact {
    /// How it stands now.
    pub fn now(&self) -> ContactNow {
        self.lock().clone()
    }

    /// The store answered.
    pub(crate) fn made(&self) {
        *self.lock() = ContactNow { reached: true, trouble: None };
    }

    /// The store does not serve.
    pub(crate) fn lost(&self, reason: impl Into<String>) {
        self.lock().trouble = Some(reason.into());
    }

    /// Notes what came of a request: "no" is an answer, too.
    pub(crate) fn note<T>(&self, result: &Result<T, StoreError>) {
        match result {
            Err(error @ (StoreError::Unreachable { .. } | StoreError::Refused { .. })) => {
                self.lost(error.to_string());
            }
            _ => self.made(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, ContactNow> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a watch reports.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchEvent {
    /// Everything that is leased now; replaces all that was reported before.
    Snapshot(Vec<Lease>),
    /// A lease was created, renewed or changed.
    Put(Lease),
    /// A lease was deleted or expired.
    Removed(Subnet),
    /// The network config was written: [`SubnetStore::config`] may say something else now.
    Config,
}

/// A place that all hosts share, where subnets are leased.
///
/// # Expiry
///
/// The expiry of a lease is exact where it costs nothing and where it matters: for reservations,
/// and for leases that were created or renewed through this very store. For the others a store may
/// answer [`Expiry::Unknown`]: nobody needs to know when a peer's lease ends, its removal is
/// reported, and asking would cost one request for each of them.
#[async_trait]
pub trait SubnetStore: Send + Sync + 'static {
    /// The store's name for logs, without secrets: `etcd at http://127.0.0.1:2379`.
    fn describe(&self) -> String;

    /// Whether the store answers, as the last request and the watch found it.
    fn contact(&self) -> &Contact;

    /// The network config's JSON text.
    async fn config(&self) -> Result<String, StoreError>;

    /// All leases, in the order of their keys. Keys and values that are none are skipped, logged
    /// once each.
    async fn list(&self) -> Result<Vec<Lease>, StoreError>;

    /// Creates the lease only if nobody holds the key, else [`StoreError::Taken`].
    async fn create(
        &self,
        subnet: &Subnet,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Expiry, StoreError>;

    /// Writes the lease anew with a fresh time to live, only while its key is held by
    /// `attrs.public_ip` (see [`same_holder`]), else [`StoreError::Lost`]. A reservation stays
    /// permanent. A value that cannot be read is nobody's, and is put right.
    async fn renew(
        &self,
        subnet: &Subnet,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Expiry, StoreError>;

    /// Deletes the lease, only while its key is held by `holder`; a key that is gone or another's
    /// is left alone, without an error.
    async fn delete(&self, subnet: &Subnet, holder: &LeaseAttrs) -> Result<(), StoreError>;

    /// Starts to watch all leases, our own included: a snapshot first, then every change, of the
    /// network config as well.
    ///
    /// The watch recovers by itself from whatever happens to the store (lost connection,
    /// compaction, an emptied store), with back-off and jitter, and sends a new snapshot where
    /// events may have been missed. While the store is away nothing is sent. It ends when the
    /// receiver is dropped.
    ///
    /// A lease whose value becomes unreadable stays in force as it was last read, until its key is
    /// removed or readable again: one slip of a hand must not cut off a host. Must be called
    /// within a tokio runtime.
    fn watch(&self) -> mpsc::Receiver<WatchEvent>;
}

/// Do two values belong to one host? The public address decides (facts 3.4); a host without an
/// IPv4 one is known by its IPv6 address.
pub fn same_holder(a: &LeaseAttrs, b: &LeaseAttrs) -> bool {
    if a.public_ip != b.public_ip {
        return false;
    }
    !a.public_ip.is_unspecified() || (a.public_ipv6.is_some() && a.public_ipv6 == b.public_ipv6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attrs(v4: &str, v6: Option<&str>) -> LeaseAttrs {
        LeaseAttrs {
            public_ip: v4.parse().unwrap(),
            public_ipv6: v6.map(|v6| v6.parse().unwrap()),
            backend_type: String::new(),
            backend_data: String::new(),
            backend_v6_data: String::new(),
        }
    }

    #[test]
    fn a_no_is_an_answer_and_silence_is_none() {
        let contact = Contact::default();
        contact.note::<()>(&Err(StoreError::Unreachable { store: "s".into(), reason: "r".into() }));
        let trouble = Some("s does not serve: r".to_owned());
        assert_eq!(contact.now(), ContactNow { reached: false, trouble: trouble.clone() });
        contact.note::<()>(&Err(StoreError::NoConfig { key: "k".into() }));
        assert_eq!(contact.now(), ContactNow { reached: true, trouble: None });
        contact.lost("s does not serve: r");
        assert_eq!(contact.now(), ContactNow { reached: true, trouble });
    }

    #[test]
    fn a_host_is_known_by_its_public_address() {
        assert!(same_holder(&attrs("10.4.7.21", None), &attrs("10.4.7.21", Some("fd00::1"))));
        assert!(!same_holder(&attrs("10.4.7.21", None), &attrs("10.4.7.22", None)));
        assert!(same_holder(
            &attrs("0.0.0.0", Some("fd00::1")),
            &attrs("0.0.0.0", Some("fd00::1"))
        ));
        assert!(!same_holder(
            &attrs("0.0.0.0", Some("fd00::1")),
            &attrs("0.0.0.0", Some("fd00::2"))
        ));
        assert!(!same_holder(&attrs("0.0.0.0", None), &attrs("0.0.0.0", None)));
    }
}

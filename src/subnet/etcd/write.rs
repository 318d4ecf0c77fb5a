//! Writing a lease: always a transaction that compares what stands there (facts 3.3; upstream's
//! renewals compare nothing).
#![forbid(unsafe_code)]

use std::time::{Duration, SystemTime};

use etcd_client::{Compare, CompareOp, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse};

use super::{Inner, keys};
use crate::subnet::lease::{Expiry, LeaseAttrs, Subnet};
use crate::subnet::store::{StoreError, same_holder};

/// How often a renewal starts over because the key changed under it.
const MAX_CHANGES: usize = 5;

/// A time to live that etcd granted.
struct Grant {
    lease: i64,
    end: SystemTime,
}

/// What a transaction of ours did.
enum Written {
    Done,
    /// The key did not stand as expected.
    Changed,
}

impl Inner {
    pub(super) async fn create(
        &self,
        subnet: &Subnet,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Expiry, StoreError> {
        let key = self.keys.subnet(subnet);
        let grant = self.grant(ttl).await?;
        let free = Compare::version(key.as_str(), CompareOp::Equal, 0);
        match self.put(&key, attrs, Some(&grant), free).await {
            Ok(Written::Done) => {
                self.own().subnets.insert(*subnet);
                Ok(Expiry::At(grant.end))
            }
            Ok(Written::Changed) => {
                self.revoke(&grant).await;
                Err(StoreError::Taken { subnet: *subnet })
            }
            Err(error) => {
                self.revoke(&grant).await;
                Err(error)
            }
        }
    }

    pub(super) async fn renew(
        &self,
        subnet: &Subnet,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Expiry, StoreError> {
        let key = self.keys.subnet(subnet);
        for _ in 0..MAX_CHANGES {
            let Some(found) = self.get(&key).await? else {
                return Err(self.lost(subnet, "its key is gone".into()));
            };
            match keys::parse_value(found.value()) {
                Ok(other) if !same_holder(&other, attrs) => {
                    return Err(self.lost(subnet, format!("{} holds it now", other.public_ip)));
                }
                Ok(_) => {}
                Err(reason) => tracing::warn!("{key} is put right: {reason}"),
            }
            let unchanged =
                Compare::mod_revision(key.as_str(), CompareOp::Equal, found.mod_revision());
            if found.lease() == 0 {
                let same = found.value() == attrs.to_json().as_bytes();
                if same || matches!(self.put(&key, attrs, None, unchanged).await?, Written::Done) {
                    self.own().subnets.insert(*subnet);
                    return Ok(Expiry::Permanent);
                }
                continue;
            }
            // The old lease is left to end by itself, as upstream does: an operator may have put
            // other keys under it.
            let grant = self.grant(ttl).await?;
            match self.put(&key, attrs, Some(&grant), unchanged).await {
                Ok(Written::Done) => {
                    self.own().subnets.insert(*subnet);
                    return Ok(Expiry::At(grant.end));
                }
                Ok(Written::Changed) => self.revoke(&grant).await,
                // Nothing was written: where a first try was, whose answer was lost, etcd does not
                // let us end the lease of a key that we may not write any more.
                Err(error @ StoreError::Refused { .. }) => {
                    self.revoke(&grant).await;
                    return Err(error);
                }
                // Not revoked: if the write was done after all, the key lives by this lease.
                Err(error) => return Err(error),
            }
        }
        Err(self.transport.unreachable(format!("{key} changes all the time")))
    }

    pub(super) async fn delete(
        &self,
        subnet: &Subnet,
        holder: &LeaseAttrs,
    ) -> Result<(), StoreError> {
        let key = self.keys.subnet(subnet);
        for _ in 0..MAX_CHANGES {
            let Some(found) = self.get(&key).await? else { return Ok(()) };
            match keys::parse_value(found.value()) {
                Ok(other) if same_holder(&other, holder) => {}
                _ => return Ok(()),
            }
            let txn = Txn::new()
                .when([Compare::mod_revision(key.as_str(), CompareOp::Equal, found.mod_revision())])
                .and_then([TxnOp::delete(key.as_str(), None)]);
            let txn = &txn;
            let answer = self
                .transport
                .call(|mut client| async move { client.txn(txn.clone()).await })
                .await?;
            if answer.succeeded() {
                self.own().subnets.remove(subnet);
                return Ok(());
            }
        }
        Err(self.transport.unreachable(format!("{key} changes all the time")))
    }

    fn lost(&self, subnet: &Subnet, reason: String) -> StoreError {
        self.own().subnets.remove(subnet);
        StoreError::Lost { subnet: *subnet, reason }
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        let mut answer =
            self.transport.call(|mut client| async move { client.get(key, None).await }).await?;
        Ok(answer.take_kvs().into_iter().next())
    }

    /// Writes the value under `grant`, or without an end, if `condition` holds.
    async fn put(
        &self,
        key: &str,
        attrs: &LeaseAttrs,
        grant: Option<&Grant>,
        condition: Compare,
    ) -> Result<Written, StoreError> {
        let lease = grant.map_or(0, |grant| grant.lease);
        let options = grant.map(|grant| PutOptions::new().with_lease(grant.lease));
        if let Some(grant) = grant {
            // Before the write, as the watch may see it before we have the answer.
            self.own().remember(grant.lease, grant.end);
        }
        let value = attrs.to_json();
        let txn = Txn::new()
            .when([condition])
            .and_then([TxnOp::put(key, value.as_str(), options)])
            .or_else([TxnOp::get(key, None)]);
        let txn = &txn;
        let answer =
            self.transport.call(|mut client| async move { client.txn(txn.clone()).await }).await?;
        if answer.succeeded() {
            return Ok(Written::Done);
        }
        // The request may have been repeated because the first answer was lost: then what stands
        // there is our own write.
        let ours = answer.op_responses().into_iter().any(|response| match response {
            TxnOpResponse::Get(found) => found
                .kvs()
                .first()
                .is_some_and(|kv| kv.value() == value.as_bytes() && kv.lease() == lease),
            _ => false,
        });
        Ok(if ours { Written::Done } else { Written::Changed })
    }

    async fn grant(&self, ttl: Duration) -> Result<Grant, StoreError> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX).max(1);
        // From before the request: the lease must not seem to live longer than it does.
        let now = SystemTime::now();
        let granted = self
            .transport
            .call(|mut client| async move { client.lease_grant(seconds, None).await })
            .await?;
        let granted_for = Duration::from_secs(granted.ttl().try_into().unwrap_or(0));
        let end = now.checked_add(granted_for).unwrap_or(now);
        Ok(Grant { lease: granted.id(), end })
    }

    /// Gives a lease back that no key needs. If that fails it ends by itself.
    async fn revoke(&self, grant: &Grant) {
        let lease = grant.lease;
        // Unnoted: whoever looks shall see what became of the write.
        let revoked = self
            .transport
            .attempt(|mut client| async move { client.lease_revoke(lease).await })
            .await;
        if let Err(fault) = revoked {
            tracing::debug!("an unused lease is left to end by itself: {}", fault.reason());
        }
    }
}

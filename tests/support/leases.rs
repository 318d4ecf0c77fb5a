//! Leases in etcd, as somebody writes and reads them who is not the daemon under test.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use etcd_client::{GetResponse, PutOptions};

use super::daemon::PATIENCE;
use super::etcd::{Etcd, PREFIX};

/// The life in seconds that [`Etcd::shorten_lease`] gives: within a daemon's margin for renewing.
const SHORT_LIFE: i64 = 600;

/// What a host writes to its key, byte for byte as upstream.
pub fn lease_value(host: Ipv4Addr) -> String {
    format!(r#"{{"PublicIP":"{host}","PublicIPv6":null}}"#)
}

fn key(subnet: &str) -> String {
    format!("{PREFIX}/subnets/{subnet}")
}

/// Subnets are given as their keys name them: `172.7.199.0-24`.
impl Etcd {
    /// Leases a subnet to a host, for ever.
    pub async fn put_lease(&self, subnet: &str, host: Ipv4Addr) {
        self.client().await.put(key(subnet), lease_value(host), None).await.unwrap();
    }

    /// Deletes a lease.
    pub async fn remove_lease(&self, subnet: &str) {
        self.client().await.delete(key(subnet), None).await.unwrap();
    }

    /// Gives a host's lease so short a life that the host's daemon has to renew it now.
    pub async fn shorten_lease(&self, subnet: &str, host: Ipv4Addr) {
        let mut client = self.client().await;
        let lease = client.lease_grant(SHORT_LIFE, None).await.unwrap().id();
        let options = PutOptions::new().with_lease(lease);
        client.put(key(subnet), lease_value(host), Some(options)).await.unwrap();
    }

    /// Waits until a subnet is leased to a host, whoever writes that.
    pub async fn wait_for_lease(&self, subnet: &str, host: Ipv4Addr) {
        self.wait_for(subnet, host, 0).await;
    }

    /// Waits until a subnet is leased to a host for longer than [`Etcd::shorten_lease`] leaves it.
    pub async fn wait_for_renewal(&self, subnet: &str, host: Ipv4Addr) {
        self.wait_for(subnet, host, SHORT_LIFE + 1).await;
    }

    async fn wait_for(&self, subnet: &str, host: Ipv4Addr, least_life: i64) {
        let mut client = self.client().await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = client.get(key(subnet), None).await.unwrap();
            let life = match lease_of(&answer, host) {
                None => -1,
                Some(0) => i64::MAX,
                Some(lease) => client.lease_time_to_live(lease, None).await.unwrap().ttl(),
            };
            if life >= least_life {
                return;
            }
            assert!(Instant::now() < deadline, "{subnet} is not leased to {host}: {answer:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// etcd's lease under which a key lives, 0 for ever, if the key is the host's.
fn lease_of(answer: &GetResponse, host: Ipv4Addr) -> Option<i64> {
    let found = answer.kvs().first()?;
    (found.value() == lease_value(host).as_bytes()).then(|| found.lease())
}

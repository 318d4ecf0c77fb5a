//! Winning a lease: our own one found again, the previous subnet, or a free one (facts 3.4).
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use thiserror::Error;

use crate::config::{ConfigError, NetworkConfig};
use crate::subnet::allocate;
use crate::subnet::backoff::{Backoff, Complaint};
use crate::subnet::lease::{Lease, LeaseAttrs, Subnet};
use crate::subnet::store::{StoreError, SubnetStore, same_holder};

/// So many subnets may be lost to other hosts in one attempt; then the store gets a rest. Upstream
/// tries ten times in its outer loop.
const MAX_RACES: usize = 20;

/// One race may be lost to any other host. Whoever loses a second one is in a crowd: each time it
/// draws from so many times more subnets, or ten thousand hosts would win a hundred at a time and
/// list all leases a hundred times each.
const CROWD_FACTOR: usize = 8;

/// Enough for every crowd; an IPv6 network may have more subnets than there is memory.
const CROWD_MAX: usize = 51_200;

/// Between two attempts: one second at first (upstream's pace, facts 1.4), more if it lasts.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// Why no lease was won.
#[derive(Debug, Error)]
pub enum AcquireError {
    /// The store could not be asked, or refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The network config in the store is not valid.
    #[error("the network config in {store} is not valid: {reason}")]
    Config {
        /// The store.
        store: String,
        /// The field, its value and the rule.
        reason: ConfigError,
    },
    /// Every subnet between `SubnetMin` and `SubnetMax` is leased.
    #[error(
        "no free subnet is left: {leases} leases in {network}; make Network larger or SubnetLen \
         longer, or delete leases of hosts that are gone"
    )]
    NoneFree {
        /// The overlay network.
        network: String,
        /// How many leases there are.
        leases: usize,
    },
    /// Other hosts were faster each time.
    #[error("lost {MAX_RACES} races for a subnet to other hosts")]
    Races,
}

impl AcquireError {
    /// Will it never get better by itself or by a change of what is in the store?
    fn is_final(&self) -> bool {
        matches!(self, Self::Store(StoreError::Refused { .. }))
    }
}

/// Waits until there is a valid network config. Returns early only if the store refuses us.
///
/// May be dropped at any time. `rng` makes the pauses.
pub async fn wait_for_config(
    store: &dyn SubnetStore,
    rng: &mut StdRng,
) -> Result<NetworkConfig, AcquireError> {
    let mut patience = Patience::new("waiting for the network config");
    loop {
        match config(store).await {
            Ok(config) => return Ok(config),
            Err(error) => patience.wait(error, rng).await?,
        }
    }
}

/// Wins a lease, however long it takes; each attempt reads the config anew, and the one that was
/// used is returned. Returns early only if the store refuses us.
///
/// May be dropped at any time: a lease that was won just then is found again by our public address.
/// `rng` draws the subnet and makes the pauses.
pub async fn acquire_with_retry(
    store: &dyn SubnetStore,
    attrs: &LeaseAttrs,
    previous: Option<Subnet>,
    ttl: Duration,
    rng: &mut StdRng,
) -> Result<(NetworkConfig, Lease), AcquireError> {
    let mut patience = Patience::new("waiting for a lease");
    loop {
        match once(store, attrs, previous, ttl, rng).await {
            Ok(won) => return Ok(won),
            Err(error) => patience.wait(error, rng).await?,
        }
    }
}

/// What lies between two attempts.
struct Patience {
    what: &'static str,
    backoff: Backoff,
    complaint: Complaint,
}

impl Patience {
    fn new(what: &'static str) -> Self {
        let backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        Self { what, backoff, complaint: Complaint::default() }
    }

    /// Says why, but not each time, and waits; gives back an error that waiting does not help.
    async fn wait(&mut self, error: AcquireError, rng: &mut StdRng) -> Result<(), AcquireError> {
        if error.is_final() {
            return Err(error);
        }
        if let Some(withheld) = self.complaint.due(&error.to_string(), Instant::now()) {
            tracing::warn!("{}: {error}; trying again{withheld}", self.what);
        }
        tokio::time::sleep(self.backoff.next(rng)).await;
        Ok(())
    }
}

async fn config(store: &dyn SubnetStore) -> Result<NetworkConfig, AcquireError> {
    let json = store.config().await?;
    NetworkConfig::parse(&json)
        .map_err(|reason| AcquireError::Config { store: store.describe(), reason })
}

/// One attempt, with the config that is in the store now.
async fn once(
    store: &dyn SubnetStore,
    attrs: &LeaseAttrs,
    previous: Option<Subnet>,
    ttl: Duration,
    rng: &mut StdRng,
) -> Result<(NetworkConfig, Lease), AcquireError> {
    let config = config(store).await?;
    let lease = acquire(store, &config, attrs, previous, ttl, rng).await?;
    Ok((config, lease))
}

/// Wins a lease in one attempt:
///
/// 1. a lease that carries our public address, if it fits the config: renewed; a reservation stays
///    one. The previous subnet's comes first, then the order of keys; one that does not fit is
///    deleted, and its place is free again;
/// 2. else the previous subnet, if it fits the config and overlaps no lease;
/// 3. else a free subnet, of the lowest ones unless there is a crowd.
///
/// A subnet that another host wins meanwhile is given up for the next free one.
pub async fn acquire(
    store: &dyn SubnetStore,
    config: &NetworkConfig,
    attrs: &LeaseAttrs,
    previous: Option<Subnet>,
    ttl: Duration,
    rng: &mut StdRng,
) -> Result<Lease, AcquireError> {
    let mut refused: Vec<Subnet> = Vec::new();
    for _ in 0..MAX_RACES {
        let mut leases = store.list().await?;
        if let Some(lease) = reuse(store, config, attrs, previous, ttl, &mut leases).await? {
            return Ok(lease);
        }
        let taken: Vec<Subnet> =
            leases.iter().map(|lease| lease.subnet).chain(refused.iter().copied()).collect();
        let obstacle = previous.and_then(|subnet| obstacle(config, &subnet, &taken));
        let wanted = previous.filter(|_| obstacle.is_none());
        let Some(subnet) =
            wanted.or_else(|| allocate::pick(config, &taken, candidates(refused.len()), rng))
        else {
            let network = config.network.to_string();
            return Err(AcquireError::NoneFree { network, leases: leases.len() });
        };
        match store.create(&subnet, attrs, ttl).await {
            Ok(expiry) => {
                // Not said before: who finds none free tries again for days.
                if let (Some(previous), Some(obstacle)) = (previous, obstacle) {
                    tracing::warn!("not using the previous subnet {previous}: {obstacle}");
                }
                tracing::info!("leased {subnet}");
                return Ok(Lease { subnet, attrs: attrs.clone(), expiry });
            }
            // Another host was faster, or the key holds something that is no lease.
            Err(StoreError::Taken { .. }) => refused.push(subnet),
            Err(error) => return Err(error.into()),
        }
    }
    Err(AcquireError::Races)
}

/// How many subnets to draw from after so many races were lost.
fn candidates(lost: usize) -> usize {
    let widened = u32::try_from(lost.saturating_sub(1)).unwrap_or(u32::MAX);
    allocate::CANDIDATES.saturating_mul(CROWD_FACTOR.saturating_pow(widened)).min(CROWD_MAX)
}

/// Takes over a lease that carries our public address. Those that do not fit are deleted from the
/// store and from `leases`.
async fn reuse(
    store: &dyn SubnetStore,
    config: &NetworkConfig,
    attrs: &LeaseAttrs,
    previous: Option<Subnet>,
    ttl: Duration,
    leases: &mut Vec<Lease>,
) -> Result<Option<Lease>, AcquireError> {
    let mut ours: Vec<Subnet> = leases
        .iter()
        .filter(|lease| same_holder(&lease.attrs, attrs))
        .map(|lease| lease.subnet)
        .collect();
    ours.sort_by_key(|subnet| Some(*subnet) != previous);
    for subnet in ours {
        if let Err(reason) = allocate::fits(config, &subnet) {
            tracing::warn!("giving up our lease {subnet}: {reason}");
            store.delete(&subnet, attrs).await?;
            leases.retain(|lease| lease.subnet != subnet);
            continue;
        }
        match store.renew(&subnet, attrs, ttl).await {
            Ok(expiry) => {
                tracing::info!("took over lease {subnet}, found under our public address");
                return Ok(Some(Lease { subnet, attrs: attrs.clone(), expiry }));
            }
            // It ended between the list and now.
            Err(StoreError::Lost { .. }) => leases.retain(|lease| lease.subnet != subnet),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// Why the subnet of the last run cannot be asked for again.
fn obstacle(config: &NetworkConfig, subnet: &Subnet, taken: &[Subnet]) -> Option<String> {
    if let Err(reason) = allocate::fits(config, subnet) {
        return Some(reason.to_string());
    }
    let other = taken.iter().find(|other| other.overlaps(subnet))?;
    Some(format!("{other} is leased"))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::subnet::directory::DirectoryStore;
    use crate::subnet::logged::logged;
    use crate::subnet::store::LEASE_TTL;

    #[test]
    fn only_who_loses_a_second_race_draws_from_more() {
        let drawn_from: Vec<usize> = (0..=5).map(candidates).collect();
        assert_eq!(drawn_from, [100, 100, 800, 6_400, 51_200, 51_200]);
        assert_eq!(candidates(MAX_RACES), CROWD_MAX);
    }

    #[test]
    fn why_the_previous_subnet_is_not_used_is_said_when_another_one_is() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let store = DirectoryStore::open(dir.path()).unwrap();
        let holder = LeaseAttrs::udp("10.4.7.22".parse().unwrap());
        let taken: Subnet = "10.5.1.0-24".parse().unwrap();
        runtime.block_on(store.create(&taken, &holder, LEASE_TTL)).unwrap();
        let acquire = |last: &str| {
            let config = format!(
                r#"{{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"{last}"}}"#
            );
            let config = NetworkConfig::parse(&config).unwrap();
            let us = LeaseAttrs::udp("10.4.7.21".parse().unwrap());
            let mut rng = StdRng::seed_from_u64(1);
            let won = acquire(&store, &config, &us, Some(taken), LEASE_TTL, &mut rng);
            runtime.block_on(won)
        };
        for _ in 0..100 {
            let mut won = None;
            let log = logged(|| won = Some(acquire("10.5.1.0")));
            assert!(matches!(won, Some(Err(AcquireError::NoneFree { .. }))), "{won:?}");
            assert_eq!(log, "");
        }
        let log = logged(|| assert!(acquire("10.5.2.0").is_ok()));
        assert_eq!(log.matches("not using the previous subnet 10.5.1.0-24").count(), 1, "{log}");
    }
}

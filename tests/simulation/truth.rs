//! Does a host hold for its own what the store gives to another?
//!
//! It cannot be ruled out: a host that is cut off does not hear of it. But it must end soon after
//! the store can be reached again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use flanneld::subnet::lease::Subnet;
use tokio::time::Instant;

/// How long a host that reaches the store may be wrong about its own subnet: a request that hangs
/// ends after two time-outs of 5 s, the keeper's longest pause is 60 s, the watch's 5 s or what
/// the size of the table asks for (less than 30 s for 10,000 leases); finding out and moving takes
/// some ten requests.
pub(crate) const BOUND: Duration = Duration::from_secs(120);

/// Who believes what.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    hosts: BTreeMap<usize, Belief>,
    believers: BTreeMap<Subnet, BTreeSet<usize>>,
    /// The longest time that a host was wrong while it reached the store.
    pub(crate) longest: Duration,
    /// How often a host was wrong at all.
    pub(crate) errors: usize,
}

#[derive(Debug)]
struct Belief {
    ip: Ipv4Addr,
    own: Option<Subnet>,
    reachable_since: Option<Instant>,
    wrong_since: Option<Instant>,
}

impl Belief {
    fn wrong_for(&self, now: Instant) -> Duration {
        match (self.wrong_since, self.reachable_since) {
            (Some(wrong), Some(reachable)) => now.duration_since(wrong.max(reachable)),
            _ => Duration::ZERO,
        }
    }
}

impl Truth {
    /// A host that believes nothing yet.
    pub(crate) fn add(&mut self, host: usize, ip: Ipv4Addr) {
        let belief =
            Belief { ip, own: None, reachable_since: Some(Instant::now()), wrong_since: None };
        self.hosts.insert(host, belief);
    }

    /// A host takes `own` for its subnet, which the store gives to `holder`.
    pub(crate) fn believe(&mut self, host: usize, own: Option<Subnet>, holder: Option<Ipv4Addr>) {
        let belief = self.hosts.get_mut(&host).unwrap();
        if let Some(before) = belief.own.take() {
            self.believers.get_mut(&before).unwrap().remove(&host);
        }
        belief.own = own;
        if let Some(own) = own {
            self.believers.entry(own).or_default().insert(host);
        }
        self.judge(host, holder);
    }

    /// The store gives a subnet to somebody.
    pub(crate) fn given(&mut self, subnet: &Subnet, holder: Option<Ipv4Addr>) {
        let believers = self.believers.get(subnet).cloned().unwrap_or_default();
        believers.into_iter().for_each(|host| self.judge(host, holder));
    }

    /// A host reaches the store from now on, or no longer.
    pub(crate) fn reach(&mut self, host: usize, reaches: bool) {
        let now = Instant::now();
        let belief = self.hosts.get_mut(&host).unwrap();
        self.longest = self.longest.max(belief.wrong_for(now));
        if reaches != belief.reachable_since.is_some() {
            belief.reachable_since = reaches.then_some(now);
        }
    }

    /// Takes the conflicts that have not ended yet into account, and fails if any lasted too long.
    pub(crate) fn check(&mut self) {
        let now = Instant::now();
        let open = self.hosts.values().map(|belief| belief.wrong_for(now)).max();
        self.longest = self.longest.max(open.unwrap_or_default());
        assert!(
            self.longest <= BOUND,
            "a host held another's subnet for {:?} while it reached the store",
            self.longest
        );
    }

    fn judge(&mut self, host: usize, holder: Option<Ipv4Addr>) {
        let now = Instant::now();
        let belief = self.hosts.get_mut(&host).unwrap();
        let wrong = belief.own.is_some() && holder.is_some_and(|holder| holder != belief.ip);
        if wrong {
            if belief.wrong_since.is_none() {
                self.errors += 1;
                belief.wrong_since = Some(now);
            }
        } else {
            self.longest = self.longest.max(belief.wrong_for(now));
            belief.wrong_since = None;
        }
    }
}

//! What the store is asked, by tenths of a second of simulated time: a herd that comes within one of
//! them shall not be taken for one that takes a whole second.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;
use std::time::Duration;

use tokio::time::Instant;

/// One request to etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// One key, or what is left of a lease's time.
    Get,
    /// All leases, so many.
    List(usize),
    Grant,
    Revoke,
    /// A compare and a write.
    Write,
    /// A watch that begins.
    Watch,
}

/// Requests of some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) gets: u64,
    pub(crate) lists: u64,
    /// The leases in the answers to `lists`.
    pub(crate) listed: u64,
    pub(crate) grants: u64,
    pub(crate) revokes: u64,
    pub(crate) writes: u64,
    pub(crate) watches: u64,
    /// Sent to watchers: one write is one for each.
    pub(crate) events: u64,
    /// Connections that were refused, as the store was down.
    pub(crate) refused: u64,
}

impl Counts {
    /// Everything that the store had to answer.
    pub(crate) fn requests(&self) -> u64 {
        self.gets + self.lists + self.grants + self.revokes + self.writes + self.watches
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.gets += other.gets;
        self.lists += other.lists;
        self.listed += other.listed;
        self.grants += other.grants;
        self.revokes += other.revokes;
        self.writes += other.writes;
        self.watches += other.watches;
        self.events += other.events;
        self.refused += other.refused;
    }
}

/// The load on the store since the simulation began.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Load {
    begin: Instant,
    tenths: BTreeMap<u128, Counts>,
}

fn tenth(time: Duration) -> u128 {
    time.as_millis() / 100
}

/// A stretch of the load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch {
    pub(crate) total: Counts,
    /// The highest rate of each kind, per second, not necessarily at the same time.
    pub(crate) peak: Counts,
    /// The highest rate of requests of all kinds, per second.
    pub(crate) peak_requests: u64,
}

impl Load {
    pub(crate) fn new() -> Self {
        Self { begin: Instant::now(), tenths: BTreeMap::new() }
    }

    fn now(&mut self) -> &mut Counts {
        self.tenths.entry(tenth(self.begin.elapsed())).or_default()
    }

    pub(crate) fn count(&mut self, request: Request) {
        let now = self.now();
        match request {
            Request::Get => now.gets += 1,
            Request::List(leases) => {
                now.lists += 1;
                now.listed += leases as u64;
            }
            Request::Grant => now.grants += 1,
            Request::Revoke => now.revokes += 1,
            Request::Write => now.writes += 1,
            Request::Watch => now.watches += 1,
        }
    }

    pub(crate) fn count_events(&mut self, events: usize) {
        self.now().events += events as u64;
    }

    pub(crate) fn count_refused(&mut self) {
        self.now().refused += 1;
    }

    /// The load since `from`.
    pub(crate) fn since(&self, from: Instant) -> Stretch {
        let from = tenth(from.duration_since(self.begin));
        let (mut total, mut peak, mut peak_requests) = (Counts::default(), Counts::default(), 0);
        for now in self.tenths.range(from..).map(|(_, counts)| *counts) {
            total += now;
            peak_requests = peak_requests.max(10 * now.requests());
            peak.gets = peak.gets.max(10 * now.gets);
            peak.lists = peak.lists.max(10 * now.lists);
            peak.listed = peak.listed.max(10 * now.listed);
            peak.grants = peak.grants.max(10 * now.grants);
            peak.revokes = peak.revokes.max(10 * now.revokes);
            peak.writes = peak.writes.max(10 * now.writes);
            peak.watches = peak.watches.max(10 * now.watches);
            peak.events = peak.events.max(10 * now.events);
            peak.refused = peak.refused.max(10 * now.refused);
        }
        Stretch { total, peak, peak_requests }
    }

    /// The most writes within any `window`, since `from`.
    pub(crate) fn most_writes(&self, from: Instant, window: Duration) -> u64 {
        let from = tenth(from.duration_since(self.begin));
        let mut inside = std::collections::VecDeque::new();
        let (mut sum, mut most) = (0, 0);
        for (&at, counts) in self.tenths.range(from..) {
            inside.push_back((at, counts.writes));
            sum += counts.writes;
            while let Some(&(first, writes)) = inside.front() {
                if at - first < tenth(window) {
                    break;
                }
                inside.pop_front();
                sum -= writes;
            }
            most = most.max(sum);
        }
        most
    }
}

impl fmt::Display for Stretch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (total, peak) = (self.total, self.peak);
        write!(
            f,
            "{} requests, at most {}/s; lists {} ({}/s), their leases {} ({}/s), writes {} ({}/s), \
             events {} ({}/s), refused {} ({}/s)",
            total.requests(),
            self.peak_requests,
            total.lists,
            peak.lists,
            total.listed,
            peak.listed,
            total.writes,
            peak.writes,
            total.events,
            peak.events,
            total.refused,
            peak.refused
        )
    }
}

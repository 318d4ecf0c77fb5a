//! The keeper's state machine. Pure: what happened and the time come in, what to do comes out.
#![forbid(unsafe_code)]

use std::time::{Duration, SystemTime};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::subnet::backoff::Backoff;
use crate::subnet::lease::{Expiry, Lease};
use crate::subnet::store::{WatchEvent, same_holder};

/// Failed requests are repeated after one second at first, then after up to a minute (upstream:
/// a minute, facts 3.7).
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Others' writes to our key may make us renew at once, but not more often than this: two hosts
/// with one address would chase each other otherwise.
const ANSWER_EVERY: Duration = Duration::from_secs(60);

/// A lease that is gone again so soon after it was won back is taken away on purpose, or by our own
/// clock: where it is far behind, our leases have ended for the others, who clear them away. It is
/// won back as failed requests are repeated then, not at once.
const LOST_AGAIN_WITHIN: Duration = Duration::from_secs(60);

/// A second writer of our key is worth a line this often.
const TELL_EVERY: Duration = Duration::from_secs(3600);

/// A point in time on two clocks.
///
/// The wall clock may be set by anybody, and one that is wrong may hide that the host slept; the
/// steady one is not comparable with the store's ends. A deadline has passed when either says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The wall clock.
    pub wall: SystemTime,
    /// A clock that nobody sets, and that goes on while the host sleeps, from any fixed start.
    pub steady: Duration,
}

impl Moment {
    fn after(self, delay: Duration) -> Self {
        let wall = self.wall.checked_add(delay).unwrap_or(self.wall);
        Self { wall, steady: self.steady.saturating_add(delay) }
    }

    /// What is left from `now`; nothing if either clock has passed it.
    fn remaining(self, now: Self) -> Duration {
        let wall = self.wall.duration_since(now.wall).unwrap_or_default();
        wall.min(self.steady.saturating_sub(now.steady))
    }
}

/// How long a lease lives and how early it is renewed.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The time to live that is asked for.
    pub ttl: Duration,
    /// How long before its end a lease is renewed; if it is not shorter than `ttl`, a lease is
    /// renewed at half its life.
    pub margin: Duration,
}

impl Timing {
    /// How long before the end to renew.
    fn lead(self) -> Duration {
        if self.margin < self.ttl { self.margin } else { self.ttl / 2 }
    }

    /// Renewals come earlier than that by up to so much, so that hosts that started together do not
    /// renew together for ever: each renewal is an event for each host. Half of a lease's life
    /// before the margin is left at least, or a long margin would make us renew all the time.
    fn spread(self) -> Duration {
        self.lead().min(self.ttl.saturating_sub(self.lead()) / 2)
    }
}

/// A request to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `renew` of the current lease.
    Renew,
    /// `create` of the current lease's subnet, as its key is gone.
    Create,
    /// The current subnet if it is free by now, else another one: another host had it.
    Acquire,
}

/// What a request gave.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The current lease is ours until then.
    Ours(Expiry),
    /// The key is gone or another's ([`Step::Renew`]).
    Lost,
    /// Somebody holds the key ([`Step::Create`]).
    Taken,
    /// This lease was won ([`Step::Acquire`]).
    Won(Lease),
    /// The store could not be asked.
    Failed,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// Nothing until then; `None`: until the store reports something.
    Wait(Option<Duration>),
    /// This, and tell [`Keeper::finish`] what it gave.
    Do(Step),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    /// All is well; renew when due.
    Renew,
    /// Our key is gone.
    Create,
    /// Our key was not free: is it our own all the same?
    Confirm,
    /// It was another host's.
    Acquire,
}

/// Keeps one lease.
#[derive(Debug)]
pub struct Keeper {
    lease: Lease,
    timing: Timing,
    want: Want,
    due: Option<Moment>,
    /// A request is under way; what is reported meanwhile may be older or newer than its effect.
    in_flight: bool,
    /// Something worrying was reported meanwhile: look again.
    look_again: bool,
    /// The ends of our own last writes, to tell others' writes from their echoes.
    written: [Option<SystemTime>; 2],
    /// When a renewal was last asked for.
    asked: Option<Moment>,
    told: Option<Moment>,
    retry: Backoff,
    /// When the lease was last won back.
    won_back: Option<Moment>,
    /// The pauses before a lease is won back that does not stay ours.
    again: Backoff,
    rng: StdRng,
}

impl Keeper {
    /// Takes over a lease that was just won. `seed` makes the jitter; the same seed, the same run.
    pub fn new(lease: Lease, timing: Timing, now: Moment, seed: u64) -> Self {
        let expiry = lease.expiry;
        let mut keeper = Self {
            lease,
            timing,
            want: Want::Renew,
            due: None,
            in_flight: false,
            look_again: false,
            written: [None; 2],
            asked: None,
            told: None,
            retry: Backoff::new(RETRY_MIN, RETRY_MAX),
            won_back: None,
            again: Backoff::new(RETRY_MIN, RETRY_MAX),
            rng: StdRng::seed_from_u64(seed),
        };
        keeper.written(expiry, now);
        keeper
    }

    /// The lease as it was last known.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Whether the lease is ours, as far as is known; if not, it is being won back.
    pub fn holds(&self) -> bool {
        self.want == Want::Renew
    }

    /// What to do at `now`. After [`Poll::Do`] nothing else is asked for until [`Self::finish`].
    pub fn poll(&mut self, now: Moment) -> Poll {
        if self.in_flight {
            return Poll::Wait(None);
        }
        let Some(due) = self.due else { return Poll::Wait(None) };
        let remaining = due.remaining(now);
        if remaining > Duration::ZERO {
            return Poll::Wait(Some(remaining));
        }
        self.in_flight = true;
        Poll::Do(match self.want {
            Want::Renew | Want::Confirm => {
                self.asked = Some(now);
                Step::Renew
            }
            Want::Create => Step::Create,
            Want::Acquire => Step::Acquire,
        })
    }

    /// Takes note of what the store reports about our own subnet.
    pub fn observe(&mut self, event: &WatchEvent, now: Moment) {
        match event {
            WatchEvent::Put(lease) if lease.subnet == self.lease.subnet => self.present(lease, now),
            WatchEvent::Removed(subnet) if *subnet == self.lease.subnet => self.absent(now),
            WatchEvent::Snapshot(leases) => {
                match leases.iter().find(|lease| lease.subnet == self.lease.subnet) {
                    Some(lease) => self.present(lease, now),
                    None => self.absent(now),
                }
            }
            WatchEvent::Put(_) | WatchEvent::Removed(_) | WatchEvent::Config => {}
        }
    }

    /// Takes note of what the request gave. `true` if the lease is another one now.
    pub fn finish(&mut self, outcome: Outcome, now: Moment) -> bool {
        self.in_flight = false;
        let look_again = std::mem::take(&mut self.look_again);
        if !matches!(outcome, Outcome::Failed) {
            self.retry.reset();
        }
        match (outcome, self.want) {
            (Outcome::Ours(expiry), _) => self.ours(expiry, look_again, now),
            (Outcome::Won(lease), _) => {
                let moved = lease.subnet != self.lease.subnet;
                let expiry = lease.expiry;
                self.lease = lease;
                self.ours(expiry, look_again, now);
                return moved;
            }
            (Outcome::Lost, Want::Confirm) => self.next(Want::Acquire, now),
            (Outcome::Lost, _) => self.win_back(now),
            (Outcome::Taken, _) => self.next(Want::Confirm, now),
            (Outcome::Failed, want) => {
                if look_again {
                    // The store tells us that the lease is lost: it can be asked.
                    self.retry.reset();
                }
                let delay = self.retry.next(&mut self.rng);
                self.next(want, now.after(delay));
            }
        }
        false
    }

    /// Our key is there: as we left it, or as somebody made it.
    fn present(&mut self, found: &Lease, now: Moment) {
        if self.in_flight {
            self.look_again |= !same_holder(&found.attrs, &self.lease.attrs);
            return;
        }
        if !same_holder(&found.attrs, &self.lease.attrs) {
            // It may be old news from before we won it, so ask; renewing never takes what is
            // another's.
            if self.want == Want::Renew {
                self.next(Want::Renew, now);
            }
            return;
        }
        if found.attrs != self.lease.attrs {
            self.answer(now);
            return;
        }
        match found.expiry {
            Expiry::Permanent => self.hold(found.expiry, now),
            Expiry::At(end) if self.written.contains(&Some(end)) => {
                if self.want != Want::Renew {
                    self.hold(found.expiry, now);
                }
            }
            Expiry::At(_) => {
                self.tell_foreign(now);
                self.hold(found.expiry, now);
                if self.due.is_some_and(|due| due.remaining(now).is_zero()) {
                    self.answer(now);
                }
            }
            Expiry::Unknown => {
                self.tell_foreign(now);
                self.answer(now);
            }
        }
    }

    /// Our key is gone.
    fn absent(&mut self, now: Moment) {
        if self.in_flight {
            self.look_again = true;
        } else if self.want == Want::Renew {
            self.win_back(now);
        }
    }

    /// At once, unless that was of no use a moment ago.
    fn win_back(&mut self, now: Moment) {
        let at = match self.won_back {
            Some(won) if !won.after(LOST_AGAIN_WITHIN).remaining(now).is_zero() => {
                now.after(self.again.next(&mut self.rng))
            }
            _ => {
                self.again.reset();
                now
            }
        };
        self.next(Want::Create, at);
    }

    fn ours(&mut self, expiry: Expiry, look_again: bool, now: Moment) {
        if !self.holds() {
            self.won_back = Some(now);
        }
        self.written(expiry, now);
        if look_again {
            self.next(Want::Renew, now);
        }
    }

    /// A write of ours succeeded.
    fn written(&mut self, expiry: Expiry, now: Moment) {
        if let Expiry::At(end) = expiry {
            self.written = [Some(end), self.written[0]];
        }
        self.hold(expiry, now);
    }

    /// The lease is ours: plan its renewal.
    fn hold(&mut self, expiry: Expiry, now: Moment) {
        self.lease.expiry = expiry;
        self.want = Want::Renew;
        self.due = match expiry {
            Expiry::Permanent => None,
            Expiry::At(end) => {
                let left = end.duration_since(now.wall).unwrap_or_default();
                let early = self.timing.spread().mul_f64(self.rng.random_range(0.0..1.0));
                Some(now.after(left.saturating_sub(self.timing.lead() + early)))
            }
            // No store answers so to a write; were one to, it must not be asked in a loop.
            Expiry::Unknown => Some(now.after(self.timing.ttl.saturating_sub(self.timing.lead()))),
        };
    }

    /// Renews soon because of what somebody else wrote.
    fn answer(&mut self, now: Moment) {
        let at =
            self.asked.map_or(now, |asked| now.after(asked.after(ANSWER_EVERY).remaining(now)));
        self.next(Want::Renew, at);
    }

    fn next(&mut self, want: Want, at: Moment) {
        self.want = want;
        self.due = Some(at);
    }

    /// Somebody else writes our key with our own value.
    fn tell_foreign(&mut self, now: Moment) {
        if self.told.is_some_and(|told| !told.after(TELL_EVERY).remaining(now).is_zero()) {
            return;
        }
        self.told = Some(now);
        tracing::warn!(
            "somebody else wrote our lease {} with our public address {}: if it was not done by \
             hand, another host has the same address; give it its own by --public-ip",
            self.lease.subnet,
            self.lease.attrs.public_ip
        );
    }
}

#[cfg(test)]
mod tests;

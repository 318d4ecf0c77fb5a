//! The keeper on a real store and a real clock.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::future;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::future::{BoxFuture, FutureExt};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;

use super::acquire;
use super::state::{Keeper, Moment, Outcome, Poll, Step, Timing};
use crate::config::NetworkConfig;
use crate::subnet::backoff::Complaint;
use crate::subnet::lease::{Expiry, Lease};
use crate::subnet::store::{StoreError, SubnetStore, WatchEvent};

/// The clocks are looked at this often at least: a timer does not see that the wall clock jumped.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What the daemon is told, in the order in which it happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// The store's watch reports this; for [`Peers::apply`](crate::subnet::peers::Peers::apply).
    Store(WatchEvent),
    /// Our subnet is another one now, as the old one is another host's: device, routes and
    /// `subnet.env` must follow, and [`Peers::set_own`](crate::subnet::peers::Peers::set_own).
    Moved(Lease),
    /// Our lease is ours again, or ends at another time than before.
    Held(Expiry),
    /// Our lease is gone, or another host's; it is being won back.
    Lost,
}

/// This moment by the machine's clocks. The steady one goes on while the machine is suspended, as
/// leases do; what [`Instant`] reads stands still then.
pub fn now() -> Moment {
    // Never negative, so that the conversion does not fail.
    let steady = Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default();
    Moment { wall: SystemTime::now(), steady }
}

/// Watches the store and keeps `lease`; every event of the store is passed on. A subnet that
/// another host takes is followed by another one of `config`, which the daemon runs by, whatever
/// the store's config says meanwhile.
///
/// Nothing that happens to the store ends it: it returns when the reader of `updates` is dropped,
/// and it may be dropped at any time.
pub async fn run(
    store: Arc<dyn SubnetStore>,
    config: NetworkConfig,
    lease: Lease,
    timing: Timing,
    updates: mpsc::Sender<Update>,
) {
    run_by(store, config, lease, timing, updates, now, rand::random()).await;
}

/// As [`run`], by another clock than the machine's. `seed` makes all that is left to chance: the
/// same seed, and the same answers of the store at the same times, give the same run.
pub async fn run_by(
    store: Arc<dyn SubnetStore>,
    config: NetworkConfig,
    lease: Lease,
    timing: Timing,
    updates: mpsc::Sender<Update>,
    now: impl Fn() -> Moment + Send,
    seed: u64,
) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut keeper = Keeper::new(lease, timing, now(), rng.random());
    let mut events = store.watch();
    let mut complaint = Complaint::default();
    let mut request: Option<BoxFuture<'static, Answer>> = None;
    // While the daemon is busy events wait in the store's queue, but the lease is kept.
    let mut waiting = VecDeque::new();
    let mut told = held_until(&keeper);

    loop {
        let held = held_until(&keeper);
        if held != told {
            waiting.push_back(held.map_or(Update::Lost, Update::Held));
            told = held;
        }
        let wait = match keeper.poll(now()) {
            Poll::Do(step) => {
                let (config, lease) = (config.clone(), keeper.lease().clone());
                let answer = perform(store.clone(), step, config, lease, timing.ttl, rng.random());
                request = Some(answer.boxed());
                LOOK_EVERY
            }
            Poll::Wait(left) => left.map_or(LOOK_EVERY, |left| left.min(LOOK_EVERY)),
        };
        // In this order, so that a run can be repeated. The rare comes before the frequent.
        tokio::select! {
            biased;
            () = updates.closed() => return,
            answer = under_way(&mut request) => {
                request = None;
                log(&mut complaint, &keeper, answer.trouble.as_deref());
                let before = keeper.lease().subnet;
                if keeper.finish(answer.outcome, now()) {
                    let lease = keeper.lease().clone();
                    let after = lease.subnet;
                    tracing::warn!("our subnet {before} is another host's now: moving to {after}");
                    waiting.push_back(Update::Moved(lease));
                }
            }
            event = events.recv(), if waiting.is_empty() => {
                // A store ends its watch only when the receiver is gone, or the runtime.
                let Some(event) = event else { return };
                keeper.observe(&event, now());
                waiting.push_back(Update::Store(event));
            }
            permit = updates.reserve(), if !waiting.is_empty() => {
                let Ok(permit) = permit else { return };
                if let Some(update) = waiting.pop_front() {
                    permit.send(update);
                }
            }
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// When our lease ends, if it is ours.
fn held_until(keeper: &Keeper) -> Option<Expiry> {
    keeper.holds().then(|| keeper.lease().expiry)
}

/// What a request gave, and why it failed if it did.
struct Answer {
    outcome: Outcome,
    trouble: Option<String>,
}

async fn under_way(request: &mut Option<BoxFuture<'static, Answer>>) -> Answer {
    match request {
        Some(request) => request.await,
        None => future::pending().await,
    }
}

async fn perform(
    store: Arc<dyn SubnetStore>,
    step: Step,
    config: NetworkConfig,
    lease: Lease,
    ttl: Duration,
    seed: u64,
) -> Answer {
    let Lease { subnet, attrs, .. } = &lease;
    let result = match step {
        Step::Renew => store.renew(subnet, attrs, ttl).await.map(Outcome::Ours),
        Step::Create => store.create(subnet, attrs, ttl).await.map(Outcome::Ours),
        Step::Acquire => {
            let mut rng = StdRng::seed_from_u64(seed);
            // Whoever had it may be gone again.
            let previous = Some(*subnet);
            match acquire::acquire(&*store, &config, attrs, previous, ttl, &mut rng).await {
                Ok(lease) => Ok(Outcome::Won(lease)),
                Err(error) => {
                    return Answer { outcome: Outcome::Failed, trouble: Some(error.to_string()) };
                }
            }
        }
    };
    match result {
        Ok(outcome) => {
            if step == Step::Create {
                tracing::warn!("the lease of {subnet} was gone: won it back");
            }
            Answer { outcome, trouble: None }
        }
        Err(error @ StoreError::Lost { .. }) => {
            tracing::warn!("{error}");
            Answer { outcome: Outcome::Lost, trouble: None }
        }
        Err(StoreError::Taken { .. }) => Answer { outcome: Outcome::Taken, trouble: None },
        Err(error) => Answer { outcome: Outcome::Failed, trouble: Some(error.to_string()) },
    }
}

fn log(complaint: &mut Complaint, keeper: &Keeper, trouble: Option<&str>) {
    let subnet = keeper.lease().subnet;
    match trouble {
        Some(trouble) => {
            if let Some(withheld) = complaint.due(trouble, Instant::now()) {
                tracing::warn!(
                    "cannot keep the lease of {subnet} now: {trouble}; trying again{withheld}"
                );
            }
        }
        None if complaint.clear() => tracing::info!("the lease of {subnet} can be kept again"),
        None => {}
    }
}

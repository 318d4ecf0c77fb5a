//! A host's way to the store, and its clock: both can fail.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use flanneld::subnet::keeper::Moment;
use flanneld::subnet::store::StoreError;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::etcd::Etcd;
use crate::load::Request;

/// As the daemon's: how long one request may take, how often it is tried, and when a connection
/// without a sign of life is given up (`etcd/transport.rs`).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const TRIES: usize = 2;
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(15);

/// One way through the network, in microseconds.
const LATENCY_US: std::ops::Range<u64> = 200..5_000;

/// The wall clocks' time when the simulation begins.
const BEGIN: Duration = Duration::from_secs(1_700_000_000);

/// What can be wrong with a host.
#[derive(Debug, Default)]
struct Condition {
    /// Nothing goes through, and nobody says so.
    cut_since: Option<Instant>,
    /// The machine sleeps: so does the program, and its steady clock.
    asleep_since: Option<Instant>,
    slept: Duration,
    /// How much the wall clock was set forward.
    ahead: Duration,
    /// Times that the connection was lost by itself.
    lost: u64,
}

/// What becomes of a request.
enum Fate {
    Answered,
    /// It is lost on its way there.
    Unheard,
    /// It is done, but the answer is lost.
    Unanswered,
}

pub(crate) struct Link {
    pub(crate) host: usize,
    etcd: Arc<Mutex<Etcd>>,
    begin: Instant,
    rng: Mutex<StdRng>,
    /// The part of the requests that fail one way or the other.
    faults: f64,
    condition: Mutex<Condition>,
    /// The condition changed, or there is news for the watch.
    pub(crate) wake: Arc<Notify>,
}

impl Link {
    pub(crate) fn new(host: usize, etcd: Arc<Mutex<Etcd>>, faults: f64, seed: u64) -> Self {
        Self {
            host,
            etcd,
            begin: Instant::now(),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            faults,
            condition: Mutex::default(),
            wake: Arc::default(),
        }
    }

    pub(crate) fn etcd(&self) -> MutexGuard<'_, Etcd> {
        self.etcd.lock().unwrap()
    }

    fn condition(&self) -> MutexGuard<'_, Condition> {
        self.condition.lock().unwrap()
    }

    pub(crate) fn seed(&self) -> u64 {
        self.rng.lock().unwrap().random()
    }

    pub(crate) fn latency(&self) -> Duration {
        Duration::from_micros(self.rng.lock().unwrap().random_range(LATENCY_US))
    }

    fn fate(&self) -> Fate {
        let mut rng = self.rng.lock().unwrap();
        if !rng.random_bool(self.faults) {
            Fate::Answered
        } else if rng.random() {
            Fate::Unheard
        } else {
            Fate::Unanswered
        }
    }

    /// Cuts the host off, or joins it again.
    pub(crate) fn cut(&self, cut: bool) {
        self.condition().cut_since = cut.then(Instant::now);
        self.etcd().truth.reach(self.host, !cut);
        self.wake.notify_one();
    }

    pub(crate) fn fall_asleep(&self) {
        self.condition().asleep_since = Some(Instant::now());
        self.etcd().truth.reach(self.host, false);
    }

    /// The machine goes on; its connections have ended meanwhile.
    pub(crate) fn wake_up(&self) {
        {
            let mut condition = self.condition();
            let since = condition.asleep_since.take().expect("it sleeps");
            condition.slept += since.elapsed();
            condition.lost += 1;
        }
        self.etcd().truth.reach(self.host, true);
        self.wake.notify_one();
    }

    pub(crate) fn set_clock_forward(&self, by: Duration) {
        self.condition().ahead += by;
    }

    /// What the host's clocks show.
    pub(crate) fn now(&self) -> Moment {
        let condition = self.condition();
        let now = condition.asleep_since.unwrap_or_else(Instant::now).duration_since(self.begin);
        Moment {
            wall: SystemTime::UNIX_EPOCH + BEGIN + now + condition.ahead,
            steady: now - condition.slept,
        }
    }

    pub(crate) fn cut_since(&self) -> Option<Instant> {
        self.condition().cut_since
    }

    pub(crate) fn is_asleep(&self) -> bool {
        self.condition().asleep_since.is_some()
    }

    /// Changes whenever the connection is lost.
    pub(crate) fn losses(&self) -> u64 {
        self.condition().lost + self.etcd().breaks()
    }

    async fn awake(&self) {
        while self.is_asleep() {
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// Sends a request, as the daemon's transport does: twice if need be.
    pub(crate) async fn call<T>(
        &self,
        kind: Request,
        mut request: impl FnMut(&mut Etcd) -> T + Send,
    ) -> Result<T, StoreError> {
        let mut reason = "";
        for _ in 0..TRIES {
            match self.try_call(kind, &mut request).await {
                Ok(answer) => return Ok(answer),
                Err(why) => reason = why,
            }
        }
        Err(StoreError::Unreachable { store: "the simulated etcd".into(), reason: reason.into() })
    }

    async fn try_call<T>(
        &self,
        kind: Request,
        request: &mut (impl FnMut(&mut Etcd) -> T + Send),
    ) -> Result<T, &'static str> {
        self.awake().await;
        sleep(self.latency()).await;
        if self.cut_since().is_some() {
            sleep(REQUEST_TIMEOUT).await;
            return Err("no answer");
        }
        let losses = self.losses();
        let fate = self.fate();
        let answer = {
            let mut etcd = self.etcd();
            if !etcd.is_up() {
                etcd.load.count_refused();
                return Err("connection refused");
            }
            let listed = etcd.keys().len();
            etcd.load.count(match kind {
                Request::List(_) => Request::List(listed),
                kind => kind,
            });
            match fate {
                Fate::Unheard => return Err("connection reset"),
                Fate::Unanswered | Fate::Answered => request(&mut etcd),
            }
        };
        sleep(self.latency()).await;
        self.awake().await;
        if self.cut_since().is_some() {
            sleep(REQUEST_TIMEOUT).await;
            return Err("no answer");
        }
        match fate {
            Fate::Answered if losses == self.losses() => Ok(answer),
            _ => Err("connection reset"),
        }
    }
}

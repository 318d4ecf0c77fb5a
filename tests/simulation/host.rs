//! One host: the daemon's own code from the config to the table of peers, without a data path.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard};

use flanneld::subnet::keeper::acquire::{acquire_with_retry, wait_for_config};
use flanneld::subnet::keeper::{Timing, Update, run_by};
use flanneld::subnet::lease::{Lease, LeaseAttrs, Subnet};
use flanneld::subnet::peers::{Change, Peers};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::etcd::{Etcd, View};
use crate::link::Link;
use crate::store::SimStore;

/// As in the daemon.
const UPDATE_QUEUE: usize = 256;

pub(crate) struct Host {
    pub(crate) link: Arc<Link>,
    pub(crate) ip: Ipv4Addr,
    pub(crate) view: View,
    timing: Timing,
    seen: Arc<Mutex<Seen>>,
    task: Option<JoinHandle<()>>,
}

/// What the daemon knows, for the tests to look at.
#[derive(Default)]
pub(crate) struct Seen {
    /// What `subnet.env` says; it outlives the daemon.
    pub(crate) subnet: Option<Subnet>,
    pub(crate) peers: Option<Peers>,
    /// How often the host had to take another subnet while it ran.
    pub(crate) moves: usize,
    /// How often a peer's route was taken away.
    pub(crate) routes_lost: usize,
}

impl Host {
    pub(crate) fn new(link: Link, ip: Ipv4Addr, view: View, timing: Timing) -> Self {
        Self { link: Arc::new(link), ip, view, timing, seen: Arc::default(), task: None }
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.task.is_some()
    }

    pub(crate) fn subnet(&self) -> Option<Subnet> {
        self.seen().subnet
    }

    pub(crate) fn start(&mut self) {
        assert!(self.task.is_none(), "it runs");
        let daemon = Daemon {
            store: SimStore::new(self.link.clone(), self.view),
            link: self.link.clone(),
            attrs: LeaseAttrs::udp(self.ip),
            timing: self.timing,
            seen: self.seen.clone(),
        };
        self.task = Some(tokio::spawn(daemon.run()));
    }

    /// Ends it as `kill -9` does. What is on its way to the store may still be done.
    pub(crate) fn crash(&mut self) {
        self.task.take().expect("it runs").abort();
        self.seen().peers = None;
        let mut etcd = self.link.etcd();
        etcd.unwatch(self.link.host);
        etcd.truth.believe(self.link.host, None, None);
    }
}

struct Daemon {
    store: SimStore,
    link: Arc<Link>,
    attrs: LeaseAttrs,
    timing: Timing,
    seen: Arc<Mutex<Seen>>,
}

impl Daemon {
    async fn run(self) {
        let mut rng = StdRng::seed_from_u64(self.link.seed());
        wait_for_config(&self.store, &mut rng).await.unwrap();
        let previous = self.seen().subnet;
        let ttl = self.timing.ttl;
        let (config, own) =
            acquire_with_retry(&self.store, &self.attrs, previous, ttl, &mut rng).await.unwrap();
        self.owns(&own);
        self.seen().peers = Some(Peers::new(own.clone()));

        let (sender, updates) = mpsc::channel(UPDATE_QUEUE);
        let link = self.link.clone();
        let now = move || link.now();
        let store = Arc::new(self.store.clone());
        tokio::select! {
            biased;
            () = self.serve(updates) => {}
            () = run_by(store, config, own, self.timing, sender, now, self.link.seed()) => {}
        }
        panic!("the keeper never ends by itself");
    }

    async fn serve(&self, mut updates: mpsc::Receiver<Update>) {
        loop {
            let expiry = self.seen().peers.as_ref().and_then(Peers::next_expiry);
            let changes = tokio::select! {
                biased;
                update = updates.recv() => {
                    let Some(update) = update else { return };
                    if let Update::Moved(lease) = &update {
                        self.owns(lease);
                        self.seen().moves += 1;
                    }
                    let mut seen = self.seen();
                    let peers = seen.peers.as_mut().expect("it runs");
                    match update {
                        Update::Store(event) => peers.apply(event, Instant::now().into_std()),
                        Update::Moved(lease) => peers.set_own(lease),
                        Update::Held(_) | Update::Lost => Vec::new(),
                    }
                }
                () = at(expiry) => {
                    let mut seen = self.seen();
                    let peers = seen.peers.as_mut().expect("it runs");
                    peers.expire(Instant::now().into_std())
                }
            };
            let lost = changes.iter().filter(|change| matches!(change, Change::Down(_))).count();
            self.seen().routes_lost += lost;
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }

    fn owns(&self, lease: &Lease) {
        self.seen().subnet = Some(lease.subnet);
        let mut etcd: MutexGuard<'_, Etcd> = self.link.etcd();
        let holder = etcd.holder(&lease.subnet);
        etcd.truth.believe(self.link.host, Some(lease.subnet), holder);
    }
}

async fn at(time: Option<std::time::Instant>) {
    match time {
        Some(time) => sleep_until(Instant::from_std(time)).await,
        None => std::future::pending().await,
    }
}

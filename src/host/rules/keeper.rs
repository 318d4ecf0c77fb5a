//! Keeps the rules: checks them now and then, puts back what somebody took away, follows the lease.
#![forbid(unsafe_code)]

use std::future::pending;
use std::time::Instant;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::{Manager, Nets, RulesError, RulesOptions};
use crate::host::error::HostError;
use crate::host::netlink::Host;
use crate::subnet::backoff::Complaint;

/// Rules that are being kept. Dropping it ends the keeping, not the rules.
#[derive(Debug)]
pub struct KeptRules {
    wanted: watch::Sender<Vec<Nets>>,
    health: watch::Receiver<RulesHealth>,
    task: JoinHandle<()>,
}

/// How it stands with the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RulesHealth {
    /// None are wanted, or none can be set on this host.
    None,
    /// They are set.
    Set,
    /// They are not as they must be.
    Trouble {
        /// Why.
        reason: String,
        /// The operator asked for them by name; else the host may do without.
        asked_for: bool,
    },
}

impl KeptRules {
    /// How it stands with them, now and from now on.
    pub fn health(&self) -> watch::Receiver<RulesHealth> {
        self.health.clone()
    }

    /// Waits until none are missing that were asked for. May be dropped at any time.
    pub async fn in_place(&mut self) {
        let in_place =
            |health: &RulesHealth| !matches!(health, RulesHealth::Trouble { asked_for: true, .. });
        if self.health.wait_for(in_place).await.is_err() {
            // Nobody keeps them any more.
            pending::<()>().await;
        }
    }

    /// The rules shall be about these networks from now on.
    pub fn follow(&self, nets: Vec<Nets>) {
        self.wanted.send_replace(nets);
    }

    /// Ends the keeping; a tool that runs is killed, which leaves whole transactions. Waits until
    /// no tool is being started: until it runs, it holds copies of our sockets and devices, and
    /// the next daemon would find its port in use.
    pub async fn stop(self) {
        self.task.abort();
        // Cancelled is what it shall be.
        let _ = self.task.await;
    }
}

/// What the task works with.
pub(super) struct Keeper {
    options: RulesOptions,
    manager: Manager,
    host: Host,
    nets: Vec<Nets>,
    /// The rules for `nets` could be set.
    set: bool,
    health: watch::Sender<RulesHealth>,
    complaint: Complaint,
    put_back: Complaint,
    blackhole_complaint: Complaint,
}

impl Keeper {
    pub(super) fn new(
        options: RulesOptions,
        manager: Manager,
        host: Host,
        nets: Vec<Nets>,
    ) -> Self {
        Self {
            options,
            manager,
            host,
            nets,
            set: false,
            health: watch::Sender::new(RulesHealth::None),
            complaint: Complaint::default(),
            put_back: Complaint::default(),
            blackhole_complaint: Complaint::default(),
        }
    }

    /// Sets the rules for the first time, or complains: a tool that is in another one's way now
    /// need not be later.
    pub(super) async fn set_first(&mut self) {
        match self.manager.set(&self.nets).await {
            Ok(()) => {
                self.set = true;
                self.tell_well();
                if !matches!(self.manager, Manager::Nobody) {
                    info!("the traffic rules are set: {}", self.options);
                }
            }
            Err(error) => self.complain(&error),
        }
        self.keep_blackholes().await;
    }

    /// Keeps them from then on.
    pub(super) fn spawn(self) -> KeptRules {
        let (wanted, changes) = watch::channel(self.nets.clone());
        let health = self.health.subscribe();
        KeptRules { wanted, health, task: tokio::spawn(self.run(changes)) }
    }

    async fn run(mut self, mut changes: watch::Receiver<Vec<Nets>>) {
        let mut ticks = interval(self.options.resync);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first is over at once.
        ticks.tick().await;
        loop {
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let nets = changes.borrow_and_update().clone();
                    self.follow(nets).await;
                }
                _ = ticks.tick() => {
                    self.check().await;
                    self.keep_blackholes().await;
                }
            }
        }
    }

    /// Puts the rules back if anything about them changed.
    async fn check(&mut self) {
        if self.set {
            match self.manager.holds().await {
                Ok(true) => return self.tell_well(),
                Ok(false) => {}
                Err(error) => return self.complain(&error),
            }
        }
        match self.manager.set(&self.nets).await {
            Ok(()) => {
                self.complaint.clear();
                let text = match self.set {
                    true => "the traffic rules were changed from outside: put back",
                    false => "the traffic rules are set now",
                };
                self.set = true;
                if let Some(withheld) = self.put_back.due(text, Instant::now()) {
                    warn!("{text}{withheld}");
                }
                // Last, for somebody may wait to say that the host is ready.
                self.tell_well();
            }
            Err(error) => self.complain(&error),
        }
    }

    async fn follow(&mut self, nets: Vec<Nets>) {
        if self.options.blackhole {
            for old in self.nets.clone().iter().filter(|old| !nets.contains(old)) {
                if let Err(error) = self.host.remove_blackhole(old.subnet()).await {
                    self.complain_of_blackhole(&error);
                }
            }
        }
        self.nets = nets;
        let result = self.manager.set(&self.nets).await;
        // If not, the next check sets them.
        self.set = result.is_ok();
        match result {
            Ok(()) => self.tell_well(),
            Err(error) => self.complain(&error),
        }
        self.keep_blackholes().await;
    }

    async fn keep_blackholes(&mut self) {
        if !self.options.blackhole {
            return;
        }
        for nets in self.nets.clone() {
            match self.host.set_blackhole(nets.subnet()).await {
                Ok(true) => info!("set the blackhole route {}", nets.subnet()),
                Ok(false) => {}
                Err(error) => self.complain_of_blackhole(&error),
            }
        }
    }

    fn tell_well(&self) {
        self.health.send_replace(match self.manager {
            Manager::Nobody => RulesHealth::None,
            Manager::Iptables(_) | Manager::Nftables(_) => RulesHealth::Set,
        });
    }

    fn complain(&mut self, error: &RulesError) {
        let text = error.to_string();
        let asked_for = self.options.asked_for();
        self.health.send_replace(RulesHealth::Trouble { reason: text.clone(), asked_for });
        if let Some(withheld) = self.complaint.due(&text, Instant::now()) {
            warn!("the traffic rules are not as they must be: {text}; trying again{withheld}");
        }
    }

    fn complain_of_blackhole(&mut self, error: &HostError) {
        let text = error.to_string();
        if let Some(withheld) = self.blackhole_complaint.due(&text, Instant::now()) {
            warn!("{text}; trying again{withheld}");
        }
    }
}

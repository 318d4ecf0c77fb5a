//! The traffic rules: what leaves the overlay is masqueraded, what is forwarded for it is accepted.
//!
//! [`rule`] says which rules there are; [`iptables`] and [`nftables`] write them as text, hand
//! that to the tools, and read back what is there. [`Rules::prepare`] finds what is missing
//! before a lease is taken; [`Rules::start`] cleans up behind earlier runs, sets the rules and
//! leaves a task behind that checks them every `--iptables-resync` seconds, puts back what
//! somebody took away, and follows the lease. As upstream's, the rules stay when the daemon ends.
#![forbid(unsafe_code)]

mod iptables;
mod keeper;
mod nftables;
mod rule;
mod tool;

use std::fmt;
use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use thiserror::Error;
use tracing::{info, warn};

use self::iptables::{Iptables, Keeps};
use self::keeper::Keeper;
pub use self::keeper::{KeptRules, RulesHealth};
use self::nftables::Nftables;
pub use self::rule::{Family, Nets};
pub(super) use self::tool::find as find_tool;
use super::netlink::Host;

/// Where the kernel says whether packets that stay within a bridge pass iptables.
const BRIDGE_NF: [(Family, &str); 2] = [
    (Family::V4, "/proc/sys/net/bridge/bridge-nf-call-iptables"),
    (Family::V6, "/proc/sys/net/bridge/bridge-nf-call-ip6tables"),
];

/// Why the rules are not set.
#[derive(Debug, Error)]
pub enum RulesError {
    /// A tool is not there.
    #[error(
        "{tool} is not in PATH: install the package {package}, or do without the rules: \
         --ip-masq=false --iptables-forward-rules=false"
    )]
    Missing {
        /// The tool.
        tool: String,
        /// The package that has it, in most distributions.
        package: &'static str,
    },
    /// A tool could not be run.
    #[error("cannot run {command}: {source}")]
    Run {
        /// The command line.
        command: String,
        /// What the system said.
        source: io::Error,
    },
    /// A tool failed.
    #[error("{command} failed ({status}): {said}")]
    Refused {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        said: String,
    },
    /// A tool succeeded, but the rules are not there, or not alone.
    #[error("the rules of {chain} differ as soon as they are set: something else changes them")]
    NotKept {
        /// The chain or table.
        chain: &'static str,
    },
}

/// `--iptables-forward-rules`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardRules {
    /// Not wanted.
    Off,
    /// Nothing was said: wanted, but a host where they cannot be set may still start.
    ByDefault,
    /// Wanted.
    AskedFor,
}

/// What the operator decides about rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RulesOptions {
    /// `--ip-masq`.
    pub masquerade: bool,
    /// Not `--ip-masq-fully-random-disable`: source ports that cannot be guessed, and that two
    /// processors do not both choose.
    pub random_fully: bool,
    /// `--iptables-forward-rules`.
    pub forward: ForwardRules,
    /// `--iptables-resync`: time between two checks.
    pub resync: Duration,
    /// `--ip-blackhole-route`.
    pub blackhole: bool,
}

impl RulesOptions {
    /// Did the operator say by name that there shall be rules?
    fn asked_for(&self) -> bool {
        self.masquerade || self.forward == ForwardRules::AskedFor
    }
}

impl fmt::Display for RulesOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = |on| if on { "on" } else { "off" };
        let forward = self.forward != ForwardRules::Off;
        write!(f, "masquerading {}, forwarding {}", state(self.masquerade), state(forward))
    }
}

/// Which rules shall be there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wanted {
    masquerade: bool,
    forward: bool,
    random_fully: bool,
}

/// Who sets the rules.
#[derive(Debug)]
enum Manager {
    /// Nobody: none are wanted, or none can be set.
    Nobody,
    Iptables(Iptables),
    Nftables(Nftables),
}

impl Manager {
    /// Makes the rules be there, in one transaction for each family or better.
    async fn set(&mut self, nets: &[Nets]) -> Result<(), RulesError> {
        match self {
            Self::Nobody => Ok(()),
            Self::Iptables(iptables) => iptables.set(nets).await,
            Self::Nftables(nftables) => nftables.set(nets).await,
        }
    }

    /// Are the rules as they were set?
    async fn holds(&self) -> Result<bool, RulesError> {
        match self {
            Self::Nobody => Ok(true),
            Self::Iptables(iptables) => iptables.holds().await,
            Self::Nftables(nftables) => nftables.holds().await,
        }
    }

    /// Removes what earlier runs left elsewhere than where the rules shall be.
    async fn clean_others(&self, nets: &[Nets]) {
        let (iptables, nftables) = match self {
            Self::Nobody => (Keeps::NOTHING, Vec::new()),
            Self::Iptables(iptables) => (iptables.keeps(), Vec::new()),
            Self::Nftables(_) => (Keeps::NOTHING, nets.iter().map(Nets::family).collect()),
        };
        let mut leftovers = Leftovers::default();
        iptables::clean(&iptables, false, &mut leftovers).await;
        nftables::clean(&nftables, false, &mut leftovers).await;
        for what in leftovers.found {
            info!("removed {what}");
        }
        for error in leftovers.failed {
            warn!("{error}");
        }
    }
}

/// What earlier runs left behind.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// What there was, each by its name.
    pub found: Vec<String>,
    /// What could not be looked at, or not be removed, and why.
    pub failed: Vec<String>,
}

/// Removes all rules that daemons have set, by whichever tool; with `dry_run`, only finds them.
pub async fn remove_all(dry_run: bool) -> Leftovers {
    let mut leftovers = Leftovers::default();
    iptables::clean(&Keeps::NOTHING, dry_run, &mut leftovers).await;
    nftables::clean(&[], dry_run, &mut leftovers).await;
    leftovers
}

/// The rules, not set yet.
#[derive(Debug)]
pub struct Rules {
    options: RulesOptions,
    manager: Manager,
}

impl Rules {
    /// Finds the tools that the rules of these families need.
    ///
    /// # Errors
    /// If they are missing or broken, and rules were asked for by name.
    pub async fn prepare(
        options: RulesOptions,
        use_nftables: bool,
        families: &[Family],
    ) -> Result<Self, RulesError> {
        let wanted = Wanted {
            masquerade: options.masquerade,
            forward: options.forward != ForwardRules::Off,
            random_fully: options.random_fully,
        };
        let manager = if !wanted.masquerade && !wanted.forward {
            Ok(Manager::Nobody)
        } else if use_nftables {
            Nftables::find(wanted).await.map(Manager::Nftables)
        } else {
            warn_of_bridges(families);
            Iptables::find(families, wanted).await.map(Manager::Iptables)
        };
        let manager = match manager {
            Err(error) if !options.asked_for() => {
                warn!(
                    "no rules are set; where the policy of FORWARD is DROP, pods will not reach \
                     other hosts: {error}"
                );
                Manager::Nobody
            }
            manager => manager?,
        };
        Ok(Self { options, manager })
    }

    /// Cleans up behind earlier runs, sets the rules, and keeps them until the returned handle is
    /// dropped. What cannot be set is tried again.
    pub async fn start(self, host: Host, nets: Vec<Nets>) -> KeptRules {
        self.manager.clean_others(&nets).await;
        let mut keeper = Keeper::new(self.options, self.manager, host, nets);
        keeper.set_first().await;
        keeper.spawn()
    }
}

/// Upstream does not start without br_netfilter. The rules here are about routed packets and work
/// without it; what others build on iptables may not.
fn warn_of_bridges(families: &[Family]) {
    for (family, path) in BRIDGE_NF {
        let on = std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "1");
        if families.contains(&family) && !on {
            warn!(
                "{path} is not 1: packets between two pods of this host bypass iptables, so that \
                 Kubernetes services and network policies do not work between them; modprobe \
                 br_netfilter if you need those"
            );
        }
    }
}

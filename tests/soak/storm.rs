//! One fault after the other, each on some host for some time, and a quiet spell between two.
//!
//! While it is quiet, no daemon drops or logs anything. After a fault every host must become what
//! it was, and every path carry packets again; only then is it over.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::drops::Drops;
use crate::faults::{FAULTS, Fault};
use crate::overlay::Overlay;
use crate::report::is_about_churn;
use crate::stop::Stop;
use crate::support::admin::until;
use crate::support::running::Traffic;
use crate::support::traffic::ping;
use crate::windows::Windows;

/// How long a fault lasts that the daemon does not mend itself.
const LASTS_MS: RangeInclusive<u64> = 100..=3_000;

/// How long it is quiet after one.
const QUIET_MS: RangeInclusive<u64> = 2_000..=6_000;

/// Lines that a daemon may log about one fault.
const FEW_LINES: usize = 10;

/// What the faults have done.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// By the number of the fault.
    kinds: BTreeMap<usize, Kind>,
    /// Dropped by the kernel while faults could show.
    pub(crate) drops: Drops,
}

/// What the faults of one kind have done.
#[derive(Clone, Copy, Debug, Default)]
struct Kind {
    count: u64,
    /// The longest time from the end of the fault to the next packet, either way.
    recovery: Duration,
    /// The longest time without a packet, either way.
    gap: Duration,
}

/// Faults in an order that the seed gives.
pub(crate) struct Storm<'a> {
    pub(crate) overlay: &'a Overlay,
    pub(crate) stop: &'a Stop,
    pub(crate) windows: &'a Windows,
}

impl Tally {
    /// How many faults there were.
    pub(crate) fn count(&self) -> u64 {
        self.kinds.values().map(|kind| kind.count).sum()
    }
}

impl Storm<'_> {
    /// Lets it rage until the soak is over.
    pub(crate) fn rage(&self, seed: u64) -> Result<Tally, String> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut tally = Tally::default();
        let mut deck: Vec<usize> = Vec::new();
        let healthy = self.overlay.health();
        let mut refused = self.overlay.refused();
        let mut wait = || {
            let over = self.stop.wait(Duration::from_millis(rng.random_range(QUIET_MS)));
            // Each kind once before any comes again.
            if deck.is_empty() {
                deck.extend(0..FAULTS.len());
                deck.shuffle(&mut rng);
            }
            let kind = deck.pop().expect("it was just filled");
            // The first host's daemon lives as long as the soak, so that it shows what grows.
            let host = usize::from(FAULTS[kind].restarts)..self.overlay.hosts().end;
            let lasts = Duration::from_millis(rng.random_range(LASTS_MS));
            (!over).then_some((kind, rng.random_range(host), lasts))
        };
        while let Some((kind, host, lasts)) = wait() {
            self.judge_quiet(&refused)?;
            self.windows.open(FAULTS[kind].unreachable);
            let before = self.overlay.drops();
            let (recovery, gap) = self.strike(tally.count(), &FAULTS[kind], host, lasts, &healthy);
            tally.drops += self.overlay.drops() - before;
            self.windows.close();
            self.judge_logs(&FAULTS[kind], host)?;
            refused = self.overlay.refused();
            let Kind { count, recovery: longest, gap: widest } =
                tally.kinds.entry(kind).or_default();
            *count += 1;
            *longest = recovery.max(*longest);
            *widest = gap.max(*widest);
        }
        self.judge_quiet(&refused)?;
        Ok(tally)
    }

    /// Lets a host suffer, and waits until that is over; tells how long that took, and how long no
    /// packet came.
    fn strike(
        &self,
        number: u64,
        fault: &Fault,
        host: usize,
        lasts: Duration,
        healthy: &[String],
    ) -> (Duration, Duration) {
        let other = (host + 1) % self.overlay.hosts().end;
        let [here, there] = self.overlay.ends((host, other), true);
        let probes = [Traffic::start(here, there, 0), Traffic::start(there, here, 0)];
        (fault.begin)(self.overlay, host);
        if fault.end.is_some() {
            self.stop.wait(lasts);
        }
        let healed = Instant::now();
        if let Some(end) = fault.end {
            end(self.overlay, host);
        }
        let recovery = probes.iter().map(|probes| probes.wait_for_probe_after(healed)).max();
        until(fault.name, || self.overlay.health(), |health| health == healthy);
        for [from, to] in self.overlay.paths() {
            until(fault.name, || ping(from.netns, to.address, 1, ""), Result::is_ok).unwrap();
        }
        self.overlay.wait_until_known(number);
        let gap = probes.map(|probes| probes.stop().longest_gap).into_iter().max();
        let (recovery, gap) = (recovery.unwrap_or_default(), gap.unwrap_or_default());
        println!("{} on host {host}: back after {recovery:.0?}, gap {gap:.0?}", fault.name);
        (recovery, gap)
    }

    /// Without a fault there is nothing to drop and nothing to tell.
    fn judge_quiet(&self, before: &[u64]) -> Result<(), String> {
        let after = self.overlay.refused();
        if after != before {
            return Err(format!(
                "the daemons dropped {before:?} packets, then {after:?}: no fault"
            ));
        }
        for host in self.overlay.hosts() {
            if let Some(line) = self.strange_news(host).first() {
                return Err(format!("daemon {host} logs without a fault: {line}"));
            }
        }
        Ok(())
    }

    fn judge_logs(&self, fault: &Fault, struck: usize) -> Result<(), String> {
        for host in self.overlay.hosts() {
            let lines = self.strange_news(host);
            if lines.len() > FEW_LINES && !(fault.restarts && host == struck) {
                let (count, lines) = (lines.len(), lines.join("\n"));
                return Err(format!("{}: {count} lines of daemon {host}:\n{lines}", fault.name));
            }
        }
        Ok(())
    }

    fn strange_news(&self, host: usize) -> Vec<String> {
        let mut news = self.overlay.news(host);
        news.retain(|line| !is_about_churn(line));
        news
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (&number, Kind { count, recovery, gap }) in &self.kinds {
            writeln!(
                f,
                "  {}: {count} times, back after {} ms at most, longest gap {} ms",
                FAULTS[number].name,
                recovery.as_millis(),
                gap.as_millis()
            )?;
        }
        Ok(())
    }
}

//! What a daemon occupies, sampled while it works.
#![forbid(unsafe_code)]

use std::fmt;
use std::time::{Duration, Instant};

use crate::support::daemon::Daemon;

/// How much larger the memory may be in the last third of the samples than in the first, by their
/// medians: lanes touch their 350 KiB when a flow first fills them (docs/decisions/009), which takes
/// minutes for all sixteen. A leak of a byte per packet passes it within minutes.
pub(crate) const GROWTH_KIB: u64 = 3 * 1_024;

/// The same with faults: after an outage all sixteen lanes may be filled that were not before.
pub(crate) const GROWTH_WITH_FAULTS_KIB: u64 = 6 * 1_024;

/// What the daemon may allocate at default settings under load: the project's aim of 24 MiB of
/// resident memory, less 8 for the code of a release build. That of a debug build is 17 MiB.
const PEAK_KIB: u64 = 16 * 1_024;

/// So many samples are needed to tell growth from use, forty seconds' worth: lanes are touched before.
const ENOUGH: usize = 160;

/// The samples of one process, from `/proc/PID`.
#[derive(Debug)]
pub(crate) struct Footprint {
    pid: u32,
    /// When samples begin.
    warm: Instant,
    /// Anonymous memory: what was allocated, without code.
    allocated_kib: Vec<u64>,
    descriptors: Vec<u64>,
}

impl Footprint {
    /// No sample yet; none is taken before the process has had time to warm up.
    pub(crate) fn of(daemon: &Daemon, warm_up: Duration) -> Footprint {
        Footprint {
            pid: daemon.pid(),
            warm: Instant::now() + warm_up,
            allocated_kib: Vec::new(),
            descriptors: Vec::new(),
        }
    }

    /// Whether the samples are those of this daemon's process.
    pub(crate) fn is_of(&self, daemon: &Daemon) -> bool {
        self.pid == daemon.pid()
    }

    /// Takes a sample. Fails if the daemon is gone.
    pub(crate) fn sample(&mut self) -> Result<(), String> {
        if Instant::now() < self.warm {
            return Ok(());
        }
        let pid = self.pid;
        let read = || -> std::io::Result<(String, u64)> {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
            Ok((status, descriptors))
        };
        let (status, descriptors) = read().map_err(|error| format!("flanneld {pid}: {error}"))?;
        // A process that ended, but was not waited for, has no memory left.
        let kib = |name: &str| -> Result<u64, String> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok())
                .ok_or_else(|| format!("flanneld {pid} ended in the middle of the soak"))
        };
        self.allocated_kib.push(kib("RssAnon:")?);
        self.descriptors.push(descriptors);
        Ok(())
    }

    fn peak_kib(&self) -> u64 {
        self.allocated_kib.iter().copied().max().unwrap_or(0)
    }

    /// What is wrong with it, if anything: with more growth than that, for example.
    pub(crate) fn judge(&self, growth_kib: u64) -> Result<(), String> {
        let peak = self.peak_kib();
        if peak > PEAK_KIB {
            return Err(format!("memory reached {peak} KiB, more than {PEAK_KIB}"));
        }
        if self.allocated_kib.len() < ENOUGH {
            return Ok(());
        }
        let [first, last] = thirds(&self.allocated_kib);
        if last > first + growth_kib {
            return Err(format!("memory grew from {first} KiB to {last} KiB"));
        }
        // A look into the store takes one or two for a moment: hence medians.
        let [first, last] = thirds(&self.descriptors);
        if first != last {
            return Err(format!("descriptors went from {first} to {last}"));
        }
        Ok(())
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first_kib, last_kib] = thirds(&self.allocated_kib);
        let [first, last] = thirds(&self.descriptors);
        write!(
            f,
            "process {}, {} samples: allocated {first_kib} KiB in the first third, {last_kib} KiB in \
             the last, peak {} KiB; descriptors {first} and {last}",
            self.pid,
            self.allocated_kib.len(),
            self.peak_kib()
        )
    }
}

/// The medians of the first and the last third.
fn thirds(samples: &[u64]) -> [u64; 2] {
    let third = samples.len().div_ceil(3);
    [&samples[..third], &samples[samples.len() - third..]].map(|third| {
        let mut sorted = third.to_vec();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(allocated_kib: Vec<u64>, descriptors: Vec<u64>) -> Footprint {
        Footprint { pid: 1, warm: Instant::now(), allocated_kib, descriptors }
    }

    #[test]
    fn growth_is_noticed() {
        let flat = vec![10; 180];
        assert_eq!(of(vec![9_000; 180], flat.clone()).judge(GROWTH_KIB), Ok(()));
        // 30 KiB with each sample: a leak. One peak: not.
        let leak = (0..180).map(|sample| 9_000 + 30 * sample).collect();
        assert!(of(leak, flat.clone()).judge(GROWTH_KIB).unwrap_err().contains("memory grew"));
        let mut peak = vec![9_000; 180];
        peak[170] = 16_000;
        assert_eq!(of(peak.clone(), flat.clone()).judge(GROWTH_KIB), Ok(()));
        peak[170] = 17_000;
        assert!(of(peak, flat).judge(GROWTH_KIB).unwrap_err().contains("memory reached"));
        let leak: Vec<u64> = (0..180).map(|sample| 10 + sample / 20).collect();
        assert!(
            of(vec![9_000; 180], leak.clone())
                .judge(GROWTH_KIB)
                .unwrap_err()
                .contains("descriptors")
        );
        // A process that did not live long enough to tell.
        assert_eq!(of(vec![9_000; 150], leak[..150].to_vec()).judge(GROWTH_KIB), Ok(()));
    }
}

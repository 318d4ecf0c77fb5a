//! What a daemon occupies, sampled while it works.

use std::fmt;

use crate::support::daemon::Daemon;

/// How much larger the memory may be in the last third of the samples than in the first, by their
/// medians. There are always pages that are used for the first time (60 to 200 KiB in a minute, and
/// then no more). A leak of a byte per packet passes it within minutes, one of some hundred bytes
/// per change of a lease within an hour.
const GROWTH_KIB: u64 = 1_024;

/// Resident memory at default settings under load, at most: 24 MiB (the project's aim).
const PEAK_KIB: u64 = 24 * 1_024;

/// The samples of one daemon, from `/proc/PID`.
#[derive(Debug, Default)]
pub(crate) struct Footprint {
    resident_kib: Vec<u64>,
    descriptors: Vec<u64>,
    peak_kib: u64,
}

impl Footprint {
    /// Takes a sample. Fails if the daemon is gone.
    pub(crate) fn sample(&mut self, daemon: &Daemon) -> Result<(), String> {
        let pid = daemon.pid();
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
        self.resident_kib.push(kib("VmRSS:")?);
        self.peak_kib = kib("VmHWM:")?;
        self.descriptors.push(descriptors);
        Ok(())
    }

    /// What is wrong with it, if anything.
    pub(crate) fn judge(&self) -> Result<(), String> {
        let [first, last] = thirds(&self.resident_kib);
        if last > first + GROWTH_KIB {
            return Err(format!("memory grew from {first} KiB to {last} KiB"));
        }
        if self.peak_kib > PEAK_KIB {
            return Err(format!("memory reached {} KiB, more than {PEAK_KIB}", self.peak_kib));
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
        let [first_kib, last_kib] = thirds(&self.resident_kib);
        let [first, last] = thirds(&self.descriptors);
        write!(
            f,
            "{} samples: resident {first_kib} KiB in the first third, {last_kib} KiB in the last, \
             peak {} KiB; descriptors {first} and {last}",
            self.resident_kib.len(),
            self.peak_kib
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

    fn of(resident_kib: Vec<u64>, descriptors: Vec<u64>) -> Footprint {
        Footprint { peak_kib: *resident_kib.iter().max().unwrap(), resident_kib, descriptors }
    }

    #[test]
    fn growth_is_noticed() {
        let flat = vec![10; 90];
        assert_eq!(of(vec![9_000; 90], flat.clone()).judge(), Ok(()));
        // 30 KiB with each sample: a leak. One peak: not.
        let leak = (0..90).map(|sample| 9_000 + 30 * sample).collect();
        assert!(of(leak, flat.clone()).judge().unwrap_err().contains("memory grew"));
        let mut peak = vec![9_000; 90];
        peak[80] = 20_000;
        assert_eq!(of(peak.clone(), flat.clone()).judge(), Ok(()));
        peak[80] = 25_000;
        assert!(of(peak, flat).judge().unwrap_err().contains("memory reached"));
        let leak = (0..90).map(|sample| 10 + sample / 20).collect();
        assert!(of(vec![9_000; 90], leak).judge().unwrap_err().contains("descriptors went"));
    }
}

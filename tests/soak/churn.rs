//! Leases of hosts that come, move and go.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::stop::Stop;

/// Between two changes: about four a second.
const PAUSE_MS: std::ops::RangeInclusive<u64> = 50..=450;

/// Whose leases change: 172.7.101.0/24 and up. Daemons draw their own up to 172.7.100.0/24.
const SUBNETS: std::ops::Range<u8> = 101..200;

/// Where they are said to be: in the labs' network, but nobody is there.
const HOSTS: std::ops::Range<u8> = 100..250;

/// What was done to the store.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Leases that were made.
    pub(crate) added: u64,
    /// Leases that were given to another host.
    pub(crate) moved: u64,
    /// Leases that were taken away.
    pub(crate) removed: u64,
}

impl Counts {
    /// All changes.
    pub(crate) fn changes(&self) -> u64 {
        self.added + self.moved + self.removed
    }
}

/// The directory of the leases, where it can be found.
pub(crate) struct Store {
    dir: PathBuf,
    hidden: Mutex<bool>,
}

impl Store {
    /// The store at `dir`.
    pub(crate) fn at(dir: PathBuf) -> Store {
        Store { dir, hidden: Mutex::default() }
    }

    /// What tells a daemon of it.
    pub(crate) fn flag(&self) -> String {
        format!("--store-dir={}", self.dir.display())
    }

    /// Takes it away from everybody, as a share that is not mounted any more; the churn waits.
    pub(crate) fn hide(&self) {
        let mut hidden = self.hidden.lock().unwrap();
        fs::rename(&self.dir, self.elsewhere()).unwrap();
        *hidden = true;
    }

    /// Gives it back.
    pub(crate) fn show(&self) {
        let mut hidden = self.hidden.lock().unwrap();
        fs::rename(self.elsewhere(), &self.dir).unwrap();
        *hidden = false;
    }

    fn elsewhere(&self) -> PathBuf {
        self.dir.with_extension("hidden")
    }

    /// The file of a lease such as `172.7.21.0-24`.
    pub(crate) fn file(&self, subnet: &str) -> PathBuf {
        self.dir.join("subnets").join(subnet)
    }

    /// Writes a lease in one step, as a daemon would.
    pub(crate) fn put(&self, subnet: u8, host: u8) -> io::Result<Option<(u8, u8)>> {
        // Of its own for each lease: the storm writes one as well.
        let unfinished = self.file(&format!(".soak-{subnet}"));
        fs::write(&unfinished, format!(r#"{{"PublicIP":"10.4.7.{host}"}}"#))?;
        fs::rename(unfinished, self.file(&name(subnet)))?;
        Ok(Some((subnet, host)))
    }
}

/// Changes leases in the directory store until the soak is over.
pub(crate) fn churn(store: &Store, seed: u64, stop: &Stop) -> Result<Counts, String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut held: BTreeMap<u8, u8> = BTreeMap::new();
    let mut counts = Counts::default();
    while !stop.wait(Duration::from_millis(rng.random_range(PAUSE_MS))) {
        let hidden = store.hidden.lock().unwrap();
        if *hidden {
            continue;
        }
        let (subnet, host) = (rng.random_range(SUBNETS), rng.random_range(HOSTS));
        let done = match held.get(&subnet) {
            None => {
                counts.added += 1;
                store.put(subnet, host)
            }
            Some(holder) if *holder != host && rng.random_bool(0.3) => {
                counts.moved += 1;
                store.put(subnet, host)
            }
            Some(_) => {
                counts.removed += 1;
                held.remove(&subnet);
                fs::remove_file(store.file(&name(subnet))).map(|()| None)
            }
        };
        let put = done.map_err(|error| format!("the store at {}: {error}", store.dir.display()))?;
        held.extend(put);
    }
    Ok(counts)
}

/// What a lease of the churn is called.
fn name(subnet: u8) -> String {
    format!("172.7.{subnet}.0-24")
}

//! Reading all leases of the directory, files that did not change only once.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::entry;
use super::files::{Files, ReadError, read, unfit};
use crate::subnet::lease::{Expiry, Lease, LeaseAttrs, Subnet};
use crate::subnet::once::Strays;
use crate::subnet::store::StoreError;

/// More files than this are not read: none of them, for which ones are left out would be chance.
/// Known leases stay as they are until there are fewer.
const MAX_FILES: usize = 100_000;

/// A file that was changed so short a time before it was read may have been changed again within
/// the same tick of the file system's clock: it is read anew next time.
const TICK: Duration = Duration::from_secs(2);

/// What tells one content of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of whatever stands at `path`; none if nothing does.
    pub(super) fn of_file(path: &Path) -> Option<Self> {
        fs::symlink_metadata(path).ok().map(|meta| Self::of(&meta))
    }

    fn of(meta: &Metadata) -> Self {
        Self {
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    fn is_old(&self, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let tick = i64::try_from(TICK.as_secs()).unwrap_or(i64::MAX);
        i64::try_from(now.as_secs()).is_ok_and(|now| self.changed.0.saturating_add(tick) < now)
    }
}

struct Known {
    /// As long as it is this, the file says the same; none if it is to be read again.
    settled: Option<Stamp>,
    lease: Option<(LeaseAttrs, Expiry)>,
}

/// Remembers what it read.
pub(super) struct Scanner {
    files: Files,
    known: HashMap<Subnet, Known>,
    strays: Strays,
}

/// What stands in the directory.
pub(super) struct Scan {
    /// Leases that were read, expired ones among them, in the order of their subnets.
    pub(super) leases: Vec<Lease>,
    /// Files that have a subnet's name, but cannot be read, or not now.
    pub(super) unreadable: Vec<Subnet>,
}

/// Reads the directory, one reader at a time.
pub(super) fn scan(scanner: &Mutex<Scanner>) -> Result<Scan, StoreError> {
    scanner.lock().unwrap_or_else(PoisonError::into_inner).scan()
}

impl Scanner {
    pub(super) fn new(files: Files) -> Self {
        Self { files, known: HashMap::new(), strays: Strays::new() }
    }

    /// Reads the directory. Fails, rather than to report that nothing is leased, if the directory
    /// as a whole is away.
    fn scan(&mut self) -> Result<Scan, StoreError> {
        let subnets = self.files.subnets();
        let mut scan = Scan { leases: Vec::new(), unreadable: Vec::new() };
        let mut next = HashMap::new();
        let before = identity(&subnets);
        let entries = match fs::read_dir(&subnets) {
            Ok(entries) => entries,
            // Somebody emptied the store.
            Err(e) if e.kind() == ErrorKind::NotFound && self.files.is_there() => {
                self.known.clear();
                return Ok(scan);
            }
            Err(e) => {
                return Err(self.files.failed(&format!("cannot read {}", subnets.display()), &e));
            }
        };
        for (count, entry) in entries.enumerate() {
            let entry = entry.map_err(|e| self.files.failed("cannot read the directory", &e))?;
            if count >= MAX_FILES {
                return Err(StoreError::Unreachable {
                    store: self.files.describe(),
                    reason: format!(
                        "more than {MAX_FILES} files in {}: remove what does not belong there",
                        subnets.display()
                    ),
                });
            }
            let name = entry.file_name();
            let bytes = name.as_encoded_bytes();
            if is_ignored(bytes) {
                continue;
            }
            let subnet = match parse_name(bytes) {
                Ok(subnet) => subnet,
                Err(reason) => {
                    self.strays.skip(&self.files.describe(), bytes, &reason);
                    continue;
                }
            };
            let Some(known) = self.look(&subnet, bytes) else { continue };
            match &known.lease {
                Some((attrs, expiry)) => {
                    scan.leases.push(Lease { subnet, attrs: attrs.clone(), expiry: *expiry });
                }
                None => scan.unreadable.push(subnet),
            }
            next.insert(subnet, known);
        }
        // Files of a directory that was moved or unmounted meanwhile are missing, but not deleted.
        if before != identity(&subnets) {
            let moved = io::Error::other("it was moved while it was read");
            return Err(self.files.failed(&format!("cannot read {}", subnets.display()), &moved));
        }
        self.known = next;
        self.strays.retain(|name| {
            let path = subnets.join(OsStr::from_bytes(name));
            !fs::symlink_metadata(path).is_err_and(|e| e.kind() == ErrorKind::NotFound)
        });
        scan.leases.sort_by_key(|lease| lease.subnet);
        Ok(scan)
    }

    /// What a file says, or said when it was last changed; `None` if it is gone.
    fn look(&mut self, subnet: &Subnet, name: &[u8]) -> Option<Known> {
        let path = self.files.lease(subnet);
        let (settled, text) = match fs::symlink_metadata(&path) {
            Ok(meta) => {
                let stamp = Stamp::of(&meta);
                if let Some(known) = self.known.remove(subnet)
                    && known.settled == Some(stamp)
                {
                    return Some(known);
                }
                let settled = stamp.is_old(SystemTime::now()).then_some(stamp);
                let text = read(&path);
                // What kept us from reading it may be over next time, with the same stamp.
                (settled.filter(|_| text.is_ok()), text)
            }
            Err(e) => (None, Err(unfit(e))),
        };
        let content = match text {
            Ok(text) => entry::parse(&text),
            Err(ReadError::Missing) => return None,
            Err(ReadError::Unfit(reason)) => Err(reason),
        };
        let lease = match content {
            Ok(lease) => {
                self.strays.forget(name);
                Some(lease)
            }
            Err(reason) => {
                self.strays.skip(&self.files.describe(), name, &reason);
                None
            }
        };
        Some(Known { settled, lease })
    }
}

/// What tells a directory from another of the same name; none if there is none.
fn identity(dir: &Path) -> Option<(u64, u64)> {
    fs::metadata(dir).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Names that editors and ourselves use for what is not finished.
fn is_ignored(name: &[u8]) -> bool {
    name.starts_with(b".")
        || name.starts_with(b"#")
        || name.ends_with(b"~")
        || name.ends_with(b".tmp")
        || name.ends_with(b".swp")
}

/// Only the one spelling that we write is accepted, so that no two files stand for one subnet.
fn parse_name(name: &[u8]) -> Result<Subnet, String> {
    let name = std::str::from_utf8(name).map_err(|_| "the name is not UTF-8".to_owned())?;
    let subnet: Subnet = name.parse().map_err(|e| format!("{e}"))?;
    if subnet.to_string() == name {
        Ok(subnet)
    } else {
        Err(format!("the name of that subnet is spelt {subnet}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subnet::logged::logged;

    #[test]
    fn a_stray_that_was_deleted_is_told_again_when_it_returns() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path().to_owned()).unwrap();
        let mut scanner = Scanner::new(files.clone());
        let mut lines = || logged(|| assert!(scanner.scan().is_ok())).lines().count();
        for stray in [files.subnets().join("README"), files.subnets().join("10.5.1.0-24")] {
            for _ in 0..2 {
                fs::write(&stray, "no lease").unwrap();
                assert_eq!([lines(), lines()], [1, 0]);
                fs::remove_file(&stray).unwrap();
                assert_eq!(lines(), 0);
            }
        }
    }
}

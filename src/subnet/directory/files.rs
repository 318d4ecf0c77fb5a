//! The files of the store. Blocking: called on threads that may wait.
//!
//! Whoever writes holds the lock, so that comparing and writing are one step among daemons.
//! Besides, a lease appears under its name only whole, and never over another file, so that hands
//! and editors, which know no lock, cannot be overwritten unseen nor read half.
#![forbid(unsafe_code)]

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use tempfile::NamedTempFile;

use super::{entry, timestamp};
use crate::subnet::lease::{Expiry, Lease, LeaseAttrs, Subnet};
use crate::subnet::store::{StoreError, same_holder};

/// The largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Waiting for the lock ends after this time, in case that its holder is stopped.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(5);

/// What the names of files begin with while they are written.
const UNFINISHED: &str = ".unfinished-";

/// The store's directory.
#[derive(Clone, Debug)]
pub(super) struct Files {
    root: PathBuf,
}

/// Why a file gave no content.
#[derive(Debug)]
pub(super) enum ReadError {
    Missing,
    /// It is not a plain file of sensible size, or may not be read.
    Unfit(String),
}

/// Held while writing; freed when dropped.
pub(super) struct Lock {
    _file: File,
}

impl Files {
    /// Creates the directories that are missing.
    pub(super) fn open(root: PathBuf) -> Result<Self, StoreError> {
        let files = Self { root };
        files.make().map_err(|e| StoreError::Refused {
            store: files.describe(),
            reason: format!("cannot create the directory: {e}; create it, or allow us to"),
        })?;
        Ok(files)
    }

    fn make(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o755).create(self.subnets())
    }

    /// Is the store there, though perhaps emptied? Without its config the whole of it is away, as
    /// a share is that is not mounted; then it must not seem empty, nor be made anew elsewhere.
    pub(super) fn is_there(&self) -> bool {
        self.subnets().exists() || self.config().exists()
    }

    pub(super) fn describe(&self) -> String {
        format!("directory {}", self.root.display())
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn config(&self) -> PathBuf {
        self.root.join("config")
    }

    pub(super) fn subnets(&self) -> PathBuf {
        self.root.join("subnets")
    }

    pub(super) fn lease(&self, subnet: &Subnet) -> PathBuf {
        self.subnets().join(subnet.to_string())
    }

    pub(super) fn failed(&self, what: &str, error: &io::Error) -> StoreError {
        StoreError::Unreachable { store: self.describe(), reason: format!("{what}: {error}") }
    }

    /// Waits for the other writers.
    pub(super) fn lock(&self) -> Result<Lock, StoreError> {
        if !self.is_there() {
            let reason = "neither config nor subnets are there; is it mounted?".to_owned();
            return Err(StoreError::Unreachable { store: self.describe(), reason });
        }
        self.make().map_err(|e| self.failed("cannot create the directory", &e))?;
        let path = self.root.join(".lock");
        let file = open_lock(&path).map_err(|reason| StoreError::Unreachable {
            store: self.describe(),
            reason: format!("cannot lock {}: {reason}", path.display()),
        })?;
        let start = Instant::now();
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(Errno::WOULDBLOCK | Errno::INTR) if start.elapsed() < LOCK_TIMEOUT => {
                    std::thread::sleep(LOCK_RETRY);
                }
                Err(errno) => {
                    let what = format!("cannot lock {}", path.display());
                    return Err(self.failed(&what, &errno.into()));
                }
            }
        }
    }

    pub(super) fn create(
        &self,
        subnet: &Subnet,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Expiry, StoreError> {
        let _lock = self.lock()?;
        let path = self.lease(subnet);
        if let Ok((_, expiry)) = self.current(subnet)
            && expiry.is_past(SystemTime::now())
        {
            remove(&path).map_err(|e| self.failed("cannot remove an expired lease", &e))?;
        }
        let expiry = end_of(ttl);
        let unfinished = self.write(attrs, expiry)?;
        match unfinished.persist_noclobber(&path) {
            Ok(_) => Ok(expiry),
            Err(e) if e.error.kind() == ErrorKind::AlreadyExists => {
                Err(StoreError::Taken { subnet: *subnet })
            }
            Err(e) => Err(self.failed(&format!("cannot create {}", path.display()), &e.error)),
        }
    }

    pub(super) fn renew(
        &self,
        subnet: &Subnet,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Expiry, StoreError> {
        let _lock = self.lock()?;
        let path = self.lease(subnet);
        let lost = |reason| Err(StoreError::Lost { subnet: *subnet, reason });
        let expiry = match self.current(subnet) {
            Err(Current::Missing) => return lost("its file is gone".into()),
            Ok((_, expiry)) if expiry.is_past(SystemTime::now()) => {
                return lost("it has expired".into());
            }
            Ok((other, _)) if !same_holder(&other, attrs) => {
                return lost(format!("{} holds it now", other.public_ip));
            }
            Ok((same, Expiry::Permanent)) if same == *attrs => return Ok(Expiry::Permanent),
            Ok((_, Expiry::Permanent)) => Expiry::Permanent,
            Ok(_) => end_of(ttl),
            Err(Current::Unreadable(reason)) => {
                tracing::warn!("{} is put right: {reason}", path.display());
                end_of(ttl)
            }
            // Not ours to replace: a link, a device, something huge.
            Err(Current::Unfit(reason)) => {
                let reason = format!("{}: {reason}", path.display());
                return Err(StoreError::Unreachable { store: self.describe(), reason });
            }
        };
        self.write(attrs, expiry)?
            .persist(&path)
            .map_err(|e| self.failed(&format!("cannot replace {}", path.display()), &e.error))?;
        Ok(expiry)
    }

    pub(super) fn delete(&self, subnet: &Subnet, holder: &LeaseAttrs) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        let path = self.lease(subnet);
        match self.current(subnet) {
            Ok((other, _)) if same_holder(&other, holder) => {
                remove(&path).map_err(|e| self.failed("cannot remove a lease", &e))
            }
            _ => Ok(()),
        }
    }

    /// Removes leases that have expired, and what daemons left that were killed while they wrote.
    /// All is looked at again under the lock: a lease may have been renewed since.
    pub(super) fn reap(&self, expired: &[Lease]) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        let failed = |e| self.failed("cannot remove what has expired", &e);
        for lease in expired {
            if let Ok((_, expiry)) = self.current(&lease.subnet)
                && expiry.is_past(SystemTime::now())
            {
                remove(&self.lease(&lease.subnet)).map_err(failed)?;
            }
        }
        for file in fs::read_dir(self.subnets()).map_err(failed)? {
            let file = file.map_err(failed)?;
            if file.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
                remove(&file.path()).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// What stands under a subnet's name.
    fn current(&self, subnet: &Subnet) -> Result<(LeaseAttrs, Expiry), Current> {
        match read(&self.lease(subnet)) {
            Ok(text) => entry::parse(&text).map_err(Current::Unreadable),
            Err(ReadError::Missing) => Err(Current::Missing),
            Err(ReadError::Unfit(reason)) => Err(Current::Unfit(reason)),
        }
    }

    /// Writes a file that is still under no name that anybody looks at.
    fn write(&self, attrs: &LeaseAttrs, expiry: Expiry) -> Result<NamedTempFile, StoreError> {
        let write = || -> io::Result<NamedTempFile> {
            let mut file = tempfile::Builder::new()
                .prefix(UNFINISHED)
                .permissions(Permissions::from_mode(0o644))
                .tempfile_in(self.subnets())?;
            file.write_all(entry::format(attrs, expiry).as_bytes())?;
            file.as_file().sync_data()?;
            Ok(file)
        };
        write().map_err(|e| self.failed("cannot write a lease", &e))
    }
}

/// Why there is no lease to compare with.
enum Current {
    Missing,
    /// A file, but its text is no lease.
    Unreadable(String),
    /// No file that could be one.
    Unfit(String),
}

/// Reads a plain file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, ReadError> {
    let file = open_plain(path, OpenOptions::new().read(true))?;
    let mut content = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content).map_err(unfit)?;
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(ReadError::Unfit(format!("it is larger than {MAX_FILE_BYTES} bytes")));
    }
    Ok(content)
}

/// Opens a file that is there, if it is a plain one.
fn open_plain(path: &Path, how: &OpenOptions) -> Result<File, ReadError> {
    // First a handle alone: to open a device may do something already, and a pipe would make us
    // wait for its other end.
    let handle = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::open(path, handle, Mode::empty()).map_err(|e| unfit(e.into()))?;
    let handle = File::from(handle);
    let kind = handle.metadata().map_err(unfit)?.file_type();
    if kind.is_symlink() {
        // It would make us use what somebody else chose.
        return Err(ReadError::Unfit("it is a symbolic link".into()));
    }
    if !kind.is_file() {
        return Err(ReadError::Unfit("it is not a regular file".into()));
    }
    how.open(format!("/proc/self/fd/{}", handle.as_raw_fd())).map_err(unfit)
}

/// Only what is not there is missing: what may not be looked at, or not now, may be there.
pub(super) fn unfit(error: io::Error) -> ReadError {
    match error.kind() {
        ErrorKind::NotFound => ReadError::Missing,
        _ => ReadError::Unfit(format!("it cannot be used: {error}")),
    }
}

/// Opens the file that writers lock, and creates it if it is missing. Gives back why not.
fn open_lock(path: &Path) -> Result<File, String> {
    let mut how = OpenOptions::new();
    how.read(true).write(true);
    // `create_new` opens nothing that is there, and follows no link.
    match how.clone().create_new(true).mode(0o644).open(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        done => return done.map_err(|e| format!("it cannot be created: {e}")),
    }
    open_plain(path, &how).map_err(|error| match error {
        ReadError::Missing => "it was removed meanwhile".to_owned(),
        ReadError::Unfit(reason) => reason,
    })
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn end_of(ttl: Duration) -> Expiry {
    let now = SystemTime::now();
    Expiry::At(timestamp::round_up(now.checked_add(ttl).unwrap_or(now)))
}

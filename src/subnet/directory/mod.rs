//! The store without a server: a directory that all daemons share, for one machine, a demo, or a
//! set of hosts that is made by hand.
//!
//! `DIR/config` holds the network config, `DIR/subnets/10.5.1.0-24` a lease, under the names that
//! etcd's keys have. All is text, and may be read and written by hand.
#![forbid(unsafe_code)]

mod entry;
mod files;
mod scan;
mod timestamp;
mod watch;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::sync::mpsc;

use self::files::{Files, ReadError, read};
use self::scan::{Scanner, scan};
use super::lease::{Expiry, Lease, LeaseAttrs, Subnet};
use super::store::{Contact, StoreError, SubnetStore, WATCH_QUEUE, WatchEvent};

/// Leases in a directory.
#[derive(Clone)]
pub struct DirectoryStore {
    files: Files,
    scanner: Arc<Mutex<Scanner>>,
    contact: Arc<Contact>,
}

impl DirectoryStore {
    /// Opens the store at `dir`; what is missing of it is created.
    ///
    /// Fails with [`StoreError::Refused`] if that is not possible. Blocks on the file system.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let files = Files::open(dir.into())?;
        let scanner = Arc::new(Mutex::new(Scanner::new(files.clone())));
        Ok(Self { files, scanner, contact: Arc::default() })
    }

    /// Does blocking work on the files.
    async fn on_files<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Files) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let files = self.files.clone();
        let done = wait_for(move || work(&files)).await;
        let result = done.unwrap_or_else(|| {
            let reason = "the daemon is stopping".to_owned();
            Err(StoreError::Unreachable { store: self.describe(), reason })
        });
        self.contact.note(&result);
        result
    }
}

/// Runs blocking work on a thread that may wait; `None` if the runtime is shutting down.
async fn wait_for<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Some(done),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => None,
    }
}

#[async_trait]
impl SubnetStore for DirectoryStore {
    fn describe(&self) -> String {
        self.files.describe()
    }

    fn contact(&self) -> &Contact {
        &self.contact
    }

    async fn config(&self) -> Result<String, StoreError> {
        self.on_files(|files| {
            let path = files.config();
            match read(&path) {
                Ok(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
                Err(ReadError::Missing) if !files.root().is_dir() => {
                    let reason = "the directory is not there; is it mounted?".to_owned();
                    Err(StoreError::Unreachable { store: files.describe(), reason })
                }
                Err(ReadError::Missing) => {
                    Err(StoreError::NoConfig { key: path.display().to_string() })
                }
                Err(ReadError::Unfit(reason)) => {
                    let reason = format!("{}: {reason}", path.display());
                    Err(StoreError::Unreachable { store: files.describe(), reason })
                }
            }
        })
        .await
    }

    async fn list(&self) -> Result<Vec<Lease>, StoreError> {
        let scanner = self.scanner.clone();
        self.on_files(move |_| {
            let now = SystemTime::now();
            let mut leases = scan(&scanner)?.leases;
            leases.retain(|lease| !lease.expiry.is_past(now));
            Ok(leases)
        })
        .await
    }

    async fn create(
        &self,
        subnet: &Subnet,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Expiry, StoreError> {
        let (subnet, attrs) = (*subnet, attrs.clone());
        self.on_files(move |files| files.create(&subnet, &attrs, ttl)).await
    }

    async fn renew(
        &self,
        subnet: &Subnet,
        attrs: &LeaseAttrs,
        ttl: Duration,
    ) -> Result<Expiry, StoreError> {
        let (subnet, attrs) = (*subnet, attrs.clone());
        self.on_files(move |files| files.renew(&subnet, &attrs, ttl)).await
    }

    async fn delete(&self, subnet: &Subnet, holder: &LeaseAttrs) -> Result<(), StoreError> {
        let (subnet, holder) = (*subnet, holder.clone());
        self.on_files(move |files| files.delete(&subnet, &holder)).await
    }

    fn watch(&self) -> mpsc::Receiver<WatchEvent> {
        let (events, receiver) = mpsc::channel(WATCH_QUEUE);
        let Self { files, scanner, contact } = self.clone();
        tokio::spawn(watch::run(files, scanner, contact, events));
        receiver
    }
}

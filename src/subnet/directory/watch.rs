//! Watching the directory: inotify says when to look, and looking says what changed.
//!
//! What inotify reports in detail is not used: it may lose events, it does not see what happens on
//! other machines if the directory is shared, and files end by the clock. So the directory is read
//! after each hint, at each deadline, and every ten seconds anyway.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};

use super::files::Files;
use super::scan::{Scan, Scanner, Stamp, scan};
use super::wait_for;
use crate::subnet::backoff::Complaint;
use crate::subnet::lease::{Expiry, Lease, Subnet};
use crate::subnet::store::{Contact, StoreError, WatchEvent};

/// The directory is read at least this often.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Changes come in swarms: a file written by an editor is several.
const SETTLE: Duration = Duration::from_millis(20);

/// After a look that took long, so many times its time passes until the next one, though no more
/// than [`LOOK_EVERY`]: a large directory that somebody changes all the time keeps no core busy.
const READ_SHARE: u32 = 4;

/// Watches until the receiver of `events` is dropped.
pub(super) async fn run(
    files: Files,
    scanner: Arc<Mutex<Scanner>>,
    contact: Arc<Contact>,
    events: mpsc::Sender<WatchEvent>,
) {
    let closed = events.clone();
    tokio::select! {
        () = closed.closed() => {}
        () = watch(files, scanner, contact, events) => {}
    }
}

async fn watch(
    files: Files,
    scanner: Arc<Mutex<Scanner>>,
    contact: Arc<Contact>,
    events: mpsc::Sender<WatchEvent>,
) {
    let mut hints = Hints::new(&files);
    let mut complaint = Complaint::default();
    let mut table: Option<BTreeMap<Subnet, Lease>> = None;
    let mut config: Option<Stamp> = None;
    loop {
        hints.attach();
        let (shared, path) = (scanner.clone(), files.config());
        let look = move || (scan(&shared), Stamp::of_file(&path));
        let started = Instant::now();
        let Some((result, stamp)) = wait_for(look).await else { return };
        let took = started.elapsed();
        contact.note(&result);
        let written = std::mem::replace(&mut config, stamp) != stamp && table.is_some();
        if written && events.send(WatchEvent::Config).await.is_err() {
            return;
        }
        let mut pause = LOOK_EVERY;
        match result {
            Ok(scan) => {
                if complaint.clear() {
                    tracing::info!("{}: watching leases again", files.describe());
                }
                let now = SystemTime::now();
                let before = table.take();
                let (next, expired) = merge(scan, before.as_ref(), now);
                for event in changes(before.as_ref(), &next) {
                    if events.send(event).await.is_err() {
                        return;
                    }
                }
                pause =
                    next.values().filter_map(|l| left(l.expiry, now)).fold(pause, Duration::min);
                table = Some(next);
                if !expired.is_empty() {
                    reap(&files, expired).await;
                }
            }
            Err(error) => complain(&mut complaint, &error),
        }
        if timeout(pause, hints.next()).await.is_ok() {
            sleep((took * READ_SHARE).clamp(SETTLE, LOOK_EVERY)).await;
        }
    }
}

/// The leases in force, and the expired ones that are still there.
///
/// A lease whose file cannot be read any more stays in force as it was, until its own end.
fn merge(
    scan: Scan,
    before: Option<&BTreeMap<Subnet, Lease>>,
    now: SystemTime,
) -> (BTreeMap<Subnet, Lease>, Vec<Lease>) {
    let kept = scan.unreadable.iter().filter_map(|subnet| before?.get(subnet).cloned());
    let kept: Vec<Lease> = kept.filter(|lease| !lease.expiry.is_past(now)).collect();
    let (expired, current): (Vec<Lease>, Vec<Lease>) =
        scan.leases.into_iter().partition(|lease| lease.expiry.is_past(now));
    let table = current.into_iter().chain(kept).map(|lease| (lease.subnet, lease)).collect();
    (table, expired)
}

fn changes(
    before: Option<&BTreeMap<Subnet, Lease>>,
    next: &BTreeMap<Subnet, Lease>,
) -> Vec<WatchEvent> {
    let Some(before) = before else {
        return vec![WatchEvent::Snapshot(next.values().cloned().collect())];
    };
    let gone = before.keys().filter(|subnet| !next.contains_key(subnet));
    let put = next.values().filter(|lease| before.get(&lease.subnet) != Some(lease));
    gone.copied().map(WatchEvent::Removed).chain(put.cloned().map(WatchEvent::Put)).collect()
}

fn left(expiry: Expiry, now: SystemTime) -> Option<Duration> {
    match expiry {
        Expiry::At(end) => Some(end.duration_since(now).unwrap_or_default()),
        Expiry::Permanent | Expiry::Unknown => None,
    }
}

/// Anybody may clear away what has expired; nobody needs to.
async fn reap(files: &Files, expired: Vec<Lease>) {
    let files = files.clone();
    if let Some(Err(error)) = wait_for(move || files.reap(&expired)).await {
        tracing::debug!("expired leases stay where they are: {error}");
    }
}

fn complain(complaint: &mut Complaint, error: &StoreError) {
    let reason = error.to_string();
    if let Some(withheld) = complaint.due(&reason, Instant::now()) {
        tracing::warn!(
            "cannot look for leases, known routes stay: {reason}; trying again{withheld}"
        );
    }
}

/// Tells when it is worth to look.
struct Hints {
    watcher: Option<RecommendedWatcher>,
    watched: [Watched; 2],
    hint: Arc<Notify>,
}

/// A directory, and which one it was when it was last attached to.
struct Watched {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl Hints {
    fn new(files: &Files) -> Self {
        let hint = Arc::new(Notify::new());
        let teller = hint.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.map_or(true, |event| is_telling(&event)) {
                teller.notify_one();
            }
        });
        let watcher = watcher
            .inspect_err(|e| {
                tracing::warn!(
                    "{}: no inotify ({e}): looking every {LOOK_EVERY:?}",
                    files.describe()
                );
            })
            .ok();
        let watched =
            [files.root().to_owned(), files.subnets()].map(|path| Watched { path, identity: None });
        Self { watcher, watched, hint }
    }

    async fn next(&self) {
        self.hint.notified().await;
    }

    /// Attaches to the directories, anew to those that were deleted and made again.
    fn attach(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        for Watched { path, identity } in &mut self.watched {
            let found = identify(path);
            if *identity == found {
                continue;
            }
            // What was attached to is gone; that it is no longer known is no error.
            let _ = watcher.unwatch(path);
            *identity = match watcher.watch(path, RecursiveMode::NonRecursive) {
                // It may have been replaced just now: then try again next time.
                Ok(()) if identify(path) == found => found,
                Ok(()) => None,
                Err(error) => {
                    tracing::debug!("cannot watch {}: {error}", path.display());
                    None
                }
            };
        }
    }
}

fn identify(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Our own reading, locking and unfinished files are nothing to look at.
fn is_telling(event: &notify::Event) -> bool {
    let reading = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        EventKind::Access(_) => true,
        _ => false,
    };
    let hidden = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
    };
    !reading && (event.paths.is_empty() || !event.paths.iter().all(hidden))
}

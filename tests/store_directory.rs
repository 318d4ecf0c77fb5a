//! What happens to a store in a host's life, done to a real directory: by hand, by the clock, by
//! other daemons, and by who means no good.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flanneld::subnet::directory::DirectoryStore;
use flanneld::subnet::keeper::{Timing, Update};
use flanneld::subnet::lease::{Expiry, Lease};
use flanneld::subnet::store::{LEASE_TTL, StoreError, SubnetStore, WatchEvent};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use support::events::{PATIENCE, attrs, end, next, snapshot, subnet, until};
use support::keeping::{Host, TIMING};
use support::lab::{self, Lab};
use support::leases::lease_value;
use support::root_or_skip;
use support::traffic::{ping, tcp_transfer};

const CONFIG: &str = r#"{"Network":"10.5.0.0/16"}"#;

fn directory() -> (tempfile::TempDir, DirectoryStore) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config"), CONFIG).unwrap();
    let store = DirectoryStore::open(dir.path()).unwrap();
    (dir, store)
}

fn lease_file(dir: &Path, name: &str) -> std::path::PathBuf {
    dir.join("subnets").join(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_daemons_race_for_each_subnet() {
    let (dir, _) = directory();
    let daemons: Vec<_> =
        (0..8).map(|_| Arc::new(DirectoryStore::open(dir.path()).unwrap())).collect();
    for round in 1..=20 {
        let name = subnet(&format!("10.5.{round}.0-24"));
        let tasks: Vec<_> = daemons
            .iter()
            .enumerate()
            .map(|(i, store)| {
                let store = store.clone();
                let attrs = attrs(&format!("10.4.7.{i}"));
                tokio::spawn(async move { store.create(&name, &attrs, LEASE_TTL).await })
            })
            .collect();
        let mut won = 0;
        for task in tasks {
            match task.await.unwrap() {
                Ok(_) => won += 1,
                Err(StoreError::Taken { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(won, 1, "round {round}");
    }
    let left: Vec<_> = fs::read_dir(dir.path().join("subnets")).unwrap().collect();
    assert_eq!(left.len(), 20, "nothing unfinished is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_by_hand_are_seen() {
    let (dir, store) = directory();
    let mut watch = store.watch();
    assert_eq!(snapshot(&mut watch).await, Vec::<String>::new());
    let file = lease_file(dir.path(), "10.5.7.0-24");
    // As an editor does: an unfinished neighbour, then the whole over the old one.
    let swap = lease_file(dir.path(), ".10.5.7.0-24.swp");
    fs::write(&swap, "garbage").unwrap();
    fs::write(lease_file(dir.path(), "10.5.7.0-24~"), "garbage").unwrap();
    fs::write(&file, "{\n  \"PublicIP\": \"10.4.7.27\"\n}\n").unwrap();
    let event = next(&mut watch).await;
    let by_hand = Lease {
        subnet: subnet("10.5.7.0-24"),
        attrs: attrs("10.4.7.27"),
        expiry: Expiry::Permanent,
    };
    assert_eq!(event, WatchEvent::Put(by_hand.clone()));
    fs::rename(&swap, &file).unwrap();
    fs::write(&file, "{\"PublicIP\":\"10.4.7.28\"}").unwrap();
    let event = next(&mut watch).await;
    assert_eq!(event, WatchEvent::Put(Lease { attrs: attrs("10.4.7.28"), ..by_hand }));
    fs::remove_file(&file).unwrap();
    assert_eq!(next(&mut watch).await, WatchEvent::Removed(subnet("10.5.7.0-24")));
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_leases_are_cleared_away() {
    let (dir, store) = directory();
    let file = lease_file(dir.path(), "10.5.7.0-24");
    fs::write(&file, "{\"PublicIP\":\"10.4.7.27\"}\nexpires=2020-01-01T00:00:00Z\n").unwrap();
    assert_eq!(store.list().await.unwrap(), []);
    let renewed = store.renew(&subnet("10.5.7.0-24"), &attrs("10.4.7.27"), LEASE_TTL).await;
    assert!(matches!(renewed, Err(StoreError::Lost { .. })), "{renewed:?}");
    let mut watch = store.watch();
    assert_eq!(snapshot(&mut watch).await, Vec::<String>::new());
    let deadline = Instant::now() + PATIENCE;
    while file.exists() {
        assert!(Instant::now() < deadline, "{} is not cleared away", file.display());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Its place is free at once, cleared away or not.
    fs::write(&file, "{\"PublicIP\":\"10.4.7.27\"}\nexpires=2020-01-01T00:00:00Z\n").unwrap();
    store.create(&subnet("10.5.7.0-24"), &attrs("10.4.7.28"), LEASE_TTL).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_by_hand_is_kept() {
    let (dir, store) = directory();
    let file = lease_file(dir.path(), "10.5.21.0-24");
    fs::write(&file, "{\"PublicIP\":\"10.4.7.21\"}").unwrap();
    let host = Host::start(Arc::new(store), "10.4.7.21", TIMING).await;
    assert_eq!((host.name(), host.lease.expiry), ("10.5.21.0-24".into(), Expiry::Permanent));
}

#[tokio::test(flavor = "multi_thread")]
async fn our_lease_is_kept_and_won_back() {
    let (dir, store) = directory();
    let short = Timing { ttl: Duration::from_secs(4), margin: Duration::from_secs(60) };
    let mut host = Host::start(Arc::new(store), "10.4.7.21", short).await;
    let first = end(host.ours().await.expiry);
    let second = end(host.ours().await.expiry);
    assert!(second > first, "renewed");
    fs::remove_file(lease_file(dir.path(), &host.name())).unwrap();
    host.event(|e| matches!(e, WatchEvent::Removed(_))).await;
    host.ours().await;
    fs::write(lease_file(dir.path(), &host.name()), "{\"PublicIP\":\"10.4.7.66\"}").unwrap();
    until(&mut host.updates, |update| matches!(update, Update::Moved(_)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_and_made_again_is_found() {
    let (dir, store) = directory();
    let mut host = Host::start(Arc::new(store), "10.4.7.21", TIMING).await;
    host.ours().await;
    for _ in 0..3 {
        fs::remove_dir_all(dir.path().join("subnets")).unwrap();
        host.event(|e| matches!(e, WatchEvent::Removed(_))).await;
        host.ours().await;
    }
    fs::write(lease_file(dir.path(), "10.5.200.0-24"), "{\"PublicIP\":\"10.4.7.22\"}").unwrap();
    host.event(|e| matches!(e, WatchEvent::Put(l) if l.attrs == attrs("10.4.7.22"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn that_is_away_as_a_whole_is_silence() {
    let (dir, store) = directory();
    fs::write(lease_file(dir.path(), "10.5.200.0-24"), "{\"PublicIP\":\"10.4.7.22\"}").unwrap();
    let mut watch = store.watch();
    assert_eq!(snapshot(&mut watch).await, ["10.5.200.0-24"]);
    let away = dir.path().with_extension("away");
    fs::rename(dir.path(), &away).unwrap();
    let error = store.create(&subnet("10.5.1.0-24"), &attrs("10.4.7.21"), LEASE_TTL).await;
    assert!(matches!(error, Err(StoreError::Unreachable { .. })), "{error:?}");
    assert!(!dir.path().exists(), "nothing is made where something should be mounted");
    let error = store.config().await;
    assert!(matches!(error, Err(StoreError::Unreachable { .. })), "{error:?}");
    let quiet = tokio::time::timeout(Duration::from_secs(1), watch.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    fs::rename(&away, dir.path()).unwrap();
    fs::write(lease_file(dir.path(), "10.5.201.0-24"), "{\"PublicIP\":\"10.4.7.23\"}").unwrap();
    let event = next(&mut watch).await;
    assert!(
        matches!(&event, WatchEvent::Put(l) if l.subnet == subnet("10.5.201.0-24")),
        "{event:?}"
    );
}

/// A share that is unmounted while it is read: what was not read by then is not deleted.
#[tokio::test(flavor = "multi_thread")]
async fn moved_away_while_it_is_read_is_silence() {
    const LEASES: usize = 1_000;
    let parent = tempfile::tempdir().unwrap();
    let [dir, elsewhere] = ["store", "elsewhere"].map(|name| parent.path().join(name));
    fs::create_dir_all(dir.join("subnets")).unwrap();
    fs::write(dir.join("config"), CONFIG).unwrap();
    for number in 0..LEASES {
        let name = format!("10.5.{}.{}-26", number / 4, number % 4 * 64);
        fs::write(lease_file(&dir, &name), r#"{"PublicIP":"10.4.7.9"}"#).unwrap();
    }
    let store = Arc::new(DirectoryStore::open(&dir).unwrap());
    let mut failed = 0;
    for round in 0..100 {
        let listing = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.list().await }
        });
        std::thread::sleep(Duration::from_micros(100 * round));
        fs::rename(&dir, &elsewhere).unwrap();
        match listing.await.unwrap() {
            Ok(leases) => assert_eq!(leases.len(), LEASES, "round {round}"),
            Err(error) => {
                assert!(error.to_string().contains("does not serve"), "{error}");
                failed += 1;
            }
        }
        fs::rename(&elsewhere, &dir).unwrap();
    }
    assert!(failed > 0, "never at the wrong moment");
}

/// What is logged, as text.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn lines(&self, text: &str) -> Vec<String> {
        let log = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        log.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }

    async fn wait(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.lines(text).is_empty() {
            assert!(Instant::now() < deadline, "nobody says {text:?}: {:#?}", self.lines(""));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// More files than are read: what is known stays, and is renewed; who comes waits. All of it, and
/// what to do, is said in one line each.
///
/// All on one thread, whose log is caught.
#[tokio::test]
async fn too_many_files_are_silence() {
    const MAX_FILES: usize = 100_000;
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
    let _caught = tracing::subscriber::set_default(subscriber.finish());

    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::write(dir.path().join("config"), CONFIG).unwrap();
    let store = DirectoryStore::open(dir.path()).unwrap();
    let (ours, us) = (subnet("10.5.200.0-24"), attrs("10.4.7.22"));
    store.create(&ours, &us, LEASE_TTL).await.unwrap();
    let mut watch = store.watch();
    assert_eq!(snapshot(&mut watch).await, ["10.5.200.0-24"]);
    // Made aside, so that they come at once: one too many, with our lease.
    let full = dir.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("0~"), "").unwrap();
    let subnets = dir.path().join("subnets");
    for number in 1..MAX_FILES {
        fs::hard_link(full.join("0~"), full.join(format!("{number}~"))).unwrap();
    }
    fs::hard_link(lease_file(dir.path(), "10.5.200.0-24"), full.join("10.5.200.0-24")).unwrap();
    renameat_with(CWD, &full, CWD, &subnets, RenameFlags::EXCHANGE).unwrap();

    let reason = format!(
        "directory {} does not serve: more than {MAX_FILES} files in {}: remove what does not belong there",
        dir.path().display(),
        subnets.display()
    );
    log.wait(&reason).await;
    assert_eq!(store.list().await.unwrap_err().to_string(), reason);
    store.renew(&ours, &us, LEASE_TTL).await.unwrap();
    let newcomer = tokio::spawn(Host::start(Arc::new(store), "10.4.7.21", TIMING));
    log.wait(&format!("waiting for a lease: {reason}; trying again")).await;
    for number in 0..10 {
        fs::remove_file(lease_file(dir.path(), &format!("{number}~"))).unwrap();
    }
    let newcomer = newcomer.await.unwrap();
    // Nothing was taken for removed meanwhile.
    let mut news = Vec::new();
    while news.last() != Some(&newcomer.lease.subnet) {
        match next(&mut watch).await {
            WatchEvent::Put(lease) => news.push(lease.subnet),
            event => panic!("{event:?}"),
        }
    }
    let told = log.lines("cannot look for leases, known routes stay");
    assert!(told.len() == 1 && told[0].contains(&reason), "{told:?}");
    assert_eq!(log.lines("watching leases again").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn links_pipes_and_huge_files_are_refused() {
    let (dir, store) = directory();
    let target = dir.path().join("target");
    let valid = "{\"PublicIP\":\"10.4.7.66\"}";
    fs::write(&target, valid).unwrap();
    std::os::unix::fs::symlink(&target, lease_file(dir.path(), "10.5.1.0-24")).unwrap();
    let pipe = lease_file(dir.path(), "10.5.2.0-24");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let huge = format!("{valid}{}", " ".repeat(70_000));
    fs::write(lease_file(dir.path(), "10.5.3.0-24"), huge).unwrap();
    fs::create_dir(lease_file(dir.path(), "10.5.4.0-24")).unwrap();
    assert_eq!(store.list().await.unwrap(), []);
    for i in 1..=4 {
        let name = subnet(&format!("10.5.{i}.0-24"));
        let taken = store.create(&name, &attrs("10.4.7.21"), LEASE_TTL).await;
        assert!(matches!(taken, Err(StoreError::Taken { .. })), "{taken:?}");
        let lost = store.renew(&name, &attrs("10.4.7.66"), LEASE_TTL).await;
        assert!(lost.is_err(), "{lost:?}");
        store.delete(&name, &attrs("10.4.7.66")).await.unwrap();
    }
    assert_eq!(fs::read_to_string(&target).unwrap(), valid);
    fs::remove_file(dir.path().join("config")).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", dir.path().join("config")).unwrap();
    let error = store.config().await.unwrap_err().to_string();
    assert!(error.contains("symbolic link"), "{error}");
}

/// Nothing that is no file is opened, nor written to, for the sake of the lock.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_no_file_is_refused() {
    let (dir, store) = directory();
    let [lock, elsewhere] = [".lock", "elsewhere"].map(|name| dir.path().join(name));
    let (subnet, holder) = (subnet("10.5.1.0-24"), attrs("10.4.7.21"));
    let create = || store.create(&subnet, &holder, LEASE_TTL);
    std::os::unix::fs::symlink(&elsewhere, &lock).unwrap();
    let error = create().await.unwrap_err().to_string();
    assert!(error.contains(".lock: it is a symbolic link"), "{error}");
    assert!(!elsewhere.exists());
    fs::remove_file(&lock).unwrap();
    assert!(Command::new("mkfifo").arg(&lock).status().unwrap().success());
    let error = create().await.unwrap_err().to_string();
    assert!(error.contains(".lock: it is not a regular file"), "{error}");
    fs::remove_file(&lock).unwrap();
    create().await.unwrap();
}

/// A lease that nobody may look at, or not now, is not gone: an owner without `CAP_DAC_OVERRIDE`,
/// which the daemon gives up, may list such a directory and look at nothing in it.
#[test]
fn leases_that_cannot_be_looked_at_stay_in_force() {
    if !root_or_skip("leases_that_cannot_be_looked_at_stay_in_force") {
        return;
    }
    let mut lab = Lab::new(2);
    let store = lab.store_dir(lab::CONFIG);
    let daemons = lab.start_overlay(&store, |_| Vec::new());
    lab.add_pods();
    let [a, b] = [0, 1].map(|host| lab.host(host).pod(0).end());
    let set_mode = |mode| {
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(store.join("subnets"), mode).unwrap();
    };

    set_mode(0o600);
    // Each new file is a hint to look, and told by that look.
    for host in [198, 199] {
        let name = format!("172.7.{host}.0-24");
        let value = lease_value(Ipv4Addr::new(10, 4, 7, host));
        fs::write(lease_file(&store, &name), value).unwrap();
        for daemon in &daemons {
            let line = format!("skipping {name}: it cannot be used: Permission denied");
            daemon.wait_log(&line, PATIENCE);
        }
    }
    ping(a.netns, b.address, 2, "").unwrap();
    // Our own lease comes so near to its end that it is to be renewed.
    let own = lease_file(&store, &lab.host(0).lease());
    let soon =
        Command::new("date").args(["-ud", "10 minutes", "+expires=%FT%TZ"]).output().unwrap();
    let soon = String::from_utf8(soon.stdout).unwrap();
    let ends_soon = format!("{}\n{soon}", lease_value(lab.host(0).address));
    fs::write(&own, &ends_soon).unwrap();

    set_mode(0o755);
    for daemon in &daemons {
        daemon.wait_log("172.7.199.0/24 at 10.4.7.199 is up", PATIENCE);
    }
    let deadline = Instant::now() + PATIENCE;
    while fs::read_to_string(&own).unwrap() == ends_soon {
        assert!(Instant::now() < deadline, "{} is not renewed", own.display());
        std::thread::sleep(Duration::from_millis(10));
    }
    tcp_transfer(a, b, 1_000_000);
    for daemon in daemons {
        let ended = daemon.stop();
        assert_eq!(ended.status.code(), Some(0), "{}", ended.log);
        assert!(!ended.log.contains("is gone"), "routes were dropped\n{}", ended.log);
    }
}

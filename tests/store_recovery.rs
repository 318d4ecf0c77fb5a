//! What happens to a store in a cluster's life, done to a real etcd: routes stay, events are not
//! lost, and our own lease is kept or won back.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::PutOptions;
use flanneld::subnet::etcd::{EtcdConfig, EtcdStore, TlsFiles};
use flanneld::subnet::keeper::acquire::{acquire_with_retry, wait_for_config};
use flanneld::subnet::keeper::{Timing, Update};
use flanneld::subnet::lease::{Expiry, Lease};
use flanneld::subnet::store::{ContactNow, LEASE_TTL, StoreError, SubnetStore, WatchEvent};
use support::etcd::{DeadEndpoint, Etcd, PREFIX, Security, USER, etcd_or_skip, make_certificates};
use support::events::{PATIENCE, attrs, end, holders, names, next, snapshot, subnet, until};
use support::keeping::{Host, TIMING};

const CONFIG: &str = r#"{"Network":"10.5.0.0/16"}"#;

/// Starts an etcd with a network config, or leaves the test, loudly.
macro_rules! etcd_or_return {
    ($test:literal) => {{
        if !etcd_or_skip($test) {
            return;
        }
        let etcd = Etcd::start(Security::Plain).await;
        etcd.client().await.put(format!("{PREFIX}/config"), CONFIG, None).await.unwrap();
        etcd
    }};
}

async fn put(etcd: &Etcd, name: &str, value: &str) {
    let key = format!("{PREFIX}/subnets/{name}");
    etcd.client().await.put(key, value, None).await.unwrap();
}

async fn remove(etcd: &Etcd, name: &str) {
    let key = format!("{PREFIX}/subnets/{name}");
    etcd.client().await.delete(key, None).await.unwrap();
}

fn is_snapshot_of(event: &WatchEvent, wanted: &[&str]) -> bool {
    matches!(event, WatchEvent::Snapshot(leases) if names(leases) == wanted)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_not_up_yet_is_waited_for() {
    if !etcd_or_skip("a_store_that_is_not_up_yet_is_waited_for") {
        return;
    }
    let mut etcd = Etcd::prepare(Security::Plain);
    let store = Arc::new(etcd.store().await);
    let error = store.config().await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&etcd.endpoint()), "{error}");
    assert!(error.to_string().contains("refused"), "the reason is told: {error}");

    let mut watch = store.watch();
    let waiting = {
        let store = store.clone();
        tokio::spawn(async move {
            let mut rng = rand::make_rng();
            wait_for_config(&*store, &mut rng).await.unwrap();
            let us = attrs("10.4.7.21");
            acquire_with_retry(&*store, &us, None, LEASE_TTL, &mut rng).await.unwrap().1
        })
    };
    etcd.start_again().await;
    etcd.client().await.put(format!("{PREFIX}/config"), "not yet valid", None).await.unwrap();
    etcd.client().await.put(format!("{PREFIX}/config"), CONFIG, None).await.unwrap();
    let lease = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    let won = |l: &Lease| l.subnet == lease.subnet;
    until(&mut watch, |event| match event {
        WatchEvent::Put(l) if won(l) => Some(()),
        WatchEvent::Snapshot(leases) if leases.iter().any(won) => Some(()),
        _ => None,
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_is_survived_and_nothing_that_happened_meanwhile_is_lost() {
    let mut etcd = etcd_or_return!("a_restart_is_survived");
    let mut host = Host::start(Arc::new(etcd.store().await), "10.4.7.21", TIMING).await;
    host.ours().await;
    put(&etcd, "10.5.200.0-24", r#"{"PublicIP":"10.4.7.22"}"#).await;
    host.event(|e| matches!(e, WatchEvent::Put(l) if l.subnet == subnet("10.5.200.0-24"))).await;

    let config = etcd.config();
    etcd.kill();
    // Another daemon changes things before ours is back: it comes back with a snapshot.
    etcd.start_again().await;
    let other = EtcdStore::connect(config).await.unwrap();
    other.delete(&subnet("10.5.200.0-24"), &attrs("10.4.7.22")).await.unwrap();
    other.create(&subnet("10.5.201.0-24"), &attrs("10.4.7.23"), LEASE_TTL).await.unwrap();
    let own = host.name();
    let mut table = vec![own.clone(), "10.5.200.0-24".to_owned()];
    let mut wanted = vec![own, "10.5.201.0-24".to_owned()];
    wanted.sort();
    until(&mut host.updates, |update| {
        let event = match update {
            Update::Store(event) => event,
            // Our own lease is read anew, too.
            Update::Held(_) => return None,
            Update::Moved(_) | Update::Lost => panic!("{update:?}"),
        };
        match event {
            WatchEvent::Snapshot(leases) => table = names(leases),
            WatchEvent::Put(lease) => table.push(lease.subnet.to_string()),
            WatchEvent::Removed(gone) => table.retain(|name| *name != gone.to_string()),
            WatchEvent::Config => {}
        }
        table.sort();
        table.dedup();
        (table == wanted).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_silent() {
    let mut etcd = etcd_or_return!("an_outage_is_silent");
    let store = etcd.store().await;
    let mut watch = store.watch();
    assert_eq!(next(&mut watch).await, WatchEvent::Snapshot(vec![]));
    let well = ContactNow { reached: true, trouble: None };
    assert_eq!(store.contact().now(), well);
    etcd.kill();
    let quiet = tokio::time::timeout(Duration::from_secs(3), watch.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    // But whoever asks is told.
    let contact = store.contact().now();
    assert!(contact.reached && contact.trouble.is_some(), "{contact:?}");
    etcd.start_again().await;
    assert_eq!(next(&mut watch).await, WatchEvent::Snapshot(vec![]));
    assert_eq!(store.contact().now(), well);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_store_gets_our_lease_back_and_we_its_new_peers() {
    let mut etcd = etcd_or_return!("an_emptied_store");
    // Its revisions are far ahead of those that it will have anew.
    for _ in 0..50 {
        put(&etcd, "10.5.200.0-24", r#"{"PublicIP":"10.4.7.22"}"#).await;
    }
    let mut host = Host::start(Arc::new(etcd.store().await), "10.4.7.21", TIMING).await;
    host.ours().await;
    etcd.kill();
    etcd.empty();
    etcd.start_again().await;
    host.event(|e| is_snapshot_of(e, &[])).await;
    host.ours().await;
    put(&etcd, "10.5.201.0-24", r#"{"PublicIP":"10.4.7.23"}"#).await;
    host.event(|e| matches!(e, WatchEvent::Put(l) if l.subnet == subnet("10.5.201.0-24"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_restored_from_a_backup_is_believed() {
    let mut etcd = etcd_or_return!("a_store_restored_from_a_backup");
    put(&etcd, "10.5.200.0-24", r#"{"PublicIP":"10.4.7.22"}"#).await;
    etcd.kill();
    let copy = etcd.back_up();
    etcd.start_again().await;
    let mut watch = etcd.store().await.watch();
    assert_eq!(snapshot(&mut watch).await, ["10.5.200.0-24"]);
    for i in 1..50 {
        put(&etcd, &format!("10.5.{i}.0-24"), r#"{"PublicIP":"10.4.7.23"}"#).await;
        next(&mut watch).await;
    }
    etcd.kill();
    etcd.restore(&copy);
    etcd.start_again().await;
    assert_eq!(snapshot(&mut watch).await, ["10.5.200.0-24"]);
    put(&etcd, "10.5.9.0-24", r#"{"PublicIP":"10.4.7.23"}"#).await;
    assert!(matches!(next(&mut watch).await, WatchEvent::Put(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn history_that_was_compacted_while_we_were_away_is_made_up_for() {
    let mut etcd = etcd_or_return!("history_that_was_compacted");
    put(&etcd, "10.5.200.0-24", r#"{"PublicIP":"10.4.7.22"}"#).await;
    let store = etcd.store().await;
    let mut watch = store.watch();
    assert_eq!(snapshot(&mut watch).await, ["10.5.200.0-24"]);
    etcd.kill();
    etcd.start_again().await;
    remove(&etcd, "10.5.200.0-24").await;
    put(&etcd, "10.5.201.0-24", r#"{"PublicIP":"10.4.7.23"}"#).await;
    etcd.compact().await;
    let mut table = vec!["10.5.200.0-24".to_owned()];
    until(&mut watch, |event| {
        match event {
            WatchEvent::Snapshot(leases) => table = names(leases),
            WatchEvent::Put(lease) => table.push(lease.subnet.to_string()),
            WatchEvent::Removed(gone) => table.retain(|name| *name != gone.to_string()),
            WatchEvent::Config => {}
        }
        (table == ["10.5.201.0-24"]).then_some(())
    })
    .await;
    // And it goes on.
    put(&etcd, "10.5.202.0-24", r#"{"PublicIP":"10.4.7.24"}"#).await;
    let event = next(&mut watch).await;
    assert!(
        matches!(&event, WatchEvent::Put(l) if l.subnet == subnet("10.5.202.0-24")),
        "{event:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_hangs_is_left_for_another() {
    let hanging = etcd_or_return!("a_member_that_hangs");
    let other = Etcd::start(Security::Plain).await;
    put(&other, "10.5.201.0-24", r#"{"PublicIP":"10.4.7.23"}"#).await;
    put(&hanging, "10.5.200.0-24", r#"{"PublicIP":"10.4.7.22"}"#).await;
    let endpoints = vec![hanging.endpoint(), other.endpoint()];
    let store = EtcdStore::connect(EtcdConfig { endpoints, ..hanging.config() }).await.unwrap();
    // Which of the two comes first is left to chance: hang the one that was taken.
    let mut watch = store.watch();
    let (first, taken, left) = match &snapshot(&mut watch).await[0][..] {
        "10.5.200.0-24" => ("10.5.200.0-24", hanging, "10.5.201.0-24"),
        _ => ("10.5.201.0-24", other, "10.5.200.0-24"),
    };
    taken.freeze();
    assert_eq!(snapshot(&mut watch).await, [left], "after {first}");
    // A request answers without waiting for the hanging one.
    assert_eq!(names(&store.list().await.unwrap()), [left]);
    taken.thaw();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_endpoint_does_not_matter() {
    let etcd = etcd_or_return!("a_dead_endpoint");
    let dead = DeadEndpoint::new();
    for _ in 0..8 {
        let endpoints = vec![dead.url(), etcd.endpoint()];
        let store = EtcdStore::connect(EtcdConfig { endpoints, ..etcd.config() }).await.unwrap();
        assert_eq!(store.config().await.unwrap(), CONFIG);
        assert_eq!(snapshot(&mut store.watch()).await, Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn our_deleted_lease_is_won_back() {
    let etcd = etcd_or_return!("our_deleted_lease");
    let mut host = Host::start(Arc::new(etcd.store().await), "10.4.7.21", TIMING).await;
    host.ours().await;
    for _ in 0..3 {
        remove(&etcd, &host.name()).await;
        let own = host.lease.subnet;
        host.event(|e| *e == WatchEvent::Removed(own)).await;
        let lease = host.ours().await;
        assert!(end(lease.expiry) >= end(host.lease.expiry));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn our_lease_that_became_unreadable_is_put_right() {
    let etcd = etcd_or_return!("our_lease_that_became_unreadable");
    let mut host = Host::start(Arc::new(etcd.store().await), "10.4.7.21", TIMING).await;
    host.ours().await;
    put(&etcd, &host.name(), "nonsense").await;
    host.ours().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subnet_that_another_host_took_is_left_to_it() {
    let etcd = etcd_or_return!("a_subnet_that_another_host_took");
    let mut host = Host::start(Arc::new(etcd.store().await), "10.4.7.21", TIMING).await;
    host.ours().await;
    put(&etcd, &host.name(), &attrs("10.4.7.66").to_json()).await;
    let moved = until(&mut host.updates, |update| match update {
        Update::Moved(lease) => Some(lease.clone()),
        _ => None,
    })
    .await;
    assert_ne!(moved.subnet, host.lease.subnet);
    assert_eq!(moved.attrs, host.lease.attrs);
    let held = holders(&etcd.store().await.list().await.unwrap());
    assert!(held.contains(&(host.name(), "10.4.7.66".into())), "{held:?}");
    assert!(held.contains(&(moved.subnet.to_string(), "10.4.7.21".into())), "{held:?}");
    // The new one is kept like the old one.
    host.lease = moved;
    remove(&etcd, &host.name()).await;
    let own = host.lease.subnet;
    host.event(|e| *e == WatchEvent::Removed(own)).await;
    host.ours().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_renewed_in_time_and_others_short_lives_are_lengthened() {
    let etcd = etcd_or_return!("a_lease_is_renewed_in_time");
    let short = Timing { ttl: Duration::from_secs(4), margin: Duration::from_secs(3) };
    let mut host = Host::start(Arc::new(etcd.store().await), "10.4.7.21", short).await;
    for _ in 0..3 {
        let before = end(host.ours().await.expiry);
        let after = end(host.ours().await.expiry);
        assert!(after > before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_made_while_we_run_is_kept_and_one_undone_is_renewed() {
    let etcd = etcd_or_return!("a_reservation_made_while_we_run");
    let mut host = Host::start(Arc::new(etcd.store().await), "10.4.7.21", TIMING).await;
    host.ours().await;
    let value = host.lease.attrs.to_json();
    put(&etcd, &host.name(), &value).await;
    assert_eq!(host.ours().await.expiry, Expiry::Permanent);
    // A host that starts now keeps it as well.
    let store = Arc::new(etcd.store().await);
    let again = Host::start(store, "10.4.7.21", TIMING).await;
    assert_eq!((again.lease.subnet, again.lease.expiry), (host.lease.subnet, Expiry::Permanent));

    let mut client = etcd.client().await;
    let lease = client.lease_grant(600, None).await.unwrap().id();
    let key = format!("{PREFIX}/subnets/{}", host.name());
    client.put(key, value, Some(PutOptions::new().with_lease(lease))).await.unwrap();
    // The end that a stranger gave is asked for, and as it is within the margin it is renewed.
    let first = end(host.ours().await.expiry);
    let second = end(host.ours().await.expiry);
    assert!(second.duration_since(first).unwrap() > Duration::from_secs(80_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_ended_is_renewed() {
    let mut etcd = etcd_or_return!("a_login_that_ended");
    etcd.enable_auth().await;
    let store = etcd.store().await;
    let mut watch = store.watch();
    assert_eq!(snapshot(&mut watch).await, Vec::<String>::new());
    // Tokens live in etcd's memory.
    etcd.kill();
    etcd.start_again().await;
    store.create(&subnet("10.5.1.0-24"), &attrs("10.4.7.21"), LEASE_TTL).await.unwrap();
    until(&mut watch, |event| match event {
        WatchEvent::Put(_) => Some(()),
        WatchEvent::Snapshot(leases) => (leases.len() == 1).then_some(()),
        WatchEvent::Removed(_) | WatchEvent::Config => None,
    })
    .await;
}

/// Each try is granted a lease of a day before it is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_renewal_leaves_no_lease_behind() {
    let mut etcd = etcd_or_return!("a_refused_renewal_leaves_no_lease_behind");
    etcd.enable_auth().await;
    let store = etcd.store().await;
    let (own, us) = (subnet("10.5.1.0-24"), attrs("10.4.7.21"));
    store.create(&own, &us, LEASE_TTL).await.unwrap();
    etcd.make_read_only().await;
    let leases = async || etcd.client().await.leases().await.unwrap().leases().len();
    assert_eq!(leases().await, 1);
    for _ in 0..5 {
        let error = store.renew(&own, &us, LEASE_TTL).await.unwrap_err();
        assert!(matches!(error, StoreError::Refused { .. }), "{error:?}");
        // That a lease could be given back does not hide it.
        let trouble = store.contact().now().trouble.unwrap_or_default();
        assert!(trouble.contains("permission denied"), "{trouble}");
    }
    assert_eq!(leases().await, 1);
    assert_eq!(names(&store.list().await.unwrap()), ["10.5.1.0-24"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_login_is_said_without_the_password() {
    let mut etcd = etcd_or_return!("what_is_wrong_with_a_login");
    let wanted = |result: Result<String, StoreError>, words: &[&str]| {
        let error = result.unwrap_err();
        assert!(matches!(error, StoreError::Refused { .. }), "{error:?}");
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    };
    // A user where none is asked for is no trouble (as upstream).
    let mut config = etcd.config();
    (config.username, config.password) = (USER.0.into(), USER.1.into());
    let store = EtcdStore::connect(config.clone()).await.unwrap();
    assert_eq!(store.config().await.unwrap(), CONFIG);

    etcd.enable_auth().await;
    let wrong = EtcdConfig { password: "s3cret?".into(), ..config.clone() };
    let store = EtcdStore::connect(wrong).await.unwrap();
    wanted(store.config().await, &["--etcd-username", "--etcd-password"]);
    let nobody = EtcdConfig { username: String::new(), password: String::new(), ..config.clone() };
    let store = EtcdStore::connect(nobody).await.unwrap();
    wanted(store.config().await, &["--etcd-username", "--etcd-password"]);
    let elsewhere = EtcdConfig { prefix: "/elsewhere".into(), ..config.clone() };
    let store = EtcdStore::connect(elsewhere).await.unwrap();
    wanted(store.config().await, &["permission denied", "--etcd-prefix"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_tls_is_said() {
    if !etcd_or_skip("what_is_wrong_with_tls_is_said") {
        return;
    }
    let etcd = Etcd::start(Security::Mutual).await;
    // No client certificate; a stranger's authority; no authority but the system's.
    let stranger = tempfile::tempdir().unwrap();
    make_certificates(stranger.path());
    let right = etcd.config();
    let no_certificate = TlsFiles { ca: right.tls.ca.clone(), ..TlsFiles::default() };
    let wrong_ca = TlsFiles { ca: stranger.path().join("ca.pem"), ..right.tls.clone() };
    for (tls, word) in [(no_certificate, "--etcd-certfile"), (wrong_ca, "invalid peer certificate")]
    {
        let store = EtcdStore::connect(EtcdConfig { tls, ..right.clone() }).await.unwrap();
        let error = store.config().await.unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    // Plain text to a TLS port.
    let plain = right.endpoints[0].replace("https", "http");
    let config = EtcdConfig { endpoints: vec![plain], ..right.clone() };
    let store = EtcdStore::connect(config).await.unwrap();
    let start = Instant::now();
    let error = store.config().await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("https://"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(40));
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_certificates_serve_without_a_restart() {
    if !etcd_or_skip("renewed_certificates_serve_without_a_restart") {
        return;
    }
    let mut etcd = Etcd::start(Security::Mutual).await;
    let store = etcd.store().await;
    let mut watch = store.watch();
    assert_eq!(snapshot(&mut watch).await, Vec::<String>::new());
    etcd.kill();
    make_certificates(etcd.file("ca.pem").parent().unwrap());
    etcd.start_again().await;
    assert_eq!(snapshot(&mut watch).await, Vec::<String>::new());
    store.create(&subnet("10.5.1.0-24"), &attrs("10.4.7.21"), LEASE_TTL).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn more_leases_than_one_answer_holds_are_read_and_watched() {
    let etcd = etcd_or_return!("more_leases_than_one_answer_holds");
    // Ten values of a megabyte each exceed the library's limit for one answer.
    let huge = format!(r#"{{"PublicIP":"10.4.7.66","x":"{}"}}"#, "x".repeat(1_000_000));
    let mut watch = etcd.store().await.watch();
    assert_eq!(snapshot(&mut watch).await, Vec::<String>::new());
    for i in 1..=10 {
        put(&etcd, &format!("10.5.{i}.0-24"), &huge).await;
    }
    put(&etcd, "10.5.99.0-24", r#"{"PublicIP":"10.4.7.22"}"#).await;
    let store = etcd.store().await;
    assert_eq!(names(&store.list().await.unwrap()), ["10.5.99.0-24"]);
    assert_eq!(snapshot(&mut store.watch()).await, ["10.5.99.0-24"]);
    let event = next(&mut watch).await;
    assert!(
        matches!(&event, WatchEvent::Put(l) if l.subnet == subnet("10.5.99.0-24")),
        "{event:?}"
    );
}

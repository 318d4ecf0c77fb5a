//! The contract of [`SubnetStore`], over every store: a real etcd, plain, with TLS, with a client
//! certificate, with a password; and the directory.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use etcd_client::PutOptions;
use flanneld::config::NetworkConfig;
use flanneld::subnet::directory::DirectoryStore;
use flanneld::subnet::keeper::acquire::{AcquireError, acquire, acquire_with_retry};
use flanneld::subnet::lease::{Expiry, Lease, LeaseAttrs};
use flanneld::subnet::store::{LEASE_TTL, StoreError, SubnetStore, WatchEvent};
use rand::SeedableRng;
use rand::rngs::StdRng;
use support::etcd::{Etcd, PREFIX, Security, etcd_or_skip};
use support::events::{PATIENCE, attrs, end, holders, names, next, snapshot, subnet, until};
use tempfile::TempDir;

const CONFIG: &str = r#"{"Network":"10.5.0.0/16"}"#;

/// A store, and a way around it.
struct Fixture {
    store: Arc<dyn SubnetStore>,
    raw: Raw,
}

enum Raw {
    Etcd(Etcd),
    Directory(TempDir),
}

#[derive(Clone, Copy)]
enum Kind {
    Plain,
    Tls,
    ClientCertificate,
    Password,
    Directory,
}

impl Fixture {
    /// `None`, said loudly, if it cannot be had here.
    async fn new(kind: Kind, test: &str) -> Option<Self> {
        let security = match kind {
            Kind::Directory => {
                let dir = tempfile::tempdir().unwrap();
                let store = Arc::new(DirectoryStore::open(dir.path()).unwrap());
                return Some(Self { store, raw: Raw::Directory(dir) });
            }
            Kind::Plain | Kind::Password => Security::Plain,
            Kind::Tls => Security::Server,
            Kind::ClientCertificate => Security::Mutual,
        };
        if !etcd_or_skip(test) {
            return None;
        }
        let mut etcd = Etcd::start(security).await;
        if matches!(kind, Kind::Password) {
            etcd.enable_auth().await;
        }
        Some(Self { store: Arc::new(etcd.store().await), raw: Raw::Etcd(etcd) })
    }

    /// Writes a key below the prefix, without a time to live.
    async fn put(&self, key: &str, value: &str) {
        match &self.raw {
            Raw::Etcd(etcd) => {
                let key = format!("{PREFIX}/{key}");
                etcd.client().await.put(key, value, None).await.unwrap();
            }
            Raw::Directory(dir) => std::fs::write(dir.path().join(key), value).unwrap(),
        }
    }

    async fn get(&self, key: &str) -> Option<String> {
        match &self.raw {
            Raw::Etcd(etcd) => {
                let key = format!("{PREFIX}/{key}");
                let answer = etcd.client().await.get(key, None).await.unwrap();
                answer.kvs().first().map(|kv| kv.value_str().unwrap().to_owned())
            }
            Raw::Directory(dir) => std::fs::read_to_string(dir.path().join(key)).ok(),
        }
    }

    async fn remove(&self, key: &str) {
        match &self.raw {
            Raw::Etcd(etcd) => {
                etcd.client().await.delete(format!("{PREFIX}/{key}"), None).await.unwrap();
            }
            Raw::Directory(dir) => std::fs::remove_file(dir.path().join(key)).unwrap(),
        }
    }

    async fn lease(&self, name: &str, ip: &str) -> Expiry {
        self.store.create(&subnet(name), &attrs(ip), LEASE_TTL).await.unwrap()
    }
}

macro_rules! contract {
    ($($test:ident)*) => {
        contract!(@kind plain, Kind::Plain, $($test)*);
        contract!(@kind tls, Kind::Tls, $($test)*);
        contract!(@kind client_certificate, Kind::ClientCertificate, $($test)*);
        contract!(@kind password, Kind::Password, $($test)*);
        contract!(@kind directory, Kind::Directory, $($test)*);
    };
    (@kind $module:ident, $kind:expr, $($test:ident)*) => {
        mod $module {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let name = concat!(stringify!($module), "::", stringify!($test));
                if let Some(fixture) = Fixture::new($kind, name).await {
                    super::$test(&fixture).await;
                }
            })*
        }
    };
}

contract! {
    the_config_is_read_as_it_is_now
    what_is_created_is_listed
    keys_and_values_are_upstreams_byte_for_byte
    one_of_twenty_wins_a_race
    a_renewal_gives_a_fresh_life
    what_is_gone_or_anothers_is_not_renewed
    a_reservation_stays_one
    only_the_holder_deletes
    strays_cost_nobody_else_anything
    the_watch_reports_everything_from_a_snapshot_on
    the_watch_reports_what_ends_by_itself
    an_unreadable_value_leaves_the_lease_in_force
    a_thousand_leases_are_listed_quickly
    the_previous_subnet_is_won_again
    a_lease_of_our_address_is_found_again
    our_lease_that_does_not_fit_is_given_up
    a_race_lost_is_no_reason_to_give_up
    thirty_hosts_at_once_get_thirty_subnets
    when_nothing_is_free_it_is_said
}

async fn the_config_is_read_as_it_is_now(f: &Fixture) {
    let error = f.store.config().await.unwrap_err();
    assert!(matches!(error, StoreError::NoConfig { .. }), "{error}");
    assert!(error.to_string().contains("/config"), "{error}");
    f.put("config", CONFIG).await;
    assert_eq!(f.store.config().await.unwrap(), CONFIG);
    f.put("config", "{}").await;
    assert_eq!(f.store.config().await.unwrap(), "{}");
}

async fn what_is_created_is_listed(f: &Fixture) {
    assert_eq!(f.store.list().await.unwrap(), []);
    let before = SystemTime::now();
    let two = f.lease("10.5.2.0-24", "10.4.7.22").await;
    let one = f.lease("10.5.1.0-24&fd00:5:1::-64", "10.4.7.21").await;
    let day = end(one).duration_since(before).unwrap();
    assert!(
        day <= LEASE_TTL + Duration::from_secs(60) && day >= LEASE_TTL - Duration::from_secs(1)
    );
    let wanted =
        [("10.5.1.0-24&fd00:5:1::-64", "10.4.7.21", one), ("10.5.2.0-24", "10.4.7.22", two)]
            .map(|(name, ip, expiry)| Lease { subnet: subnet(name), attrs: attrs(ip), expiry });
    assert_eq!(f.store.list().await.unwrap(), wanted);

    let error = f.store.create(&subnet("10.5.2.0-24"), &attrs("10.4.7.23"), LEASE_TTL).await;
    assert!(matches!(error, Err(StoreError::Taken { .. })), "{error:?}");
    assert_eq!(f.store.list().await.unwrap(), wanted);
}

async fn keys_and_values_are_upstreams_byte_for_byte(f: &Fixture) {
    let vxlan = LeaseAttrs {
        backend_type: "vxlan".into(),
        backend_data: r#"{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}"#.into(),
        ..attrs("1.2.3.4")
    };
    let host_gw = LeaseAttrs { backend_type: "host-gw".into(), ..attrs("1.2.3.5") };
    let dual = LeaseAttrs { public_ipv6: Some("fd00::1".parse().unwrap()), ..attrs("1.2.3.6") };
    for (name, attrs, value) in [
        ("10.5.1.0-24", attrs("1.2.3.4"), r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#),
        (
            "10.5.2.0-24",
            vxlan,
            r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#,
        ),
        (
            "10.5.3.0-24",
            host_gw,
            r#"{"PublicIP":"1.2.3.5","PublicIPv6":null,"BackendType":"host-gw"}"#,
        ),
        ("10.12.13.0-24&fd00:12:13::-56", dual, r#"{"PublicIP":"1.2.3.6","PublicIPv6":"fd00::1"}"#),
    ] {
        f.store.create(&subnet(name), &attrs, LEASE_TTL).await.unwrap();
        let key = format!("subnets/{name}");
        let found = f.get(&key).await.unwrap();
        match &f.raw {
            Raw::Directory(_) => {
                let (json, rest) = found.split_once('\n').unwrap();
                assert_eq!(json, value);
                assert!(rest.starts_with("expires=2") && rest.ends_with("Z\n"), "{rest}");
            }
            Raw::Etcd(etcd) => {
                assert_eq!(found, value);
                let mut client = etcd.client().await;
                let answer = client.get(format!("{PREFIX}/{key}"), None).await.unwrap();
                let lease = answer.kvs()[0].lease();
                let life = client.lease_time_to_live(lease, None).await.unwrap();
                assert_eq!(life.granted_ttl(), 86_400);
            }
        }
    }
}

async fn one_of_twenty_wins_a_race(f: &Fixture) {
    let tasks: Vec<_> = (0..20)
        .map(|i| {
            let store = f.store.clone();
            tokio::spawn(async move {
                let ip = format!("10.4.7.{i}");
                store.create(&subnet("10.5.1.0-24"), &attrs(&ip), LEASE_TTL).await.map(|_| ip)
            })
        })
        .collect();
    let mut winners = Vec::new();
    for task in tasks {
        match task.await.unwrap() {
            Ok(ip) => winners.push(ip),
            Err(StoreError::Taken { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(winners.len(), 1);
    let held = [("10.5.1.0-24".to_owned(), winners.remove(0))];
    assert_eq!(holders(&f.store.list().await.unwrap()), held);
    if let Raw::Etcd(etcd) = &f.raw {
        // The nineteen leases that no key needs were given back.
        assert_eq!(etcd.client().await.leases().await.unwrap().leases().len(), 1);
    }
}

async fn a_renewal_gives_a_fresh_life(f: &Fixture) {
    let own = (subnet("10.5.1.0-24"), attrs("10.4.7.21"));
    let first = f.store.create(&own.0, &own.1, Duration::from_secs(600)).await.unwrap();
    let second = f.store.renew(&own.0, &own.1, LEASE_TTL).await.unwrap();
    let gain = end(second).duration_since(end(first)).unwrap();
    assert!(gain > Duration::from_secs(80_000), "{gain:?}");
    assert_eq!(f.store.list().await.unwrap()[0].expiry, second);
    // What is published may change with it.
    let changed = LeaseAttrs { backend_type: "host-gw".into(), ..own.1.clone() };
    f.store.renew(&own.0, &changed, LEASE_TTL).await.unwrap();
    assert_eq!(f.store.list().await.unwrap()[0].attrs, changed);
}

async fn what_is_gone_or_anothers_is_not_renewed(f: &Fixture) {
    let (name, ours, theirs) = (subnet("10.5.1.0-24"), attrs("10.4.7.21"), attrs("10.4.7.22"));
    let lost = f.store.renew(&name, &ours, LEASE_TTL).await;
    assert!(matches!(lost, Err(StoreError::Lost { .. })), "{lost:?}");
    assert_eq!(f.store.list().await.unwrap(), []);

    f.store.create(&name, &theirs, LEASE_TTL).await.unwrap();
    let lost = f.store.renew(&name, &ours, LEASE_TTL).await.unwrap_err();
    assert!(matches!(lost, StoreError::Lost { .. }), "{lost}");
    assert!(lost.to_string().contains("10.4.7.22"), "{lost}");
    assert_eq!(f.store.list().await.unwrap()[0].attrs, theirs);
}

async fn a_reservation_stays_one(f: &Fixture) {
    let (name, ours) = (subnet("10.5.1.0-24"), attrs("10.4.7.21"));
    let value = r#"{"PublicIP":"10.4.7.21","PublicIPv6":null}"#;
    f.put("subnets/10.5.1.0-24", value).await;
    assert_eq!(f.store.list().await.unwrap()[0].expiry, Expiry::Permanent);
    assert_eq!(f.store.renew(&name, &ours, LEASE_TTL).await.unwrap(), Expiry::Permanent);
    assert_eq!(f.get("subnets/10.5.1.0-24").await.unwrap(), value);

    let changed = LeaseAttrs { backend_type: "host-gw".into(), ..ours };
    assert_eq!(f.store.renew(&name, &changed, LEASE_TTL).await.unwrap(), Expiry::Permanent);
    let found = f.store.list().await.unwrap().remove(0);
    assert_eq!((found.attrs, found.expiry), (changed, Expiry::Permanent));
}

async fn only_the_holder_deletes(f: &Fixture) {
    let name = subnet("10.5.1.0-24");
    f.store.delete(&name, &attrs("10.4.7.21")).await.unwrap();
    f.lease("10.5.1.0-24", "10.4.7.21").await;
    f.store.delete(&name, &attrs("10.4.7.22")).await.unwrap();
    assert_eq!(f.store.list().await.unwrap().len(), 1);
    f.store.delete(&name, &attrs("10.4.7.21")).await.unwrap();
    assert_eq!(f.store.list().await.unwrap(), []);
    assert_eq!(f.get("subnets/10.5.1.0-24").await, None);
}

async fn strays_cost_nobody_else_anything(f: &Fixture) {
    let mut watch = f.store.watch();
    assert_eq!(next(&mut watch).await, WatchEvent::Snapshot(vec![]));
    f.lease("10.5.1.0-24", "10.4.7.21").await;
    for name in ["README", "10.5.3.0", "10.5.3.300-24", "10.5.3.0-024", "10.5.3.0-24 "] {
        f.put(&format!("subnets/{name}"), r#"{"PublicIP":"10.4.7.66"}"#).await;
    }
    for value in ["", "nonsense", r#"{"PublicIP":null}"#, r#"{"PublicIP":"10.4.7"}"#, "[]"] {
        f.put("subnets/10.5.4.0-24", value).await;
    }
    f.put("subnets/10.5.5.0-24", &format!(r#"{{"PublicIP":"{}"}}"#, "1".repeat(100_000))).await;
    f.lease("10.5.2.0-24", "10.4.7.22").await;
    let wanted = ["10.5.1.0-24", "10.5.2.0-24"];
    assert_eq!(names(&f.store.list().await.unwrap()), wanted);
    for name in wanted {
        let event = next(&mut watch).await;
        assert!(matches!(&event, WatchEvent::Put(l) if l.subnet == subnet(name)), "{event:?}");
    }
    assert_eq!(snapshot(&mut f.store.watch()).await, wanted);
    // They may be put right, and go.
    f.put("subnets/10.5.4.0-24", r#"{"PublicIP":"10.4.7.24"}"#).await;
    let event = next(&mut watch).await;
    assert!(matches!(&event, WatchEvent::Put(l) if l.attrs == attrs("10.4.7.24")), "{event:?}");
}

async fn the_watch_reports_everything_from_a_snapshot_on(f: &Fixture) {
    let (name, ours) = (subnet("10.5.1.0-24"), attrs("10.4.7.21"));
    f.lease("10.5.9.0-24", "10.4.7.29").await;
    let mut watch = f.store.watch();
    assert_eq!(snapshot(&mut watch).await, ["10.5.9.0-24"]);

    let put = |attrs: &LeaseAttrs, expiry| {
        WatchEvent::Put(Lease { subnet: name, attrs: attrs.clone(), expiry })
    };
    let expiry = f.store.create(&name, &ours, Duration::from_secs(600)).await.unwrap();
    assert_eq!(next(&mut watch).await, put(&ours, expiry), "our own too, with its exact end");
    let expiry = f.store.renew(&name, &ours, LEASE_TTL).await.unwrap();
    assert_eq!(next(&mut watch).await, put(&ours, expiry));
    let moved = LeaseAttrs { backend_type: "host-gw".into(), ..ours.clone() };
    let expiry = f.store.renew(&name, &moved, LEASE_TTL).await.unwrap();
    assert_eq!(next(&mut watch).await, put(&moved, expiry));
    f.store.delete(&name, &ours).await.unwrap();
    assert_eq!(next(&mut watch).await, WatchEvent::Removed(name));
    f.remove("subnets/10.5.9.0-24").await;
    assert_eq!(next(&mut watch).await, WatchEvent::Removed(subnet("10.5.9.0-24")));
    // An operator makes it a reservation.
    let expiry = f.store.create(&name, &ours, LEASE_TTL).await.unwrap();
    assert_eq!(next(&mut watch).await, put(&ours, expiry));
    f.put("subnets/10.5.1.0-24", &ours.to_json()).await;
    assert_eq!(next(&mut watch).await, put(&ours, Expiry::Permanent));
    // The config, too; a file perhaps for each step of writing it.
    f.put("config", CONFIG).await;
    assert_eq!(next(&mut watch).await, WatchEvent::Config);
    f.remove("config").await;
    until(&mut watch, |event| (*event == WatchEvent::Config).then_some(())).await;
}

async fn the_watch_reports_what_ends_by_itself(f: &Fixture) {
    let mut watch = f.store.watch();
    assert_eq!(next(&mut watch).await, WatchEvent::Snapshot(vec![]));
    let name = subnet("10.5.1.0-24");
    f.store.create(&name, &attrs("10.4.7.21"), Duration::from_secs(2)).await.unwrap();
    assert!(matches!(next(&mut watch).await, WatchEvent::Put(_)));
    assert_eq!(next(&mut watch).await, WatchEvent::Removed(name));
    assert_eq!(f.store.list().await.unwrap(), []);
    // Its place is free.
    f.lease("10.5.1.0-24", "10.4.7.22").await;
}

async fn an_unreadable_value_leaves_the_lease_in_force(f: &Fixture) {
    let mut watch = f.store.watch();
    assert_eq!(next(&mut watch).await, WatchEvent::Snapshot(vec![]));
    let own = (subnet("10.5.1.0-24"), attrs("10.4.7.21"));
    f.put("subnets/10.5.2.0-24", r#"{"PublicIP":"10.4.7.22"}"#).await;
    assert!(matches!(next(&mut watch).await, WatchEvent::Put(_)));
    f.put("subnets/10.5.2.0-24", r#"{"PublicIP":"10.4."#).await;
    f.store.create(&own.0, &own.1, LEASE_TTL).await.unwrap();
    let event = next(&mut watch).await;
    assert!(matches!(&event, WatchEvent::Put(l) if l.subnet == own.0), "{event:?}");
    f.remove("subnets/10.5.2.0-24").await;
    assert_eq!(next(&mut watch).await, WatchEvent::Removed(subnet("10.5.2.0-24")));

    // Our own is put right by its renewal.
    f.put("subnets/10.5.1.0-24", "nonsense").await;
    f.store.renew(&own.0, &own.1, 2 * LEASE_TTL).await.unwrap();
    until(&mut watch, |event| match event {
        WatchEvent::Put(lease) if lease.attrs == own.1 => Some(()),
        _ => None,
    })
    .await;
    assert_eq!(f.store.list().await.unwrap()[0].attrs, own.1);
}

async fn a_thousand_leases_are_listed_quickly(f: &Fixture) {
    const LEASES: usize = 2500;
    match &f.raw {
        Raw::Etcd(etcd) => {
            let mut client = etcd.client().await;
            let lease = client.lease_grant(86_400, None).await.unwrap().id();
            for chunk in (0..LEASES).collect::<Vec<_>>().chunks(100) {
                let puts: Vec<_> = chunk
                    .iter()
                    .map(|i| {
                        let key = format!("{PREFIX}/subnets/10.{}.{}.0-24", i / 256, i % 256);
                        let options = PutOptions::new().with_lease(lease);
                        etcd_client::TxnOp::put(key, attrs("1.2.3.4").to_json(), Some(options))
                    })
                    .collect();
                client.txn(etcd_client::Txn::new().and_then(puts)).await.unwrap();
            }
        }
        Raw::Directory(dir) => {
            for i in 0..LEASES {
                let name = format!("subnets/10.{}.{}.0-24", i / 256, i % 256);
                std::fs::write(dir.path().join(name), attrs("1.2.3.4").to_json()).unwrap();
            }
        }
    }
    let start = Instant::now();
    assert_eq!(f.store.list().await.unwrap().len(), LEASES);
    let listed = start.elapsed();
    assert_eq!(snapshot(&mut f.store.watch()).await.len(), LEASES);
    println!("{LEASES} leases: listed in {listed:?}, watched after {:?}", start.elapsed() - listed);
    assert!(listed < Duration::from_secs(10), "{listed:?}");
}

fn config(json: &str) -> NetworkConfig {
    NetworkConfig::parse(json).unwrap()
}

async fn win(
    f: &Fixture,
    json: &str,
    ip: &str,
    previous: Option<&str>,
) -> Result<Lease, AcquireError> {
    let mut rng = StdRng::seed_from_u64(1);
    let previous = previous.map(subnet);
    acquire(&*f.store, &config(json), &attrs(ip), previous, LEASE_TTL, &mut rng).await
}

async fn the_previous_subnet_is_won_again(f: &Fixture) {
    const LAB: &str = r#"{"Network":"172.7.0.0/16"}"#;
    // As in the usual set-up: picked by hand, written to subnet.env before the first start.
    let lease = win(f, LAB, "10.4.7.21", Some("172.7.21.0-24")).await.unwrap();
    assert_eq!(lease.subnet, subnet("172.7.21.0-24"));
    assert_eq!(f.store.list().await.unwrap(), [lease]);
    // Another host wants the same, a part of it, one that is outside, one that is not aligned.
    for (ip, wish) in [
        ("10.4.7.22", "172.7.21.0-24"),
        ("10.4.7.23", "172.7.21.128-25"),
        ("10.4.7.24", "10.9.1.0-24"),
        ("10.4.7.25", "172.7.25.7-24"),
    ] {
        let lease = win(f, LAB, ip, Some(wish)).await.unwrap();
        assert_ne!(lease.subnet, subnet(wish));
        assert_eq!(lease.subnet.v4.prefix_len(), 24);
    }
    // One of another length that overlaps a lease of another length.
    f.put("subnets/172.7.40.0-22", &attrs("10.4.7.66").to_json()).await;
    let lease = win(f, LAB, "10.4.7.26", Some("172.7.41.0-24")).await.unwrap();
    assert_ne!(lease.subnet, subnet("172.7.41.0-24"));
}

async fn a_lease_of_our_address_is_found_again(f: &Fixture) {
    f.lease("10.5.7.0-24", "10.4.7.22").await;
    f.lease("10.5.8.0-24", "10.4.7.21").await;
    f.lease("10.5.9.0-24", "10.4.7.21").await;
    let lease = win(f, CONFIG, "10.4.7.21", Some("10.5.77.0-24")).await.unwrap();
    assert_eq!(lease.subnet, subnet("10.5.8.0-24"), "the first in the order of keys");
    let lease = win(f, CONFIG, "10.4.7.21", Some("10.5.9.0-24")).await.unwrap();
    assert_eq!(lease.subnet, subnet("10.5.9.0-24"), "but rather the one that we had");
    assert!(matches!(lease.expiry, Expiry::At(_)));
    assert_eq!(f.store.list().await.unwrap().len(), 3);

    f.put("subnets/10.5.33.0-24", r#"{"PublicIP":"10.4.7.33"}"#).await;
    let lease = win(f, CONFIG, "10.4.7.33", None).await.unwrap();
    assert_eq!((lease.subnet, lease.expiry), (subnet("10.5.33.0-24"), Expiry::Permanent));
}

async fn our_lease_that_does_not_fit_is_given_up(f: &Fixture) {
    const SMALL: &str =
        r#"{"Network":"10.5.0.0/22","SubnetLen":24,"SubnetMin":"10.5.1.0","SubnetMax":"10.5.1.0"}"#;
    // It stands in the way of the only subnet that there is.
    f.lease("10.5.1.0-25", "10.4.7.21").await;
    let lease = win(f, SMALL, "10.4.7.21", None).await.unwrap();
    assert_eq!(lease.subnet, subnet("10.5.1.0-24"));
    assert_eq!(f.store.list().await.unwrap(), [lease]);
}

async fn a_race_lost_is_no_reason_to_give_up(f: &Fixture) {
    // Keys that the list does not show, but that cannot be created: as if others had been faster.
    for i in 1..=5 {
        f.put(&format!("subnets/10.5.{i}.0-24"), "nonsense").await;
    }
    const FEW: &str = r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.6.0"}"#;
    let lease = win(f, FEW, "10.4.7.21", Some("10.5.3.0-24")).await.unwrap();
    assert_eq!(lease.subnet, subnet("10.5.6.0-24"));
}

async fn thirty_hosts_at_once_get_thirty_subnets(f: &Fixture) {
    f.put("config", r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.30.0"}"#).await;
    let tasks: Vec<_> = (1..=30)
        .map(|i| {
            let store = f.store.clone();
            tokio::spawn(async move {
                let attrs = attrs(&format!("10.4.7.{i}"));
                acquire_with_retry(&*store, &attrs, None, LEASE_TTL, &mut rand::make_rng())
                    .await
                    .unwrap()
                    .1
                    .subnet
            })
        })
        .collect();
    let mut won = Vec::new();
    for task in tasks {
        won.push(tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap());
    }
    won.sort();
    won.dedup();
    assert_eq!(won.len(), 30);
    assert_eq!(f.store.list().await.unwrap().len(), 30);
}

async fn when_nothing_is_free_it_is_said(f: &Fixture) {
    const ONE: &str = r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.1.0"}"#;
    f.lease("10.5.0.0-23", "10.4.7.22").await;
    let error = win(f, ONE, "10.4.7.21", None).await.unwrap_err();
    assert!(matches!(error, AcquireError::NoneFree { leases: 1, .. }), "{error}");
}

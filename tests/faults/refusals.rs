//! etcd refuses what it is asked, or is not the one that is trusted: packets go on.

use std::fs;
use std::time::Duration;

use tokio::time::sleep;

use crate::support::daemon::PATIENCE;
use crate::support::etcd::{Etcd, Security, USER, etcdctl_or_skip, make_certificates};
use crate::support::relay::Relay;
use crate::trial::{PAIR, THIRD, Trial, may_run};

/// How long a fault lasts.
const FAULT: Duration = Duration::from_secs(3);

/// What etcd may keep, in bytes: a hundred times what it needs here.
const QUOTA_BYTES: &str = "4194304";

/// Writes until etcd refuses all writes.
async fn fill(etcd: &Etcd) {
    let mut client = etcd.client().await;
    let value = vec![0; 1_000_000];
    for _ in 0..100 {
        if let Err(error) = client.put("litter", value.clone(), None).await {
            assert!(error.to_string().contains("database space exceeded"), "{error}");
            return;
        }
    }
    panic!("etcd takes more than its quota");
}

/// What etcd's documentation tells operators to do then.
async fn make_room(etcd: &Etcd) {
    etcd.client().await.delete("litter", None).await.unwrap();
    etcd.compact().await;
    etcd.etcdctl(&["defrag"]);
    etcd.etcdctl(&["alarm", "disarm"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_without_space_is_waited_for() {
    let test = "an_etcd_without_space_is_waited_for";
    if !may_run(test) || !etcdctl_or_skip(test) {
        return;
    }
    let mut etcd =
        Etcd::prepare(Security::Plain).with_args(&["--quota-backend-bytes", QUOTA_BYTES]);
    etcd.start_again().await;
    let mut trial = Trial::start(test, etcd, &[]).await;
    // The leases are to be renewed when there is no space for that.
    trial.relays.iter().for_each(Relay::cut);
    trial.shorten_leases().await;
    fill(&trial.etcd).await;
    trial.relays.iter().for_each(Relay::heal);
    trial.cluster.spawn(THIRD, &[]);
    for (host, what) in [(0, "cannot keep the lease"), (THIRD, "waiting for a lease")] {
        let line = trial.cluster.daemon(host).wait_log("database space exceeded", PATIENCE);
        assert!(line.contains(what) && line.contains("etcdctl alarm disarm"), "{line}");
    }
    sleep(FAULT).await;
    make_room(&trial.etcd).await;
    let healed = trial.healed().await;
    trial.recovered(healed).await;
    trial.cluster.daemon(THIRD).wait_ready();
    trial.finish();
}

/// etcd takes its new certificate without a restart; the hosts get the new authority only later.
#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_certificate_is_believed_once_its_authority_is_there() {
    let test = "a_rotated_certificate_is_believed_once_its_authority_is_there";
    if !may_run(test) {
        return;
    }
    let etcd = Etcd::start(Security::Server).await;
    let (authority, trusted) = (etcd.file("ca.pem"), etcd.file("trusted.pem"));
    fs::copy(&authority, &trusted).unwrap();
    let trial = Trial::start(test, etcd, &[format!("--etcd-cafile={}", trusted.display())]).await;
    make_certificates(authority.parent().unwrap());
    trial.relays.iter().for_each(Relay::reset);
    for host in PAIR {
        trial.cluster.daemon(host).wait_log("invalid peer certificate", PATIENCE);
    }
    sleep(FAULT).await;
    fs::copy(&authority, &trusted).unwrap();
    let healed = trial.healed().await;
    trial.shorten_leases().await;
    trial.recovered(healed).await;
    trial.finish();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_replaced() {
    let test = "an_expired_token_is_replaced";
    if !may_run(test) {
        return;
    }
    let mut etcd = Etcd::prepare(Security::Plain).with_args(&["--auth-token-ttl", "1"]);
    etcd.start_again().await;
    etcd.enable_auth().await;
    let flags = [format!("--etcd-username={}", USER.0), format!("--etcd-password={}", USER.1)];
    let trial = Trial::start(test, etcd, &flags).await;
    let refused = |trial: &Trial| trial.etcd.answered("grpc_code", "Unauthenticated");
    // Tokens live on when they are used, and nothing is asked meanwhile.
    sleep(FAULT).await;
    assert_eq!(refused(&trial), 0);
    // Now the tokens are wanted.
    let healed = trial.healed().await;
    trial.shorten_leases().await;
    for host in PAIR {
        let (subnet, address) = trial.lease(host);
        trial.etcd.wait_for_renewal(&subnet, address).await;
    }
    assert!(refused(&trial) >= PAIR.len() as u64, "their tokens have expired");
    trial.recovered(healed).await;
    trial.finish();
}

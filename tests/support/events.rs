//! Waiting for what a watch reports.
#![forbid(unsafe_code)]

use std::time::Duration;

use flanneld::subnet::lease::{Expiry, Lease, LeaseAttrs, Subnet};
use flanneld::subnet::store::WatchEvent;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Longer than anything that is waited for takes on the slowest machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn subnet(text: &str) -> Subnet {
    text.parse().unwrap()
}

pub fn attrs(ip: &str) -> LeaseAttrs {
    LeaseAttrs::udp(ip.parse().unwrap())
}

/// The next thing that is reported.
pub async fn next<T>(receiver: &mut mpsc::Receiver<T>) -> T {
    timeout(PATIENCE, receiver.recv()).await.expect("nothing is reported").expect("the watch ended")
}

/// Waits for something that is reported sooner or later.
pub async fn until<T: std::fmt::Debug, U>(
    receiver: &mut mpsc::Receiver<T>,
    mut wanted: impl FnMut(&T) -> Option<U>,
) -> U {
    let mut seen = Vec::new();
    loop {
        let Ok(event) = timeout(PATIENCE, receiver.recv()).await else {
            panic!("what is waited for is not reported, but {seen:#?}");
        };
        let event = event.expect("the watch ended");
        if let Some(found) = wanted(&event) {
            return found;
        }
        seen.push(event);
    }
}

/// The subnets of a snapshot.
pub async fn snapshot(receiver: &mut mpsc::Receiver<WatchEvent>) -> Vec<String> {
    until(receiver, |event| match event {
        WatchEvent::Snapshot(leases) => Some(names(leases)),
        _ => None,
    })
    .await
}

pub fn names(leases: &[Lease]) -> Vec<String> {
    leases.iter().map(|lease| lease.subnet.to_string()).collect()
}

/// Who holds what, without when it ends.
pub fn holders(leases: &[Lease]) -> Vec<(String, String)> {
    leases.iter().map(|l| (l.subnet.to_string(), l.attrs.public_ip.to_string())).collect()
}

pub fn end(expiry: Expiry) -> std::time::SystemTime {
    match expiry {
        Expiry::At(end) => end,
        other => panic!("expected an end, found {other:?}"),
    }
}

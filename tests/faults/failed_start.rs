//! A start that fails at its last step.

use std::net::Ipv4Addr;
use std::time::Duration;

use flanneld::backend::kept::Kept;
use flanneld::backend::udp::{UdpBackend, UdpOptions};
use flanneld::backend::{Backend, BackendError};
use flanneld::config::NetworkConfig;
use flanneld::dataplane::sys::socket::UdpWish;
use flanneld::dataplane::sys::tun::TunOffload;
use flanneld::dataplane::worker::{SourceCheck, Width};
use flanneld::host::interface::ExternalInterface;
use flanneld::host::netlink::Host;
use flanneld::subnet::lease::{Expiry, Lease, LeaseAttrs, Subnet};
use libc::EAGAIN;

use crate::support::admin::until;
use crate::support::lab::CONFIG;
use crate::support::netns::Netns;
use crate::support::root_or_skip;
use crate::support::seccomp::{Refusal, refused};

/// Sets the device up and starts the threads on it, as the daemon does.
async fn start() -> Result<(), BackendError> {
    let config = NetworkConfig::parse(CONFIG).unwrap();
    let options = UdpOptions {
        tun_name: "flannel%d".into(),
        tun_alias: "flanneld test".into(),
        tun_offload: TunOffload::TsoUso,
        udp: UdpWish { gso: true, gro: true },
        source_check: SourceCheck::Peer,
        width: Width { queues: 1, pairs: 1 },
        busy_poll: Duration::ZERO,
    };
    let address = Ipv4Addr::LOCALHOST;
    let external =
        ExternalInterface { index: 1, name: "lo".into(), mtu: 1500, address, public_ip: address };
    let host = Host::open()?;
    let mut backend =
        UdpBackend::prepare(&config, options, &external, host, Kept::default()).await?;
    let own = Lease {
        subnet: Subnet { v4: "172.7.5.0/24".parse().unwrap(), v6: None },
        attrs: LeaseAttrs::udp(address),
        expiry: Expiry::Permanent,
    };
    backend.start(config.network, &own, &mut std::iter::empty()).await
}

#[test]
fn a_device_without_threads_is_not_left_behind() {
    if !root_or_skip("a_device_without_threads_is_not_left_behind") {
        return;
    }
    let netns = Netns::new("start");
    let no_threads = [libc::SYS_clone, libc::SYS_clone3].map(|call| Refusal::of(call, EAGAIN));
    let failed = netns.enter(|| {
        refused(&no_threads, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(start()).unwrap_err()
        })
    });
    assert!(matches!(failed, BackendError::Start(_)), "{failed}");
    // A command that another test starts at this moment holds all our descriptors until it runs.
    until("no device", || netns.ip("link show type tun"), String::is_empty);
}

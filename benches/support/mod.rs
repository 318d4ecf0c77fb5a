//! A running data path in namespaces of its own, and plain sockets at both of its ends.
//!
//! ```text
//! inner socket ─ flannel0 ─ data path ─ UDP socket ═══ loopback ═══ the peer's plain UDP socket
//!    10.0.1.0                            192.0.2.1:8285              192.0.2.2:8285
//! ```
#![forbid(unsafe_code)]
// Each bench has its own copy, exports nothing and uses only a part.
#![allow(dead_code, unreachable_pub)]
// A bench whose surroundings break can only stop.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../tests/support/netns.rs"]
pub mod netns;
pub mod plain;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flanneld::dataplane::routes::{Route, Routes, SharedRoutes};
use flanneld::dataplane::stats::{Drop, Stats};
use flanneld::dataplane::sys::socket::UdpWish;
use flanneld::dataplane::sys::tun::{Tun, TunOffload};
use flanneld::dataplane::worker::{Dataplane, Settings, Sockets, SourceCheck, Width};
use flanneld::host::netlink::Host;
use flanneld::host::tun_setup::TunSetup;
use ipnet::Ipv4Net;
use netns::Netns;

/// Where daemons listen.
pub const PORT: u16 = 8285;
/// The whole overlay network.
pub const OVERLAY: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8);
/// The tunnel's MTU over Ethernet.
pub const MTU: u16 = 1472;
/// What the daemon has by default on two CPUs.
const WIDTH: Width = Width { queues: 16, pairs: 1 };
/// How many subnets each side has in its table for the other.
pub const PEER_SUBNETS: u8 = 64;

/// One end of the tunnel.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    /// Where its daemon listens (RFC 5737, TEST-NET-1).
    pub endpoint: SocketAddrV4,
    /// The third byte of its first subnet, a /24 of the overlay network.
    first: u8,
}

/// Where the measured data path is.
pub const NEAR: Side =
    Side { endpoint: SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), PORT), first: 1 };
/// Whom it talks to.
pub const FAR: Side =
    Side { endpoint: SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 2), PORT), first: 101 };

impl Side {
    /// Its subnet of that number.
    pub fn subnet(self, number: u8) -> Ipv4Net {
        Ipv4Net::new_assert(Ipv4Addr::new(10, 0, self.first + number, 0), 24)
    }

    /// The address of its flannel0.
    pub fn tunnel_address(self) -> Ipv4Addr {
        self.subnet(0).network()
    }

    /// A pod in its subnet of that number.
    pub fn pod(self, number: u8) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet(number).network().to_bits() + 7)
    }
}

/// Whether the bench may run. Says so loudly if not.
pub fn may_run(bench: &str) -> bool {
    let able = rustix::process::geteuid().is_root() && Path::new("/dev/net/tun").exists();
    if !able {
        eprintln!("SKIPPED {bench}: needs root and /dev/net/tun");
    }
    able
}

/// A namespace whose loopback has the addresses of both daemons.
pub fn underlay() -> Netns {
    let netns = Netns::new("bench");
    for side in [NEAR, FAR] {
        netns.ip(&format!("addr add {}/32 dev lo", side.endpoint.ip()));
    }
    netns
}

/// A data path that runs.
pub struct Carrier {
    dataplane: Dataplane,
    stats: Arc<Stats>,
}

impl Carrier {
    /// Starts the data path of `own`, as the daemon does: its device in `netns`, its socket in
    /// `underlay`, every service of the kernel in use.
    pub fn start(underlay: &Netns, netns: &Netns, own: Side, peer: Side) -> Carrier {
        let tun =
            netns.enter(|| Tun::create("flannel%d", TunOffload::TsoUso, WIDTH.queues).unwrap());
        let wish = UdpWish { gso: true, gro: true };
        let sockets =
            underlay.enter(|| Sockets::bind(own.endpoint, wish, WIDTH, Vec::new()).unwrap());
        let setup = TunSetup {
            name: tun.name().to_owned(),
            mtu: MTU.into(),
            address: own.tunnel_address(),
            network: OVERLAY,
            tx_queue_len: 10_000,
            alias: "flanneld bench".into(),
        };
        netns.block_on(|| async { Host::open().unwrap().configure_tun(&setup).await.unwrap() });
        let routes = (0..PEER_SUBNETS)
            .map(|number| Route {
                subnet: peer.subnet(number),
                endpoint: peer.endpoint,
                stats: Arc::default(),
            })
            .collect();
        let routes = SharedRoutes::new(Routes::build(OVERLAY, own.subnet(0), routes));
        let settings = Settings {
            mtu: MTU,
            source_check: SourceCheck::Peer,
            busy_poll: Duration::from_micros(50),
            one_by_one: false,
        };
        let stats: Arc<Stats> = Arc::default();
        let dataplane = Dataplane::start(settings, tun, &sockets, &routes, &stats, || {}).unwrap();
        Carrier { dataplane, stats }
    }

    /// Stops; panics if any packet went another way than to its destination.
    pub fn stop(self) {
        self.dataplane.stop();
        for direction in [&self.stats.egress, &self.stats.ingress] {
            let dropped: u64 = Drop::ALL.iter().map(|&reason| direction.dropped(reason)).sum();
            assert_eq!(dropped + direction.kernel_drops.get(), 0, "packets dropped: {direction}");
        }
    }
}

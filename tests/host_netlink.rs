//! `host::` against the real kernel, each test in a network namespace of its own.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::Ipv4Addr;
use std::time::Duration;

use flanneld::host::error::HostError;
use flanneld::host::interface::{InterfaceWish, select};
use flanneld::host::monitor::LinkChange;
use flanneld::host::netlink::Host;
use flanneld::host::tun_setup::{TunSetup, accept_local};
use support::netns::Netns;
use support::root_or_skip;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

/// A namespace with a fresh `flannel0`, or `None`, loudly, without root.
fn netns_with_tun(test: &str) -> Option<Netns> {
    if !root_or_skip(test) {
        return None;
    }
    let netns = Netns::new("tun");
    netns.ip("tuntap add flannel0 mode tun");
    Some(netns)
}

fn wanted() -> TunSetup {
    TunSetup {
        name: "flannel0".into(),
        mtu: 1472,
        address: Ipv4Addr::new(172, 7, 21, 0),
        network: "172.7.0.0/16".parse().unwrap(),
        tx_queue_len: 10_000,
        alias: "flanneld /run/flannel/subnet.env".into(),
    }
}

/// What a person would look at.
fn state(netns: &Netns) -> (String, String, String) {
    (
        netns.ip("-o link show flannel0"),
        netns.ip("-o addr show flannel0"),
        netns.ip("route show 172.7.0.0/16"),
    )
}

#[test]
fn the_device_is_set_up_once() {
    let Some(netns) = netns_with_tun("the_device_is_set_up_once") else { return };
    netns.block_on(async || {
        let host = Host::open().unwrap();
        assert!(host.configure_tun(&wanted()).await.unwrap());
        assert!(!host.configure_tun(&wanted()).await.unwrap(), "the second time changed something");
    });
    let (link, addresses, route) = state(&netns);
    assert!(link.contains("mtu 1472") && link.contains("qlen 10000"), "{link}");
    assert!(link.contains(",UP"), "{link}");
    assert!(addresses.contains("inet 172.7.21.0/32 scope global flannel0"), "{addresses}");
    assert!(!addresses.contains("inet6"), "{addresses}");
    assert!(route.starts_with("172.7.0.0/16 dev flannel0"), "{route}");
    // What `ip` does not say is as upstream has it: main table, protocol boot, global scope.
    for word in ["src", "via", "proto", "scope", "metric"] {
        assert!(!route.contains(word), "{word} in {route}");
    }
}

#[test]
fn only_stale_addresses_of_the_overlay_are_removed() {
    let Some(netns) = netns_with_tun("only_stale_addresses_of_the_overlay_are_removed") else {
        return;
    };
    for address in ["172.7.99.0/32", "172.7.21.0/24", "192.0.2.1/32"] {
        netns.ip(&format!("addr add {address} dev flannel0"));
    }
    netns.block_on(async || {
        let host = Host::open().unwrap();
        assert!(host.configure_tun(&wanted()).await.unwrap());
        assert!(!host.configure_tun(&wanted()).await.unwrap());
        let link = host.link("flannel0").await.unwrap().unwrap();
        let mut nets: Vec<String> = link.addresses.iter().map(|a| a.net.to_string()).collect();
        nets.sort();
        assert_eq!(nets, ["172.7.21.0/32", "192.0.2.1/32"]);
    });
    assert!(state(&netns).2.contains("dev flannel0"));
}

#[test]
fn a_changed_lease_moves_the_address() {
    let Some(netns) = netns_with_tun("a_changed_lease_moves_the_address") else { return };
    netns.block_on(async || {
        let host = Host::open().unwrap();
        host.configure_tun(&wanted()).await.unwrap();
        let moved = TunSetup { address: Ipv4Addr::new(172, 7, 30, 0), mtu: 1422, ..wanted() };
        assert!(host.configure_tun(&moved).await.unwrap());
        assert!(!host.configure_tun(&moved).await.unwrap());
    });
    let (link, addresses, route) = state(&netns);
    assert!(link.contains("mtu 1422"), "{link}");
    assert!(addresses.contains("172.7.30.0/32") && !addresses.contains("172.7.21.0"));
    assert!(route.contains("dev flannel0"), "{route}");
}

#[test]
fn a_route_that_leads_elsewhere_is_an_error() {
    let Some(netns) = netns_with_tun("a_route_that_leads_elsewhere_is_an_error") else { return };
    netns.ip("link add eth0 type bridge");
    netns.ip("addr add 10.4.7.21/24 dev eth0");
    netns.ip("link set eth0 up");
    let try_route = |route: &str| {
        netns.ip(&format!("route add {route}"));
        let error = netns
            .block_on(async || Host::open().unwrap().configure_tun(&wanted()).await.unwrap_err());
        assert!(matches!(error, HostError::RouteTaken { .. }), "{error}");
        netns.ip(&format!("route del {route}"));
        error.to_string()
    };
    assert_eq!(
        try_route("172.7.0.0/16 via 10.4.7.1 dev eth0"),
        "the route for the overlay network 172.7.0.0/16 exists already, via 10.4.7.1 on eth0: \
         remove it (ip route del 172.7.0.0/16) or choose another network"
    );
    assert!(try_route("172.7.0.0/16 dev eth0").contains("exists already, through eth0:"));
    assert!(try_route("blackhole 172.7.0.0/16").contains("exists already, of type blackhole:"));

    // These do not stand in the way: another length, a metric, another table.
    netns.ip("route add 172.7.0.0/24 dev eth0");
    netns.ip("route add 172.7.0.0/16 dev eth0 metric 50");
    netns.ip("route add 172.7.0.0/16 dev eth0 table 100");
    netns.block_on(async || {
        let host = Host::open().unwrap();
        assert!(host.configure_tun(&wanted()).await.unwrap());
        assert!(!host.configure_tun(&wanted()).await.unwrap());
    });
    assert!(netns.ip("route get 172.7.50.1").contains("dev flannel0"));
}

#[test]
fn a_strangers_device_is_left_alone() {
    if !root_or_skip("a_strangers_device_is_left_alone") {
        return;
    }
    let netns = Netns::new("stranger");
    let refused = || {
        netns
            .block_on(async || Host::open().unwrap().configure_tun(&wanted()).await.unwrap_err())
            .to_string()
    };
    assert_eq!(refused(), "there is no network device flannel0");
    netns.ip("link add flannel0 type bridge");
    let text = refused();
    assert!(text.starts_with("flannel0 is not a TUN device but a bridge device"), "{text}");
    netns.ip("link del flannel0");
    netns.ip("tuntap add flannel0 mode tap");
    assert!(refused().contains("but a TAP device"));
    assert_eq!(netns.ip("addr show flannel0").matches("inet").count(), 0);
}

#[test]
fn without_the_capability_the_error_says_so() {
    let Some(netns) = netns_with_tun("without_the_capability_the_error_says_so") else { return };
    let text = netns.block_on(async || {
        // Affects this thread alone, and with it the socket that it opens.
        rustix::thread::set_capabilities(
            None,
            rustix::thread::CapabilitySets {
                effective: rustix::thread::CapabilitySet::empty(),
                permitted: rustix::thread::CapabilitySet::empty(),
                inheritable: rustix::thread::CapabilitySet::empty(),
            },
        )
        .unwrap();
        Host::open().unwrap().configure_tun(&wanted()).await.unwrap_err().to_string()
    });
    assert_eq!(
        text,
        "giving flannel0 the MTU of 1472 bytes, the queue length of 10000 packets, \
         the alias \"flanneld /run/flannel/subnet.env\": not permitted: it needs CAP_NET_ADMIN: run flanneld as root"
    );
}

#[test]
fn links_are_deleted_by_name() {
    let Some(netns) = netns_with_tun("links_are_deleted_by_name") else { return };
    netns.block_on(async || {
        let host = Host::open().unwrap();
        assert!(host.delete_link("flannel0").await.unwrap());
        assert!(!host.delete_link("flannel0").await.unwrap());
        assert_eq!(host.link("flannel0").await.unwrap(), None);
    });
}

#[test]
fn own_addresses_are_accepted_as_sources() {
    let Some(netns) = netns_with_tun("own_addresses_are_accepted_as_sources") else { return };
    netns.enter(|| {
        assert!(accept_local("flannel0").unwrap());
        assert!(!accept_local("flannel0").unwrap());
        let text = accept_local("flannel9").unwrap_err().to_string();
        assert!(
            text.starts_with("cannot set /proc/sys/net/ipv4/conf/flannel9/accept_local to 1: "),
            "{text}"
        );
    });
    assert_eq!(netns.exec("sysctl -n net.ipv4.conf.flannel0.accept_local").trim(), "1");
}

/// Answers reports as the daemon does until the device is as wanted and no report comes.
async fn heal(host: &Host, changes: &mut Receiver<LinkChange>) {
    let mut rounds = 0;
    let change = timeout(PATIENCE, changes.recv()).await.expect("the change is reported");
    assert_eq!(change, Some(LinkChange::Changed));
    while host.configure_tun(&wanted()).await.unwrap() {
        rounds += 1;
        assert!(rounds < 5, "it never comes to rest");
        // Our own change is reported as well.
        timeout(PATIENCE, changes.recv()).await.expect("our change is reported");
    }
}

#[test]
fn what_is_taken_away_is_reported_and_put_back() {
    let Some(netns) = netns_with_tun("what_is_taken_away_is_reported_and_put_back") else {
        return;
    };
    netns.block_on(async || {
        let host = Host::open().unwrap();
        host.configure_tun(&wanted()).await.unwrap();
        let mut changes = host.watch_link("flannel0", wanted().network).await.unwrap();
        let good = state(&netns);
        for harm in [
            "addr del 172.7.21.0/32 dev flannel0",
            "route del 172.7.0.0/16",
            "link set flannel0 mtu 1400",
            "link set flannel0 txqueuelen 500",
            "link set flannel0 down",
            "addr add 172.7.88.0/32 dev flannel0",
            "addr flush dev flannel0",
        ] {
            netns.ip(harm);
            assert_ne!(state(&netns), good, "{harm} does no harm");
            heal(&host, &mut changes).await;
            assert_eq!(state(&netns), good, "after {harm}");
        }
    });
}

#[test]
fn a_vanished_device_is_reported_and_found_again() {
    let Some(netns) = netns_with_tun("a_vanished_device_is_reported_and_found_again") else {
        return;
    };
    netns.block_on(async || {
        let host = Host::open().unwrap();
        host.configure_tun(&wanted()).await.unwrap();
        let mut changes = host.watch_link("flannel0", wanted().network).await.unwrap();
        netns.ip("link del flannel0");
        let change = timeout(PATIENCE, changes.recv()).await.unwrap();
        assert_eq!(change, Some(LinkChange::Vanished));
        netns.ip("tuntap add flannel0 mode tun");
        heal(&host, &mut changes).await;
        netns.ip("link set flannel0 down");
        heal(&host, &mut changes).await;
        assert!(state(&netns).2.contains("dev flannel0"));

        netns.ip("link set flannel0 down");
        heal(&host, &mut changes).await;
        netns.ip("link set flannel0 name other");
        let change = timeout(PATIENCE, changes.recv()).await.unwrap();
        assert_eq!(change, Some(LinkChange::Vanished));
    });
}

#[test]
fn the_monitor_comes_to_rest_and_ignores_strangers() {
    let Some(netns) = netns_with_tun("the_monitor_comes_to_rest_and_ignores_strangers") else {
        return;
    };
    netns.block_on(async || {
        let host = Host::open().unwrap();
        let mut changes = host.watch_link("flannel0", wanted().network).await.unwrap();
        host.configure_tun(&wanted()).await.unwrap();
        // Five messages or more, but one report; and none about others.
        assert_eq!(timeout(PATIENCE, changes.recv()).await.unwrap(), Some(LinkChange::Changed));
        assert!(!host.configure_tun(&wanted()).await.unwrap());
        netns.ip("link add eth0 type bridge");
        netns.ip("addr add 10.4.7.21/24 dev eth0");
        netns.ip("link set eth0 up");
        netns.ip("route add 172.8.0.0/16 dev eth0");
        // That nothing comes cannot be awaited: give it several bursts' time.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(changes.try_recv().is_err(), "a stranger's change was reported");
        // The route of our network through a stranger does concern us.
        netns.ip("route replace 172.7.0.0/16 via 10.4.7.1");
        assert_eq!(timeout(PATIENCE, changes.recv()).await.unwrap(), Some(LinkChange::Changed));
        let error = host.configure_tun(&wanted()).await.unwrap_err();
        assert!(matches!(error, HostError::RouteTaken { .. }), "{error}");
        netns.ip("route del 172.7.0.0/16");
        heal(&host, &mut changes).await;
        assert!(state(&netns).2.contains("dev flannel0"));
    });
}

#[test]
fn the_monitor_survives_an_overrun() {
    let Some(netns) = netns_with_tun("the_monitor_survives_an_overrun") else { return };
    netns.block_on(async || {
        let host = Host::open().unwrap();
        host.configure_tun(&wanted()).await.unwrap();
        let mut changes = host.watch_link("flannel0", wanted().network).await.unwrap();
        // This runtime has one thread, so nothing is read while `ip` runs: far more messages
        // than a socket buffer holds, and the harm among the last, which are lost.
        let batch = netns.name().to_owned() + ".batch";
        let batch = std::env::temp_dir().join(batch);
        let mut lines = String::from("link set lo up\n");
        for number in 0..4_000 {
            let (third, fourth) = (number / 256, number % 256);
            lines += &format!("route add 198.18.{third}.{fourth}/32 dev lo\n");
        }
        lines += "addr flush dev flannel0\n";
        std::fs::write(&batch, lines).unwrap();
        netns.ip(&format!("-batch {}", batch.display()));
        std::fs::remove_file(&batch).unwrap();
        heal(&host, &mut changes).await;
        assert!(state(&netns).1.contains("172.7.21.0/32"));
    });
}

/// How many sockets of this thread's namespace subscribe to the kernel's messages: `/proc/net/netlink`
/// has the groups in its fourth column.
fn subscriptions() -> usize {
    let text = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
    let sockets = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    sockets.filter(|columns| columns[2] != "0" && columns[3] != "00000000").count()
}

#[test]
fn a_monitor_that_nobody_listens_to_leaves_no_socket() {
    let test = "a_monitor_that_nobody_listens_to_leaves_no_socket";
    let Some(netns) = netns_with_tun(test) else { return };
    netns.block_on(async || {
        let host = Host::open().unwrap();
        let changes = host.watch_link("flannel0", wanted().network).await.unwrap();
        assert_eq!(subscriptions(), 1);
        drop(changes);
        no_subscription_stays().await;
    });
}

async fn no_subscription_stays() {
    let gone = async {
        while subscriptions() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("the socket stays");
}

#[test]
fn an_address_is_watched_on_whatever_link_it_is() {
    let test = "an_address_is_watched_on_whatever_link_it_is";
    let Some(netns) = netns_with_tun(test) else { return };
    netns.ip("link add other0 type bridge");
    netns.block_on(async || {
        let host = Host::open().unwrap();
        let mut here = host.watch_address(Ipv4Addr::new(10, 9, 9, 9)).await.unwrap();
        let news = async |here: &mut tokio::sync::watch::Receiver<bool>| {
            timeout(PATIENCE, here.changed()).await.expect("nothing is told").unwrap();
            *here.borrow_and_update()
        };
        assert!(!news(&mut here).await);
        netns.ip("addr add 10.9.9.9/24 dev flannel0");
        assert!(news(&mut here).await);
        // As long as one link has it, and whatever happens to other addresses.
        netns.ip("addr add 10.9.9.9/32 dev other0");
        netns.ip("addr add 10.9.9.10/32 dev other0");
        netns.ip("addr del 10.9.9.9/24 dev flannel0");
        netns.ip("link delete other0");
        assert!(!news(&mut here).await);
        assert!(!here.has_changed().unwrap());
        drop(here);
        no_subscription_stays().await;
    });
}

#[test]
fn the_external_interface_is_read_from_the_kernel() {
    if !root_or_skip("the_external_interface_is_read_from_the_kernel") {
        return;
    }
    let netns = Netns::new("select");
    for (name, mtu, net) in
        [("eth0", 1500, "10.4.7.21/24"), ("eth1", 1400, "10.5.7.21/24"), ("bare", 1500, "")]
    {
        netns.ip(&format!("link add {name} mtu {mtu} type bridge"));
        if !net.is_empty() {
            netns.ip(&format!("addr add {net} dev {name}"));
        }
        netns.ip(&format!("link set {name} up"));
    }
    netns.ip("addr add 10.5.7.121/24 dev eth1");
    let chosen = |wish: &InterfaceWish| {
        netns.block_on(async || {
            select(&Host::open().unwrap(), wish)
                .await
                .map(|external| (external.name, external.mtu, external.address.to_string()))
                .map_err(|error| error.to_string())
        })
    };
    let nothing = InterfaceWish::default();
    let eth0 = || Ok(("eth0".to_owned(), 1500, "10.4.7.21".to_owned()));
    let eth1 = |address: &str| Ok(("eth1".to_owned(), 1400, address.to_owned()));

    assert!(chosen(&nothing).unwrap_err().starts_with("there is no default route; "));
    netns.ip("route add default via 10.4.7.1 metric 200");
    assert_eq!(chosen(&nothing), eth0());
    netns.ip("route add default via 10.5.7.1 metric 100");
    assert_eq!(chosen(&nothing), eth1("10.5.7.21"), "the better metric comes first");

    // A route without a gateway, a static one with a source, and none at all.
    let reach = |to: [u8; 4]| InterfaceWish { can_reach: Some(to.into()), ..nothing.clone() };
    assert_eq!(chosen(&reach([10, 4, 7, 99])), eth0());
    netns.ip("route add 198.51.100.0/24 via 10.5.7.1 src 10.5.7.121");
    assert_eq!(chosen(&reach([198, 51, 100, 7])), eth1("10.5.7.121"));
    netns.ip("route add unreachable 203.0.113.0/24");
    let text = chosen(&reach([203, 0, 113, 7])).unwrap_err();
    assert!(text.contains("--iface-can-reach 203.0.113.7: there is no route to it"), "{text}");

    let regex =
        |pattern: &str| InterfaceWish { iface_regex: vec![pattern.into()], ..nothing.clone() };
    assert_eq!(chosen(&regex(r"^10\.5\..*\.121$")), eth1("10.5.7.121"));
    assert_eq!(chosen(&regex("h0$")), eth0());

    let text = chosen(&InterfaceWish { iface: vec!["bare".into()], ..nothing.clone() });
    assert_eq!(
        text.unwrap_err(),
        "no interface faces the peers: tried --iface bare: bare has no usable IPv4 address; \
         interfaces here: lo (127.0.0.1/8), eth0 (10.4.7.21/24), \
         eth1 (10.5.7.21/24 10.5.7.121/24), bare (no IPv4 address); give --iface one of these"
    );
    let public_ip = Some(Ipv4Addr::new(203, 0, 113, 7));
    let text = chosen(&InterfaceWish { public_ip, ..nothing.clone() }).unwrap_err();
    assert!(text.starts_with("--public-ip 203.0.113.7: no interface has this address;"), "{text}");
}

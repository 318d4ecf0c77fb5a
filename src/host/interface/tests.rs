use super::*;

fn address(net: &str) -> LinkAddress {
    LinkAddress { net: net.parse().unwrap(), permanent: true, deprecated: false, secondary: false }
}

fn link(index: u32, name: &str, nets: &[&str]) -> Link {
    Link {
        index,
        name: name.into(),
        mtu: 1500,
        tx_queue_len: 1000,
        up: true,
        carrier: true,
        kind: None,
        is_tun: false,
        tun_shape: None,
        alias: String::new(),
        makes_link_local: true,
        tx_dropped: 0,
        addresses: nets.iter().map(|net| address(net)).collect(),
    }
}

fn host() -> Snapshot {
    Snapshot {
        links: vec![
            link(1, "lo", &["127.0.0.1/8", "198.51.100.7/32"]),
            link(2, "eth0", &["10.4.7.21/24", "10.4.7.121/24"]),
            link(3, "eth1", &["169.254.3.3/16", "192.168.5.21/24"]),
            link(4, "docker0", &["172.17.0.1/16"]),
            link(5, "bare", &[]),
        ],
        default_route: Some(2),
        reach: None,
    }
}

fn iface(values: &[&str]) -> InterfaceWish {
    InterfaceWish { iface: values.iter().map(ToString::to_string).collect(), ..Default::default() }
}

fn regex(values: &[&str]) -> InterfaceWish {
    InterfaceWish {
        iface_regex: values.iter().map(ToString::to_string).collect(),
        ..Default::default()
    }
}

#[track_caller]
fn chosen(snapshot: &Snapshot, wish: &InterfaceWish) -> (String, String) {
    let external = choose(snapshot, wish).unwrap();
    (external.name, external.address.to_string())
}

#[track_caller]
fn refused(snapshot: &Snapshot, wish: &InterfaceWish) -> String {
    let text = choose(snapshot, wish).unwrap_err().to_string();
    assert!(!text.contains('\n'), "more than one line: {text}");
    text
}

fn pair(name: &str, address: &str) -> (String, String) {
    (name.into(), address.into())
}

#[test]
fn without_a_wish_the_default_route_tells() {
    let external = choose(&host(), &InterfaceWish::default()).unwrap();
    assert_eq!(
        external,
        ExternalInterface {
            index: 2,
            name: "eth0".into(),
            mtu: 1500,
            address: Ipv4Addr::new(10, 4, 7, 21),
            public_ip: Ipv4Addr::new(10, 4, 7, 21),
        }
    );
}

#[test]
fn no_default_route_is_an_error_that_lists_the_interfaces() {
    let snapshot = Snapshot { default_route: None, ..host() };
    let text = refused(&snapshot, &InterfaceWish::default());
    assert_eq!(
        text,
        "there is no default route; interfaces here: lo (127.0.0.1/8 198.51.100.7/32), \
         eth0 (10.4.7.21/24 10.4.7.121/24), eth1 (169.254.3.3/16 192.168.5.21/24), \
         docker0 (172.17.0.1/16), bare (no IPv4 address); \
         name the one that faces the peers: --iface NAME"
    );
}

#[test]
fn a_public_ip_alone_must_be_here() {
    let here = InterfaceWish { public_ip: Some(Ipv4Addr::new(192, 168, 5, 21)), ..iface(&[]) };
    assert_eq!(chosen(&host(), &here), pair("eth1", "192.168.5.21"));

    let away = InterfaceWish { public_ip: Some(Ipv4Addr::new(203, 0, 113, 9)), ..iface(&[]) };
    let text = refused(&host(), &away);
    assert!(text.starts_with("--public-ip 203.0.113.9: no interface has this address"), "{text}");
    assert!(text.ends_with("--iface NAME"), "{text}");
}

#[test]
fn behind_nat_the_public_ip_differs_from_the_interface() {
    let public_ip = Some(Ipv4Addr::new(203, 0, 113, 9));
    let external = choose(&host(), &InterfaceWish { public_ip, ..iface(&["eth1"]) }).unwrap();
    assert_eq!(external.address, Ipv4Addr::new(192, 168, 5, 21));
    assert_eq!(Some(external.public_ip), public_ip);
}

#[test]
fn iface_takes_names_and_addresses_in_order() {
    assert_eq!(chosen(&host(), &iface(&["eth1", "eth0"])), pair("eth1", "192.168.5.21"));
    assert_eq!(chosen(&host(), &iface(&["eth9", "10.9.9.9", "eth0"])), pair("eth0", "10.4.7.21"));
    // An address names itself, be it the second of its link or on the loopback.
    assert_eq!(chosen(&host(), &iface(&["10.4.7.121"])), pair("eth0", "10.4.7.121"));
    assert_eq!(chosen(&host(), &iface(&["198.51.100.7"])), pair("lo", "198.51.100.7"));
}

#[test]
fn an_interface_without_a_usable_address_is_a_miss() {
    assert_eq!(chosen(&host(), &iface(&["bare", "eth0"])), pair("eth0", "10.4.7.21"));
    let text = refused(&host(), &iface(&["bare", "fe80::1", "eth9"]));
    assert!(text.contains("--iface bare: bare has no usable IPv4 address"), "{text}");
    assert!(text.contains("--iface fe80::1: an IPv6 address"), "{text}");
    assert!(text.contains("--iface eth9: there is no such interface"), "{text}");
}

#[test]
fn an_mtu_of_zero_is_a_miss() {
    let mut snapshot = host();
    snapshot.links[1].mtu = 0;
    assert!(refused(&snapshot, &iface(&["eth0"])).contains("the MTU of eth0 is 0"));
}

#[test]
fn regex_matches_addresses_before_names() {
    // Without anchors, as Go's regexp does.
    assert_eq!(chosen(&host(), &regex(&["192.168"])), pair("eth1", "192.168.5.21"));
    assert_eq!(chosen(&host(), &regex(&[r"\.121$"])), pair("eth0", "10.4.7.121"));
    assert_eq!(chosen(&host(), &regex(&["^docker"])), pair("docker0", "172.17.0.1"));
    // Both an address (eth0's) and an earlier name (lo) match: the address wins.
    assert_eq!(chosen(&host(), &regex(&["^lo|^10[.]"])), pair("eth0", "10.4.7.21"));
    // Loopback addresses never qualify, other addresses of the loopback link do.
    assert_eq!(chosen(&host(), &regex(&["^1"])), pair("lo", "198.51.100.7"));
}

#[test]
fn regexes_come_after_all_names() {
    let wish = InterfaceWish { iface: vec!["eth1".into()], ..regex(&["eth0"]) };
    assert_eq!(chosen(&host(), &wish), pair("eth1", "192.168.5.21"));
    let wish = InterfaceWish { iface: vec!["eth9".into()], ..regex(&["wlan", "eth0"]) };
    assert_eq!(chosen(&host(), &wish), pair("eth0", "10.4.7.21"));
}

#[test]
fn a_broken_regex_is_one_line() {
    assert_eq!(refused(&host(), &regex(&["eth("])), "--iface-regex eth(: unclosed group");
}

#[test]
fn can_reach_comes_last_and_brings_its_source() {
    let wish = InterfaceWish { can_reach: Some(Ipv4Addr::new(8, 8, 8, 8)), ..iface(&["eth9"]) };
    let reach = Some(RouteAnswer { index: 2, source: Some(Ipv4Addr::new(10, 4, 7, 121)) });
    let snapshot = Snapshot { reach, ..host() };
    assert_eq!(chosen(&snapshot, &wish), pair("eth0", "10.4.7.121"));

    let without_source = Some(RouteAnswer { index: 3, source: None });
    let snapshot = Snapshot { reach: without_source, ..host() };
    assert_eq!(chosen(&snapshot, &wish), pair("eth1", "192.168.5.21"));

    let text = refused(&host(), &wish);
    assert!(text.contains("--iface-can-reach 8.8.8.8: there is no route to it"), "{text}");
}

#[test]
fn the_best_address_comes_first() {
    let mut snapshot = host();
    let mut dynamic = address("10.1.0.1/24");
    dynamic.permanent = false;
    let mut deprecated = address("10.1.0.2/24");
    deprecated.deprecated = true;
    let mut secondary = address("10.1.0.3/24");
    secondary.secondary = true;
    let link_local = address("169.254.0.4/16");
    snapshot.links[1].addresses =
        vec![deprecated, link_local, dynamic, secondary, address("10.1.0.5/24")];
    let order: Vec<String> = candidates(&snapshot.links[1])
        .iter()
        .map(|candidate| candidate.net.addr().to_string())
        .collect();
    assert_eq!(order, ["10.1.0.5", "10.1.0.3", "10.1.0.1", "169.254.0.4"]);
}

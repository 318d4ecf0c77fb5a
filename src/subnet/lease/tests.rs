use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn subnet(text: &str) -> Subnet {
    text.parse().unwrap()
}

#[test]
fn keys_read_and_write_as_upstream() {
    let v4 = subnet("10.12.13.0-24");
    assert_eq!(v4, Subnet::new("10.12.13.0/24".parse().unwrap()));
    assert_eq!(v4.to_string(), "10.12.13.0-24");

    let dual = subnet("10.12.13.0-24&fd00:12:13::-56");
    assert_eq!(dual.v4, v4.v4);
    assert_eq!(dual.v6, Some("fd00:12:13::/56".parse().unwrap()));
    assert_eq!(dual.to_string(), "10.12.13.0-24&fd00:12:13::-56");
}

#[test]
fn a_key_is_not_masked() {
    assert_eq!(subnet("10.5.1.7-24").to_string(), "10.5.1.7-24");
}

#[test]
fn the_longest_keys_fit() {
    let key = "255.255.255.255-31&fd00:1111:2222:3333:4444:5555:6666:7777-127";
    assert_eq!(subnet(key).to_string(), key);
}

#[test]
fn a_whole_store_key_is_accepted() {
    let expected = Ok(subnet("10.5.1.0-24"));
    assert_eq!(Subnet::from_key_path("/coreos.com/network/subnets/10.5.1.0-24"), expected);
    assert_eq!(Subnet::from_key_path("10.5.1.0-24"), expected);
    assert!(Subnet::from_key_path("/coreos.com/network/subnets/").is_err());
    assert!("subnets/10.5.1.0-24".parse::<Subnet>().is_err());
}

#[test]
fn what_is_no_key_is_refused() {
    for key in [
        "",
        "10",
        "10.12.13.0",
        "10.12.13.0-",
        "10.12.13-24",
        "10.12.13.0.0-24",
        "10.12.300.0-24",
        "10.012.13.0-24",
        "10.12.13.0-24x",
        "10.12.13.0-24 ",
        " 10.12.13.0-24",
        "10.12.13.0-+4",
        "10.12.13.0-24-24",
        "10.12.13.0/24",
        "10.12.13.0-32",
        "10.12.13.0-256",
        "fd00:12:13::-56",
        "&fd00:12:13::-56",
        "10.12.13.0-24&",
        "10.12.13.0-24&fd00:12:13::",
        "10.12.13.0-24&fd00:12:13::-",
        "10.12.13.0-24&fd00:12:13::-128",
        "10.12.13.0-24&fd00:12:13::-56x",
        "10.12.13.0-24&fd00:12:13-56",
        "10.12.13.0-24&fd00:12:z::-56",
        "10.12.13.0-24&FD00:12:13::-56",
        "10.12.13.0-24&::ffff:10.1.1.1-56",
        "10.12.13.0-24&::ffff:a01:101-56",
        "10.12.13.0-24&fd00:12:13::-56&fd00:12:13::-56",
    ] {
        assert!(key.parse::<Subnet>().is_err(), "{key:?} was accepted");
    }
}

#[test]
fn key_errors_name_the_key_and_stay_short() {
    let error = "10.12.13.0-32".parse::<Subnet>().unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"key "10.12.13.0-32" is not a subnet: prefix length "32" is not in 0..=31"#
    );
    assert_eq!("0".repeat(129).parse::<Subnet>(), Err(KeyError::TooLong { bytes: 129 }));
}

#[test]
fn overlap_sees_both_families_and_all_lengths() {
    for (a, b, expected) in [
        ("10.5.1.0-24", "10.5.1.0-24", true),
        ("10.5.1.0-24", "10.5.2.0-24", false),
        ("10.5.0.0-16", "10.5.2.0-24", true),
        ("10.5.1.77-24", "10.5.1.128-25", true),
        ("0.0.0.0-0", "10.5.1.128-25", true),
        ("10.5.1.0-24&fd00::-64", "10.5.2.0-24", false),
        ("10.5.1.0-24&fd00::-64", "10.5.2.0-24&fd00::-80", true),
        ("10.5.1.0-24&fd00::-64", "10.5.2.0-24&fd00:0:0:1::-64", false),
    ] {
        assert_eq!(subnet(a).overlaps(&subnet(b)), expected, "{a} {b}");
        assert_eq!(subnet(b).overlaps(&subnet(a)), expected, "{b} {a}");
    }
}

#[test]
fn values_are_written_byte_for_byte_as_go() {
    let udp = LeaseAttrs::udp(Ipv4Addr::new(1, 2, 3, 4));
    assert_eq!(udp.to_json(), r#"{"PublicIP":"1.2.3.4","PublicIPv6":null}"#);

    let host_gw = LeaseAttrs { backend_type: "host-gw".into(), ..udp.clone() };
    assert_eq!(
        host_gw.to_json(),
        r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"host-gw"}"#
    );

    let vxlan = LeaseAttrs {
        backend_type: "vxlan".into(),
        backend_data: r#"{ "VNI": 1, "VtepMAC": "c6:d2:32:6f:8f:44" }"#.into(),
        ..udp.clone()
    };
    assert_eq!(
        vxlan.to_json(),
        r#"{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"c6:d2:32:6f:8f:44"}}"#
    );

    let all = LeaseAttrs {
        public_ipv6: Some("fd00:0:0:0:0:0:0:1".parse().unwrap()),
        backend_type: "a<b>&\u{2028}\"".into(),
        backend_v6_data: r#""<p>""#.into(),
        ..udp
    };
    assert_eq!(
        all.to_json(),
        r#"{"PublicIP":"1.2.3.4","PublicIPv6":"fd00::1","BackendType":"a\u003cb\u003e\u0026\u2028\"","BackendV6Data":"\u003cp\u003e"}"#
    );
}

#[test]
fn values_are_read_as_go_reads_them() {
    let read = |text: &str| LeaseAttrs::from_json(text.as_bytes()).unwrap();
    let none = LeaseAttrs::udp(Ipv4Addr::UNSPECIFIED);
    let udp = LeaseAttrs::udp(Ipv4Addr::new(1, 2, 3, 4));

    assert_eq!(read("{}"), none);
    assert_eq!(read("null"), none);
    assert_eq!(read(r#"{"PublicIP":"1.2.3.4"}"#), udp);
    assert_eq!(read(r#" {"publicip" : "1.2.3.4", "PUBLICIPV6": null, "New": [{}]} "#), udp);
    assert_eq!(read(r#"{"PublicIP":"9.9.9.9","publicIP":"1.2.3.4","BackendType":null}"#), udp);
    assert_eq!(read(r#"{"BackendType":"a\u003c"}"#).backend_type, "a<");
    assert_eq!(read(r#"{"BackendData":{ "a" : "<" }}"#).backend_data, r#"{"a":"\u003c"}"#);
    assert_eq!(read(r#"{"BackendV6Data":"out\nput"}"#).backend_v6_data, r#""out\nput""#);
    assert_eq!(
        LeaseAttrs::from_json(b"{\"BackendType\":\"\xff\"}").unwrap().backend_type,
        "\u{fffd}"
    );
}

#[test]
fn what_is_no_value_is_refused() {
    for text in [
        "",
        "x",
        "[]",
        "{",
        "{} x",
        r#"{"PublicIP":null}"#,
        r#"{"PublicIP":""}"#,
        r#"{"PublicIP":"1.2.3"}"#,
        r#"{"PublicIP":"01.2.3.4"}"#,
        r#"{"PublicIP":"fd00::1"}"#,
        r#"{"PublicIP":16909060}"#,
        r#"{"PublicIPv6":""}"#,
        r#"{"PublicIPv6":"1.2.3.4"}"#,
        r#"{"BackendType":1}"#,
        r#"{"BackendData":}"#,
    ] {
        assert!(LeaseAttrs::from_json(text.as_bytes()).is_err(), "{text:?} was accepted");
    }
    let long = format!("{{}}{}", " ".repeat(MAX_VALUE_BYTES));
    assert_eq!(
        LeaseAttrs::from_json(long.as_bytes()),
        Err(ValueError::TooLong { bytes: MAX_VALUE_BYTES + 2 })
    );
    assert_eq!(
        LeaseAttrs::from_json(br#"{"PublicIP":null}"#).unwrap_err().to_string(),
        r#"lease field PublicIP="null": expected an IPv4 address in quotes"#
    );
}

#[test]
fn reservations_never_end() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
    assert!(!Expiry::Permanent.is_past(now));
    assert!(Expiry::At(now).is_past(now));
    assert!(Expiry::At(now - Duration::from_secs(1)).is_past(now));
    assert!(!Expiry::At(now + Duration::from_nanos(1)).is_past(now));
}

prop_compose! {
    fn any_subnet()(
        v4: u32, v4_len in 0u8..=31,
        v6 in proptest::option::of((any::<u128>(), 0u8..=127)),
    ) -> Subnet {
        Subnet {
            v4: Ipv4Net::new_assert(v4.into(), v4_len),
            v6: v6.map(|(bits, len)| Ipv6Net::new_assert((bits | 1 << 127).into(), len)),
        }
    }
}

prop_compose! {
    fn any_attrs()(
        v4: u32, v6: Option<u128>, backend_type: String,
        data in proptest::option::of(any::<String>()),
        more in proptest::option::of(any::<i64>()),
    ) -> LeaseAttrs {
        let json = |text: String| {
            let mut out = String::new();
            append_string(&mut out, &text);
            out
        };
        LeaseAttrs {
            public_ip: v4.into(),
            public_ipv6: v6.map(Into::into),
            backend_type,
            backend_data: data.map(json).unwrap_or_default(),
            backend_v6_data: more.map(|n| n.to_string()).unwrap_or_default(),
        }
    }
}

proptest! {
    #[test]
    fn keys_round_trip(subnet in any_subnet()) {
        prop_assert_eq!(subnet.to_string().parse(), Ok(subnet));
    }

    #[test]
    fn values_round_trip(attrs in any_attrs()) {
        prop_assert_eq!(LeaseAttrs::from_json(attrs.to_json().as_bytes()), Ok(attrs));
    }

    #[test]
    fn any_accepted_key_round_trips(key in "[0-9.&:a-f/-]{0,40}|\\PC{0,20}") {
        if let Ok(subnet) = Subnet::from_key_path(&key) {
            prop_assert_eq!(subnet.to_string().parse(), Ok(subnet));
        }
    }

    #[test]
    fn no_value_panics(bytes: Vec<u8>, tail in ".{0,40}") {
        let _ = LeaseAttrs::from_json(&bytes);
        let _ = LeaseAttrs::from_json(format!("{{\"PublicIP\":{tail}").as_bytes());
    }
}

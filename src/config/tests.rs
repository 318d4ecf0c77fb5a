use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> NetworkConfig {
    NetworkConfig::parse(text).unwrap()
}

fn error(text: &str) -> String {
    match NetworkConfig::parse(text) {
        Ok(config) => panic!("{text} was accepted: {config:?}"),
        Err(error) => error.to_string(),
    }
}

fn v4(config: &NetworkConfig) -> (String, u8, String, String) {
    let NetworkConfig { network, subnet_len, subnet_min, subnet_max, .. } = config;
    (network.to_string(), *subnet_len, subnet_min.to_string(), subnet_max.to_string())
}

fn v6(config: &NetworkConfig) -> (String, u8, String, String) {
    let Ipv6NetworkConfig { network, subnet_len, subnet_min, subnet_max } =
        config.ipv6.as_ref().unwrap();
    (network.to_string(), *subnet_len, subnet_min.to_string(), subnet_max.to_string())
}

fn expect(network: &str, len: u8, min: &str, max: &str) -> (String, u8, String, String) {
    (network.into(), len, min.into(), max.into())
}

#[test]
fn defaults_are_upstreams() {
    let config = parse(r#"{ "network": "10.3.0.0/16" }"#);
    assert_eq!(v4(&config), expect("10.3.0.0/16", 24, "10.3.1.0", "10.3.255.0"));
    assert_eq!(config.ipv6, None);
    assert!(!config.enable_nftables);
    assert_eq!(config.backend.kind, "udp");
    assert_eq!(config.backend.udp_port(), Ok(8285));

    let config = parse(r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48"}"#);
    assert_eq!(v6(&config), expect("fc00::/48", 64, "fc00:0:0:1::", "fc00:0:0:ffff::"));
}

#[test]
fn every_network_length_derives_its_subnet_length() {
    for p in 1..=28 {
        let config = parse(&format!(r#"{{"Network":"255.255.255.255/{p}"}}"#));
        assert_eq!(config.subnet_len, if p <= 22 { 24 } else { p + 2 }, "/{p}");
        assert!(config.network.contains(&config.subnet_max), "/{p}");
    }
    for p in 1..=124 {
        let config = parse(&format!(
            r#"{{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/{p}"}}"#
        ));
        let config = config.ipv6.unwrap();
        assert_eq!(config.subnet_len, if p <= 62 { 64 } else { p + 2 }, "/{p}");
        assert!(config.network.contains(&config.subnet_max), "/{p}");
    }
}

#[test]
fn explicit_values_override() {
    let config = parse(
        r#"{"Network":"10.3.7.9/16","SubnetLen":28,"SubnetMin":"10.3.0.0","SubnetMax":"10.3.8.16",
            "EnableIPv6":true,"IPv6Network":"fc00::1/48","IPv6SubnetLen":60,
            "IPv6SubnetMin":"fc00::","IPv6SubnetMax":"fc00:0:0:fff0::","EnableNFTables":true}"#,
    );
    assert_eq!(v4(&config), expect("10.3.0.0/16", 28, "10.3.0.0", "10.3.8.16"));
    assert_eq!(v6(&config), expect("fc00::/48", 60, "fc00::", "fc00:0:0:fff0::"));
    assert!(config.enable_nftables);
}

#[test]
fn go_decoding_rules_hold() {
    let expected = parse(r#"{"Network":"10.3.0.0/16","SubnetLen":26}"#);
    for text in [
        r#"{"NETWORK":"10.3.0.0/16","subnetlen":26,"Unknown":{"x":[null]}}"#,
        r#"{"Network":"10.4.0.0/16","network":"10.3.0.0/16","SubnetLen":25,"SubnetLen":26}"#,
        r#"{"Network":"10.3.0.0/016","SubnetLen":26,"SubnetMin":"0.0.0.0","SubnetMax":"0.0.0.0"}"#,
        r#"{"Network":"10.3.0.0/16","SubnetLen":26,"EnableIPv4":null,"EnableIPv6":null,"IPv6SubnetMin":null}"#,
        r#"{"Network":"10.3.0.0/16","SubnetLen":26,"IPv6Network":"fc00::/48"}"#,
    ] {
        assert_eq!(parse(text), expected, "{text}");
    }
}

#[test]
fn each_rule_has_its_own_error() {
    const HEAD: &str = "network config: ";
    for (text, expected) in [
        ("{}", r#"Network=none: a network is required, for example "10.5.0.0/16""#),
        ("null", r#"Network=none: a network is required, for example "10.5.0.0/16""#),
        (
            r#"{"Network":"1.2.3.4/0"}"#,
            r#"Network=0.0.0.0/0: a network is required, for example "10.5.0.0/16""#,
        ),
        (
            r#"{"EnableIPv4":false,"Network":"10.3.0.0/16"}"#,
            "EnableIPv4=false: must be true: a store without IPv4 subnets is not supported",
        ),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":31}"#, "SubnetLen=31: must be at most 30"),
        (r#"{"Network":"10.3.0.0/16","SubnetLen":300}"#, "SubnetLen=300: must be at most 30"),
        (
            r#"{"Network":"10.3.0.0/16","SubnetLen":17}"#,
            "SubnetLen=17: must be at least 18, so that 10.3.0.0/16 holds four subnets",
        ),
        (
            r#"{"Network":"10.3.0.0/32","SubnetLen":30}"#,
            "SubnetLen=30: must be at least 34, so that 10.3.0.0/32 holds four subnets",
        ),
        (
            r#"{"Network":"10.3.0.0/29"}"#,
            "Network=10.3.0.0/29: the network is too small: /28 is the minimum",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.2.255.0"}"#,
            "SubnetMin=10.2.255.0: must lie in the network 10.3.0.0/16",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMax":"10.4.0.0"}"#,
            "SubnetMax=10.4.0.0: must lie in the network 10.3.0.0/16",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.1.1"}"#,
            "SubnetMin=10.3.1.1: must be the base address of a /24 subnet",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMax":"10.3.255.255"}"#,
            "SubnetMax=10.3.255.255: must be the base address of a /24 subnet",
        ),
        (
            r#"{"Network":"10.3.0.0/16","SubnetMin":"10.3.9.0","SubnetMax":"10.3.8.0"}"#,
            "SubnetMin=10.3.9.0: must not be above SubnetMax=10.3.8.0",
        ),
        (
            r#"{"Network":"10.3.0.0/16","EnableIPv6":true}"#,
            r#"IPv6Network=none: a network is required, for example "fd00:5::/48""#,
        ),
        (
            r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/125"}"#,
            "IPv6Network=fc00::/125: the network is too small: /124 is the minimum",
        ),
        (
            r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetLen":127}"#,
            "IPv6SubnetLen=127: must be at most 126",
        ),
        (
            r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetMin":"fc00:0:0:9::","IPv6SubnetMax":"fc00:0:0:8::"}"#,
            "IPv6SubnetMin=fc00:0:0:9::: must not be above IPv6SubnetMax=fc00:0:0:8::",
        ),
        (
            r#"{"Network":"10.3.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetMin":"::"}"#,
            "IPv6SubnetMin=::: must lie in the network fc00::/48",
        ),
    ] {
        assert_eq!(error(text), format!("{HEAD}{expected}"), "{text}");
    }
}

#[test]
fn wrong_types_are_refused() {
    for fields in [
        r#""Network":"10.3.0.0""#,
        r#""Network":"10.3.0.0/33""#,
        r#""Network":"10.3.0.0/+8""#,
        r#""Network":"10.3.0.0/""#,
        r#""Network":"10.03.0.0/16""#,
        r#""Network":" 10.3.0.0/16""#,
        r#""Network":"fc00::/48""#,
        r#""Network":"""#,
        r#""Network":null"#,
        r#""SubnetLen":-1"#,
        r#""SubnetLen":24.0"#,
        r#""SubnetLen":"24""#,
        r#""SubnetLen":18446744073709551616"#,
        r#""SubnetMin":null"#,
        r#""SubnetMin":"""#,
        r#""SubnetMax":"10.3.1""#,
        r#""SubnetMax":"::1""#,
        r#""IPv6Network":null"#,
        r#""IPv6Network":"10.3.0.0/16""#,
        r#""IPv6Network":"fc00::%eth0/48""#,
        r#""IPv6Network":"::ffff:10.3.0.0/112""#,
        r#""IPv6SubnetMin":"""#,
        r#""EnableIPv4":1"#,
        r#""EnableIPv6":"true""#,
        r#""Backend":"udp""#,
        r#""Backend":{"Type":1}"#,
    ] {
        let text = format!(r#"{{"Network":"10.3.0.0/16",{fields}}}"#);
        let field = fields[1..].split('"').next().unwrap();
        assert!(error(&text).starts_with(&format!("network config: {field}")), "{text}");
    }
    for text in ["", "x", "[]", "{} {}"] {
        assert!(error(text).starts_with("network config is not a JSON object: "), "{text}");
    }
    assert_eq!(
        error(r#"{"Network":"10.3.0.0"}"#),
        r#"network config: Network="\"10.3.0.0\"": must be an IPv4 network in quotes such as "10.5.0.0/16""#
    );
    let long = " ".repeat(MAX_CONFIG_BYTES + 1);
    assert_eq!(
        NetworkConfig::parse(&long),
        Err(ConfigError::TooLong { bytes: MAX_CONFIG_BYTES + 1 })
    );
}

#[test]
fn the_backends_type_is_lower_cased_and_may_be_missing() {
    let kind = |backend: &str| {
        parse(&format!(r#"{{"Network":"10.3.0.0/16","backend":{backend}}}"#)).backend.kind
    };
    assert_eq!(kind(r#"{"type":"VXLAN","VNI":1}"#), "vxlan");
    assert_eq!(kind("{}"), "");
    assert_eq!(kind("null"), "");
    assert_eq!(kind(r#"{"Type":null}"#), "");
}

#[test]
fn the_udp_port_is_checked() {
    let port = |backend: &str| {
        parse(&format!(r#"{{"Network":"10.3.0.0/16","Backend":{backend}}}"#)).backend.udp_port()
    };
    assert_eq!(port("null"), Ok(8285));
    assert_eq!(port(r#"{"Type":"udp","Port":null}"#), Ok(8285));
    assert_eq!(port(r#"{"port":1}"#), Ok(1));
    assert_eq!(port(r#"{"Port":65535}"#), Ok(65535));
    for bad in ["0", "-1", "65536", "8285.0", "\"8285\""] {
        let error = port(&format!(r#"{{"Port":{bad}}}"#)).unwrap_err().to_string();
        assert!(error.starts_with("network config: Backend.Port="), "{error}");
        assert!(error.ends_with(": must be a port number from 1 to 65535"), "{error}");
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*", value in "[0-9./\":a-f,{}]{0,30}") {
        let _ = NetworkConfig::parse(&text);
        let _ = NetworkConfig::parse(&format!(r#"{{"Network":{value}}}"#));
    }

    #[test]
    fn what_is_accepted_obeys_the_rules(
        network: u32, p in 0u8..=32, l in 0u8..=33, min: Option<u32>, max: Option<u32>,
    ) {
        let mut text = format!(r#"{{"Network":"{}/{p}","SubnetLen":{l}"#, Ipv4Addr::from(network));
        // Bounds near the network and on its grid, or else almost none would be accepted.
        let near = |bits: u32| Ipv4Addr::from(network ^ (bits >> (p / 2).min(31) & !0xff));
        for (field, bound) in [("SubnetMin", min), ("SubnetMax", max)] {
            if let Some(bound) = bound {
                text += &format!(r#","{field}":"{}""#, near(bound));
            }
        }
        if let Ok(config) = NetworkConfig::parse(&(text + "}")) {
            prop_assert!(config.subnet_len <= 30 && config.subnet_len >= p + 2);
            prop_assert!(config.subnet_min <= config.subnet_max);
            for bound in [config.subnet_min, config.subnet_max] {
                let subnet = Ipv4Net::new(bound, config.subnet_len).unwrap();
                prop_assert_eq!(subnet.network(), bound);
                prop_assert!(config.network.contains(&subnet));
            }
        }
    }
}

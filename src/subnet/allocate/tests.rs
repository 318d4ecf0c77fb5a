use std::collections::BTreeSet;

use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;

fn config(text: &str) -> NetworkConfig {
    NetworkConfig::parse(text).unwrap()
}

fn small() -> NetworkConfig {
    config(r#"{"Network":"10.5.0.0/16"}"#)
}

fn dual() -> NetworkConfig {
    config(r#"{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:5::/48"}"#)
}

fn subnet(text: &str) -> Subnet {
    text.parse().unwrap()
}

fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// Everything that `pick` returns in many draws.
fn drawn(config: &NetworkConfig, taken: &[Subnet]) -> BTreeSet<Subnet> {
    (0..2000).filter_map(|seed| pick(config, taken, CANDIDATES, &mut rng(seed))).collect()
}

#[test]
fn fits_checks_range_length_and_alignment() {
    for (key, expected) in [
        ("10.5.1.0-24", None),
        ("10.5.255.0-24", None),
        ("10.5.0.0-24", Some("subnet 10.5.0.0/24 is not between 10.5.1.0 and 10.5.255.0")),
        ("10.6.0.0-24", Some("subnet 10.6.0.0/24 is not between 10.5.1.0 and 10.5.255.0")),
        ("10.5.1.0-25", Some("subnet 10.5.1.0/25 has not the network's subnet length /24")),
        ("10.5.0.0-16", Some("subnet 10.5.0.0/16 has not the network's subnet length /24")),
        (
            "10.5.1.7-24",
            Some("subnet 10.5.1.7/24 does not start at a base address: expected 10.5.1.0"),
        ),
        (
            "10.5.1.0-24&fd00:5:0:1::-64",
            Some("subnet 10.5.1.0-24&fd00:5:0:1::-64 has an IPv6 part, but IPv6 is not enabled"),
        ),
    ] {
        let error = fits(&small(), &subnet(key)).err().map(|e| e.to_string());
        assert_eq!(error.as_deref(), expected, "{key}");
    }
}

#[test]
fn fits_checks_both_families() {
    assert_eq!(fits(&dual(), &subnet("10.5.1.0-24&fd00:5:0:1::-64")), Ok(()));
    for key in [
        "10.5.1.0-24",
        "10.6.1.0-24&fd00:5:0:1::-64",
        "10.5.1.0-24&fd00:5::-64",
        "10.5.1.0-24&fd00:6:0:1::-64",
        "10.5.1.0-24&fd00:5:0:1::-65",
        "10.5.1.0-24&fd00:5:0:1::1-64",
    ] {
        assert!(fits(&dual(), &subnet(key)).is_err(), "{key}");
    }
}

#[test]
fn draws_from_the_hundred_lowest_free_subnets_only() {
    let taken = [subnet("10.5.1.0-24"), subnet("10.5.3.0-24")];
    let drawn = drawn(&small(), &taken);
    assert_eq!(drawn.len(), 100, "every candidate has a chance");
    assert_eq!(drawn.first(), Some(&subnet("10.5.2.0-24")));
    assert_eq!(drawn.last(), Some(&subnet("10.5.102.0-24")));
    assert!(drawn.is_disjoint(&taken.into()));
}

#[test]
fn draws_evenly() {
    let config = config(r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.4.0"}"#);
    let mut hits = [0u32; 5];
    let mut rng = rng(1);
    for _ in 0..4000 {
        let subnet = pick(&config, &[], CANDIDATES, &mut rng).unwrap();
        hits[usize::from(subnet.v4.addr().octets()[2])] += 1;
    }
    // 1000 each; 150 is more than five times the standard deviation.
    assert!(hits[1..].iter().all(|n| n.abs_diff(1000) < 150), "{hits:?}");
}

#[test]
fn leases_of_any_length_are_avoided() {
    let config = config(r#"{"Network":"10.5.0.0/16","SubnetMax":"10.5.9.0"}"#);
    let taken = ["10.5.2.128-25", "10.5.4.0-22", "10.5.5.0-24", "10.5.1.3-31", "10.6.0.0-16"];
    let taken = taken.map(subnet);
    let expected = ["10.5.3.0-24", "10.5.8.0-24", "10.5.9.0-24"].map(subnet);
    assert_eq!(drawn(&config, &taken), expected.into());
}

#[test]
fn a_full_network_gives_none() {
    let all: Vec<_> = (1..=255).map(|i| subnet(&format!("10.5.{i}.0-24"))).collect();
    assert_eq!(pick(&small(), &all, CANDIDATES, &mut rng(1)), None);
    assert_eq!(pick(&small(), &[subnet("0.0.0.0-0")], CANDIDATES, &mut rng(1)), None);
    assert_eq!(pick(&small(), &all[1..], CANDIDATES, &mut rng(1)), Some(all[0]));
}

#[test]
fn the_last_subnet_of_the_address_space_can_be_had() {
    let config = config(
        r#"{"Network":"255.255.0.0/16","SubnetMin":"255.255.255.0","EnableIPv6":true,
            "IPv6Network":"ffff::/16","IPv6SubnetMin":"ffff:ffff:ffff:ffff::"}"#,
    );
    let last = subnet("255.255.255.0-24&ffff:ffff:ffff:ffff::-64");
    assert_eq!(pick(&config, &[], CANDIDATES, &mut rng(1)), Some(last));
    assert_eq!(pick(&config, &[last], CANDIDATES, &mut rng(1)), None);
}

#[test]
fn leases_with_and_without_ipv6_may_mix() {
    let mixed = [
        subnet("10.5.1.0-24"),
        subnet("10.5.2.0-24&fd00:5:0:1::-64"),
        subnet("10.5.3.0-24&fd00:5:0:2::-63"),
    ];
    for seed in 0..500 {
        let v4 = pick(&small(), &mixed, CANDIDATES, &mut rng(seed)).unwrap();
        assert_eq!(v4.v6, None);
        let both = pick(&dual(), &mixed, CANDIDATES, &mut rng(seed)).unwrap();
        assert!(both.v6.is_some());
        for taken in &mixed {
            assert!(!v4.overlaps(taken) && !both.overlaps(taken), "{v4} {both} {taken}");
        }
    }
}

#[test]
fn a_hundred_thousand_leases_are_no_burden() {
    // Quadratic work would take minutes here.
    let config = config(r#"{"Network":"10.0.0.0/8"}"#);
    let halves = |i: u32| {
        let base = 0x0a00_0000 + (i << 8);
        [base, base + 128].map(|half| Subnet::new(Ipv4Net::new_assert(half.into(), 25)))
    };
    // All but the last.
    let mut taken: Vec<_> = (1..65_535).flat_map(halves).collect();
    taken.reverse();
    assert_eq!(taken.len(), 131_068);
    assert_eq!(pick(&config, &taken, CANDIDATES, &mut rng(1)), Some(subnet("10.255.255.0-24")));
}

proptest! {
    #[test]
    fn agrees_with_the_plain_search(
        leases in proptest::collection::vec((0u32..0x4_0000, 18u8..=31), 0..60), seed: u64,
    ) {
        let config = config(r#"{"Network":"10.4.0.0/14","SubnetMax":"10.4.32.0"}"#);
        let taken: Vec<_> = leases
            .into_iter()
            .map(|(bits, len)| Ipv4Net::new_assert((0x0a04_0000 + bits / 16).into(), len))
            .map(Subnet::new)
            .collect();
        let free: Vec<_> = (1..=32u8)
            .map(|i| subnet(&format!("10.4.{i}.0-24")))
            .filter(|s| !taken.iter().any(|t| t.overlaps(s)))
            .collect();
        match pick(&config, &taken, CANDIDATES, &mut rng(seed)) {
            Some(picked) => {
                prop_assert!(free.contains(&picked));
                prop_assert_eq!(fits(&config, &picked), Ok(()));
            }
            None => prop_assert!(free.is_empty()),
        }
    }
}

#[test]
fn a_crowd_draws_from_more() {
    let drawn = |candidates| {
        let draws = (0..2000).filter_map(|seed| pick(&small(), &[], candidates, &mut rng(seed)));
        draws.collect::<BTreeSet<Subnet>>().len()
    };
    assert_eq!((drawn(1), drawn(CANDIDATES), drawn(usize::MAX)), (1, CANDIDATES, 255));
}

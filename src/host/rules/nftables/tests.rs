use super::*;

const ALL: Wanted = Wanted { masquerade: true, forward: true, random_fully: true };

fn v4() -> Nets {
    Nets::v4("172.7.0.0/16".parse().unwrap(), "172.7.21.0/24".parse().unwrap())
}

#[test]
fn a_table_is_replaced_in_one_transaction() {
    let table = Table::new(&v4(), ALL, true);
    assert_eq!(table.rules, 8);
    // Section 9.2 of the facts, with the mask and rule 4 of section 9.1.
    assert_eq!(
        table.text,
        "\
add table ip flannel-ipv4
delete table ip flannel-ipv4
table ip flannel-ipv4 {
\tcomment \"rules for flannel-ipv4\"
\tchain postrtg {
\t\tcomment \"chain to manage traffic masquerading by flannel\"
\t\ttype nat hook postrouting priority 100; policy accept;
\t\tmeta mark & 0x4000 == 0x4000 return
\t\tip saddr 172.7.21.0/24 ip daddr 172.7.0.0/16 return
\t\tip saddr 172.7.0.0/16 ip daddr 172.7.21.0/24 return
\t\tip saddr != 172.7.0.0/16 ip daddr 172.7.21.0/24 return
\t\tip saddr 172.7.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
\t\tip saddr != 172.7.0.0/16 ip daddr 172.7.0.0/16 masquerade fully-random
\t}
\tchain forward {
\t\tcomment \"chain to accept flannel traffic\"
\t\ttype filter hook forward priority 0; policy accept;
\t\tip saddr 172.7.0.0/16 accept
\t\tip daddr 172.7.0.0/16 accept
\t}
}
"
    );
}

#[test]
fn what_is_not_wanted_or_not_known_is_left_out() {
    let plain = Wanted { random_fully: false, forward: false, ..ALL };
    let table = Table::new(&v4(), plain, false);
    assert_eq!(table.rules, 6);
    for word in ["comment", "fully-random", "chain forward"] {
        assert!(!table.text.contains(word), "{word}: {}", table.text);
    }
    let nets = Nets::v6("fd00:7::/48".parse().unwrap(), "fd00:7:0:21::/64".parse().unwrap());
    let table = Table::new(&nets, Wanted { masquerade: false, ..ALL }, true);
    assert_eq!(table.rules, 2);
    assert!(!table.text.contains("postrtg"), "{}", table.text);
    assert!(table.text.contains("table ip6 flannel-ipv6 {"), "{}", table.text);
    assert!(table.text.contains("ip6 saddr fd00:7::/48 accept"), "{}", table.text);
}

#[test]
fn listings_differ_by_more_than_handles_if_at_all() {
    let listing = |handle: u32, chain: &str| {
        format!(
            r#"{{"nftables":[{{"metainfo":{{"version":"1.0.6"}}}},{{"table":{{"family":"ip","name":"t","handle":{handle}}}}},{{"chain":{{"name":"{chain}","handle":{handle}}}}}]}}"#
        )
    };
    let read = |text: String| objects(text.as_bytes());
    let first = read(listing(1, "postrtg")).unwrap();
    assert_eq!(first.len(), 2);
    assert_eq!(read(listing(2, "postrtg")).unwrap(), first);
    assert_ne!(read(listing(2, "forward")).unwrap(), first);
    for nonsense in ["", "{}", r#"{"nftables":{}}"#, r#"{"nftables":[1]}"#] {
        assert_eq!(read(nonsense.into()), None, "{nonsense}");
    }
}

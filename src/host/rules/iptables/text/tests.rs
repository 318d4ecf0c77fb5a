use super::*;
use crate::host::rules::{Nets, rule};

fn nets() -> Nets {
    Nets::v4("172.7.0.0/16".parse().unwrap(), "172.7.21.0/24".parse().unwrap())
}

const JUMP: &str = r#"-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG"#;

/// Section 9.1 of the facts, as `iptables -S` shows it.
const RULES: &str = r#"-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 172.7.21.0/24 -d 172.7.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 172.7.0.0/16 -d 172.7.21.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 172.7.0.0/16 -d 172.7.21.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 172.7.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 172.7.0.0/16 -d 172.7.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
"#;

#[test]
fn an_empty_table_gets_chain_jump_and_rules() {
    let text = MASQUERADE.set(&Present::default(), &rule::masquerade(&nets()), true);
    assert_eq!(text, format!("*nat\n:FLANNEL-POSTRTG - [0:0]\n{JUMP}\n{RULES}COMMIT\n"));
    let text = MASQUERADE.set(&Present::default(), &rule::masquerade(&nets()), false);
    assert!(text.contains("MASQUERADE\n") && !text.contains("random"), "{text}");

    let text = FORWARD.set(&Present::default(), &rule::forward(&nets()), true);
    let comment = r#"-m comment --comment "flanneld forward" -j"#;
    assert_eq!(
        text,
        format!(
            "*filter\n:FLANNEL-FWD - [0:0]\n-A FORWARD {comment} FLANNEL-FWD\n\
             -A FLANNEL-FWD -s 172.7.0.0/16 {comment} ACCEPT\n\
             -A FLANNEL-FWD -d 172.7.0.0/16 {comment} ACCEPT\nCOMMIT\n"
        )
    );
}

#[test]
fn ipv6_has_its_own_multicast_range() {
    let nets = Nets::v6("fd00:7::/48".parse().unwrap(), "fd00:7:0:21::/64".parse().unwrap());
    let text = MASQUERADE.set(&Present::default(), &rule::masquerade(&nets), false);
    assert!(text.contains("-s fd00:7::/48 ! -d ff00::/8 "), "{text}");
    assert!(text.contains("! -s fd00:7::/48 -d fd00:7:0:21::/64 "), "{text}");
}

#[test]
fn a_jump_stays_in_its_place_and_doubles_go() {
    let old = r#"-A POSTROUTING -s 172.7.0.0/16 -d 172.7.0.0/16 -m comment --comment "flanneld masq" -j RETURN"#;
    let listed = format!(
        "-P POSTROUTING ACCEPT\n-A POSTROUTING -s 10.9.0.0/16 -j MASQUERADE\n{old}\n{JUMP}\n\
         -A POSTROUTING -j FLANNEL-OTHER\n{JUMP}\n-N FLANNEL-POSTRTG\n{RULES}"
    );
    let present = MASQUERADE.find(&listed);
    assert!(present.exists);
    assert_eq!(present.rules.len(), 6);
    assert_eq!(present.in_parent, [old, JUMP, JUMP]);

    let text = MASQUERADE.set(&present, &rule::masquerade(&nets()), true);
    let (old, jump) = (old.replacen("-A", "-D", 1), JUMP.replacen("-A", "-D", 1));
    assert_eq!(text, format!("*nat\n:FLANNEL-POSTRTG - [0:0]\n{old}\n{jump}\n{RULES}COMMIT\n"));
}

#[test]
fn removing_takes_jumps_first_and_only_in_the_own_table() {
    let saved = format!(
        "# Generated\n*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j ACCEPT\nCOMMIT\n\
         *nat\n:POSTROUTING ACCEPT [0:0]\n:FLANNEL-POSTRTG - [0:0]\n{JUMP}\n{RULES}COMMIT\n"
    );
    assert_eq!(
        MASQUERADE.remove(&MASQUERADE.find_saved(&saved)),
        format!(
            "*nat\n{}\n-F FLANNEL-POSTRTG\n-X FLANNEL-POSTRTG\nCOMMIT\n",
            JUMP.replacen("-A", "-D", 1)
        )
    );
    assert_eq!(FORWARD.remove(&FORWARD.find_saved(&saved)), "", "there is nothing");
    // The same text under another table's head is not ours.
    let other = saved.replace("*nat", "*mangle");
    assert_eq!(MASQUERADE.remove(&MASQUERADE.find_saved(&other)), "");
}

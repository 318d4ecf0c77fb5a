use super::*;
use crate::host::rules::{Nets, rule};

fn nets() -> Nets {
    Nets::v4("172.7.0.0/16".parse().unwrap(), "172.7.21.0/24".parse().unwrap())
}

const JUMP: &str = r#"-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG"#;

/// Section 9.1 of the facts, as `iptables-save` shows it.
const RULES: &str = r#"-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 172.7.21.0/24 -d 172.7.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 172.7.0.0/16 -d 172.7.21.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 172.7.0.0/16 -d 172.7.21.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 172.7.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 172.7.0.0/16 -d 172.7.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
"#;

#[test]
fn an_empty_table_gets_chain_jump_and_rules() {
    let text = MASQUERADE.set(&Present::default(), None, &rule::masquerade(&nets()), true);
    let rules = RULES.replacen("-A", "-I", 1);
    assert_eq!(text, format!("*nat\n:FLANNEL-POSTRTG - [0:0]\n{JUMP}\n{rules}COMMIT\n"));
    let text = MASQUERADE.set(&Present::default(), None, &rule::masquerade(&nets()), false);
    assert!(text.contains("MASQUERADE\n") && !text.contains("random"), "{text}");

    let text = FORWARD.set(&Present::default(), None, &rule::forward(&nets()), true);
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
    let text = MASQUERADE.set(&Present::default(), None, &rule::masquerade(&nets), false);
    assert!(text.contains("-s fd00:7::/48 ! -d ff00::/8 "), "{text}");
    assert!(text.contains("! -s fd00:7::/48 -d fd00:7:0:21::/64 "), "{text}");
}

#[test]
fn a_jump_stays_in_its_place_and_doubles_go() {
    let old = r#"-A POSTROUTING -s 172.7.0.0/16 -d 172.7.0.0/16 -m comment --comment "flanneld masq" -j RETURN"#;
    let listed = format!(
        "*nat\n:POSTROUTING ACCEPT [0:0]\n:FLANNEL-POSTRTG - [0:0]\n\
         -A POSTROUTING -s 10.9.0.0/16 -j MASQUERADE\n{old}\n{JUMP}\n\
         -A POSTROUTING -j FLANNEL-OTHER\n{JUMP}\n{RULES}COMMIT\n"
    );
    let present = MASQUERADE.find(&listed);
    assert!(present.exists);
    assert_eq!(present.rules.len(), 6);
    assert_eq!(present.in_parent, [old, JUMP, JUMP]);

    let text = MASQUERADE.set(&present, None, &rule::masquerade(&nets()), true);
    let (old, jump) = (old.replacen("-A", "-D", 1), JUMP.replacen("-A", "-D", 1));
    let rules = RULES.replacen("-A", "-I", 1);
    assert_eq!(text, format!("*nat\n:FLANNEL-POSTRTG - [0:0]\n{old}\n{jump}\n{rules}COMMIT\n"));
}

/// Another daemon on this host shares the chain: its rules stay, strays go.
#[test]
fn the_chain_is_shared_with_other_daemons() {
    let stray = "-A FLANNEL-POSTRTG -j ACCEPT";
    let (marks, ours) = RULES.split_once('\n').unwrap();
    let others = ours.replace("172.7.", "10.5.");
    let rules = rule::masquerade(&nets());
    let own: Vec<String> = ours.lines().map(str::to_owned).collect();
    let head = "*nat\n:FLANNEL-POSTRTG - [0:0]";
    let find = |inside: &str| MASQUERADE.find(&format!("{head}\n{JUMP}\n{inside}\nCOMMIT\n"));
    let set = |inside: &str| MASQUERADE.set(&find(inside), Some(&own), &rules, true);
    let delete = |lines: &str| lines.replace("-A ", "-D ");
    for both in [format!("{marks}\n{ours}{others}"), format!("{marks}\n{others}{ours}")] {
        let present = find(&both);
        assert_eq!(present.find_own(&rules, &nets()), Some(&own[..]));
        assert!(MASQUERADE.holds(&present, &own));
        assert!(!MASQUERADE.holds(&find(&format!("{stray}\n{both}")), &own));
        assert_eq!(
            set(&format!("{both}{stray}")),
            format!("*nat\n{}{}\n{ours}COMMIT\n", delete(ours), delete(stray))
        );
    }
    // Ours are gone, the other's are not.
    assert_eq!(set(&format!("{marks}\n{others}")), format!("*nat\n{ours}COMMIT\n"));
    // The rule about marks is not where it must be, or double.
    for inside in [format!("{others}{marks}"), format!("{marks}\n{others}{marks}\n")] {
        let count = inside.matches("--mark").count();
        let delete = format!("{}\n", delete(marks)).repeat(count);
        let insert = marks.replacen("-A", "-I", 1);
        assert_eq!(set(&inside), format!("*nat\n{delete}{insert}\n{ours}COMMIT\n"));
    }
    // One missing, two in the wrong order, no way in.
    let mut lines: Vec<&str> = RULES.lines().collect();
    for missing in 0..6 {
        let mut lines = lines.clone();
        lines.remove(missing);
        assert!(!MASQUERADE.holds(&find(&lines.join("\n")), &own), "{missing}");
    }
    lines.swap(0, 1);
    assert!(!MASQUERADE.holds(&find(&lines.join("\n")), &own));
    let unused = MASQUERADE.find(&format!("{head}\n{RULES}COMMIT\n"));
    assert!(!MASQUERADE.holds(&unused, &own));
    assert_eq!(find(&others).find_own(&rules, &nets()), None);
}

#[test]
fn removing_takes_jumps_first_and_only_in_the_own_table() {
    let saved = format!(
        "# Generated\n*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j ACCEPT\nCOMMIT\n\
         *nat\n:POSTROUTING ACCEPT [0:0]\n:FLANNEL-POSTRTG - [0:0]\n{JUMP}\n{RULES}COMMIT\n"
    );
    assert_eq!(
        MASQUERADE.remove(&MASQUERADE.find(&saved)),
        format!(
            "*nat\n{}\n-F FLANNEL-POSTRTG\n-X FLANNEL-POSTRTG\nCOMMIT\n",
            JUMP.replacen("-A", "-D", 1)
        )
    );
    assert_eq!(FORWARD.remove(&FORWARD.find(&saved)), "", "there is nothing");
    // The same text under another table's head is not ours.
    let other = saved.replace("*nat", "*mangle");
    assert_eq!(MASQUERADE.remove(&MASQUERADE.find(&other)), "");
}

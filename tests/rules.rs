//! The traffic rules that the daemon sets, by the real tools in network namespaces: what is there,
//! what comes back when somebody takes it away, what goes when the operator changes his mind.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::File;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use support::admin::{HEALTHZ_FLAGS, wait_readyz};
use support::daemon::{Daemon, PATIENCE};
use support::lab::{CONFIG, Lab, LabHost};
use support::netns::Netns;
use support::root_or_skip;
use support::rules::{Kind, Toolbox, listed, saved, tools_or_skip, wait_for};

/// Facts 9.1, for this network and this subnet.
const NAT: &str = r#":FLANNEL-POSTRTG - [0:0]
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 172.7.21.0/24 -d 172.7.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 172.7.0.0/16 -d 172.7.21.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 172.7.0.0/16 -d 172.7.21.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 172.7.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 172.7.0.0/16 -d 172.7.0.0/16 -m comment --comment "flanneld masq" -j MASQUERADE --random-fully"#;

const FILTER: &str = r#":FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s 172.7.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d 172.7.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT"#;

/// Facts 9.2, with the mask and rule 4 of 9.1 (docs/decisions/012).
const NFTABLES: &str = r#"table ip flannel-ipv4 {
comment "rules for flannel-ipv4"
chain postrtg {
comment "chain to manage traffic masquerading by flannel"
type nat hook postrouting priority srcnat; policy accept;
meta mark & 0x00004000 == 0x00004000 return
ip saddr 172.7.21.0/24 ip daddr 172.7.0.0/16 return
ip saddr 172.7.0.0/16 ip daddr 172.7.21.0/24 return
ip saddr != 172.7.0.0/16 ip daddr 172.7.21.0/24 return
ip saddr 172.7.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random
ip saddr != 172.7.0.0/16 ip daddr 172.7.0.0/16 masquerade fully-random
}
chain forward {
comment "chain to accept flannel traffic"
type filter hook forward priority filter; policy accept;
ip saddr 172.7.0.0/16 accept
ip daddr 172.7.0.0/16 accept
}
}"#;

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

/// What is there for one kind: both tables of iptables, or the one of nftables.
fn present(netns: &Netns, kind: Kind) -> Vec<String> {
    if kind == Kind::Nftables {
        return listed(netns, "ip flannel-ipv4");
    }
    let tool = format!("iptables-{}", kind.suffix());
    [saved(netns, &tool, "nat"), saved(netns, &tool, "filter")].concat()
}

fn wanted(kind: Kind) -> Vec<String> {
    if kind == Kind::Nftables { lines(NFTABLES) } else { lines(&format!("{NAT}\n{FILTER}")) }
}

/// One host that asks for 172.7.21.0/24.
struct Host {
    lab: Lab,
    toolboxes: [Toolbox; 3],
}

impl Host {
    /// `None` if the test cannot run.
    fn new(test: &str) -> Option<Self> {
        if !root_or_skip(test) || !tools_or_skip(test) {
            return None;
        }
        let lab = Lab::new(1);
        let env = "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.21.1/24\n";
        std::fs::write(lab.host(0).subnet_file(), env).unwrap();
        Some(Self { lab, toolboxes: Kind::ALL.map(Toolbox::new) })
    }

    fn host(&self) -> &LabHost {
        self.lab.host(0)
    }

    fn netns(&self) -> &Netns {
        &self.host().netns
    }

    /// Starts the daemon with the config and the tools of `kind`, looking after rules each second.
    fn spawn(&self, kind: Kind, toolbox: &Toolbox, args: &[&str]) -> Daemon {
        let store = self.lab.store_dir(kind.config());
        let all = ["--store-dir", store.to_str().unwrap(), "--iptables-resync=1"];
        self.host().spawn_daemon(&[&all, args].concat(), &[toolbox.path()])
    }

    fn start(&self, kind: Kind, args: &[&str]) -> Daemon {
        let daemon = self.spawn(kind, &self.toolboxes[kind as usize], args);
        daemon.wait_ready();
        daemon
    }
}

/// As they must be, also when the daemon ends and starts again: nothing double, nothing removed.
#[test]
fn the_rules_are_flannels_and_stay_the_same_over_restarts() {
    for kind in Kind::ALL {
        let test = "the_rules_are_flannels_and_stay_the_same_over_restarts";
        let Some(host) = Host::new(test) else { return };
        for round in 0..3 {
            let daemon = host.start(kind, &["--ip-masq"]);
            assert_eq!(present(host.netns(), kind), wanted(kind), "{kind:?}");
            assert_eq!(host.host().subnet_env()["FLANNEL_IPMASQ"], "true");
            // By a crash, too.
            let ended = if round == 0 { daemon.kill9() } else { daemon.stop() };
            assert!(!ended.log.contains("changed from outside"), "{}", ended.log);
            assert_eq!(present(host.netns(), kind), wanted(kind), "{kind:?}: they stay at exit");
        }
    }
}

#[test]
fn what_somebody_takes_away_comes_back() {
    for kind in [Kind::Legacy, Kind::Nft] {
        let Some(host) = Host::new("what_somebody_takes_away_comes_back") else { return };
        let daemon = host.start(kind, &["--ip-masq"]);
        let iptables = |args: &str| {
            let line = format!("iptables-{} --wait {args}", kind.suffix());
            let status = host.netns().command("sh").args(["-c", &line]).status().unwrap();
            assert!(status.success(), "{line}");
        };
        for damage in [
            &["-t nat -F"][..],
            &["-t nat -F", "-t nat -X", "-F", "-X"],
            &["-F FLANNEL-FWD"],
            &["-D FORWARD 1"],
            &["-t nat -D FLANNEL-POSTRTG 3"],
            // All there, but in the wrong order.
            &[
                "-t nat -D FLANNEL-POSTRTG 1",
                "-t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN",
            ],
            &["-t nat -I FLANNEL-POSTRTG -j ACCEPT"],
            &["-t nat -I FLANNEL-POSTRTG 4 -j ACCEPT"],
            &["-t nat -A POSTROUTING -j FLANNEL-POSTRTG"],
            // As releases of flannel without chains had it.
            &[
                r#"-t nat -I POSTROUTING -s 172.7.0.0/16 -m comment --comment "flanneld masq" -j RETURN"#,
            ],
        ] {
            damage.iter().for_each(|args| iptables(args));
            let what = format!("{kind:?} after {damage:?}");
            wait_for(&what, &wanted(kind), || present(host.netns(), kind));
        }
        daemon.wait_log("the traffic rules were changed from outside: put back", PATIENCE);
        // Once a minute, however often they are put back.
        assert!(daemon.count("changed from outside") <= 2, "{}", daemon.log());
        daemon.stop();
    }
}

#[test]
fn what_somebody_takes_from_nftables_comes_back() {
    let Some(host) = Host::new("what_somebody_takes_from_nftables_comes_back") else { return };
    let daemon = host.start(Kind::Nftables, &["--ip-masq"]);
    for damage in [
        "flush ruleset",
        "delete table ip flannel-ipv4",
        "flush chain ip flannel-ipv4 postrtg",
        "delete chain ip flannel-ipv4 forward",
        "insert rule ip flannel-ipv4 postrtg accept",
        "add chain ip flannel-ipv4 stray",
    ] {
        host.netns().exec(&format!("nft {damage}"));
        let what = format!("after {damage}");
        wait_for(&what, &wanted(Kind::Nftables), || present(host.netns(), Kind::Nftables));
    }
    daemon.wait_log("the traffic rules were changed from outside: put back", PATIENCE);
    daemon.stop();
}

/// Somebody else's rules stay, in their places, before and behind the jump.
#[test]
fn the_rules_of_others_are_left_alone() {
    for kind in [Kind::Legacy, Kind::Nft] {
        let Some(host) = Host::new("the_rules_of_others_are_left_alone") else { return };
        let tool = format!("iptables-{}", kind.suffix());
        let add = |rule: &str| host.netns().exec(&format!("{tool} --wait {rule}"));
        add("-t nat -A POSTROUTING -s 10.99.0.0/16 -j MASQUERADE");
        let daemon = host.start(kind, &["--ip-masq"]);
        add("-t nat -A POSTROUTING -s 10.98.0.0/16 -j MASQUERADE");
        add("-t nat -F FLANNEL-POSTRTG");
        let mut nat = lines(NAT);
        nat.insert(1, "-A POSTROUTING -s 10.99.0.0/16 -j MASQUERADE".into());
        nat.insert(3, "-A POSTROUTING -s 10.98.0.0/16 -j MASQUERADE".into());
        wait_for(&format!("{kind:?}"), &nat, || saved(host.netns(), &tool, "nat"));
        daemon.stop();
    }
}

/// Two daemons with networks, stores and ports of their own on one host, as upstream allows. They
/// share the chains; whoever finds its rules gone adds them again, and that is all.
#[test]
fn two_daemons_share_the_chains() {
    for kind in [Kind::Legacy, Kind::Nft] {
        let Some(host) = Host::new("two_daemons_share_the_chains") else { return };
        let second = tempfile::tempdir().unwrap();
        let config = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"udp","Port":8286}}"#;
        std::fs::write(second.path().join("config"), config).unwrap();
        let subnet_file = second.path().join("subnet.env");
        std::fs::write(&subnet_file, "FLANNEL_SUBNET=10.5.21.1/24\n").unwrap();
        let first = host.start(kind, &["--ip-masq"]);
        let args = [
            "--ip-masq",
            "--iptables-resync=1",
            "--iface=eth0",
            "--store-dir",
            second.path().to_str().unwrap(),
            "--subnet-file",
            subnet_file.to_str().unwrap(),
        ];
        let toolbox = &host.toolboxes[kind as usize];
        let second = Daemon::spawn(host.netns(), &args, &[toolbox.path()]);
        second.wait_ready();

        // One chain, one jump and one rule about marks for both, and the other rules of each.
        let shared = |line: &String| {
            [":FLANNEL-", "-j FLANNEL-", "--mark"].iter().any(|part| line.contains(part))
        };
        let mut both = wanted(kind);
        let others: Vec<String> = both.iter().filter(|line| !shared(line)).cloned().collect();
        both.extend(others.iter().map(|line| line.replace("172.7.", "10.5.")));
        both.sort();
        let sorted = || {
            let mut lines = present(host.netns(), kind);
            lines.sort();
            lines
        };
        wait_for("both", &both, sorted);
        let put_back = "the traffic rules were changed from outside: put back";
        first.wait_log(put_back, PATIENCE);
        assert_eq!(second.count(put_back), 0, "{}", second.log());
        first.stop();
        second.stop();
        assert_eq!(sorted(), both);
    }
}

/// Each cleans up behind the other: jumps, chains and tables; and so does a run without rules.
#[test]
fn a_change_of_mind_leaves_nothing_behind() {
    let Some(host) = Host::new("a_change_of_mind_leaves_nothing_behind") else { return };
    let nothing = Vec::<String>::new();
    for kind in [Kind::Legacy, Kind::Nft, Kind::Nftables, Kind::Legacy, Kind::Nftables, Kind::Nft] {
        let daemon = host.start(kind, &["--ip-masq"]);
        for other in Kind::ALL {
            let expected = if other == kind { wanted(kind) } else { nothing.clone() };
            assert_eq!(present(host.netns(), other), expected, "{other:?} while {kind:?} is set");
        }
        daemon.stop();
    }
    // From iptables with both to iptables with one, to none.
    let daemon = host.start(Kind::Nft, &[]);
    assert_eq!(present(host.netns(), Kind::Nft), lines(FILTER));
    assert_eq!(host.host().subnet_env()["FLANNEL_IPMASQ"], "false");
    daemon.stop();
    let daemon = host.start(Kind::Nft, &["--iptables-forward-rules=false"]);
    assert_eq!(present(host.netns(), Kind::Nft), nothing);
    daemon.stop();
    // The same for nftables.
    let daemon = host.start(Kind::Nftables, &["--ip-masq", "--iptables-forward-rules=false"]);
    let table = present(host.netns(), Kind::Nftables).join("\n");
    assert!(table.contains("postrtg") && !table.contains("forward"), "{table}");
    daemon.stop();
    let daemon = host.start(Kind::Nftables, &["--iptables-forward-rules=false"]);
    assert_eq!(present(host.netns(), Kind::Nftables), nothing);
    daemon.stop();
}

/// A host that wants no masquerading must not pay for the tracking of connections.
#[test]
fn the_nat_table_is_not_made_for_nothing() {
    let Some(host) = Host::new("the_nat_table_is_not_made_for_nothing") else { return };
    let daemon = host.start(Kind::Legacy, &[]);
    let tables = host
        .netns()
        .enter(|| std::fs::read_to_string("/proc/thread-self/net/ip_tables_names"))
        .unwrap();
    assert_eq!(tables.trim(), "filter");
    assert_eq!(listed(host.netns(), "ip nat"), Vec::<String>::new());
    daemon.stop();
}

#[test]
fn random_ports_can_be_switched_off() {
    for kind in Kind::ALL {
        let Some(host) = Host::new("random_ports_can_be_switched_off") else { return };
        let daemon = host.start(kind, &["--ip-masq", "--ip-masq-fully-random-disable"]);
        let plain: Vec<String> = wanted(kind)
            .iter()
            .map(|line| line.replace(" --random-fully", "").replace(" fully-random", ""))
            .collect();
        assert_eq!(present(host.netns(), kind), plain);
        daemon.stop();
    }
}

/// In dual stack the same rules stand in both families, and both are put back.
#[test]
fn dual_stack_has_rules_of_both_families() {
    const DUAL: &str = r#"{"Network":"172.7.0.0/16","EnableIPv6":true,
        "IPv6Network":"fd00:7::/48","IPv6SubnetLen":64}"#;
    for kind in Kind::ALL {
        let Some(host) = Host::new("dual_stack_has_rules_of_both_families") else { return };
        let config = match kind {
            Kind::Nftables => {
                DUAL.replace("\"EnableIPv6\"", "\"EnableNFTables\":true,\"EnableIPv6\"")
            }
            _ => DUAL.to_owned(),
        };
        let store = host.lab.store_dir(&config);
        let env = "FLANNEL_SUBNET=172.7.21.1/24\nFLANNEL_IPV6_SUBNET=fd00:7:0:21::1/64\n";
        std::fs::write(host.host().subnet_file(), env).unwrap();
        let toolbox = &host.toolboxes[kind as usize];
        let args = [
            "--store-dir",
            store.to_str().unwrap(),
            "--ip-masq",
            "--ip-blackhole-route",
            "--iptables-resync=1",
        ];
        let daemon = host.host().spawn_daemon(&args, &[toolbox.path()]);
        daemon.wait_ready();
        let translate = |line: &String| {
            line.replace("172.7.21.0/24", "fd00:7:0:21::/64")
                .replace("172.7.0.0/16", "fd00:7::/48")
                .replace("224.0.0.0/4", "ff00::/8")
                .replace("ip saddr", "ip6 saddr")
                .replace("ip daddr", "ip6 daddr")
                .replace("table ip ", "table ip6 ")
                .replace("flannel-ipv4", "flannel-ipv6")
        };
        let expected: Vec<String> = wanted(kind).iter().map(translate).collect();
        let netns = host.netns();
        let present6 = || match kind {
            Kind::Nftables => listed(netns, "ip6 flannel-ipv6"),
            _ => {
                let tool = format!("ip6tables-{}", kind.suffix());
                [saved(netns, &tool, "nat"), saved(netns, &tool, "filter")].concat()
            }
        };
        assert_eq!(present(netns, kind), wanted(kind));
        assert_eq!(present6(), expected);
        netns.exec(&match kind {
            Kind::Nftables => "nft delete table ip6 flannel-ipv6".to_owned(),
            _ => format!("ip6tables-{} --wait -t nat -F", kind.suffix()),
        });
        netns.ip("-6 route del blackhole fd00:7:0:21::/64 metric 4294967295");
        wait_for("IPv6", &expected, present6);
        let blackhole =
            "blackhole fd00:7:0:21::/64 dev lo metric 4294967295 pref medium".to_owned();
        wait_for("the blackhole route", &[blackhole], || {
            let routes = netns.ip("-6 route show type blackhole");
            routes.lines().map(|line| line.trim().to_owned()).collect()
        });
        assert_eq!(present(netns, kind), wanted(kind));
        daemon.stop();

        // Without IPv6, its rules go.
        let daemon = host.start(kind, &["--ip-masq"]);
        assert_eq!(present6(), Vec::<String>::new());
        daemon.stop();
    }
}

/// The rules follow the lease when it is lost to another host.
#[test]
fn the_rules_follow_the_lease() {
    for kind in Kind::ALL {
        let Some(host) = Host::new("the_rules_follow_the_lease") else { return };
        let daemon = host.start(kind, &["--ip-masq", "--ip-blackhole-route"]);
        let blackholes = || host.netns().ip("route show type blackhole");
        assert!(blackholes().contains("172.7.21.0/24"), "{}", blackholes());
        // In one step, as the store's own writers do.
        let subnets = host.lab.store_dir(kind.config()).join("subnets");
        let lost = subnets.join("172.7.21.0-24");
        let other = subnets.join(".other");
        std::fs::write(&other, r#"{"PublicIP":"10.4.7.99","PublicIPv6":null}"#).unwrap();
        std::fs::rename(&other, &lost).unwrap();
        daemon.wait_nth_log("flanneld is ready", 2, PATIENCE);
        let subnet = host.host().subnet_env()["FLANNEL_SUBNET"].replace(".1/", ".0/");
        assert_ne!(subnet, "172.7.21.0/24");
        let expected: Vec<String> =
            wanted(kind).iter().map(|line| line.replace("172.7.21.0/24", &subnet)).collect();
        wait_for("the new subnet", &expected, || present(host.netns(), kind));
        wait_for("the blackhole route", &[format!("blackhole {subnet} metric 4294967295")], || {
            blackholes().lines().map(|line| line.trim().to_owned()).collect()
        });
        daemon.stop();
    }
}

/// Whoever asked for rules is told what is missing, before a lease is taken; whoever did not is
/// warned.
#[test]
fn missing_tools_stop_only_those_who_asked_for_rules() {
    let Some(host) = Host::new("missing_tools_stop_only_those_who_asked_for_rules") else { return };
    let empty = Toolbox::empty();
    for (kind, tool, package) in
        [(Kind::Legacy, "iptables", "iptables"), (Kind::Nftables, "nft", "nftables")]
    {
        for args in [&["--ip-masq"][..], &["--iptables-forward-rules"]] {
            let ended = host.spawn(kind, &empty, args).wait();
            assert_eq!(ended.status.code(), Some(1), "{}", ended.log);
            let wanted = format!("{tool} is not in PATH: install the package {package}");
            assert!(ended.log.lines().last().unwrap().contains(&wanted), "{}", ended.log);
            let leases = host.lab.store_dir(kind.config()).join("subnets");
            assert!(!leases.exists() || leases.read_dir().unwrap().next().is_none());
        }
        let daemon = host.spawn(kind, &empty, &[]);
        daemon.wait_ready();
        let line = daemon.wait_log("no rules are set", PATIENCE);
        assert!(line.contains(&format!("{tool} is not in PATH")), "{line}");
        daemon.stop();
        let daemon = host.spawn(kind, &empty, &["--iptables-forward-rules=false"]);
        daemon.wait_ready();
        assert!(!daemon.stop().log.contains("not in PATH"));
        std::fs::remove_dir_all(host.lab.store_dir(kind.config()).join("subnets")).unwrap();
    }

    // Half of a package.
    let half = Toolbox::new(Kind::Legacy);
    std::fs::remove_file(half.dir().join("iptables-restore")).unwrap();
    let ended = host.spawn(Kind::Legacy, &half, &["--ip-masq"]).wait();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.log);
    assert!(ended.log.contains("iptables-restore is not in PATH"), "{}", ended.log);
}

/// A tool that is there but does not work: what it says is passed on, and it is tried again.
#[test]
fn a_tool_that_fails_is_quoted() {
    use std::os::unix::fs::PermissionsExt;

    let Some(host) = Host::new("a_tool_that_fails_is_quoted") else { return };
    let toolbox = Toolbox::new(Kind::Nft);
    let restore = toolbox.dir().join("iptables-restore");
    let real = std::fs::read_link(&restore).unwrap();
    std::fs::remove_file(&restore).unwrap();
    std::fs::write(&restore, "#!/bin/sh\necho 'no such luck' >&2\nexit 4\n").unwrap();
    std::fs::set_permissions(&restore, PermissionsExt::from_mode(0o755)).unwrap();

    let daemon = host.spawn(Kind::Nft, &toolbox, &["--ip-masq"]);
    let line = daemon.wait_log("trying again", PATIENCE);
    assert!(line.contains("iptables-restore --noflush") && line.contains("no such luck"), "{line}");
    daemon.stop();

    let daemon = host.spawn(Kind::Nft, &toolbox, &[]);
    daemon.wait_ready();
    daemon.wait_log("no such luck; trying again", PATIENCE);
    std::fs::remove_file(&restore).unwrap();
    std::os::unix::fs::symlink(real, &restore).unwrap();
    wait_for("a tool that works again", &lines(FILTER), || present(host.netns(), Kind::Nft));
    daemon.wait_log("the traffic rules are set now", PATIENCE);
    daemon.stop();
}

/// kube-proxy holds the lock for some seconds on large hosts: whoever asked for rules gets them
/// later, and is told so.
#[test]
fn a_start_while_the_lock_is_held_waits_for_it() {
    let Some(host) = Host::new("a_start_while_the_lock_is_held_waits_for_it") else { return };
    // The lock of all tables, but not of all other tests.
    let path = host.host().dir.join("xtables.lock");
    let lock = File::create(&path).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let store = host.lab.store_dir(CONFIG);
    let args = ["--store-dir", store.to_str().unwrap(), "--iptables-resync=1", "--ip-masq"];
    let toolbox = &host.toolboxes[Kind::Legacy as usize];
    let env = [toolbox.path(), ("XTABLES_LOCKFILE", path.to_str().unwrap())];
    let daemon = host.host().spawn_daemon(&[&args[..], &HEALTHZ_FLAGS].concat(), &env);
    let complaint = daemon.wait_log("the traffic rules are not as they must be", PATIENCE);
    assert!(complaint.contains("xtables lock"), "{complaint}");
    wait_readyz(host.netns(), 503, "the traffic rules are not set");

    drop(lock);
    daemon.wait_ready();
    assert_eq!(present(host.netns(), Kind::Legacy), wanted(Kind::Legacy));
    wait_readyz(host.netns(), 200, "flanneld is ready");
    daemon.wait_log("the traffic rules are set now", PATIENCE);
    let log = daemon.stop().log;
    assert!(log.find("rules are set now") < log.find("flanneld is ready"), "{log}");
}

/// Upstream does not start where bridges bypass iptables; here it is a warning, and nftables needs
/// none.
#[test]
fn bridges_that_bypass_iptables_are_a_warning() {
    let Some(host) = Host::new("bridges_that_bypass_iptables_are_a_warning") else { return };
    let key = "net.bridge.bridge-nf-call-iptables";
    // Where br_netfilter is not even loaded, the file is not there, and the warning is due as well.
    let loaded = Path::new("/proc/sys").join(key.replace('.', "/")).exists();
    for (value, kind, warned) in
        [("0", Kind::Nft, true), ("1", Kind::Nft, !loaded), ("0", Kind::Nftables, false)]
    {
        if loaded {
            host.netns().sysctl(key, value);
        }
        let log = host.start(kind, &["--ip-masq"]).stop().log;
        assert_eq!(log.contains("bridge-nf-call-iptables is not 1"), warned, "{value}: {log}");
    }
}

//! `flanneld cleanup`: what a daemon leaves behind, with a real kernel and the real tools.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use support::lab::CONFIG;
use support::lab::{Lab, LabHost};
use support::root_or_skip;
use support::rules::{CONFIG_NFTABLES, tools_or_skip};

/// Runs `flanneld cleanup` with the daemon's flags; returns the exit code and all that it printed.
fn cleanup(host: &LabHost, args: &[&str]) -> (Option<i32>, String) {
    let output = host
        .netns
        .command(env!("CARGO_BIN_EXE_flanneld"))
        .args(["cleanup", "--subnet-file", host.subnet_file().to_str().unwrap(), "--iface=eth0"])
        .args(args)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
    println!("--- flanneld cleanup {args:?}: {:?}\n{text}", output.status.code());
    (output.status.code(), text)
}

/// What the kernel holds of a daemon.
fn in_the_kernel(host: &LabHost) -> String {
    let rules = host.netns.exec("iptables-save") + &host.netns.exec("nft list ruleset");
    let rules: Vec<&str> = rules.lines().filter(|l| l.to_lowercase().contains("flannel")).collect();
    let routes = host.netns.ip("route show type blackhole");
    // Without their state: that follows some time after the daemon's end.
    let devices = host.netns.ip("-j link show type tun");
    let devices: Vec<serde_json::Value> = serde_json::from_str(&devices).unwrap();
    let devices = devices.iter().map(|link| format!("{}: {}\n", link["ifname"], link["ifalias"]));
    let devices: String = devices.collect();
    format!("{}\n{routes}{devices}", rules.join("\n")).trim().to_owned()
}

#[test]
fn everything_is_removed_and_told() {
    let test = "everything_is_removed_and_told";
    if !root_or_skip(test) || !tools_or_skip(test) {
        return;
    }
    for config in [CONFIG, CONFIG_NFTABLES] {
        let lab = Lab::new(1);
        let host = lab.host(0);
        let store = lab.store_dir(config);
        let store_flag = format!("--store-dir={}", store.display());
        let daemon = host.spawn_daemon(&[&store_flag, "--ip-masq", "--ip-blackhole-route"], &[]);
        daemon.wait_ready();

        // Not while it runs.
        for (args, by) in [([].as_slice(), "flanneld.sock"), (&["--admin-socket="], "flannel0")] {
            let (code, text) = cleanup(host, args);
            assert_eq!(code, Some(1), "{text}");
            assert!(text.contains("a daemon runs") && text.contains(by), "{text}");
        }
        let (code, _) = cleanup(host, &["--dry-run"]);
        assert_eq!(code, Some(1));
        assert!(host.subnet_file().exists());

        let subnet = host.subnet_env()["FLANNEL_SUBNET"].clone();
        daemon.kill9();
        // A file that was not finished, beside the socket of the dead.
        let unfinished = host.dir.join(".subnet.env.a1B2c3");
        std::fs::write(&unfinished, "FLANNEL_NET").unwrap();
        let socket = host.dir.join("flanneld.sock");
        assert!(socket.exists());
        let mine = host.dir.join("notes.txt");
        std::fs::write(&mine, "not the daemon's").unwrap();
        let before = in_the_kernel(host);
        assert!(before.contains("blackhole") && before.contains("flannel0"), "{before}");

        let (code, dry) = cleanup(host, &["--dry-run"]);
        assert_eq!(code, Some(0), "{dry}");
        assert_eq!(in_the_kernel(host), before, "nothing was changed");
        assert!(host.subnet_file().exists() && unfinished.exists() && socket.exists());

        let (code, text) = cleanup(host, &[]);
        assert_eq!(code, Some(0), "{text}");
        assert_eq!(text, dry.replace("would remove", "removed"));
        let base = subnet.replace(".1/", ".0/");
        for wanted in [
            "removed the device flannel0",
            &format!("removed the blackhole route {base}"),
            if config == CONFIG {
                "rules that an earlier run left in iptables"
            } else {
                "nftables table flannel-ipv4"
            },
            "host-21/subnet.env",
            "host-21/.subnet.env.a1B2c3",
            "host-21/flanneld.sock",
            "kept: the leases in the store",
        ] {
            assert!(text.contains(wanted), "{wanted:?} is missing: {text}");
        }
        assert_eq!(in_the_kernel(host), "");
        assert!(!host.subnet_file().exists() && !unfinished.exists() && !socket.exists());
        assert!(mine.exists(), "what is not the daemon's stays");

        let (code, text) = cleanup(host, &[]);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.starts_with("nothing is left"), "{text}");

        // The lease stayed: the host gets its subnet back.
        let daemon = host.spawn_daemon(&[&store_flag], &[]);
        daemon.wait_ready();
        assert_eq!(host.subnet_env()["FLANNEL_SUBNET"], subnet);
    }
}

#[test]
fn other_devices_and_routes_stay() {
    if !root_or_skip("other_devices_and_routes_stay") {
        return;
    }
    let lab = Lab::new(1);
    let host = lab.host(0);
    host.netns.ip("tuntap add dev vpn0 mode tun");
    host.netns.ip("tuntap add dev flannel7 mode tap");
    host.netns.ip("link add flannel8 type bridge");
    host.netns.ip("route add blackhole 192.0.2.0/24");
    let (code, text) = cleanup(host, &[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("nothing is left"), "{text}");
    let links = host.netns.ip("link show");
    assert!(["vpn0", "flannel7", "flannel8"].iter().all(|name| links.contains(name)), "{links}");
    assert!(host.netns.ip("route show type blackhole").contains("192.0.2.0/24"));
}

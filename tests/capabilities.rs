//! What the running daemon may do: its capabilities, thread by thread, while its rules hold.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::fs;

use support::daemon::{Daemon, PATIENCE};
use support::lab::Lab;
use support::root_or_skip;
use support::rules::{Kind, Toolbox, listed, saved, tools_or_skip};

/// Bits of linux/capability.h.
const CAP_DAC_OVERRIDE: u64 = 1 << 1;
const CAP_NET_BIND_SERVICE: u64 = 1 << 10;
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_NET_RAW: u64 = 1 << 13;

/// What /proc says about each thread: the sets of capabilities, and whether it may get more.
fn threads(daemon: &Daemon) -> Vec<BTreeMap<String, u64>> {
    let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).unwrap();
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let of_thread = |text: String| {
        let fields = text.lines().filter_map(|line| line.split_once(":\t"));
        let wanted = fields.filter(|(key, _)| key.starts_with("Cap") || *key == "NoNewPrivs");
        wanted.map(|(key, hex)| (key.to_owned(), u64::from_str_radix(hex, 16).unwrap())).collect()
    };
    tasks.map(|task| of_thread(status(task.unwrap()))).collect()
}

#[test]
fn no_thread_has_more_than_it_needs_while_all_rules_are_set() {
    const NAME: &str = "no_thread_has_more_than_it_needs_while_all_rules_are_set";
    if !root_or_skip(NAME) || !tools_or_skip(NAME) {
        return;
    }
    for kind in Kind::ALL {
        let lab = Lab::new(1);
        let store = lab.store_dir(kind.config());
        let toolbox = Toolbox::new(kind);
        let args = ["--store-dir", store.to_str().unwrap(), "--ip-masq", "--iptables-resync=1"];
        let daemon = lab.host(0).spawn_daemon(&args, &[toolbox.path()]);
        daemon.wait_ready();
        // What is taken away comes back: the tools work at any time.
        let netns = &lab.host(0).netns;
        match kind {
            Kind::Nftables => netns.exec("nft flush table ip flannel-ipv4"),
            Kind::Legacy | Kind::Nft => {
                netns.exec(&format!("iptables-{} -t nat -F FLANNEL-POSTRTG", kind.suffix()))
            }
        };
        daemon.wait_log("the traffic rules were changed from outside: put back", PATIENCE);
        let rules = match kind {
            Kind::Nftables => listed(netns, "ip flannel-ipv4"),
            Kind::Legacy | Kind::Nft => saved(netns, &format!("iptables-{}", kind.suffix()), "nat"),
        };
        assert!(rules.iter().any(|rule| rule.to_lowercase().contains("masquerade")), "{rules:?}");

        let threads = threads(&daemon);
        assert!(threads.len() >= 4, "control plane and data path: {threads:?}");
        for thread in threads {
            let effective = CAP_NET_ADMIN | CAP_NET_BIND_SERVICE;
            assert_eq!(thread["CapEff"], effective, "{kind:?} {thread:x?}");
            assert_eq!(thread["CapPrm"], effective | CAP_NET_RAW, "{kind:?} {thread:x?}");
            assert_eq!((thread["CapInh"], thread["CapAmb"]), (0, 0), "{kind:?} {thread:x?}");
            assert_eq!(thread["NoNewPrivs"], 1, "{kind:?} {thread:x?}");
        }
        let ended = daemon.stop();
        assert!(ended.status.success(), "{}", ended.log);
        assert!(!ended.log.contains("CAP_DAC_OVERRIDE"), "{}", ended.log);
    }
}

#[test]
fn files_of_another_user_still_serve_and_are_told() {
    const NAME: &str = "files_of_another_user_still_serve_and_are_told";
    if !root_or_skip(NAME) {
        return;
    }
    let lab = Lab::new(1);
    let store = lab.store_dir(Kind::Legacy.config());
    std::os::unix::fs::chown(&store, Some(65_534), None).unwrap();
    let daemon = lab.host(0).spawn_daemon(&["--store-dir", store.to_str().unwrap()], &[]);
    let told = daemon.wait_log("CAP_DAC_OVERRIDE", PATIENCE);
    assert!(told.contains(store.to_str().unwrap()), "{told}");
    daemon.wait_ready();
    for thread in threads(&daemon) {
        let effective = CAP_NET_ADMIN | CAP_NET_BIND_SERVICE | CAP_DAC_OVERRIDE;
        assert_eq!(thread["CapEff"], effective, "{thread:x?}");
    }
    assert!(daemon.stop().status.success());
}

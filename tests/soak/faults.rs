//! What goes wrong on a host for a while.
#![forbid(unsafe_code)]

use std::fs;

use crate::overlay::Overlay;
use crate::support::daemon::Daemon;
use crate::support::lab::NETWORK;

/// A fault that can be done to any host.
pub(crate) struct Fault {
    /// What it is called in the summary.
    pub(crate) name: &'static str,
    /// Whether another process carries on afterwards.
    pub(crate) restarts: bool,
    /// Whether a kernel or a daemon has no route meanwhile, and tells so by ICMP.
    pub(crate) unreachable: bool,
    /// Does it to the host of that number.
    pub(crate) begin: fn(&Overlay, usize),
    /// Takes it back after a while; none, if the daemon does that at once.
    pub(crate) end: Option<fn(&Overlay, usize)>,
}

/// All faults.
pub(crate) static FAULTS: [Fault; 13] = [
    Fault {
        name: "daemon killed",
        restarts: true,
        unreachable: false,
        begin: |overlay, host| drop(overlay.take(host).kill9()),
        end: Some(Overlay::spawn),
    },
    Fault {
        name: "daemon stopped",
        restarts: true,
        unreachable: false,
        begin: |overlay, host| {
            let ended = overlay.take(host).stop();
            assert!(ended.status.success(), "{:?}\n{}", ended.status, ended.log);
        },
        end: Some(Overlay::spawn),
    },
    Fault {
        name: "daemon stands still",
        restarts: false,
        unreachable: false,
        begin: |overlay, host| overlay.ask(host, Daemon::freeze).expect("it runs"),
        end: Some(|overlay, host| overlay.ask(host, Daemon::thaw).expect("it runs")),
    },
    Fault {
        name: "flannel0 deleted",
        restarts: false,
        unreachable: true,
        begin: |overlay, host| ip(overlay, host, "link delete flannel0"),
        end: None,
    },
    Fault {
        name: "flannel0 down",
        restarts: false,
        unreachable: true,
        begin: |overlay, host| ip(overlay, host, "link set flannel0 down"),
        end: None,
    },
    Fault {
        name: "address removed",
        restarts: false,
        unreachable: true,
        begin: |overlay, host| ip(overlay, host, "-4 addr flush dev flannel0"),
        end: None,
    },
    Fault {
        name: "route removed",
        restarts: false,
        unreachable: true,
        begin: |overlay, host| {
            ip(overlay, host, &format!("route delete {NETWORK} dev flannel0"));
        },
        end: None,
    },
    Fault {
        name: "MTU lowered",
        restarts: false,
        unreachable: false,
        begin: |overlay, host| ip(overlay, host, "link set flannel0 mtu 1000"),
        // Hosts and pods remember a path's MTU for ten minutes, and refuse longer segments.
        end: Some(|overlay, _| overlay.forget_paths()),
    },
    Fault {
        name: "eth0 down",
        restarts: false,
        unreachable: true,
        begin: |overlay, host| ip(overlay, host, "link set eth0 down"),
        end: Some(|overlay, host| {
            ip(overlay, host, "link set eth0 up");
            // The kernel has removed it.
            ip(overlay, host, "route add default via 10.4.7.1");
        }),
    },
    Fault {
        name: "port blocked one way",
        restarts: false,
        unreachable: false,
        begin: |overlay, host| overlay.host(host).netns.block("input", "udp dport 8285"),
        end: Some(|overlay, host| overlay.host(host).netns.unblock()),
    },
    Fault {
        name: "30 % lost",
        restarts: false,
        unreachable: false,
        begin: |overlay, host| {
            let rule = "udp dport 8285 numgen random mod 10 < 3";
            overlay.host(host).netns.block("input", rule);
        },
        end: Some(|overlay, host| overlay.host(host).netns.unblock()),
    },
    Fault {
        name: "store hidden",
        restarts: false,
        unreachable: false,
        begin: |overlay, _| overlay.store().hide(),
        end: Some(|overlay, _| overlay.store().show()),
    },
    Fault {
        name: "own lease deleted",
        restarts: false,
        unreachable: true,
        begin: |overlay, host| fs::remove_file(overlay.lease(host)).unwrap(),
        end: None,
    },
];

fn ip(overlay: &Overlay, host: usize, args: &str) {
    overlay.host(host).netns.ip(args);
}

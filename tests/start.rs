//! Starting the daemon: what it needs, what it says when that is missing, how fast and how small
//! it is.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::Write;
use std::net::SocketAddrV4;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use support::daemon::{Daemon, PATIENCE};
use support::lab::{CONFIG, Lab};
use support::root_or_skip;

/// The daemon's exit code and the last line that it logged, of a start that must fail.
fn refused(daemon: Daemon) -> (Option<i32>, String) {
    let ended = daemon.wait();
    let last = ended.log.lines().last().unwrap_or_default().to_owned();
    (ended.status.code(), last)
}

fn flanneld(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_flanneld"))
        .args(args)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.stdout.is_empty(), "everything goes to stderr, as upstream");
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn usage_errors_are_one_line_and_exit_2() {
    for (args, wanted) in [
        (&["--no-such-flag"][..], "--no-such-flag"),
        (&["--healthz-port=65536"], "healthz-port"),
        (&["--healthz-ip=localhost"], "healthz-ip"),
        (&["status", "--no-such-flag"], "--no-such-flag"),
        (&["--kube-subnet-mgr"], "kube-subnet-mgr"),
        (&["--subnet-lease-renew-margin=1440"], "subnet-lease-renew-margin"),
        (&["--offload=fast"], "offload"),
        (&["--udp-gso=maybe"], "udp-gso"),
    ] {
        let (code, text) = flanneld(args);
        assert_eq!(code, Some(2), "{args:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains(wanted), "{args:?}: {text}");
    }
}

#[test]
fn help_has_two_groups_and_version_is_told() {
    let (code, text) = flanneld(&["-h"]);
    assert_eq!(code, Some(0));
    for wanted in ["--etcd-endpoints", "--store-dir", "--source-check", "--offload"] {
        assert!(text.contains(wanted), "{text}");
    }
    assert_eq!(text.lines().filter(|line| line.starts_with("Flags of")).count(), 2, "{text}");
    let (code, text) = flanneld(&["--version"]);
    assert_eq!((code, text.trim()), (Some(0), env!("CARGO_PKG_VERSION")));
}

/// What a command prints on stdout.
fn printed(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_flanneld")).args(args).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a tool on a text; `None`, said loudly, if it is not installed.
fn tool_says(tool: &str, args: &[&str], text: &str) -> Option<(bool, String)> {
    let mut command = Command::new(tool);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        let line = format!("SKIPPED a part of completions_and_man: needs {tool}\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
        return None;
    };
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    Some((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

const COMMANDS: [&str; 4] = ["check", "cleanup", "completions", "man"];

#[test]
fn completions_know_all_flags_and_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = printed(&["completions", shell]);
        for wanted in COMMANDS.iter().chain(&["store-dir", "etcd-endpoints", "dry-run", "json"]) {
            assert!(script.contains(wanted), "{shell}: {wanted}");
        }
        if let Some((good, said)) = tool_says(shell, &["-n"], &script) {
            assert!(good && said.is_empty(), "{shell} -n: {said}");
        }
    }
    // As the shell asks.
    let bash = printed(&["completions", "bash"]);
    let ask = r#"
        COMP_WORDS=(flanneld check --js); COMP_CWORD=2; _flanneld flanneld --js check
        [ "${COMPREPLY[*]}" = --json ] || { echo "${COMPREPLY[*]}" >&2; exit 1; }
        COMP_WORDS=(flanneld cle); COMP_CWORD=1; _flanneld flanneld cle flanneld
        [ "${COMPREPLY[*]}" = cleanup ] || { echo "${COMPREPLY[*]}" >&2; exit 1; }"#;
    if let Some((good, said)) = tool_says("bash", &[], &format!("{bash}\n{ask}")) {
        assert!(good, "{said}");
    }
    for shell in [&["completions"][..], &["completions", "tcsh"]] {
        let (code, text) = flanneld(shell);
        assert_eq!(code, Some(2));
        assert!(text.contains("expected bash, zsh or fish"), "{text}");
    }
}

#[test]
fn the_manual_page_has_all_flags_and_commands() {
    let page = printed(&["man"]);
    assert!(page.contains(".TH flanneld 8"), "{page}");
    // A dash is written so that it can be copied.
    let plain = page.replace('\\', "");
    let (_, help) = flanneld(&["--help"]);
    for wanted in COMMANDS.iter().chain(&["--store-dir", "--etcd-endpoints", "--dry-run"]) {
        assert!(plain.contains(wanted), "{wanted}: {page}");
    }
    for command in COMMANDS {
        assert!(help.lines().any(|l| l.starts_with(&format!("  {command} "))), "{help}");
        let (code, text) = flanneld(&[command, "--help"]);
        assert_eq!(code, Some(0));
        assert!(text.contains(&format!("Usage: flanneld {command}")), "{text}");
    }
    if let Some((good, said)) = tool_says("groff", &["-man", "-ww", "-Tutf8", "-z"], &page) {
        assert!(good && said.is_empty(), "groff: {said}");
    }
}

#[test]
fn commands_take_the_daemons_flags_and_refuse_others() {
    for (args, wanted) in [
        (&["check", "--no-such-flag"][..], "unknown flag \"--no-such-flag\""),
        (&["check", "--dry-run"], "unknown flag \"--dry-run\""),
        (&["cleanup", "--tun-name="], "expected a device name"),
        (&["--json"], "unknown flag \"--json\""),
    ] {
        let (code, text) = flanneld(args);
        assert_eq!(code, Some(2), "{args:?}: {text}");
        assert!(text.contains(wanted), "{args:?}: {text}");
    }
}

#[test]
fn what_is_wrong_with_the_host_is_named_before_a_lease_is_taken() {
    let test = "what_is_wrong_with_the_host_is_named_before_a_lease_is_taken";
    if !root_or_skip(test) {
        return;
    }
    let lab = Lab::new(1);
    let host = lab.host(0);
    let store = lab.store_dir(CONFIG);
    let store_dir = store.to_str().unwrap();
    let subnet_file = host.subnet_file();
    let with_iface = |iface: &str| {
        let args = [
            "--store-dir",
            store_dir,
            "--subnet-file",
            subnet_file.to_str().unwrap(),
            "--iface",
            iface,
        ];
        Daemon::spawn(&host.netns, &args, &[])
    };

    let (code, line) = refused(with_iface("eth7"));
    assert_eq!(code, Some(1), "{line}");
    assert!(line.contains("eth7") && line.contains("eth0"), "{line}");

    let squatter = host.netns.udp(SocketAddrV4::new(host.address, 8285));
    let (code, line) = refused(with_iface("eth0"));
    assert_eq!(code, Some(1), "{line}");
    assert!(line.contains("UDP port 10.4.7.21:8285 is in use"), "{line}");
    drop(squatter);

    // Somebody else's device of that name, and somebody else's route.
    host.netns.ip("link add taken0 type bridge");
    let (code, line) =
        refused(host.spawn_daemon(&["--store-dir", store_dir, "--tun-name=taken0"], &[]));
    assert_eq!(code, Some(1), "{line}");
    assert!(line.contains("taken0") && line.contains("--tun-name"), "{line}");
    assert!(
        !store.join("subnets").exists() || store.join("subnets").read_dir().unwrap().count() == 0
    );

    host.netns.ip("link set taken0 up");
    host.netns.ip("route add 172.7.0.0/16 dev taken0");
    let (code, line) = refused(host.spawn_daemon(&["--store-dir", store_dir], &[]));
    assert_eq!(code, Some(1), "{line}");
    assert!(line.contains("172.7.0.0/16") && line.contains("taken0"), "{line}");
    host.netns.ip("link delete taken0");

    // A backend that is not served.
    std::fs::write(
        store.join("config"),
        r#"{"Network":"172.7.0.0/16","Backend":{"Type":"vxlan"}}"#,
    )
    .unwrap();
    let (code, line) = refused(host.spawn_daemon(&["--store-dir", store_dir], &[]));
    assert_eq!(code, Some(1), "{line}");
    assert!(line.contains("vxlan") && line.contains("udp"), "{line}");
}

#[test]
fn missing_rights_and_a_missing_driver_are_named() {
    if !root_or_skip("missing_rights_and_a_missing_driver_are_named") {
        return;
    }
    let lab = Lab::new(1);
    let host = lab.host(0);
    let store = lab.store_dir(CONFIG);
    let run = |wrapper: &[&str]| {
        let output = host
            .netns
            .command(wrapper[0])
            .args(&wrapper[1..])
            .args([env!("CARGO_BIN_EXE_flanneld"), "--iface=eth0", "--store-dir"])
            .arg(&store)
            .arg("--subnet-file")
            .arg(host.subnet_file())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), text.lines().last().unwrap_or_default().to_owned())
    };
    let (code, line) = run(&["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]);
    assert_eq!(code, Some(1), "{line}");
    assert!(line.contains("CAP_NET_ADMIN"), "{line}");

    // A /dev without the driver, in a mount namespace of its own.
    let (code, line) =
        run(&["unshare", "-m", "sh", "-c", "mount -t tmpfs none /dev/net && exec \"$@\"", "sh"]);
    assert_eq!(code, Some(1), "{line}");
    assert!(line.contains("/dev/net/tun") && line.contains("modprobe tun"), "{line}");
}

/// Before there is a config the daemon waits, and a signal ends it in good order.
#[test]
fn it_waits_for_the_config_and_can_be_stopped_meanwhile() {
    if !root_or_skip("it_waits_for_the_config_and_can_be_stopped_meanwhile") {
        return;
    }
    let lab = Lab::new(1);
    let store = lab.store_dir("{}");
    std::fs::remove_file(store.join("config")).unwrap();
    let args = ["--store-dir", store.to_str().unwrap()];
    let daemon = lab.host(0).spawn_daemon(&args, &[]);
    daemon.wait_log("waiting for the network config", PATIENCE);
    assert_eq!(daemon.stop().status.code(), Some(0));

    let daemon = lab.host(0).spawn_daemon(&args, &[]);
    daemon.wait_log("waiting for the network config", PATIENCE);
    std::fs::write(store.join("config"), r#"{"Network":"172.7.0.0/16","SubnetLen":33}"#).unwrap();
    daemon.wait_log("SubnetLen", PATIENCE);
    std::fs::write(store.join("config"), CONFIG).unwrap();
    daemon.wait_ready();
    assert_eq!(daemon.stop().status.code(), Some(0));
}

/// Whoever makes the network larger, for a host that finds no subnet, may change all of it.
#[test]
fn a_config_changed_while_it_waits_for_a_lease_is_applied_as_a_whole() {
    if !root_or_skip("a_config_changed_while_it_waits_for_a_lease_is_applied_as_a_whole") {
        return;
    }
    let lab = Lab::new(1);
    let store = lab.store_dir(
        r#"{"Network":"172.8.0.0/16","SubnetMin":"172.8.1.0","SubnetMax":"172.8.1.0",
            "Backend":{"Type":"udp","Port":8290}}"#,
    );
    std::fs::create_dir_all(store.join("subnets")).unwrap();
    std::fs::write(store.join("subnets/172.8.1.0-24"), r#"{"PublicIP":"10.4.7.66"}"#).unwrap();
    let host = lab.host(0);
    let daemon = host.spawn_daemon(&["--store-dir", store.to_str().unwrap()], &[]);
    daemon.wait_log("no free subnet is left", PATIENCE);
    std::fs::write(store.join("config"), CONFIG).unwrap();
    daemon.wait_ready();
    let sockets = host.netns.exec("ss -Hnul");
    assert!(sockets.contains(":8285 ") && !sockets.contains(":8290 "), "{sockets}");
    let env = std::fs::read_to_string(host.subnet_file()).unwrap();
    assert!(env.contains("FLANNEL_NETWORK=172.7.0.0/16"), "{env}");
    let devices = host.netns.ip("-br link show type tun");
    assert_eq!(devices.lines().count(), 1, "{devices}");
    assert_eq!(daemon.stop().status.code(), Some(0));
}

/// The bounds of the issue: a second to start and 30 MiB resident, with 1,000 leases.
#[test]
fn a_thousand_leases_cost_little_time_and_memory() {
    if !root_or_skip("a_thousand_leases_cost_little_time_and_memory") {
        return;
    }
    let lab = Lab::new(1);
    let store = lab.store_dir(CONFIG.replace("172.7.0.0/16", "172.0.0.0/10").as_str());
    std::fs::create_dir_all(store.join("subnets")).unwrap();
    for i in 0..1_000_u32 {
        let (high, low) = (i >> 8, i & 255);
        std::fs::write(
            store.join(format!("subnets/172.{}.{low}.0-24", high + 1)),
            format!(r#"{{"PublicIP":"10.9.{high}.{low}","PublicIPv6":null}}"#),
        )
        .unwrap();
    }
    let started = Instant::now();
    let daemon = lab.host(0).spawn_daemon(&["--store-dir", store.to_str().unwrap()], &[]);
    daemon.wait_ready();
    daemon.wait_log("1000 peers are up", PATIENCE);
    let elapsed = started.elapsed();
    let resident_kib = daemon.memory_kib("VmRSS");
    println!("ready with 1,000 leases after {elapsed:?}, {resident_kib} KiB resident");
    assert!(resident_kib < 30 * 1024, "{resident_kib} KiB");
    // The time is printed, and held to a bound that only a hang exceeds: CI's machine is shared.
    assert!(elapsed < Duration::from_secs(10), "{elapsed:?}");
    daemon.stop();
}

/// `subnet.env` from before the first start decides which subnet the host asks for.
#[test]
fn a_subnet_chosen_by_hand_is_kept_over_restarts() {
    if !root_or_skip("a_subnet_chosen_by_hand_is_kept_over_restarts") {
        return;
    }
    let lab = Lab::new(1);
    let store = lab.store_dir(CONFIG);
    let host = lab.host(0);
    std::fs::write(
        host.subnet_file(),
        "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.21.1/24\nFLANNEL_MTU=1500\n\
         FLANNEL_IPMASQ=false\n",
    )
    .unwrap();
    for _ in 0..2 {
        let daemon = host.spawn_daemon(&["--store-dir", store.to_str().unwrap()], &[]);
        daemon.wait_ready();
        assert_eq!(
            std::fs::read_to_string(host.subnet_file()).unwrap(),
            "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.21.1/24\nFLANNEL_MTU=1472\n\
             FLANNEL_IPMASQ=false\n"
        );
        let link = host.netns.ip("addr show flannel0");
        assert!(link.contains("mtu 1472") && link.contains("inet 172.7.21.0/32"), "{link}");
        assert!(!link.contains("inet6"), "{link}");
        let route = host.netns.ip("route show 172.7.0.0/16");
        assert!(route.contains("dev flannel0") && !route.contains("src"), "{route}");
        assert_eq!(daemon.stop().status.code(), Some(0));
    }
}

/// A `subnet.env` that cannot be written costs readiness, not packets, and is tried again.
#[test]
fn an_unwritable_subnet_file_is_tried_again() {
    if !root_or_skip("an_unwritable_subnet_file_is_tried_again") {
        return;
    }
    let lab = Lab::new(1);
    let store = lab.store_dir(CONFIG);
    let host = lab.host(0);
    let parent = host.dir.join("in-the-way");
    std::fs::write(&parent, "a file where a directory should be").unwrap();
    let file = parent.join("subnet.env");
    let args = ["--store-dir", store.to_str().unwrap(), "--iface=eth0", "--subnet-file"];
    let args = [&args[..], &[file.to_str().unwrap()]].concat();
    let daemon = Daemon::spawn(&host.netns, &args, &[]);
    daemon.wait_log("not ready", PATIENCE);
    assert_eq!(daemon.count("flanneld is ready"), 0);
    assert!(host.netns.ip("addr show flannel0").contains("UP"), "packets are carried all the same");
    std::fs::remove_file(&parent).unwrap();
    daemon.wait_ready();
    assert!(std::fs::read_to_string(&file).unwrap().contains("FLANNEL_MTU=1472"));
    assert_eq!(daemon.stop().status.code(), Some(0));
}

//! `flanneld check` on healthy and on broken hosts: real namespaces, real firewalls, real paths.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::SocketAddrV4;
use std::process::Command;

use support::daemon::{Daemon, PATIENCE};
use support::etcd::DeadEndpoint;
use support::lab::{CONFIG, Lab, LabHost};
use support::root_or_skip;
use support::routed::RoutedPath;

const FLANNELD: &str = env!("CARGO_BIN_EXE_flanneld");

/// What the command said.
struct Checked {
    code: Option<i32>,
    text: String,
}

impl Checked {
    fn by(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        println!("--- {command:?}: {:?}\n{text}", output.status.code());
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        assert!(!text.contains('\u{1b}'), "colours, but no terminal");
        Self { code: output.status.code(), text }
    }

    fn on(host: &LabHost, args: &[&str]) -> Self {
        Self::by(host.netns.command(FLANNELD).arg("check").args(flags(host)).args(args))
    }

    /// There is a finding of this kind that says `what`, and its fix says `fix`.
    #[track_caller]
    fn finds(&self, severity: &str, about: &str, what: &str, fix: &str) {
        let head = format!("{severity:8} {about:10} ");
        let mut lines = self.text.lines();
        let found = lines.find(|line| line.starts_with(&head) && line.contains(what));
        assert!(found.is_some(), "no {severity} of {about} says {what:?}:\n{}", self.text);
        if !fix.is_empty() {
            let next = lines.next().unwrap_or_default();
            assert!(next.contains("fix: ") && next.contains(fix), "{fix:?} is not in {next:?}");
        }
    }

    /// Nothing failed, and nothing is worth a warning.
    #[track_caller]
    fn is_good(&self) {
        assert_eq!(self.code, Some(0), "{}", self.text);
        assert!(self.text.ends_with("0 failures, 0 warnings\n"), "{}", self.text);
    }
}

fn flags(host: &LabHost) -> Vec<String> {
    vec![
        format!("--subnet-file={}", host.subnet_file().display()),
        format!("--public-ip={}", host.address),
        "--iface=eth0".into(),
    ]
}

/// Two hosts with daemons that know each other.
fn two_hosts() -> (Lab, String, Vec<Daemon>) {
    let lab = Lab::new(2);
    let store = format!("--store-dir={}", lab.store_dir(CONFIG).display());
    let daemons: Vec<Daemon> =
        lab.hosts().iter().map(|host| host.spawn_daemon(&[&store], &[])).collect();
    for daemon in &daemons {
        daemon.wait_ready();
        daemon.wait_log("is up", PATIENCE);
    }
    (lab, store, daemons)
}

#[test]
fn a_healthy_host_passes_before_and_after() {
    if !root_or_skip("a_healthy_host_passes_before_and_after") {
        return;
    }
    let lab = Lab::new(1);
    let store = format!("--store-dir={}", lab.store_dir(CONFIG).display());
    let before = Checked::on(lab.host(0), &[&store]);
    before.is_good();
    before.finds("ok", "port", "UDP 10.4.7.21:8285 is free", "");
    before.finds("ok", "interface", "MTU of 1500 leaves 1472 bytes", "");
    before.finds("ok", "lease", "a subnet is free", "");
    drop(lab);

    let (mut lab, store, daemons) = two_hosts();
    // Its bridge has an address of the overlay, as it must.
    lab.host_mut(0).add_pod();
    let after = Checked::on(lab.host(0), &[&store]);
    after.is_good();
    after.finds("ok", "daemon", "it holds flannel0", "");
    after.finds("ok", "port", "is the daemon's", "");
    after.finds("ok", "peers", "1 of 1 answer through the overlay, to packets of 1472 bytes", "");
    let links = lab.host(0).netns.ip("-o link show type tun");
    assert_eq!(links.lines().count(), 1, "the device of the check is gone: {links}");
    assert_eq!(daemons[0].count("changed from outside"), 0);

    // The other host, by variables, for programs.
    let host = lab.host(1);
    let variables = [("FLANNELD_STORE_DIR", store.trim_start_matches("--store-dir="))];
    let mut command = host.netns.command(FLANNELD);
    let output =
        command.args(["check", "--json"]).args(flags(host)).envs(variables).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = json["findings"].as_array().unwrap();
    assert!(findings.iter().all(|f| f["severity"] != "failure"), "{json}");
    assert!(findings.iter().any(|f| f["about"] == "peers" && f["severity"] == "ok"), "{json}");
}

#[test]
fn a_blocked_port_is_told_from_a_daemon_that_is_not_there() {
    if !root_or_skip("a_blocked_port_is_told_from_a_daemon_that_is_not_there") {
        return;
    }
    let (lab, store, mut daemons) = two_hosts();
    let (here, there) = (lab.host(0), lab.host(1));
    there.netns.exec("iptables -I INPUT -p udp --dport 8285 -j DROP");
    let checked = Checked::on(here, &[&store]);
    assert_eq!(checked.code, Some(1));
    checked.finds("FAILURE", "peers", "UDP port 8285 is blocked", "-p udp --dport 8285 -j ACCEPT");

    there.netns.exec("iptables -F INPUT");
    daemons.pop().unwrap().stop();
    let checked = Checked::on(here, &[&store]);
    assert_eq!(checked.code, Some(1));
    checked.finds("FAILURE", "peers", "refuses UDP port 8285", "start flanneld there");

    // The whole host away: nothing that the daemon here could not live with.
    there.netns.ip("link set eth0 down");
    let checked = Checked::on(here, &[&store]);
    assert_eq!(checked.code, Some(0));
    checked.finds("warning", "peers", "10.4.7.22", "delete its lease");
}

/// What is said of a path of 1,400 bytes between two hosts with daemons, and with such routers.
fn checked_on_a_narrow_path(routers: impl FnOnce(&RoutedPath)) -> Checked {
    let (lab, store, _daemons) = two_hosts();
    let path = RoutedPath::between_hosts(&lab);
    path.set_mtu(1400);
    routers(&path);
    Checked::on(lab.host(0), &[&store])
}

#[test]
fn a_narrow_path_is_measured() {
    if !root_or_skip("a_narrow_path_is_measured") {
        return;
    }
    // Routers cut the datagrams, which is slow but works.
    let checked = checked_on_a_narrow_path(|_| {});
    assert_eq!(checked.code, Some(0));
    let what = "the path carries 1400 bytes, eth0 1500: 10.4.7.1 says so";
    checked.finds("warning", "mtu", what, "ip link set eth0 mtu 1400 on all hosts");

    // So do routers that keep silent; then the size is found by trying.
    let checked = checked_on_a_narrow_path(RoutedPath::silence);
    assert_eq!(checked.code, Some(0));
    let what = "eth0 1500: no router says so; larger packets of pods are sent in fragments";
    checked.finds("warning", "mtu", what, "ip link set eth0 mtu 1400 on all hosts");

    let checked = checked_on_a_narrow_path(RoutedPath::drop_fragments);
    assert_eq!(checked.code, Some(1));
    let what = "the path carries 1400 bytes, eth0 1500: 10.4.7.1 says so; larger packets of pods \
                vanish";
    checked.finds("FAILURE", "mtu", what, "let fragments pass");
}

#[test]
fn a_missing_tun_device_and_missing_rights_are_told() {
    if !root_or_skip("a_missing_tun_device_and_missing_rights_are_told") {
        return;
    }
    let lab = Lab::new(1);
    let host = lab.host(0);
    let store = format!("--store-dir={}", lab.store_dir(CONFIG).display());
    let hide = "mount -t tmpfs none /dev/net && exec \"$@\"";
    let mut command = host.netns.command("unshare");
    command.args(["-m", "sh", "-c", hide, "sh", FLANNELD, "check", &store]).args(flags(host));
    let checked = Checked::by(&mut command);
    assert_eq!(checked.code, Some(1));
    checked.finds("FAILURE", "tun", "/dev/net/tun does not exist", "mknod /dev/net/tun c 10 200");

    let mut command = host.netns.command("setpriv");
    command.args(["--bounding-set=-net_admin", FLANNELD, "check", &store]).args(flags(host));
    let checked = Checked::by(&mut command);
    assert_eq!(checked.code, Some(1));
    checked.finds("FAILURE", "rights", "CAP_NET_ADMIN is missing", "--cap-add NET_ADMIN");
}

#[test]
fn a_store_that_does_not_serve_is_told() {
    if !root_or_skip("a_store_that_does_not_serve_is_told") {
        return;
    }
    let lab = Lab::new(1);
    let host = lab.host(0);
    let dead = DeadEndpoint::new();
    let endpoints = format!("--etcd-endpoints={}", dead.url());
    let secret = ["--etcd-username=flannel", "--etcd-password=s3cret"];
    let checked = Checked::on(host, &[&[endpoints.as_str()], &secret[..]].concat());
    assert_eq!(checked.code, Some(1));
    checked.finds("FAILURE", "store", "does not serve", "compare --etcd-endpoints");
    assert!(!checked.text.contains("s3cret"));

    let empty = host.dir.join("no-store");
    let checked = Checked::on(host, &[&format!("--store-dir={}", empty.display())]);
    assert_eq!(checked.code, Some(1));
    checked.finds("FAILURE", "store", "no network config", "put the config there");
    assert!(!empty.exists(), "a check makes nothing");

    let store = format!("--store-dir={}", lab.store_dir(r#"{"Network":"172.7.0.0/30"}"#).display());
    let checked = Checked::on(host, &[&store]);
    assert_eq!(checked.code, Some(1));
    checked.finds("FAILURE", "store", "network config: ", "correct the network config");
}

#[test]
fn what_is_in_the_way_is_told() {
    if !root_or_skip("what_is_in_the_way_is_told") {
        return;
    }
    let lab = Lab::new(1);
    let host = lab.host(0);
    let dir = lab.store_dir(CONFIG);
    let store = format!("--store-dir={}", dir.display());
    host.netns.ip("route add 172.7.0.0/16 via 10.4.7.1");
    host.netns.ip("route add 172.7.200.0/24 via 10.4.7.1");
    let checked = Checked::on(host, &[&store]);
    assert_eq!(checked.code, Some(1));
    let fix = "ip route del 172.7.0.0/16";
    checked.finds("FAILURE", "overlay", "exists already, via 10.4.7.1 on eth0", fix);
    let fix = "ip route del 172.7.200.0/24";
    checked.finds("warning", "overlay", "takes 172.7.200.0/24 out of the overlay", fix);

    host.netns.ip("route del 172.7.0.0/16");
    host.netns.ip("route del 172.7.200.0/24");
    host.netns.ip("link add lan0 type bridge");
    host.netns.ip("addr add 172.7.9.1/24 dev lan0");
    let checked = Checked::on(host, &[&store]);
    assert_eq!(checked.code, Some(1));
    let what = "overlaps with this host's network 172.7.9.1/24 on lan0";
    checked.finds("FAILURE", "overlay", what, "choose another Network");
    host.netns.ip("link del lan0");

    // Leases that cannot be right, a port that is taken, forwarding that is off.
    std::fs::create_dir_all(dir.join("subnets")).unwrap();
    for (subnet, ip) in [
        ("172.7.101.0-24", "10.4.7.99"),
        ("172.7.102.0-24", "10.4.7.99"),
        ("172.7.103.0-24", "255.255.255.255"),
        ("172.8.0.0-24", "10.4.7.98"),
    ] {
        let value = format!(r#"{{"PublicIP":"{ip}","PublicIPv6":null}}"#);
        std::fs::write(dir.join("subnets").join(subnet), value).unwrap();
    }
    let _squatter = host.netns.udp(SocketAddrV4::new(host.address, 8285));
    host.netns.sysctl("net.ipv4.ip_forward", "0");
    let checked = Checked::on(host, &[&store]);
    assert_eq!(checked.code, Some(1));
    let what = "10.4.7.99 holds two subnets, 172.7.101.0/24 and 172.7.102.0/24";
    checked.finds("warning", "leases", what, "delete the one");
    checked.finds("warning", "leases", "names 255.255.255.255", "correct its PublicIP");
    checked.finds("warning", "leases", "172.8.0.0/24 lies outside", "delete the lease");
    let holder = format!("process {}", std::process::id());
    checked.finds("FAILURE", "port", &holder, "Backend.Port");
    checked.finds("warning", "forwarding", "ip_forward is 0", "sysctl -w net.ipv4.ip_forward=1");
}

#[test]
fn tools_that_are_missing_matter_as_much_as_the_rules_do() {
    if !root_or_skip("tools_that_are_missing_matter_as_much_as_the_rules_do") {
        return;
    }
    let lab = Lab::new(1);
    let host = lab.host(0);
    let store = format!("--store-dir={}", lab.store_dir(CONFIG).display());
    let toolbox = support::rules::Toolbox::empty();
    let without_tools = |args: &[&str]| {
        let mut command = host.netns.command(FLANNELD);
        let path = toolbox.path();
        Checked::by(
            command.args(["check", &store]).args(flags(host)).args(args).env(path.0, path.1),
        )
    };
    let checked = without_tools(&[]);
    assert_eq!(checked.code, Some(0));
    checked.finds("warning", "rules", "iptables is not in PATH", "apt-get install iptables");
    let checked = without_tools(&["--ip-masq"]);
    assert_eq!(checked.code, Some(1));
    checked.finds("FAILURE", "rules", "iptables is not in PATH", "apt-get install iptables");
    without_tools(&["--iptables-forward-rules=false"]).is_good();
}

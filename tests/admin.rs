//! What the daemon tells about itself: health, metrics, `flanneld status`, systemd.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use support::admin::{
    HEALTHZ, HEALTHZ_FLAGS, Manager, feed, metrics, parser_or_skip, read_answer, report, request,
    socket, status, until, wait_readyz,
};
use support::daemon::{Daemon, PATIENCE};
use support::lab::{CONFIG, Lab};
use support::root_or_skip;
use support::traffic::{tcp_transfer, udp_exchange};

/// A network with room for one host.
const ONE_SUBNET: &str = r#"{"Network":"172.7.0.0/16","SubnetMin":"172.7.21.0",
    "SubnetMax":"172.7.21.0","Backend":{"Type":"udp"}}"#;

/// Starts the daemon of the lab's host `number` with health checks and these flags.
fn start(lab: &Lab, number: usize, store: &Path, args: &[&str], env: &[(&str, &str)]) -> Daemon {
    let mut all = vec!["--store-dir", store.to_str().unwrap()];
    all.extend(HEALTHZ_FLAGS);
    all.extend(args);
    lab.host(number).spawn_daemon(&all, env)
}

#[test]
fn health_from_the_beginning_and_readiness_with_subnet_env() {
    if !root_or_skip("health_from_the_beginning_and_readiness_with_subnet_env") {
        return;
    }
    let lab = Lab::new(1);
    let store = lab.store_dir(CONFIG);
    std::fs::remove_file(store.join("config")).unwrap();
    let host = lab.host(0);
    let daemon = start(&lab, 0, &store, &[], &[]);
    daemon.wait_log("waiting for the network config", PATIENCE);

    let get = |what: &str| request(&host.netns, what).expect("an answer");
    let health = get("GET /healthz");
    assert_eq!((health.status, health.body.as_str()), (200, "flanneld is running"));
    assert!(health.head.contains("content-type: text/plain"), "{health:?}");
    assert_eq!((get("HEAD /healthz").status, get("HEAD /healthz").body), (200, String::new()));
    let ready = get("GET /readyz");
    let wanted = "flanneld is not ready yet: no lease is held";
    assert_eq!((ready.status, ready.body.as_str()), (503, wanted));
    for (what, code) in
        [("GET /", 404), ("GET /status", 404), ("GET /healthz/", 404), ("POST /healthz", 405)]
    {
        assert_eq!(get(what).status, code, "{what}");
    }

    std::fs::write(store.join("config"), CONFIG).unwrap();
    let ready = until(
        "readyz",
        || {
            let answer = get("GET /readyz");
            let written = host.subnet_file().exists();
            assert!(answer.status == 503 || written, "ready without subnet.env");
            answer
        },
        |answer| answer.status == 200,
    );
    assert_eq!(ready.body, "flanneld is ready");
    assert_eq!(daemon.stop().status.code(), Some(0));
}

#[test]
fn readiness_tells_of_a_broken_device_and_a_lost_lease() {
    if !root_or_skip("readiness_tells_of_a_broken_device_and_a_lost_lease") {
        return;
    }
    let lab = Lab::new(1);
    let store = lab.store_dir(ONE_SUBNET);
    let host = lab.host(0);
    let daemon = start(&lab, 0, &store, &[], &[]);
    wait_readyz(&host.netns, 200, "flanneld is ready");

    // Somebody else takes the route: the daemon cannot put it back. Then the device, too.
    host.netns.ip("link add taken0 type bridge");
    host.netns.ip("link set taken0 up");
    host.netns.ip("route replace 172.7.0.0/16 dev taken0");
    wait_readyz(&host.netns, 503, "the device does not carry packets");
    let device = report(host)["device"].clone();
    assert!(device["trouble"].as_str().unwrap().contains("taken0"), "{device}");
    host.netns.try_exec("ip link delete flannel0");
    daemon.wait_log("is not as it must be", PATIENCE);
    wait_readyz(&host.netns, 503, "the device does not carry packets");
    host.netns.ip("link delete taken0");
    wait_readyz(&host.netns, 200, "flanneld is ready");
    assert!(host.netns.ip("route show 172.7.0.0/16").contains("dev flannel0"));

    // Another host takes the only subnet, and gives it back.
    let (lease, thief) = (store.join("subnets/172.7.21.0-24"), store.join("thief"));
    std::fs::write(&thief, r#"{"PublicIP":"10.4.7.66","PublicIPv6":null}"#).unwrap();
    std::fs::rename(&thief, &lease).unwrap();
    wait_readyz(&host.netns, 503, "no lease is held");
    assert_eq!(report(host)["lease"]["held"], false);
    let page = || request(&host.netns, "GET /metrics").expect("an answer").body;
    until("metrics", page, |page| page.contains("\nflanneld_ready 0\n"));
    std::fs::remove_file(&lease).unwrap();
    wait_readyz(&host.netns, 200, "flanneld is ready");

    // The whole store goes away: what is held stays held, but the connection is told.
    let aside = store.with_extension("aside");
    std::fs::rename(&store, &aside).unwrap();
    let connected = |wanted: bool| {
        until("connection", || report(host)["store"]["connected"] == wanted, |is_so| *is_so);
    };
    connected(false);
    wait_readyz(&host.netns, 200, "flanneld is ready");
    std::fs::rename(&aside, &store).unwrap();
    connected(true);
    assert_eq!(daemon.stop().status.code(), Some(0));
}

#[test]
fn a_taken_port_ends_the_start_before_a_lease_is_taken() {
    if !root_or_skip("a_taken_port_ends_the_start_before_a_lease_is_taken") {
        return;
    }
    let lab = Lab::new(1);
    let store = lab.store_dir(CONFIG);
    let _squatter = lab.host(0).netns.listen(HEALTHZ);
    let ended = start(&lab, 0, &store, &[], &[]).wait();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.log);
    let last = ended.log.lines().last().unwrap();
    assert!(last.contains("127.0.0.1:8471") && last.contains("--healthz-port"), "{last}");
    assert!(!store.join("subnets").exists());
}

/// Whoever holds connections open, or speaks one byte at a time, keeps no probe out.
#[test]
fn slow_and_many_clients_do_not_disturb() {
    if !root_or_skip("slow_and_many_clients_do_not_disturb") {
        return;
    }
    let lab = Lab::new(1);
    let store = lab.store_dir(CONFIG);
    let host = lab.host(0);
    let daemon = start(&lab, 0, &store, &[], &[]);
    wait_readyz(&host.netns, 200, "");
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    let before = descriptors();

    let mut slow = host.netns.connect(HEALTHZ).unwrap();
    slow.set_read_timeout(Some(PATIENCE)).unwrap();
    slow.write_all(b"GET /healthz HTT").unwrap();
    assert_eq!(request(&host.netns, "GET /readyz").unwrap().status, 200);
    slow.write_all(b"P/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(read_answer(&mut slow).unwrap().status, 200, "slow, but in time");

    let idle: Vec<_> = host
        .netns
        .enter(|| (0..1000).map(|_| std::net::TcpStream::connect(HEALTHZ).unwrap()).collect());
    assert_eq!(request(&host.netns, "GET /readyz").unwrap().status, 200);
    assert!(request(&host.netns, "GET /metrics").unwrap().body.contains("\nflanneld_ready 1\n"));
    let during = descriptors();
    assert!(during <= before + 64 + 8, "{before} descriptors before, {during} now");
    drop(idle);

    // A header without an end is refused, not kept.
    let mut endless = host.netns.connect(HEALTHZ).unwrap();
    endless.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = endless.write_all(b"GET /healthz HTTP/1.1\r\nX: ");
    let _ = endless.write_all(&vec![b'x'; 1 << 20]);
    let mut answer = Vec::new();
    let _ = endless.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(request(&host.netns, "GET /healthz").unwrap().status, 200);
    assert_eq!(daemon.stop().status.code(), Some(0));
}

/// Two hosts with a pod each, ready and known to each other.
fn overlay(lab: &mut Lab) -> Vec<Daemon> {
    let store = lab.store_dir(CONFIG);
    let daemons: Vec<Daemon> = (0..2).map(|host| start(lab, host, &store, &[], &[])).collect();
    for (number, daemon) in daemons.iter().enumerate() {
        daemon.wait_ready();
        daemon.wait_log(&format!("at {} is up", lab.host(1 - number).address), PATIENCE);
        lab.host_mut(number).add_pod();
    }
    daemons
}

#[test]
fn metrics_and_status_agree_with_the_traffic() {
    let test = "metrics_and_status_agree_with_the_traffic";
    if !root_or_skip(test) || !parser_or_skip(test) {
        return;
    }
    let mut lab = Lab::new(2);
    let daemons = overlay(&mut lab);
    let (a, b) = (lab.host(0), lab.host(1));
    let before = metrics(&a.netns);
    assert!(!before.contains_key(r#"flanneld_peer_last_seen_timestamp_seconds{peer="10.4.7.22"}"#));

    // Ten questions and ten answers of 100 bytes, with 28 of UDP and IPv4.
    udp_exchange(a.pod(0).end(), b.pod(0).end(), &[100; 10]);
    // An address that nobody leases.
    a.pod(0).netns.try_exec("ping -n -c 3 -i 0.2 -W 1 172.7.200.9");
    let grown = |samples: &std::collections::BTreeMap<String, f64>, name: &str| {
        samples[name] - before.get(name).copied().unwrap_or(0.0)
    };
    let wanted = [
        (r#"flanneld_packets_total{direction="egress"}"#, 10.0),
        (r#"flanneld_packets_total{direction="ingress"}"#, 10.0),
        (r#"flanneld_bytes_total{direction="egress"}"#, 1280.0),
        (r#"flanneld_bytes_total{direction="ingress"}"#, 1280.0),
        (r#"flanneld_peer_packets_total{direction="egress",peer="10.4.7.22"}"#, 10.0),
        (r#"flanneld_peer_bytes_total{direction="ingress",peer="10.4.7.22"}"#, 1280.0),
        (r#"flanneld_peer_drops_total{direction="ingress",peer="10.4.7.22"}"#, 0.0),
        (r#"flanneld_drops_total{direction="egress",reason="no_route"}"#, 3.0),
    ];
    let seen = r#"flanneld_peer_last_seen_timestamp_seconds{peer="10.4.7.22"}"#;
    // The page is a second old at most, and the first samples may be from before the traffic.
    let after = until(
        "the traffic in the metrics",
        || metrics(&a.netns),
        |samples| {
            samples.contains_key(seen)
                && wanted.iter().all(|(name, value)| grown(samples, name) == *value)
        },
    );
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let now = now.as_secs_f64();
    assert!((now - 120.0..=now + 1.0).contains(&after[seen]), "{now} {}", after[seen]);
    for (name, value) in [
        ("flanneld_ready", 1.0),
        ("flanneld_store_connected", 1.0),
        ("flanneld_lease_held", 1.0),
        ("flanneld_device_up", 1.0),
        ("flanneld_device_mtu_bytes", 1472.0),
        ("flanneld_routes", 1.0),
        ("flanneld_peers", 1.0),
        (r#"flanneld_queue_drops_total{direction="egress"}"#, 0.0),
        (r#"flanneld_queue_drops_total{direction="ingress"}"#, 0.0),
        (&format!("flanneld_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")), 1.0),
    ] {
        assert_eq!(after[name], value, "{name}");
    }
    let expiry = after["flanneld_lease_expiry_timestamp_seconds"] - now;
    assert!((86_000.0..=86_400.0).contains(&expiry), "{expiry}");

    // The real promtool has opinions about names and help texts, too.
    if let Ok(path) = which("promtool") {
        let page = request(&a.netns, "GET /metrics").unwrap().body;
        let output = feed(&path, &["check", "metrics"], &page);
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }

    // A transfer, and the three ways to look at it.
    tcp_transfer(a.pod(0).end(), b.pod(0).end(), 3_000_000);
    let told =
        until("a quiet network", || report(a), |told| told["egress"]["bits_per_second"] == 0);
    assert!(told["egress"]["bytes"].as_u64().unwrap() > 3_000_000, "{told}");
    let peer = &told["peers"][0];
    assert_eq!(peer["public_ip"], "10.4.7.22");
    assert_eq!(peer["egress"]["bytes"], told["egress"]["bytes"]);
    assert_eq!(peer["ingress"]["packets"], told["ingress"]["packets"]);
    assert_eq!(told["lease"]["subnet"], peer_subnet(&report(b)));
    assert_eq!((told["ready"].as_bool(), told["routes"].as_u64()), (Some(true), Some(1)));
    let table = String::from_utf8(status(a, &[]).stdout).unwrap();
    assert!(table.contains("10.4.7.22") && table.contains(": ready, up"), "{table}");
    assert!(table.contains("dropped  egress: no_route 3"), "{table}");
    assert!(!table.contains('\x1b'), "colours without a terminal: {table}");
    println!("{table}");

    for (daemon, host) in daemons.into_iter().zip([a, b]) {
        let packets = report(host)["egress"]["packets"].as_u64().unwrap();
        let log = daemon.stop().log;
        assert!(log.contains(&format!("egress: packets={packets} ")), "{packets}\n{log}");
        assert!(!socket(host).exists(), "the socket is left");
    }
}

fn peer_subnet(told: &serde_json::Value) -> serde_json::Value {
    told["peers"][0]["subnets"][0].clone()
}

fn which(tool: &str) -> Result<String, String> {
    let output = Command::new("sh").args(["-c", &format!("command -v {tool}")]).output().unwrap();
    let path = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    if output.status.success() { Ok(path) } else { Err(format!("no {tool}")) }
}

#[test]
fn status_says_what_it_finds_by_its_exit_code() {
    if !root_or_skip("status_says_what_it_finds_by_its_exit_code") {
        return;
    }
    let lab = Lab::new(1);
    let host = lab.host(0);
    let nobody = status(host, &[]);
    let text = String::from_utf8(nobody.stderr).unwrap();
    assert_eq!((nobody.status.code(), text.lines().count()), (Some(1), 1), "{text}");
    assert!(text.contains("no daemon listens on") && text.contains("start flanneld"), "{text}");

    let store = lab.store_dir(CONFIG);
    std::fs::remove_file(store.join("config")).unwrap();
    let daemon = start(&lab, 0, &store, &[], &[]);
    daemon.wait_log("waiting for the network config", PATIENCE);
    let waiting = status(host, &[]);
    let text = String::from_utf8(waiting.stdout).unwrap();
    assert_eq!(waiting.status.code(), Some(3), "{text}");
    assert!(text.contains("not ready") && text.contains("no lease is held"), "{text}");
    std::fs::write(store.join("config"), CONFIG).unwrap();
    daemon.wait_ready();
    until("exit code", || status(host, &["--json"]).status.code(), |code| *code == Some(0));

    // Again and again, until a signal ends it: not SIGINT, which what runs in the background ignores.
    let mut watch = Command::new(env!("CARGO_BIN_EXE_flanneld"))
        .args(["status", "--watch", "--json", "--admin-socket"])
        .arg(socket(host))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(watch.stdout.take().unwrap()));
    for _ in 0..2 {
        let line = lines.next().unwrap().unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap()["ready"], true);
    }
    kill_process(Pid::from_child(&watch), Signal::TERM).unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&watch.wait().unwrap()), Some(15));
    assert_eq!(daemon.stop().status.code(), Some(0));
}

#[test]
fn the_socket_is_for_root_and_for_one_daemon() {
    if !root_or_skip("the_socket_is_for_root_and_for_one_daemon") {
        return;
    }
    let lab = Lab::new(2);
    let store = lab.store_dir(CONFIG);
    let host = lab.host(0);
    let daemon = start(&lab, 0, &store, &[], &[]);
    daemon.wait_ready();
    let path = socket(host);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    // The path down to the socket, and the program, must not be what keeps nobody out.
    let program = host.dir.join("flanneld");
    std::fs::copy(env!("CARGO_BIN_EXE_flanneld"), &program).unwrap();
    for dir in [&host.dir, host.dir.parent().unwrap()] {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let as_nobody = || {
        let output = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .arg(&program)
            .args(["status", "--admin-socket"])
            .arg(&path)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = as_nobody();
    assert!(code == Some(1) && text.contains("for root alone"), "{code:?} {text}");
    // Were the mode ever changed, the credentials of the connection are still another uid's.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let (code, text) = as_nobody();
    assert!(code == Some(1) && text.contains("for root alone"), "{code:?} {text}");
    assert_eq!(status(host, &[]).status.code(), Some(0), "root is still served");

    // Another daemon with the same socket does without.
    let same = format!("--admin-socket={}", path.display());
    let other = start(&lab, 1, &store, &[&same], &[]);
    other.wait_log("another flanneld listens on", PATIENCE);
    other.wait_ready();
    assert_eq!(other.stop().status.code(), Some(0));
    assert_eq!(report(host)["pid"], daemon.pid(), "the first one's socket was left alone");

    // A crashed daemon's socket is in nobody's way, and none is made if none is wanted.
    daemon.kill9();
    assert!(path.exists());
    let daemon = start(&lab, 0, &store, &[], &[]);
    daemon.wait_ready();
    assert_eq!(report(host)["pid"], daemon.pid());
    daemon.stop();
    let daemon = start(&lab, 0, &store, &["--admin-socket="], &[]);
    daemon.wait_ready();
    assert!(!path.exists());
    daemon.stop();
}

#[test]
fn systemd_is_told() {
    if !root_or_skip("systemd_is_told") {
        return;
    }
    let lab = Lab::new(1);
    let store = lab.store_dir(CONFIG);
    let host = lab.host(0);
    let manager = Manager::new(&host.dir);
    std::fs::remove_file(store.join("config")).unwrap();
    let env = [("NOTIFY_SOCKET", manager.path.as_str()), ("WATCHDOG_USEC", "400000")];
    let daemon = start(&lab, 0, &store, &[], &env);
    // It lives while it waits for the config, but is not ready.
    let seen = manager.wait("STATUS=not ready: no lease is held");
    assert!(!seen.iter().any(|message| message.contains("READY=1\n")), "{seen:?}");
    manager.wait("WATCHDOG=1");
    assert!(!host.subnet_file().exists());
    std::fs::write(store.join("config"), CONFIG).unwrap();
    let seen = manager.wait("READY=1");
    assert!(host.subnet_file().exists(), "ready before subnet.env");
    assert!(seen.last().unwrap().contains("/24, 0 peers"), "{seen:?}");

    std::fs::write(
        store.join("subnets/172.7.150.0-24"),
        r#"{"PublicIP":"10.4.7.66","PublicIPv6":null}"#,
    )
    .unwrap();
    let subnet = report(host)["lease"]["subnet"].as_str().unwrap().to_owned();
    let seen = manager.wait(&format!("STATUS={subnet}, 1 peer"));
    assert!(!seen.iter().any(|message| message.contains("READY")), "told once: {seen:?}");
    for _ in 0..3 {
        manager.wait("WATCHDOG=1");
    }
    assert_eq!(daemon.stop().status.code(), Some(0));
    manager.wait("STOPPING=1");
}

/// The watchdog is told by the loop that does the work: when nobody reads the daemon's log any
/// more, that loop stands still at its next line, and so does the watchdog's news.
#[test]
fn a_hanging_loop_tells_no_watchdog() {
    if !root_or_skip("a_hanging_loop_tells_no_watchdog") {
        return;
    }
    let lab = Lab::new(1);
    let store = lab.store_dir(CONFIG);
    let host = lab.host(0);
    let manager = Manager::new(&host.dir);
    let subnet_file = host.subnet_file();
    let mut daemon = host
        .netns
        .command(env!("CARGO_BIN_EXE_flanneld"))
        .args(["--iface=eth0", "--store-dir", store.to_str().unwrap()])
        .args(["--subnet-file", subnet_file.to_str().unwrap()])
        .envs([("NOTIFY_SOCKET", manager.path.as_str()), ("WATCHDOG_USEC", "200000")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    manager.wait("READY=1");
    manager.wait("WATCHDOG=1");

    // A line for each peer that comes, in a pipe that holds a page.
    let mut log = daemon.stderr.take().unwrap();
    rustix::pipe::fcntl_setpipe_size(log.as_fd(), 4096).unwrap();
    let mut peers = 0;
    let mut add_peers = |count: u32| {
        for peer in peers..peers + count {
            let file = store.join(format!("subnets/172.7.{}.0-24", 110 + peer));
            let value = format!(r#"{{"PublicIP":"10.9.0.{peer}","PublicIPv6":null}}"#);
            std::fs::write(file, value).unwrap();
        }
        peers += count;
    };
    // Few enough at a time that each is told by itself.
    let silence = Duration::from_secs(3);
    let mut hangs = false;
    for _ in 0..14 {
        add_peers(10);
        // Fifteen times the watchdog's limit without a word is a hang, on a slow machine as well.
        let mut told = 0;
        while told < 3 && manager.next(silence).is_some() {
            told += 1;
        }
        if told < 3 {
            hangs = true;
            break;
        }
    }
    assert!(hangs, "the daemon still tells the watchdog that all is well");

    // Somebody reads again, and the daemon goes on.
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = log.read_to_string(&mut text);
        text
    });
    manager.wait("WATCHDOG=1");
    kill_process(Pid::from_child(&daemon), Signal::TERM).unwrap();
    manager.wait("STOPPING=1");
    assert!(daemon.wait().unwrap().success());
    assert!(reader.join().unwrap().contains("is up"));
}

/// The variables are the daemon's own: iptables must not speak in its name.
#[test]
fn children_do_not_inherit_the_notify_socket() {
    if !root_or_skip("children_do_not_inherit_the_notify_socket") {
        return;
    }
    let lab = Lab::new(1);
    let store = lab.store_dir(CONFIG);
    let host = lab.host(0);
    let manager = Manager::new(&host.dir);
    // Stands before the real tools in PATH, notes its environment, and does their work.
    let (bin, noted) = (host.dir.join("bin"), host.dir.join("environment"));
    std::fs::create_dir(&bin).unwrap();
    for tool in ["iptables", "iptables-save", "iptables-restore"] {
        let real = which(tool).unwrap();
        let script = format!("#!/bin/sh\nenv >>{}\nexec {real} \"$@\"\n", noted.display());
        std::fs::write(bin.join(tool), script).unwrap();
        std::fs::set_permissions(bin.join(tool), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let env = [
        ("NOTIFY_SOCKET", manager.path.as_str()),
        ("WATCHDOG_USEC", "60000000"),
        ("PATH", path.as_str()),
    ];
    let daemon = start(&lab, 0, &store, &[], &env);
    manager.wait("READY=1");
    assert_eq!(daemon.stop().status.code(), Some(0));
    let noted = std::fs::read_to_string(&noted).unwrap();
    assert!(noted.contains("PATH=") && !noted.contains("NOTIFY_SOCKET"), "{noted}");
    assert!(!noted.contains("WATCHDOG"), "{noted}");
}

//! A host loses its address, dies, or runs out of disk or memory.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use flanneld::dataplane::sys::send::Sender;
use flanneld::dataplane::sys::socket::{Sharing, UdpSocket, UdpWish};

use crate::cluster::{Cluster, flood};
use crate::support::admin::{self, HEALTHZ_FLAGS, until, wait_readyz};
use crate::support::cgroup::MemoryCgroup;
use crate::support::daemon::PATIENCE;
use crate::support::root_or_skip;
use crate::support::traffic::{End, ping};

/// Time between two tries to write `subnet.env` (`ENV_FILE_INTERVAL` in src/daemon.rs).
const TRY_INTERVAL: Duration = Duration::from_secs(10);

/// What the memory limit leaves a daemon above the peak of its start: as much as the buffers of the
/// data path take once all of them were full.
const MEMORY_LEFT_BYTES: u64 = 5 << 20;

/// What a daemon's memory may grow by while nothing of it is needed.
const GROWTH_KIB: u64 = 4096;

#[test]
fn an_address_that_goes_is_told_and_one_that_returns_is_used() {
    let test = "an_address_that_goes_is_told_and_one_that_returns_is_used";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&HEALTHZ_FLAGS);
    let running = cluster.run();
    let (netns, daemon) = (&cluster.lab.host(1).netns, cluster.daemon(1));
    // As a new lease of DHCP does it.
    netns.ip("addr del 10.4.7.22/24 dev eth0");
    netns.ip("addr add 10.4.7.50/24 dev eth0");
    daemon.wait_log("10.4.7.22, which peers send to, is no address of this host", PATIENCE);
    wait_readyz(netns, 503, "the address that the peers send to is not on this host");
    netns.ip("addr del 10.4.7.50/24 dev eth0");
    netns.ip("addr add 10.4.7.22/24 dev eth0");
    let healed = Instant::now();
    daemon.wait_log("10.4.7.22 is an address of this host again", PATIENCE);
    wait_readyz(netns, 200, "flanneld is ready");
    let gap = running.traffic.wait_for_probe_after(healed);
    eprintln!("{test}: a probe arrives {} ms after the address returned", gap.as_millis());
    cluster.finish(test, running);
}

/// A host that stays away: packets for it go nowhere until its lease ends, then the senders are
/// told, and when it returns it has the same subnet.
#[test]
fn a_dead_host_costs_nothing_and_can_return() {
    let test = "a_dead_host_costs_nothing_and_can_return";
    if !root_or_skip(test) {
        return;
    }
    let no_route = |cluster: &Cluster| {
        let report = admin::report(cluster.lab.host(0));
        report["egress"]["drops"]["no_route"].as_u64().unwrap()
    };
    let mut cluster = Cluster::of(3, &[]);
    let (subnet, dead) = (cluster.subnet(2), cluster.pod(2).address);
    let peer = format!("peer {}", subnet.replace('-', "/"));
    let running = cluster.run();
    let before_kib = cluster.daemon(0).memory_kib("RssAnon");
    cluster.take(2).kill9();
    flood(cluster.pod(0), dead, Duration::from_secs(1));
    assert_eq!(cluster.daemon(0).count(&format!("{peer} is gone")), 0);
    cluster.expire(&subnet);
    for host in 0..2 {
        cluster.daemon(host).wait_log(&format!("{peer} is gone"), PATIENCE);
    }
    let before = no_route(&cluster);
    flood(cluster.pod(0), dead, Duration::from_secs(1));
    assert!(no_route(&cluster) > before, "the senders are told");
    let grown_kib = cluster.daemon(0).memory_kib("RssAnon").saturating_sub(before_kib);
    assert!(grown_kib <= GROWTH_KIB, "{grown_kib} KiB more than before");

    cluster.spawn(2, &[]);
    cluster.daemon(2).wait_ready();
    cluster.daemon(0).wait_nth_log(&format!("{peer} at 10.4.7.23 is up"), 2, PATIENCE);
    assert_eq!(cluster.subnet(2), subnet);
    ping(cluster.pod(0).netns, dead, 2, "").unwrap();
    eprintln!("{test}: {grown_kib} KiB more than before");
    cluster.finish(test, running);
}

#[test]
fn a_full_disk_leaves_subnet_env_as_it_was() {
    let test = "a_full_disk_leaves_subnet_env_as_it_was";
    if !root_or_skip(test) {
        return;
    }
    // In the daemon's mount namespace, which `ip netns exec` makes: gone when it ends.
    const ON_FULL_DISK: &str = r#"old=$(cat "$0/subnet.env") && mount -t tmpfs -o size=16k none "$0" &&
        echo "$old" > "$0/subnet.env" && ! cat /dev/zero 2>/dev/null > "$0/filler" && exec "$@""#;
    let mut cluster = Cluster::new(&[]);
    let running = cluster.run();
    cluster.take(1).stop();
    let host = cluster.lab.host(1);
    let old = fs::read_to_string(host.subnet_file()).unwrap().replace("MTU=1472", "MTU=1400");
    fs::write(host.subnet_file(), &old).unwrap();
    let dir = host.dir.to_str().unwrap().to_owned();
    cluster.spawn_by(1, &["sh", "-c", ON_FULL_DISK, &dir]);
    let daemon = cluster.daemon(1);
    let told = daemon.wait_log("not ready: cannot write subnet file", PATIENCE);
    assert!(told.contains("No space left") && told.contains("make room"), "{told}");
    let seen = PathBuf::from(format!("/proc/{}/root{dir}", daemon.pid()));
    // The next try fails as well, which nobody is told: it leaves a trace in the directory.
    let touched = || fs::metadata(&seen).unwrap().modified().unwrap();
    let first_try = touched();
    until("it is tried again", touched, |&time| time != first_try);
    running.traffic.wait_for_probe_after(Instant::now());

    assert_eq!(fs::read_to_string(seen.join("subnet.env")).unwrap(), old);
    fs::remove_file(seen.join("filler")).unwrap();
    let healed = Instant::now();
    daemon.wait_ready();
    let late = healed.elapsed();
    eprintln!("{test}: written {} ms after there was room", late.as_millis());
    assert!(late < 2 * TRY_INTERVAL, "{late:?}");
    let new = fs::read_to_string(seen.join("subnet.env")).unwrap();
    assert_eq!(new, old.replace("MTU=1400", "MTU=1472"));
    let hidden = |name: &str| name.starts_with(".subnet.env");
    let mut names = fs::read_dir(seen).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!names.any(|name| hidden(name.to_str().unwrap())), "nothing unfinished is left");
    assert_eq!(daemon.count("cannot write"), 1);
    cluster.finish(test, running);
}

#[test]
fn a_memory_limit_just_above_the_peak_kills_nobody() {
    let test = "a_memory_limit_just_above_the_peak_kills_nobody";
    if !root_or_skip(test) {
        return;
    }
    let Some(cgroup) = MemoryCgroup::new_or_skip(test) else { return };
    let mut cluster = Cluster::new(&[]);
    cluster.take(1).stop();
    // Its memory counts from its first page on: it is put there before it is what it will be. One
    // pair of threads, on whatever machine, for each has buffers.
    cluster.spawn_by(1, &["sh", "-c", r#"kill -STOP $$ && exec "$@" --threads=1"#, "sh"]);
    let daemon = cluster.daemon(1);
    daemon.wait_frozen();
    cgroup.enter(daemon.pid());
    daemon.thaw();
    daemon.wait_log("is up", PATIENCE);
    let running = cluster.run();
    let peak_bytes = cgroup.peak_bytes();
    cgroup.limit_bytes(peak_bytes + MEMORY_LEFT_BYTES);
    for _ in 0..3 {
        // So much waits at once that the daemon fills every buffer that it has, both ways.
        cluster.daemon(1).freeze();
        send_trains(cluster.pod(0), cluster.pod(1).address);
        send_trains(cluster.pod(1), cluster.pod(0).address);
        cluster.daemon(1).thaw();
        running.traffic.wait_for_all_streams();
    }
    let full_bytes = cgroup.peak_bytes();
    eprintln!("{test}: peak {} KiB, with the limit {} KiB", peak_bytes >> 10, full_bytes >> 10);
    assert!(full_bytes > peak_bytes + MEMORY_LEFT_BYTES / 2, "the limit is not approached");
    assert_eq!(cgroup.oom_kills(), 0);
    cluster.finish(test, running);
    assert_eq!(cluster.take(1).stop().status.code(), Some(0));
}

/// Sends trains of datagrams by many flows: several for each queue of a device that nobody reads.
fn send_trains(from: End<'_>, to: Ipv4Addr) {
    let wish = UdpWish { gso: true, gro: false };
    let (source, target) = (SocketAddrV4::new(from.address, 0), SocketAddrV4::new(to, 9));
    let (train, mut sender) = (vec![0; 64_000], Sender::new(1, 1));
    for _ in 0..64 {
        let socket = from.netns.enter(|| UdpSocket::bind(source, wish, Sharing::Never)).unwrap();
        assert!(socket.segments(), "this kernel has no UDP_SEGMENT");
        for _ in 0..5 {
            let mut batch = sender.batch();
            batch.push(target, Some(1_000), [train.as_slice()]);
            // More than fits is dropped, here or by the device.
            let _ = batch.send(&socket, 0);
        }
    }
}

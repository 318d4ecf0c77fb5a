//! The network below, and what the kernel gives, get worse for a while.

use std::io::Write;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::cluster::{Cluster, flood, report};
use crate::support::admin::{HEALTHZ, HEALTHZ_FLAGS, read_answer, socket, wait_readyz};
use crate::support::daemon::{Daemon, PATIENCE};
use crate::support::root_or_skip;

/// Those that come at each door while nothing can be opened.
const CLIENTS: usize = 20;

#[test]
fn a_daemon_that_stood_still_for_ten_seconds_goes_on() {
    let test = "a_daemon_that_stood_still_for_ten_seconds_goes_on";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    let daemon = cluster.daemon(1);
    cluster.suffer_silence(test, Duration::from_secs(10), || daemon.freeze(), || daemon.thaw());
}

#[test]
fn an_interface_goes_down_and_comes_up() {
    let test = "an_interface_goes_down_and_comes_up";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    let netns = &cluster.lab.host(1).netns;
    let set = |state: &str| drop(netns.ip(&format!("link set eth0 {state}")));
    cluster.suffer_silence(test, Duration::from_secs(2), || set("down"), || set("up"));
}

#[test]
fn a_third_of_the_datagrams_is_lost_for_a_while() {
    let test = "a_third_of_the_datagrams_is_lost_for_a_while";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    let netns = &cluster.lab.host(1).netns;
    let block = || netns.block("input", "udp dport 8285 numgen random mod 10 < 3");
    let outcome = cluster.suffer(test, Duration::from_secs(3), block, || netns.unblock());
    assert_ne!(outcome.probes_lost(), 0, "nothing is lost");
}

#[test]
fn the_port_is_blocked_one_way_for_a_while() {
    let test = "the_port_is_blocked_one_way_for_a_while";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    let netns = &cluster.lab.host(1).netns;
    let block = || netns.block("input", "udp dport 8285");
    cluster.suffer_silence(test, Duration::from_secs(2), block, || netns.unblock());
}

/// A host that died, with its lease still there: what is sent to it is lost, and nothing else.
#[test]
fn a_flood_to_a_dead_peer_harms_nobody() {
    let test = "a_flood_to_a_dead_peer_harms_nobody";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    cluster.write_lease("172.7.200.0-24", "10.4.7.99");
    cluster.daemon(0).wait_log("172.7.200.0/24 at 10.4.7.99 is up", PATIENCE);
    let running = cluster.run();
    flood(cluster.pod(0), Ipv4Addr::new(172, 7, 200, 9), Duration::from_secs(3));
    cluster.finish_lossless(test, running);
}

/// Lets a daemon have no descriptor of this number or a higher one but those that it has; without a
/// number it may have as many as we, from whom it inherits that.
fn limit_descriptors(daemon: &Daemon, below: Option<u64>) {
    let usual = getrlimit(Resource::Nofile);
    let pid = Pid::from_raw(i32::try_from(daemon.pid()).unwrap());
    let limit = Rlimit { current: below.or(usual.current), ..usual };
    prlimit(pid, Resource::Nofile, limit).unwrap();
}

#[test]
fn a_device_is_put_back_as_soon_as_there_are_descriptors() {
    let test = "a_device_is_put_back_as_soon_as_there_are_descriptors";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    let daemon = cluster.daemon(1);
    let lines = cluster.lines();
    // Even those that it closes meanwhile cannot be had again.
    limit_descriptors(daemon, Some(3));
    cluster.lab.host(1).netns.ip("link delete flannel0");
    daemon.wait_log("flannel0 is not as it must be", PATIENCE);
    let healed = Instant::now();
    limit_descriptors(daemon, None);
    daemon.wait_log("put back as it must be", PATIENCE);
    let gap = healed.elapsed();
    report(test, gap, &cluster.traffic().stop());
    cluster.assert_few_lines(&lines);
}

/// Clients and a new lease wait until they can be served; packets do not.
#[test]
fn who_comes_while_there_are_no_descriptors_is_served_later() {
    let test = "who_comes_while_there_are_no_descriptors_is_served_later";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&HEALTHZ_FLAGS);
    let (host, daemon) = (cluster.lab.host(1), cluster.daemon(1));
    let running = cluster.run();
    // Fewer than it has, so that poll(2) refuses to look at them, too.
    limit_descriptors(daemon, Some(3));
    let mut clients: Vec<TcpStream> =
        (0..CLIENTS).map(|_| host.netns.connect(HEALTHZ).unwrap()).collect();
    let mut admins: Vec<UnixStream> =
        (0..CLIENTS).map(|_| UnixStream::connect(socket(host)).unwrap()).collect();
    for client in &mut clients {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        ask(client, "/readyz");
    }
    for admin in &mut admins {
        admin.set_read_timeout(Some(PATIENCE)).unwrap();
        ask(admin, "/status");
    }
    cluster.write_lease("172.7.200.0-24", "10.4.7.99");
    daemon.wait_log("cannot look for leases", PATIENCE);
    // Nothing is to be seen of what goes wrong at the doors: they are tried ten times a second.
    sleep(Duration::from_secs(3));
    let healed = Instant::now();
    running.traffic.wait_for_probe_after(healed);
    assert_eq!(daemon.count("172.7.200.0/24"), 0, "it can read the lease");
    limit_descriptors(daemon, None);
    for answer in clients.iter_mut().map(read_answer).chain(admins.iter_mut().map(read_answer)) {
        assert_eq!(answer.expect("it was only late").status, 200);
    }
    let answered = healed.elapsed();
    daemon.wait_log("172.7.200.0/24 at 10.4.7.99 is up", PATIENCE);
    wait_readyz(&host.netns, 200, "flanneld is ready");
    eprintln!(
        "{test}: answers after {answered:?}, the lease is known after {:?}",
        healed.elapsed()
    );
    cluster.finish_lossless(test, running);
}

/// Sends a request whose answer is not read yet.
fn ask(stream: &mut impl Write, path: &str) {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
}

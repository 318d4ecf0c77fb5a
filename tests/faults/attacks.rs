//! Hosts that want to do harm: one that is no peer, a peer that lies, and whoever can write the
//! store or reach the daemon's doors.

mod directory;
mod doors;
mod etcd;
mod floods;
mod leases;
mod merging;
mod names;
mod oversized;
mod packets;
mod reflections;
mod relays;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Cluster, report};
use crate::support::admin::{report as told, until};
use crate::support::daemon::{Daemon, PATIENCE};

/// The switch's own address: a host of the underlay that runs no daemon.
const ATTACKER: Ipv4Addr = Ipv4Addr::new(10, 4, 7, 1);

/// A pod of the attacker's, once it has a lease.
const ATTACKERS_POD: [u8; 4] = [172, 7, 198, 5];

/// How long it tries.
const ATTACK: Duration = Duration::from_secs(3);

/// Of a flood, more packets than this must have come to where it was meant to do harm: far fewer
/// than the slowest machine sends.
const FLOOD: u64 = 100;

/// What a daemon may log about it each second.
const LINES_PER_SECOND: usize = 5;

/// What an attack may cost a daemon besides.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Anonymous memory that it has more than before.
    growth_kib: u64,
    /// Lines of its log.
    lines: usize,
}

/// The usual cost.
const LITTLE: Cost = Cost { growth_kib: 4096, lines: 0 };

impl Cluster {
    /// Makes the switch a host of the underlay, [`ATTACKER`].
    fn let_attacker_in(&self) {
        self.lab.switch().ip(&format!("addr add {ATTACKER}/24 dev br0"));
    }

    /// The same, and gives it a lease, so that it is a peer.
    fn make_attacker_a_peer(&self) {
        self.let_attacker_in();
        self.lease_to_attacker();
    }

    fn lease_to_attacker(&self) {
        self.write_lease("172.7.198.0-24", &ATTACKER.to_string());
        for host in 0..2 {
            self.daemon(host).wait_log("172.7.198.0/24 at 10.4.7.1 is up", PATIENCE);
        }
    }

    /// Where the daemon of a host listens.
    fn door(&self, host: usize) -> SocketAddrV4 {
        SocketAddrV4::new(self.lab.host(host).address, 8285)
    }

    /// What the daemon of host 1 has counted of what came from other hosts.
    fn ingress(&self) -> Value {
        told(self.lab.host(1))["ingress"].clone()
    }

    /// How many packets it has dropped of that for a reason.
    fn drops(&self, reason: &str) -> u64 {
        self.ingress()["drops"][reason].as_u64().unwrap()
    }

    /// How many packets of the attacker's subnet it has admitted.
    fn admitted_of_attacker(&self) -> u64 {
        let host = told(self.lab.host(1));
        let mut peers = host["peers"].as_array().unwrap().iter();
        let attacker = peers.find(|peer| peer["public_ip"] == ATTACKER.to_string()).unwrap();
        attacker["ingress"]["packets"].as_u64().unwrap()
    }

    /// Attacks beside honest traffic from host 0 to host 1: nothing of that breaks, or is lost but
    /// for what the kernel had no room for, and no daemon logs or grows beyond what is allowed.
    fn withstand<T>(&self, case: &str, cost: Cost, attack: impl FnOnce() -> T) -> T {
        let traffic = self.traffic();
        let dropped_before = self.dropped_by_kernel();
        let lines = |daemon: &Daemon| daemon.log().lines().count();
        let before = [0, 1].map(|host| {
            let daemon = self.daemon(host);
            (lines(daemon), daemon.memory_kib("RssAnon"))
        });
        let started = Instant::now();
        let result = attack();
        let lasted = started.elapsed();
        traffic.wait_for_all_streams();
        let outcome = traffic.stop();
        report(case, outcome.longest_gap, &outcome);
        let dropped = self.dropped_by_kernel() - dropped_before;
        let lost = outcome.probes_sent - outcome.probes_received;
        eprintln!("{case}: {dropped} packets dropped by the kernel");
        assert!(lost <= dropped, "{lost} probes lost, {dropped} packets dropped by the kernel");
        for (host, (lines_before, kib_before)) in before.into_iter().enumerate() {
            let daemon = self.daemon(host);
            let more = lines(daemon) - lines_before;
            let grown_kib = daemon.memory_kib("RssAnon").saturating_sub(kib_before);
            eprintln!("{case}: host {host}: {more} lines, {grown_kib} KiB more");
            let allowed = cost.lines + LINES_PER_SECOND * lasted.as_secs_f64().ceil() as usize;
            assert!(more <= allowed, "{more} lines in {lasted:?}\n{}", daemon.log());
            assert!(grown_kib <= cost.growth_kib, "{grown_kib} KiB more than before");
        }
        result
    }
}

/// Does something again and again for the time of an attack; how often.
fn again_and_again(mut once: impl FnMut()) -> u64 {
    let (started, mut times) = (Instant::now(), 0);
    while started.elapsed() < ATTACK {
        for _ in 0..64 {
            once();
        }
        times += 64;
    }
    times
}

/// The first thing that a program hears while something is sent to it again and again.
fn first_heard(ear: &UdpSocket, mut send: impl FnMut() -> io::Result<usize>) -> Vec<u8> {
    let mut buffer = vec![0; 65_536];
    ear.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let hear = || {
        send().unwrap();
        ear.recv(&mut buffer).ok().map(|bytes| buffer[..bytes].to_vec())
    };
    until("what was sent", hear, Option::is_some).unwrap()
}

//! What is counted stays right, whatever becomes of device and daemon.

use std::fs::read_to_string;
use std::io::ErrorKind;
use std::net::{SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::handover::Managed;
use crate::support::admin::{self, until};
use crate::support::daemon::PATIENCE;
use crate::support::root_or_skip;

/// How long a datagram may take before the next one is sent.
const MOMENT: Duration = Duration::from_millis(50);

/// One flow from the pod of host 0 to the pod of host 1: all of it comes in one of the sockets there.
struct Flow {
    sender: UdpSocket,
    ear: UdpSocket,
    passed: u64,
}

impl Flow {
    fn new(cluster: &Cluster) -> Flow {
        let (from, to) = (cluster.pod(0), cluster.pod(1));
        let sender = from.netns.udp(SocketAddrV4::new(from.address, 0));
        let ear = to.netns.udp(SocketAddrV4::new(to.address, 0));
        sender.connect(ear.local_addr().unwrap()).unwrap();
        ear.set_read_timeout(Some(MOMENT)).unwrap();
        Flow { sender, ear, passed: 0 }
    }

    /// Sends until the socket drops, while the daemon does not read.
    fn overflow(&self, cluster: &Cluster) {
        let before = dropped(cluster);
        cluster.daemon(1).freeze();
        let send = || {
            for _ in 0..1_000 {
                self.sender.send(&[0; 512]).unwrap();
            }
            dropped(cluster)
        };
        until("the socket overflows", send, |&now| now > before);
        cluster.daemon(1).thaw();
    }

    /// Waits until one that is sent now has arrived: with it came how many the socket has dropped.
    fn pass(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        self.passed += 1;
        let mark = self.passed.to_le_bytes();
        let mut got = [0; 512];
        loop {
            assert!(Instant::now() < deadline, "nothing arrives any more");
            self.sender.send(&mark).unwrap();
            loop {
                match self.ear.recv(&mut got) {
                    Ok(bytes) if got[..bytes] == mark => return,
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
}

/// What the kernel has dropped at the sockets of host 1's daemon: proc_net(5), the last column.
fn dropped(cluster: &Cluster) -> u64 {
    let netns = &cluster.lab.host(1).netns;
    let table = netns.enter(|| read_to_string("/proc/thread-self/net/udp")).unwrap();
    let port = format!(":{:04X}", 8285);
    table
        .lines()
        .filter(|line| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&port)))
        .map(|line| line.split_whitespace().last().unwrap().parse::<u64>().unwrap())
        .sum()
}

/// What the daemon of host 1 says of it.
fn counted(cluster: &Cluster) -> u64 {
    admin::report(cluster.lab.host(1))["ingress"]["queue_drops"].as_u64().unwrap()
}

#[test]
fn what_the_sockets_drop_is_counted_once() {
    if !root_or_skip("what_the_sockets_drop_is_counted_once") {
        return;
    }
    let mut managed = Managed::new();
    let mut flow = Flow::new(&managed.cluster);
    flow.overflow(&managed.cluster);
    flow.pass();
    assert_eq!(counted(&managed.cluster), dropped(&managed.cluster));
    for n in 1..=2 {
        managed.cluster.lab.host(1).netns.ip("link delete flannel0");
        managed.cluster.daemon(1).wait_nth_log("put back as it must be", n, PATIENCE);
        flow.pass();
        assert_eq!(counted(&managed.cluster), dropped(&managed.cluster), "device {n}");
    }

    // The next daemon gets the sockets, and counts from there.
    managed.cluster.take(1).stop();
    managed.start(1, &[]);
    let before = dropped(&managed.cluster);
    flow.pass();
    assert_eq!(counted(&managed.cluster), 0);
    flow.overflow(&managed.cluster);
    flow.pass();
    assert_eq!(counted(&managed.cluster), dropped(&managed.cluster) - before);
}

//! A daemon that does not run while pods send.

use std::net::SocketAddrV4;

use socket2::SockRef;

use crate::cluster::Cluster;
use crate::support::root_or_skip;
use crate::support::traffic::tcp_transfer;

/// Packets in all queues of the device: what does not fit is dropped, or a pod could fill the
/// host's memory with superpackets, which count for no socket's buffer there.
const QUEUED_AT_MOST: u64 = 16_000;

#[test]
fn pods_cannot_fill_the_memory_while_the_daemon_stands_still() {
    let test = "pods_cannot_fill_the_memory_while_the_daemon_stands_still";
    if !root_or_skip(test) {
        return;
    }
    let cluster = Cluster::new(&[]);
    let (pod, host) = (cluster.pod(0), &cluster.lab.host(0).netns);
    let figure = |name: &str| -> u64 {
        host.exec(&format!("cat /sys/class/net/flannel0/statistics/{name}")).trim().parse().unwrap()
    };
    let before = figure("tx_dropped");
    cluster.daemon(0).freeze();
    // Twice what all queues hold, spread over them.
    let (flows, each) = (200, 2 * QUEUED_AT_MOST / 200);
    for _ in 0..flows {
        let socket = pod.netns.udp(SocketAddrV4::new(pod.address, 0));
        SockRef::from(&socket).set_send_buffer_size(1 << 20).unwrap();
        for _ in 0..each {
            let to = SocketAddrV4::new(cluster.pod(1).address, 9);
            socket.send_to(&[0; 32], to).expect("the queues take it, or drop it unseen");
        }
    }
    let sent = flows * each;
    let dropped = figure("tx_dropped") - before;
    eprintln!("{test}: {sent} packets sent, {dropped} dropped");
    assert!(sent - dropped <= QUEUED_AT_MOST, "{} of {sent} are queued", sent - dropped);
    cluster.daemon(0).thaw();
    // What is lost while the queues are still full is sent again.
    tcp_transfer(pod, cluster.pod(1), 1_000_000);
}

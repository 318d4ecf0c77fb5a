#[path = "../../../tests/support/seccomp.rs"]
#[allow(dead_code, unreachable_pub)] // It is made for the tests of the daemon.
mod seccomp;

use std::os::fd::{AsRawFd, OwnedFd};

use self::seccomp::{Refusal, refused};
use super::super::offload::span::Span;
use super::super::routes::Route;
use super::super::sys::socket::{Sharing, UdpSocket, UdpWish};
use super::*;

const PACKET_BYTES: usize = 1000;

/// Two peers: sockets on the loopback.
struct Peers {
    sockets: [std::net::UdpSocket; 2],
    routes: Routes,
}

impl Peers {
    fn new() -> Peers {
        let sockets = [(); 2].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        let route = |(socket, subnet): (&std::net::UdpSocket, &str)| {
            socket.set_nonblocking(true).unwrap();
            let address = socket.local_addr().unwrap().to_string();
            Route {
                subnet: subnet.parse().unwrap(),
                endpoint: address.parse().unwrap(),
                stats: Arc::default(),
            }
        };
        let routes = sockets.iter().zip(["10.5.1.0/24", "10.5.2.0/24"]).map(route).collect();
        let (overlay, own) = ("10.5.0.0/16".parse().unwrap(), "10.5.9.0/24".parse().unwrap());
        Peers { routes: Routes::build(overlay, own, routes), sockets }
    }

    /// The numbers of the packets that have come to a peer. The loopback delivers before a send
    /// returns.
    fn received(&self, peer: usize) -> Vec<u8> {
        let (mut numbers, mut buffer) = (Vec::new(), [0; 2 * PACKET_BYTES]);
        while let Ok(bytes) = self.sockets[peer].recv(&mut buffer) {
            assert_eq!(bytes, PACKET_BYTES);
            numbers.push(buffer[0]);
        }
        numbers
    }
}

/// Packets with numbers from 0 on as their first bytes, each for the peer named here.
fn batch_for(peers: &[u32], limits: RunLimits) -> Batch {
    let mut batch = Batch::new(peers.len() * PACKET_BYTES);
    batch.clear(limits);
    for (number, &peer) in peers.iter().enumerate() {
        let at = number * PACKET_BYTES;
        batch.slab[at] = number as u8;
        let packet = Datagram::whole(Span::new(at as u32, PACKET_BYTES as u32));
        batch.plan.push(peer, packet).unwrap();
    }
    batch
}

fn socket() -> UdpSocket {
    let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    UdpSocket::bind(any, UdpWish { gso: true, gro: false }, Sharing::Never).unwrap()
}

fn outbox() -> Outbox {
    Outbox::new(&Arc::default(), &Arc::new(StopSignal::new().unwrap()), true)
}

/// As to a peer behind IPsec.
#[test]
fn a_train_that_fails_by_eio_costs_the_others_nothing() {
    const BATCHES: u32 = 40;
    let (peers, socket, mut outbox) = (Peers::new(), socket(), outbox());
    let stats = Arc::clone(&outbox.stats);
    // Of two messages the first is refused; what is then sent by itself is not.
    let of_two = Refusal::of(libc::SYS_sendmmsg, libc::EIO).at_least(2, 2);
    refused(&[of_two], || {
        for _ in 0..BATCHES {
            let mut batch = batch_for(&[0, 0, 1, 1, 1], outbox.limits());
            outbox.send(&socket, &mut batch, u32::MAX, &peers.routes);
            assert!(batch.is_sent());
            assert_eq!((peers.received(0), peers.received(1)), (vec![0, 1], vec![2, 3, 4]));
        }
    });
    assert_eq!(stats.egress.superpackets_out.get(), u64::from(BATCHES));
    assert_eq!(stats.egress.dropped(Drop::KernelRefused), 0);
}

/// What is never writable: a full pipe. `sendmmsg` is kept from seeing that it is no socket.
fn full() -> (OwnedFd, OwnedFd, Refusal) {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while rustix::io::write(&writer, &[0; 65_536]).is_ok() {}
    let refusal = Refusal::of(libc::SYS_sendmmsg, libc::EAGAIN).on(writer.as_raw_fd());
    (writer, reader, refusal)
}

#[test]
fn a_stop_leaves_unsent_only_what_has_no_room() {
    let (peers, open, mut outbox) = (Peers::new(), socket(), outbox());
    let (full, _reader, refusal) = full();
    let (stats, stop) = (Arc::clone(&outbox.stats), Arc::clone(&outbox.patience.stop));
    let mut goes_out = batch_for(&[0, 1, 1, 0, 0], outbox.limits());
    let mut stuck = batch_for(&[0, 1, 0], outbox.limits());
    std::thread::scope(|scope| {
        let carrying = scope.spawn(|| {
            refused(&[refusal], || {
                // A slice of each, as lanes take turns; then the rest of what is on its way.
                outbox.send(&open, &mut goes_out, 1, &peers.routes);
                outbox.send(&full, &mut stuck, 1, &peers.routes);
                outbox.send(&full, &mut stuck, u32::MAX, &peers.routes);
                outbox.send(&open, &mut goes_out, u32::MAX, &peers.routes);
            });
        });
        stop.set();
        // Not left to the scope: the thread sanitizer does not see how that waits.
        carrying.join().unwrap();
    });
    assert!(goes_out.is_sent() && stuck.is_sent());
    assert_eq!((peers.received(0), peers.received(1)), (vec![0, 3, 4], vec![1, 2]));
    assert_eq!(stats.egress.packets.get(), 5);
    assert_eq!(stats.egress.dropped(Drop::KernelRefused), 3);
}

/// As to a peer whose packets wait for IPsec.
#[test]
fn an_eagain_that_is_not_the_sockets_costs_its_packets_only() {
    let (peers, open, mut outbox) = (Peers::new(), socket(), outbox());
    let never = socket();
    let refusal = Refusal::of(libc::SYS_sendmmsg, libc::EAGAIN).on(never.as_fd().as_raw_fd());
    let stats = Arc::clone(&outbox.stats);
    refused(&[refusal], || {
        for socket in [&never, &open] {
            let mut batch = batch_for(&[0, 1, 0], outbox.limits());
            outbox.send(socket, &mut batch, u32::MAX, &peers.routes);
            assert!(batch.is_sent());
        }
    });
    assert_eq!((peers.received(0), peers.received(1)), (vec![0, 2], vec![1]));
    assert_eq!(stats.egress.dropped(Drop::KernelRefused), 3);
}

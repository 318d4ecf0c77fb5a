//! A socket that sends and awaits datagrams in batches, without the kernel's help.
#![forbid(unsafe_code)]

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use flanneld::dataplane::sys::receive::Receiver;
use flanneld::dataplane::sys::send::Sender;
use flanneld::dataplane::sys::socket::{Sharing, UdpSocket, UdpWish};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::netns::Netns;

/// How long a datagram may be on its way before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// Datagrams per system call, each way.
const BATCH: usize = 64;
/// More than any packet of the tunnel.
const SLOT_BYTES: usize = 2048;

/// One end of what is measured.
pub struct Plain {
    socket: UdpSocket,
    sender: Sender,
    receiver: Receiver,
}

impl Plain {
    /// Listens on `address` in `netns`.
    pub fn bind(netns: &Netns, address: SocketAddrV4) -> Plain {
        let wish = UdpWish { gso: false, gro: false };
        Plain {
            socket: netns.enter(|| UdpSocket::bind(address, wish, Sharing::Never).unwrap()),
            sender: Sender::new(BATCH, BATCH),
            receiver: Receiver::new(BATCH, SLOT_BYTES),
        }
    }

    /// Sends datagrams, all in one call.
    pub fn send<'d>(&mut self, datagrams: impl IntoIterator<Item = (SocketAddrV4, &'d [u8])>) {
        self.hand_over(datagrams.into_iter().map(|(to, payload)| (to, None, payload)));
    }

    /// Sends one superpacket, which whoever carries it cuts into pieces of `segment_bytes`.
    pub fn send_superpacket(&mut self, to: SocketAddrV4, segment_bytes: u16, payload: &[u8]) {
        self.hand_over([(to, Some(segment_bytes), payload)]);
    }

    fn hand_over<'d>(
        &mut self,
        messages: impl IntoIterator<Item = (SocketAddrV4, Option<u16>, &'d [u8])>,
    ) {
        let mut batch = self.sender.batch();
        for (to, segment_bytes, payload) in messages {
            assert!(batch.push(to, segment_bytes, [payload]), "more than {BATCH} at once");
        }
        let mut done = 0;
        while done < batch.len() {
            done += batch.send(&self.socket, done).expect("the socket's buffer holds a batch");
        }
    }

    /// Waits until `count` datagrams of `bytes` each are here; panics if that takes too long.
    pub fn receive(&mut self, count: usize, bytes: usize) {
        let mut arrived = 0;
        while arrived < count {
            match self.receiver.receive(&self.socket) {
                Ok(new) => {
                    for message in (0..new).map(|index| self.receiver.message(index)) {
                        assert_eq!(message.len, bytes, "a datagram of another length came");
                    }
                    arrived += new;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
                    let mut readable = [PollFd::new(&self.socket, PollFlags::IN)];
                    let ready = poll(&mut readable, Some(&patience)).unwrap();
                    assert!(ready > 0, "{arrived} of {count} datagrams came in {PATIENCE:?}");
                }
                Err(error) => panic!("cannot receive: {error}"),
            }
        }
        assert_eq!(arrived, count, "more came than were sent");
    }
}

/// An inner UDP packet from `source` to `destination`, as the sender's kernel makes it, with
/// right checksums.
pub fn inner_udp(source: SocketAddrV4, destination: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let octets = |address: SocketAddrV4| Ipv4Addr::octets(address.ip());
    let mut packet = Vec::new();
    etherparse::PacketBuilder::ipv4(octets(source), octets(destination), 64)
        .udp(source.port(), destination.port())
        .write(&mut packet, payload)
        .unwrap();
    packet
}

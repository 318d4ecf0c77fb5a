//! The ICMP errors that a router owes: to our own kernel through the TUN device, to a peer's pods
//! through the socket.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use super::limit::{ICMP_BURST, ICMP_PER_SECOND, RateLimit};
use super::offload::limits::VNET_HDR_BYTES;
use super::packet::icmp::{ERROR_MAX_BYTES, IcmpError};
use super::packet::ipv4::{self, Ipv4View};
use super::packet::udp;
use super::routes::Routes;
use super::sys::send::Sender;
use super::sys::socket::UdpSocket;
use super::sys::tun::{Tun, TunWriter};
use super::worker::Shared;

/// What a datagram adds to the packet that it carries.
const OUTER_HEADERS_BYTES: u16 = (ipv4::HEADER_BYTES + udp::HEADER_BYTES) as u16;

/// Builds and sends ICMP errors for one thread, rate-limited.
///
/// They come from the tunnel's own address, the base of our subnet (flannel, proxy_amd64.c).
pub(super) struct Answers {
    limit: RateLimit,
    buffer: [u8; ERROR_MAX_BYTES],
    tun: Arc<Tun>,
    writer: TunWriter,
    socket: Arc<UdpSocket>,
    sender: Sender,
}

impl Answers {
    pub(super) fn new(shared: &Shared) -> Answers {
        Answers {
            limit: RateLimit::new(ICMP_PER_SECOND, ICMP_BURST, Instant::now()),
            buffer: [0; ERROR_MAX_BYTES],
            tun: Arc::clone(&shared.tun),
            writer: TunWriter::new(),
            // What we say ourselves comes from the port where we listen.
            socket: Arc::clone(&shared.receivers[0]),
            sender: Sender::new(1, 1),
        }
    }

    /// Answers a packet that came from our own kernel; says whether the answer went out.
    pub(super) fn tell_kernel(
        &mut self,
        error: IcmpError,
        offender: &[u8],
        routes: &Routes,
    ) -> bool {
        let source = routes.own().network();
        let Some(packet) = build(&mut self.limit, source, &mut self.buffer, error, offender) else {
            return false;
        };
        // An error that cannot be told is no reason to make another one.
        self.writer.gather(&self.tun, 0, &[0; VNET_HDR_BYTES], [packet]).write().is_ok()
    }

    /// Answers a packet that came from a peer: to whoever owns its inner source.
    pub(super) fn tell_peer(&mut self, error: IcmpError, offender: &[u8], routes: &Routes) -> bool {
        let source = routes.own().network();
        let Some(packet) = build(&mut self.limit, source, &mut self.buffer, error, offender) else {
            return false;
        };
        let owner =
            Ipv4View::parse(packet).ok().and_then(|ip| routes.get(routes.lookup(ip.dst())?));
        let Some(route) = owner else { return false };
        let mut batch = self.sender.batch();
        batch.push(route.endpoint, None, [packet]) && batch.send(&*self.socket, 0).is_ok()
    }

    /// Tells the sender of a packet that came in fragments of up to `fragment_bytes`, and does not
    /// want to be fragmented, how much the path carries whole (decision 018); says whether it did.
    #[cold]
    pub(super) fn tell_peer_of_fragments(
        &mut self,
        fragment_bytes: u16,
        packet: &[u8],
        routes: &Routes,
    ) -> bool {
        let mtu = fragment_bytes.saturating_sub(OUTER_HEADERS_BYTES);
        packet.len() > usize::from(mtu)
            && Ipv4View::parse(packet).is_ok_and(|ip| ip.dont_fragment())
            && self.tell_peer(IcmpError::FragmentationNeeded { mtu }, packet, routes)
    }
}

fn build<'a>(
    limit: &mut RateLimit,
    source: Ipv4Addr,
    buffer: &'a mut [u8; ERROR_MAX_BYTES],
    error: IcmpError,
    offender: &[u8],
) -> Option<&'a [u8]> {
    let bytes = error.answer(offender, source, buffer)?;
    limit.take(Instant::now()).then_some(&buffer[..bytes])
}

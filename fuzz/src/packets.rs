//! What peers, pods and the kernel send.

use std::net::Ipv4Addr;

use etherparse::checksum::Sum16BitWords;
use etherparse::{IpNumber, Ipv4HeaderSlice, SlicedPacket, TcpHeaderSlice, TransportSlice};
use flanneld::dataplane::offload::arena::HeaderArena;
use flanneld::dataplane::offload::limits::VNET_HDR_BYTES;
use flanneld::dataplane::offload::segment::{Superpacket, finish_checksum};
use flanneld::dataplane::offload::span::Span;
use flanneld::dataplane::offload::virtio::{UDP_CSUM_OFFSET, VirtioNetHdr};
use flanneld::dataplane::packet::icmp::{ERROR_MAX_BYTES, IcmpError};
use flanneld::dataplane::packet::ipv4::{self, Ipv4View};
use flanneld::dataplane::packet::tcp::TcpView;
use flanneld::dataplane::packet::udp::UdpView;
use flanneld::dataplane::sys::cmsg::{self, Received};

/// A packet from a peer: the views agree with etherparse, a hop less keeps a right checksum right,
/// and an ICMP error about it is a complete packet.
pub fn packet(data: &[u8]) -> bool {
    let oracle = Ipv4HeaderSlice::from_slice(data);
    let Ok(view) = Ipv4View::parse(data) else {
        // Only lengths beyond the header may be what ours refuses and etherparse does not see.
        if let Ok(header) = oracle {
            let total = usize::from(header.total_len());
            assert!(total < header.slice().len() || total > data.len());
        }
        return false;
    };
    let oracle = oracle.expect("what we take, etherparse takes");
    assert_eq!(view.header(), oracle.slice());
    assert_eq!(view.total_len(), usize::from(oracle.total_len()));
    assert_eq!((view.src(), view.dst()), (oracle.source_addr(), oracle.destination_addr()));
    assert_eq!((view.ttl(), view.id()), (oracle.ttl(), oracle.identification()));
    assert_eq!(view.is_fragment(), oracle.is_fragmenting_payload());
    let right = sum(view.header()) == 0xffff;
    assert_eq!(view.header_checksum_ok(), right);

    if let Ok(tcp) = TcpView::parse(view.payload()) {
        let oracle = TcpHeaderSlice::from_slice(view.payload()).unwrap();
        assert_eq!(tcp.header_len(), oracle.slice().len());
        assert_eq!((tcp.seq(), tcp.options()), (oracle.sequence_number(), oracle.options()));
    }
    if let Ok(udp) = UdpView::parse(view.payload()) {
        assert_eq!(udp.length(), udp.payload().len() + 8);
    }

    let mut forwarded = data.to_vec();
    match ipv4::decrement_ttl(&mut forwarded) {
        Ok(()) => {
            assert_eq!(forwarded[8], data[8] - 1);
            assert_eq!(sum(&forwarded[..view.header_len()]) == 0xffff, right);
        }
        Err(_) => assert!(data[8] <= 1 && forwarded == data),
    }

    for error in [
        IcmpError::NetUnreachable,
        IcmpError::TimeExceeded,
        IcmpError::FragmentationNeeded { mtu: 1472 },
    ] {
        let mut out = [0; ERROR_MAX_BYTES];
        if let Some(len) = error.answer(data, Ipv4Addr::new(10, 5, 1, 0), &mut out) {
            let answer = &out[..len];
            let sliced = SlicedPacket::from_ip(answer).expect("a whole packet");
            assert!(matches!(sliced.transport, Some(TransportSlice::Icmpv4(_))));
            assert_eq!((sum(&answer[..20]), sum(&answer[20..])), (0xffff, 0xffff));
            assert_eq!(answer[16..20], view.src().octets());
            assert!(data.starts_with(&answer[28..]));
        }
    }
    true
}

/// A virtio header and a packet from the TUN: the header keeps its bytes, and a partial checksum is
/// finished as the oracle would.
pub fn virtio(data: &[u8]) -> bool {
    let Some((header, packet)) = data.split_first_chunk::<VNET_HDR_BYTES>() else { return false };
    let hdr = VirtioNetHdr::parse(header);
    assert_eq!(hdr.to_bytes(), *header);
    let mut finished = packet.to_vec();
    if finish_checksum(&mut finished, &hdr).is_err() || !hdr.needs_checksum() {
        assert_eq!(finished, packet);
        return false;
    }
    let (start, offset) = (usize::from(hdr.csum_start()), usize::from(hdr.csum_offset()));
    let expected = match !sum(&packet[start..]) {
        0 if hdr.csum_offset() == UDP_CSUM_OFFSET => 0xffff,
        value => value,
    };
    let mut wanted = packet.to_vec();
    wanted[start + offset..][..2].copy_from_slice(&expected.to_be_bytes());
    assert_eq!(finished, wanted);
    true
}

/// The control data of a received message: of stride, drop count and fragment size the last that
/// stands in it, up to the first message that cannot be. The oracle walks by the rules and numbers of Linux on 64
/// bits: a header of 16 bytes, everything at multiples of 8.
pub fn cmsg(data: &[u8]) -> bool {
    const UDP_GRO: (i32, i32) = (17, 104);
    const RXQ_OVFL: (i32, i32) = (1, 40);
    const IP_RECVFRAGSIZE: (i32, i32) = (0, 25);
    let (mut wanted, mut at) = (Received::default(), 0);
    while let Some(header) = data.get(at..at + 16) {
        let number =
            |at: usize| i32::from_ne_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        let len = u64::from_ne_bytes(header[..8].try_into().expect("8 bytes"));
        if len < 16 || len > (data.len() - at) as u64 {
            break;
        }
        let message = &data[at..at + len as usize];
        if let Some(value) = message[16..].first_chunk() {
            match (number(8), number(12)) {
                UDP_GRO => wanted.stride_bytes = i32::from_ne_bytes(*value).try_into().ok(),
                RXQ_OVFL => wanted.dropped = Some(u32::from_ne_bytes(*value)),
                IP_RECVFRAGSIZE => {
                    wanted.fragment_bytes = i32::from_ne_bytes(*value).try_into().ok();
                }
                _ => {}
            }
        }
        at += message.len().div_ceil(8) * 8;
    }
    assert_eq!(cmsg::parse(data), wanted);
    wanted != Received::default()
}

/// A virtio header, an MTU and a superpacket from the TUN: what is cut are the packets that a stack
/// without offloads would have sent, whole and within the MTU.
pub fn cut(data: &[u8]) -> bool {
    let Some((header, rest)) = data.split_first_chunk::<VNET_HDR_BYTES>() else { return false };
    let Some((mtu, packet)) = rest.split_first_chunk::<2>() else { return false };
    let (hdr, mtu) = (VirtioNetHdr::parse(header), u16::from_be_bytes(*mtu));
    let Ok(superpacket) = Superpacket::parse(packet, &hdr, mtu) else { return false };

    let segments = cut_all(packet, &hdr, mtu);
    assert_eq!(segments.len(), superpacket.segments());
    assert_eq!(segments, plain_packets(packet, hdr.gso_size().into()));
    for segment in &segments {
        assert!(segment.len() <= usize::from(mtu));
        assert_complete(segment);
    }
    true
}

/// The payload of a superpacket in packets of `mss` bytes: identification and sequence number count
/// on, the end of data stands on the last one, a reduced window on the first.
fn plain_packets(superpacket: &[u8], mss: usize) -> Vec<Vec<u8>> {
    const FIN_AND_PSH: u8 = 0x09;
    const CWR: u8 = 0x80;
    let ip = Ipv4HeaderSlice::from_slice(superpacket).expect("an IPv4 header");
    let at = ip.slice().len();
    let tcp = (ip.protocol() == IpNumber::TCP)
        .then(|| TcpHeaderSlice::from_slice(&superpacket[at..]).expect("a TCP header"));
    let header_len = at + tcp.as_ref().map_or(8, |tcp| tcp.slice().len());
    let (header, payload) = superpacket[..ip.total_len().into()].split_at(header_len);
    let plain = |(number, body): (usize, &[u8])| {
        let mut packet = [header, body].concat();
        let (total, id) = (packet.len() as u16, ip.identification().wrapping_add(number as u16));
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        packet[10..12].fill(0);
        let sum = checksum(&packet[..at]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut place = at + 6;
        if let Some(tcp) = &tcp {
            let seq = tcp.sequence_number().wrapping_add((number * mss) as u32);
            packet[at + 4..at + 8].copy_from_slice(&seq.to_be_bytes());
            if (number + 1) * mss < payload.len() {
                packet[at + 13] &= !FIN_AND_PSH;
            }
            if number > 0 {
                packet[at + 13] &= !CWR;
            }
            place = at + 16;
        } else {
            packet[at + 4..at + 6].copy_from_slice(&(total - at as u16).to_be_bytes());
        }
        packet[place..place + 2].fill(0);
        let sum = transport_checksum(&packet);
        packet[place..place + 2].copy_from_slice(&sum.to_be_bytes());
        packet
    };
    payload.chunks(mss).enumerate().map(plain).collect()
}

/// The packets that a superpacket stands for. Panics if it cannot be cut.
pub fn cut_all(packet: &[u8], hdr: &VirtioNetHdr, mtu: u16) -> Vec<Vec<u8>> {
    let superpacket = Superpacket::parse(packet, hdr, mtu).expect("it can be cut");
    let mut arena = HeaderArena::new(superpacket.headers_bytes());
    let mut datagrams = Vec::new();
    superpacket
        .cut(0, &mut arena, &mut |datagram| datagrams.push(datagram))
        .expect("the arena was made for it");
    let piece = |span: Span, slab| span.of(slab).to_vec();
    datagrams
        .iter()
        .map(|d| [piece(d.head, arena.bytes()), piece(d.body, packet)].concat())
        .collect()
}

/// Panics unless etherparse takes these bytes for one whole TCP or UDP packet with right checksums.
pub(crate) fn assert_complete(packet: &[u8]) {
    let sliced = SlicedPacket::from_ip(packet).expect("a whole packet");
    let Some(etherparse::NetSlice::Ipv4(ip)) = &sliced.net else { panic!("no IPv4 header") };
    assert_eq!(usize::from(ip.header().total_len()), packet.len());
    assert_eq!(checksum(ip.header().slice()), 0);
    let given = match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => tcp.checksum(),
        Some(TransportSlice::Udp(udp)) => udp.checksum(),
        other => panic!("neither TCP nor UDP: {other:?}"),
    };
    assert_eq!(given, transport_checksum(packet));
}

/// What stands in the checksum field of a whole TCP or UDP packet.
fn transport_checksum(packet: &[u8]) -> u16 {
    let ip = Ipv4HeaderSlice::from_slice(packet).expect("an IPv4 header");
    let (source, destination) = (ip.source(), ip.destination());
    match SlicedPacket::from_ip(packet).expect("a whole packet").transport {
        Some(TransportSlice::Tcp(tcp)) => tcp.calc_checksum_ipv4(source, destination),
        Some(TransportSlice::Udp(udp)) => {
            udp.to_header().calc_checksum_ipv4_raw(source, destination, udp.payload())
        }
        other => panic!("neither TCP nor UDP: {other:?}"),
    }
    .expect("it is no longer than a packet")
}

/// The checksum of bytes in which its own field is zero; zero if the field is right.
fn checksum(bytes: &[u8]) -> u16 {
    Sum16BitWords::new().add_slice(bytes).ones_complement().to_be()
}

/// The sum of RFC 1071, the plain way.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|w| u64::from(w[0]) << 8 | w.get(1).map_or(0, |b| (*b).into()));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

//! What peers, pods and the kernel send.

use std::net::Ipv4Addr;

use etherparse::{Ipv4HeaderSlice, SlicedPacket, TransportSlice};
use flanneld::dataplane::offload::arena::HeaderArena;
use flanneld::dataplane::offload::limits::VNET_HDR_BYTES;
use flanneld::dataplane::offload::segment::{Superpacket, finish_checksum};
use flanneld::dataplane::offload::span::Span;
use flanneld::dataplane::offload::virtio::{UDP_CSUM_OFFSET, VirtioNetHdr};
use flanneld::dataplane::packet::icmp::{ERROR_MAX_BYTES, IcmpError};
use flanneld::dataplane::packet::ipv4::{self, Ipv4View};
use flanneld::dataplane::packet::tcp::TcpView;
use flanneld::dataplane::packet::udp::UdpView;

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
        let oracle = etherparse::TcpHeaderSlice::from_slice(view.payload()).unwrap();
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

/// A virtio header, an MTU and a superpacket from the TUN: what is cut are complete packets within
/// the MTU, and together they carry the payload.
pub fn cut(data: &[u8]) -> bool {
    let Some((header, rest)) = data.split_first_chunk::<VNET_HDR_BYTES>() else { return false };
    let Some((mtu, packet)) = rest.split_first_chunk::<2>() else { return false };
    let (hdr, mtu) = (VirtioNetHdr::parse(header), u16::from_be_bytes(*mtu));
    let Ok(superpacket) = Superpacket::parse(packet, &hdr, mtu) else { return false };

    let segments = cut_all(packet, &hdr, mtu);
    assert_eq!(segments.len(), superpacket.segments());
    let view = Ipv4View::parse(packet).unwrap();
    let header_len = superpacket.headers_bytes() / superpacket.segments();
    let payload: Vec<u8> = segments.iter().flat_map(|s| &s[header_len..]).copied().collect();
    assert_eq!(payload, &view.packet()[header_len..]);
    for segment in &segments {
        assert!(segment.len() <= usize::from(mtu));
        assert_complete(segment);
    }
    true
}

/// The packets that a superpacket stands for. Panics if it cannot be cut.
pub(crate) fn cut_all(packet: &[u8], hdr: &VirtioNetHdr, mtu: u16) -> Vec<Vec<u8>> {
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

/// Panics unless these are the bytes of one whole TCP or UDP packet with right checksums.
pub(crate) fn assert_complete(packet: &[u8]) {
    let sliced = SlicedPacket::from_ip(packet).expect("a whole packet");
    let Some(etherparse::NetSlice::Ipv4(ip)) = &sliced.net else { panic!("no IPv4 header") };
    assert_eq!(usize::from(ip.header().total_len()), packet.len());
    let (header, transport) = packet.split_at(ip.header().slice().len());
    assert_eq!(sum(header), 0xffff);
    let mut covered = header[12..20].to_vec();
    covered.extend_from_slice(&[0, header[9]]);
    covered.extend_from_slice(&(transport.len() as u16).to_be_bytes());
    covered.extend_from_slice(transport);
    assert_eq!(sum(&covered), 0xffff);
    match sliced.transport {
        Some(TransportSlice::Tcp(_)) => {}
        Some(TransportSlice::Udp(udp)) => assert_ne!(udp.checksum(), 0),
        other => panic!("neither TCP nor UDP: {other:?}"),
    }
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

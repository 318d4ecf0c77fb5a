use proptest::prelude::*;

use super::*;
use crate::dataplane::offload::testkit::{Spec, assert_complete};
use crate::dataplane::packet::be16;
use crate::dataplane::packet::checksum::tests::noise;

/// Where packets stand in the slabs of these tests.
const BASE: usize = 10;

/// Cuts `packet` and returns the segments as they would leave.
fn cut(packet: &[u8], hdr: &VirtioNetHdr, mtu: u16) -> Result<Vec<Vec<u8>>, SegmentError> {
    let slab = [&[0xee; BASE][..], packet].concat();
    let mut arena = HeaderArena::new(crate::dataplane::offload::limits::SUPERPACKET_HEADERS_BYTES);
    let mut datagrams = Vec::new();
    let count = segment(packet, BASE as u32, hdr, mtu, &mut arena, &mut |d| datagrams.push(d))?;
    assert_eq!(count, datagrams.len());
    Ok(datagrams.iter().map(|d| [d.head.of(arena.bytes()), d.body.of(&slab)].concat()).collect())
}

/// The segments that a stack without offloads would have sent.
fn expected_tcp(spec: &Spec, payload: &[u8], gso_size: usize) -> Vec<Vec<u8>> {
    let count = payload.chunks(gso_size).count();
    payload
        .chunks(gso_size)
        .enumerate()
        .map(|(i, piece)| {
            let mut one = spec.clone();
            one.id = spec.id.wrapping_add(i as u16);
            one.seq = spec.seq.wrapping_add((i * gso_size) as u32);
            if i + 1 < count {
                one.flags &= !(tcp::FIN | tcp::PSH);
            }
            if i > 0 {
                one.flags &= !tcp::CWR;
            }
            one.tcp(piece)
        })
        .collect()
}

fn expected_udp(spec: &Spec, payload: &[u8], gso_size: usize) -> Vec<Vec<u8>> {
    payload
        .chunks(gso_size)
        .enumerate()
        .map(|(i, piece)| {
            let mut one = spec.clone();
            one.id = spec.id.wrapping_add(i as u16);
            one.udp(piece)
        })
        .collect()
}

#[test]
fn a_full_superpacket_becomes_what_a_plain_stack_sends() {
    let spec = Spec::default();
    let payload = noise(65_535 - 52);
    let (packet, hdr) = spec.tcp_super(&payload, 1420);
    let segments = cut(&packet, &hdr, 1472).unwrap();
    assert_eq!(segments, expected_tcp(&spec, &payload, 1420));
    segments.iter().for_each(|segment| assert_complete(segment));
}

#[test]
fn c1_the_kernels_hdr_len_is_ignored() {
    let spec = Spec::default();
    let (packet, hdr) = spec.tcp_super(&noise(3000), 1000);
    let mut bytes = hdr.to_bytes();
    for wrong in [0_u16, 20, 1052, 0xffff] {
        bytes[2..4].copy_from_slice(&wrong.to_ne_bytes());
        let segments = cut(&packet, &VirtioNetHdr::parse(&bytes), 1472).unwrap();
        assert_eq!(segments, expected_tcp(&spec, &noise(3000), 1000));
    }
}

#[test]
fn c3_a_udp_checksum_of_zero_is_sent_as_ffff() {
    // Two bytes of payload choose the checksum: the complement of the sum without them.
    let spec = Spec::default();
    let plain = spec.udp(&[0, 0]);
    let tuned = be16(&plain, 26).to_be_bytes();
    let (packet, hdr) = spec.udp_super(&tuned, 1400);
    let segments = cut(&packet, &hdr, 1472).unwrap();
    assert_eq!(be16(&segments[0], 26), 0xffff);

    let mut single = packet.clone();
    finish_checksum(&mut single, &VirtioNetHdr::partial_checksum(20, UDP_CSUM_OFFSET)).unwrap();
    assert_eq!(be16(&single, 26), 0xffff);
    assert_complete(&single);
}

#[test]
fn c5_the_ecn_bit_beside_tcp_is_no_other_kind() {
    let mut spec = Spec { flags: tcp::ACK | tcp::CWR, ..Spec::default() };
    spec.tos = 2;
    let (packet, hdr) = spec.tcp_super(&noise(2500), 1000);
    let mut bytes = hdr.to_bytes();
    bytes[1] |= super::super::virtio::GSO_ECN;
    let segments = cut(&packet, &VirtioNetHdr::parse(&bytes), 1472).unwrap();
    assert_eq!(segments, expected_tcp(&spec, &noise(2500), 1000));
}

#[test]
fn c6_fin_and_psh_are_on_the_last_segment_and_cwr_on_the_first() {
    let spec = Spec { flags: !tcp::SYN, ..Spec::default() };
    let (packet, hdr) = spec.tcp_super(&noise(3000), 1000);
    let flags: Vec<_> = cut(&packet, &hdr, 1472).unwrap().iter().map(|s| s[33]).collect();
    let common = spec.flags & !(tcp::FIN | tcp::PSH | tcp::CWR);
    assert_eq!(flags, [common | tcp::CWR, common, common | tcp::FIN | tcp::PSH]);
}

#[test]
fn c7_segments_shorter_than_the_header_are_cut_right() {
    let spec = Spec::default();
    let (packet, hdr) = spec.tcp_super(&noise(100), 1);
    assert_eq!(cut(&packet, &hdr, 1472).unwrap(), expected_tcp(&spec, &noise(100), 1));
}

#[test]
fn c8_nonsense_headers_are_refused_with_their_reason() {
    let spec = Spec::default();
    let (tcp_packet, tcp) = spec.tcp_super(&noise(3000), 1000);
    let (udp_packet, udp) = spec.udp_super(&noise(3000), 1000);
    let with = |hdr: VirtioNetHdr, at: usize, value: u8| {
        let mut bytes = hdr.to_bytes();
        bytes[at] = value;
        VirtioNetHdr::parse(&bytes)
    };
    let place = |start, offset| SegmentError::ChecksumPlace { start, offset };
    let refused = |packet: &[u8], hdr| cut(packet, &hdr, 1472).unwrap_err();

    assert_eq!(refused(&tcp_packet, VirtioNetHdr::NONE), SegmentError::Kind(0));
    assert_eq!(refused(&tcp_packet, with(tcp, 1, 3)), SegmentError::Kind(3));
    assert_eq!(refused(&udp_packet, with(udp, 1, 0x85)), SegmentError::Kind(0x85));
    assert_eq!(refused(&tcp_packet, with(tcp, 0, 0)), place(20, 16));
    assert_eq!(
        refused(&tcp_packet, VirtioNetHdr::parse(&[1, 1, 0, 0, 9, 0, 0, 0, 16, 0])),
        place(0, 16)
    );
    assert_eq!(refused(&udp_packet, with(udp, 8, 7)), place(20, 7));
    assert_eq!(refused(&udp_packet, tcp), SegmentError::Protocol(17));
    assert_eq!(refused(&tcp_packet, udp), SegmentError::Protocol(6));
    let zero = VirtioNetHdr::tcp4(32, 0);
    assert_eq!(
        refused(&tcp_packet, zero),
        SegmentError::Geometry { payload_bytes: 3000, gso_size: 0 }
    );
    let (empty, hdr) = spec.tcp_super(&[], 1000);
    assert_eq!(refused(&empty, hdr), SegmentError::Geometry { payload_bytes: 0, gso_size: 1000 });
    let mut fragment = tcp_packet.clone();
    fragment[6] = 0x20;
    assert_eq!(refused(&fragment, tcp), SegmentError::Fragment);
    let mut short = udp_packet.clone();
    put16(&mut short, 2, 27);
    assert!(matches!(refused(&short, udp), SegmentError::Malformed(_)));
    assert!(matches!(refused(&tcp_packet[..3000], tcp), SegmentError::Malformed(_)));
    let mut offset = tcp_packet.clone();
    offset[32] = 0x40;
    assert!(matches!(refused(&offset, tcp), SegmentError::Malformed(_)));
}

#[test]
fn c9_sequence_and_identification_wrap() {
    let spec = Spec { seq: u32::MAX - 1500, id: 0xffff, ..Spec::default() };
    let (packet, hdr) = spec.tcp_super(&noise(3000), 1000);
    assert_eq!(cut(&packet, &hdr, 1472).unwrap(), expected_tcp(&spec, &noise(3000), 1000));
}

#[test]
fn c13_a_tiny_segment_size_is_bounded() {
    let spec = Spec::default();
    let full = SUPERPACKET_MAX_SEGMENTS;
    let (packet, hdr) = spec.tcp_super(&noise(full * 8), 8);
    assert_eq!(cut(&packet, &hdr, 1472).map(|packets| packets.len()), Ok(full));
    let (packet, hdr) = spec.tcp_super(&noise(full * 8 + 1), 8);
    assert_eq!(cut(&packet, &hdr, 1472), Err(SegmentError::TooManySegments(full + 1)));
}

#[test]
fn a_full_superpacket_of_the_smallest_segments_is_cut_right() {
    // What `tcp_min_snd_mss` leaves beside timestamps.
    let spec = Spec::default();
    let payload = noise(65_535 - 52);
    let (packet, hdr) = spec.tcp_super(&payload, 48 - 12);
    let segments = cut(&packet, &hdr, 1472).unwrap();
    assert_eq!(segments.len(), 1819);
    assert_eq!(segments, expected_tcp(&spec, &payload, 36));
}

#[test]
fn segments_above_the_mtu_are_refused_with_their_size() {
    let (packet, hdr) = Spec::default().tcp_super(&noise(3000), 1421);
    let too_big = SegmentError::TooBig { bytes: 1473, mtu: 1472 };
    assert_eq!(cut(&packet, &hdr, 1472), Err(too_big));
    // What fits as a whole is no error, whatever gso_size says.
    let (packet, hdr) = Spec::default().tcp_super(&noise(1420), 9000);
    assert_eq!(cut(&packet, &hdr, 1472).unwrap(), [Spec::default().tcp(&noise(1420))]);
}

#[test]
fn a_full_arena_refuses_before_anything_is_handed_out() {
    let (packet, hdr) = Spec::default().tcp_super(&noise(3000), 1000);
    let mut arena = HeaderArena::new(3 * 52 - 1);
    let result = segment(&packet, 0, &hdr, 1472, &mut arena, &mut |_| panic!("handed out"));
    assert_eq!(result, Err(SegmentError::ArenaFull(156)));
    assert_eq!(arena.remaining(), 155);
}

#[test]
fn ip_options_are_copied_to_every_segment() {
    let spec = Spec { ip_options: vec![7, 4, 4, 0], ..Spec::default() };
    let (packet, hdr) = spec.tcp_super(&noise(3000), 1000);
    let mut bytes = hdr.to_bytes();
    bytes[6..8].copy_from_slice(&24_u16.to_ne_bytes());
    let segments = cut(&packet, &VirtioNetHdr::parse(&bytes), 1472).unwrap();
    assert_eq!(segments, expected_tcp(&spec, &noise(3000), 1000));
}

#[test]
fn bytes_behind_the_total_length_are_not_sent() {
    let spec = Spec::default();
    let (packet, hdr) = spec.tcp_super(&noise(3000), 1000);
    let padded = [&packet[..], b"padding"].concat();
    assert_eq!(cut(&padded, &hdr, 1472).unwrap(), expected_tcp(&spec, &noise(3000), 1000));
}

#[test]
fn c2_a_partial_checksum_is_finished() {
    let spec = Spec::default();
    let (mut packet, _) = spec.tcp_super(&noise(999), 1000);
    finish_checksum(&mut packet, &VirtioNetHdr::partial_checksum(20, TCP_CSUM_OFFSET)).unwrap();
    assert_eq!(packet, spec.tcp(&noise(999)));
    finish_checksum(&mut packet, &VirtioNetHdr::NONE).unwrap();
    assert_eq!(packet, spec.tcp(&noise(999)));
}

#[test]
fn a_checksum_field_outside_the_packet_is_refused() {
    let mut packet = Spec::default().udp(b"hi");
    let before = packet.clone();
    for (start, offset) in [(20, 9), (29, 0), (30, 0), (31, 0), (0xffff, 0xffff), (0, 29)] {
        let hdr = VirtioNetHdr::partial_checksum(start, offset);
        let refused = SegmentError::ChecksumPlace { start, offset };
        assert_eq!(finish_checksum(&mut packet, &hdr), Err(refused));
    }
    let superpacket = VirtioNetHdr::udp4(100);
    assert_eq!(finish_checksum(&mut packet, &superpacket), Err(SegmentError::Kind(0)));
    assert_eq!(packet, before);
}

fn specs() -> impl Strategy<Value = Spec> {
    let flags = any::<u8>().prop_map(|flags| flags & !tcp::SYN);
    let options = (0..=10_usize).prop_map(|words| vec![1; words * 4]);
    (any::<[u32; 4]>(), any::<[u16; 4]>(), any::<[u8; 2]>(), flags, options).prop_map(
        |(dwords, words, bytes, flags, tcp_options)| Spec {
            src: dwords[0].into(),
            dst: dwords[1].into(),
            seq: dwords[2],
            ack: dwords[3],
            ports: (words[0], words[1]),
            id: words[2],
            window: words[3],
            tos: bytes[0],
            ttl: bytes[1],
            flags,
            tcp_options,
            ..Spec::default()
        },
    )
}

proptest! {
    #[test]
    fn cutting_tcp_gives_what_a_plain_stack_sends(spec in specs(), len in 1..9000_usize, gso_size in 40..1400_u16) {
        let payload = noise(len);
        let (packet, hdr) = spec.tcp_super(&payload, gso_size);
        let segments = cut(&packet, &hdr, 1480).unwrap();
        segments.iter().for_each(|segment| assert_complete(segment));
        prop_assert_eq!(segments, expected_tcp(&spec, &payload, gso_size.into()));
    }

    #[test]
    fn cutting_udp_gives_what_a_plain_stack_sends(spec in specs(), len in 1..9000_usize, gso_size in 40..1400_u16) {
        let payload = noise(len);
        let (packet, hdr) = spec.udp_super(&payload, gso_size);
        let segments = cut(&packet, &hdr, 1480).unwrap();
        segments.iter().for_each(|segment| assert_complete(segment));
        prop_assert_eq!(segments, expected_udp(&spec, &payload, gso_size.into()));
    }

    #[test]
    fn any_bytes_are_cut_or_refused_without_panic(
        mut packet in prop::collection::vec(any::<u8>(), 0..300),
        vnet in any::<[u8; 10]>(),
        likely in any::<bool>(),
        kind in prop_oneof![Just(1_u8), Just(5), any::<u8>()],
        mtu in any::<u16>(),
    ) {
        let mut vnet = vnet;
        if likely && packet.len() > 20 {
            packet[0] = 0x45;
            let len = packet.len() as u16;
            put16(&mut packet, 2, len);
            packet[6] = 0x40;
            packet[7] = 0;
            packet[9] = if kind == 1 { 6 } else { 17 };
            vnet = VirtioNetHdr::udp4(u16::from_ne_bytes([vnet[4], vnet[5] & 1])).to_bytes();
            vnet[8] = if kind == 1 { 16 } else { 6 };
        }
        vnet[1] = kind;
        let hdr = VirtioNetHdr::parse(&vnet);
        if let Ok(segments) = cut(&packet, &hdr, mtu) {
            prop_assert!(segments.iter().all(|s| s.len() <= usize::from(mtu)));
        }
        let _ = finish_checksum(&mut packet, &hdr);
    }
}

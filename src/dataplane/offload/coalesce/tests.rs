use std::net::Ipv4Addr;

use super::*;
use crate::dataplane::offload::limits::SUPERPACKET_HEADERS_BYTES;
use crate::dataplane::offload::segment::segment;
use crate::dataplane::offload::testkit::{Spec, assert_complete};
use crate::dataplane::offload::virtio::GsoKind;
use crate::dataplane::packet::checksum::tests::noise;

mod properties;

const BOTH: MergeCaps = MergeCaps { tcp: true, udp: true };

/// One write as the kernel would see it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Written {
    hdr: VirtioNetHdr,
    packet: Vec<u8>,
    packets: u16,
}

/// Puts packets into a slab as datagrams would stand there, with a gap between them.
fn lay_out(packets: &[Vec<u8>]) -> (Vec<u8>, Vec<Span>) {
    let mut slab = vec![0xee; 7];
    let spans = packets
        .iter()
        .map(|packet| {
            let span = Span::new(slab.len() as u32, packet.len() as u32);
            slab.extend_from_slice(packet);
            slab.extend_from_slice(&[0xee; 3]);
            span
        })
        .collect();
    (slab, spans)
}

/// What a finished coalescer would write, every consistency of its items checked.
fn written(coalescer: &Coalescer, slab: &[u8]) -> Vec<Written> {
    coalescer
        .items()
        .map(|item| {
            let (head, bodies) = match item.head {
                Head::Slab(span) => {
                    assert_eq!(item.vnet_hdr, [0; 10]);
                    assert_eq!((item.packets, item.bodies().count()), (1, 0));
                    assert_eq!(item.framed_head(), None);
                    (span.of(slab), Vec::new())
                }
                Head::Arena(span) => {
                    let framed = item.framed_head().unwrap().of(coalescer.arena());
                    assert_eq!(framed[..10], item.vnet_hdr);
                    assert_eq!(&framed[10..], span.of(coalescer.arena()));
                    let bodies: Vec<_> = item.bodies().collect();
                    assert_eq!(bodies.len(), usize::from(item.packets));
                    (span.of(coalescer.arena()), bodies)
                }
            };
            let mut packet = head.to_vec();
            bodies.iter().for_each(|body| packet.extend_from_slice(body.of(slab)));
            assert_eq!(packet.len(), item.total_bytes as usize);
            let hdr = VirtioNetHdr::parse(&item.vnet_hdr);
            Written { hdr, packet, packets: item.packets }
        })
        .collect()
}

fn merge_with(caps: MergeCaps, packets: &[Vec<u8>]) -> Vec<Written> {
    let (slab, spans) = lay_out(packets);
    let mut coalescer = Coalescer::new(caps, packets.len());
    for span in spans {
        assert_ne!(coalescer.push(&slab, span), Pushed::Full);
    }
    coalescer.finish(&slab);
    written(&coalescer, &slab)
}

fn merge(packets: &[Vec<u8>]) -> Vec<Written> {
    merge_with(BOTH, packets)
}

/// How many packets each item holds.
fn groups(packets: &[Vec<u8>]) -> Vec<u16> {
    merge(packets).iter().map(|item| item.packets).collect()
}

/// Cuts what was merged: the packets that the kernel would see behind the TUN.
fn cut(item: &Written) -> Vec<Vec<u8>> {
    if item.hdr.kind() == Ok(GsoKind::None) {
        return vec![item.packet.clone()];
    }
    let mut arena = HeaderArena::new(SUPERPACKET_HEADERS_BYTES);
    let mut datagrams = Vec::new();
    let sink = &mut |datagram| datagrams.push(datagram);
    segment(&item.packet, 0, &item.hdr, u16::MAX, &mut arena, sink).unwrap();
    datagrams.iter().map(|d| [d.head.of(arena.bytes()), d.body.of(&item.packet)].concat()).collect()
}

/// `count` packets of a stream, each of `size` bytes.
fn stream(spec: &Spec, size: usize, count: usize) -> Vec<Vec<u8>> {
    let payload = noise(size * count);
    payload.chunks(size).enumerate().map(|(i, piece)| at(spec, i, size).tcp(piece)).collect()
}

/// The stream's header for packet `i`.
fn at(spec: &Spec, i: usize, size: usize) -> Spec {
    Spec {
        id: spec.id.wrapping_add(i as u16),
        seq: spec.seq.wrapping_add((i * size) as u32),
        ..spec.clone()
    }
}

fn datagrams(spec: &Spec, size: usize, count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|i| at(spec, i, 0).udp(&noise(size))).collect()
}

/// Two packets of a stream, the second changed: they must not merge.
fn assert_apart(change: impl Fn(&mut Spec)) {
    let first = Spec::default();
    let mut second = at(&first, 1, 1000);
    assert_eq!(groups(&[first.tcp(&noise(1000)), second.tcp(&noise(1000))]), [2]);
    change(&mut second);
    let third = at(&second, 1, 1000);
    let packets = [first.tcp(&noise(1000)), second.tcp(&noise(1000)), third.tcp(&noise(1000))];
    let items = merge(&packets);
    assert_eq!(items[0].packet, packets[0]);
    assert_eq!(items.iter().flat_map(cut).collect::<Vec<_>>(), packets);
}

#[test]
fn a_train_becomes_one_superpacket_that_cuts_back_into_it() {
    let packets = stream(&Spec::default(), 1420, 44);
    let items = merge(&packets);
    assert_eq!(items.len(), 1);
    assert_eq!(items[0].hdr, VirtioNetHdr::tcp4(32, 1420));
    assert_eq!(cut(&items[0]), packets);
}

#[test]
fn the_merged_header_is_the_kernels_own() {
    let spec = Spec::default();
    let (superpacket, hdr) = spec.tcp_super(&noise(3000), 1000);
    let items = merge(&stream(&spec, 1000, 3));
    assert_eq!((&items[0].packet, items[0].hdr), (&superpacket, hdr));

    let (superpacket, hdr) = spec.udp_super(&[noise(500), noise(500)].concat(), 500);
    let items = merge(&datagrams(&spec, 500, 2));
    assert_eq!((&items[0].packet, items[0].hdr), (&superpacket, hdr));
}

#[test]
fn d3_udp_stops_at_64_segments() {
    assert_eq!(groups(&datagrams(&Spec::default(), 100, 150)), [64, 64, 22]);
}

#[test]
fn tcp_stops_at_its_segment_limit_and_at_65535_bytes() {
    assert_eq!(groups(&stream(&Spec::default(), 8, 600)), [256, 256, 88]);
    assert_eq!(groups(&stream(&Spec::default(), 1420, 92)), [46, 46]);
    let mut spec = Spec { tcp_options: Vec::new(), ..Spec::default() };
    // 5 x 13,099 + 40 are 65,535: the longest packet that there is.
    assert_eq!(groups(&stream(&spec, 13_099, 6)), [5, 1]);
    spec.tcp_options = vec![1; 4];
    assert_eq!(groups(&stream(&spec, 13_099, 6)), [4, 2]);
}

#[test]
fn a_short_packet_ends_the_group_and_a_longer_one_opens_the_next() {
    let spec = Spec::default();
    let sizes = [1000_usize, 1000, 400, 400, 400, 401];
    let mut seq = 0;
    let packets: Vec<_> = sizes
        .iter()
        .enumerate()
        .map(|(i, size)| {
            let one = Spec { seq: spec.seq + seq as u32, ..at(&spec, i, 0) };
            seq += size;
            one.tcp(&noise(*size))
        })
        .collect();
    assert_eq!(groups(&packets), [3, 2, 1]);
}

#[test]
fn d6_only_the_newest_item_of_a_flow_grows() {
    let packets = stream(&Spec::default(), 1000, 4);
    // Lost and repeated: 0 | 2 | 1 would fit behind 0 by its number, but 2 was kept already.
    let arrival = [0, 2, 1, 2, 3].map(|i: usize| packets[i].clone());
    let items = merge(&arrival);
    assert_eq!(items.iter().flat_map(cut).collect::<Vec<_>>(), arrival);
    assert_eq!(items.iter().map(|item| item.packets).collect::<Vec<_>>(), [1, 1, 3]);
}

#[test]
fn flows_interleave_without_ending_each_others_groups() {
    for flows in [2_u16, 16, 31] {
        let streams: Vec<_> = (0..flows)
            .map(|flow| stream(&Spec { ports: (1000 + flow, 80), ..Spec::default() }, 500, 20))
            .collect();
        let packets: Vec<_> =
            (0..20).flat_map(|i| streams.iter().map(move |stream| stream[i].clone())).collect();
        assert_eq!(groups(&packets), vec![20; flows.into()]);
    }
}

#[test]
fn d8_a_fragment_holds_back_the_flows_of_its_protocol_and_pair() {
    let tcp = stream(&Spec::default(), 1000, 4);
    let other = Spec { dst: Ipv4Addr::new(10, 5, 9, 9), ..Spec::default() };
    let beside = stream(&other, 1000, 4);
    let mut fragment = tcp[0].clone();
    fragment[6] = 0x20;
    for offset in [0, 185] {
        fragment[7] = offset;
        let packets =
            [&tcp[0], &beside[0], &fragment, &tcp[1], &tcp[2], &beside[1]].map(Clone::clone);
        assert_eq!(groups(&packets), [1, 2, 1, 2]);
    }
    let mut datagram = datagrams(&Spec::default(), 100, 1).remove(0);
    datagram[6] = 0x20;
    assert_eq!(groups(&[tcp[0].clone(), datagram, tcp[1].clone()]), [2, 1]);
}

#[test]
fn d8_broken_headers_hold_back_what_they_may_belong_to() {
    let tcp = stream(&Spec::default(), 1000, 3);
    let mut offset = tcp[0].clone();
    offset[32] = 0x40;
    let mut version = tcp[0].clone();
    version[0] = 0x65;
    for broken in [offset, version, b"?".to_vec(), Vec::new()] {
        let packets = [tcp[0].clone(), broken, tcp[1].clone(), tcp[2].clone()];
        assert_eq!(groups(&packets), [1, 1, 2]);
    }
}

#[test]
fn d9_tos_ttl_and_fragment_bits_must_be_equal() {
    assert_apart(|spec| spec.tos = 1);
    assert_apart(|spec| spec.tos = 0x80);
    assert_apart(|spec| spec.ttl -= 1);
    assert_apart(|spec| spec.dont_fragment = false);
}

#[test]
fn d9_the_reserved_bit_is_never_merged() {
    let packets: Vec<_> = stream(&Spec::default(), 1000, 3)
        .into_iter()
        .map(|mut packet| {
            packet[6] |= 0x80;
            packet[10..12].fill(0);
            let sum = checksum::finish(checksum::sum(&packet[..20], 0));
            put16(&mut packet, 10, sum);
            packet
        })
        .collect();
    assert_eq!(groups(&packets), [1, 1, 1]);
}

#[test]
fn d10_ip_options_are_never_merged_and_hold_back_their_flow() {
    let plain = stream(&Spec::default(), 1000, 4);
    let options = Spec { ip_options: vec![1; 4], ..Spec::default() };
    assert_eq!(groups(&stream(&options, 1000, 3)), [1, 1, 1]);
    let between = stream(&options, 1000, 1).remove(0);
    let packets = [plain[0].clone(), between, plain[1].clone(), plain[2].clone()];
    assert_eq!(groups(&packets), [1, 1, 2]);
}

#[test]
fn d11_identifications_must_be_consecutive_unless_fragmenting_is_forbidden() {
    let spec = Spec { dont_fragment: false, id: 0xffff, ..Spec::default() };
    assert_eq!(groups(&stream(&spec, 1000, 3)), [3]);
    assert_eq!(cut(&merge(&stream(&spec, 1000, 3))[0]), stream(&spec, 1000, 3));
    let with_id = |spec: &Spec, i| Spec { id: 9, ..at(spec, i, 1000) }.tcp(&noise(1000));
    assert_eq!(groups(&[with_id(&spec, 0), with_id(&spec, 1)]), [1, 1]);
    let fixed = Spec { dont_fragment: true, ..spec };
    assert_eq!(groups(&[with_id(&fixed, 0), with_id(&fixed, 1)]), [2]);
}

#[test]
fn d12_what_tells_the_receiver_something_must_be_equal() {
    assert_apart(|spec| spec.ack += 1);
    assert_apart(|spec| spec.window += 1);
    assert_apart(|spec| spec.tcp_options[11] += 1);
    assert_apart(|spec| spec.tcp_options.extend_from_slice(&[1; 4]));
    assert_apart(|spec| spec.tcp_options.clear());
    assert_apart(|spec| spec.seq += 1);
    assert_apart(|spec| spec.seq -= 1);
}

#[test]
fn d12_the_urgent_pointer_must_be_equal() {
    let mut packets = stream(&Spec::default(), 1000, 2);
    packets[1][39] = 1;
    packets[1][36..38].fill(0);
    let (src, dst) = (Spec::default().src.octets(), Spec::default().dst.octets());
    let pseudo = checksum::pseudo_header_v4(src, dst, 6, 1032);
    let sum = checksum::finish(checksum::sum(&packets[1][20..], pseudo));
    put16(&mut packets[1], 36, sum);
    assert_complete(&packets[1]);
    assert_eq!(groups(&packets), [1, 1]);
}

#[test]
fn d13_control_flags_never_merge_and_hold_back_their_flow() {
    for flag in [tcp::SYN, tcp::FIN, tcp::RST, tcp::URG, tcp::CWR] {
        let spec = Spec { flags: tcp::ACK | flag, ..Spec::default() };
        assert_eq!(groups(&stream(&spec, 1000, 2)), [1, 1], "flag {flag:#x}");
        let mut packets = stream(&Spec::default(), 1000, 4);
        packets[1] = stream(&spec, 1000, 2).remove(1);
        assert_eq!(groups(&packets), [1, 1, 2], "flag {flag:#x}");
    }
    let no_ack = Spec { flags: 0, ..Spec::default() };
    assert_eq!(groups(&stream(&no_ack, 1000, 2)), [1, 1]);
}

#[test]
fn d13_ece_must_be_stable() {
    let echo = Spec { flags: tcp::ACK | tcp::ECE, ..Spec::default() };
    assert_eq!(groups(&stream(&echo, 1000, 3)), [3]);
    assert_apart(|spec| spec.flags |= tcp::ECE);
}

#[test]
fn d14_push_ends_the_group_and_stays_on_its_last_packet() {
    let mut packets = stream(&Spec::default(), 1000, 5);
    let push = Spec { flags: tcp::ACK | tcp::PSH, ..at(&Spec::default(), 2, 1000) };
    packets[2] = push.tcp(&packets[2][52..]);
    let items = merge(&packets);
    assert_eq!(items.iter().map(|item| item.packets).collect::<Vec<_>>(), [3, 2]);
    assert_eq!(items[0].packet[33], tcp::ACK | tcp::PSH);
    assert_eq!(items[1].packet[33], tcp::ACK);
    assert_eq!(items.iter().flat_map(cut).collect::<Vec<_>>(), packets);
    // A group of one ends as well.
    assert_eq!(groups(&packets[2..]), [1, 2]);
}

#[test]
fn a_short_tail_sets_no_push() {
    let spec = Spec::default();
    let packets = [spec.tcp(&noise(1000)), at(&spec, 1, 1000).tcp(&noise(10))];
    assert_eq!(merge(&packets)[0].packet[33], tcp::ACK);
}

#[test]
fn d15_a_pure_ack_stays_where_it_is_in_its_flow() {
    let packets = stream(&Spec::default(), 1000, 4);
    let ack = at(&Spec::default(), 2, 1000).tcp(&[]);
    let arrival = [&packets[0], &packets[1], &ack, &packets[2], &packets[3]].map(Clone::clone);
    assert_eq!(groups(&arrival), [2, 1, 2]);
}

#[test]
fn d16_an_empty_datagram_leads_no_group() {
    let spec = Spec::default();
    let packets = [spec.udp(&[]), spec.udp(&[]), spec.udp(b"x"), at(&spec, 1, 0).udp(b"y")];
    let items = merge(&packets);
    assert_eq!(items.iter().map(|item| item.packets).collect::<Vec<_>>(), [1, 1, 2]);
    assert_eq!(items[0].hdr, VirtioNetHdr::NONE);
}

#[test]
fn d20_a_packet_that_never_grew_is_written_as_it_came() {
    // Not even its checksums are looked at.
    let mut packet = Spec::default().tcp(&noise(1000));
    packet[11] ^= 1;
    packet[37] ^= 1;
    let items = merge(&[packet.clone()]);
    assert_eq!(items, [Written { hdr: VirtioNetHdr::NONE, packet, packets: 1 }]);
}

#[test]
fn d21_corrupt_packets_are_not_signed_anew() {
    for (build, at) in [
        (stream as fn(&Spec, usize, usize) -> _, [9, 11, 24, 37, 60, 500, 1051]),
        (datagrams, [9, 11, 21, 25, 27, 500, 1027]),
    ] {
        for victim in 0..3 {
            for byte in at {
                let spec = Spec { dont_fragment: false, ..Spec::default() };
                let mut packets: Vec<Vec<u8>> = build(&spec, 1000, 3);
                packets[victim][byte] ^= 0x10;
                let items = merge(&packets);
                let back: Vec<_> = items.iter().flat_map(cut).collect();
                assert_eq!(back, packets, "packet {victim} byte {byte}");
                let corrupt = items.iter().find(|item| item.packet == packets[victim]);
                assert_eq!(corrupt.map(|item| item.hdr), Some(VirtioNetHdr::NONE));
            }
        }
    }
}

#[test]
fn c4_a_datagram_without_checksum_is_never_merged() {
    let packets: Vec<_> = datagrams(&Spec::default(), 100, 3)
        .into_iter()
        .map(|mut packet| {
            packet[26..28].fill(0);
            packet
        })
        .collect();
    let items = merge(&packets);
    assert_eq!(
        items.iter().map(|item| &item.packet).collect::<Vec<_>>(),
        packets.iter().collect::<Vec<_>>()
    );
}

#[test]
fn bytes_behind_a_datagram_or_packet_are_kept_with_it() {
    let mut packets = datagrams(&Spec::default(), 100, 3);
    packets.iter_mut().for_each(|packet| packet.push(0));
    assert_eq!(groups(&packets), [1, 1, 1]);
    let mut inside = datagrams(&Spec::default(), 100, 3);
    inside.iter_mut().for_each(|packet| put16(packet, 24, 107));
    assert_eq!(groups(&inside), [1, 1, 1]);
}

#[test]
fn what_the_device_cannot_take_is_not_merged() {
    let tcp = stream(&Spec::default(), 100, 3);
    let udp = datagrams(&Spec::default(), 100, 3);
    let count = |caps, packets: &[Vec<u8>]| merge_with(caps, packets).len();
    let none = MergeCaps { tcp: false, udp: false };
    assert_eq!((count(none, &tcp), count(none, &udp)), (3, 3));
    let tcp_only = MergeCaps { tcp: true, udp: false };
    assert_eq!((count(tcp_only, &tcp), count(tcp_only, &udp)), (1, 3));
    let udp_only = MergeCaps { tcp: false, udp: true };
    assert_eq!((count(udp_only, &tcp), count(udp_only, &udp)), (3, 1));
}

#[test]
fn caps_changed_in_between_overtake_nothing() {
    let packets = datagrams(&Spec::default(), 100, 4);
    let (slab, spans) = lay_out(&packets);
    let mut coalescer = Coalescer::new(BOTH, 10);
    coalescer.push(&slab, spans[0]);
    coalescer.set_caps(MergeCaps { tcp: false, udp: false });
    coalescer.push(&slab, spans[1]);
    coalescer.set_caps(BOTH);
    coalescer.push(&slab, spans[2]);
    coalescer.push(&slab, spans[3]);
    coalescer.finish(&slab);
    let items = written(&coalescer, &slab);
    let counts: Vec<_> = items.iter().map(|item| item.packets).collect();
    assert_eq!(counts, [1, 1, 2]);
}

#[test]
fn a_full_batch_refuses_and_the_next_starts_clean() {
    let packets = stream(&Spec::default(), 100, 5);
    let (slab, spans) = lay_out(&packets);
    let mut coalescer = Coalescer::new(BOTH, 4);
    for batch in 0..3 {
        assert_eq!(coalescer.push(&slab, spans[0]), Pushed::Kept);
        for span in &spans[1..4] {
            assert_eq!(coalescer.push(&slab, *span), Pushed::Merged);
        }
        assert_eq!(coalescer.push(&slab, spans[4]), Pushed::Full);
        coalescer.finish(&slab);
        let items = written(&coalescer, &slab);
        assert_eq!(cut(&items[0]), packets[..4], "batch {batch}");
        coalescer.clear();
        assert!(coalescer.is_empty());
    }
}

#[test]
fn packets_pushed_after_finish_open_new_items() {
    let packets = stream(&Spec::default(), 100, 4);
    let (slab, spans) = lay_out(&packets);
    let mut coalescer = Coalescer::new(BOTH, 4);
    for pair in spans.chunks(2) {
        pair.iter().for_each(|span| assert_ne!(coalescer.push(&slab, *span), Pushed::Full));
        coalescer.finish(&slab);
    }
    let items = written(&coalescer, &slab);
    assert_eq!(items.iter().map(|item| item.packets).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(items.iter().flat_map(cut).collect::<Vec<_>>(), packets);
}

#[test]
fn a_batch_of_pairs_fills_the_arena_exactly() {
    let spec = Spec { tcp_options: vec![1; 40], flags: tcp::ACK, ..Spec::default() };
    let packets: Vec<_> = (0..100)
        .flat_map(|flow| stream(&Spec { ports: (flow, 80), ..spec.clone() }, 10, 2))
        .collect();
    let items = merge(&packets);
    assert_eq!(items.len(), 100);
    assert_eq!(items.iter().flat_map(cut).collect::<Vec<_>>(), packets);
}

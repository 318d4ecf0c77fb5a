//! What holds for every traffic: order and bytes of each flow.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[test]
fn more_flows_than_the_table_holds_stay_in_order() {
    let streams: Vec<_> = (0..1000)
        .map(|flow| stream(&Spec { ports: (flow, 80), ..Spec::default() }, 10, 3))
        .collect();
    let packets: Vec<_> =
        (0..3).flat_map(|i| streams.iter().map(move |stream| stream[i].clone())).collect();
    let back: Vec<_> = merge(&packets).iter().flat_map(cut).collect();
    assert_in_order(&packets, &back);
}

/// Panics unless `after` are the packets of `before`, each flow in its order, byte for byte.
fn assert_in_order(before: &[Vec<u8>], after: &[Vec<u8>]) {
    let kin = |packet: &[u8]| [&packet[9..10], &packet[12..20]].concat();
    let flow = |packet: &[u8]| [&packet[9..10], &packet[12..24]].concat();
    let is_fragment = |packet: &[u8]| packet[6] & 0x20 != 0;
    let by_flow = |packets: &[Vec<u8>]| {
        let mut flows: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
        for packet in packets {
            flows.entry(flow(packet)).or_default().push(packet.clone());
        }
        flows
    };
    let (expected, got) = (by_flow(before), by_flow(after));
    assert!(expected.keys().eq(got.keys()));
    for (flow, packets) in &expected {
        let moved = packets.iter().zip(&got[flow]).position(|(a, b)| a != b);
        assert_eq!((moved, packets.len()), (None, got[flow].len()), "flow {flow:?}");
    }
    // A fragment may be of any flow of its kin: it stands between the same packets as before.
    for (number, fragment) in before.iter().enumerate().filter(|(_, p)| is_fragment(p)) {
        let akin = |packet: &&Vec<u8>| kin(packet) == kin(fragment);
        let place = after.iter().filter(akin).position(|packet| packet == fragment);
        assert_eq!(place, Some(before[..number].iter().filter(akin).count()));
    }
}

/// What the next packet of a flow is like.
#[derive(Clone, Debug)]
enum Event {
    Data { size: usize, flags: u8 },
    Ack,
    Window,
    Fragment,
    Corrupt,
    Lost,
    Udp(usize),
}

fn events() -> impl Strategy<Value = Event> {
    let full = || Just(Event::Data { size: 700, flags: tcp::ACK });
    prop_oneof![
        8 => full(),
        2 => (1..700_usize).prop_map(|size| Event::Data { size, flags: tcp::ACK }),
        1 => any::<u8>().prop_map(|flags| Event::Data { size: 700, flags }),
        1 => Just(Event::Data { size: 700, flags: tcp::ACK | tcp::PSH }),
        1 => Just(Event::Ack),
        1 => Just(Event::Window),
        1 => Just(Event::Fragment),
        1 => Just(Event::Corrupt),
        1 => Just(Event::Lost),
        3 => prop_oneof![Just(300_usize), 0..300_usize].prop_map(Event::Udp),
    ]
}

proptest! {
    #[test]
    fn every_flow_keeps_its_order_and_bytes_under_interleaving(
        script in prop::collection::vec((0..5_u16, events()), 1..120),
        dont_fragment in any::<bool>(),
    ) {
        let mut flows: Vec<_> = (0..5_u16)
            .map(|flow| Spec {
                ports: (1000 + flow % 3, 80),
                src: Ipv4Addr::new(10, 5, 1, (flow / 3) as u8),
                dont_fragment,
                seq: u32::MAX - 2000,
                ..Spec::default()
            })
            .collect();
        let mut packets = Vec::new();
        for (serial, (flow, event)) in script.into_iter().enumerate() {
            let spec = &mut flows[usize::from(flow)];
            // No two packets are alike, so that a swapped pair is seen.
            let payload = |size: usize| noise(size + serial * 8)[serial * 8..].to_vec();
            let (packet, advance) = match event {
                Event::Data { size, flags } => {
                    (Spec { flags, ..spec.clone() }.tcp(&payload(size)), size)
                }
                Event::Ack => (spec.tcp(&[]), 0),
                Event::Window => {
                    spec.window = spec.window.wrapping_add(1);
                    (spec.tcp(&payload(700)), 700)
                }
                Event::Fragment => {
                    let mut packet = spec.tcp(&payload(64));
                    packet[6] |= 0x20;
                    (packet, 0)
                }
                Event::Corrupt => {
                    let mut packet = spec.tcp(&payload(700));
                    packet[100] ^= 1;
                    (packet, 700)
                }
                Event::Lost => {
                    spec.seq = spec.seq.wrapping_add(700);
                    (spec.tcp(&payload(700)), 700)
                }
                Event::Udp(size) => (spec.udp(&payload(size)), 0),
            };
            spec.id = spec.id.wrapping_add(1);
            spec.seq = spec.seq.wrapping_add(advance as u32);
            packets.push(packet);
        }
        let items = merge(&packets);
        for item in items.iter().filter(|item| item.packets > 1) {
            cut(item).iter().for_each(|packet| assert_complete(packet));
        }
        let mut back: Vec<_> = items.iter().flat_map(cut).collect();
        if dont_fragment {
            // Identifications may differ then (D11); all other bytes may not.
            for packet in packets.iter_mut().chain(&mut back) {
                packet[4..6].fill(0);
                packet[10..12].fill(0);
            }
        }
        assert_in_order(&packets, &back);
    }

    #[test]
    fn merging_what_was_cut_gives_the_superpacket_back(
        len in 1..20_000_usize,
        gso_size in 400..1400_u16,
        push in any::<bool>(),
        options in 0..=10_usize,
        dont_fragment in any::<bool>(),
        words in any::<[u32; 5]>(),
        udp in any::<bool>(),
    ) {
        let spec = Spec {
            src: words[0].into(),
            dst: words[1].into(),
            seq: words[2],
            ack: words[3],
            id: words[4] as u16,
            tos: (words[4] >> 16) as u8,
            flags: if push { tcp::ACK | tcp::PSH } else { tcp::ACK },
            tcp_options: vec![1; options * 4],
            dont_fragment,
            ..Spec::default()
        };
        let (packet, hdr) = if udp {
            spec.udp_super(&noise(len), gso_size)
        } else {
            spec.tcp_super(&noise(len), gso_size)
        };
        let whole = Written { hdr, packet, packets: 1 };
        let segments = cut(&whole);
        let items = merge(&segments);
        prop_assert_eq!(items.len(), 1);
        prop_assert_eq!(items[0].packets as usize, segments.len());
        if segments.len() > 1 {
            prop_assert_eq!((&items[0].packet, items[0].hdr), (&whole.packet, hdr));
        } else {
            prop_assert_eq!(&items[0].packet, &segments[0]);
        }
        prop_assert_eq!(cut(&items[0]), segments);
    }

    #[test]
    fn any_bytes_are_kept_or_merged_without_panic(
        packets in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..80), any::<bool>(), any::<bool>()), 0..40),
    ) {
        let packets: Vec<_> = packets
            .into_iter()
            .map(|(mut packet, likely, tcp)| {
                if likely && packet.len() > 20 {
                    packet[0] = 0x45;
                    let len = packet.len() as u16;
                    put16(&mut packet, 2, len);
                    packet[6..8].copy_from_slice(&[0x40, 0]);
                    packet[9] = if tcp { 6 } else { 17 };
                    packet[12..20].fill(1);
                }
                packet
            })
            .collect();
        let items = merge(&packets);
        prop_assert_eq!(items.iter().map(|item| usize::from(item.packets)).sum::<usize>(), packets.len());
    }

    #[test]
    fn any_span_is_kept_without_panic(spans in prop::collection::vec(any::<(u32, u32)>(), 0..20)) {
        let slab = Spec::default().tcp(&noise(100));
        let mut coalescer = Coalescer::new(BOTH, 20);
        for (offset, len) in spans {
            coalescer.push(&slab, Span::new(offset, len));
        }
        coalescer.finish(&slab);
        prop_assert!(coalescer.items().all(|item| item.bodies().count() == 0));
    }
}

//! Trains of packets, merged and cut again.

use std::collections::BTreeMap;

use flanneld::dataplane::offload::coalesce::{Coalescer, Head, MergeCaps, Pushed};
use flanneld::dataplane::offload::span::Span;
use flanneld::dataplane::offload::virtio::{GsoKind, VirtioNetHdr};

use super::packets::{assert_complete, cut_all};
use super::script::Script;

/// What is written to the TUN at once: a packet, or several that were merged.
pub struct Merged {
    /// The virtio header in front.
    pub hdr: VirtioNetHdr,
    /// The packet or superpacket.
    pub bytes: Vec<u8>,
    /// How many packets it stands for.
    pub packets: usize,
}

/// Merges a batch: every packet comes out once and unchanged, each flow in its order, no fragment
/// passes a packet that it may belong to, and what was merged is complete.
pub fn coalesce(data: &[u8]) -> bool {
    let Some((first, script)) = data.split_first() else { return false };
    let caps = MergeCaps { tcp: first & 1 != 0, udp: first & 2 != 0 };
    let before = Script::new(first & 4 != 0).play(script);
    let merged = merge(&before, caps);
    let mut after = Vec::new();
    for Merged { hdr, bytes, packets } in &merged {
        if *packets == 1 {
            assert_eq!(*hdr, VirtioNetHdr::NONE);
            after.push(bytes.clone());
            continue;
        }
        match hdr.kind() {
            Ok(GsoKind::Tcp4) => assert!(caps.tcp),
            Ok(GsoKind::UdpL4) => assert!(caps.udp && *packets <= 64),
            other => panic!("a merged item of kind {other:?}"),
        }
        let segments = cut_all(bytes, hdr, u16::MAX);
        assert_eq!(segments.len(), *packets);
        segments.iter().for_each(|segment| assert_complete(segment));
        after.extend(segments);
    }
    assert_same_flows(&before, &after);
    assert_fragments_stay(&before, &after);
    merged.len() < before.len()
}

/// Merges one batch of packets.
pub fn merge(packets: &[Vec<u8>], caps: MergeCaps) -> Vec<Merged> {
    let slab = packets.concat();
    let mut coalescer = Coalescer::new(caps, packets.len());
    let mut offset = 0;
    for packet in packets {
        let len = packet.len() as u32;
        assert_ne!(coalescer.push(&slab, Span::new(offset, len)), Pushed::Full);
        offset += len;
    }
    coalescer.finish(&slab);
    let merged = coalescer.items().map(|item| {
        let mut bytes = match item.head {
            Head::Slab(span) => span.of(&slab).to_vec(),
            Head::Arena(span) => span.of(coalescer.arena()).to_vec(),
        };
        item.bodies().for_each(|body| bytes.extend_from_slice(body.of(&slab)));
        assert_eq!(bytes.len(), item.total_bytes as usize);
        let hdr = VirtioNetHdr::parse(&item.vnet_hdr);
        Merged { hdr, bytes, packets: item.packets.into() }
    });
    merged.collect()
}

/// Protocol and addresses; and the ports where they can be told.
fn key(packet: &[u8]) -> Vec<u8> {
    let header_len = packet.first().map_or(0, |byte| usize::from(byte & 15) * 4);
    match packet.get(header_len..header_len + 4) {
        Some(ports) if packet[0] >> 4 == 4 && header_len >= 20 => {
            [&kin(packet)[..], ports].concat()
        }
        _ => packet.to_vec(),
    }
}

fn kin(packet: &[u8]) -> [u8; 9] {
    let mut kin = [packet[9]; 9];
    kin[1..].copy_from_slice(&packet[12..20]);
    kin
}

/// Panics unless both hold the same packets, those of each flow in the same order.
pub fn assert_same_flows(before: &[Vec<u8>], after: &[Vec<u8>]) {
    let by_flow = |packets: &[Vec<u8>]| {
        let mut flows: BTreeMap<Vec<u8>, Vec<Vec<u8>>> = BTreeMap::new();
        packets.iter().for_each(|p| flows.entry(key(p)).or_default().push(comparable(p)));
        flows
    };
    let (before, after) = (by_flow(before), by_flow(after));
    assert!(before.keys().eq(after.keys()), "flows {:?}, not {:?}", after.keys(), before.keys());
    before.values().zip(after.values()).for_each(|(before, after)| assert_same(before, after));
}

/// Panics unless both hold the same packets, in whatever order.
pub fn assert_same_packets(before: &[Vec<u8>], after: &[Vec<u8>]) {
    let sorted = |packets: &[Vec<u8>]| {
        let mut packets: Vec<_> = packets.iter().map(|p| comparable(p)).collect();
        packets.sort();
        packets
    };
    assert_same(&sorted(before), &sorted(after));
}

fn assert_same(before: &[Vec<u8>], after: &[Vec<u8>]) {
    // One by one: nobody reads a message of two hundred packets.
    for (number, (before, after)) in before.iter().zip(after).enumerate() {
        assert_eq!(before, after, "packet {number}");
    }
    assert_eq!(before.len(), after.len());
}

/// Without what may change: the identification of a packet that must not be fragmented.
fn comparable(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet.len() >= 20 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

fn assert_fragments_stay(before: &[Vec<u8>], after: &[Vec<u8>]) {
    let place = |packets: &[Vec<u8>], fragment: &Vec<u8>| {
        let mut akin = packets.iter().filter(|p| p.len() >= 20 && kin(p) == kin(fragment));
        akin.position(|packet| packet == fragment)
    };
    for fragment in before.iter().filter(|p| p.len() >= 28 && p[6] & 0x20 != 0 && p[0] == 0x45) {
        assert_eq!(place(before, fragment), place(after, fragment));
    }
}

//! Cutting and merging beside the kernel's own: what a namespace forwards from one TUN device to
//! another is cut there (GSO) or merged (GRO), and must be what we would have made of it.
//!
//! The packets come from a seeded generator. FLANNELD_DIFFERENTIAL_SUPERPACKETS (2000) says how many
//! superpackets are cut, and ten times as many packets or more are merged;
//! FLANNELD_DIFFERENTIAL_SEED (1) says which.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod router;
mod superpacket;
#[path = "../support/mod.rs"]
mod support;
#[path = "../../fuzz/src/lib.rs"]
#[allow(dead_code, unreachable_pub, unused_imports)]
mod targets;

use std::collections::BTreeMap;

use flanneld::dataplane::offload::coalesce::MergeCaps;
use flanneld::dataplane::offload::segment::finish_checksum;
use flanneld::dataplane::offload::virtio::{GsoKind, VirtioNetHdr};
use flanneld::dataplane::packet::ipv4::decrement_ttl;
use flanneld::dataplane::sys::tun::TunOffload;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use router::{MTU, Router};
use superpacket::Superpacket;
use support::root_or_skip;
use targets::{Merged, Script, assert_same_flows, assert_same_packets, cut_all, merge};

/// How many superpackets are cut; a train of packets is merged for every tenth.
fn superpackets() -> usize {
    setting("FLANNELD_DIFFERENTIAL_SUPERPACKETS", 2000) as usize
}

fn seed() -> u64 {
    setting("FLANNELD_DIFFERENTIAL_SEED", 1)
}

fn setting(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number"))
}

/// What a router makes of a packet before it sends it on.
fn forwarded(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    decrement_ttl(&mut packet).unwrap();
    let total = u16::from_be_bytes([packet[2], packet[3]]);
    packet.truncate(total.into());
    packet
}

/// A train of TCP and UDP packets of four flows: some fit together, some do not.
fn train(rng: &mut StdRng) -> Vec<Vec<u8>> {
    let mut script = Vec::new();
    for _ in 0..rng.random_range(1..12) {
        // Half of them ordinary; kind 15, arbitrary bytes, is nothing that a router sends on.
        let kind = if rng.random() { 0 } else { rng.random_range(0..15) };
        script.extend([kind << 2 | rng.random_range(0..4), rng.random(), rng.random()]);
    }
    Script::new(rng.random()).play(&script)
}

#[test]
fn the_kernel_cuts_superpackets_as_we_do() {
    if !root_or_skip("the_kernel_cuts_superpackets_as_we_do") {
        return;
    }
    let router = Router::new(TunOffload::None);
    let input = router.input();
    let mut rng = StdRng::seed_from_u64(seed());
    let (mut kinds, mut segments) = (BTreeMap::new(), 0);
    for number in 0..superpackets() {
        let case = Superpacket::random(&mut rng);
        let (packet, hdr) = case.build();
        let ours = cut_all(&forwarded(&packet), &hdr, MTU);
        router.write(&input, &hdr, &packet);
        for (at, wanted) in ours.iter().enumerate() {
            let (_, got) = router.read();
            assert_eq!(
                without_zero_sum(got),
                *wanted,
                "segment {at} of superpacket {number}, seed {}: {case:?}",
                seed()
            );
        }
        *kinds.entry(format!("{:?}", hdr.kind().unwrap())).or_insert(0) += 1;
        segments += ours.len();
    }
    router.assert_nothing_more(&input);
    println!("{segments} segments of superpackets: {kinds:?}");
    assert_eq!(kinds.len(), 2, "both kinds were cut");
}

/// A TCP checksum of 0 may be written as 0xffff, which is the same number. The kernel does for the
/// only segment of a superpacket, which it finishes by the code for UDP (skb_checksum_help).
fn without_zero_sum(mut packet: Vec<u8>) -> Vec<u8> {
    let at = usize::from(packet[0] & 15) * 4 + 16;
    if packet[9] == 6 && packet[at..at + 2] == [0xff, 0xff] {
        packet[at..at + 2].fill(0);
    }
    packet
}

#[test]
fn the_kernel_cuts_what_we_merged_into_what_came() {
    if !root_or_skip("the_kernel_cuts_what_we_merged_into_what_came") {
        return;
    }
    let router = Router::new(TunOffload::None);
    let input = router.input();
    let mut rng = StdRng::seed_from_u64(seed());
    let (mut packets, mut writes) = (0, 0);
    for _ in 0..superpackets() / 10 {
        let came = train(&mut rng);
        let mut got = Vec::new();
        for Merged { hdr, bytes, packets } in merge(&came, MergeCaps { tcp: true, udp: true }) {
            router.write(&input, &hdr, &bytes);
            got.extend((0..packets).map(|_| router.read().1));
            writes += 1;
        }
        assert_same_flows(&came.iter().map(|p| forwarded(p)).collect::<Vec<_>>(), &got);
        packets += came.len();
    }
    router.assert_nothing_more(&input);
    println!("{packets} packets by {writes} writes");
    assert!(writes < packets, "nothing was merged");
}

#[test]
fn we_cut_what_the_kernel_merged_into_what_came() {
    if !root_or_skip("we_cut_what_the_kernel_merged_into_what_came") {
        return;
    }
    let router = Router::new(TunOffload::TsoUso);
    let mut input = router.merging_input();
    let mut rng = StdRng::seed_from_u64(seed());
    let (mut packets, mut reads) = (0, BTreeMap::new());
    for number in 0..superpackets() / 10 {
        let came = train(&mut rng);
        for packet in &came {
            input.write(packet);
        }
        let mut got = Vec::new();
        while got.len() < came.len() {
            let (hdr, packet) = router.read();
            let kind = hdr.kind().unwrap();
            got.extend(cut(&hdr, packet));
            *reads.entry(format!("{kind:?}")).or_insert(0) += 1;
        }
        assert_eq!(got.len(), came.len(), "train {number}, seed {}", seed());
        // What the kernel does not merge (a wrong checksum, no payload, a fragment) it lets overtake
        // what it holds of the same flow. We do not: the fuzz target compares the order.
        assert_same_packets(&came.iter().map(|p| forwarded(p)).collect::<Vec<_>>(), &got);
        packets += came.len();
    }
    router.assert_nothing_more(&router.input());
    println!("{packets} packets by {reads:?} reads");
    assert_eq!(reads.len(), 3, "the kernel merged both kinds");
}

/// The packets that came out together.
fn cut(hdr: &VirtioNetHdr, mut packet: Vec<u8>) -> Vec<Vec<u8>> {
    if hdr.kind() != Ok(GsoKind::None) {
        return cut_all(&packet, hdr, MTU);
    }
    finish_checksum(&mut packet, hdr).unwrap();
    vec![packet]
}

//! The pure half of the data path allocates nothing once its arrays are made.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::alloc::System;
use std::net::Ipv4Addr;

use flanneld::dataplane::offload::arena::HeaderArena;
use flanneld::dataplane::offload::coalesce::{Coalescer, MergeCaps, Pushed};
use flanneld::dataplane::offload::limits::SUPERPACKET_HEADERS_BYTES;
use flanneld::dataplane::offload::run::{Datagram, SendPlan};
use flanneld::dataplane::offload::segment::{finish_checksum, segment};
use flanneld::dataplane::offload::span::Span;
use flanneld::dataplane::offload::virtio::VirtioNetHdr;
use flanneld::dataplane::packet::icmp::{ERROR_MAX_BYTES, IcmpError};
use flanneld::dataplane::packet::ipv4::decrement_ttl;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The counter is the process's: this file holds one test only.
fn allocations_of(work: impl FnOnce()) -> usize {
    let region = Region::new(ALLOCATOR);
    work();
    region.change().allocations + region.change().reallocations
}

/// A complete TCP packet, or a superpacket: cutting computes all checksums anew.
fn tcp(port: u16, payload: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 5, 1, 2], [10, 5, 2, 3], 62)
        .tcp(port, 80, 1, 500)
        .ack(1)
        .write(&mut packet, &vec![7; payload])
        .unwrap();
    packet
}

#[test]
fn nothing_is_allocated_per_packet() {
    let counted = allocations_of(|| drop(std::hint::black_box(vec![1_u8])));
    assert_eq!(counted, 1, "the allocator does not count");
    let superpacket = tcp(1000, 64_000);
    let hdr = VirtioNetHdr::tcp4(20, 1400);
    let mut arena = HeaderArena::new(SUPERPACKET_HEADERS_BYTES);
    let mut plan = SendPlan::with_capacity(64, 64);
    let mut slab = Vec::with_capacity(200_000);
    let mut spans = Vec::with_capacity(200);
    let mut coalescer = Coalescer::new(MergeCaps { tcp: true, udp: true }, 100);
    let lone: Vec<_> = (0..60).map(|port| tcp(port, 100)).collect();
    let mut error = [0; ERROR_MAX_BYTES];

    let mut round = || {
        arena.clear();
        plan.clear();
        let sink = &mut |datagram| assert_eq!(plan.push(1, datagram), Ok(()));
        assert_eq!(segment(&superpacket, 0, &hdr, 1472, &mut arena, sink), Ok(46));
        // Past its capacity the plan refuses, it does not grow.
        while plan.push(2, Datagram::whole(Span::new(0, 100))).is_ok() {}

        slab.clear();
        spans.clear();
        let planned = plan.runs().iter().flat_map(|run| plan.datagrams(run));
        for datagram in planned.filter(|datagram| !datagram.head.is_empty()) {
            spans.push(Span::new(slab.len() as u32, datagram.len()));
            slab.extend_from_slice(datagram.head.of(arena.bytes()));
            slab.extend_from_slice(datagram.body.of(&superpacket));
        }
        for packet in &lone {
            let start = slab.len();
            spans.push(Span::new(start as u32, packet.len() as u32));
            slab.extend_from_slice(packet);
            decrement_ttl(&mut slab[start..]).unwrap();
            finish_checksum(&mut slab[start..], &VirtioNetHdr::partial_checksum(20, 16)).unwrap();
        }
        coalescer.clear();
        let taken = spans.iter().take_while(|span| coalescer.push(&slab, **span) != Pushed::Full);
        assert_eq!(taken.count(), 100);
        coalescer.finish(&slab);
        assert_eq!(coalescer.items().len(), 1 + 54);
        assert_eq!(coalescer.items().map(|item| item.bodies().count()).sum::<usize>(), 46);
        let tunnel = Ipv4Addr::new(10, 5, 1, 0);
        assert_eq!(IcmpError::NetUnreachable.answer(&lone[0], tunnel, &mut error), Some(56));
    };
    assert_eq!(allocations_of(&mut round), 0, "the first round");
    assert_eq!(allocations_of(&mut round), 0, "the second round");
}

//! What the pure half of the data path costs: checksums, cutting, merging, planning.
//!
//! `cargo bench --bench offload`
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flanneld::dataplane::offload::arena::HeaderArena;
use flanneld::dataplane::offload::coalesce::{Coalescer, Head, MergeCaps, Pushed};
use flanneld::dataplane::offload::limits::SUPERPACKET_HEADERS_BYTES;
use flanneld::dataplane::offload::run::{Datagram, SendPlan};
use flanneld::dataplane::offload::segment::segment;
use flanneld::dataplane::offload::span::Span;
use flanneld::dataplane::offload::virtio::VirtioNetHdr;
use flanneld::dataplane::packet::checksum;
use flanneld::dataplane::sys::checksum::variants;

/// The tunnel's MTU over Ethernet.
const MTU: u16 = 1472;
/// TCP payload of a full packet: the MTU less 20 bytes of IP and 32 of TCP with timestamps.
const MSS: usize = MTU as usize - 52;

/// A TCP packet with timestamps and right checksums.
fn tcp(port: u16, id: u16, seq: u32, payload: &[u8]) -> Vec<u8> {
    let mut ip =
        etherparse::Ipv4Header::new(0, 62, etherparse::IpNumber::TCP, [10, 5, 1, 2], [10, 5, 2, 3])
            .unwrap();
    ip.identification = id;
    let mut tcp = etherparse::TcpHeader::new(port, 5201, seq, 501);
    tcp.ack = true;
    tcp.acknowledgment_number = 7;
    tcp.set_options_raw(&[1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    ip.set_payload_len(tcp.header_len() + payload.len()).unwrap();
    ip.header_checksum = ip.calc_header_checksum();
    tcp.checksum = tcp.calc_checksum_ipv4(&ip, payload).unwrap();
    [&ip.to_bytes()[..], &tcp.to_bytes()[..], payload].concat()
}

/// A UDP packet with right checksums.
fn udp(port: u16, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 5, 1, 2], [10, 5, 2, 3], 62)
        .udp(port, 53)
        .write(&mut packet, payload)
        .unwrap();
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[10..12].fill(0);
    let sum = checksum::finish(checksum::sum(&packet[..20], 0));
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn noise(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn checksums(c: &mut Criterion) {
    let bytes = noise(65_536);
    let mut group = c.benchmark_group("checksum");
    for len in [20, 64, 576, 1448, 9000, 65_536] {
        group.throughput(Throughput::Bytes(len as u64));
        for (name, sum) in variants() {
            group.bench_with_input(BenchmarkId::new(name, len), &bytes[..len], |b, bytes| {
                b.iter(|| sum(black_box(bytes), 0));
            });
        }
        group.bench_with_input(BenchmarkId::new("dispatched", len), &bytes[..len], |b, bytes| {
            b.iter(|| checksum::sum(black_box(bytes), 0));
        });
    }
    group.finish();
}

fn cutting(c: &mut Criterion) {
    let mut arena = HeaderArena::new(SUPERPACKET_HEADERS_BYTES);
    let mut plan = SendPlan::with_capacity(1024, 1024);
    let mut group = c.benchmark_group("cut");
    let payload = noise(45 * MSS);
    let tcp = tcp(40_000, 1, 1, &payload);
    let udp = udp(40_000, 1, &noise(44 * 1444));
    group.throughput(Throughput::Bytes(tcp.len() as u64));
    let hdr = VirtioNetHdr::tcp4(32, MSS as u16);
    group.bench_function("tcp_45_segments", |b| {
        b.iter(|| {
            arena.clear();
            let sink = &mut |datagram| {
                black_box(datagram);
            };
            segment(black_box(&tcp), 0, &hdr, MTU, &mut arena, sink)
        });
    });
    group.bench_function("tcp_45_segments_planned", |b| {
        b.iter(|| {
            arena.clear();
            plan.clear();
            let sink = &mut |datagram| assert_eq!(plan.push(1, datagram), Ok(()));
            segment(black_box(&tcp), 0, &hdr, MTU, &mut arena, sink).unwrap();
            plan.runs().len()
        });
    });
    group.throughput(Throughput::Bytes(udp.len() as u64));
    let hdr = VirtioNetHdr::udp4(1444);
    group.bench_function("udp_44_segments", |b| {
        b.iter(|| {
            arena.clear();
            let sink = &mut |datagram| {
                black_box(datagram);
            };
            segment(black_box(&udp), 0, &hdr, MTU, &mut arena, sink)
        });
    });
    group.finish();
}

/// Packets behind each other in a slab, as `UDP_GRO` leaves them.
fn slab_of(packets: &[Vec<u8>]) -> (Vec<u8>, Vec<Span>) {
    let mut slab = Vec::new();
    let spans = packets
        .iter()
        .map(|packet| {
            let span = Span::new(slab.len() as u32, packet.len() as u32);
            slab.extend_from_slice(packet);
            span
        })
        .collect();
    (slab, spans)
}

fn merging(c: &mut Criterion) {
    let payload = noise(MSS);
    let full = |flow: u16, i: usize| tcp(1000 + flow, i as u16, (i * MSS) as u32, &payload);
    let train: Vec<_> = (0..44).map(|i| full(0, i)).collect();
    let interleaved: Vec<_> = (0..44)
        .flat_map(|i| (0..16).map(move |flow| (flow, i)))
        .map(|(flow, i)| full(flow, i))
        .collect();
    let lost: Vec<_> = (0..44).map(|i| full(0, i * 2)).collect();
    let acks: Vec<_> = (0..64).map(|i| tcp(1000, i, 1, &[])).collect();
    let small: Vec<_> = (0..64).map(|i| udp(1000 + i, i, &payload[..36])).collect();
    let small_train: Vec<_> = (0..64).map(|i| udp(1000, i, &payload[..36])).collect();
    let mut group = c.benchmark_group("merge");
    let cases: [(&str, &[Vec<u8>]); 6] = [
        ("train_of_44", &train),
        ("16_flows_of_44_interleaved", &interleaved),
        ("unmergeable_full_tcp_44", &lost),
        ("pure_acks_64", &acks),
        ("64_flows_of_one_small_udp", &small),
        ("small_udp_train_64", &small_train),
    ];
    for (name, packets) in cases {
        let (slab, spans) = slab_of(packets);
        let mut coalescer = Coalescer::new(MergeCaps { tcp: true, udp: true }, 1024);
        group.throughput(Throughput::Elements(packets.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                coalescer.clear();
                for span in &spans {
                    assert_ne!(coalescer.push(black_box(&slab), *span), Pushed::Full);
                }
                coalescer.finish(&slab);
                // What gathering the pieces for `writev` will cost.
                let pieces = coalescer.items().map(|item| {
                    let head = match item.head {
                        Head::Slab(span) | Head::Arena(span) => span.len,
                    };
                    head + item.bodies().map(|body| body.len).sum::<u32>()
                });
                pieces.sum::<u32>()
            });
        });
    }
    group.finish();
}

fn planning(c: &mut Criterion) {
    let mut plan = SendPlan::with_capacity(1024, 1024);
    let mut group = c.benchmark_group("plan");
    for peers in [1, 8, 64] {
        group.throughput(Throughput::Elements(1024));
        group.bench_function(BenchmarkId::new("1024_datagrams_to_peers", peers), |b| {
            b.iter(|| {
                plan.clear();
                for number in 0..1024 {
                    let packet = Datagram::whole(Span::new(number * 100, 92));
                    assert_eq!(plan.push(black_box(number % peers), packet), Ok(()));
                }
                let bytes = plan
                    .runs()
                    .iter()
                    .map(|run| plan.datagrams(run).map(Datagram::len).sum::<u32>());
                bytes.sum::<u32>()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, checksums, cutting, merging, planning);
criterion_main!(benches);

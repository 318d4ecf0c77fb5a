//! The whole data path of a running daemon: real device, real sockets, real kernel.
//!
//! What is measured is the time from handing a batch to the kernel at one end until all of it has
//! arrived at the other. `direct` sends the same batches over loopback without any overlay: what
//! the bench's own two sockets cost.
//!
//! `sudo cargo bench --bench datapath`
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group};
use support::netns::Netns;
use support::plain::{Plain, inner_udp};
use support::{Carrier, FAR, NEAR, PEER_SUBNETS, may_run, underlay};

/// IPv4 and UDP header of an inner packet.
const HEADERS_BYTES: usize = 28;
/// Payloads of inner UDP datagrams.
const PAYLOADS: [usize; 2] = [64, 1400];
/// Datagrams that are handed to the kernel at once.
const BATCHES: [usize; 3] = [1, 8, 64];
/// Datagrams of 1,400 bytes in one superpacket: 64,260 bytes with their inner headers, as many as
/// one UDP datagram of 65,507 bytes holds.
const SUPERPACKET: usize = 45;
/// What programs write to a TCP stream at once.
const WRITE_BYTES: usize = 65_536;

/// The inner end, and the peer's.
struct Ends {
    carrier: Carrier,
    inner: Plain,
    inner_address: SocketAddrV4,
    peer: Plain,
    _netns: Netns,
}

impl Ends {
    fn new() -> Ends {
        let netns = underlay();
        let carrier = Carrier::start(&netns, &netns, NEAR, FAR);
        let inner_address = SocketAddrV4::new(NEAR.tunnel_address(), 7000);
        let inner = Plain::bind(&netns, inner_address);
        let peer = Plain::bind(&netns, FAR.endpoint);
        Ends { carrier, inner, inner_address, peer, _netns: netns }
    }
}

/// Inner packets, and the bytes in them.
fn carried(packets: usize, payload_bytes: usize) -> Throughput {
    Throughput::ElementsAndBytes {
        elements: packets as u64,
        bytes: (packets * (HEADERS_BYTES + payload_bytes)) as u64,
    }
}

/// A pod of the peer's subnet of that number.
fn far_pod(number: usize) -> SocketAddrV4 {
    SocketAddrV4::new(FAR.pod((number % usize::from(PEER_SUBNETS)) as u8), 7000)
}

/// `count` packets for `inner_address`, from so many ports in turn.
fn inner_packets(ends: &Ends, count: usize, flows: usize, payload: &[u8]) -> Vec<Vec<u8>> {
    (0..count)
        .map(|i| SocketAddrV4::new(FAR.pod(0), 7000 + (i % flows) as u16))
        .map(|source| inner_udp(source, ends.inner_address, payload))
        .collect()
}

fn direct(c: &mut Criterion) {
    let netns = underlay();
    let mut near = Plain::bind(&netns, NEAR.endpoint);
    let mut far = Plain::bind(&netns, FAR.endpoint);
    let mut group = c.benchmark_group("direct");
    for bytes in PAYLOADS {
        let packet = vec![0x5a; HEADERS_BYTES + bytes];
        for batch in BATCHES {
            group.throughput(carried(batch, bytes));
            group.bench_function(format!("{bytes}B/batch_{batch}"), |b| {
                b.iter(|| {
                    near.send((0..batch).map(|_| (FAR.endpoint, &packet[..])));
                    far.receive(batch, packet.len());
                });
            });
        }
    }
    group.finish();
}

fn egress(c: &mut Criterion) {
    let mut ends = Ends::new();
    let mut group = c.benchmark_group("egress");
    let mut bench = |name: String, batch: usize, bytes: usize, peers: usize| {
        let payload = vec![0x5a; bytes];
        group.throughput(carried(batch, bytes));
        group.bench_function(name, |b| {
            b.iter(|| {
                ends.inner.send((0..batch).map(|i| (far_pod(i % peers), &payload[..])));
                ends.peer.receive(batch, HEADERS_BYTES + bytes);
            });
        });
    };
    for bytes in PAYLOADS {
        for batch in BATCHES {
            bench(format!("{bytes}B/batch_{batch}"), batch, bytes, 1);
        }
    }
    for peers in [8, 64] {
        bench(format!("1400B/batch_64_to_{peers}_peers"), 64, 1400, peers);
    }
    let payload = vec![0x5a; SUPERPACKET * 1400];
    group.throughput(carried(SUPERPACKET, 1400));
    group.bench_function("1400B/udp_superpacket", |b| {
        b.iter(|| {
            ends.inner.send_superpacket(far_pod(0), 1400, &payload);
            ends.peer.receive(SUPERPACKET, HEADERS_BYTES + 1400);
        });
    });
    group.finish();
    ends.carrier.stop();
}

fn ingress(c: &mut Criterion) {
    let mut ends = Ends::new();
    let mut group = c.benchmark_group("ingress");
    let mut bench = |name: String, batch: usize, bytes: usize, flows: usize| {
        let packets = inner_packets(&ends, batch, flows, &vec![0x5a; bytes]);
        group.throughput(carried(batch, bytes));
        group.bench_function(name, |b| {
            b.iter(|| {
                ends.peer.send(packets.iter().map(|packet| (NEAR.endpoint, &packet[..])));
                ends.inner.receive(batch, bytes);
            });
        });
    };
    for bytes in PAYLOADS {
        for batch in BATCHES {
            bench(format!("{bytes}B/batch_{batch}"), batch, bytes, 1);
        }
    }
    for flows in [8, 64] {
        bench(format!("1400B/batch_64_of_{flows}_flows"), 64, 1400, flows);
    }
    let train = inner_packets(&ends, SUPERPACKET, 1, &[0x5a; 1400]).concat();
    group.throughput(carried(SUPERPACKET, 1400));
    group.bench_function("1400B/udp_train", |b| {
        b.iter(|| {
            ends.peer.send_superpacket(NEAR.endpoint, (HEADERS_BYTES + 1400) as u16, &train);
            ends.inner.receive(SUPERPACKET, 1400);
        });
    });
    group.finish();
    ends.carrier.stop();
}

/// TCP through two data paths: out of one as superpackets, through the other merged again.
fn across(c: &mut Criterion) {
    let (near, far) = (underlay(), Netns::new("far"));
    let carriers =
        [Carrier::start(&near, &near, NEAR, FAR), Carrier::start(&near, &far, FAR, NEAR)];
    let listener = far.listen(SocketAddrV4::new(FAR.tunnel_address(), 0));
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else {
        unreachable!("bound to IPv4")
    };
    let mut writer = near.connect(address).unwrap();
    let mut reader = listener.accept().unwrap().0;
    for stream in [&writer, &reader] {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    let mut group = c.benchmark_group("across");
    group.throughput(Throughput::Bytes(WRITE_BYTES as u64));
    group.bench_function("tcp_stream/64KiB_writes", |b| {
        b.iter_custom(|writes| stream(&mut writer, &mut reader, writes));
    });
    group.finish();
    carriers.into_iter().for_each(Carrier::stop);
}

/// How long so many writes take to arrive.
fn stream(writer: &mut TcpStream, reader: &mut TcpStream, writes: u64) -> Duration {
    let started = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let chunk = vec![0x5a; WRITE_BYTES];
            (0..writes).for_each(|_| writer.write_all(&chunk).unwrap());
        });
        let mut chunk = vec![0; WRITE_BYTES];
        (0..writes).for_each(|_| reader.read_exact(&mut chunk).unwrap());
    });
    started.elapsed()
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2));
    targets = direct, egress, ingress, across
}

fn main() {
    if may_run("datapath") {
        benches();
        Criterion::default().configure_from_args().final_summary();
    }
}

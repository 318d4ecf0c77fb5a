//! The subnet table: look-ups by size and mix, and while it is republished.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flanneld::dataplane::routes::{Route, Routes, SharedRoutes};
use ipnet::Ipv4Net;

/// The first address of the overlay network.
const OVERLAY: u32 = 0x0A00_0000;
const PROBES: u32 = 4096;
const SIZES: [u32; 4] = [1, 256, 65_536, 100_000];

/// A table over an overlay network with a prefix of `overlay_bits`.
fn routes(overlay_bits: u8, subnets: impl Iterator<Item = Ipv4Net>) -> Routes {
    let overlay = Ipv4Net::new_assert(Ipv4Addr::from(OVERLAY), overlay_bits);
    let own = Ipv4Net::new_assert(Ipv4Addr::from(OVERLAY), 24);
    let routes = subnets
        .enumerate()
        .map(|(i, subnet)| Route {
            subnet,
            endpoint: SocketAddrV4::new(Ipv4Addr::from(i as u32), 8285),
            stats: Arc::default(),
        })
        .collect();
    Routes::build(overlay, own, routes)
}

/// The length of `count` subnets: 100,000 of 256 addresses are more than a /8 holds.
fn length_of(count: u32) -> u8 {
    if count > 65_536 { 25 } else { 24 }
}

/// How many addresses `count` subnets, one after the other, have together.
fn span_of(count: u32) -> u32 {
    count << (32 - length_of(count))
}

/// `count` subnets of one length, one after the other.
fn uniform(count: u32) -> Routes {
    uniform_in(8, count)
}

fn uniform_in(overlay_bits: u8, count: u32) -> Routes {
    let length = length_of(count);
    let subnet = |i| Ipv4Net::new_assert(Ipv4Addr::from(OVERLAY + (i << (32 - length))), length);
    routes(overlay_bits, (0..count).map(subnet))
}

/// The same, but nobody owns the upper half of each.
fn half_empty(count: u32) -> Routes {
    let length = length_of(count);
    let half = |i| Ipv4Net::new_assert(Ipv4Addr::from(OVERLAY + (i << (32 - length))), length + 1);
    routes(8, (0..count).map(half))
}

/// `count` subnets over the same addresses, every other one of which lies within the one before.
fn mixed(count: u32) -> Routes {
    let length = length_of(count) - 1;
    let finer = |pair| length + 3 + (pair % 3) as u8;
    routes(
        8,
        (0..count).map(|i| {
            let (pair, inside) = (i / 2, i % 2 == 1);
            let outer = OVERLAY + (pair << (32 - length));
            let offset = (pair % 4) << (32 - length - 3);
            if inside {
                Ipv4Net::new_assert(Ipv4Addr::from(outer + offset), finer(pair))
            } else {
                Ipv4Net::new_assert(Ipv4Addr::from(outer), length)
            }
        }),
    )
}

/// Addresses all over the first `span` ones: a fixed sequence that no prefetcher guesses.
fn probes(span: u32) -> Vec<Ipv4Addr> {
    let mut state = 0x1234_5678_u32;
    (0..PROBES)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Ipv4Addr::from(OVERLAY + ((u64::from(state) * u64::from(span)) >> 32) as u32)
        })
        .collect()
}

fn look_up_all(routes: &Routes, probes: &[Ipv4Addr]) -> u32 {
    probes.iter().fold(0, |sum, &probe| sum.wrapping_add(routes.lookup(probe).unwrap_or(0)))
}

fn lookups(c: &mut Criterion) {
    let mut group = c.benchmark_group("table");
    group.throughput(Throughput::Elements(u64::from(PROBES)));
    let mut bench = |name: &str, count: u32, table: &Routes, probes: &[Ipv4Addr]| {
        group.bench_with_input(BenchmarkId::new(name, count), probes, |b, probes| {
            b.iter(|| black_box(look_up_all(table, probes)));
        });
    };
    for count in SIZES {
        bench("hit", count, &uniform(count), &probes(span_of(count)));
    }
    for count in SIZES {
        // The upper half of each address block: beyond its subnet.
        let half = 1 << (31 - length_of(count));
        let misses: Vec<Ipv4Addr> = probes(span_of(count))
            .into_iter()
            .map(|probe| Ipv4Addr::from(u32::from(probe) | half))
            .collect();
        let table = half_empty(count);
        assert!(misses.iter().all(|&miss| table.lookup(miss).is_none()));
        bench("miss", count, &table, &misses);
    }
    // One subnet has no other length to be mixed with.
    for count in &SIZES[1..] {
        bench("mixed", *count, &mixed(*count), &probes(span_of(*count)));
    }
    group.finish();
}

/// Look-ups while another thread publishes a new table a thousand times a second. The overlay
/// network is a small one, so that a table is built in much less than a millisecond.
fn republished(c: &mut Criterion) {
    let table = || uniform_in(16, 256);
    let shared = SharedRoutes::new(table());
    let stop = Arc::new(AtomicBool::new(false));
    let publisher = {
        let (shared, stop) = (shared.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut due = Instant::now();
            while !stop.load(Relaxed) {
                shared.publish(table());
                due += Duration::from_millis(1);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        })
    };
    let (mut reader, hits) = (shared.reader(), probes(span_of(256)));
    let mut group = c.benchmark_group("table");
    group.throughput(Throughput::Elements(u64::from(PROBES)));
    group.bench_function("hit/256, republished", |b| {
        b.iter(|| {
            // Loaded once per 64 packets, as a busy data path does.
            hits.chunks(64).fold(0_u32, |sum, batch| {
                sum.wrapping_add(black_box(look_up_all(reader.load(), batch)))
            })
        });
    });
    group.finish();
    stop.store(true, Relaxed);
    let _ = publisher.join();
}

/// What the data path pays for a new table: whoever is the last to hold the old one frees it.
fn taking_over(c: &mut Criterion) {
    let mut group = c.benchmark_group("table");
    // Each time needs a new table, which takes much longer to build than what is measured.
    group.sample_size(20).warm_up_time(Duration::from_millis(20));
    group.measurement_time(Duration::from_millis(50));
    for count in [10_000, 65_536] {
        let shared = SharedRoutes::new(uniform(count));
        let mut reader = shared.reader();
        group.bench_function(BenchmarkId::new("take_over", count), |b| {
            b.iter_batched(
                || shared.publish(uniform(count)),
                |()| black_box(reader.load()).len(),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn building(c: &mut Criterion) {
    let mut group = c.benchmark_group("table");
    group.sample_size(20);
    for count in [256, 10_000, 65_536] {
        group.bench_function(BenchmarkId::new("build", count), |b| {
            b.iter(|| black_box(uniform(count)).len());
        });
    }
    // The same subnets in an overlay network that they fill.
    for (overlay_bits, count) in [(16, 256), (10, 10_000)] {
        group.bench_function(format!("build/{count} in {overlay_bits} bits"), |b| {
            b.iter(|| black_box(uniform_in(overlay_bits, count)).len());
        });
    }
    group.finish();
}

criterion_group!(benches, lookups, republished, taking_over, building);
criterion_main!(benches);

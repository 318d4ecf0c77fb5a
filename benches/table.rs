//! The subnet table: look-ups by size and mix, and while it is republished.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flanneld::dataplane::routes::{Route, Routes, SharedRoutes};
use ipnet::Ipv4Net;

const OVERLAY: u32 = 0x0A00_0000;
const PROBES: u32 = 4096;

fn routes(subnets: impl Iterator<Item = Ipv4Net>) -> Routes {
    let overlay = Ipv4Net::new_assert(Ipv4Addr::from(OVERLAY), 8);
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

/// `count` subnets of one length, one after the other.
fn uniform(count: u32) -> Routes {
    // 100,000 subnets of 256 addresses are more than a /8 holds.
    let length: u8 = if count > 65_536 { 25 } else { 24 };
    let size = 1 << (32 - length);
    routes((0..count).map(|i| Ipv4Net::new_assert(Ipv4Addr::from(OVERLAY + i * size), length)))
}

/// `count` subnets, every other one of which has a finer one inside it.
fn mixed(count: u32) -> Routes {
    routes((0..count).map(|i| {
        let outer = OVERLAY + (i / 2) * 512;
        if i % 2 == 0 {
            Ipv4Net::new_assert(Ipv4Addr::from(outer), 23)
        } else {
            Ipv4Net::new_assert(Ipv4Addr::from(outer + 64 * (i / 2 % 4)), 26 + (i / 2 % 3) as u8)
        }
    }))
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
    for count in [1, 256, 65_536, 100_000] {
        let (table, span) = (uniform(count), count.saturating_mul(256).min(1 << 24));
        let hits = probes(span);
        group.bench_with_input(BenchmarkId::new("hit", count), &hits, |b, hits| {
            b.iter(|| black_box(look_up_all(&table, hits)));
        });
    }
    let (table, misses) = (uniform(256), probes(1 << 16));
    let misses: Vec<Ipv4Addr> =
        misses.iter().map(|probe| Ipv4Addr::from(u32::from(*probe) + (1 << 20))).collect();
    group.bench_function("miss/256", |b| b.iter(|| black_box(look_up_all(&table, &misses))));
    for count in [256, 65_536] {
        let (table, hits) = (mixed(count), probes(count * 256));
        group.bench_with_input(BenchmarkId::new("mixed", count), &hits, |b, hits| {
            b.iter(|| black_box(look_up_all(&table, hits)));
        });
    }
    group.finish();
}

/// Look-ups while another thread publishes a new table a thousand times a second.
fn republished(c: &mut Criterion) {
    let shared = SharedRoutes::new(uniform(256));
    let stop = Arc::new(AtomicBool::new(false));
    let publisher = {
        let (shared, stop) = (shared.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !stop.load(Relaxed) {
                shared.publish(uniform(256));
                std::thread::sleep(Duration::from_millis(1));
            }
        })
    };
    let (mut reader, hits) = (shared.reader(), probes(1 << 16));
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

fn building(c: &mut Criterion) {
    let mut group = c.benchmark_group("table");
    group.sample_size(20);
    for count in [256, 10_000, 65_536] {
        group.bench_function(BenchmarkId::new("build", count), |b| {
            b.iter(|| black_box(uniform(count)).len());
        });
    }
    group.finish();
}

criterion_group!(benches, lookups, republished, building);
criterion_main!(benches);

//! What many peers and many lease changes cost the data path, in throughput and in memory.
//!
//! A bulk load runs through the daemon's own backend, two busy threads on two cores; beside it the
//! control plane holds ever more work. Machines are noisy, so the states take turns in short
//! windows, and each is compared with the first state of the same round.
//!
//! `sudo cargo bench --bench scale`; without `--bench`, as under `cargo test`, one short round.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(missing_docs)]

mod control;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use control::{Control, Report, State};
use support::plain::Plain;
use support::{FAR, NEAR, may_run, underlay};

/// Datagrams that are handed to the kernel at once.
const BATCH: usize = 64;
/// Their payload; with inner IPv4 and UDP header they are 28 bytes longer.
const PAYLOAD_BYTES: usize = 1400;

/// How long each state is measured in each round, and how many rounds there are.
struct Plan {
    window: Duration,
    rounds: usize,
}

/// One state's figures, one per round.
#[derive(Default)]
struct Figures {
    packets_per_s: Vec<f64>,
    /// Packets per second, relative to the first state's of the same round.
    ratio: Vec<f64>,
    /// Of each window the batch times' median and 99th percentile.
    batch_p50_us: Vec<f64>,
    batch_p99_us: Vec<f64>,
    /// CPU time of the data path's threads.
    cpu_us_per_packet: Vec<f64>,
    control: Vec<Report>,
}

fn main() {
    if !may_run("scale") {
        return;
    }
    let full = std::env::args().any(|argument| argument == "--bench");
    let plan = if full {
        Plan { window: Duration::from_millis(250), rounds: 60 }
    } else {
        Plan { window: Duration::from_millis(20), rounds: 1 }
    };
    let netns = underlay();
    std::thread::scope(|scope| {
        let mut control = Control::start(scope, &netns);
        for memory in control.memory() {
            println!("{memory}");
        }
        let mut inner = Plain::bind(&netns, SocketAddrV4::new(NEAR.tunnel_address(), 7000));
        let mut peer = Plain::bind(&netns, FAR.endpoint);
        let figures = measure(&plan, &mut control, &mut inner, &mut peer);
        print(&figures);
        control.stop();
    });
}

fn measure(
    plan: &Plan,
    control: &mut Control,
    inner: &mut Plain,
    peer: &mut Plain,
) -> Vec<Figures> {
    let mut figures: Vec<Figures> = State::ALL.iter().map(|_| Figures::default()).collect();
    for round in 0..plan.rounds {
        let mut order: Vec<usize> = (0..State::ALL.len()).collect();
        if round % 2 == 1 {
            // So that no state always has the same one before it.
            order.reverse();
        }
        for state in order {
            control.enter(State::ALL[state]);
            // What the change of states itself costs belongs to none of them.
            carry(plan.window / 10, inner, peer);
            control.report();
            let cpu = data_path_cpu();
            let (elapsed, mut batches) = carry(plan.window, inner, peer);
            let cpu = data_path_cpu() - cpu;
            let packets = (batches.len() * BATCH) as f64;
            batches.sort_unstable();
            let percentile = |percent: usize| {
                batches[(batches.len() * percent / 100).min(batches.len() - 1)].as_secs_f64() * 1e6
            };
            let figures = &mut figures[state];
            figures.control.push(control.report());
            figures.packets_per_s.push(packets / elapsed.as_secs_f64());
            figures.cpu_us_per_packet.push(cpu.as_secs_f64() * 1e6 / packets);
            figures.batch_p50_us.push(percentile(50));
            figures.batch_p99_us.push(percentile(99));
        }
        let first = figures[0].packets_per_s[round];
        for figures in &mut figures {
            figures.ratio.push(figures.packets_per_s[round] / first);
        }
    }
    figures
}

/// Sends batch after batch to the peer, and waits for each; returns how long each took.
fn carry(window: Duration, inner: &mut Plain, peer: &mut Plain) -> (Duration, Vec<Duration>) {
    let payload = [0x5a; PAYLOAD_BYTES];
    let to = SocketAddrV4::new(FAR.pod(0), 7000);
    let (started, mut batches) = (Instant::now(), Vec::new());
    loop {
        let sent = Instant::now();
        inner.send((0..BATCH).map(|_| (to, &payload[..])));
        peer.receive(BATCH, PAYLOAD_BYTES + 28);
        batches.push(sent.elapsed());
        let elapsed = started.elapsed();
        if elapsed >= window {
            return (elapsed, batches);
        }
    }
}

/// CPU time of the data path's threads so far: what each spent running (`schedstat`, in
/// nanoseconds).
fn data_path_cpu() -> Duration {
    let mut total_ns = 0;
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        if read("comm").starts_with("flannel-") {
            let schedstat = read("schedstat");
            total_ns += schedstat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
        }
    }
    Duration::from_nanos(total_ns)
}

fn print(figures: &[Figures]) {
    println!(
        "| state | 1000 packets/s | of the first state | batch p50 / p99, µs | data path, CPU µs \
         per packet | control plane, % of a core | changes/s | publishes/s | ms per publish |\n\
         |---|---|---|---|---|---|---|---|---|"
    );
    for (state, figures) in State::ALL.iter().zip(figures) {
        let control = |figure: fn(&Report) -> f64| median(figures.control.iter().map(figure));
        let (low, high) = confidence(&figures.ratio);
        println!(
            "| {state} | {:.0} | {:.3} ({low:.3} to {high:.3}) | {:.0} / {:.0} | {:.2} | {:.1} | \
             {:.0} | {:.0} | {:.2} |",
            median(figures.packets_per_s.iter().copied()) / 1e3,
            median(figures.ratio.iter().copied()),
            median(figures.batch_p50_us.iter().copied()),
            median(figures.batch_p99_us.iter().copied()),
            median(figures.cpu_us_per_packet.iter().copied()),
            control(Report::cpu_percent),
            control(|report| report.per_second(report.changes)),
            control(|report| report.per_second(report.publishes)),
            control(Report::ms_per_publish),
        );
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let values = sorted(values);
    values[values.len() / 2]
}

/// The 95 % confidence interval of the median: the order statistics 0.98 √n ranks beside it, by
/// the normal approximation of the binomial distribution.
fn confidence(values: &[f64]) -> (f64, f64) {
    let values = sorted(values.iter().copied());
    let ranks = (0.98 * (values.len() as f64).sqrt()).ceil() as usize;
    let middle = values.len() / 2;
    (values[middle.saturating_sub(ranks)], values[(middle + ranks).min(values.len() - 1)])
}

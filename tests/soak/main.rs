//! A long mixture of all kinds of traffic over three hosts, while leases come and go, without faults
//! and with: not one byte may be wrong, and no daemon may grow.
//!
//! `FLANNELD_SOAK_SECONDS` says how long, half of it on each link model; `FLANNELD_SOAK_SEED`
//! repeats the bytes, lengths, pauses and faults of a run. `--nocapture` shows the summary.
#![forbid(unsafe_code)]
// A helper fails its test by panicking; clippy.toml allows that only in `#[test]` functions.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod churn;
mod datagram;
mod drops;
mod faults;
mod flips;
mod flow;
mod footprint;
mod health;
mod overlay;
mod pattern;
mod report;
mod stop;
mod storm;
mod stream;
#[path = "../support/mod.rs"]
mod support;
mod windows;

use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use datagram::{FULL_BYTES, NUMBERED_BYTES, Sequence, Shape};
use flow::Carrier;
use footprint::{Footprint, GROWTH_KIB, GROWTH_WITH_FAULTS_KIB};
use overlay::{Overlay, start_datagrams, start_streams};
use pattern::{Pattern, mix};
use report::{Outcome, Report};
use stop::{Alarm, Stop};
use storm::Storm;
use stream::STYLES;
use support::daemon::Daemon;
use support::lab::LinkModel;
use support::root_or_skip;
use windows::Windows;

/// How long in CI, without faults and with.
const SECONDS: u64 = 60;
const SECONDS_WITH_FAULTS: u64 = 30;

/// This part of the time is not judged, and at most so long: the data path touches its buffers,
/// and the program its pages, for the first time.
const WARM_UP_PART: u32 = 6;
const WARM_UP: Duration = Duration::from_secs(60);

/// Between two looks at the daemons.
const SAMPLE_EVERY: Duration = Duration::from_millis(250);

/// The kinds of datagrams.
static DATAGRAMS: [(&str, Shape, Carrier); 4] = [
    ("datagrams", Shape::Single(1..=FULL_BYTES), Carrier::Udp),
    ("UDP_SEGMENT trains", Shape::Trains, Carrier::Udp),
    ("fragments", Shape::Single(FULL_BYTES + 1..=12_000), Carrier::Udp),
    ("pings", Shape::Single(NUMBERED_BYTES..=4_000), Carrier::Echo),
];

/// A variable of the environment, if it is set.
fn variable<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    let value = text.parse().ok();
    Some(value.unwrap_or_else(|| panic!("{name}={text:?}: expected a whole number")))
}

#[test]
fn mixed_traffic_arrives_unharmed_and_nothing_grows() {
    if !root_or_skip("mixed_traffic_arrives_unharmed_and_nothing_grows") {
        return;
    }
    soak_on_both_models(SECONDS, false);
}

#[test]
fn faults_are_recovered_from_and_explain_all_that_is_lost() {
    if !root_or_skip("faults_are_recovered_from_and_explain_all_that_is_lost") {
        return;
    }
    soak_on_both_models(SECONDS_WITH_FAULTS, true);
}

fn soak_on_both_models(seconds: u64, faults: bool) {
    // One at a time: each keeps the whole machine busy.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let duration = Duration::from_secs(variable("FLANNELD_SOAK_SECONDS").unwrap_or(seconds)) / 2;
    let seed = variable("FLANNELD_SOAK_SEED").unwrap_or_else(rand::random);
    println!("FLANNELD_SOAK_SEED={seed}");
    for model in [LinkModel::Whole, LinkModel::Wire] {
        let report = soak(model, duration, seed, faults);
        println!("{duration:?} on link model {model:?}:\n{report}");
        let faults = report.faults();
        assert!(faults.is_empty(), "link model {model:?}, seed {seed}:\n{}", faults.join("\n"));
    }
}

fn soak(model: LinkModel, duration: Duration, seed: u64, faults: bool) -> Report {
    let overlay = Overlay::new(model);
    let pattern = Pattern::new(seed);
    let growth_kib = if faults { GROWTH_WITH_FAULTS_KIB } else { GROWTH_KIB };
    let (stop, windows) = (Stop::default(), Windows::default());
    let mut report = Report::default();
    let before = overlay.drops();
    thread::scope(|scope| {
        let mut handles =
            vec![scope.spawn(|| {
                stop.heed(churn::churn(overlay.store(), seed, &stop)).map(Outcome::Leases)
            })];
        if faults {
            // Another order on the other model.
            let seed = mix(seed, model as u64);
            let storm = Storm { overlay: &overlay, stop: &stop, windows: &windows };
            handles.push(scope.spawn(move || {
                let _alarm = Alarm(storm.stop);
                storm.stop.heed(storm.rage(seed)).map(Outcome::Faults)
            }));
        }
        for (number, pair) in overlay.pairs().into_iter().enumerate() {
            // A kind that runs from pod to pod on one pair runs from host to host on the next.
            let ends = |kind: usize| overlay.ends(pair, (number + kind).is_multiple_of(2));
            let key = |kind: usize| mix(seed, (100 * kind + number) as u64);
            for (kind, style) in STYLES.iter().enumerate() {
                let flow = stream::Flow { style, pattern: &pattern, key: key(kind) };
                handles.extend(start_streams(scope, kind, flow, ends(kind), &stop, &windows));
            }
            for (kind, (_, shape, carrier)) in DATAGRAMS.iter().enumerate() {
                let key = key(STYLES.len() + kind);
                let sequence = Sequence { shape, pattern: &pattern, key };
                let ends = ends(kind);
                handles.extend(start_datagrams(
                    scope, kind, sequence, *carrier, ends, &stop, &windows,
                ));
            }
        }
        match watch(&overlay, duration, &stop) {
            Ok(footprints) => report.add_footprints(footprints, growth_kib),
            Err(failure) => report.add(Err(failure)),
        }
        stop.set();
        for handle in handles {
            report.add(handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
    });
    // Before the overlay goes: the daemons' logs are shown then.
    let failures = report.failures().join("\n");
    assert!(failures.is_empty(), "link model {model:?}, seed {seed}:\n{report}\n{failures}");
    overlay.ping_all();
    report.add_logs(&overlay.last_lease());
    report.add_drops(overlay.drops() - before);
    report.add_endings(&overlay.stop());
    report
}

/// Samples the daemons until the time is up, or a flow has failed.
fn watch(
    overlay: &Overlay,
    duration: Duration,
    stop: &Stop,
) -> Result<Vec<Vec<Footprint>>, String> {
    let end = Instant::now() + duration;
    let warm_up = WARM_UP.min(duration / WARM_UP_PART);
    let mut footprints: Vec<Vec<Footprint>> = overlay.hosts().map(|_| Vec::new()).collect();
    while Instant::now() < end && !stop.wait(SAMPLE_EVERY) {
        for (host, processes) in footprints.iter_mut().enumerate() {
            let sample = |daemon: &Daemon| {
                if !processes.last().is_some_and(|last| last.is_of(daemon)) {
                    processes.push(Footprint::of(daemon, warm_up));
                }
                processes.last_mut().map_or(Ok(()), Footprint::sample)
            };
            overlay.ask(host, sample).unwrap_or(Ok(()))?;
        }
    }
    Ok(footprints)
}

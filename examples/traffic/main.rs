//! The traffic that `scripts/bench.sh` measures with: floods, streams and round trips.
//!
//! iperf3 would serve all streams of one process by one thread, and its UDP sends one datagram per
//! system call, so that it saturates before a fast overlay does. Here each TCP stream has a thread
//! of its own and UDP goes by `sendmmsg` and `recvmmsg`.
//!
//! Each subcommand prints one JSON object on standard output. Those that receive print
//! `{"ready":true}` before it, once their socket is open. Times are seconds since 1970, so that
//! what two processes saw can be laid side by side.
#![forbid(unsafe_code)]

mod rtt;
mod tcp;
mod udp;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Parser, Subcommand};

/// Makes traffic and measures it; prints JSON.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    work: Work,
}

#[derive(Subcommand)]
enum Work {
    /// Sends UDP datagrams, as fast as it goes or at a given rate
    Blast(udp::Blast),
    /// Counts the UDP datagrams that arrive
    Sink(udp::Sink),
    /// Measures round trips to an `echo`, one datagram in flight
    Rtt(rtt::Rtt),
    /// Sends every UDP datagram back, until it is killed
    Echo(rtt::Echo),
    /// Sends over TCP streams, each by a thread of its own
    Tcp(tcp::Streams),
    /// Reads TCP streams and samples how much arrived
    TcpSink(tcp::Sink),
}

fn main() -> anyhow::Result<()> {
    let report = match Arguments::parse().work {
        Work::Blast(blast) => blast.run()?,
        Work::Sink(sink) => sink.run()?,
        Work::Rtt(rtt) => rtt.run()?,
        Work::Echo(echo) => echo.run()?,
        Work::Tcp(streams) => streams.run()?,
        Work::TcpSink(sink) => sink.run()?,
    };
    println!("{report}");
    Ok(())
}

/// Tells whoever started us that our socket is open.
fn say_ready() {
    println!("{}", serde_json::json!({ "ready": true }));
}

/// Seconds since 1970.
fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// A number of seconds on the command line: positive, and at most a day.
fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .filter(|seconds| *seconds > 0.0 && *seconds <= 86_400.0)
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "expected seconds, more than 0 and at most 86400".to_owned())
}

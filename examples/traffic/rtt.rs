//! Round trips of single datagrams.
#![forbid(unsafe_code)]

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};

use crate::{say_ready, seconds, unix_seconds};

/// A datagram that is not back by then is lost.
const PATIENCE: Duration = Duration::from_secs(1);
/// Room for the largest datagram of an Ethernet network.
const BUFFER_BYTES: usize = 9216;

#[derive(Args)]
pub(crate) struct Rtt {
    /// The address to send from
    #[arg(long)]
    from: Ipv4Addr,
    /// Where an `echo` listens
    #[arg(long)]
    to: SocketAddrV4,
    /// Payload of a datagram
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(8..=8972))]
    bytes: u16,
    /// How many datagrams to send
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// Microseconds from one datagram to the next; 0: as soon as the last one is back
    #[arg(long, default_value_t = 0)]
    interval_us: u64,
    /// The most time to take
    #[arg(long, default_value = "60", value_parser = seconds)]
    seconds: Duration,
}

impl Rtt {
    pub(crate) fn run(&self) -> anyhow::Result<Value> {
        let socket = UdpSocket::bind((self.from, 0))
            .with_context(|| format!("cannot send from {}", self.from))?;
        socket.connect(self.to).with_context(|| format!("no way to {}", self.to))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let interval = Duration::from_micros(self.interval_us);
        let mut trips_us = Vec::with_capacity(self.samples as usize);
        let mut lost = 0_u32;
        let (first, start) = (unix_seconds(), Instant::now());
        for number in 0..u64::from(self.samples) {
            if start.elapsed() >= self.seconds {
                break;
            }
            let sent = Instant::now();
            match self.trip(&socket, number, sent)? {
                Some(trip) => trips_us.push(trip.as_secs_f64() * 1e6),
                None => lost += 1,
            }
            if let Some(rest) = interval.checked_sub(sent.elapsed()) {
                thread::sleep(rest);
            }
        }
        ensure!(!trips_us.is_empty(), "none of {lost} datagrams came back from {}", self.to);
        trips_us.sort_by(f64::total_cmp);
        Ok(json!({
            "samples": trips_us.len(),
            "lost": lost,
            "p50_us": quantile(&trips_us, 0.5),
            "p99_us": quantile(&trips_us, 0.99),
            "p999_us": quantile(&trips_us, 0.999),
            "max_us": trips_us.last(),
            "first": first,
            "last": unix_seconds(),
        }))
    }

    /// One round trip; `None` if the datagram did not come back.
    fn trip(
        &self,
        socket: &UdpSocket,
        number: u64,
        sent: Instant,
    ) -> anyhow::Result<Option<Duration>> {
        let mut payload = vec![0; self.bytes.into()];
        payload[..8].copy_from_slice(&number.to_be_bytes());
        socket.send(&payload).context("cannot send")?;
        let mut answer = [0; BUFFER_BYTES];
        loop {
            match socket.recv(&mut answer) {
                Ok(bytes) if answer.get(..bytes) == Some(&payload[..]) => {
                    return Ok(Some(sent.elapsed()));
                }
                // An earlier datagram that was given up.
                Ok(_) if sent.elapsed() < PATIENCE => {}
                Ok(_) => return Ok(None),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock) => return Ok(None),
                Err(error) => return Err(error).context("nothing echoes there"),
            }
        }
    }
}

/// The value that the given share of the sorted samples does not exceed (nearest rank); `None` if
/// there are too few samples for one of them to lie beyond it.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    if rank < sorted.len() { sorted.get(rank.saturating_sub(1)).copied() } else { None }
}

#[derive(Args)]
pub(crate) struct Echo {
    /// Where to listen
    #[arg(long)]
    listen: SocketAddrV4,
}

impl Echo {
    pub(crate) fn run(&self) -> anyhow::Result<Value> {
        let socket = UdpSocket::bind(self.listen)
            .with_context(|| format!("cannot listen on {}", self.listen))?;
        say_ready();
        let mut buffer = [0; BUFFER_BYTES];
        loop {
            let (bytes, peer) = socket.recv_from(&mut buffer).context("cannot receive")?;
            // A lost answer is for the other side to notice.
            let _ = socket.send_to(&buffer[..bytes], peer);
        }
    }
}

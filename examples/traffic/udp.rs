//! Floods of UDP datagrams and the counting of what arrives.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use flanneld::dataplane::sys::receive::Receiver;
use flanneld::dataplane::sys::send::Sender;
use flanneld::dataplane::sys::socket::{Sharing, UdpSocket, UdpWish};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use crate::{say_ready, seconds, unix_seconds};

/// Datagrams per system call, each way.
const BATCH: usize = 64;
/// What a datagram may have at most: no jumbo frame is longer.
const SLOT_BYTES: usize = 9216;
/// How often a paced sender wakes. Shorter ticks cost the measured system its processor, longer
/// ones make bursts that are no longer the rate asked for.
const TICK: Duration = Duration::from_micros(200);
/// The kernel's services would hide the cost of a datagram from what is measured.
const PLAIN: UdpWish = UdpWish { gso: false, gro: false };

#[derive(Args)]
pub(crate) struct Blast {
    /// The address to send from
    #[arg(long)]
    from: Ipv4Addr,
    /// Where to send, in turn: ADDRESS:PORT[,ADDRESS:PORT…]
    #[arg(long, value_delimiter = ',', required = true)]
    to: Vec<SocketAddrV4>,
    /// Payload of a datagram
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=8972))]
    bytes: u16,
    /// For how long
    #[arg(long, default_value = "2", value_parser = seconds)]
    seconds: Duration,
    /// Packets per second; as many as possible if it is not given
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    rate: Option<u64>,
}

impl Blast {
    pub(crate) fn run(&self) -> anyhow::Result<Value> {
        let socket = UdpSocket::bind(SocketAddrV4::new(self.from, 0), PLAIN, Sharing::Never)?;
        let payload = vec![0x5a_u8; self.bytes.into()];
        let mut sender = Sender::new(BATCH, BATCH);
        let mut destinations = self.to.iter().cycle();
        let (mut sent, mut refused) = (0_u64, 0_u64);
        let (first, start) = (unix_seconds(), Instant::now());
        while start.elapsed() < self.seconds {
            let due = self.due(start.elapsed(), sent);
            if due == 0 {
                thread::sleep(TICK);
                continue;
            }
            let mut batch = sender.batch();
            for peer in destinations.by_ref().take(due) {
                batch.push(*peer, None, [&payload[..]]);
            }
            let mut done = 0;
            while done < batch.len() && start.elapsed() < self.seconds {
                match batch.send(&socket, done) {
                    Ok(count) => {
                        done += count;
                        sent += count as u64;
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        wait(&socket, PollFlags::OUT, Duration::from_millis(100))?;
                    }
                    // A full queue below the socket: that datagram is lost, as on a real host.
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                        done += 1;
                        refused += 1;
                    }
                    Err(error) => return Err(error).context("cannot send"),
                }
            }
        }
        Ok(json!({
            "packets": sent,
            "bytes": sent * u64::from(self.bytes),
            "seconds": start.elapsed().as_secs_f64(),
            "refused": refused,
            "first": first,
            "last": unix_seconds(),
        }))
    }

    /// How many datagrams to send now, if `sent` were in the time `elapsed`.
    fn due(&self, elapsed: Duration, sent: u64) -> usize {
        let Some(rate) = self.rate else { return BATCH };
        let wanted = u128::from(rate) * elapsed.as_nanos() / 1_000_000_000;
        wanted.saturating_sub(sent.into()).min(BATCH as u128) as usize
    }
}

#[derive(Args)]
pub(crate) struct Sink {
    /// Where to listen
    #[arg(long)]
    listen: SocketAddrV4,
    /// The most time to count, from the start
    #[arg(long, default_value = "60", value_parser = seconds)]
    seconds: Duration,
    /// Ends when nothing came for so long after the first datagram
    #[arg(long, default_value = "1", value_parser = seconds)]
    idle: Duration,
}

impl Sink {
    pub(crate) fn run(&self) -> anyhow::Result<Value> {
        let socket = UdpSocket::bind(self.listen, PLAIN, Sharing::Never)?;
        let mut receiver = Receiver::new(BATCH, SLOT_BYTES);
        say_ready();
        let start = Instant::now();
        let (mut packets, mut bytes, mut dropped) = (0_u64, 0_u64, None);
        let mut span: Option<(f64, f64)> = None;
        while let Some(left) = self.seconds.checked_sub(start.elapsed()) {
            let patience = if span.is_some() { self.idle.min(left) } else { left };
            if !wait(&socket, PollFlags::IN, patience)? {
                break;
            }
            let count = match receiver.receive(&socket) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error).context("cannot receive"),
            };
            let now = unix_seconds();
            span = Some((span.map_or(now, |(first, _)| first), now));
            packets += count as u64;
            for message in (0..count).map(|index| receiver.message(index)) {
                ensure!(!message.truncated, "a datagram is longer than {SLOT_BYTES} bytes");
                bytes += message.len as u64;
                dropped = message.kernel_drops.or(dropped);
            }
        }
        let (first, last) = span.unzip();
        Ok(json!({
            "packets": packets,
            "bytes": bytes,
            "seconds": span.map(|(first, last)| last - first),
            // What came while the socket's buffer was full: the sink's own fault.
            "dropped": dropped,
            "first": first,
            "last": last,
        }))
    }
}

/// Waits until the socket is ready; says whether it was in time.
fn wait(socket: impl AsFd, interest: PollFlags, patience: Duration) -> anyhow::Result<bool> {
    let timeout = Timespec {
        tv_sec: patience.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: patience.subsec_nanos().into(),
    };
    match poll(&mut [PollFd::new(&socket, interest)], Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(errno) => bail!("cannot wait for the socket: {errno}"),
    }
}

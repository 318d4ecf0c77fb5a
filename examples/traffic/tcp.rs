//! Bulk transfer over TCP streams, each with a thread of its own at both ends.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::Args;
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{say_ready, seconds, unix_seconds};

/// Bytes per read and write: what iperf3 uses.
const CHUNK_BYTES: usize = 128 << 10;
/// A stream on which nothing moves for so long is dead.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the sink notes how much arrived.
const SAMPLE: Duration = Duration::from_millis(25);

#[derive(Args)]
pub(crate) struct Streams {
    /// The address to send from
    #[arg(long)]
    from: Ipv4Addr,
    /// Where a `tcp-sink` listens
    #[arg(long)]
    to: SocketAddrV4,
    /// How many streams at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    streams: u16,
    /// For how long
    #[arg(long, default_value = "3", value_parser = seconds)]
    seconds: Duration,
}

impl Streams {
    pub(crate) fn run(&self) -> anyhow::Result<Value> {
        let streams: Vec<_> =
            (0..self.streams).map(|_| self.connect()).collect::<anyhow::Result<_>>()?;
        let (first, start) = (unix_seconds(), Instant::now());
        let bytes = thread::scope(|scope| {
            let send = |stream| scope.spawn(move || self.send(stream, start));
            let threads: Vec<_> = streams.into_iter().map(send).collect();
            threads.into_iter().map(joined).sum::<anyhow::Result<u64>>()
        })?;
        Ok(json!({
            "bytes": bytes,
            "seconds": start.elapsed().as_secs_f64(),
            "first": first,
            "last": unix_seconds(),
        }))
    }

    fn connect(&self) -> anyhow::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket
            .bind(&SocketAddrV4::new(self.from, 0).into())
            .with_context(|| format!("cannot send from {}", self.from))?;
        socket
            .connect_timeout(&self.to.into(), PATIENCE)
            .with_context(|| format!("cannot connect to {}", self.to))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(socket.into())
    }

    fn send(&self, mut stream: TcpStream, start: Instant) -> anyhow::Result<u64> {
        let chunk = vec![0x5a_u8; CHUNK_BYTES];
        let mut bytes = 0;
        while start.elapsed() < self.seconds {
            bytes += stream.write(&chunk).context("cannot send")? as u64;
        }
        Ok(bytes)
    }
}

#[derive(Args)]
pub(crate) struct Sink {
    /// Where to listen
    #[arg(long)]
    listen: SocketAddrV4,
    /// How many streams to wait for
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    streams: u16,
}

impl Sink {
    pub(crate) fn run(&self) -> anyhow::Result<Value> {
        let listener = TcpListener::bind(self.listen)
            .with_context(|| format!("cannot listen on {}", self.listen))?;
        say_ready();
        let streams: Vec<_> =
            (0..self.streams).map(|_| Ok(listener.accept()?.0)).collect::<anyhow::Result<_>>()?;
        let arrived = AtomicU64::new(0);
        let open = AtomicUsize::new(streams.len());
        let mut samples = Vec::new();
        thread::scope(|scope| {
            let read = |stream| scope.spawn(|| drain(stream, &arrived, &open));
            let threads: Vec<_> = streams.into_iter().map(read).collect();
            while open.load(Relaxed) > 0 {
                samples.push((unix_seconds(), arrived.load(Relaxed)));
                thread::sleep(SAMPLE);
            }
            samples.push((unix_seconds(), arrived.load(Relaxed)));
            threads.into_iter().try_for_each(joined)
        })?;
        Ok(json!({ "bytes": arrived, "samples": samples }))
    }
}

/// Reads the stream to its end and adds up what came.
fn drain(mut stream: TcpStream, arrived: &AtomicU64, open: &AtomicUsize) -> anyhow::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let result = stream.set_read_timeout(Some(PATIENCE)).and_then(|()| {
        loop {
            match stream.read(&mut chunk)? {
                0 => return Ok(()),
                bytes => arrived.fetch_add(bytes as u64, Relaxed),
            };
        }
    });
    open.fetch_sub(1, Relaxed);
    result.context("a stream broke")
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, anyhow::Result<T>>) -> anyhow::Result<T> {
    thread.join().map_err(|_| anyhow!("a thread panicked"))?
}

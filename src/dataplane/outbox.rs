//! The last step of egress: a plan becomes one `sendmmsg`, and what the kernel refuses is sent
//! another way, or dropped, without costing anybody else.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tracing::info;

use super::errno::{self, SendVerdict};
use super::offload::arena::HeaderArena;
use super::offload::limits::{BATCH_HEADERS_BYTES, BATCH_MAX_DATAGRAMS};
use super::offload::run::{Datagram, Run, RunLimits, SendPlan};
use super::routes::Routes;
use super::segmentation::{Segmentation, Turned};
use super::stats::{Drop, Stats};
use super::sys::poll::{StopSignal, Wake, wait_writable_until};
use super::sys::send::{SendBatch, Sender};
use crate::logging::limit::LogGate;

/// Calls that the kernel may answer with "no memory", or with "full" although the socket could be
/// written just then, before a message is dropped. The latter is not the socket's word: so does a
/// route whose packets wait for IPsec (net/xfrm/xfrm_policy.c, xdst_queue_output).
const MAX_TRIES: u32 = 3;

/// How long a thread that is to stop waits for full sockets, all of them together: in about that
/// time a buffer empties at 1 Gbit/s.
const LAST_WAIT: Duration = Duration::from_millis(100);

/// Sends plans.
pub(super) struct Outbox {
    stats: Arc<Stats>,
    patience: Patience,
    sender: Sender,
    splitter: Sender,
    segmentation: Segmentation,
    news: News,
}

/// What was read and planned together.
pub(super) struct Batch {
    /// What was read.
    pub(super) slab: Box<[u8]>,
    /// Headers written anew.
    pub(super) arena: HeaderArena,
    /// What becomes of it.
    pub(super) plan: SendPlan,
    /// The runs before this one were sent, or dropped.
    next_run: usize,
}

impl Batch {
    /// An empty batch that can hold so many bytes, and any superpacket.
    pub(super) fn new(slab_bytes: usize) -> Batch {
        Batch {
            slab: vec![0; slab_bytes].into(),
            arena: HeaderArena::new(BATCH_HEADERS_BYTES),
            plan: SendPlan::with_capacity(BATCH_MAX_DATAGRAMS, BATCH_MAX_DATAGRAMS),
            next_run: 0,
        }
    }

    /// Begins anew.
    pub(super) fn clear(&mut self, limits: RunLimits) {
        self.plan.clear();
        self.plan.set_limits(limits);
        self.arena.clear();
        self.next_run = 0;
    }

    /// Whether every run was sent.
    #[inline]
    pub(super) fn is_sent(&self) -> bool {
        self.next_run == self.plan.runs().len()
    }
}

/// Where a datagram's bytes are.
#[derive(Clone, Copy)]
struct Bytes<'a> {
    arena: &'a [u8],
    slab: &'a [u8],
}

impl<'a> Bytes<'a> {
    fn of(self, datagram: &Datagram) -> [&'a [u8]; 2] {
        [datagram.head.of(self.arena), datagram.body.of(self.slab)]
    }
}

impl Outbox {
    /// `segments`: whether the sockets can.
    pub(super) fn new(stats: &Arc<Stats>, stop: &Arc<StopSignal>, segments: bool) -> Outbox {
        Outbox {
            stats: Arc::clone(stats),
            patience: Patience { stop: Arc::clone(stop), ends: None },
            sender: Sender::new(BATCH_MAX_DATAGRAMS, 2 * BATCH_MAX_DATAGRAMS),
            splitter: Sender::new(1, 2),
            segmentation: Segmentation::new(segments),
            news: News::default(),
        }
    }

    /// What a run may hold: less while the kernel does not segment.
    pub(super) fn limits(&self) -> RunLimits {
        self.segmentation.limits()
    }

    /// From now on a full socket is waited for [`LAST_WAIT`] in all, then its packets are dropped.
    pub(super) fn hurry(&mut self) {
        self.patience.hurry();
    }

    /// Sends by `socket` the next runs of `batch` until `slice_bytes` are sent or dropped, but one
    /// run at least.
    pub(super) fn send(
        &mut self,
        socket: impl AsFd + Copy,
        batch: &mut Batch,
        slice_bytes: u32,
        routes: &Routes,
    ) {
        let plan = &batch.plan;
        let bytes = Bytes { arena: batch.arena.bytes(), slab: &batch.slab };
        let runs = &plan.runs()[batch.next_run..];
        if batch.next_run == 0 && !runs.is_empty() {
            self.stats.egress.batches.add(1);
        }
        let mut messages = self.sender.batch();
        let mut slice = 0;
        for run in runs {
            let slices = plan.datagrams(run).flat_map(|datagram| bytes.of(datagram));
            let segment_bytes = (run.count > 1).then_some(run.segment_bytes);
            // The sender has room for as many messages and pieces as a plan has.
            messages.push(endpoint(routes, run), segment_bytes, slices);
            slice += run.total_bytes;
            if slice >= slice_bytes {
                break;
            }
        }

        let mut next = 0;
        while next < messages.len() {
            let run = &runs[next];
            match hand_over(&mut messages, next, run.count > 1, socket, &mut self.patience) {
                Ok(count) => {
                    for run in &runs[next..next + count] {
                        if run.count > 1 {
                            self.stats.egress.superpackets_out.add(1);
                            self.news.tell(self.segmentation.accepted(), &self.stats);
                        } else {
                            self.segmentation.sent_single();
                        }
                        sent(&self.stats, routes, run, run.count, run.total_bytes);
                    }
                    next += count;
                    continue;
                }
                Err(SendVerdict::SplitRun) => {
                    self.news.tell(self.segmentation.refused(), &self.stats);
                }
                Err(SendVerdict::DisableSegmentation) => {
                    self.news.tell(self.segmentation.unsupported(), &self.stats);
                }
                Err(_) => {
                    refused(&self.stats, routes, run, run.count);
                    next += 1;
                    continue;
                }
            }
            for datagram in plan.datagrams(run) {
                let mut single = self.splitter.batch();
                single.push(endpoint(routes, run), None, bytes.of(datagram));
                match hand_over(&mut single, 0, false, socket, &mut self.patience) {
                    Ok(_) => sent(&self.stats, routes, run, 1, datagram.len()),
                    Err(_) => refused(&self.stats, routes, run, 1),
                }
            }
            next += 1;
        }
        batch.next_run += next;
    }
}

/// Tells what becomes of segmentation, each turn at most once a minute.
#[derive(Default)]
struct News {
    off: LogGate,
    on: LogGate,
}

impl News {
    #[inline]
    fn tell(&mut self, turned: Option<Turned>, stats: &Stats) {
        if let Some(turned) = turned {
            self.tell_turn(turned, stats);
        }
    }

    #[cold]
    fn tell_turn(&mut self, turned: Turned, stats: &Stats) {
        let on = turned == Turned::On;
        if stats.rungs.udp_gso.swap(on, Relaxed) == on {
            return;
        }
        let (gate, what) = match turned {
            Turned::Off => (&mut self.off, "refuses UDP segmentation: datagrams go out one by one"),
            Turned::On => (&mut self.on, "accepts UDP segmentation again"),
        };
        if let Some(withheld) = gate.pass(Instant::now()) {
            info!("the way to the peers {what}{withheld}");
        }
    }
}

/// How long a full socket is waited for.
struct Patience {
    stop: Arc<StopSignal>,
    /// Until then; without end before the thread is to stop.
    ends: Option<Instant>,
}

impl Patience {
    fn hurry(&mut self) {
        self.ends.get_or_insert_with(|| Instant::now() + LAST_WAIT);
    }

    /// Waits until `socket` can be written; says whether it is worth another try.
    #[cold]
    fn wait_for(&mut self, socket: impl AsFd) -> bool {
        if self.ends.is_none() && self.stop.wait_writable(&socket).ok() == Some(Wake::Stop) {
            self.hurry();
        }
        self.ends.is_none_or(|end| wait_writable_until(socket, end))
    }
}

/// Hands the messages of `batch` from `first` on to the kernel; waits out what passes by itself.
/// Returns how many were sent, or why the first one was not.
fn hand_over(
    batch: &mut SendBatch<'_, '_>,
    first: usize,
    segmented: bool,
    socket: impl AsFd + Copy,
    patience: &mut Patience,
) -> Result<usize, SendVerdict> {
    let mut tries = 0;
    loop {
        let error = match batch.send(socket, first) {
            Ok(count) => return Ok(count),
            Err(error) => error,
        };
        match errno::on_send(error.raw_os_error().unwrap_or(0), segmented) {
            SendVerdict::Retry => {}
            SendVerdict::Wait if tries < MAX_TRIES && patience.wait_for(socket) => tries += 1,
            SendVerdict::RetryThenDrop if tries < MAX_TRIES => tries += 1,
            verdict => return Err(verdict),
        }
    }
}

/// Where the run goes. Its peer was looked up in these very routes; address 0 would be refused by
/// the kernel.
fn endpoint(routes: &Routes, run: &Run) -> SocketAddrV4 {
    const NOWHERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
    routes.get(run.peer).map_or(NOWHERE, |route| route.endpoint)
}

fn sent(stats: &Stats, routes: &Routes, run: &Run, packets: u16, bytes: u32) {
    stats.egress.packets.add(u64::from(packets));
    stats.egress.bytes.add(u64::from(bytes));
    if let Some(route) = routes.get(run.peer) {
        route.stats.egress.packets.add(u64::from(packets));
        route.stats.egress.bytes.add(u64::from(bytes));
    }
}

fn refused(stats: &Stats, routes: &Routes, run: &Run, packets: u16) {
    stats.egress.drop(Drop::KernelRefused, u64::from(packets));
    if let Some(route) = routes.get(run.peer) {
        route.stats.egress.drops.add(u64::from(packets));
    }
}

#[cfg(test)]
mod tests;

//! The last step of egress: a plan becomes one `sendmmsg`, and what the kernel refuses is sent
//! another way, or dropped, without costing anybody else.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tracing::info;

use super::errno::{self, SendVerdict};
use super::offload::arena::HeaderArena;
use super::offload::limits::{BATCH_HEADERS_BYTES, BATCH_MAX_DATAGRAMS};
use super::offload::run::{Datagram, Run, RunLimits, SendPlan};
use super::routes::Routes;
use super::stats::{Drop, Stats};
use super::sys::poll::{StopSignal, Wake};
use super::sys::send::{SendBatch, Sender};
use super::sys::socket::UdpSocket;
use super::worker::Shared;

/// Calls that the kernel may answer with "no memory" before a message is dropped.
const NO_MEMORY_TRIES: u32 = 3;

/// Runs that had to be split one after the other, none accepted whole in between, until
/// segmentation is held to be broken on this socket (as over IPv6 on virtio-net in 5.15).
const MAX_SPLITS_IN_A_ROW: u32 = 16;

/// Sends plans.
pub(super) struct Outbox {
    stats: Arc<Stats>,
    stop: Arc<StopSignal>,
    sender: Sender,
    splitter: Sender,
    limits: RunLimits,
    splits_in_a_row: u32,
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
    pub(super) fn new(shared: &Shared, segments: bool) -> Outbox {
        Outbox {
            stats: Arc::clone(&shared.stats),
            stop: Arc::clone(&shared.stop),
            limits: if segments { RunLimits::default() } else { RunLimits::SINGLE },
            sender: Sender::new(BATCH_MAX_DATAGRAMS, 2 * BATCH_MAX_DATAGRAMS),
            splitter: Sender::new(1, 2),
            splits_in_a_row: 0,
        }
    }

    /// What a run may hold: less once the socket has turned out to be unable to segment.
    pub(super) fn limits(&self) -> RunLimits {
        self.limits
    }

    /// Sends by `socket` the next runs of `batch` until `slice_bytes` are sent, but one run at
    /// least.
    pub(super) fn send(
        &mut self,
        socket: &UdpSocket,
        batch: &mut Batch,
        slice_bytes: u32,
        routes: &Routes,
    ) -> Wake {
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
            match hand_over(&mut messages, next, run.count > 1, socket, &self.stop) {
                Handed::Sent(count) => {
                    for run in &runs[next..next + count] {
                        if run.count > 1 {
                            self.stats.egress.superpackets_out.add(1);
                            self.splits_in_a_row = 0;
                        }
                        sent(&self.stats, routes, run, run.count, run.total_bytes);
                    }
                    next += count;
                    continue;
                }
                Handed::Stop => return Wake::Stop,
                Handed::Refused(SendVerdict::SplitRun) => self.splits_in_a_row += 1,
                Handed::Refused(SendVerdict::DisableSegmentation) => {
                    self.splits_in_a_row = MAX_SPLITS_IN_A_ROW;
                }
                Handed::Refused(_) => {
                    refused(&self.stats, routes, run, run.count);
                    next += 1;
                    continue;
                }
            }
            if self.splits_in_a_row >= MAX_SPLITS_IN_A_ROW {
                disable_segmentation(&mut self.limits, &self.stats);
            }
            for datagram in plan.datagrams(run) {
                let mut single = self.splitter.batch();
                single.push(endpoint(routes, run), None, bytes.of(datagram));
                match hand_over(&mut single, 0, false, socket, &self.stop) {
                    Handed::Sent(_) => sent(&self.stats, routes, run, 1, datagram.len()),
                    Handed::Refused(_) => refused(&self.stats, routes, run, 1),
                    Handed::Stop => return Wake::Stop,
                }
            }
            next += 1;
        }
        batch.next_run += next;
        Wake::Ready
    }
}

/// For all batches to come: every datagram by itself.
fn disable_segmentation(limits: &mut RunLimits, stats: &Stats) {
    *limits = RunLimits::SINGLE;
    if stats.rungs.udp_gso.swap(false, Relaxed) {
        info!(
            "the way to the peers refuses UDP segmentation (UDP_SEGMENT): switched off, datagrams \
             go out one by one"
        );
    }
}

/// What became of the messages from some index on.
enum Handed {
    /// So many were sent.
    Sent(usize),
    /// The first one was not, for good.
    Refused(SendVerdict),
    /// The thread shall stop.
    Stop,
}

/// Hands the messages of `batch` from `first` on to the kernel; waits out what passes by itself.
fn hand_over(
    batch: &mut SendBatch<'_, '_>,
    first: usize,
    segmented: bool,
    socket: &UdpSocket,
    stop: &StopSignal,
) -> Handed {
    let mut tries = 0;
    loop {
        let error = match batch.send(socket, first) {
            Ok(count) => return Handed::Sent(count),
            Err(error) => error,
        };
        match errno::on_send(error.raw_os_error().unwrap_or(0), segmented) {
            SendVerdict::Retry => {}
            SendVerdict::Wait => {
                if let Ok(Wake::Stop) = stop.wait_writable(socket) {
                    return Handed::Stop;
                }
            }
            SendVerdict::RetryThenDrop if tries < NO_MEMORY_TRIES => tries += 1,
            verdict => return Handed::Refused(verdict),
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

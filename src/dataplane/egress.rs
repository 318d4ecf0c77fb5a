//! TUN → UDP: read, look up, cut, batch, send.
//!
//! One thread does all of it, to the end, with buffers that belong to it alone. A batch is what
//! the device holds now, up to the size of the slab; nothing waits for a batch to fill.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::thread::yield_now;
use std::time::Instant;

use super::answers::Answers;
use super::busy_poll::BusyPoll;
use super::errno::{self, TunReadVerdict};
use super::offload::arena::HeaderArena;
use super::offload::limits::{
    BATCH_HEADERS_BYTES, BATCH_MAX_DATAGRAMS, IP_MAX_BYTES, SUPERPACKET_HEADERS_BYTES,
    SUPERPACKET_MAX_SEGMENTS, VNET_HDR_BYTES,
};
use super::offload::run::{Datagram, RunLimits, SendPlan};
use super::offload::segment::{self, SegmentError};
use super::offload::span::Span;
use super::offload::virtio::{GsoKind, VirtioNetHdr};
use super::outbox::Outbox;
use super::packet::icmp::IcmpError;
use super::packet::ipv4::{self, Ipv4View};
use super::routes::{Routes, RoutesReader};
use super::stats::{DirectionStats, Drop, Stats};
use super::sys::poll::{StopSignal, Wake};
use super::sys::socket::UdpSocket;
use super::sys::tun::Tun;
use super::worker::{Exit, Settings};

/// Bytes that one read may need: a virtio header and the largest IPv4 packet.
const READ_BYTES: usize = VNET_HDR_BYTES + IP_MAX_BYTES;

/// Bytes of the slab: room for four superpackets and one more read. What is read stays in a core's
/// L2 cache until it is sent.
const SLAB_BYTES: usize = 5 * 65_600;

/// Small packets that one batch gathers at most.
const MAX_PACKETS_PER_BATCH: usize = 256;

/// Packets begin at multiples of this in the slab: a cache line.
const PACKET_ALIGNMENT: usize = 64;

/// The egress thread's state.
pub(super) struct Egress {
    routes: RoutesReader,
    busy_poll: BusyPoll,
    batch: Batch,
}

/// Everything that a batch is made of, wired once.
struct Batch {
    tun: Arc<Tun>,
    stats: Arc<Stats>,
    stop: Arc<StopSignal>,
    slab: Box<[u8]>,
    plan: SendPlan,
    planner: Planner,
    outbox: Outbox,
    max_packets: usize,
}

/// What came of reading until the device was empty or the batch full.
enum Filled {
    /// There may be more.
    Full,
    /// The device holds nothing now.
    Drained,
    /// The device is gone.
    Gone,
}

impl Egress {
    pub(super) fn new(
        settings: Settings,
        tun: Arc<Tun>,
        socket: Arc<UdpSocket>,
        routes: RoutesReader,
        stats: Arc<Stats>,
        stop: Arc<StopSignal>,
    ) -> Egress {
        let mut plan = SendPlan::with_capacity(BATCH_MAX_DATAGRAMS, BATCH_MAX_DATAGRAMS);
        if !socket.segments() {
            plan.set_limits(RunLimits::SINGLE);
        }
        let batch = Batch {
            slab: vec![0; SLAB_BYTES].into(),
            plan,
            planner: Planner {
                settings,
                arena: HeaderArena::new(BATCH_HEADERS_BYTES),
                answers: Answers::new(Arc::clone(&tun), Arc::clone(&socket)),
            },
            outbox: Outbox::new(socket, Arc::clone(&stats), Arc::clone(&stop)),
            max_packets: if settings.one_by_one { 1 } else { MAX_PACKETS_PER_BATCH },
            tun,
            stats,
            stop,
        };
        Egress { routes, busy_poll: BusyPoll::new(settings.busy_poll), batch }
    }

    /// Carries packets until it is told to stop or the device is gone.
    pub(super) fn run(mut self) -> Exit {
        while !self.batch.stop.is_set() {
            // One snapshot per batch: what was looked up in it is sent by it.
            let routes = self.routes.load();
            let filled = self.batch.fill(routes);
            if self.batch.send(routes) == Wake::Stop {
                return Exit::Stopped;
            }
            match filled {
                Filled::Gone => return Exit::DeviceGone,
                Filled::Full => {}
                Filled::Drained if !self.batch.plan.is_empty() => self.busy_poll.worked(),
                Filled::Drained if self.busy_poll.looks_again(Instant::now()) => yield_now(),
                Filled::Drained => {
                    // An error of poll itself means that the kernel is out of memory: the next
                    // read either finds a packet or brings us back here.
                    let _ = self.batch.stop.wait_readable(&*self.batch.tun);
                }
            }
        }
        Exit::Stopped
    }
}

impl Batch {
    /// Reads what the device holds and plans the sending of it.
    fn fill(&mut self, routes: &Routes) -> Filled {
        let stats = &self.stats.egress;
        self.plan.clear();
        self.planner.arena.clear();
        let mut used = 0;
        for _ in 0..self.max_packets {
            if self.plan.room() < SUPERPACKET_MAX_SEGMENTS
                || self.planner.arena.remaining() < SUPERPACKET_HEADERS_BYTES
            {
                return Filled::Full;
            }
            let Some(room) = self.slab.get_mut(used..used + READ_BYTES) else {
                return Filled::Full;
            };
            let bytes = match self.tun.read(room) {
                Ok(bytes) => bytes,
                Err(error) => match errno::on_tun_read(error.raw_os_error().unwrap_or(0)) {
                    TunReadVerdict::Retry => continue,
                    TunReadVerdict::Wait => return Filled::Drained,
                    TunReadVerdict::Gone => return Filled::Gone,
                    TunReadVerdict::Count => {
                        stats.errors.add(1);
                        self.stop.pause();
                        return Filled::Drained;
                    }
                },
            };
            stats.syscalls.add(1);
            let Some((header, packet)) = room[..bytes].split_first_chunk_mut() else {
                stats.drop(Drop::Malformed, 1);
                continue;
            };
            let (hdr, at) = (VirtioNetHdr::parse(header), used + VNET_HDR_BYTES);
            self.planner.plan(&hdr, packet, at as u32, routes, stats, &mut self.plan);
            used = (used + bytes).next_multiple_of(PACKET_ALIGNMENT);
        }
        Filled::Full
    }

    /// Sends what was planned.
    fn send(&mut self, routes: &Routes) -> Wake {
        if self.plan.is_empty() {
            return Wake::Ready;
        }
        self.stats.egress.batches.add(1);
        self.outbox.send(&mut self.plan, self.planner.arena.bytes(), &self.slab, routes)
    }
}

/// Decides what becomes of each packet.
struct Planner {
    settings: Settings,
    arena: HeaderArena,
    answers: Answers,
}

impl Planner {
    /// Plans one packet or superpacket, which lies at `at` in the slab, or answers it with an ICMP
    /// error, or counts it as dropped.
    fn plan(
        &mut self,
        hdr: &VirtioNetHdr,
        packet: &mut [u8],
        at: u32,
        routes: &Routes,
        stats: &DirectionStats,
        plan: &mut SendPlan,
    ) {
        if packet.first().is_none_or(|first| first >> 4 != 4) {
            return stats.drop(Drop::NotIpv4, 1);
        }
        let Ok(view) = Ipv4View::parse(packet) else {
            return stats.drop(Drop::Malformed, 1);
        };
        let (destination, total_bytes) = (view.dst(), view.total_len());
        let (header_bytes, dont_fragment) = (view.header_len(), view.dont_fragment());
        let packet = &mut packet[..total_bytes];

        let Some(peer) = routes.lookup(destination) else {
            stats.drop(Drop::NoRoute, 1);
            return self.answer(IcmpError::NetUnreachable, packet, routes, stats);
        };
        if ipv4::decrement_ttl(&mut packet[..header_bytes]).is_err() {
            stats.drop(Drop::TtlExpired, 1);
            return self.answer(IcmpError::TimeExceeded, packet, routes, stats);
        }

        let mtu = self.settings.mtu;
        // The batch has room for every superpacket, or it would have been sent before the read.
        let mut push = |datagram| {
            let _ = plan.push(peer, datagram);
        };
        let planned = if hdr.kind() == Ok(GsoKind::None) {
            if total_bytes > usize::from(mtu) {
                Err(SegmentError::TooBig { bytes: total_bytes, mtu })
            } else {
                segment::finish_checksum(packet, hdr)
                    .map(|()| push(Datagram::whole(Span::new(at, total_bytes as u32))))
            }
        } else {
            stats.superpackets_in.add(1);
            segment::segment(packet, at, hdr, mtu, &mut self.arena, &mut push).map(|_| ())
        };
        match planned {
            Ok(()) => {}
            Err(SegmentError::TooBig { .. }) => {
                stats.drop(Drop::TooBig, 1);
                if dont_fragment {
                    self.answer(IcmpError::FragmentationNeeded { mtu }, packet, routes, stats);
                }
            }
            Err(_) => stats.drop(Drop::Malformed, 1),
        }
    }

    fn answer(
        &mut self,
        error: IcmpError,
        offender: &[u8],
        routes: &Routes,
        stats: &DirectionStats,
    ) {
        if self.answers.tell_kernel(error, offender, routes) {
            stats.icmp_errors.add(1);
        }
    }
}

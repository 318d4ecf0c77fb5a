//! TUN → UDP: read, look up, cut, batch, send.
//!
//! One thread does all of it, to the end, with buffers that belong to it alone. A batch is what
//! the device holds now, up to the size of the slab; nothing waits for a batch to fill.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::answers::Answers;
use super::busy_poll::BusyPoll;
use super::errno::{self, TunReadVerdict};
use super::offload::arena::HeaderArena;
use super::offload::limits::{
    IP_MAX_BYTES, SUPERPACKET_HEADERS_BYTES, SUPERPACKET_MAX_SEGMENTS, UDP_MAX_PAYLOAD_BYTES,
    VNET_HDR_BYTES,
};
use super::offload::run::{Datagram, SendPlan};
use super::offload::segment::{self, SegmentError};
use super::offload::span::Span;
use super::offload::virtio::{GsoKind, VirtioNetHdr};
use super::outbox::{Batch, Outbox};
use super::packet::icmp::IcmpError;
use super::packet::ipv4::{self, Ipv4View};
use super::routes::{Routes, RoutesReader};
use super::stats::{Drop, Stats};
use super::sys::poll::StopSignal;
use super::sys::socket::UdpSocket;
use super::sys::tun::Tun;
use super::worker::{Exit, Settings, Shared};

/// Bytes that one read may need: a virtio header and the largest IPv4 packet.
const READ_BYTES: usize = VNET_HDR_BYTES + IP_MAX_BYTES;

/// Bytes of a lane's slab: room for four superpackets and one more read. What is read stays in a
/// core's L2 cache until it is sent.
const SLAB_BYTES: usize = 5 * 65_600;

/// Small packets that one batch gathers at most.
const MAX_PACKETS_PER_BATCH: usize = 256;

/// Bytes that a lane sends before it is another lane's turn: a run of full size, some 50 µs of a
/// core's time.
const SLICE_BYTES: u32 = UDP_MAX_PAYLOAD_BYTES as u32;

/// Packets begin at multiples of this in the slab: a cache line.
const PACKET_ALIGNMENT: usize = 64;

/// The egress thread's state.
pub(super) struct Egress {
    stop: Arc<StopSignal>,
    routes: RoutesReader,
    busy_poll: BusyPoll,
    lanes: Vec<Lane>,
    carrier: Carrier,
}

/// The flows that share one queue of the device, and the batch that is on its way. A lane waits
/// for another lane's slice at most: a bulk transfer does not hold up a question in another lane.
struct Lane {
    queue: usize,
    socket: Arc<UdpSocket>,
    batch: Batch,
    /// What the batch was looked up in.
    routes: Option<Arc<Routes>>,
    /// Whether the device may hold more for this lane.
    ready: bool,
}

/// What carries the batches of all lanes.
struct Carrier {
    tun: Arc<Tun>,
    stats: Arc<Stats>,
    stop: Arc<StopSignal>,
    planner: Planner,
    outbox: Outbox,
    max_packets: usize,
}

/// What came of reading.
#[derive(PartialEq, Eq)]
enum Filled {
    /// A batch, perhaps an empty one.
    Batch,
    /// The device is gone.
    Gone,
}

impl Egress {
    /// Carries `queues` of the device, each by its socket.
    pub(super) fn new(
        shared: &Shared,
        queues: Vec<(usize, Arc<UdpSocket>)>,
        routes: RoutesReader,
    ) -> Egress {
        let lanes: Vec<Lane> =
            queues.into_iter().map(|(queue, socket)| Lane::new(queue, socket)).collect();
        let segments = lanes.iter().all(|lane| lane.socket.segments());
        let carrier = Carrier {
            planner: Planner {
                settings: shared.settings,
                stats: Arc::clone(&shared.stats),
                answers: Answers::new(shared),
            },
            outbox: Outbox::new(&shared.stats, &shared.stop, segments),
            max_packets: if shared.settings.one_by_one { 1 } else { MAX_PACKETS_PER_BATCH },
            tun: Arc::clone(&shared.tun),
            stats: Arc::clone(&shared.stats),
            stop: Arc::clone(&shared.stop),
        };
        let busy_poll = BusyPoll::new(shared.settings.busy_poll);
        Egress { stop: Arc::clone(&shared.stop), routes, busy_poll, lanes, carrier }
    }

    /// Carries packets until it is told to stop or the device is gone.
    pub(super) fn run(mut self) -> Exit {
        let exit = self.carry();
        // What was taken from the device is nobody else's to send.
        self.carrier.outbox.hurry();
        for lane in &mut self.lanes {
            while !lane.batch.is_sent() {
                self.carrier.send_slice(lane);
            }
        }
        exit
    }

    fn carry(&mut self) -> Exit {
        while !self.stop.is_set() {
            self.look();
            for lane in self.lanes.iter_mut().filter(|lane| lane.is_busy()) {
                if lane.batch.is_sent() {
                    // What is still in the device is the next daemon's.
                    if self.stop.is_set() {
                        break;
                    }
                    if self.carrier.fill(lane, self.routes.load()) == Filled::Gone {
                        return Exit::DeviceGone;
                    }
                }
                self.carrier.send_slice(lane);
            }
        }
        Exit::Stopped
    }

    /// Finds out which lanes hold packets; waits if none does.
    fn look(&mut self) {
        let busy = self.lanes.iter().any(Lane::is_busy);
        let tun = &self.carrier.tun;
        let fds = self.lanes.iter().map(|lane| tun.queue(lane.queue));
        let found = self.busy_poll.look(&self.stop, fds, busy);
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            lane.ready |= found.contains(index);
        }
    }
}

impl Lane {
    fn new(queue: usize, socket: Arc<UdpSocket>) -> Lane {
        Lane { queue, socket, batch: Batch::new(SLAB_BYTES), routes: None, ready: false }
    }

    /// Whether there is anything to read or to send.
    fn is_busy(&self) -> bool {
        self.ready || !self.batch.is_sent()
    }
}

impl Carrier {
    /// Reads what the device holds for `lane` and plans the sending of it.
    fn fill(&mut self, lane: &mut Lane, routes: &Arc<Routes>) -> Filled {
        let stats = &self.stats.egress;
        // What was looked up in this snapshot is sent by it.
        lane.routes = Some(Arc::clone(routes));
        let batch = &mut lane.batch;
        batch.clear(self.outbox.limits());
        let mut used = 0;
        for _ in 0..self.max_packets {
            if batch.plan.room() < SUPERPACKET_MAX_SEGMENTS
                || batch.arena.remaining() < SUPERPACKET_HEADERS_BYTES
            {
                break;
            }
            let Some(room) = batch.slab.get_mut(used..used + READ_BYTES) else { break };
            let bytes = match self.tun.read(lane.queue, room) {
                Ok(bytes) => bytes,
                Err(error) => match errno::on_tun_read(error.raw_os_error().unwrap_or(0)) {
                    TunReadVerdict::Retry => continue,
                    TunReadVerdict::Wait => {
                        lane.ready = false;
                        break;
                    }
                    TunReadVerdict::Gone => return Filled::Gone,
                    TunReadVerdict::Count => {
                        stats.errors.add(1);
                        self.stop.pause();
                        break;
                    }
                },
            };
            stats.syscalls.add(1);
            let Some((header, packet)) = room[..bytes].split_first_chunk_mut() else {
                stats.drop(Drop::Malformed, 1);
                continue;
            };
            let (hdr, at) = (VirtioNetHdr::parse(header), used + VNET_HDR_BYTES);
            self.planner.plan(&hdr, packet, at as u32, routes, &mut batch.arena, &mut batch.plan);
            used = (used + bytes).next_multiple_of(PACKET_ALIGNMENT);
        }
        Filled::Batch
    }

    /// Sends the next slice of the lane's batch.
    fn send_slice(&mut self, lane: &mut Lane) {
        let Some(routes) = &lane.routes else { return };
        self.outbox.send(&*lane.socket, &mut lane.batch, SLICE_BYTES, routes);
        if lane.batch.is_sent() {
            // An idle lane must not keep an old table alive.
            lane.routes = None;
        }
    }
}

/// Decides what becomes of each packet.
struct Planner {
    settings: Settings,
    stats: Arc<Stats>,
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
        arena: &mut HeaderArena,
        plan: &mut SendPlan,
    ) {
        if packet.first().is_none_or(|first| first >> 4 != 4) {
            return self.stats.egress.drop(Drop::NotIpv4, 1);
        }
        let Ok(view) = Ipv4View::parse(packet) else {
            return self.stats.egress.drop(Drop::Malformed, 1);
        };
        let (destination, total_bytes) = (view.dst(), view.total_len());
        let (header_bytes, dont_fragment) = (view.header_len(), view.dont_fragment());
        let packet = &mut packet[..total_bytes];

        let Some(peer) = routes.lookup(destination) else {
            self.stats.egress.drop(Drop::NoRoute, 1);
            return self.answer(IcmpError::NetUnreachable, packet, routes);
        };
        if ipv4::decrement_ttl(&mut packet[..header_bytes]).is_err() {
            self.stats.egress.drop(Drop::TtlExpired, 1);
            return self.answer(IcmpError::TimeExceeded, packet, routes);
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
            self.stats.egress.superpackets_in.add(1);
            segment::segment(packet, at, hdr, mtu, arena, &mut push).map(|_| ())
        };
        match planned {
            Ok(()) => {}
            Err(SegmentError::TooBig { .. }) => {
                self.stats.egress.drop(Drop::TooBig, 1);
                if dont_fragment {
                    self.answer(IcmpError::FragmentationNeeded { mtu }, packet, routes);
                }
            }
            Err(_) => self.stats.egress.drop(Drop::Malformed, 1),
        }
    }

    fn answer(&mut self, error: IcmpError, offender: &[u8], routes: &Routes) {
        if self.answers.tell_kernel(error, offender, routes) {
            self.stats.egress.icmp_errors.add(1);
        }
    }
}

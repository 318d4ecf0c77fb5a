//! UDP → TUN: receive, check, merge, write.
//!
//! One thread does all of it, to the end, with buffers that belong to it alone. A batch is what
//! the socket holds now, up to the number of slots.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tracing::info;

use super::admission::Admission;
use super::answers::Answers;
use super::busy_poll::BusyPoll;
use super::errno::{self, ReceiveVerdict, TunWriteVerdict};
use super::offload::coalesce::{Coalescer, Head, Item, MergeCaps, Pushed};
use super::offload::limits::{BATCH_MAX_PACKETS, VNET_HDR_BYTES};
use super::offload::span::Span;
use super::packet::icmp::IcmpError;
use super::packet::{flow, ipv4};
use super::routes::{Routes, RoutesReader};
use super::stats::{Drop, Stats};
use super::sys::poll::{StopSignal, Wake};
use super::sys::receive::{Message, Receiver};
use super::sys::socket::UdpSocket;
use super::sys::tun::{Tun, TunOffload, TunWriter};
use super::worker::{Exit, Shared};

/// Slots of a socket that merges: the kernel fills each with a train of up to 65,507 bytes.
const TRAIN_SLOTS: usize = 8;
/// Bytes of such a slot; a shorter one would cut trains, and then all of a train is dropped.
const TRAIN_SLOT_BYTES: usize = 65_536;

/// Slots of a socket that does not merge, one datagram each; fewer of larger ones.
const DATAGRAM_SLOTS: usize = 64;
/// Bytes of such a slot, unless our own MTU is larger: more than any datagram of a peer with jumbo
/// frames. What a peer of a still larger MTU sends is dropped, and counted as truncated.
const DATAGRAM_SLOT_BYTES: usize = 9_216;

/// Slots, and bytes of each, for datagrams of up to `mtu` bytes: in the same memory, whatever it is.
fn datagram_slots(mtu: u16) -> (usize, usize) {
    let slot_bytes = DATAGRAM_SLOT_BYTES.max(mtu.into());
    (DATAGRAM_SLOTS * DATAGRAM_SLOT_BYTES / slot_bytes, slot_bytes)
}

/// The ingress thread's state.
pub(super) struct Ingress {
    stop: Arc<StopSignal>,
    routes: RoutesReader,
    busy_poll: BusyPoll,
    lanes: Vec<Lane>,
    receiver: Receiver,
    slots: usize,
    batch: Batch,
}

/// The flows that arrive in one socket. A lane waits for one receive of each other lane at most: a
/// bulk transfer does not hold up a question in another lane.
struct Lane {
    socket: Arc<UdpSocket>,
    /// Whether the socket may hold more.
    ready: bool,
}

/// What a batch becomes, wired once.
struct Batch {
    tun: Arc<Tun>,
    stats: Arc<Stats>,
    stop: Arc<StopSignal>,
    admission: Admission,
    coalescer: Coalescer,
    writer: TunWriter,
    answers: Answers,
}

/// What came of writing.
#[derive(PartialEq, Eq)]
enum Written {
    Done,
    Stop,
    Gone,
}

impl Ingress {
    pub(super) fn new(shared: &Shared, routes: RoutesReader) -> Ingress {
        let settings = shared.settings;
        let lanes = shared.receivers.iter();
        let lanes = lanes.map(|socket| Lane { socket: Arc::clone(socket), ready: false });
        let (slots, slot_bytes) = if shared.receivers.iter().all(|socket| socket.merges()) {
            (TRAIN_SLOTS, TRAIN_SLOT_BYTES)
        } else {
            datagram_slots(settings.mtu)
        };
        let slots = if settings.one_by_one { 1 } else { slots };
        let caps = MergeCaps {
            tcp: shared.tun.offload() >= TunOffload::Tso,
            udp: shared.tun.offload() >= TunOffload::TsoUso,
        };
        let batch = Batch {
            admission: Admission::new(settings.source_check, Arc::clone(&shared.stats)),
            coalescer: Coalescer::new(caps, BATCH_MAX_PACKETS),
            writer: TunWriter::new(),
            answers: Answers::new(shared),
            tun: Arc::clone(&shared.tun),
            stats: Arc::clone(&shared.stats),
            stop: Arc::clone(&shared.stop),
        };
        Ingress {
            stop: Arc::clone(&shared.stop),
            routes,
            busy_poll: BusyPoll::new(settings.busy_poll),
            lanes: lanes.collect(),
            receiver: Receiver::new(slots, slot_bytes),
            slots,
            batch,
        }
    }

    /// Carries packets until it is told to stop or the device is gone.
    pub(super) fn run(mut self) -> Exit {
        while !self.stop.is_set() {
            self.look();
            for lane in self.lanes.iter_mut().filter(|lane| lane.ready) {
                let messages = match self.receiver.receive(&*lane.socket) {
                    Ok(messages) => messages,
                    Err(error) => match errno::on_receive(error.raw_os_error().unwrap_or(0)) {
                        ReceiveVerdict::Retry => continue,
                        ReceiveVerdict::Wait => {
                            lane.ready = false;
                            continue;
                        }
                        ReceiveVerdict::Count => {
                            self.batch.stats.ingress.errors.add(1);
                            self.stop.pause();
                            continue;
                        }
                    },
                };
                // Fewer than fit: there were no more.
                lane.ready = messages == self.slots;
                let routes = self.routes.load();
                match self.batch.carry(&mut self.receiver, messages, &lane.socket, routes) {
                    Written::Done => {}
                    Written::Stop => return Exit::Stopped,
                    Written::Gone => return Exit::DeviceGone,
                }
            }
        }
        Exit::Stopped
    }

    /// Finds out which lanes hold datagrams; waits if none does.
    fn look(&mut self) {
        let busy = self.lanes.iter().any(|lane| lane.ready);
        let fds = self.lanes.iter().map(|lane| lane.socket.as_fd());
        let found = self.busy_poll.look(&self.stop, fds, busy);
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            lane.ready |= found.contains(index);
        }
    }
}

impl Batch {
    /// Carries the messages of one receive.
    fn carry(
        &mut self,
        receiver: &mut Receiver,
        messages: usize,
        socket: &UdpSocket,
        routes: &Routes,
    ) -> Written {
        self.stats.ingress.syscalls.add(1);
        self.stats.ingress.batches.add(1);
        for message in 0..messages {
            let message = receiver.message(message);
            if let Some(drops) = message.kernel_drops {
                let new = socket.uncounted(drops);
                self.stats.ingress.kernel_drops.add(u64::from(new));
            }
            if message.len > message.stride {
                self.stats.ingress.superpackets_in.add(1);
            }
            if message.truncated {
                self.stats.ingress.drop(Drop::Truncated, 1);
                continue;
            }
            if !self.admission.admits_sender(&message, routes) {
                continue;
            }
            let written = self.unpack(receiver.slab_mut(), &message, routes);
            if written != Written::Done {
                return written;
            }
        }
        self.write_out(receiver.slab())
    }

    /// Checks each datagram of a train and hands it to the coalescer.
    fn unpack(&mut self, slab: &mut [u8], message: &Message, routes: &Routes) -> Written {
        let end = message.offset + message.len;
        for start in (message.offset..end).step_by(message.stride) {
            let datagram = &mut slab[start..end.min(start + message.stride)];
            let Some(admitted) = self.admission.admits(datagram, message, routes) else {
                continue;
            };
            let packet = &mut datagram[..admitted.total_bytes];
            if ipv4::decrement_ttl(&mut packet[..admitted.header_bytes]).is_err() {
                self.stats.ingress.drop(Drop::TtlExpired, 1);
                if self.answers.tell_peer(IcmpError::TimeExceeded, packet, routes) {
                    self.stats.ingress.icmp_errors.add(1);
                }
                continue;
            }
            if let Some(bytes) = message.fragment_bytes
                && self.answers.tell_peer_of_fragments(bytes, packet, routes)
            {
                self.stats.ingress.icmp_errors.add(1);
            }
            let packet = Span::new(start as u32, admitted.total_bytes as u32);
            if self.coalescer.push(slab, packet) == Pushed::Full {
                let written = self.write_out(slab);
                if written != Written::Done {
                    return written;
                }
                // An empty coalescer takes every packet.
                self.coalescer.push(slab, packet);
            }
        }
        Written::Done
    }

    /// Writes what the coalescer holds to the device, in order.
    fn write_out(&mut self, slab: &[u8]) -> Written {
        self.coalescer.finish(slab);
        let mut refused_merge = false;
        let mut written = Written::Done;
        let mut device = Device { tun: &self.tun, stop: &self.stop, writer: &mut self.writer };
        for item in self.coalescer.items() {
            let merged = item.packets > 1;
            let head = match item.head {
                Head::Slab(packet) => packet.of(slab),
                Head::Arena(head) => head.of(self.coalescer.arena()),
            };
            let parts = std::iter::once(head).chain(item.bodies().map(|body| body.of(slab)));
            let queue = self.tun.queue_of(flow::hash(head));
            let stats = &self.stats.ingress;
            written = match device.write(queue, &item.vnet_hdr, parts, merged) {
                Outcome::Written => {
                    stats.superpackets_out.add(u64::from(merged));
                    stats.syscalls.add(1);
                    stats.packets.add(u64::from(item.packets));
                    stats.bytes.add(u64::from(item.total_bytes));
                    Written::Done
                }
                Outcome::Refused(TunWriteVerdict::DisableMerging) => {
                    refused_merge = true;
                    device.write_originals(queue, &item, slab, &self.stats)
                }
                Outcome::Refused(TunWriteVerdict::Gone) => Written::Gone,
                Outcome::Refused(_) => {
                    stats.drop(Drop::KernelRefused, u64::from(item.packets));
                    Written::Done
                }
                Outcome::Stop => Written::Stop,
            };
            if written != Written::Done {
                break;
            }
        }
        self.coalescer.clear();
        if refused_merge {
            self.disable_merging();
        }
        written
    }

    fn disable_merging(&mut self) {
        self.coalescer.set_caps(MergeCaps { tcp: false, udp: false });
        if self.stats.rungs.merging.swap(false, Relaxed) {
            info!("this kernel refuses merged packets on the TUN device: merging is switched off");
        }
    }
}

/// Where packets are written to.
struct Device<'a> {
    tun: &'a Tun,
    stop: &'a StopSignal,
    writer: &'a mut TunWriter,
}

/// What became of one packet.
enum Outcome {
    Written,
    Refused(TunWriteVerdict),
    Stop,
}

impl Device<'_> {
    /// Writes one packet; waits out what passes by itself.
    fn write<'p>(
        &mut self,
        queue: usize,
        vnet_hdr: &'p [u8; VNET_HDR_BYTES],
        parts: impl Iterator<Item = &'p [u8]>,
        merged: bool,
    ) -> Outcome {
        let mut packet = self.writer.gather(self.tun, queue, vnet_hdr, parts);
        loop {
            let Err(error) = packet.write() else {
                return Outcome::Written;
            };
            match errno::on_tun_write(error.raw_os_error().unwrap_or(0), merged) {
                TunWriteVerdict::Retry => {}
                TunWriteVerdict::Wait => {
                    if let Ok(Wake::Stop) = self.stop.wait_writable(self.tun.queue(queue)) {
                        return Outcome::Stop;
                    }
                }
                verdict => return Outcome::Refused(verdict),
            }
        }
    }

    /// Writes the packets that `item` was merged from as they came: they still lie in the slab,
    /// each header before its body.
    fn write_originals(
        &mut self,
        queue: usize,
        item: &Item<'_>,
        slab: &[u8],
        stats: &Stats,
    ) -> Written {
        let Head::Arena(headers) = item.head else { return Written::Done };
        for body in item.bodies() {
            let packet = Span::new(body.offset - headers.len, body.len + headers.len);
            let parts = std::iter::once(packet.of(slab));
            match self.write(queue, &[0; VNET_HDR_BYTES], parts, false) {
                Outcome::Written => {
                    stats.ingress.packets.add(1);
                    stats.ingress.bytes.add(u64::from(packet.len));
                }
                Outcome::Refused(TunWriteVerdict::Gone) => return Written::Gone,
                Outcome::Refused(_) => stats.ingress.drop(Drop::KernelRefused, 1),
                Outcome::Stop => return Written::Stop,
            }
        }
        Written::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_hold_what_the_tunnel_carries_in_the_same_memory() {
        assert_eq!(datagram_slots(1472), (DATAGRAM_SLOTS, DATAGRAM_SLOT_BYTES));
        for mtu in [68, 9_216, 9_217, 15_972, 65_507, u16::MAX] {
            let (slots, slot_bytes) = datagram_slots(mtu);
            assert!(slots >= 9 && slot_bytes >= usize::from(mtu), "{mtu}");
            assert!(slots * slot_bytes <= DATAGRAM_SLOTS * DATAGRAM_SLOT_BYTES, "{mtu}");
        }
    }
}

//! Merging packets that came by UDP into superpackets before they are written to the TUN.
//!
//! # Order
//!
//! Items are written in the order in which they were opened, and a packet is merged only into the
//! newest item of its flow: nothing of that flow was kept behind it, so nothing is overtaken. A
//! packet that cannot merge closes its flow's item; one whose flow cannot be told (a fragment, a
//! broken header) closes all items that it could belong to, those of its protocol between its two
//! addresses (offload-pitfalls D6 to D8). A pure ACK closes its flow's item too, as the kernel's
//! GRO does: letting it pass (D15) would deliver it behind data that followed it.
//!
//! # Integrity
//!
//! A merged item leaves with `NEEDS_CSUM`: the kernel vouches for its bytes. So the IP and the
//! transport checksum of every packet are verified before it merges, and a packet with a wrong one
//! is kept as it came, for the receiver to drop (D21). The first packet of an item is verified
//! when the second arrives: what never merges is never summed.
#![forbid(unsafe_code)]

mod admit;
mod flows;

use super::arena::HeaderArena;
use super::limits::{IP_MAX_BYTES, TCP_MERGE_MAX_SEGMENTS, UDP_MAX_SEGMENTS, VNET_HDR_BYTES};
use super::segment::put16;
use super::span::Span;
use super::virtio::VirtioNetHdr;
use crate::dataplane::packet::{checksum, ipv4, tcp};
use admit::{Candidate, Class, FlowKey};
use flows::Flows;

/// Headers of a merged item: without IP options (D10).
const ITEM_HEADERS_MAX_BYTES: usize = VNET_HDR_BYTES + ipv4::HEADER_BYTES + tcp::HEADER_MAX_BYTES;

/// What may be merged: what the TUN's offloads take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeCaps {
    /// TCP segments (`TUN_F_TSO4`).
    pub tcp: bool,
    /// UDP datagrams (`TUN_F_USO4`, Linux 6.2).
    pub udp: bool,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It opened an item of its own.
    Kept,
    /// It was appended to an item.
    Merged,
    /// The batch is full and the packet was not taken: finish, write, clear, push it again.
    Full,
}

/// Where the first bytes behind an item's virtio header stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// The whole packet, as it came, in the slab.
    Slab(Span),
    /// The headers of a merged item, in [`Coalescer::arena`].
    Arena(Span),
}

/// One write to the TUN.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// The virtio header: all zero for a packet as it came.
    pub vnet_hdr: [u8; VNET_HDR_BYTES],
    /// What follows it.
    pub head: Head,
    /// How many packets the item holds.
    pub packets: u16,
    /// Length of the item without the virtio header, in bytes.
    pub total_bytes: u32,
    first_body: Span,
    pieces: &'a [Piece],
    next: u32,
}

impl<'a> Item<'a> {
    /// The payloads that follow the head of a merged item, in the slab; none for a packet as it
    /// came.
    #[inline]
    pub fn bodies(&self) -> impl Iterator<Item = Span> + use<'a> {
        let (pieces, mut next) = (self.pieces, self.next);
        let rest = std::iter::from_fn(move || {
            let piece = pieces.get(next as usize)?;
            next = piece.next;
            Some(piece.body)
        });
        let first = (!self.first_body.is_empty()).then_some(self.first_body);
        first.into_iter().chain(rest)
    }

    /// The headers of a merged item together with the virtio header right before them, in
    /// [`Coalescer::arena`]: one piece to write instead of two.
    #[inline]
    pub fn framed_head(&self) -> Option<Span> {
        const FRAME: u32 = VNET_HDR_BYTES as u32;
        match self.head {
            Head::Arena(head) => Some(Span::new(head.offset - FRAME, head.len + FRAME)),
            Head::Slab(_) => None,
        }
    }
}

/// A packet's payload behind the one that it was merged to.
#[derive(Clone, Copy, Debug)]
struct Piece {
    body: Span,
    next: u32,
}

/// What is known of an item while its batch is gathered.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// The packet that opened it.
    packet: Span,
    key: FlowKey,
    /// What the next packet must look like; the sizes are those of the first.
    shape: Candidate,
    /// Whether the next packet of the flow may merge. At most one entry of a flow is open and to be
    /// found, and it is the flow's newest.
    open: bool,
    /// Whether the first packet's checksums were found right.
    verified: bool,
    push: bool,
    packets: u16,
    total_bytes: u32,
    first_piece: u32,
    last_piece: u32,
    /// The headers written anew, behind their virtio header in the arena; empty until finished.
    head: Span,
}

const NO_PIECE: u32 = u32::MAX;

/// Gathers one batch of packets into items. All its arrays are made once.
#[derive(Debug)]
pub struct Coalescer {
    caps: MergeCaps,
    entries: Vec<Entry>,
    pieces: Vec<Piece>,
    max_packets: usize,
    flows: Flows,
    /// The entry that was opened or grown last: the next packet is most often of the same flow.
    latest: usize,
    arena: HeaderArena,
}

impl Coalescer {
    /// A coalescer for batches of at most `max_packets`. Nothing is allocated after this.
    pub fn new(caps: MergeCaps, max_packets: usize) -> Self {
        let max_packets = max_packets.min(u32::MAX as usize);
        Self {
            caps,
            entries: Vec::with_capacity(max_packets),
            pieces: Vec::with_capacity(max_packets),
            max_packets,
            flows: Flows::new(),
            latest: usize::MAX,
            // A merged item took two packets at least.
            arena: HeaderArena::new(max_packets / 2 * ITEM_HEADERS_MAX_BYTES),
        }
    }

    /// Changes what may be merged from now on. What was gathered before grows no more.
    pub fn set_caps(&mut self, caps: MergeCaps) {
        self.caps = caps;
        self.flows.bar(None, self.entries.len());
    }

    /// Forgets the batch.
    #[inline]
    pub fn clear(&mut self) {
        self.entries.clear();
        self.pieces.clear();
        self.flows.clear();
        self.latest = usize::MAX;
        self.arena.clear();
    }

    /// Whether the batch is empty.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes one IPv4 packet, whose TTL has been decremented in place. All packets of a batch
    /// stand in the same slab, which must not change until the items are written.
    #[inline]
    pub fn push(&mut self, slab: &[u8], packet: Span) -> Pushed {
        if self.entries.len() + self.pieces.len() >= self.max_packets {
            return Pushed::Full;
        }
        match admit::classify(packet.of(slab), self.caps) {
            Class::Candidate(key, candidate) => {
                if let Some(index) = self.newest_open(&key) {
                    let barred = self.flows.is_barred(&key, index);
                    if !barred && self.grow(index, slab, packet, &candidate) {
                        self.latest = index;
                        return Pushed::Merged;
                    }
                    self.close(index);
                }
                self.keep(packet, key, candidate);
                self.flows.insert(&self.entries, self.latest);
            }
            Class::Lone(key) => {
                if let Some(index) = self.newest_open(&key) {
                    self.close(index);
                }
                self.keep(packet, key, Candidate::NONE);
            }
            Class::Opaque(kin) => {
                self.flows.bar(kin, self.entries.len());
                self.keep(packet, FlowKey::NONE, Candidate::NONE);
            }
            Class::Foreign => self.keep(packet, FlowKey::NONE, Candidate::NONE),
        }
        Pushed::Kept
    }

    /// Writes the headers of all merged items. To be called once, before [`items`](Self::items);
    /// what is pushed later opens new items.
    pub fn finish(&mut self, slab: &[u8]) {
        self.latest = usize::MAX;
        for entry in &mut self.entries {
            entry.open = false;
            if entry.packets > 1 && entry.head.is_empty() {
                write_headers(entry, slab, &mut self.arena);
            }
        }
    }

    /// The items in the order in which they are to be written.
    #[inline]
    pub fn items(&self) -> impl ExactSizeIterator<Item = Item<'_>> {
        self.entries.iter().map(|entry| self.item(entry))
    }

    /// The slab that [`Head::Arena`] points into.
    #[inline]
    pub fn arena(&self) -> &[u8] {
        self.arena.bytes()
    }

    #[inline]
    fn item(&self, entry: &Entry) -> Item<'_> {
        let framed = entry.head.of(self.arena.bytes());
        let (vnet_hdr, head, first_body) = match framed.first_chunk::<VNET_HDR_BYTES>() {
            Some(vnet_hdr) => {
                let header_len = u32::from(entry.shape.header_len);
                let frame = VNET_HDR_BYTES as u32;
                let head = Span::new(entry.head.offset + frame, header_len);
                let body = Span::new(
                    entry.packet.offset.saturating_add(header_len),
                    u32::from(entry.shape.payload_len),
                );
                (*vnet_hdr, Head::Arena(head), body)
            }
            None => ([0; VNET_HDR_BYTES], Head::Slab(entry.packet), Span::default()),
        };
        Item {
            vnet_hdr,
            head,
            packets: entry.packets,
            total_bytes: entry.total_bytes,
            first_body,
            pieces: &self.pieces,
            next: entry.first_piece,
        }
    }

    /// The flow's open entry.
    #[inline]
    fn newest_open(&self, key: &FlowKey) -> Option<usize> {
        match self.entries.get(self.latest) {
            Some(latest) if latest.open && latest.key == *key => Some(self.latest),
            _ => self.flows.find(&self.entries, key),
        }
    }

    #[inline]
    fn close(&mut self, index: usize) {
        if let Some(entry) = self.entries.get_mut(index) {
            entry.open = false;
        }
    }

    /// Opens an entry for `packet`.
    #[inline]
    fn keep(&mut self, packet: Span, key: FlowKey, shape: Candidate) {
        self.latest = self.entries.len();
        self.entries.push(Entry {
            packet,
            key,
            shape: shape.next(),
            // Push ends a group, be it of one (D14); what has no payload cannot lead one (D16).
            open: shape.payload_len > 0 && !shape.push,
            verified: false,
            push: shape.push,
            packets: 1,
            total_bytes: packet.len,
            first_piece: NO_PIECE,
            last_piece: NO_PIECE,
            head: Span::default(),
        });
    }

    /// Appends the packet to the entry if all of it fits and the bytes are proven.
    #[inline]
    fn grow(&mut self, index: usize, slab: &[u8], packet: Span, candidate: &Candidate) -> bool {
        let Some(entry) = self.entries.get_mut(index) else {
            return false;
        };
        let max_packets =
            if entry.key.is_tcp() { TCP_MERGE_MAX_SEGMENTS } else { UDP_MAX_SEGMENTS };
        let payload_len = u32::from(candidate.payload_len);
        if usize::from(entry.packets) >= max_packets
            || (entry.total_bytes + payload_len) as usize > IP_MAX_BYTES
            || !candidate.continues(&entry.shape)
        {
            return false;
        }
        let (first, bytes) = (entry.packet.of(slab), packet.of(slab));
        let options = usize::from(candidate.options_at)..usize::from(candidate.header_len);
        if first.get(options.clone()) != bytes.get(options)
            || !(entry.verified || admit::checksums_ok(first))
        {
            return false;
        }
        entry.verified = true;
        if !admit::checksums_ok(bytes) {
            return false;
        }
        let piece = self.pieces.len() as u32;
        let body = packet.offset.saturating_add(u32::from(candidate.header_len));
        self.pieces.push(Piece { body: Span::new(body, payload_len), next: NO_PIECE });
        match self.pieces.get_mut(entry.last_piece as usize) {
            Some(last) => last.next = piece,
            None => entry.first_piece = piece,
        }
        entry.last_piece = piece;
        entry.packets += 1;
        entry.total_bytes += payload_len;
        entry.push = candidate.push;
        entry.open = !candidate.push && candidate.payload_len == entry.shape.payload_len;
        entry.shape.advance(candidate.payload_len);
        true
    }
}

/// Writes the headers of a merged item: those of its first packet, with the lengths of all, Push
/// from the last, and the transport checksum left to the kernel (D19).
fn write_headers(entry: &mut Entry, slab: &[u8], arena: &mut HeaderArena) {
    let header_len = usize::from(entry.shape.header_len);
    // Both always succeed: `grow` has read this header, and the arena has room for as many items
    // as a batch can merge.
    let Some(header) = entry.packet.of(slab).get(..header_len) else {
        return;
    };
    let Some((head, room)) = arena.take(VNET_HDR_BYTES + header_len) else {
        return;
    };
    let (vnet, copy) = room.split_at_mut(VNET_HDR_BYTES);
    copy.copy_from_slice(header);
    let (ip, transport) = copy.split_at_mut(ipv4::HEADER_BYTES);
    let total = entry.total_bytes as u16;
    put16(ip, 2, total);
    put16(ip, 10, 0);
    put16(ip, 10, checksum::finish(checksum::sum(ip, 0)));
    let length = total - ipv4::HEADER_BYTES as u16;
    let partial = checksum::fold(entry.key.pseudo_header(length));
    let gso_size = entry.shape.payload_len;
    let hdr = if entry.key.is_tcp() {
        if entry.push {
            transport[13] |= tcp::PSH;
        }
        put16(transport, 16, partial);
        VirtioNetHdr::tcp4(transport.len() as u16, gso_size)
    } else {
        put16(transport, 4, length);
        put16(transport, 6, partial);
        VirtioNetHdr::udp4(gso_size)
    };
    vnet.copy_from_slice(&hdr.to_bytes());
    entry.head = head;
}

#[cfg(test)]
mod tests;

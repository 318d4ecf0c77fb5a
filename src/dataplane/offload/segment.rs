//! Cutting a superpacket into the packets that it stands for, without copying its payload.
#![forbid(unsafe_code)]

use super::arena::HeaderArena;
use super::limits::{HEADER_MAX_BYTES, SUPERPACKET_MAX_SEGMENTS};
use super::run::Datagram;
use super::span::Span;
use super::virtio::{GsoKind, TCP_CSUM_OFFSET, UDP_CSUM_OFFSET, VirtioNetHdr};
use crate::dataplane::packet::checksum::{self, word};
use crate::dataplane::packet::ipv4::{self, Ipv4View};
use crate::dataplane::packet::tcp::{self, TcpView};
use crate::dataplane::packet::{Malformed, be32, udp};

/// Why a packet from the TUN cannot be cut or completed. Nothing was written or handed out then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// The bytes are not the headers that the virtio header announces.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A `gso_type` that was not negotiated, or [`GsoKind::None`], which is not to be cut.
    #[error("gso_type {0:#04x} is not one that can be cut")]
    Kind(u8),
    /// A superpacket whose checksum is not left to us (virtio 1.2, 5.1.6.2: it must be), or whose
    /// checksum field is not where its protocol has it.
    #[error("checksum at {start} + {offset} does not fit a superpacket of this kind")]
    ChecksumPlace {
        /// `csum_start`, in bytes.
        start: u16,
        /// `csum_offset`, in bytes.
        offset: u16,
    },
    /// The IP header names another protocol than the virtio header.
    #[error("IP protocol {0} in a superpacket of another kind")]
    Protocol(u8),
    /// A fragment cannot be a superpacket.
    #[error("superpacket is a fragment")]
    Fragment,
    /// No payload, or a `gso_size` of zero: nothing to cut by.
    #[error("{payload_bytes} bytes of payload cannot be cut by {gso_size}")]
    Geometry {
        /// Bytes behind the headers.
        payload_bytes: usize,
        /// Payload that each segment was to have, in bytes.
        gso_size: u16,
    },
    /// More segments than [`SUPERPACKET_MAX_SEGMENTS`].
    #[error("superpacket of {0} segments, {SUPERPACKET_MAX_SEGMENTS} are the limit")]
    TooManySegments(usize),
    /// The segments would not fit the tunnel: the caller answers "fragmentation needed".
    #[error("segments of {bytes} bytes exceed the tunnel's MTU of {mtu}")]
    TooBig {
        /// Length of a full segment with its headers, in bytes.
        bytes: usize,
        /// What fits, in bytes.
        mtu: u16,
    },
    /// The arena has no room for the headers: send what is planned, clear the arena, try again.
    #[error("no room for {0} bytes of headers")]
    ArenaFull(usize),
}

/// A superpacket that was checked and can be cut.
#[derive(Clone, Copy, Debug)]
pub struct Superpacket<'a> {
    ip: Ipv4View<'a>,
    kind: GsoKind,
    /// IP and transport header, in bytes.
    header_len: usize,
    gso_size: usize,
    segments: usize,
}

impl<'a> Superpacket<'a> {
    /// Checks all that cutting relies on. `packet` begins at the IP header, whose TTL has been
    /// decremented already; `mtu` is the tunnel's, in bytes.
    ///
    /// The kernel's `hdr_len` is ignored: it is wrong for forwarded packets (offload-pitfalls C1).
    ///
    /// # Errors
    /// Every [`SegmentError`] but [`SegmentError::ArenaFull`].
    pub fn parse(packet: &'a [u8], hdr: &VirtioNetHdr, mtu: u16) -> Result<Self, SegmentError> {
        let kind = hdr.kind().map_err(SegmentError::Kind)?;
        let ip = Ipv4View::parse(packet)?;
        let (protocol, csum_offset, transport_len) = match kind {
            GsoKind::None => return Err(SegmentError::Kind(0)),
            GsoKind::Tcp4 => {
                let header_len = TcpView::parse(ip.payload())?.header_len();
                (ipv4::TCP, TCP_CSUM_OFFSET, header_len)
            }
            GsoKind::UdpL4 if ip.payload().len() < udp::HEADER_BYTES => {
                return Err(SegmentError::Malformed(Malformed::Truncated {
                    header: "UDP",
                    needed: udp::HEADER_BYTES,
                    got: ip.payload().len(),
                }));
            }
            GsoKind::UdpL4 => (ipv4::UDP, UDP_CSUM_OFFSET, udp::HEADER_BYTES),
        };
        if ip.protocol() != protocol {
            return Err(SegmentError::Protocol(ip.protocol()));
        }
        if ip.is_fragment() {
            return Err(SegmentError::Fragment);
        }
        if !hdr.needs_checksum()
            || usize::from(hdr.csum_start()) != ip.header_len()
            || hdr.csum_offset() != csum_offset
        {
            return Err(SegmentError::ChecksumPlace {
                start: hdr.csum_start(),
                offset: hdr.csum_offset(),
            });
        }
        let header_len = ip.header_len() + transport_len;
        let payload_bytes = ip.total_len() - header_len;
        let gso_size = usize::from(hdr.gso_size());
        if payload_bytes == 0 || gso_size == 0 {
            return Err(SegmentError::Geometry { payload_bytes, gso_size: hdr.gso_size() });
        }
        let bytes = header_len + gso_size.min(payload_bytes);
        if bytes > usize::from(mtu) {
            return Err(SegmentError::TooBig { bytes, mtu });
        }
        let segments = payload_bytes.div_ceil(gso_size);
        if segments > SUPERPACKET_MAX_SEGMENTS {
            return Err(SegmentError::TooManySegments(segments));
        }
        Ok(Self { ip, kind, header_len, gso_size, segments })
    }

    /// How many packets the superpacket stands for.
    #[inline]
    pub fn segments(&self) -> usize {
        self.segments
    }

    /// Room that their headers take in an arena, in bytes; never above
    /// [`SUPERPACKET_HEADERS_BYTES`](super::limits::SUPERPACKET_HEADERS_BYTES).
    #[inline]
    pub fn headers_bytes(&self) -> usize {
        self.segments * self.header_len
    }

    /// Writes a complete header for every segment into `arena` and hands the segments to `sink`
    /// in order; `base` is where the packet begins in the slab that their bodies point into.
    ///
    /// # Errors
    /// [`SegmentError::ArenaFull`], and nothing was written or handed out.
    pub fn cut(
        &self,
        base: u32,
        arena: &mut HeaderArena,
        sink: &mut impl FnMut(Datagram),
    ) -> Result<usize, SegmentError> {
        let needed = self.headers_bytes();
        let (span, room) = arena.take(needed).ok_or(SegmentError::ArenaFull(needed))?;
        let (header, payload) = self.ip.packet().split_at(self.header_len);
        let mut place = Place {
            head: Span::new(span.offset, self.header_len as u32),
            body: base.saturating_add(self.header_len as u32),
        };
        let rooms = room.chunks_exact_mut(self.header_len);
        let pieces = rooms.zip(payload.chunks(self.gso_size));
        let template = Template::new(header, &self.ip);
        match self.kind {
            GsoKind::Tcp4 => template.cut_tcp(pieces, self, &mut place, sink),
            _ => template.cut_udp(pieces, &mut place, sink),
        }
        Ok(self.segments)
    }
}

/// Cuts the superpacket at `base` of its slab: [`Superpacket::parse`] and [`Superpacket::cut`] in
/// one. Returns the number of segments.
///
/// # Errors
/// Every [`SegmentError`]; nothing was written or handed out then.
#[inline]
pub fn segment(
    packet: &[u8],
    base: u32,
    hdr: &VirtioNetHdr,
    mtu: u16,
    arena: &mut HeaderArena,
    sink: &mut impl FnMut(Datagram),
) -> Result<usize, SegmentError> {
    Superpacket::parse(packet, hdr, mtu)?.cut(base, arena, sink)
}

/// Finishes the checksum that the kernel left to us in a packet that is no superpacket (C2): the
/// field holds the sum of the pseudo header, the rest is added. Does nothing unless `hdr` says so.
///
/// # Errors
/// [`SegmentError::Kind`] for a superpacket, [`SegmentError::ChecksumPlace`] if the field is not
/// inside the packet.
pub fn finish_checksum(packet: &mut [u8], hdr: &VirtioNetHdr) -> Result<(), SegmentError> {
    match hdr.kind() {
        Ok(GsoKind::None) => {}
        Ok(_) => return Err(SegmentError::Kind(0)),
        Err(kind) => return Err(SegmentError::Kind(kind)),
    }
    if !hdr.needs_checksum() {
        return Ok(());
    }
    let offset = usize::from(hdr.csum_offset());
    let covered = packet
        .get_mut(usize::from(hdr.csum_start())..)
        .filter(|covered| covered.len() >= offset + 2)
        .ok_or(SegmentError::ChecksumPlace {
            start: hdr.csum_start(),
            offset: hdr.csum_offset(),
        })?;
    let sum = checksum::sum(covered, 0);
    // Only UDP has its checksum there, and only UDP reads 0 as "none" (C3).
    let value = if hdr.csum_offset() == UDP_CSUM_OFFSET {
        checksum::finish_udp(sum)
    } else {
        checksum::finish(sum)
    };
    put16(covered, offset, value);
    Ok(())
}

/// Where the next segment's two pieces stand.
struct Place {
    head: Span,
    body: u32,
}

impl Place {
    #[inline(always)]
    fn next(&mut self, body_len: usize) -> Datagram {
        let datagram = Datagram { head: self.head, body: Span::new(self.body, body_len as u32) };
        self.head.offset += self.head.len;
        self.body = self.body.saturating_add(body_len as u32);
        datagram
    }
}

/// The superpacket's headers as every segment has them, all that differs being zero, and their
/// sums: a segment costs the sum of its payload and a few additions.
struct Template {
    bytes: [u8; HEADER_MAX_BYTES],
    len: usize,
    ip_len: usize,
    ip_sum: u64,
    /// Pseudo header without the length included.
    transport_sum: u64,
    id: u16,
}

impl Template {
    fn new(header: &[u8], ip: &Ipv4View<'_>) -> Self {
        let mut bytes = [0; HEADER_MAX_BYTES];
        bytes[..header.len()].copy_from_slice(header);
        let mut template = Self {
            bytes,
            len: header.len(),
            ip_len: ip.header_len(),
            ip_sum: 0,
            transport_sum: checksum::pseudo_header_v4(
                ip.src().octets(),
                ip.dst().octets(),
                ip.protocol(),
                0,
            ),
            id: ip.id(),
        };
        let (ip_header, _) = template.halves();
        put16(ip_header, 2, 0);
        put16(ip_header, 4, 0);
        put16(ip_header, 10, 0);
        template.ip_sum = checksum::sum(ip_header, 0);
        template
    }

    fn halves(&mut self) -> (&mut [u8], &mut [u8]) {
        self.bytes[..self.len].split_at_mut(self.ip_len)
    }

    /// Writes the template and the IP header's own fields; returns the transport header.
    #[inline(always)]
    fn stamp<'a>(&self, room: &'a mut [u8], number: usize, body_len: usize) -> &'a mut [u8] {
        room.copy_from_slice(&self.bytes[..self.len]);
        let (ip, transport) = room.split_at_mut(self.ip_len);
        let total = (self.len + body_len) as u16;
        let id = self.id.wrapping_add(number as u16);
        put16(ip, 2, total);
        put16(ip, 4, id);
        put16(ip, 10, checksum::finish(self.ip_sum + word(total) + word(id)));
        transport
    }

    fn cut_tcp<'a>(
        mut self,
        pieces: impl Iterator<Item = (&'a mut [u8], &'a [u8])>,
        superpacket: &Superpacket<'_>,
        place: &mut Place,
        sink: &mut impl FnMut(Datagram),
    ) {
        let (_, header) = self.halves();
        let header_len = header.len();
        let first_seq = be32(header, 4);
        let flags = header[13];
        header[4..8].fill(0);
        header[13] = 0;
        put16(header, 16, 0);
        let constant = checksum::sum(header, 0);
        self.transport_sum += constant;
        let last = superpacket.segments - 1;
        for (number, (room, body)) in pieces.enumerate() {
            let transport = self.stamp(room, number, body.len());
            let seq = first_seq.wrapping_add((number * superpacket.gso_size) as u32);
            // The end of data stands on the last segment only, the reduced window, which is told
            // once (RFC 3168), on the first (C6).
            let mut flags = flags;
            if number < last {
                flags &= !(tcp::FIN | tcp::PSH);
            }
            if number > 0 {
                flags &= !tcp::CWR;
            }
            let own = checksum::dword(seq)
                + word(u16::from(flags))
                + word((header_len + body.len()) as u16);
            let sum = checksum::sum(body, self.transport_sum + own);
            transport[4..8].copy_from_slice(&seq.to_be_bytes());
            transport[13] = flags;
            put16(transport, 16, checksum::finish(sum));
            sink(place.next(body.len()));
        }
    }

    fn cut_udp<'a>(
        mut self,
        pieces: impl Iterator<Item = (&'a mut [u8], &'a [u8])>,
        place: &mut Place,
        sink: &mut impl FnMut(Datagram),
    ) {
        let (_, header) = self.halves();
        header[4..8].fill(0);
        let constant = checksum::sum(header, 0);
        self.transport_sum += constant;
        for (number, (room, body)) in pieces.enumerate() {
            let transport = self.stamp(room, number, body.len());
            let length = (udp::HEADER_BYTES + body.len()) as u16;
            // Once in the header and once in the pseudo header.
            let own = word(length) + word(length);
            let sum = checksum::sum(body, self.transport_sum + own);
            put16(transport, 4, length);
            put16(transport, 6, checksum::finish_udp(sum));
            sink(place.next(body.len()));
        }
    }
}

/// Writes `value` in network order at `at`, which the caller has checked to be inside.
#[inline(always)]
pub(super) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests;

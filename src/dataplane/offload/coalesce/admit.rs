//! Which packets may merge, and what one must look like to continue another.
#![forbid(unsafe_code)]

use super::MergeCaps;
use crate::dataplane::packet::checksum;
use crate::dataplane::packet::ipv4::{self, Ipv4View};
use crate::dataplane::packet::tcp::{self, TcpView};
use crate::dataplane::packet::udp::{self, UdpView};

const DONT_FRAGMENT: u16 = 0x4000;

/// Addresses, ports and protocol as they stand in the headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlowKey {
    /// Source and destination, loaded as they stand in memory.
    addresses: u64,
    /// Ports above the protocol number.
    ports_protocol: u64,
}

impl FlowKey {
    /// Of packets that belong to no flow; no packet has it, protocol 0 never merging.
    pub(super) const NONE: Self = Self { addresses: 0, ports_protocol: 0 };

    #[inline]
    fn new(ip: &Ipv4View<'_>, ports: u32) -> Self {
        Self {
            addresses: addresses(ip),
            ports_protocol: u64::from(ports) << 8 | u64::from(ip.protocol()),
        }
    }

    #[inline]
    pub(super) fn is_tcp(&self) -> bool {
        self.protocol() == ipv4::TCP
    }

    #[inline]
    fn protocol(&self) -> u8 {
        self.ports_protocol as u8
    }

    /// Spreads flows evenly; the upper bits are the best ones.
    #[inline]
    pub(super) fn hash(&self) -> u64 {
        mix(self.addresses ^ self.ports_protocol.rotate_left(24))
    }

    /// What this flow shares with every packet that could belong to it.
    #[inline]
    pub(super) fn kin(&self) -> Kin {
        Kin::of(self.addresses, self.protocol())
    }

    /// The words of the pseudo header for `len` bytes.
    #[inline]
    pub(super) fn pseudo_header(&self, len: u16) -> u64 {
        let bytes = self.addresses.to_ne_bytes();
        let [a, b, c, d, e, f, g, h] = bytes;
        checksum::pseudo_header_v4([a, b, c, d], [e, f, g, h], self.protocol(), len)
    }
}

/// All flows of one protocol between two addresses, as a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kin(pub(super) u64);

impl Kin {
    #[inline]
    fn of(addresses: u64, protocol: u8) -> Self {
        Self(mix(addresses ^ u64::from(protocol)))
    }
}

#[inline]
fn addresses(ip: &Ipv4View<'_>) -> u64 {
    let (src, dst) = (ip.src().octets(), ip.dst().octets());
    u64::from_ne_bytes([src[0], src[1], src[2], src[3], dst[0], dst[1], dst[2], dst[3]])
}

#[inline]
fn mix(value: u64) -> u64 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    let value = value.wrapping_mul(GOLDEN);
    (value ^ value >> 32).wrapping_mul(GOLDEN)
}

/// A packet's part in merging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// May lead or continue an item of its flow.
    Candidate(FlowKey, Candidate),
    /// Cannot merge, and nothing of its flow may overtake it.
    Lone(FlowKey),
    /// Cannot merge, and nothing of any flow that it may belong to may overtake it; of all flows
    /// if there is no telling.
    Opaque(Option<Kin>),
    /// Belongs to no flow that is ever merged.
    Foreign,
}

/// What two packets are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// IP and transport header, in bytes.
    pub(super) header_len: u8,
    /// Where TCP's options begin, in bytes from the IP header; `header_len` where there are none.
    pub(super) options_at: u8,
    pub(super) push: bool,
    pub(super) payload_len: u16,
    id: u16,
    seq: u32,
    /// ToS, TTL and fragment field: equal in all packets of an item (D9).
    ip_common: u32,
    /// Acknowledgement, window, urgent pointer: equal (D12).
    tcp_common: u64,
    /// Data offset, reserved bits and flags but Push: equal, ECE included (D13).
    tcp_flags: u16,
}

impl Candidate {
    /// Of packets that cannot merge.
    pub(super) const NONE: Self = Self {
        header_len: 0,
        options_at: 0,
        push: false,
        payload_len: 0,
        id: 0,
        seq: 0,
        ip_common: 0,
        tcp_common: 0,
        tcp_flags: 0,
    };

    /// What the packet behind this one must look like.
    #[inline]
    pub(super) fn next(mut self) -> Self {
        self.advance(self.payload_len);
        self
    }

    /// Moves on by one more packet of `payload_len`.
    #[inline]
    pub(super) fn advance(&mut self, payload_len: u16) {
        self.id = self.id.wrapping_add(1);
        if self.is_tcp() {
            self.seq = self.seq.wrapping_add(u32::from(payload_len));
        }
    }

    /// Whether this packet looks as `expected`. Options are compared by the caller.
    #[inline]
    pub(super) fn continues(&self, expected: &Self) -> bool {
        let fixed_id = self.ip_common & u32::from(DONT_FRAGMENT) != 0;
        self.payload_len <= expected.payload_len
            && self.seq == expected.seq
            && self.ip_common == expected.ip_common
            && self.tcp_common == expected.tcp_common
            && self.tcp_flags == expected.tcp_flags
            // What may be fragmented on its way needs the identification that it came with (D11).
            && (fixed_id || self.id == expected.id)
    }

    #[inline]
    fn is_tcp(&self) -> bool {
        self.tcp_flags != 0
    }
}

/// Tells what part a packet has in merging.
#[inline]
pub(super) fn classify(bytes: &[u8], caps: MergeCaps) -> Class {
    let Ok(ip) = Ipv4View::parse(bytes) else {
        return Class::Opaque(None);
    };
    let merges = match ip.protocol() {
        ipv4::TCP => caps.tcp,
        ipv4::UDP => caps.udp,
        _ => false,
    };
    if !merges {
        return Class::Foreign;
    }
    let opaque = || Class::Opaque(Some(Kin::of(addresses(&ip), ip.protocol())));
    if ip.is_fragment() {
        return opaque();
    }
    // Options, the reserved bit, bytes behind the end: nothing that a merged header could carry.
    let plain = ip.header_len() == ipv4::HEADER_BYTES
        && ip.total_len() == bytes.len()
        && ip.flags_and_offset() & !DONT_FRAGMENT == 0;
    let ip_common = u32::from(ip.tos()) << 24 | u32::from(ip.ttl()) << 16;
    let common = Candidate {
        id: ip.id(),
        ip_common: ip_common | u32::from(ip.flags_and_offset()),
        ..Candidate::NONE
    };
    if ip.protocol() == ipv4::TCP {
        let Ok(tcp) = TcpView::parse(ip.payload()) else {
            return opaque();
        };
        let key = FlowKey::new(&ip, tcp.ports());
        let ordinary = tcp.flags() & !(tcp::PSH | tcp::ECE) == tcp::ACK;
        if !plain || !ordinary || tcp.payload().is_empty() {
            return Class::Lone(key);
        }
        Class::Candidate(
            key,
            Candidate {
                header_len: (ipv4::HEADER_BYTES + tcp.header_len()) as u8,
                options_at: (ipv4::HEADER_BYTES + tcp::HEADER_BYTES) as u8,
                push: tcp.flags() & tcp::PSH != 0,
                payload_len: tcp.payload().len() as u16,
                seq: tcp.seq(),
                tcp_common: u64::from(tcp.ack()) << 32
                    | u64::from(tcp.window()) << 16
                    | u64::from(tcp.urgent()),
                tcp_flags: u16::from(tcp.offset_byte()) << 8 | u16::from(tcp.flags() & !tcp::PSH),
                ..common
            },
        )
    } else {
        let Ok(udp) = UdpView::parse(ip.payload()) else {
            return opaque();
        };
        let key = FlowKey::new(&ip, udp.ports());
        // A checksum of 0 means that there is none (C4): nothing proves the bytes.
        let whole = udp.length() == ip.payload().len();
        if !plain || !whole || udp.checksum() == 0 || udp.payload().is_empty() {
            return Class::Lone(key);
        }
        const HEADERS: u8 = (ipv4::HEADER_BYTES + udp::HEADER_BYTES) as u8;
        Class::Candidate(
            key,
            Candidate {
                header_len: HEADERS,
                options_at: HEADERS,
                payload_len: udp.payload().len() as u16,
                ..common
            },
        )
    }
}

/// Whether IP header and transport checksum of a candidate are right.
#[inline]
pub(super) fn checksums_ok(packet: &[u8]) -> bool {
    let Some((header, transport)) = packet.split_first_chunk::<{ ipv4::HEADER_BYTES }>() else {
        return false;
    };
    let [.., a, b, c, d, e, f, g, h] = *header;
    let (src, dst) = ([a, b, c, d], [e, f, g, h]);
    let pseudo = checksum::pseudo_header_v4(src, dst, header[9], transport.len() as u16);
    checksum::fold(checksum::sum_header(header)) == 0xffff
        && checksum::fold(checksum::sum(transport, pseudo)) == 0xffff
}

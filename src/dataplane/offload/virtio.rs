//! The header that a TUN with `IFF_VNET_HDR` puts before every packet: `struct virtio_net_hdr` of
//! include/uapi/linux/virtio_net.h, in the machine's byte order (a TUN's default).
#![forbid(unsafe_code)]

use super::limits::VNET_HDR_BYTES;
use crate::dataplane::packet::{ipv4, udp};

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum at `csum_start + csum_offset` holds only the sum of
/// the pseudo header; whoever sends the packet on must finish it.
pub const F_NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_NONE`: one packet.
pub const GSO_NONE: u8 = 0;
/// `VIRTIO_NET_HDR_GSO_TCPV4`: a TCP superpacket over IPv4.
pub const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`: a UDP superpacket (USO), over either IP version.
pub const GSO_UDP_L4: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`: a bit beside the TCP types: the superpacket carries CWR.
pub const GSO_ECN: u8 = 0x80;

/// Where the checksum field stands in a TCP header, in bytes.
pub const TCP_CSUM_OFFSET: u16 = 16;
/// Where the checksum field stands in a UDP header, in bytes.
pub const UDP_CSUM_OFFSET: u16 = 6;

/// What kind of superpacket a header announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// None: one packet.
    None,
    /// TCP over IPv4.
    Tcp4,
    /// UDP.
    UdpL4,
}

/// A header as it was read, or one made by a constructor that allows no invalid mix of fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioNetHdr {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

impl VirtioNetHdr {
    /// The header of a complete packet: all zero.
    pub const NONE: Self = Self {
        flags: 0,
        gso_type: GSO_NONE,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };

    /// Takes the fields as they are; what they mean is checked where they are used.
    #[inline]
    pub fn parse(bytes: &[u8; VNET_HDR_BYTES]) -> Self {
        let field = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: field(2),
            gso_size: field(4),
            csum_start: field(6),
            csum_offset: field(8),
        }
    }

    /// A TCP superpacket over IPv4 without options: `tcp_header_bytes` is TCP's data offset,
    /// `gso_size` the payload of every segment but the last, both in bytes.
    #[inline]
    pub fn tcp4(tcp_header_bytes: u16, gso_size: u16) -> Self {
        Self {
            flags: F_NEEDS_CSUM,
            gso_type: GSO_TCPV4,
            hdr_len: ipv4::HEADER_BYTES as u16 + tcp_header_bytes,
            gso_size,
            csum_start: ipv4::HEADER_BYTES as u16,
            csum_offset: TCP_CSUM_OFFSET,
        }
    }

    /// A UDP superpacket over IPv4 without options: `gso_size` is the payload of every datagram
    /// but the last, in bytes.
    #[inline]
    pub fn udp4(gso_size: u16) -> Self {
        Self {
            flags: F_NEEDS_CSUM,
            gso_type: GSO_UDP_L4,
            hdr_len: (ipv4::HEADER_BYTES + udp::HEADER_BYTES) as u16,
            gso_size,
            csum_start: ipv4::HEADER_BYTES as u16,
            csum_offset: UDP_CSUM_OFFSET,
        }
    }

    /// One packet whose checksum, at `csum_offset` behind `csum_start`, is not finished. Bytes.
    #[inline]
    pub fn partial_checksum(csum_start: u16, csum_offset: u16) -> Self {
        Self { flags: F_NEEDS_CSUM, csum_start, csum_offset, ..Self::NONE }
    }

    /// The header as the kernel reads it.
    #[inline]
    pub fn to_bytes(self) -> [u8; VNET_HDR_BYTES] {
        let mut bytes = [0; VNET_HDR_BYTES];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        bytes[2..4].copy_from_slice(&self.hdr_len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.csum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.csum_offset.to_ne_bytes());
        bytes
    }

    /// What kind of superpacket this announces; the raw type if it is none that we negotiate
    /// (legacy UFO, TCP over IPv6, tunnels), or carries the ECN bit where only TCP may (C5).
    ///
    /// # Errors
    /// The `gso_type` byte as it came.
    #[inline]
    pub fn kind(&self) -> Result<GsoKind, u8> {
        match self.gso_type {
            GSO_NONE => Ok(GsoKind::None),
            GSO_UDP_L4 => Ok(GsoKind::UdpL4),
            tcp if tcp & !GSO_ECN == GSO_TCPV4 => Ok(GsoKind::Tcp4),
            other => Err(other),
        }
    }

    /// Whether the transport checksum is still to be finished.
    #[inline]
    pub fn needs_checksum(&self) -> bool {
        self.flags & F_NEEDS_CSUM != 0
    }

    /// Payload of every segment but the last, in bytes.
    #[inline]
    pub fn gso_size(&self) -> u16 {
        self.gso_size
    }

    /// Where the transport header begins, in bytes from the IP header.
    #[inline]
    pub fn csum_start(&self) -> u16 {
        self.csum_start
    }

    /// Where the checksum field stands, in bytes from `csum_start`.
    #[inline]
    pub fn csum_offset(&self) -> u16 {
        self.csum_offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_ten_bytes_in_native_order() {
        let header = VirtioNetHdr::tcp4(32, 1448);
        let mut expected = vec![F_NEEDS_CSUM, GSO_TCPV4];
        for field in [52_u16, 1448, 20, 16] {
            expected.extend_from_slice(&field.to_ne_bytes());
        }
        assert_eq!(header.to_bytes()[..], expected);
        assert_eq!(VirtioNetHdr::parse(&header.to_bytes()), header);
        assert_eq!(VirtioNetHdr::NONE.to_bytes(), [0; 10]);
    }

    #[test]
    fn udp_l4_always_names_its_checksum() {
        let header = VirtioNetHdr::udp4(1200);
        assert!(header.needs_checksum());
        assert_eq!((header.csum_start(), header.csum_offset()), (20, 6));
        assert_eq!(header.kind(), Ok(GsoKind::UdpL4));
    }

    #[test]
    fn the_ecn_bit_is_masked_for_tcp_and_refused_elsewhere() {
        let kind = |gso_type| VirtioNetHdr::parse(&[1, gso_type, 0, 0, 0, 0, 0, 0, 0, 0]).kind();
        assert_eq!(kind(GSO_NONE), Ok(GsoKind::None));
        assert_eq!(kind(GSO_TCPV4), Ok(GsoKind::Tcp4));
        assert_eq!(kind(GSO_TCPV4 | GSO_ECN), Ok(GsoKind::Tcp4));
        // UFO, TCP over IPv6, UDP tunnels, ECN beside anything but TCP.
        for refused in [3, 4, 0x20, 0x40, 0x21, GSO_ECN, GSO_UDP_L4 | GSO_ECN, 0xff] {
            assert_eq!(kind(refused), Err(refused));
        }
    }
}

//! Every limit of the offloads, with its source.
#![forbid(unsafe_code)]

use crate::dataplane::packet::{ipv4, tcp, udp};

/// Longest IPv4 packet: its length field has 16 bits (RFC 791). Also the most that one write to
/// the TUN may carry behind the virtio header.
pub const IP_MAX_BYTES: usize = 65_535;

/// Shortest datagram that a peer forwards: upstream drops what cannot hold an IPv4 header
/// (facts 5.3).
pub const PACKET_MIN_BYTES: usize = ipv4::HEADER_BYTES;

/// Longest payload of an outer UDP datagram, and of a whole `UDP_SEGMENT` send, over IPv4
/// (offload-pitfalls A8).
pub const UDP_MAX_PAYLOAD_BYTES: usize = IP_MAX_BYTES - ipv4::HEADER_BYTES - udp::HEADER_BYTES;

/// Segments that the kernel takes in one `UDP_SEGMENT` send and in one `UDP_L4` write to a TUN:
/// `UDP_MAX_SEGMENTS` of include/linux/udp.h, 64 before Linux 6.9 (128 since; A6, D3).
pub const UDP_MAX_SEGMENTS: usize = 64;

/// Segments that are safe in one `UDP_SEGMENT` send: older kernels count the headers against the
/// limit, so that 64 full ones fail (A7).
pub const UDP_SAFE_SEGMENTS: usize = UDP_MAX_SEGMENTS - 1;

/// Segments that one superpacket is cut into at most; a sender with a tiny segment size would
/// otherwise make thousands of packets of one read (C13).
///
/// Enough for a full superpacket of segments of 36 bytes: the least of `net.ipv4.tcp_min_snd_mss`,
/// 48, less the 12 of timestamps. Reports of lost segments (SACK) leave 8 at the worst
/// (include/net/tcp.h, `TCP_MIN_GSO_SIZE`); of such a superpacket above the limit TCP takes the drop
/// for congestion, sends less at once, and soon nothing above it.
pub const SUPERPACKET_MAX_SEGMENTS: usize = IP_MAX_BYTES / 36 + 1;

/// Datagrams, and runs, that one egress batch plans: any one superpacket behind what several of
/// usual segments make.
pub const BATCH_MAX_DATAGRAMS: usize = 2560;

/// Segments that one TCP item is merged from at most. 65,535 bytes in segments of an MTU of 576
/// are 128; the bound exists for tiny ones, whose pieces must fit into one `writev`.
pub const TCP_MERGE_MAX_SEGMENTS: usize = 256;

/// Length of the virtio header before every packet of the TUN: `struct virtio_net_hdr` of
/// include/uapi/linux/virtio_net.h, what a TUN uses unless `TUNSETVNETHDRSZ` says otherwise (C15).
pub const VNET_HDR_BYTES: usize = 10;

/// Pieces that one system call gathers at most: `UIO_MAXIOV` of include/uapi/linux/uio.h.
pub const MAX_IOVECS: usize = 1024;

/// Longest header that is written anew for a segment: IPv4 and TCP with all their options.
pub const HEADER_MAX_BYTES: usize = ipv4::HEADER_MAX_BYTES + tcp::HEADER_MAX_BYTES;

/// An arena of this size takes the headers of any one superpacket.
pub const SUPERPACKET_HEADERS_BYTES: usize = SUPERPACKET_MAX_SEGMENTS * HEADER_MAX_BYTES;

/// Bytes of the arena of one egress batch: any one superpacket behind several usual ones.
pub const BATCH_HEADERS_BYTES: usize = SUPERPACKET_HEADERS_BYTES + 64 * 1024;

/// Packets that one ingress batch merges or passes on.
pub const BATCH_MAX_PACKETS: usize = 2048;

const _: () = {
    assert!(UDP_MAX_PAYLOAD_BYTES == 65_507);
    assert!(HEADER_MAX_BYTES == 120);
    // A run is a header and a payload per segment, an item a virtio header, a header and payloads.
    assert!(2 * UDP_MAX_SEGMENTS <= MAX_IOVECS);
    assert!(SUPERPACKET_MAX_SEGMENTS <= BATCH_MAX_DATAGRAMS);
    assert!(2 + TCP_MERGE_MAX_SEGMENTS <= MAX_IOVECS);
    assert!(TCP_MERGE_MAX_SEGMENTS <= SUPERPACKET_MAX_SEGMENTS);
    assert!(UDP_MAX_SEGMENTS <= TCP_MERGE_MAX_SEGMENTS);
};

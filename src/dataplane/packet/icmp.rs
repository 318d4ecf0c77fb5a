//! The ICMP errors (RFC 792) that this host answers with in place of a router.
//!
//! Where they differ from upstream's only one, net unreachable (facts 5.4): the TTL is 64, upstream's
//! 8 does not reach a sender behind a few more hops; packets with the longest header are answered;
//! an unanswered ping is told as well, because RFC 1122 forbids errors about ICMP *errors* only;
//! and no byte is quoted that the packet does not have. As upstream, a quote is the offender's header
//! and 8 bytes, what RFC 792 demands and every stack finds its socket by. RFC 1812 would like up to
//! 576 bytes, which makes the answer to a small forged packet much larger than the packet.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;

use etherparse::icmpv4::{DestUnreachableHeader, TimeExceededCode};
use etherparse::{Icmpv4Header, Icmpv4Type, IpNumber, Ipv4Header};

use super::ipv4::{self, Ipv4View};

/// Bytes of the offender's payload that an error quotes.
const QUOTED_PAYLOAD_BYTES: usize = 8;

/// Time to live of the errors, in hops: what Linux gives to packets of its own.
const TTL: u8 = 64;

/// Length of the longest error, in bytes: a header, ICMP's own and the longest quote.
pub const ERROR_MAX_BYTES: usize =
    ipv4::HEADER_BYTES + Icmpv4Header::MIN_LEN + ipv4::HEADER_MAX_BYTES + QUOTED_PAYLOAD_BYTES;

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// No peer owns the destination: type 3, code 0.
    NetUnreachable,
    /// The packet has no hop left: type 11, code 0.
    TimeExceeded,
    /// The packet does not fit the tunnel and must not be fragmented: type 3, code 4.
    FragmentationNeeded {
        /// What fits, in bytes (RFC 1191).
        mtu: u16,
    },
}

impl IcmpError {
    /// Writes the IPv4 packet that tells the sender of `offender`, from the tunnel's own address
    /// `source`, into `out`; returns its length in bytes. `offender` begins at its IP header.
    ///
    /// `None` where RFC 1122 (3.2.2) and RFC 1812 (4.3.2.7) forbid an answer: about an ICMP message
    /// that is not a query or its reply, about a fragment other than the first, to a sender that is
    /// not one host, about a packet to more than one, about what is no IPv4 packet.
    pub fn answer(
        self,
        offender: &[u8],
        source: Ipv4Addr,
        out: &mut [u8; ERROR_MAX_BYTES],
    ) -> Option<usize> {
        let ip = Ipv4View::parse(offender).ok()?;
        if !may_answer(&ip) {
            return None;
        }
        let quoted = ip.total_len().min(ip.header_len() + QUOTED_PAYLOAD_BYTES);
        let quote = ip.packet().get(..quoted)?;
        let icmp = Icmpv4Header::with_checksum(self.message(), quote).to_bytes();
        let payload_len = u16::try_from(icmp.len() + quote.len()).ok()?;
        let (from, to) = (source.octets(), ip.src().octets());
        let mut header = Ipv4Header::new(payload_len, TTL, IpNumber::ICMP, from, to).ok()?;
        header.dont_fragment = false;
        header.header_checksum = header.calc_header_checksum();
        let mut end = 0;
        for piece in [&header.to_bytes()[..], &icmp[..], quote] {
            let start = end;
            end += piece.len();
            out.get_mut(start..end)?.copy_from_slice(piece);
        }
        Some(end)
    }

    fn message(self) -> Icmpv4Type {
        match self {
            Self::NetUnreachable => {
                Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Network)
            }
            Self::TimeExceeded => Icmpv4Type::TimeExceeded(TimeExceededCode::TtlExceededInTransit),
            Self::FragmentationNeeded { mtu } => {
                Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded {
                    next_hop_mtu: mtu,
                })
            }
        }
    }
}

/// Whether an error about the packet may be sent at all.
fn may_answer(ip: &Ipv4View<'_>) -> bool {
    // Class E counts as hosts, as it does for Linux; directed broadcasts cannot be told from hosts.
    let is_group = |address: Ipv4Addr| address.is_multicast() || address.is_broadcast();
    let is_nobody = |address: Ipv4Addr| address.is_loopback() || address.octets()[0] == 0;
    let is_error =
        ip.protocol() == ipv4::ICMP && !ip.payload().first().is_some_and(|kind| is_query(*kind));
    !is_group(ip.src())
        && !is_nobody(ip.src())
        && !is_group(ip.dst())
        && ip.fragment_offset() == 0
        && !is_error
}

/// Echo, timestamp, information and address mask, requests and replies (RFC 792, RFC 950).
fn is_query(kind: u8) -> bool {
    matches!(kind, 0 | 8 | 13..=18)
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    use super::*;
    use crate::dataplane::packet::checksum::tests::naive;

    const TUNNEL: Ipv4Addr = Ipv4Addr::new(10, 5, 1, 0);
    const SENDER: [u8; 4] = [10, 5, 1, 7];

    fn udp(src: [u8; 4], dst: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv4(src, dst, 17).udp(4000, 53).write(&mut packet, payload).unwrap();
        packet
    }

    fn answer(error: IcmpError, offender: &[u8]) -> Option<Vec<u8>> {
        let mut out = [0xee; ERROR_MAX_BYTES];
        let len = error.answer(offender, TUNNEL, &mut out)?;
        assert!(out[len..].iter().all(|byte| *byte == 0xee));
        Some(out[..len].to_vec())
    }

    #[test]
    fn every_error_is_a_complete_packet_that_quotes_its_offender() {
        let offender = udp(SENDER, [10, 9, 9, 9], b"sixteen bytes...");
        for (error, kind, code, mtu) in [
            (IcmpError::NetUnreachable, 3, 0, 0),
            (IcmpError::TimeExceeded, 11, 0, 0),
            (IcmpError::FragmentationNeeded { mtu: 1472 }, 3, 4, 1472_u16),
        ] {
            let packet = answer(error, &offender).unwrap();
            assert_eq!(packet.len(), 20 + 8 + 20 + 8);
            let sliced = SlicedPacket::from_ip(&packet).unwrap();
            let Some(NetSlice::Ipv4(ip)) = &sliced.net else {
                panic!("no IPv4 header");
            };
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!((header.source, header.destination), (TUNNEL.octets(), SENDER));
            assert_eq!((header.time_to_live, header.total_len), (64, 56));
            assert_eq!(packet[4..8], [0; 4], "identification and fragment field");
            let Some(TransportSlice::Icmpv4(icmp)) = &sliced.transport else {
                panic!("no ICMP");
            };
            assert_eq!((icmp.type_u8(), icmp.code_u8()), (kind, code));
            assert_eq!(packet[24..26], [0, 0]);
            assert_eq!(packet[26..28], mtu.to_be_bytes());
            assert_eq!(naive(&packet[20..]), 0xffff);
            assert_eq!(packet[28..], offender[..28]);
        }
    }

    #[test]
    fn a_header_of_60_bytes_is_answered_and_a_short_payload_not_overread() {
        let mut header = Ipv4Header::new(3, 17, IpNumber(99), SENDER, [10, 9, 9, 9]).unwrap();
        header.options = [1; 40][..].try_into().unwrap();
        header.set_payload_len(3).unwrap();
        let offender = [&header.to_bytes()[..], b"abc"].concat();
        let packet = answer(IcmpError::NetUnreachable, &offender).unwrap();
        assert_eq!(packet[28..], offender);
        let padded = [&offender[..], b"padding"].concat();
        assert_eq!(answer(IcmpError::NetUnreachable, &padded).unwrap(), packet);
        assert!(packet.len() < ERROR_MAX_BYTES);
    }

    #[test]
    fn errors_are_never_answered_and_queries_are() {
        for kind in 0..=255_u8 {
            let mut packet = udp(SENDER, [10, 9, 9, 9], b"");
            packet[9] = 1;
            packet[20] = kind;
            let answered = answer(IcmpError::TimeExceeded, &packet).is_some();
            assert_eq!(answered, [0, 8, 13, 14, 15, 16, 17, 18].contains(&kind), "type {kind}");
        }
        let mut empty = udp(SENDER, [10, 9, 9, 9], b"")[..20].to_vec();
        empty[2..4].copy_from_slice(&[0, 20]);
        empty[9] = 1;
        assert_eq!(answer(IcmpError::TimeExceeded, &empty), None);
    }

    #[test]
    fn only_the_first_fragment_is_answered() {
        let mut packet = udp(SENDER, [10, 9, 9, 9], b"data");
        packet[6] = 0x20;
        assert!(answer(IcmpError::NetUnreachable, &packet).is_some());
        for (high, low) in [(0x20, 1), (0, 1), (0x1f, 0xff)] {
            packet[6..8].copy_from_slice(&[high, low]);
            assert_eq!(answer(IcmpError::NetUnreachable, &packet), None);
        }
    }

    #[test]
    fn only_one_host_is_answered_about_a_packet_to_one_host() {
        let host = [10, 9, 9, 9];
        let not_hosts =
            [[0, 0, 0, 0], [0, 1, 2, 3], [127, 0, 0, 1], [224, 0, 0, 1], [239, 1, 1, 1], [255; 4]];
        for src in not_hosts {
            assert_eq!(answer(IcmpError::NetUnreachable, &udp(src, host, b"")), None, "{src:?}");
        }
        for dst in [[224, 0, 0, 251], [239, 1, 2, 3], [255; 4]] {
            assert_eq!(answer(IcmpError::NetUnreachable, &udp(SENDER, dst, b"")), None, "{dst:?}");
        }
    }

    proptest! {
        #[test]
        fn any_offender_is_answered_or_not_without_panic(
            mut offender in prop::collection::vec(any::<u8>(), 0..100),
            likely in any::<bool>(),
            mtu in any::<u16>(),
        ) {
            if likely && offender.len() > 60 {
                offender[0] = 0x40 | (offender[0] & 0x0f);
                offender[2] = 0;
                offender[12] = 10;
            }
            for error in [IcmpError::NetUnreachable, IcmpError::TimeExceeded, IcmpError::FragmentationNeeded { mtu }] {
                if let Some(packet) = answer(error, &offender) {
                    prop_assert!(packet.len() <= offender.len() + 28);
                    prop_assert!(SlicedPacket::from_ip(&packet).is_ok());
                }
            }
        }
    }
}

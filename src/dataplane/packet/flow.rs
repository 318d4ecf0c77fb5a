//! Telling flows apart by a number.
#![forbid(unsafe_code)]

use super::ipv4::{self, HEADER_BYTES};
use super::{be16, be32};

/// A number that all packets of a flow have in common, those of the other direction too; packets
/// of different flows mostly have different ones. 0 for what begins with no IPv4 header.
///
/// `packet` may be the headers alone. Fragments have no ports that could be told: all fragments
/// between two hosts are one flow here, as they are for the kernel (net/core/flow_dissector.c).
#[inline]
#[must_use]
pub fn hash(packet: &[u8]) -> u32 {
    let Some(fixed) = packet.first_chunk::<HEADER_BYTES>() else { return 0 };
    if fixed[0] >> 4 != 4 {
        return 0;
    }
    let protocol = fixed[9];
    let has_ports = (protocol == ipv4::TCP || protocol == ipv4::UDP)
        && be16(fixed, 6) & ipv4::FRAGMENT_MASK == 0;
    let ports = packet
        .get(usize::from(fixed[0] & 0x0f) * 4..)
        .and_then(|transport| transport.first_chunk::<4>())
        .filter(|_| has_ports)
        .map_or(0, |ports| be32(ports, 0));
    // Exclusive or makes it the same both ways; the product spreads it over all bits
    // (splitmix64's first step).
    let addresses = be32(fixed, 12) ^ be32(fixed, 16);
    let ends = u64::from(addresses) << 32 | u64::from((ports >> 16) ^ (ports & 0xffff)) << 8;
    ((ends | u64::from(protocol)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn packet(source: [u8; 4], destination: [u8; 4], ports: [u16; 2]) -> Vec<u8> {
        let mut packet = vec![0; 28];
        packet[0] = 0x45;
        packet[9] = ipv4::UDP;
        packet[12..16].copy_from_slice(&source);
        packet[16..20].copy_from_slice(&destination);
        packet[20..22].copy_from_slice(&ports[0].to_be_bytes());
        packet[22..24].copy_from_slice(&ports[1].to_be_bytes());
        packet
    }

    const A: [u8; 4] = [172, 7, 1, 2];
    const B: [u8; 4] = [172, 7, 2, 2];

    #[test]
    fn both_directions_are_one_flow() {
        let there = packet(A, B, [40_000, 80]);
        let back = packet(B, A, [80, 40_000]);
        assert_eq!(hash(&there), hash(&back));
        assert_ne!(hash(&there), hash(&packet(A, B, [40_001, 80])));
        assert_ne!(hash(&there), hash(&packet(A, [172, 7, 3, 2], [40_000, 80])));
    }

    #[test]
    fn the_headers_alone_tell_as_much() {
        let whole = packet(A, B, [1, 2]);
        assert_eq!(hash(&whole[..24]), hash(&whole));
    }

    #[test]
    fn ports_in_a_row_spread_over_the_high_bits() {
        let eighths: HashSet<u32> =
            (40_000..40_032).map(|port| hash(&packet(A, B, [port, 5201])) >> 29).collect();
        assert_eq!(eighths.len(), 8);
    }

    #[test]
    fn fragments_of_two_hosts_are_one_flow() {
        let mut first = packet(A, B, [1, 2]);
        first[6] = 0x20;
        let mut second = packet(A, B, [0xdead, 0xbeef]);
        second[7] = 0xb9;
        assert_eq!(hash(&first), hash(&second));
    }

    #[test]
    fn what_is_no_ipv4_packet_has_no_number() {
        assert_eq!(hash(&[]), 0);
        assert_eq!(hash(&[0x45; 19]), 0);
        assert_eq!(hash(&[0x60; 40]), 0);
        // A header that claims options which are not there.
        let mut cut = packet(A, B, [1, 2]);
        cut[0] = 0x4f;
        assert_eq!(
            hash(&cut),
            hash(&{
                cut[22] = 9;
                cut
            })
        );
    }
}

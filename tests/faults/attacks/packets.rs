//! Packets of a peer that lies: built field by field, right or wrong.

use std::net::Ipv4Addr;

use flanneld::dataplane::packet::checksum::{finish, finish_udp, pseudo_header_v4, sum};

use super::ATTACKERS_POD;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMP: u8 = 1;
pub(super) const DONT_FRAGMENT: u16 = 0x4000;
pub(super) const MORE_FRAGMENTS: u16 = 0x2000;

/// The IPv4 header of a packet.
#[derive(Clone, Debug)]
pub(super) struct Ip {
    pub(super) source: [u8; 4],
    pub(super) destination: Ipv4Addr,
    pub(super) protocol: u8,
    pub(super) tos: u8,
    pub(super) ttl: u8,
    pub(super) id: u16,
    /// The three flags and the offset in units of 8 bytes.
    pub(super) fragment: u16,
}

impl Ip {
    /// From the attacker's pod.
    pub(super) fn to(destination: Ipv4Addr, protocol: u8) -> Ip {
        Ip {
            source: ATTACKERS_POD,
            destination,
            protocol,
            tos: 0,
            ttl: 64,
            id: 1,
            fragment: DONT_FRAGMENT,
        }
    }

    /// The packet with this payload.
    pub(super) fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let total_bytes = u16::try_from(20 + payload.len()).unwrap();
        let mut packet = vec![0x45, self.tos];
        for field in [total_bytes, self.id, self.fragment] {
            packet.extend(field.to_be_bytes());
        }
        packet.extend([self.ttl, self.protocol, 0, 0]);
        packet.extend(self.source);
        packet.extend(self.destination.octets());
        let checksum = finish(sum(&packet, 0));
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        packet.extend_from_slice(payload);
        packet
    }

    fn pseudo_header(&self, bytes: usize) -> u64 {
        let bytes = u16::try_from(bytes).unwrap();
        pseudo_header_v4(self.source, self.destination.octets(), self.protocol, bytes)
    }

    /// The packet of a UDP datagram between these ports.
    pub(super) fn udp(&self, from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
        self.packet(&self.datagram(from, to, payload))
    }

    /// The UDP datagram alone.
    pub(super) fn datagram(&self, from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
        let mut datagram = Vec::new();
        for field in [from, to, u16::try_from(8 + payload.len()).unwrap(), 0] {
            datagram.extend(field.to_be_bytes());
        }
        datagram.extend_from_slice(payload);
        let checksum = finish_udp(sum(&datagram, self.pseudo_header(datagram.len())));
        datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
        datagram
    }

    /// The packet of a TCP segment.
    pub(super) fn tcp(&self, tcp: &Tcp, payload: &[u8]) -> Vec<u8> {
        let mut segment = Vec::new();
        segment.extend(tcp.ports.0.to_be_bytes());
        segment.extend(tcp.ports.1.to_be_bytes());
        segment.extend(tcp.seq.to_be_bytes());
        segment.extend(tcp.ack.to_be_bytes());
        let words = u8::try_from(5 + tcp.options.len() / 4).unwrap();
        segment.extend([words << 4, tcp.flags]);
        for field in [tcp.window, 0, tcp.urgent] {
            segment.extend(field.to_be_bytes());
        }
        segment.extend_from_slice(&tcp.options);
        segment.extend_from_slice(payload);
        let checksum = finish(sum(&segment, self.pseudo_header(segment.len())));
        segment[16..18].copy_from_slice(&checksum.to_be_bytes());
        self.packet(&segment)
    }
}

/// The TCP header of a segment.
#[derive(Clone, Debug)]
pub(super) struct Tcp {
    pub(super) ports: (u16, u16),
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    pub(super) urgent: u16,
    /// Whole words.
    pub(super) options: Vec<u8>,
}

//! Packets for the tests of this room, and an oracle that shares no code with it.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;

use etherparse::{IpNumber, Ipv4Header, SlicedPacket, TcpHeader, TransportSlice, UdpHeader};

use super::virtio::VirtioNetHdr;
use crate::dataplane::packet::checksum::tests::naive;
use crate::dataplane::packet::tcp;

/// What a test says about a packet; the rest follows.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) src: Ipv4Addr,
    pub(crate) dst: Ipv4Addr,
    pub(crate) ports: (u16, u16),
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) id: u16,
    pub(crate) dont_fragment: bool,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) window: u16,
    pub(crate) flags: u8,
    pub(crate) tcp_options: Vec<u8>,
    pub(crate) ip_options: Vec<u8>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            src: Ipv4Addr::new(10, 5, 1, 2),
            dst: Ipv4Addr::new(10, 5, 2, 3),
            ports: (40_000, 5201),
            tos: 0,
            ttl: 62,
            id: 100,
            dont_fragment: true,
            seq: 1000,
            ack: 7,
            window: 501,
            flags: tcp::ACK,
            tcp_options: [&[1, 1, 8, 10][..], &[9; 8]].concat(),
            ip_options: Vec::new(),
        }
    }
}

impl Spec {
    fn ip(&self, protocol: IpNumber, payload_len: usize) -> Vec<u8> {
        let mut ip =
            Ipv4Header::new(0, self.ttl, protocol, self.src.octets(), self.dst.octets()).unwrap();
        ip.options = self.ip_options[..].try_into().unwrap();
        ip.set_payload_len(payload_len).unwrap();
        ip.identification = self.id;
        ip.dont_fragment = self.dont_fragment;
        let mut bytes = ip.to_bytes().to_vec();
        bytes[1] = self.tos;
        bytes[10..12].fill(0);
        let sum = !naive(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn pseudo_header(&self, protocol: u8, len: usize) -> Vec<u8> {
        let mut bytes = [self.src.octets(), self.dst.octets()].concat();
        bytes.extend_from_slice(&[0, protocol]);
        bytes.extend_from_slice(&(len as u16).to_be_bytes());
        bytes
    }

    /// A complete TCP packet.
    pub(crate) fn tcp(&self, payload: &[u8]) -> Vec<u8> {
        self.build_tcp(payload, false)
    }

    /// A TCP superpacket as the kernel hands it over: checksum of the pseudo header only.
    pub(crate) fn tcp_super(&self, payload: &[u8], gso_size: u16) -> (Vec<u8>, VirtioNetHdr) {
        let hdr = VirtioNetHdr::tcp4(20 + self.tcp_options.len() as u16, gso_size);
        (self.build_tcp(payload, true), hdr)
    }

    fn build_tcp(&self, payload: &[u8], partial: bool) -> Vec<u8> {
        let mut header = TcpHeader::new(self.ports.0, self.ports.1, self.seq, self.window);
        header.acknowledgment_number = self.ack;
        header.set_options_raw(&self.tcp_options).unwrap();
        let mut segment = header.to_bytes().to_vec();
        segment[13] = self.flags;
        segment.extend_from_slice(payload);
        let pseudo = self.pseudo_header(6, segment.len());
        let sum = if partial { naive(&pseudo) } else { !naive(&[&pseudo[..], &segment].concat()) };
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        let mut packet = self.ip(IpNumber::TCP, segment.len());
        packet.extend_from_slice(&segment);
        packet
    }

    /// A complete UDP packet.
    pub(crate) fn udp(&self, payload: &[u8]) -> Vec<u8> {
        self.build_udp(payload, false)
    }

    /// A UDP superpacket as the kernel hands it over.
    pub(crate) fn udp_super(&self, payload: &[u8], gso_size: u16) -> (Vec<u8>, VirtioNetHdr) {
        (self.build_udp(payload, true), VirtioNetHdr::udp4(gso_size))
    }

    fn build_udp(&self, payload: &[u8], partial: bool) -> Vec<u8> {
        let (from, to) = self.ports;
        let header = UdpHeader::without_ipv4_checksum(from, to, payload.len()).unwrap();
        let mut datagram = header.to_bytes().to_vec();
        datagram.extend_from_slice(payload);
        let pseudo = self.pseudo_header(17, datagram.len());
        let sum = if partial {
            naive(&pseudo)
        } else {
            match !naive(&[&pseudo[..], &datagram].concat()) {
                0 => 0xffff,
                sum => sum,
            }
        };
        datagram[6..8].copy_from_slice(&sum.to_be_bytes());
        let mut packet = self.ip(IpNumber::UDP, datagram.len());
        packet.extend_from_slice(&datagram);
        packet
    }
}

/// Panics unless etherparse takes `packet` for one whole IPv4 packet with right checksums.
pub(crate) fn assert_complete(packet: &[u8]) {
    let sliced = SlicedPacket::from_ip(packet).unwrap();
    let Some(etherparse::NetSlice::Ipv4(ip)) = &sliced.net else {
        panic!("no IPv4 header");
    };
    let header = ip.header().to_header();
    assert_eq!(usize::from(header.total_len), packet.len());
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    let (src, dst) = (header.source, header.destination);
    match sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let header = tcp.to_header();
            let sum = header.calc_checksum_ipv4_raw(src, dst, tcp.payload()).unwrap();
            assert_eq!(tcp.checksum(), sum);
        }
        Some(TransportSlice::Udp(udp)) => {
            assert_ne!(udp.checksum(), 0);
            let header = udp.to_header();
            let sum = header.calc_checksum_ipv4_raw(src, dst, udp.payload()).unwrap();
            assert_eq!(udp.checksum(), if sum == 0 { 0xffff } else { sum });
        }
        other => panic!("neither TCP nor UDP: {other:?}"),
    }
}

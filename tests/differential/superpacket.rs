//! Superpackets as a kernel hands them to a device with offloads.
#![forbid(unsafe_code)]

use etherparse::checksum::Sum16BitWords;
use etherparse::{IpNumber, Ipv4Header, TcpHeader, UdpHeader};
use flanneld::dataplane::offload::limits::{IP_MAX_BYTES, UDP_MAX_SEGMENTS};
use flanneld::dataplane::offload::virtio::VirtioNetHdr;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use crate::router::MTU;

/// The smallest segments that Linux sends: `net.ipv4.tcp_min_snd_mss`.
const MIN_MSS: usize = 48;

/// What is random of a superpacket; its payload follows from it.
#[derive(Clone, Debug)]
pub(crate) struct Superpacket {
    udp: bool,
    tos: u8,
    ttl: u8,
    id: u16,
    dont_fragment: bool,
    ip_options: usize,
    tcp_options: usize,
    tcp_flags: u8,
    ports: [u16; 2],
    seq: u32,
    ack: u32,
    window: u16,
    urgent: u16,
    mss: usize,
    payload_bytes: usize,
}

impl Superpacket {
    pub(crate) fn random(rng: &mut StdRng) -> Superpacket {
        let udp = rng.random();
        // In words; rarely any.
        let ip_options = if rng.random_ratio(1, 8) { rng.random_range(0..=10) } else { 0 };
        let tcp_options = if udp { 0 } else { rng.random_range(0..=10) };
        let headers = 20 + ip_options * 4 + if udp { 8 } else { 20 + tcp_options * 4 };
        // Small segments as often as large ones.
        let most = rng.random_range(MIN_MSS..=usize::from(MTU) - headers);
        let mss = rng.random_range(MIN_MSS..=most);
        let most = if udp { mss * UDP_MAX_SEGMENTS } else { IP_MAX_BYTES };
        let most = most.min(IP_MAX_BYTES - headers);
        Superpacket {
            udp,
            tos: rng.random(),
            ttl: rng.random_range(2..=255),
            id: rng.random(),
            dont_fragment: rng.random(),
            ip_options,
            tcp_options,
            tcp_flags: rng.random(),
            ports: rng.random(),
            seq: rng.random(),
            ack: rng.random(),
            window: rng.random(),
            urgent: rng.random(),
            mss,
            payload_bytes: rng.random_range(1..=most),
        }
    }

    /// The bytes, the checksum of the transport header being that of the pseudo header.
    pub(crate) fn build(&self) -> (Vec<u8>, VirtioNetHdr) {
        const NO_OPERATION: [u8; 40] = [1; 40];
        let mut payload = vec![0; self.payload_bytes];
        StdRng::seed_from_u64(self.seq.into()).fill_bytes(&mut payload);
        let protocol = if self.udp { IpNumber::UDP } else { IpNumber::TCP };
        let mut ip = Ipv4Header::new(0, self.ttl, protocol, [10, 5, 1, 2], [10, 5, 2, 3]).unwrap();
        ip.dscp = (self.tos >> 2).try_into().unwrap();
        ip.ecn = (self.tos & 3).try_into().unwrap();
        ip.identification = self.id;
        ip.dont_fragment = self.dont_fragment;
        ip.options = NO_OPERATION[..self.ip_options * 4].try_into().unwrap();
        let at = ip.header_len() as u16;

        let [from, to] = self.ports;
        let (mut transport, csum_offset) = if self.udp {
            let udp = UdpHeader::without_ipv4_checksum(from, to, payload.len()).unwrap();
            (udp.to_bytes().to_vec(), 6)
        } else {
            let mut tcp = TcpHeader::new(from, to, self.seq, self.window);
            tcp.acknowledgment_number = self.ack;
            tcp.urgent_pointer = self.urgent;
            tcp.set_options_raw(&NO_OPERATION[..self.tcp_options * 4]).unwrap();
            let mut bytes = tcp.to_bytes().to_vec();
            bytes[13] = self.tcp_flags;
            (bytes, 16)
        };
        let headers = at + transport.len() as u16;
        let len = transport.len() + payload.len();
        let pseudo = Sum16BitWords::new()
            .add_4bytes(ip.source)
            .add_4bytes(ip.destination)
            .add_2bytes([0, protocol.0])
            .add_2bytes((len as u16).to_be_bytes());
        // The sum itself, not its complement.
        let pseudo = !pseudo.ones_complement().to_be();
        transport[csum_offset..csum_offset + 2].copy_from_slice(&pseudo.to_be_bytes());
        ip.set_payload_len(len).unwrap();
        ip.header_checksum = ip.calc_header_checksum();

        let packet = [&ip.to_bytes()[..], &transport, &payload].concat();
        (packet, self.hdr(at, headers, csum_offset as u16))
    }

    fn hdr(&self, csum_start: u16, headers: u16, csum_offset: u16) -> VirtioNetHdr {
        let plain = if self.udp {
            VirtioNetHdr::udp4(self.mss as u16)
        } else {
            VirtioNetHdr::tcp4(0, self.mss as u16)
        };
        let mut bytes = plain.to_bytes();
        bytes[2..4].copy_from_slice(&headers.to_ne_bytes());
        bytes[6..8].copy_from_slice(&csum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&csum_offset.to_ne_bytes());
        VirtioNetHdr::parse(&bytes)
    }
}

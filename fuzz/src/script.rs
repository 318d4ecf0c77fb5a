//! Trains of packets from a script of bytes.

use etherparse::{IpNumber, Ipv4Header, TcpHeader, UdpHeader};

const MAX_PACKETS: usize = 300;
const MAX_SLAB_BYTES: usize = 1 << 18;

/// The state of four flows while a script is played.
pub struct Script {
    flows: [Flow; 4],
    dont_fragment: bool,
    serial: u32,
}

#[derive(Clone, Copy)]
struct Flow {
    udp: bool,
    port: u16,
    host: u8,
    id: u16,
    seq: u32,
    window: u16,
    tos: u8,
}

impl Script {
    /// Four flows, two of TCP and two of UDP, whose packets may be fragmented or may not.
    pub fn new(dont_fragment: bool) -> Self {
        let flow = |number: u8| Flow {
            udp: number & 1 != 0,
            port: 1000,
            host: number / 2,
            id: 0xffe0,
            seq: u32::MAX - 5000,
            window: 501,
            tos: 0,
        };
        Self { flows: [flow(0), flow(1), flow(2), flow(3)], dont_fragment, serial: 0 }
    }

    /// Three bytes say what comes next: flow and kind, size, how many. Kind 15 is followed by the
    /// bytes of a packet themselves.
    pub fn play(mut self, mut script: &[u8]) -> Vec<Vec<u8>> {
        let (mut packets, mut bytes) = (Vec::new(), 0);
        while let Some(([op, size, count], rest)) = script.split_first_chunk::<3>() {
            script = rest;
            let (flow, kind) = (usize::from(op & 3), op >> 2 & 15);
            if kind == 15 {
                let (raw, rest) = script.split_at(script.len().min(usize::from(*size)));
                script = rest;
                packets.push(raw.to_vec());
                continue;
            }
            for _ in 0..=count % 80 {
                let packet = self.packet(flow, kind, usize::from(*size) * 5, *size);
                bytes += packet.len();
                if packets.len() >= MAX_PACKETS || bytes > MAX_SLAB_BYTES {
                    return packets;
                }
                packets.push(packet);
            }
        }
        packets
    }

    fn packet(&mut self, flow: usize, kind: u8, size: usize, byte: u8) -> Vec<u8> {
        const ACK: u8 = 0x10;
        const PSH: u8 = 0x08;
        self.serial += 1;
        let flow = &mut self.flows[flow];
        // No two packets are alike, so that a swapped pair is seen.
        let payload: Vec<u8> =
            (0..size).map(|i| (i as u32 ^ self.serial.rotate_left(i as u32 % 24)) as u8).collect();
        let (mut flags, mut body, mut options) = (ACK, &payload[..], [1, 1, 8, 10].to_vec());
        match kind {
            1 => flags |= PSH,
            2 => flags = byte,
            3 => body = &[],
            4 => flow.window = flow.window.wrapping_add(1),
            5 => flow.seq = flow.seq.wrapping_add(700),
            6 => flow.tos = byte,
            7 => flow.id = flow.id.wrapping_add(byte.into()),
            8 => flow.port = 1000 + u16::from(byte % 3),
            9 => options = vec![1; usize::from(byte % 10) * 4],
            _ => {}
        }
        let header = if flow.udp { flow.udp(body) } else { flow.tcp(flags, &options, body) };
        let mut ip = Ipv4Header::new(
            (header.len() + body.len()) as u16,
            62,
            if flow.udp { IpNumber::UDP } else { IpNumber::TCP },
            flow.source(),
            DESTINATION,
        )
        .expect("it fits");
        ip.identification = flow.id;
        ip.dont_fragment = self.dont_fragment;
        ip.more_fragments = kind == 10;
        ip.dscp = (flow.tos >> 2).try_into().expect("six bits");
        ip.ecn = (flow.tos & 3).try_into().expect("two bits");
        if kind == 11 {
            ip.options = [1, 1, 1, 1].into();
        }
        ip.header_checksum = ip.calc_header_checksum();
        flow.id = flow.id.wrapping_add(1);
        flow.seq = flow.seq.wrapping_add(body.len() as u32);
        let mut packet = [&ip.to_bytes()[..], &header, body].concat();
        match kind {
            12 => *packet.last_mut().expect("it has a header") ^= 0x40,
            13 => packet.push(byte),
            14 if flow.udp => packet[26..28].fill(0),
            _ => {}
        }
        packet
    }
}

const DESTINATION: [u8; 4] = [10, 5, 2, 3];

impl Flow {
    fn source(&self) -> [u8; 4] {
        [10, 5, 1, self.host]
    }

    fn udp(&self, body: &[u8]) -> Vec<u8> {
        UdpHeader::with_ipv4_checksum(self.port, 53, &self.ip(IpNumber::UDP), body)
            .expect("it fits")
            .to_bytes()
            .to_vec()
    }

    fn tcp(&self, flags: u8, options: &[u8], body: &[u8]) -> Vec<u8> {
        let mut tcp = TcpHeader::new(self.port, 80, self.seq, self.window);
        tcp.acknowledgment_number = 7;
        let padded = [options, &[0; 8][..if options.len() == 4 { 8 } else { 0 }]].concat();
        tcp.set_options_raw(&padded).expect("at most 40 bytes");
        let bits = [
            &mut tcp.fin,
            &mut tcp.syn,
            &mut tcp.rst,
            &mut tcp.psh,
            &mut tcp.ack,
            &mut tcp.urg,
            &mut tcp.ece,
            &mut tcp.cwr,
        ];
        for (number, bit) in bits.into_iter().enumerate() {
            *bit = flags >> number & 1 != 0;
        }
        tcp.checksum = tcp.calc_checksum_ipv4(&self.ip(IpNumber::TCP), body).expect("it fits");
        tcp.to_bytes().to_vec()
    }

    /// What the checksums need of the IP header.
    fn ip(&self, protocol: IpNumber) -> Ipv4Header {
        Ipv4Header::new(0, 62, protocol, self.source(), DESTINATION).expect("it fits")
    }
}

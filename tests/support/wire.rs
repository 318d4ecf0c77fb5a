//! A bad wire in a lab: of the overlay's datagrams to and from one host it holds back, doubles or
//! corrupts a part. Everything else passes as it is.
//!
//! The bridge is cut in two, and what comes out of a TAP device at one half is written to one at
//! the other. TAP devices ask for no offloads: the kernel hands over frames of the wire's size
//! with finished checksums, and believes no checksum of what is written.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use tun::{Configuration, Device, Layer};

use super::lab::Lab;
use super::netns::Netns;
use super::traffic::Noise;

/// The port whose datagrams are harmed.
const OVERLAY_PORT: u16 = 8285;

/// How long a datagram is held back: several probes and packets of a stream overtake it.
const HELD_BACK: Duration = Duration::from_millis(5);

/// How long an idle wire waits before it looks again.
const IDLE: Duration = Duration::from_secs(1);

/// An Ethernet header, an IPv4 header without options, a UDP header.
const UDP_CHECKSUM_AT: usize = 14 + 20 + 6;
const PAYLOAD_AT: usize = UDP_CHECKSUM_AT + 2;

/// What is done to a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// It is held back for some milliseconds.
    HoldBack,
    /// It is sent twice.
    Double,
    /// One bit of what it carries is flipped, and its checksum tells.
    FlipBit,
    /// The same, but its checksum is made to fit.
    FlipBitUnseen,
    /// The same, but its checksum is left out, which IPv4 allows.
    FlipBitWithoutChecksum,
}

/// The wire. The bridge is whole again when it is dropped.
#[derive(Debug)]
pub struct Wire<'lab> {
    switch: &'lab Netns,
    port: String,
    plan: Arc<Plan>,
    threads: Vec<JoinHandle<()>>,
}

/// What is done to how many datagrams of a hundred, and was done to how many.
#[derive(Debug)]
struct Plan(Vec<(Harm, u64, AtomicU64)>);

impl<'lab> Wire<'lab> {
    /// Puts the wire between the host of that number and the others: each harm befalls so many
    /// datagrams of a hundred.
    pub fn insert(lab: &'lab Lab, host: usize, harms: &[(Harm, u64)]) -> Self {
        let (switch, [.., number]) = (lab.switch(), lab.host(host).address.octets());
        let ends = ["wire0", "wire1"].map(|name| {
            let mut tap = Configuration::default();
            tap.tun_name(name).layer(Layer::L2);
            Arc::new(switch.enter(|| tun::create(&tap)).expect("root may make a TAP device"))
        });
        switch.ip("link add br1 type bridge");
        for line in ["br1 up", "wire0 master br0 up", "wire1 master br1 up"] {
            switch.ip(&format!("link set {line}"));
        }
        let port = format!("h{number}");
        switch.ip(&format!("link set {port} master br1"));
        let counted = harms.iter().map(|&(harm, percent)| (harm, percent, AtomicU64::new(0)));
        let plan = Arc::new(Plan(counted.collect()));
        let threads = [(0, 1), (1, 0)].map(|(from, to)| {
            let (plan, noise) = (Arc::clone(&plan), Noise::new(from as u64));
            let (from, to) = (Arc::clone(&ends[from]), Arc::clone(&ends[to]));
            std::thread::spawn(move || carry(&from, &to, &plan, noise))
        });
        Self { switch, port, plan, threads: threads.into() }
    }

    /// How many datagrams suffered so far, by the harms' order.
    pub fn harmed(&self) -> Vec<u64> {
        self.plan.0.iter().map(|(_, _, harmed)| harmed.load(Relaxed)).collect()
    }
}

impl Drop for Wire<'_> {
    fn drop(&mut self) {
        // May be called by a panic: must not panic itself.
        let _ = self.switch.try_exec(&format!("ip link set {} master br0", self.port));
        for device in ["wire0", "wire1", "br1"] {
            let _ = self.switch.try_exec(&format!("ip link delete {device}"));
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Carries one direction until the device is deleted.
fn carry(from: &Device, to: &Device, plan: &Plan, mut noise: Noise) {
    let mut frame = [0; 2048];
    let mut held: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    // Like any wire, it loses what the other end does not take.
    let send = |frame: &[u8]| drop(to.send(frame));
    loop {
        let now = Instant::now();
        while let Some((_, frame)) = held.front().filter(|(due, _)| *due <= now) {
            send(frame);
            held.pop_front();
        }
        let wait = held.front().map_or(IDLE, |(due, _)| *due - now);
        let frame = match from.recv_timeout(&mut frame, wait) {
            Ok(bytes) => &mut frame[..bytes],
            Err(error) if error.kind() == ErrorKind::TimedOut => continue,
            Err(_) => return,
        };
        match is_of_overlay(frame).then(|| plan.draw(&mut noise)).flatten() {
            None => send(frame),
            Some(Harm::HoldBack) => held.push_back((now + HELD_BACK, frame.to_vec())),
            Some(Harm::Double) => {
                send(frame);
                send(frame);
            }
            Some(flip) => {
                flip_bit(frame, &mut noise);
                let checksum = match flip {
                    Harm::FlipBitUnseen => Some(right_checksum(frame)),
                    Harm::FlipBitWithoutChecksum => Some([0, 0]),
                    _ => None,
                };
                if let Some(checksum) = checksum {
                    frame[UDP_CHECKSUM_AT..][..2].copy_from_slice(&checksum);
                }
                send(frame);
            }
        }
    }
}

impl Plan {
    /// What shall be done to the next datagram.
    fn draw(&self, noise: &mut Noise) -> Option<Harm> {
        let mut lot = random(noise) % 100;
        for (harm, percent, harmed) in &self.0 {
            if lot < *percent {
                harmed.fetch_add(1, Relaxed);
                return Some(*harm);
            }
            lot -= percent;
        }
        None
    }
}

fn random(noise: &mut Noise) -> u64 {
    let mut bytes = [0; 8];
    noise.fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

fn is_of_overlay(frame: &[u8]) -> bool {
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else { return false };
    let plain = matches!(&packet.net, Some(NetSlice::Ipv4(ip)) if ip.header().ihl() == 5);
    let Some(TransportSlice::Udp(udp)) = &packet.transport else { return false };
    plain && udp.destination_port() == OVERLAY_PORT && !udp.payload().is_empty()
}

fn flip_bit(frame: &mut [u8], noise: &mut Noise) {
    let payload = &mut frame[PAYLOAD_AT..];
    let bit = random(noise) as usize % (payload.len() * 8);
    payload[bit / 8] ^= 1 << (bit % 8);
}

/// The UDP checksum of what the datagram carries now.
fn right_checksum(frame: &[u8]) -> [u8; 2] {
    let packet = SlicedPacket::from_ethernet(frame).expect("it was one before");
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (packet.net, packet.transport)
    else {
        unreachable!("only the payload was changed")
    };
    let (src, dst) = (ip.header().source(), ip.header().destination());
    let checksum = udp.to_header().calc_checksum_ipv4_raw(src, dst, udp.payload());
    checksum.expect("short enough").to_be_bytes()
}

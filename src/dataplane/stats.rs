//! The counters of the data path.
//!
//! The pairs of threads share them, so counting is one atomic addition. It orders nothing: anybody
//! may read, and no counter tells anything about another. The two directions lie on cache lines of
//! their own.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// A counter that any thread may add to.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; wraps around.
    #[inline]
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The value now.
    #[inline]
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Why a packet went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Drop {
    /// Not IPv4: router solicitations and the like, from our own kernel.
    NotIpv4,
    /// A header that contradicts itself or the length of what carries it.
    Malformed,
    /// Nobody leases the destination.
    NoRoute,
    /// The time to live ended here.
    TtlExpired,
    /// Larger than the tunnel's MTU.
    TooBig,
    /// The datagram's sender is no peer.
    UnknownPeer,
    /// The inner source belongs to another peer, or to nobody in the overlay network.
    ForeignSource,
    /// The inner source lies outside the overlay network (`--source-check=strict`).
    OutsideSource,
    /// The inner destination is not in our subnet.
    ForeignDestination,
    /// The datagram was larger than any slot and arrived cut.
    Truncated,
    /// The kernel did not take the packet: no route to the peer, no memory, device down, or a
    /// socket that was full when we had to stop.
    KernelRefused,
}

impl Drop {
    /// All reasons, in the order of their counters.
    pub const ALL: [Drop; 11] = [
        Drop::NotIpv4,
        Drop::Malformed,
        Drop::NoRoute,
        Drop::TtlExpired,
        Drop::TooBig,
        Drop::UnknownPeer,
        Drop::ForeignSource,
        Drop::OutsideSource,
        Drop::ForeignDestination,
        Drop::Truncated,
        Drop::KernelRefused,
    ];

    /// The reason's name in logs and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Drop::NotIpv4 => "not_ipv4",
            Drop::Malformed => "malformed",
            Drop::NoRoute => "no_route",
            Drop::TtlExpired => "ttl_expired",
            Drop::TooBig => "too_big",
            Drop::UnknownPeer => "unknown_peer",
            Drop::ForeignSource => "foreign_source",
            Drop::OutsideSource => "outside_source",
            Drop::ForeignDestination => "foreign_destination",
            Drop::Truncated => "truncated",
            Drop::KernelRefused => "kernel_refused",
        }
    }
}

/// Counters of one direction's threads.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct DirectionStats {
    /// Inner packets that were passed on, as they are on the wire.
    pub packets: Counter,
    /// Their bytes.
    pub bytes: Counter,
    /// Wake-ups that found work.
    pub batches: Counter,
    /// System calls that moved packets, in and out.
    pub syscalls: Counter,
    /// Superpackets that came in whole: TSO or USO from the TUN device, GRO from the socket.
    pub superpackets_in: Counter,
    /// Superpackets that went out whole: `UDP_SEGMENT` to the socket, merged to the TUN device.
    pub superpackets_out: Counter,
    /// ICMP errors that were sent.
    pub icmp_errors: Counter,
    /// Errors that the kernel reported.
    pub errors: Counter,
    /// Datagrams that the kernel dropped at the sockets, because the buffer was full or the UDP
    /// checksum wrong; a train that it had merged counts as one.
    pub kernel_drops: Counter,
    drops: [Counter; Drop::ALL.len()],
}

impl DirectionStats {
    /// Counts `packets` dropped packets.
    #[inline]
    pub fn drop(&self, reason: Drop, packets: u64) {
        self.drops[reason as usize].add(packets);
    }

    /// How many packets were dropped for this reason.
    #[must_use]
    pub fn dropped(&self, reason: Drop) -> u64 {
        self.drops[reason as usize].get()
    }
}

impl fmt::Display for DirectionStats {
    /// One line, the counters that are not zero.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "packets={} bytes={}", self.packets.get(), self.bytes.get())?;
        let named = [
            ("batches", &self.batches),
            ("syscalls", &self.syscalls),
            ("superpackets_in", &self.superpackets_in),
            ("superpackets_out", &self.superpackets_out),
            ("icmp_errors", &self.icmp_errors),
            ("errors", &self.errors),
            ("kernel_drops", &self.kernel_drops),
        ];
        for (name, counter) in named.into_iter().filter(|(_, counter)| counter.get() > 0) {
            write!(f, " {name}={}", counter.get())?;
        }
        for reason in Drop::ALL.into_iter().filter(|&reason| self.dropped(reason) > 0) {
            write!(f, " drop_{}={}", reason.name(), self.dropped(reason))?;
        }
        Ok(())
    }
}

/// The rungs that the data path stands on. One that was left stays so until the device is made anew,
/// but for `udp_gso`: each thread tries that again for itself, and the last one whose turn changes
/// says what is told here.
#[derive(Debug, Default)]
pub struct Rungs {
    /// The socket segments what we send (`UDP_SEGMENT`).
    pub udp_gso: AtomicBool,
    /// The socket merges what it receives (`UDP_GRO`).
    pub udp_gro: AtomicBool,
    /// The TUN device hands over TCP superpackets and takes them.
    pub tun_tso: AtomicBool,
    /// The same for UDP.
    pub tun_uso: AtomicBool,
    /// What came in is merged before it is written to the TUN device.
    pub merging: AtomicBool,
}

impl fmt::Display for Rungs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |on: &AtomicBool| if on.load(Relaxed) { "on" } else { "off" };
        write!(
            f,
            "tun tso={} uso={} merging={}, udp gso={} gro={}",
            word(&self.tun_tso),
            word(&self.tun_uso),
            word(&self.merging),
            word(&self.udp_gso),
            word(&self.udp_gro)
        )
    }
}

/// All counters of one data path.
#[derive(Debug, Default)]
pub struct Stats {
    /// TUN to UDP.
    pub egress: DirectionStats,
    /// UDP to TUN.
    pub ingress: DirectionStats,
    /// What is switched on now.
    pub rungs: Rungs,
    /// A thread panicked: its flows stand still.
    pub panicked: AtomicBool,
}

/// One direction of one peer's traffic.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct PeerDirection {
    /// Inner packets.
    pub packets: Counter,
    /// Their bytes.
    pub bytes: Counter,
    /// Packets that were dropped by the checks, or could not be sent.
    pub drops: Counter,
}

/// What is counted for each peer, by its public address.
#[derive(Debug, Default)]
pub struct PeerStats {
    /// Sent to the peer.
    pub egress: PeerDirection,
    /// Received from the peer.
    pub ingress: PeerDirection,
}

//! Cutting superpackets, merging packets, planning sends. Pure: no descriptor, no clock.
//!
//! # Words
//!
//! - **packet**: one IPv4 packet of at most the tunnel's MTU, as it travels in one UDP datagram.
//! - **superpacket**: what the kernel hands over or takes in one piece in place of many packets
//!   of one flow (TSO, USO): one header, the payload of all.
//! - **segment**: one packet cut from a superpacket.
//! - **datagram**: what leaves by UDP: one packet, in one or two pieces.
//! - **run**: datagrams to one peer that one `sendmsg` with `UDP_SEGMENT` can carry.
//! - **item**: one write to the TUN: a packet as it came or a superpacket merged from several.
//! - **slab**: a buffer that the caller owns and fills. Everything here points into slabs by
//!   [`span::Span`], so every array is made once and reused for ever, without a lifetime.
#![forbid(unsafe_code)]

pub mod arena;
pub mod coalesce;
pub mod limits;
pub mod run;
pub mod segment;
pub mod span;
#[cfg(test)]
mod testkit;
pub mod virtio;

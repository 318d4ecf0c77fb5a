//! What may come in: the checks on a datagram, its sender and the packet inside.
//!
//! An overlay without encryption can be told lies; these checks bound what a lie can do. With
//! `--source-check=peer` a datagram must come from a peer's address, an inner source inside the
//! overlay network must belong to that very peer, and the inner destination must be ours, so that
//! this host is no open relay. `strict` refuses inner sources outside the overlay network too;
//! `off` is what flannel does: everything is delivered.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use tracing::warn;

use super::packet::ipv4::Ipv4View;
use super::routes::{Route, Routes};
use super::stats::{Drop, Stats};
use super::sys::receive::Message;
use super::worker::SourceCheck;
use crate::logging::limit::LogGate;

/// A packet that may be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Admitted {
    /// Bytes of the IP header.
    pub(super) header_bytes: usize,
    /// Bytes of the packet; what the datagram holds beyond is padding.
    pub(super) total_bytes: usize,
}

/// The checks, and what they remember from one packet to the next.
pub(super) struct Admission {
    check: SourceCheck,
    stats: Arc<Stats>,
    gates: [LogGate; Drop::ALL.len()],
}

impl Admission {
    pub(super) fn new(check: SourceCheck, stats: Arc<Stats>) -> Admission {
        Admission { check, stats, gates: Default::default() }
    }

    /// Whether the sender of a train may send us anything; if not, the train is counted.
    #[inline]
    pub(super) fn admits_sender(&mut self, message: &Message, routes: &Routes) -> bool {
        if self.check == SourceCheck::Off || routes.is_peer(*message.source.ip()) {
            return true;
        }
        let datagrams = message.len.div_ceil(message.stride).max(1) as u64;
        self.refuse(Drop::UnknownPeer, datagrams, message, None);
        false
    }

    /// Checks one datagram of an admitted train; if it fails, it is counted.
    #[inline]
    pub(super) fn admits(
        &mut self,
        datagram: &[u8],
        message: &Message,
        routes: &Routes,
    ) -> Option<Admitted> {
        let view = match Ipv4View::parse(datagram) {
            Ok(view) => view,
            Err(_) => {
                self.stats.ingress.drop(Drop::Malformed, 1);
                return None;
            }
        };
        let (source, destination) = (view.src(), view.dst());
        let owner = routes.lookup(source).and_then(|route| routes.get(route));
        if let Err(reason) = self.inner(source, destination, owner, message, routes) {
            self.refuse(reason, 1, message, Some((source, destination)));
            // Of the inner source a liar could write another peer's.
            if let Some(sender) = routes.route_to_peer(*message.source.ip()) {
                sender.stats.ingress.drops.add(1);
            }
            return None;
        }
        let total_bytes = view.total_len();
        if let Some(owner) = owner {
            owner.stats.ingress.packets.add(1);
            owner.stats.ingress.bytes.add(total_bytes as u64);
        }
        Some(Admitted { header_bytes: view.header_len(), total_bytes })
    }

    #[inline]
    fn inner(
        &self,
        source: Ipv4Addr,
        destination: Ipv4Addr,
        owner: Option<&Route>,
        message: &Message,
        routes: &Routes,
    ) -> Result<(), Drop> {
        if self.check == SourceCheck::Off {
            return Ok(());
        }
        if !routes.own().contains(&destination) {
            return Err(Drop::ForeignDestination);
        }
        match owner {
            Some(owner) if owner.endpoint.ip() == message.source.ip() => Ok(()),
            Some(_) => Err(Drop::ForeignSource),
            None if routes.overlay().contains(&source) => Err(Drop::ForeignSource),
            None if self.check == SourceCheck::Strict => Err(Drop::OutsideSource),
            None => Ok(()),
        }
    }

    /// Counts a refusal and says so, at most once a minute per reason.
    #[cold]
    fn refuse(
        &mut self,
        reason: Drop,
        packets: u64,
        message: &Message,
        inner: Option<(Ipv4Addr, Ipv4Addr)>,
    ) {
        self.stats.ingress.drop(reason, packets);
        let Some(withheld) = self.gates[reason as usize].pass(Instant::now()) else { return };
        let sender = message.source;
        let (source, destination) = inner.unwrap_or((Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED));
        match reason {
            Drop::UnknownPeer => warn!(
                "dropped a datagram from {sender}: no lease has that address; \
                 --source-check=off would deliver it{withheld}"
            ),
            Drop::ForeignDestination => warn!(
                "dropped a packet from peer {sender}: its destination {destination} is not in our \
                 subnet; --source-check=off would deliver it{withheld}"
            ),
            Drop::OutsideSource => warn!(
                "dropped a packet from peer {sender}: its source {source} is outside the overlay \
                 network; --source-check=peer would deliver it{withheld}"
            ),
            _ => warn!(
                "dropped a packet from peer {sender}: its source {source} is not in that peer's \
                 subnet; --source-check=off would deliver it{withheld}"
            ),
        }
    }
}

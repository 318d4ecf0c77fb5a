//! The host's IPv4 routes, as plain values.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType,
};

use super::error::HostError;
use super::netlink::{Host, out_link};

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteEntry {
    /// The destination.
    pub network: Ipv4Net,
    /// The outgoing link's number; of a multipath route its first hop's.
    pub link: Option<u32>,
    /// The next hop.
    pub gateway: Option<IpAddr>,
    /// Its metric; the lowest wins.
    pub metric: u32,
    /// Leads somewhere: no blackhole and the like.
    pub unicast: bool,
    /// The kernel made it, with an address.
    pub by_kernel: bool,
}

impl Host {
    /// The IPv4 routes of the main table.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn routes(&self) -> Result<Vec<RouteEntry>, HostError> {
        Ok(self.main_routes(None).await?.iter().filter_map(read_route).collect())
    }
}

fn read_route(route: &RouteMessage) -> Option<RouteEntry> {
    let (mut to, mut metric) = (Ipv4Addr::UNSPECIFIED, 0);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => to = *address,
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    let out = out_link(route);
    Some(RouteEntry {
        network: Ipv4Net::new(to, route.header.destination_prefix_length).ok()?,
        link: out.map(|(link, _)| link),
        gateway: out.and_then(|(_, gateway)| gateway),
        metric,
        unicast: route.header.kind == RouteType::Unicast,
        by_kernel: route.header.protocol == RouteProtocol::Kernel,
    })
}

//! Keeps a blackhole route for the host's own subnet, so that packets for pods that do not exist
//! end here instead of leaving by the default route.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType,
};
use rustix::io::Errno;

use super::error::{HostError, errno, failed};
use super::netlink::Host;

/// The metric that every other route wins against. At upstream's 0, a blackhole that comes before
/// the bridge swallows what the bridge's own route should carry (docs/decisions/012).
const METRIC: u32 = u32::MAX;

impl Host {
    /// Makes sure that `subnet` has our blackhole route; `true` if anything changed. Other
    /// blackhole routes of daemons, at metrics that hide pods, go.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked, or refuses.
    pub async fn set_blackhole(&self, subnet: IpNet) -> Result<bool, HostError> {
        let present = self.blackholes(subnet).await?;
        let mut changed = false;
        if !present.iter().any(|route| metric(route) == METRIC) {
            match self.handle.route().add(blackhole(subnet, METRIC)).execute().await {
                Ok(()) => changed = true,
                Err(error) if errno(&error) == Some(Errno::EXIST) => {}
                Err(error) => {
                    return Err(failed(format!("adding the blackhole route {subnet}"), error));
                }
            }
        }
        for stale in present.iter().filter(|route| metric(route) != METRIC) {
            changed |= self.remove(subnet, metric(stale)).await?;
        }
        Ok(changed)
    }

    /// Removes what [`Host::set_blackhole`] added; `true` if there was anything.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub async fn remove_blackhole(&self, subnet: IpNet) -> Result<bool, HostError> {
        self.remove(subnet, METRIC).await
    }

    /// The networks that daemons on this host have left blackhole routes for: those at our metric,
    /// and whichever there are for `subnet`. IPv4 and IPv6.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn left_blackholes(&self, subnet: Option<IpNet>) -> Result<Vec<IpNet>, HostError> {
        let mut left = Vec::new();
        for of in [AddressFamily::Inet, AddressFamily::Inet6] {
            for route in self.all_blackholes(of).await? {
                let Some(to) = destination(&route) else { continue };
                if (metric(&route) == METRIC || Some(to) == subnet) && !left.contains(&to) {
                    left.push(to);
                }
            }
        }
        Ok(left)
    }

    /// Removes all blackhole routes of daemons for exactly `subnet`, at whatever metric.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub async fn remove_blackholes(&self, subnet: IpNet) -> Result<(), HostError> {
        for route in self.blackholes(subnet).await? {
            self.remove(subnet, metric(&route)).await?;
        }
        Ok(())
    }

    async fn remove(&self, subnet: IpNet, metric: u32) -> Result<bool, HostError> {
        match self.handle.route().del(blackhole(subnet, metric)).execute().await {
            Ok(()) => Ok(true),
            Err(error) if errno(&error) == Some(Errno::SRCH) => Ok(false),
            Err(error) => Err(failed(format!("removing the blackhole route {subnet}"), error)),
        }
    }

    /// The blackhole routes for exactly `subnet` of the protocol that daemons use, `boot`.
    async fn blackholes(&self, subnet: IpNet) -> Result<Vec<RouteMessage>, HostError> {
        let mut routes = self.all_blackholes(family(subnet)).await?;
        routes.retain(|route| destination(route) == Some(subnet));
        Ok(routes)
    }

    /// The same for all destinations of a family.
    async fn all_blackholes(&self, of: AddressFamily) -> Result<Vec<RouteMessage>, HostError> {
        let mut filter = RouteMessage::default();
        filter.header.address_family = of;
        filter.header.kind = RouteType::BlackHole;
        let routes = self.dump_main_table(filter, "listing the blackhole routes").await?;
        Ok(routes
            .into_iter()
            .filter(|route| {
                route.header.address_family == of
                    && route.header.kind == RouteType::BlackHole
                    && route.header.protocol == RouteProtocol::Boot
            })
            .collect())
    }
}

fn destination(route: &RouteMessage) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    })?;
    IpNet::new(address, route.header.destination_prefix_length).ok()
}

fn blackhole(subnet: IpNet, metric: u32) -> RouteMessage {
    let mut route = RouteMessageBuilder::<IpAddr>::new()
        .kind(RouteType::BlackHole)
        .protocol(RouteProtocol::Boot)
        .priority(metric)
        .build();
    route.header.address_family = family(subnet);
    route.header.destination_prefix_length = subnet.prefix_len();
    route.attributes.push(RouteAttribute::Destination(address(subnet.addr())));
    route
}

fn metric(route: &RouteMessage) -> u32 {
    let metric = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    metric.unwrap_or(0)
}

fn family(net: IpNet) -> AddressFamily {
    match net {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    }
}

fn address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

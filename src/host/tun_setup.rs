//! Gives `flannel0` its MTU, queue, address and route, and puts back what somebody took away.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::Ipv4Net;
use rtnetlink::packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, address::AddressMessage};
use rtnetlink::{AddressMessageBuilder, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};
use rustix::io::Errno;

use super::error::{HostError, errno, failed};
use super::link::Link;
use super::netlink::{Host, out_link};

/// What the TUN device shall look like (section 5.1 of the facts: flannel's `udp` backend).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunSetup {
    /// The device, `flannel0`.
    pub name: String,
    /// Largest packet in bytes: the external interface's MTU less 28 bytes of IPv4 and UDP header.
    pub mtu: u32,
    /// The base of our subnet. It is set as a /32: a longer network would make the kernel add
    /// broadcast routes that break the first subnet of the overlay.
    pub address: Ipv4Addr,
    /// The whole overlay network, which is routed to the device.
    pub network: Ipv4Net,
    /// Length of the transmit queue in packets.
    pub tx_queue_len: u32,
    /// What is written on it (`ip link show` calls it the alias), by which the daemon that comes
    /// after this one knows it again. At most [`MAX_ALIAS_BYTES`].
    pub alias: String,
}

/// The kernel's limit for an alias (`IFALIASZ` in include/linux/if.h, with the final zero).
pub const MAX_ALIAS_BYTES: usize = 255;

impl Host {
    /// Makes the device as `wanted` says, changing only what differs; `true` if anything did.
    ///
    /// Addresses on the device that lie in the overlay network, but are not ours, are removed:
    /// they are left from a lease that was lost. Others are left alone.
    ///
    /// # Errors
    ///
    /// [`HostError::NoSuchLink`] if the device is gone, [`HostError::NotTun`] if it is somebody
    /// else's, [`HostError::RouteTaken`] if the network is routed elsewhere, and whatever else
    /// the kernel refuses. What was done before the error stays done.
    pub async fn configure_tun(&self, wanted: &TunSetup) -> Result<bool, HostError> {
        let name = &wanted.name;
        let link =
            self.link(name).await?.ok_or_else(|| HostError::NoSuchLink { name: name.clone() })?;
        if !link.is_tun {
            let kind = match link.kind.as_deref() {
                Some("tun") => "a TAP device".into(),
                Some(kind) => format!("a {kind} device"),
                None => "a physical device".into(),
            };
            return Err(HostError::NotTun { name: name.clone(), kind });
        }
        let mut changed = self.set_properties(&link, wanted).await?;
        // Before the device comes up, for that is when the kernel makes the address.
        changed |= self.forbid_link_local(&link).await?;
        changed |= self.set_address(&link, wanted).await?;
        changed |= self.set_up(&link).await?;
        changed |= self.set_network_route(&link, wanted.network).await?;
        Ok(changed)
    }

    async fn set_properties(&self, link: &Link, wanted: &TunSetup) -> Result<bool, HostError> {
        let mut change = LinkUnspec::new_with_index(link.index);
        let mut what = Vec::new();
        if link.mtu != wanted.mtu {
            change = change.mtu(wanted.mtu);
            what.push(format!("the MTU of {} bytes", wanted.mtu));
        }
        if link.tx_queue_len != wanted.tx_queue_len {
            change = change.txqueuelen(wanted.tx_queue_len);
            what.push(format!("the queue length of {} packets", wanted.tx_queue_len));
        }
        if link.alias != wanted.alias {
            change = change.alias(&wanted.alias);
            what.push(format!("the alias {:?}", wanted.alias));
        }
        if what.is_empty() {
            return Ok(false);
        }
        self.change_link(link, change, &what.join(", ")).await?;
        Ok(true)
    }

    async fn forbid_link_local(&self, link: &Link) -> Result<bool, HostError> {
        if !link.makes_link_local {
            return Ok(false);
        }
        let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let change = LinkUnspec::new_with_index(link.index).append_extra_attribute(
            LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]),
        );
        match self.handle.link().change(change.build()).execute().await {
            Ok(()) => Ok(true),
            // IPv6 left the link because its MTU fell below 1,280 bytes: nothing to forbid.
            Err(error) if errno(&error) == Some(Errno::AFNOSUPPORT) => Ok(false),
            Err(error) => {
                Err(failed(format!("turning off IPv6 addresses on {}", link.name), error))
            }
        }
    }

    async fn set_address(&self, link: &Link, wanted: &TunSetup) -> Result<bool, HostError> {
        let ours = Ipv4Net::from(wanted.address);
        let mut changed = false;
        // First the new, then away with the old: a device that loses its last address loses all
        // its routes (fib_disable_ip in net/ipv4/fib_frontend.c).
        if !link.addresses.iter().any(|present| present.net == ours) {
            let request = self.handle.address().add(link.index, ours.addr().into(), 32);
            match request.execute().await {
                Ok(()) => changed = true,
                Err(error) if errno(&error) == Some(Errno::EXIST) => {}
                Err(error) => {
                    return Err(failed(
                        format!("setting the address {ours} on {}", link.name),
                        error,
                    ));
                }
            }
        }
        for stale in link.addresses.iter().map(|present| present.net) {
            if stale == ours || !wanted.network.contains(&stale.addr()) {
                continue;
            }
            let request = self.handle.address().del(address_message(link.index, stale));
            match request.execute().await {
                Ok(()) => changed = true,
                Err(error) if errno(&error) == Some(Errno::ADDRNOTAVAIL) => {}
                Err(error) => {
                    return Err(failed(
                        format!("removing the stale address {stale} from {}", link.name),
                        error,
                    ));
                }
            }
        }
        Ok(changed)
    }

    async fn set_up(&self, link: &Link) -> Result<bool, HostError> {
        if link.up {
            return Ok(false);
        }
        let change = LinkUnspec::new_with_index(link.index).up();
        self.change_link(link, change, "the state up").await?;
        Ok(true)
    }

    async fn set_network_route(&self, link: &Link, network: Ipv4Net) -> Result<bool, HostError> {
        let network = network.trunc();
        let present = self.main_routes(Some(link.index)).await?;
        if present.iter().any(|route| leads_through(route, link.index, network)) {
            return Ok(false);
        }
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(network.addr(), network.prefix_len())
            .output_interface(link.index)
            .protocol(RouteProtocol::Boot)
            .build();
        match self.handle.route().add(route).execute().await {
            Ok(()) => Ok(true),
            Err(error) if errno(&error) == Some(Errno::EXIST) => {
                match self.route_owner(network, link.index).await? {
                    Some(owner) => Err(HostError::RouteTaken { network, owner }),
                    None => Ok(false),
                }
            }
            Err(error) => {
                Err(failed(format!("adding the route {network} through {}", link.name), error))
            }
        }
    }

    /// Where an existing route for exactly `network` leads, unless it is ours.
    async fn route_owner(&self, network: Ipv4Net, own: u32) -> Result<Option<String>, HostError> {
        let routes = self.main_routes(None).await?;
        let foreign = routes
            .iter()
            .find(|route| is_for(route, network) && !leads_through(route, own, network));
        let Some(foreign) = foreign else { return Ok(None) };
        if foreign.header.kind != RouteType::Unicast {
            return Ok(Some(format!("of type {:?}", foreign.header.kind).to_lowercase()));
        }
        let Some((index, gateway)) = out_link(foreign) else {
            return Ok(Some("through a nexthop object".into()));
        };
        let links = self.links().await?;
        let device = links
            .iter()
            .find(|link| link.index == index)
            .map_or_else(|| format!("device number {index}"), |link| link.name.clone());
        Ok(Some(match gateway {
            Some(gateway) => format!("via {gateway} on {device}"),
            None => format!("through {device}"),
        }))
    }

    async fn change_link(
        &self,
        link: &Link,
        change: LinkMessageBuilder<LinkUnspec>,
        what: &str,
    ) -> Result<(), HostError> {
        match self.handle.link().change(change.build()).execute().await {
            Ok(()) => Ok(()),
            Err(error) if errno(&error) == Some(Errno::NODEV) => {
                Err(HostError::NoSuchLink { name: link.name.clone() })
            }
            Err(error) => Err(failed(format!("giving {} {what}", link.name), error)),
        }
    }
}

/// Lets packets come in on the device `name` that bear one of this host's own addresses as their
/// source; `true` if that changed anything.
///
/// The ICMP errors that the daemon writes into the TUN device come from the device's own address,
/// and the kernel drops such packets as martians unless it is told otherwise
/// (`__fib_validate_source` in net/ipv4/fib_frontend.c).
///
/// # Errors
///
/// [`HostError::Sysctl`] if `/proc/sys` cannot be read or written.
pub fn accept_local(name: &str) -> Result<bool, HostError> {
    let path: PathBuf = ["/proc/sys/net/ipv4/conf", name, "accept_local"].iter().collect();
    let value = "1";
    let outcome = std::fs::read_to_string(&path).and_then(|present| {
        if present.trim() == value {
            return Ok(false);
        }
        std::fs::write(&path, value)?;
        Ok(true)
    });
    outcome.map_err(|source| HostError::Sysctl { path, value, source })
}

fn address_message(index: u32, net: Ipv4Net) -> AddressMessage {
    AddressMessageBuilder::<Ipv4Addr>::new()
        .index(index)
        .address(net.addr(), net.prefix_len())
        .build()
}

/// Whether the route is for exactly this network, in the place where ours would stand: no
/// metric, no type of service.
fn is_for(route: &RouteMessage, network: Ipv4Net) -> bool {
    route.header.address_family == AddressFamily::Inet
        && route.header.destination_prefix_length == network.prefix_len()
        && route.header.tos == 0
        && route.attributes.iter().all(|attribute| match attribute {
            RouteAttribute::Destination(to) => *to == RouteAddress::Inet(network.addr()),
            RouteAttribute::Priority(metric) => *metric == 0,
            _ => true,
        })
}

/// Whether the route is the one that [`Host::configure_tun`] sets for `network` on link `own`.
pub(super) fn leads_through(route: &RouteMessage, own: u32, network: Ipv4Net) -> bool {
    is_for(route, network)
        && route.header.kind == RouteType::Unicast
        && out_link(route) == Some((own, None))
}

//! The daemon's one rtnetlink connection: reading links, addresses and routes.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage};
use rtnetlink::sys::AsyncSocket;
use rustix::io::Errno;

use super::error::{HostError, errno, failed};
use super::link::{Link, LinkAddress, read_address, read_link};

/// The way that the kernel would take to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteAnswer {
    /// The outgoing link's number.
    pub index: u32,
    /// The source address that it would use.
    pub source: Option<Ipv4Addr>,
}

/// The one owner of the rtnetlink connection. Clones share it.
#[derive(Clone, Debug)]
pub struct Host {
    pub(super) handle: rtnetlink::Handle,
}

impl Host {
    /// Opens the connection, in the network namespace of the calling thread. Must be called
    /// within a tokio runtime, which drives it until the last clone is dropped.
    ///
    /// # Errors
    ///
    /// [`HostError::Open`] if there is no netlink socket to be had.
    pub fn open() -> Result<Self, HostError> {
        let (mut connection, handle, _) = rtnetlink::new_connection().map_err(HostError::Open)?;
        // Makes the kernel filter dumps by table and link. Kernels before 4.20 refuse and send
        // everything: every reader here filters again.
        let _ = connection.socket_mut().socket_mut().set_netlink_get_strict_chk(true);
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// The link of that name with its addresses, or `None` if there is none.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, HostError> {
        let asked = || format!("looking up the device {name}");
        let request = self.handle.link().get().match_name(name);
        let found = match request.execute().try_next().await {
            Ok(found) => found,
            Err(error) if errno(&error) == Some(Errno::NODEV) => return Ok(None),
            Err(error) => return Err(failed(asked(), error)),
        };
        let Some(mut link) = found.as_ref().map(read_link) else { return Ok(None) };
        link.addresses = self.addresses(Some(link.index)).await?.into_iter().map(|a| a.1).collect();
        Ok(Some(link))
    }

    /// All links with their addresses, by index.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn links(&self) -> Result<Vec<Link>, HostError> {
        let messages: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| failed("listing the devices".into(), error))?;
        let mut links: Vec<Link> = messages.iter().map(read_link).collect();
        links.sort_by_key(|link| link.index);
        for (index, address) in self.addresses(None).await? {
            if let Some(link) = links.iter_mut().find(|link| link.index == index) {
                link.addresses.push(address);
            }
        }
        Ok(links)
    }

    /// IPv4 addresses with their link's index, of one link or of all.
    pub(super) async fn addresses(
        &self,
        index: Option<u32>,
    ) -> Result<Vec<(u32, LinkAddress)>, HostError> {
        let mut request = self.handle.address().get();
        request.message_mut().header.family = AddressFamily::Inet;
        if let Some(index) = index {
            request.message_mut().header.index = index;
            request = request.set_link_index_filter(index);
        }
        let messages: Vec<AddressMessage> = request
            .execute()
            .try_collect()
            .await
            .map_err(|error| failed("listing the addresses".into(), error))?;
        Ok(messages
            .iter()
            .filter_map(|message| Some((message.header.index, read_address(message)?)))
            .collect())
    }

    /// The link of the first default route in the main table.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn default_route(&self) -> Result<Option<u32>, HostError> {
        let routes = self.main_routes(None).await?;
        Ok(routes
            .iter()
            .filter(|route| route.header.destination_prefix_length == 0)
            .find_map(|route| out_link(route).map(|(index, _)| index)))
    }

    /// Which way the kernel would send a packet for `to`; `None` if it knows none.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn route_to(&self, to: Ipv4Addr) -> Result<Option<RouteAnswer>, HostError> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = 32;
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(to)));
        let answer = match self.handle.route().get(message).execute().try_next().await {
            Ok(answer) => answer,
            Err(error)
                if matches!(
                    errno(&error),
                    Some(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::ACCESS | Errno::INVAL)
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(failed(format!("looking up the route to {to}"), error)),
        };
        Ok(answer.as_ref().and_then(|route| {
            let (index, _) = out_link(route)?;
            let source = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::PrefSource(RouteAddress::Inet(source)) => Some(*source),
                _ => None,
            });
            Some(RouteAnswer { index, source })
        }))
    }

    /// IPv4 routes of the main table, of one link or of all.
    pub(super) async fn main_routes(
        &self,
        through: Option<u32>,
    ) -> Result<Vec<RouteMessage>, HostError> {
        let mut filter = RouteMessage::default();
        filter.header.address_family = AddressFamily::Inet;
        filter.attributes.extend(through.map(RouteAttribute::Oif));
        self.dump_main_table(filter, "listing the routes").await
    }

    /// Routes of the main table. `filter` says which: that much the kernel may do, or not (see
    /// [`Host::open`]); `asked` is what failed if it cannot be asked.
    pub(super) async fn dump_main_table(
        &self,
        mut filter: RouteMessage,
        asked: &str,
    ) -> Result<Vec<RouteMessage>, HostError> {
        filter.header.table = RouteHeader::RT_TABLE_MAIN;
        let dump = self.handle.route().get(filter).execute();
        let routes: Vec<RouteMessage> =
            dump.try_collect().await.map_err(|error| failed(asked.into(), error))?;
        Ok(routes.into_iter().filter(in_main_table).collect())
    }

    /// Removes the link of that name; `false` if there was none.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub async fn delete_link(&self, name: &str) -> Result<bool, HostError> {
        let Some(link) = self.link(name).await? else { return Ok(false) };
        match self.handle.link().del(link.index).execute().await {
            Ok(()) => Ok(true),
            Err(error) if errno(&error) == Some(Errno::NODEV) => Ok(false),
            Err(error) => Err(failed(format!("removing the device {name}"), error)),
        }
    }
}

/// Where a route leads: link and gateway; of a multipath route its first hop.
pub(super) fn out_link(route: &RouteMessage) -> Option<(u32, Option<IpAddr>)> {
    let (mut index, mut gateway) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => index = Some(*oif),
            RouteAttribute::Gateway(RouteAddress::Inet(v4)) => gateway = Some(IpAddr::V4(*v4)),
            RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => gateway = Some(IpAddr::V6(*v6)),
            RouteAttribute::MultiPath(hops) => {
                index = index.or(hops.first().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    Some((index?, gateway))
}

fn in_main_table(route: &RouteMessage) -> bool {
    // RTA_TABLE, where present, is the whole number; the header holds only its low byte.
    let table = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table.unwrap_or(u32::from(route.header.table)) == u32::from(RouteHeader::RT_TABLE_MAIN)
}

//! Links and addresses, as the kernel's messages describe them.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use ipnet::Ipv4Net;
use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoTun, LinkAttribute,
    LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};

/// Attributes of a TUN device (`IFLA_TUN_*` in include/uapi/linux/if_link.h, Linux 4.17).
const TUN_VNET_HDR: u16 = 5;
const TUN_MULTI_QUEUE: u16 = 7;

/// An IPv4 address on a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkAddress {
    /// The address with its prefix length; the host bits are kept.
    pub net: Ipv4Net,
    /// Set by hand, without a lifetime (`IFA_F_PERMANENT`).
    pub permanent: bool,
    /// Not to be used for new connections (`IFA_F_DEPRECATED`).
    pub deprecated: bool,
    /// Not the first of its subnet on the link (`IFA_F_SECONDARY`, for IPv6 `IFA_F_TEMPORARY`).
    pub secondary: bool,
}

/// A network device as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number for it (ifindex).
    pub index: u32,
    /// Its name, `eth0`.
    pub name: String,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Length of its transmit queue in packets.
    pub tx_queue_len: u32,
    /// Whether it is set up (`IFF_UP`).
    pub up: bool,
    /// Whether something is at its other end: of a TUN device, a process that holds it.
    pub carrier: bool,
    /// The driver's kind, `tun` or `bridge`; physical devices have none.
    pub kind: Option<String>,
    /// Whether it is a TUN device (a TAP device has the same kind, but an Ethernet header).
    pub is_tun: bool,
    /// How it was opened, if it is a TUN device of a kernel that tells.
    pub tun_shape: Option<TunShape>,
    /// What somebody wrote on it (`ip link set alias`), empty for nothing.
    pub alias: String,
    /// Whether the kernel gives it an IPv6 link-local address when it comes up.
    pub makes_link_local: bool,
    /// Packets for it that the kernel dropped since it was made, most of them because its queue
    /// was full.
    pub tx_dropped: u64,
    /// Its IPv4 addresses in the kernel's order.
    pub addresses: Vec<LinkAddress>,
}

/// What a TUN device stays for as long as it exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunShape {
    /// Whether it may have several queues (`IFF_MULTI_QUEUE`).
    pub multi_queue: bool,
    /// Whether packets have a virtio header (`IFF_VNET_HDR`).
    pub vnet_hdr: bool,
}

pub(super) fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        tx_queue_len: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: false,
        kind: None,
        is_tun: false,
        tun_shape: None,
        alias: String::new(),
        makes_link_local: false,
        tx_dropped: 0,
        addresses: Vec::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Carrier(carrier) => link.carrier = *carrier == 1,
            LinkAttribute::TxQueueLen(len) => link.tx_queue_len = *len,
            LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
            LinkAttribute::Stats64(stats) => link.tx_dropped = stats.tx_dropped,
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
                link.is_tun = infos.contains(&LinkInfo::Kind(InfoKind::Tun))
                    && message.header.link_layer_type == LinkLayerType::None;
                link.tun_shape = infos.iter().find_map(|info| match info {
                    LinkInfo::Data(InfoData::Tun(attributes)) => Some(read_shape(attributes)),
                    _ => None,
                });
            }
            LinkAttribute::AfSpecUnspec(families) => {
                link.makes_link_local = families
                    .iter()
                    .filter_map(|family| match family {
                        AfSpecUnspec::Inet6(settings) => Some(settings),
                        _ => None,
                    })
                    .flatten()
                    .any(|setting| {
                        matches!(setting, AfSpecInet6::AddrGenMode(mode)
                            if *mode != In6AddrGenMode::None)
                    });
            }
            _ => {}
        }
    }
    link
}

fn read_shape(attributes: &[InfoTun]) -> TunShape {
    let is_set = |kind| {
        attributes.iter().filter(|attribute| attribute.kind() == kind).any(|attribute| {
            let mut value = vec![0; attribute.value_len()];
            attribute.emit_value(&mut value);
            value.first().is_some_and(|&byte| byte != 0)
        })
    };
    TunShape { multi_queue: is_set(TUN_MULTI_QUEUE), vnet_hdr: is_set(TUN_VNET_HDR) }
}

pub(super) fn read_address(message: &AddressMessage) -> Option<LinkAddress> {
    let (mut local, mut address) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link IFA_ADDRESS is the other end.
            AddressAttribute::Local(IpAddr::V4(v4)) => local = Some(*v4),
            AddressAttribute::Address(IpAddr::V4(v4)) => address = Some(*v4),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    Some(LinkAddress {
        net: Ipv4Net::new(local.or(address)?, message.header.prefix_len).ok()?,
        permanent: flags.contains(AddressFlags::Permanent),
        deprecated: flags.contains(AddressFlags::Deprecated),
        secondary: flags.contains(AddressFlags::Secondary),
    })
}

//! Which interface faces the peers (section 7 of the facts: flannel's `pkg/ipmatch`).
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use regex::Regex;
use thiserror::Error;

use super::error::HostError;
use super::link::{Link, LinkAddress};
use super::netlink::{Host, RouteAnswer};

/// What the operator said about the interface: `--iface` and its kin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceWish {
    /// `--iface`: names or addresses, tried in order.
    pub iface: Vec<String>,
    /// `--iface-regex`: tried after all of `iface`, on addresses first, then on names.
    pub iface_regex: Vec<String>,
    /// `--iface-can-reach`: tried last, the interface that the kernel would reach this by.
    pub can_reach: Option<Ipv4Addr>,
    /// `--public-ip`: what peers are told. Names the interface too if nothing else does.
    pub public_ip: Option<Ipv4Addr>,
}

/// The interface that faces the peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalInterface {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its largest IP packet in bytes, never 0.
    pub mtu: u32,
    /// Its address, which the UDP socket is bound to.
    pub address: Ipv4Addr,
    /// The address that peers are told: `--public-ip`, else `address`.
    pub public_ip: Ipv4Addr,
}

/// Why no interface was chosen.
#[derive(Debug, Error)]
pub enum InterfaceError {
    /// None of the wishes could be met.
    #[error(
        "no interface faces the peers: tried {tried}; interfaces here: {present}; give --iface one of these"
    )]
    NoMatch {
        /// Each wish and why it failed.
        tried: String,
        /// All interfaces with their addresses.
        present: String,
    },
    /// `--public-ip` stands alone, and no interface has that address.
    #[error(
        "--public-ip {public_ip}: {reason}; interfaces here: {present}; behind NAT name the interface too: --iface NAME"
    )]
    PublicIp {
        /// The address.
        public_ip: Ipv4Addr,
        /// What is wrong with it.
        reason: String,
        /// All interfaces with their addresses.
        present: String,
    },
    /// Nothing was wished, and the default route does not tell.
    #[error(
        "{reason}; interfaces here: {present}; name the one that faces the peers: --iface NAME"
    )]
    DefaultRoute {
        /// What is wrong with the default route.
        reason: String,
        /// All interfaces with their addresses.
        present: String,
    },
    /// A regular expression cannot be read.
    #[error("--iface-regex {pattern}: {reason}")]
    Regex {
        /// The expression.
        pattern: String,
        /// What is wrong with it, on one line.
        reason: String,
    },
    /// The kernel could not be asked.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// What the choice is made from: the kernel's state at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// All links with their addresses, by index.
    pub links: Vec<Link>,
    /// The link of the first default route.
    pub default_route: Option<u32>,
    /// The way to [`InterfaceWish::can_reach`].
    pub reach: Option<RouteAnswer>,
}

/// Chooses the interface that faces the peers, from what the kernel says now.
///
/// # Errors
///
/// See [`choose`]; [`InterfaceError::Host`] if the kernel cannot be asked.
pub async fn select(
    host: &Host,
    wish: &InterfaceWish,
) -> Result<ExternalInterface, InterfaceError> {
    let snapshot = Snapshot {
        links: host.links().await?,
        default_route: host.default_route().await?,
        reach: match wish.can_reach {
            Some(to) => host.route_to(to).await?,
            None => None,
        },
    };
    choose(&snapshot, wish)
}

/// Chooses the interface that faces the peers. Pure.
///
/// Each `iface` is tried in order, then each `iface_regex`, then `can_reach`; the first that is
/// met wins. With none of them given, `public_ip` is looked up as an interface's address, and
/// with that not given either, the default route tells.
///
/// # Errors
///
/// One line that says what was tried, what is there, and what to do.
pub fn choose(
    snapshot: &Snapshot,
    wish: &InterfaceWish,
) -> Result<ExternalInterface, InterfaceError> {
    let nothing_named =
        wish.iface.is_empty() && wish.iface_regex.is_empty() && wish.can_reach.is_none();
    if nothing_named {
        return match wish.public_ip {
            Some(public_ip) => by_address(snapshot, public_ip)
                .and_then(|chosen| chosen.finish(wish))
                .map_err(|reason| InterfaceError::PublicIp {
                    public_ip,
                    reason,
                    present: present(snapshot),
                }),
            None => by_default_route(snapshot).and_then(|chosen| chosen.finish(wish)).map_err(
                |reason| InterfaceError::DefaultRoute { reason, present: present(snapshot) },
            ),
        };
    }
    let mut tried = Vec::new();
    for value in &wish.iface {
        match by_name_or_address(snapshot, value).and_then(|chosen| chosen.finish(wish)) {
            Ok(external) => return Ok(external),
            Err(reason) => tried.push(format!("--iface {value}: {reason}")),
        }
    }
    for pattern in &wish.iface_regex {
        let regex = Regex::new(pattern).map_err(|error| InterfaceError::Regex {
            pattern: pattern.clone(),
            reason: last_line(&error.to_string()),
        })?;
        match by_regex(snapshot, &regex).and_then(|chosen| chosen.finish(wish)) {
            Ok(external) => return Ok(external),
            Err(reason) => tried.push(format!("--iface-regex {pattern}: {reason}")),
        }
    }
    if let Some(to) = wish.can_reach {
        match by_reach(snapshot).and_then(|chosen| chosen.finish(wish)) {
            Ok(external) => return Ok(external),
            Err(reason) => tried.push(format!("--iface-can-reach {to}: {reason}")),
        }
    }
    Err(InterfaceError::NoMatch { tried: tried.join("; "), present: present(snapshot) })
}

/// A link that was found, and the address if the way of finding it fixed that.
struct Chosen<'a> {
    link: &'a Link,
    address: Option<Ipv4Addr>,
}

impl Chosen<'_> {
    fn finish(self, wish: &InterfaceWish) -> Result<ExternalInterface, String> {
        let link = self.link;
        let address = self
            .address
            .or_else(|| candidates(link).first().map(|best| best.net.addr()))
            .ok_or_else(|| format!("{} has no usable IPv4 address", link.name))?;
        if link.mtu == 0 {
            return Err(format!("the MTU of {} is 0", link.name));
        }
        Ok(ExternalInterface {
            index: link.index,
            name: link.name.clone(),
            mtu: link.mtu,
            address,
            public_ip: wish.public_ip.unwrap_or(address),
        })
    }
}

fn by_name_or_address<'a>(snapshot: &'a Snapshot, value: &str) -> Result<Chosen<'a>, String> {
    match value.parse() {
        Ok(IpAddr::V4(address)) => by_address(snapshot, address),
        Ok(IpAddr::V6(_)) => Err("an IPv6 address, but the overlay runs on IPv4".into()),
        Err(_) => snapshot
            .links
            .iter()
            .find(|link| link.name == value)
            .map(|link| Chosen { link, address: None })
            .ok_or_else(|| "there is no such interface".into()),
    }
}

fn by_address(snapshot: &Snapshot, address: Ipv4Addr) -> Result<Chosen<'_>, String> {
    snapshot
        .links
        .iter()
        .find(|link| link.addresses.iter().any(|present| present.net.addr() == address))
        .map(|link| Chosen { link, address: Some(address) })
        .ok_or_else(|| "no interface has this address".into())
}

fn by_regex<'a>(snapshot: &'a Snapshot, regex: &Regex) -> Result<Chosen<'a>, String> {
    let by_address = snapshot.links.iter().find_map(|link| {
        let address = candidates(link)
            .into_iter()
            .map(|candidate| candidate.net.addr())
            .find(|address| regex.is_match(&address.to_string()))?;
        Some(Chosen { link, address: Some(address) })
    });
    let by_name = || {
        let link = snapshot.links.iter().find(|link| regex.is_match(&link.name))?;
        Some(Chosen { link, address: None })
    };
    by_address.or_else(by_name).ok_or_else(|| "matches no address and no name".into())
}

fn by_reach(snapshot: &Snapshot) -> Result<Chosen<'_>, String> {
    let answer = snapshot.reach.ok_or("there is no route to it")?;
    by_index(snapshot, answer.index, answer.source)
}

fn by_default_route(snapshot: &Snapshot) -> Result<Chosen<'_>, String> {
    let index = snapshot.default_route.ok_or("there is no default route")?;
    by_index(snapshot, index, None)
}

fn by_index(
    snapshot: &Snapshot,
    index: u32,
    address: Option<Ipv4Addr>,
) -> Result<Chosen<'_>, String> {
    snapshot
        .links
        .iter()
        .find(|link| link.index == index)
        .map(|link| Chosen { link, address })
        .ok_or_else(|| format!("the route leads to device number {index}, which is gone"))
}

/// The addresses of a link that may face the peers, the best first: global before link-local,
/// then permanent before dynamic, then primary before secondary, then in the kernel's order.
fn candidates(link: &Link) -> Vec<&LinkAddress> {
    let mut usable: Vec<&LinkAddress> = link
        .addresses
        .iter()
        .filter(|candidate| {
            let address = candidate.net.addr();
            !(candidate.deprecated
                || address.is_loopback()
                || address.is_multicast()
                || address.is_broadcast()
                || address.is_unspecified())
        })
        .collect();
    usable.sort_by_key(|candidate| {
        (candidate.net.addr().is_link_local(), !candidate.permanent, candidate.secondary)
    });
    usable
}

/// `lo (127.0.0.1/8), eth0 (10.4.7.21/24)`
fn present(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    for link in &snapshot.links {
        let addresses: Vec<String> =
            link.addresses.iter().map(|address| address.net.to_string()).collect();
        let separator = if text.is_empty() { "" } else { ", " };
        let addresses =
            if addresses.is_empty() { "no IPv4 address".into() } else { addresses.join(" ") };
        // Writing to a String cannot fail.
        let _ = write!(text, "{separator}{} ({addresses})", link.name);
    }
    if text.is_empty() { "none".into() } else { text }
}

/// The regex crate draws its errors over several lines; the last one says what is wrong.
fn last_line(text: &str) -> String {
    let line = text.lines().last().unwrap_or(text).trim();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

#[cfg(test)]
mod tests;

//! Which subnet this host may have: does an old one still fit, and which ones are free.
//!
//! Upstream's rules (flannel `pkg/subnet/etcd/local_manager.go`, facts 3.4), with its defects put
//! right: a lease of any prefix length is avoided, and leases with and without IPv6 may mix.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use rand::Rng;
use rand::seq::IndexedRandom;
use thiserror::Error;

use super::lease::Subnet;
use crate::config::NetworkConfig;

/// How many free subnets are drawn from, counted from the lowest, unless there is a crowd.
pub const CANDIDATES: usize = 100;

/// Why a subnet does not fit the network config.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unfit {
    /// Below the first or above the last subnet that may be leased.
    #[error("subnet {subnet} is not between {min} and {max}")]
    Range {
        /// The subnet.
        subnet: String,
        /// The base address of the first subnet.
        min: String,
        /// The base address of the last subnet.
        max: String,
    },
    /// Of another prefix length.
    #[error("subnet {subnet} has not the network's subnet length /{expected}")]
    Length {
        /// The subnet.
        subnet: String,
        /// The length that is configured.
        expected: u8,
    },
    /// With bits beyond its prefix length.
    #[error("subnet {subnet} does not start at a base address: expected {base}")]
    Unaligned {
        /// The subnet.
        subnet: String,
        /// The base address of the subnet that it lies in.
        base: String,
    },
    /// With IPv6 though the network has none.
    #[error("subnet {subnet} has an IPv6 part, but IPv6 is not enabled")]
    Ipv6Extra {
        /// The subnet.
        subnet: String,
    },
    /// Without IPv6 though the network has it.
    #[error("subnet {subnet} has no IPv6 part, but IPv6 is enabled")]
    Ipv6Missing {
        /// The subnet.
        subnet: String,
    },
}

/// May a host hold this subnet under this config?
pub fn fits(config: &NetworkConfig, subnet: &Subnet) -> Result<(), Unfit> {
    let v4 = subnet.v4;
    check(
        (v4.addr(), v4.prefix_len(), v4.network()),
        (config.subnet_min, config.subnet_max, config.subnet_len),
    )?;
    match (&config.ipv6, &subnet.v6) {
        (None, None) => Ok(()),
        (None, Some(_)) => Err(Unfit::Ipv6Extra { subnet: subnet.to_string() }),
        (Some(_), None) => Err(Unfit::Ipv6Missing { subnet: subnet.to_string() }),
        (Some(config), Some(v6)) => check(
            (v6.addr(), v6.prefix_len(), v6.network()),
            (config.subnet_min, config.subnet_max, config.subnet_len),
        ),
    }
}

/// The rules of one family, for a subnet's (address, length, base) and the config's (min, max,
/// length).
fn check<A: Copy + Ord + ToString>(
    (addr, len, base): (A, u8, A),
    (min, max, expected): (A, A, u8),
) -> Result<(), Unfit> {
    let subnet = || format!("{}/{len}", addr.to_string());
    if len != expected {
        return Err(Unfit::Length { subnet: subnet(), expected });
    }
    if addr != base {
        return Err(Unfit::Unaligned { subnet: subnet(), base: base.to_string() });
    }
    if addr < min || addr > max {
        let (min, max) = (min.to_string(), max.to_string());
        return Err(Unfit::Range { subnet: subnet(), min, max });
    }
    Ok(())
}

/// Draws a free subnet, or `None` if all are taken.
///
/// The lowest `candidates` subnets that overlap no taken one, of whatever prefix length, have equal
/// chances: hosts that start at once seldom want the same. In dual stack the families are
/// drawn independently. Takes `O(n log n)` for `n` taken subnets.
pub fn pick<'a>(
    config: &NetworkConfig,
    taken: impl IntoIterator<Item = &'a Subnet>,
    candidates: usize,
    rng: &mut impl Rng,
) -> Option<Subnet> {
    let mut v4_taken = Vec::new();
    let mut v6_taken = Vec::new();
    for subnet in taken {
        let v4 = subnet.v4;
        v4_taken.push((u32::from(v4.network()).into(), u32::from(v4.broadcast()).into()));
        if let (Some(_), Some(v6)) = (&config.ipv6, &subnet.v6) {
            v6_taken.push((v6.network().into(), v6.broadcast().into()));
        }
    }

    let bounds = (u32::from(config.subnet_min).into(), u32::from(config.subnet_max).into());
    let free = free_subnets(bounds, 1 << (32 - config.subnet_len), v4_taken, candidates);
    let base = Ipv4Addr::from(*free.choose(rng)? as u32);
    let mut subnet = Subnet::new(Ipv4Net::new_assert(base, config.subnet_len));

    if let Some(config) = &config.ipv6 {
        let bounds = (config.subnet_min.into(), config.subnet_max.into());
        let free = free_subnets(bounds, 1 << (128 - config.subnet_len), v6_taken, candidates);
        let base = Ipv6Addr::from(*free.choose(rng)?);
        subnet.v6 = Some(Ipv6Net::new_assert(base, config.subnet_len));
    }
    Some(subnet)
}

/// The lowest free base addresses from `min` to `max`, in steps of `size`, at most `candidates`.
/// `taken` are the first and last addresses of what is taken.
fn free_subnets(
    (min, max): (u128, u128),
    size: u128,
    mut taken: Vec<(u128, u128)>,
    candidates: usize,
) -> Vec<u128> {
    taken.sort_unstable();
    let mut taken = taken.into_iter().peekable();
    let mut free = Vec::new();
    let mut base = min;
    while base <= max && free.len() < candidates {
        // What ends below `base` matters no more. What does not, starts in order: if the first of
        // these starts above this subnet, all do.
        while taken.next_if(|(_, end)| *end < base).is_some() {}
        let next = match taken.peek() {
            Some((start, end)) if *start <= base + (size - 1) => end - end % size,
            _ => {
                free.push(base);
                base
            }
        };
        // Past the last subnet of the address space there is none.
        let Some(after) = next.checked_add(size) else { break };
        base = after;
    }
    free
}

#[cfg(test)]
mod tests;

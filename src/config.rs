//! The network config: the JSON under `<prefix>/config` that all hosts share.
//!
//! Parsed, not validated: a [`NetworkConfig`] that exists obeys every rule (facts, section 2), and
//! all values that the JSON left out are filled in.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use thiserror::Error;

use crate::go_json::{Object, excerpt, is_null};

/// The longest config that is looked at, in bytes: real ones have some hundreds.
const MAX_CONFIG_BYTES: usize = 64 * 1024;

/// The UDP port of the `udp` backend unless `Backend.Port` says otherwise.
pub const DEFAULT_UDP_PORT: u16 = 8285;

/// The network that all hosts share and how it is divided among them.
///
/// IPv4 is always there: the store's keys cannot name a host without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The whole overlay network, masked. Never `0.0.0.0/0`.
    pub network: Ipv4Net,
    /// The prefix length of each host's subnet: at least two more than the network's, at most 30.
    pub subnet_len: u8,
    /// The base address of the first subnet that may be leased.
    pub subnet_min: Ipv4Addr,
    /// The base address of the last subnet that may be leased; not below `subnet_min`.
    pub subnet_max: Ipv4Addr,
    /// The same for IPv6, if `EnableIPv6`.
    pub ipv6: Option<Ipv6NetworkConfig>,
    /// Set traffic rules by nftables instead of iptables.
    pub enable_nftables: bool,
    /// How packets travel between hosts.
    pub backend: BackendConfig,
}

/// The IPv6 half of a dual-stack network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipv6NetworkConfig {
    /// The whole overlay network, masked. Never `::/0`.
    pub network: Ipv6Net,
    /// The prefix length of each host's subnet: at least two more than the network's, at most 126.
    pub subnet_len: u8,
    /// The base address of the first subnet that may be leased.
    pub subnet_min: Ipv6Addr,
    /// The base address of the last subnet that may be leased; not below `subnet_min`.
    pub subnet_max: Ipv6Addr,
}

/// The `Backend` object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendConfig {
    /// `Type` in lower case; `udp` without a `Backend`, empty for a `Backend` without a `Type`.
    pub kind: String,
    /// The object's JSON text, for the options of its own that each backend has.
    pub raw: String,
}

/// Why a text is not a network config.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// Longer than any config.
    #[error("network config of {bytes} bytes is too long: at most {MAX_CONFIG_BYTES}")]
    TooLong {
        /// The length of the text.
        bytes: usize,
    },
    /// No JSON object.
    #[error("network config is not a JSON object: {reason}")]
    Json {
        /// What the parser said.
        reason: String,
    },
    /// A field breaks a rule.
    #[error("network config: {field}={value}: {rule}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value, or the one that was derived.
        value: String,
        /// The rule that it breaks.
        rule: Rule,
    },
}

/// What a field of the config must obey.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Rule {
    /// The value has the wrong JSON type or does not parse.
    #[error("must be {0}")]
    Type(&'static str),
    /// IPv4 cannot be switched off.
    #[error("must be true: a store without IPv4 subnets is not supported")]
    Ipv4Needed,
    /// A network is missing or all-embracing.
    #[error("a network is required, for example \"{0}\"")]
    Required(&'static str),
    /// A subnet must hold some addresses.
    #[error("must be at most {0}")]
    AtMost(u8),
    /// The network must hold several subnets.
    #[error("must be at least {least}, so that {network} holds four subnets")]
    FourSubnets {
        /// The least length.
        least: u16,
        /// The network.
        network: String,
    },
    /// The network is too small to derive a subnet length.
    #[error("the network is too small: /{0} is the minimum")]
    NetworkTooSmall(u8),
    /// A bound lies elsewhere.
    #[error("must lie in the network {0}")]
    Outside(String),
    /// A bound is no base address of a subnet.
    #[error("must be the base address of a /{0} subnet")]
    Unaligned(u8),
    /// No subnet lies between the bounds.
    #[error("must not be above {field}={max}")]
    AboveMax {
        /// The field of the upper bound.
        field: &'static str,
        /// The upper bound.
        max: String,
    },
}

impl NetworkConfig {
    /// Reads the JSON by Go's rules: names in any case, unknown ones ignored, the last duplicate
    /// wins, `null` leaves the default where Go's types allow it.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        if text.len() > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLong { bytes: text.len() });
        }
        let fields =
            Fields(Object::parse(text).map_err(|e| ConfigError::Json { reason: e.to_string() })?);

        // Everything is decoded first, also what a disabled family does not use: so does Go.
        let enable_ipv4 = fields.json("EnableIPv4", "true or false")?.unwrap_or(true);
        let enable_ipv6 = fields.json("EnableIPv6", "true or false")?.unwrap_or(false);
        let enable_nftables = fields.json("EnableNFTables", "true or false")?.unwrap_or(false);
        let v4 = Wanted {
            network: fields.v4_network("Network")?,
            subnet_len: fields.json("SubnetLen", LENGTH)?.unwrap_or(0),
            // Go's zero address cannot be told from an absent one.
            min: fields.v4_address("SubnetMin")?.filter(|bits| *bits != 0),
            max: fields.v4_address("SubnetMax")?.filter(|bits| *bits != 0),
        };
        let v6 = Wanted {
            network: fields.v6_network("IPv6Network")?,
            subnet_len: fields.json("IPv6SubnetLen", LENGTH)?.unwrap_or(0),
            min: fields.v6_address("IPv6SubnetMin")?,
            max: fields.v6_address("IPv6SubnetMax")?,
        };
        let backend = BackendConfig::from_field(fields.0.get("Backend"))?;

        if !enable_ipv4 {
            return Err(broken("EnableIPv4", false, Rule::Ipv4Needed));
        }
        let v4 = v4.divide(&IPV4)?;
        let ipv6 = if enable_ipv6 {
            let v6 = v6.divide(&IPV6)?;
            Some(Ipv6NetworkConfig {
                // Cannot panic: `v6_network` bounds the length.
                network: Ipv6Net::new_assert(v6.network.into(), v6.network_len),
                subnet_len: v6.subnet_len,
                subnet_min: v6.min.into(),
                subnet_max: v6.max.into(),
            })
        } else {
            None
        };
        Ok(Self {
            // Cannot panic: `v4_network` bounds the length.
            network: Ipv4Net::new_assert(v4_addr(v4.network), v4.network_len),
            subnet_len: v4.subnet_len,
            subnet_min: v4_addr(v4.min),
            subnet_max: v4_addr(v4.max),
            ipv6,
            enable_nftables,
            backend,
        })
    }
}

impl BackendConfig {
    fn from_field(value: Option<&RawValue>) -> Result<Self, ConfigError> {
        let Some(value) = value else {
            return Ok(Self { kind: "udp".into(), raw: "{}".into() });
        };
        let object = Object::parse(value.get())
            .map_err(|_| broken("Backend", excerpt(value.get()), Rule::Type("an object")))?;
        let kind: Option<String> = match object.get("Type") {
            Some(kind) => json("Backend.Type", kind, "a string")?,
            None => None,
        };
        Ok(Self { kind: kind.unwrap_or_default().to_lowercase(), raw: value.get().into() })
    }

    /// `Port` of the `udp` backend. All hosts of a network use the same, for ports are not
    /// exchanged.
    pub fn udp_port(&self) -> Result<u16, ConfigError> {
        const EXPECTED: &str = "a port number from 1 to 65535";
        let object =
            Object::parse(&self.raw).map_err(|e| ConfigError::Json { reason: e.to_string() })?;
        let Some(value) = object.get("Port") else { return Ok(DEFAULT_UDP_PORT) };
        match json("Backend.Port", value, EXPECTED)? {
            None => Ok(DEFAULT_UDP_PORT),
            Some(0) => Err(broken("Backend.Port", 0, Rule::Type(EXPECTED))),
            Some(port) => Ok(port),
        }
    }
}

const LENGTH: &str = "a prefix length, a whole number";

/// What differs between the families. Addresses are numbers of `bits` bits in a `u128`.
struct Family {
    bits: u8,
    default_subnet_len: u8,
    example: &'static str,
    network: &'static str,
    subnet_len: &'static str,
    min: &'static str,
    max: &'static str,
    show: fn(u128) -> String,
}

const IPV4: Family = Family {
    bits: 32,
    default_subnet_len: 24,
    example: "10.5.0.0/16",
    network: "Network",
    subnet_len: "SubnetLen",
    min: "SubnetMin",
    max: "SubnetMax",
    show: |bits| v4_addr(bits).to_string(),
};

const IPV6: Family = Family {
    bits: 128,
    default_subnet_len: 64,
    example: "fd00:5::/48",
    network: "IPv6Network",
    subnet_len: "IPv6SubnetLen",
    min: "IPv6SubnetMin",
    max: "IPv6SubnetMax",
    show: |bits| Ipv6Addr::from(bits).to_string(),
};

/// What the JSON says about one family.
struct Wanted {
    network: Option<(u128, u8)>,
    /// 0: to be derived.
    subnet_len: u64,
    min: Option<u128>,
    max: Option<u128>,
}

/// A network and its division that obey the rules.
struct Division {
    network: u128,
    network_len: u8,
    subnet_len: u8,
    min: u128,
    max: u128,
}

impl Wanted {
    /// The rules of flannel `pkg/subnet/config.go` (facts, section 2: the table), and ours that the
    /// lower bound must not be above the upper one.
    fn divide(self, family: &Family) -> Result<Division, ConfigError> {
        let required = Rule::Required(family.example);
        let Some((network, network_len)) = self.network else {
            return Err(broken(family.network, "none", required));
        };
        let shown = format!("{}/{network_len}", (family.show)(network));
        if network_len == 0 {
            return Err(broken(family.network, shown, required));
        }
        let subnet_len = self.subnet_len(family, network_len, &shown)?;

        // No shift is too wide: `network_len` is at least 1 and `subnet_len` at least 3. No sum
        // overflows: the network holds at least four subnets.
        let size = 1u128 << (family.bits - subnet_len);
        let last = network + ((1u128 << (family.bits - network_len)) - size);
        let min = self.min.unwrap_or(network + size);
        let max = self.max.unwrap_or(last);
        for (field, bound) in [(family.min, min), (family.max, max)] {
            if !(network..=last + (size - 1)).contains(&bound) {
                return Err(broken(field, (family.show)(bound), Rule::Outside(shown)));
            }
        }
        for (field, bound) in [(family.min, min), (family.max, max)] {
            if bound & (size - 1) != 0 {
                return Err(broken(field, (family.show)(bound), Rule::Unaligned(subnet_len)));
            }
        }
        if min > max {
            let rule = Rule::AboveMax { field: family.max, max: (family.show)(max) };
            return Err(broken(family.min, (family.show)(min), rule));
        }
        Ok(Division { network, network_len, subnet_len, min, max })
    }

    fn subnet_len(&self, family: &Family, network_len: u8, shown: &str) -> Result<u8, ConfigError> {
        let longest = family.bits - 2;
        let least = u16::from(network_len) + 2;
        if self.subnet_len == 0 {
            // Two bits for four subnets, two for the hosts in the smallest one.
            if network_len > family.bits - 4 {
                let rule = Rule::NetworkTooSmall(family.bits - 4);
                return Err(broken(family.network, shown, rule));
            }
            return Ok(family.default_subnet_len.max(network_len + 2));
        }
        let error = |rule| Err(broken(family.subnet_len, self.subnet_len, rule));
        match u8::try_from(self.subnet_len) {
            Ok(len) if len <= longest && u16::from(len) >= least => Ok(len),
            Ok(len) if len <= longest => error(Rule::FourSubnets { least, network: shown.into() }),
            _ => error(Rule::AtMost(longest)),
        }
    }
}

/// The JSON's fields, decoded by Go's rules.
struct Fields<'a>(Object<'a>);

impl Fields<'_> {
    /// A field that `null` leaves alone.
    fn json<T: DeserializeOwned>(
        &self,
        field: &'static str,
        expected: &'static str,
    ) -> Result<Option<T>, ConfigError> {
        self.0.get(field).map_or(Ok(None), |value| json(field, value, expected))
    }

    fn v4_network(&self, field: &'static str) -> Result<Option<(u128, u8)>, ConfigError> {
        let Some(value) = self.0.get(field) else { return Ok(None) };
        let expected = "an IPv4 network in quotes such as \"10.5.0.0/16\"";
        let (address, len) = text(field, value, expected, |s| parse_cidr::<Ipv4Addr>(s, 32))?;
        Ok(Some((u128::from(u32::from(Ipv4Net::new_assert(address, len).network())), len)))
    }

    fn v6_network(&self, field: &'static str) -> Result<Option<(u128, u8)>, ConfigError> {
        let Some(value) = self.0.get(field) else { return Ok(None) };
        let expected = "an IPv6 network in quotes such as \"fd00:5::/48\"";
        let parse = |s: &str| parse_cidr(s, 128).filter(|(address, _)| is_plain_v6(address));
        let (address, len) = text(field, value, expected, parse)?;
        Ok(Some((u128::from(Ipv6Net::new_assert(address, len).network()), len)))
    }

    fn v4_address(&self, field: &'static str) -> Result<Option<u128>, ConfigError> {
        let Some(value) = self.0.get(field) else { return Ok(None) };
        let parse = |s: &str| s.parse::<Ipv4Addr>().ok();
        let address = text(field, value, "an IPv4 address in quotes", parse)?;
        Ok(Some(u32::from(address).into()))
    }

    fn v6_address(&self, field: &'static str) -> Result<Option<u128>, ConfigError> {
        let Some(value) = self.0.get(field).filter(|v| !is_null(v)) else { return Ok(None) };
        let parse = |s: &str| s.parse().ok().filter(is_plain_v6);
        Ok(Some(text(field, value, "an IPv6 address in quotes, or null", parse)?.into()))
    }
}

/// Decodes a value; `null` is none.
fn json<T: DeserializeOwned>(
    field: &'static str,
    value: &RawValue,
    expected: &'static str,
) -> Result<Option<T>, ConfigError> {
    serde_json::from_str(value.get())
        .map_err(|_| broken(field, excerpt(value.get()), Rule::Type(expected)))
}

/// Decodes a JSON string and parses what it says; `null` is an error.
fn text<T>(
    field: &'static str,
    value: &RawValue,
    expected: &'static str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<T, ConfigError> {
    json::<String>(field, value, expected)?
        .and_then(|text| parse(&text))
        .ok_or_else(|| broken(field, excerpt(value.get()), Rule::Type(expected)))
}

/// An address and its prefix length, at most `max`, as Go's `ParseCIDR` reads them.
fn parse_cidr<A: FromStr>(text: &str, max: u8) -> Option<(A, u8)> {
    let (address, len) = text.split_once('/')?;
    let digits = !len.is_empty() && len.bytes().all(|b| b.is_ascii_digit());
    let len = len.parse().ok().filter(|len| digits && *len <= max)?;
    Some((address.parse().ok()?, len))
}

/// IPv4-mapped addresses have no text that a subnet's key could hold.
fn is_plain_v6(address: &Ipv6Addr) -> bool {
    address.to_ipv4_mapped().is_none()
}

/// The IPv4 address of a number that came from one.
fn v4_addr(bits: u128) -> Ipv4Addr {
    Ipv4Addr::from(bits as u32)
}

fn broken(field: &'static str, value: impl ToString, rule: Rule) -> ConfigError {
    ConfigError::Field { field, value: value.to_string(), rule }
}

#[cfg(test)]
mod tests;

//! `subnet.env` as the plugin needs it.
//!
//! The daemon reads the same file back generously, to learn what it once had. Here a pod's
//! addresses hang on it: what is malformed is refused, not skipped.
#![forbid(unsafe_code)]

use std::io;
use std::path::Path;
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};

use super::error::{Code, Error};
use crate::go_json::excerpt;
use crate::subnet::env_file::{
    IPMASQ, IPV6_NETWORK, IPV6_SUBNET, MTU, NETWORK, SUBNET, assignment, read_text,
};

/// What flanneld tells about the overlay. All networks are masked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetEnv {
    /// The overlay's IPv4 networks, each once.
    pub networks: Vec<Ipv4Net>,
    /// This host's part of them.
    pub subnet: Option<Ipv4Net>,
    /// The overlay's IPv6 networks, each once.
    pub ipv6_networks: Vec<Ipv6Net>,
    /// This host's part of them.
    pub ipv6_subnet: Option<Ipv6Net>,
    /// The overlay's MTU in bytes.
    pub mtu: u32,
    /// Whether flanneld masquerades.
    pub ip_masq: bool,
}

impl SubnetEnv {
    /// Reads the file at `path`. A missing one is the daemon's not being up yet.
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let shown = path.display();
        let text = read_text(path).map_err(|error| {
            let code = match error.kind() {
                io::ErrorKind::NotFound => Code::TryAgainLater,
                _ => Code::Io,
            };
            Error::new(
                code,
                format!(
                    "cannot read {shown}: {error}; flanneld writes this file, its subnet.env, \
                     when it has a subnet: see its log, in Kubernetes the log of the flannel pod"
                ),
            )
        })?;
        Self::parse(&text).map_err(|what| Error::new(Code::Decoding, format!("{shown} {what}")))
    }

    /// Reads the text. Of equal keys the last one counts.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value = |key: &str| {
            let (_, value) =
                text.lines().filter_map(assignment).rfind(|(found, _)| *found == key)?;
            Some(value).filter(|value| !value.is_empty())
        };
        let mtu = value(MTU);
        let ip_masq = value(IPMASQ);
        let env = Self {
            networks: list(NETWORK, value(NETWORK), Ipv4Net::trunc)?,
            subnet: one(SUBNET, value(SUBNET), Ipv4Net::trunc)?,
            ipv6_networks: list(IPV6_NETWORK, value(IPV6_NETWORK), Ipv6Net::trunc)?,
            ipv6_subnet: one(IPV6_SUBNET, value(IPV6_SUBNET), Ipv6Net::trunc)?,
            mtu: mtu
                .map_or(Ok(0), |mtu| mtu.parse().map_err(|_| has(MTU, mtu, "a number of bytes")))?,
            ip_masq: ip_masq == Some("true"),
        };

        let mut missing = Vec::new();
        if env.networks.is_empty() && env.ipv6_networks.is_empty() {
            missing.extend([NETWORK, IPV6_NETWORK]);
        }
        if env.subnet.is_none() && env.ipv6_subnet.is_none() {
            missing.extend([SUBNET, IPV6_SUBNET]);
        }
        if mtu.is_none() {
            missing.push(MTU);
        }
        if ip_masq.is_none() {
            missing.push(IPMASQ);
        }
        if missing.is_empty() { Ok(env) } else { Err(format!("is missing {}", missing.join(", "))) }
    }
}

fn list<N: FromStr + PartialEq>(
    key: &str,
    value: Option<&str>,
    masked: fn(&N) -> N,
) -> Result<Vec<N>, String> {
    let mut networks = Vec::new();
    for item in value.into_iter().flat_map(|value| value.split(',')) {
        if let Some(network) = one(key, Some(item), masked)?
            && !networks.contains(&network)
        {
            networks.push(network);
        }
    }
    Ok(networks)
}

fn one<N: FromStr>(
    key: &str,
    value: Option<&str>,
    masked: fn(&N) -> N,
) -> Result<Option<N>, String> {
    let network = |value: &str| {
        value.parse().map(|network| masked(&network)).map_err(|_| {
            has(key, value, "a network such as 10.1.74.1/24, or fd00:74::1/64 where IPv6 is meant")
        })
    };
    value.map(network).transpose()
}

fn has(key: &str, value: &str, wanted: &str) -> String {
    format!("has {key}={}: {wanted} is wanted", excerpt(value))
}

//! A lease: one host's claim to one subnet, and the codecs of its key and its value.
//!
//! Both are flannel's, byte for byte (flannel `pkg/subnet/subnet.go`, `pkg/lease/lease.go`), so
//! that Go and Rust daemons share one store.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::SystemTime;

use ipnet::{Ipv4Net, Ipv6Net};
use serde_json::value::RawValue;
use thiserror::Error;

use crate::go_json::{Object, append_compact, append_string, excerpt, is_null};

/// The longest key that is looked at, in bytes: the longest real one has 62.
const MAX_KEY_BYTES: usize = 128;

/// The longest value that is looked at, in bytes: real ones have some hundreds.
const MAX_VALUE_BYTES: usize = 64 * 1024;

/// What identifies a lease: the subnet of a host, IPv4 and, in dual stack, IPv6.
///
/// The network addresses are kept as given: a key is not masked on parsing, as upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subnet {
    /// The IPv4 subnet, for example `10.5.1.0/24`.
    pub v4: Ipv4Net,
    /// The IPv6 subnet of a dual-stack host.
    pub v6: Option<Ipv6Net>,
}

/// What a host publishes beside its subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseAttrs {
    /// Where the peers reach this host; `0.0.0.0` if it has no IPv4 address.
    pub public_ip: Ipv4Addr,
    /// The same for IPv6.
    pub public_ipv6: Option<Ipv6Addr>,
    /// Empty for `udp` and `alloc`, else the backend's name.
    pub backend_type: String,
    /// The backend's own data, JSON text; empty if none.
    pub backend_data: String,
    /// The backend's own data for IPv6, JSON text; empty if none.
    pub backend_v6_data: String,
}

/// When a lease ends unless it is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// A reservation: a key without a time to live.
    Permanent,
    /// At this time.
    At(SystemTime),
    /// It has a time to live, but the store was not asked how much of it is left.
    Unknown,
}

/// One entry of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The subnet that is leased.
    pub subnet: Subnet,
    /// What the holder published.
    pub attrs: LeaseAttrs,
    /// When it ends.
    pub expiry: Expiry,
}

/// Why a text is not a subnet key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Longer than any subnet key.
    #[error("key of {bytes} bytes is too long for a subnet: at most {MAX_KEY_BYTES}")]
    TooLong {
        /// The length of the key.
        bytes: usize,
    },
    /// Not of the form `A.B.C.D-LEN` or `A.B.C.D-LEN&IPV6-LEN`.
    #[error(
        "key {key} is not a subnet: expected a form like 10.5.1.0-24 or 10.5.1.0-24&fd00:5:1::-64"
    )]
    Form {
        /// The key.
        key: String,
    },
    /// An address in it is none.
    #[error("key {key} is not a subnet: {part} is not a valid address")]
    Address {
        /// The key.
        key: String,
        /// The address part.
        part: String,
    },
    /// A prefix length in it is out of range.
    #[error("key {key} is not a subnet: prefix length {part} is not in 0..={max}")]
    Length {
        /// The key.
        key: String,
        /// The length part.
        part: String,
        /// The largest length that is accepted.
        max: u8,
    },
}

/// Why bytes are not a lease's value.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ValueError {
    /// Longer than any lease's value.
    #[error("value of {bytes} bytes is too long for a lease: at most {MAX_VALUE_BYTES}")]
    TooLong {
        /// The length of the value.
        bytes: usize,
    },
    /// No JSON object.
    #[error("lease value is not a JSON object: {reason}")]
    Json {
        /// What the parser said.
        reason: String,
    },
    /// A field has the wrong type or content.
    #[error("lease field {field}={value}: expected {expected}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What should stand there.
        expected: &'static str,
    },
}

impl Subnet {
    /// An IPv4-only subnet.
    pub fn new(v4: Ipv4Net) -> Self {
        Self { v4, v6: None }
    }

    /// Reads a whole store key, for example `/coreos.com/network/subnets/10.5.1.0-24`: the part
    /// after the last slash counts, wherever the store keeps its subnets.
    pub fn from_key_path(path: &str) -> Result<Self, KeyError> {
        path.rsplit('/').next().unwrap_or(path).parse()
    }

    /// Do the two share an address, of whatever family and prefix lengths?
    pub fn overlaps(&self, other: &Self) -> bool {
        let v4 = self.v4.contains(&other.v4) || other.v4.contains(&self.v4);
        let v6 = match (&self.v6, &other.v6) {
            (Some(a), Some(b)) => a.contains(b) || b.contains(a),
            _ => false,
        };
        v4 || v6
    }
}

/// The last component of the store's key: `10.5.1.0-24`, `10.12.13.0-24&fd00:12:13::-56`.
impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.v4.addr(), self.v4.prefix_len())?;
        match &self.v6 {
            Some(v6) => write!(f, "&{}-{}", v6.addr(), v6.prefix_len()),
            None => Ok(()),
        }
    }
}

/// Reads the last component of the store's key by upstream's rules (facts 3.1): the address is not
/// masked, IPv4 ends at `/31` and IPv6 at `/127`, hexadecimal digits are lower-case.
impl FromStr for Subnet {
    type Err = KeyError;

    fn from_str(key: &str) -> Result<Self, KeyError> {
        if key.len() > MAX_KEY_BYTES {
            return Err(KeyError::TooLong { bytes: key.len() });
        }
        let (v4, v6) = match key.split_once('&') {
            Some((v4, v6)) => (v4, Some(v6)),
            None => (key, None),
        };
        let (address, length) =
            address_and_length(key, v4, 31, |c| c.is_ascii_digit() || c == '.')?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad_address(key, address))?;
        // Neither assertion can fail: the lengths are in range.
        let subnet = Self::new(Ipv4Net::new_assert(address, length));
        let Some(v6) = v6 else { return Ok(subnet) };

        let hex = |c| matches!(c, '0'..='9' | 'a'..='f' | ':');
        let (text, length) = address_and_length(key, v6, 127, hex)?;
        let address: Ipv6Addr = text.parse().map_err(|_| bad_address(key, text))?;
        // Its canonical text has dots, so that it could not be written as a key again.
        if address.to_ipv4_mapped().is_some() {
            return Err(bad_address(key, text));
        }
        Ok(Self { v6: Some(Ipv6Net::new_assert(address, length)), ..subnet })
    }
}

/// Splits `ADDRESS-LEN`, checks the address's characters and the length's range.
fn address_and_length<'a>(
    key: &str,
    part: &'a str,
    max: u8,
    allowed: impl Fn(char) -> bool,
) -> Result<(&'a str, u8), KeyError> {
    let form = || KeyError::Form { key: excerpt(key) };
    let (address, length) = part.split_once('-').ok_or_else(form)?;
    let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
    if address.is_empty() || !address.chars().all(allowed) || !digits {
        return Err(form());
    }
    match length.parse() {
        Ok(length) if length <= max => Ok((address, length)),
        _ => Err(KeyError::Length { key: excerpt(key), part: excerpt(length), max }),
    }
}

fn bad_address(key: &str, part: &str) -> KeyError {
    KeyError::Address { key: excerpt(key), part: excerpt(part) }
}

impl LeaseAttrs {
    /// Whether datagrams to the public address reach one other host: a value may say anything, and
    /// a missing address reads as `0.0.0.0`.
    #[must_use]
    pub fn names_one_host(&self) -> bool {
        let ip = self.public_ip;
        !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast())
    }

    /// What a host of the UDP backend publishes: its address, no type, no data.
    pub fn udp(public_ip: Ipv4Addr) -> Self {
        Self {
            public_ip,
            public_ipv6: None,
            backend_type: String::new(),
            backend_data: String::new(),
            backend_v6_data: String::new(),
        }
    }

    /// The store's value, byte for byte as Go marshals it (facts 3.2).
    ///
    /// `backend_data` and `backend_v6_data` must be valid JSON text or empty.
    pub fn to_json(&self) -> String {
        let mut out = format!("{{\"PublicIP\":\"{}\",\"PublicIPv6\":", self.public_ip);
        match self.public_ipv6 {
            Some(ip) => append_string(&mut out, &ip.to_string()),
            None => out.push_str("null"),
        }
        if !self.backend_type.is_empty() {
            out.push_str(",\"BackendType\":");
            append_string(&mut out, &self.backend_type);
        }
        for (field, data) in
            [("BackendData", &self.backend_data), ("BackendV6Data", &self.backend_v6_data)]
        {
            if !data.is_empty() {
                out.push_str(",\"");
                out.push_str(field);
                out.push_str("\":");
                append_compact(&mut out, data);
            }
        }
        out.push('}');
        out
    }

    /// Reads a store's value as Go unmarshals it: names in any case, unknown ones ignored, the
    /// last duplicate wins, a missing `PublicIP` is `0.0.0.0` (facts 3.2).
    ///
    /// The backend's data is kept as text, in the compact form that [`Self::to_json`] writes, so
    /// that two spellings of one value compare equal.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ValueError> {
        if bytes.len() > MAX_VALUE_BYTES {
            return Err(ValueError::TooLong { bytes: bytes.len() });
        }
        // Go replaces what is not UTF-8 in a string and goes on.
        let text = String::from_utf8_lossy(bytes);
        let object =
            Object::parse(&text).map_err(|e| ValueError::Json { reason: e.to_string() })?;

        let mut attrs = Self::udp(Ipv4Addr::UNSPECIFIED);
        if let Some(value) = object.get("PublicIP") {
            attrs.public_ip = decode("PublicIP", value, "an IPv4 address in quotes")?;
        }
        if let Some(value) = object.get("PublicIPv6").filter(|v| !is_null(v)) {
            let ip = decode("PublicIPv6", value, "an IPv6 address in quotes, or null")?;
            attrs.public_ipv6 = Some(ip);
        }
        if let Some(value) = object.get("BackendType").filter(|v| !is_null(v)) {
            attrs.backend_type = decode("BackendType", value, "a string")?;
        }
        for (field, data) in [
            ("BackendData", &mut attrs.backend_data),
            ("BackendV6Data", &mut attrs.backend_v6_data),
        ] {
            if let Some(value) = object.get(field) {
                append_compact(data, value.get());
            }
        }
        Ok(attrs)
    }
}

/// Decodes a JSON string and parses what it says.
fn decode<T: FromStr>(
    field: &'static str,
    value: &RawValue,
    expected: &'static str,
) -> Result<T, ValueError> {
    let error = || ValueError::Field { field, value: excerpt(value.get()), expected };
    let text: String = serde_json::from_str(value.get()).map_err(|_| error())?;
    text.parse().map_err(|_| error())
}

impl Expiry {
    /// Has the lease surely ended at `now`? A reservation never ends.
    pub fn is_past(&self, now: SystemTime) -> bool {
        match self {
            Self::Permanent | Self::Unknown => false,
            Self::At(end) => *end <= now,
        }
    }
}

#[cfg(test)]
mod tests;

//! Where things are in etcd, and what a key and its value say.
#![forbid(unsafe_code)]

use crate::subnet::lease::{LeaseAttrs, Subnet};

/// The keys under one prefix.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    root: String,
}

impl Keys {
    /// `prefix` is cleaned as upstream does (Go's `path.Join`, facts 3.1): double and trailing
    /// slashes go, `.` and `..` are resolved, a missing leading slash stays missing.
    pub(super) fn new(prefix: &str) -> Self {
        let rooted = prefix.starts_with('/');
        let mut parts: Vec<&str> = Vec::new();
        for part in prefix.split('/') {
            match part {
                "" | "." => {}
                ".." if parts.last().is_some_and(|last| *last != "..") => {
                    parts.pop();
                }
                ".." if rooted => {}
                part => parts.push(part),
            }
        }
        let mut root = String::new();
        if rooted {
            root.push('/');
        }
        for part in parts {
            root.push_str(part);
            root.push('/');
        }
        Self { root }
    }

    pub(super) fn config(&self) -> String {
        format!("{}config", self.root)
    }

    pub(super) fn subnet(&self, subnet: &Subnet) -> String {
        format!("{}{subnet}", self.subnets())
    }

    /// What all subnet keys begin with.
    ///
    /// Upstream lists and watches without the trailing slash and takes `subnets-old/10.5.1.0-24`
    /// for a lease. Nothing of flannel writes such a key, so with the slash we see every lease that
    /// upstream's daemons make, and no stranger's.
    pub(super) fn subnets(&self) -> String {
        format!("{}subnets/", self.root)
    }

    /// The subnet that `key` stands for.
    ///
    /// Only the one spelling that flannel writes is accepted: were two keys to stand for one
    /// subnet, deleting one of them would end the other's lease for us.
    pub(super) fn parse(&self, key: &[u8]) -> Result<Subnet, String> {
        let text = std::str::from_utf8(key).map_err(|_| "the key is not UTF-8".to_owned())?;
        let name = text.strip_prefix(&self.subnets()).unwrap_or(text);
        let subnet: Subnet = name.parse().map_err(|e| format!("{e}"))?;
        if subnet.to_string() == name {
            Ok(subnet)
        } else {
            Err(format!("the key of that subnet is spelt {subnet}"))
        }
    }
}

/// What an entry's value says.
pub(super) fn parse_value(value: &[u8]) -> Result<LeaseAttrs, String> {
    LeaseAttrs::from_json(value).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_cleaned_as_upstream_does() {
        for (prefix, config) in [
            ("/coreos.com/network", "/coreos.com/network/config"),
            ("/coreos.com/network/", "/coreos.com/network/config"),
            ("//coreos.com///network//", "/coreos.com/network/config"),
            ("coreos.com/network", "coreos.com/network/config"),
            ("/a/./b/../c", "/a/c/config"),
            ("/..", "/config"),
            ("../a", "../a/config"),
            ("/", "/config"),
            ("", "config"),
        ] {
            assert_eq!(Keys::new(prefix).config(), config, "{prefix:?}");
        }
    }

    #[test]
    fn subnet_keys_are_upstreams() {
        let keys = Keys::new("/coreos.com/network");
        for name in ["10.5.1.0-24", "10.12.13.0-24&fd00:12:13::-56"] {
            let subnet = name.parse().unwrap();
            let key = format!("/coreos.com/network/subnets/{name}");
            assert_eq!(keys.subnet(&subnet), key);
            assert_eq!(keys.parse(key.as_bytes()), Ok(subnet));
        }
    }

    #[test]
    fn what_is_not_spelt_as_flannel_does_is_a_stray() {
        let keys = Keys::new("/coreos.com/network");
        for name in
            ["10.5.1.0-024", "10.5.1.0-24&fd00:0:0::-64", "x/10.5.1.0-24", "10.5.1.0", "", "../x"]
        {
            let key = format!("/coreos.com/network/subnets/{name}");
            assert!(keys.parse(key.as_bytes()).is_err(), "{name:?}");
        }
        assert!(keys.parse(b"/coreos.com/network/subnets/\xff").is_err());
    }
}

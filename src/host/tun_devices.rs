//! The TUN devices of daemons, running and gone.
#![forbid(unsafe_code)]

use super::error::HostError;
use super::link::Link;
use super::netlink::Host;

impl Host {
    /// The TUN devices that a daemon with this `--tun-name` uses, or has left.
    ///
    /// [`Link::carrier`] tells them apart: the kernel takes it away with the last descriptor
    /// (`__tun_detach` in drivers/net/tun.c), and removes the device unless it is persistent.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn tuns_named(&self, pattern: &str) -> Result<Vec<Link>, HostError> {
        let mut links = self.links().await?;
        links.retain(|link| link.is_tun && is_named(&link.name, pattern));
        Ok(links)
    }
}

/// Could the kernel have made `name` from `pattern`?
fn is_named(name: &str, pattern: &str) -> bool {
    let Some((head, tail)) = pattern.split_once("%d") else { return name == pattern };
    name.strip_prefix(head)
        .and_then(|rest| rest.strip_suffix(tail))
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::is_named;

    #[test]
    fn names_match_their_pattern() {
        for (name, pattern) in
            [("flannel0", "flannel%d"), ("flannel12", "flannel%d"), ("x3y", "x%dy"), ("t0", "t0")]
        {
            assert!(is_named(name, pattern), "{name} {pattern}");
        }
        for (name, pattern) in [
            ("flannel", "flannel%d"),
            ("flannel.1", "flannel%d"),
            ("flannel0x", "flannel%d"),
            ("t1", "t0"),
            ("xy", "x%dy"),
        ] {
            assert!(!is_named(name, pattern), "{name} {pattern}");
        }
    }
}

//! A routed path in a lab: two routers between its first two hosts, with a link of their own that
//! can be made narrow.
#![forbid(unsafe_code)]

use super::lab::Lab;
use super::netns::Netns;

/// The routers. The hosts reach each other by them from now on; there is no way back.
#[derive(Debug)]
pub struct RoutedPath {
    routers: [Netns; 2],
}

impl RoutedPath {
    /// Puts the routers between the hosts 0 and 1: `h21 — far ═ far — h22`. Each has the address
    /// 10.4.7.1 for its host.
    pub fn between_hosts(lab: &Lab) -> Self {
        let routers = ["r1", "r2"].map(Netns::new);
        let [near, far] = [0, 1].map(|number| lab.host(number));
        let (r1, r2) = (&routers[0], &routers[1]);
        r1.ip(&format!("link add far type veth peer name far netns {}", r2.name()));
        for (router, own, host, other) in [(r1, 1, near, far), (r2, 2, far, near)] {
            let port = format!("h{}", host.address.octets()[3]);
            lab.switch().ip(&format!("link set {port} netns {}", router.name()));
            router.sysctl("net.ipv4.ip_forward", "1");
            router.ip(&format!("link set {port} up"));
            router.ip(&format!("addr add 10.4.7.1/32 dev {port}"));
            router.ip(&format!("route add {} dev {port}", host.address));
            router.ip("link set far up");
            router.ip(&format!("addr add 10.4.9.{own}/24 dev far"));
            host.netns.ip(&format!("route add {} via 10.4.7.1", other.address));
        }
        for (router, other, host) in [(r1, 2, far), (r2, 1, near)] {
            router.ip(&format!("route add {} via 10.4.9.{other}", host.address));
        }
        Self { routers }
    }

    /// Sets the MTU of the link between the routers, in bytes.
    pub fn set_mtu(&self, bytes: u32) {
        for router in &self.routers {
            router.ip(&format!("link set far mtu {bytes}"));
        }
    }

    /// Keeps the routers from telling that a packet is too large.
    pub fn silence(&self) {
        self.drop_at("output", "icmp type destination-unreachable");
    }

    /// Lets no fragment pass but the first ones, as some firewalls do.
    pub fn drop_fragments(&self) {
        self.drop_at("prerouting", "ip frag-off & 0x1fff != 0");
    }

    fn drop_at(&self, hook: &str, what: &str) {
        for router in &self.routers {
            router.exec("nft add table ip fault");
            // Before connection tracking, which would put fragments together.
            let chain = format!("{{ type filter hook {hook} priority -500 ; }}");
            router.exec(&format!("nft add chain ip fault {hook} {chain}"));
            router.exec(&format!("nft add rule ip fault {hook} {what} drop"));
        }
    }
}

//! The rules themselves, whoever sets them: one table for iptables and nftables.
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The mark of packets that kube-proxy has chosen to masquerade itself.
pub(super) const KUBE_MASQUERADE_MARK: u32 = 0x4000;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V6];
}

/// What the rules of one family are about; both networks are of that family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nets {
    network: IpNet,
    subnet: IpNet,
}

impl Nets {
    /// The overlay network and this host's subnet.
    pub fn v4(network: Ipv4Net, subnet: Ipv4Net) -> Self {
        Self { network: network.trunc().into(), subnet: subnet.trunc().into() }
    }

    /// The same for IPv6.
    pub fn v6(network: Ipv6Net, subnet: Ipv6Net) -> Self {
        Self { network: network.trunc().into(), subnet: subnet.trunc().into() }
    }

    /// The family of both.
    pub fn family(&self) -> Family {
        match self.network {
            IpNet::V4(_) => Family::V4,
            IpNet::V6(_) => Family::V6,
        }
    }

    /// This host's subnet.
    pub fn subnet(&self) -> IpNet {
        self.subnet
    }

    /// Does a line of a tool's listing name one of them?
    pub(super) fn are_in(&self, line: &str) -> bool {
        let (network, subnet) = (self.network.to_string(), self.subnet.to_string());
        line.split_whitespace().any(|word| word == network || word == subnet)
    }

    /// All multicast addresses of the family (RFC 5771, RFC 4291).
    fn multicast(&self) -> IpNet {
        // Cannot panic: the lengths are constant and short enough.
        match self.family() {
            Family::V4 => Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4).into(),
            Family::V6 => Ipv6Net::new_assert(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8).into(),
        }
    }
}

/// Addresses inside or outside a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Any,
    In(IpNet),
    NotIn(IpNet),
}

/// What is done with a packet that a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Accept,
    Masquerade,
    Return,
}

/// One rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// Only packets with [`KUBE_MASQUERADE_MARK`].
    pub(super) marked: bool,
    pub(super) source: Side,
    pub(super) destination: Side,
    pub(super) action: Action,
}

const fn rule(source: Side, destination: Side, action: Action) -> Rule {
    Rule { marked: false, source, destination, action }
}

/// What leaves the overlay, or enters it from outside, gets this host's address; what stays inside
/// keeps its own (flannel `pkg/trafficmngr/iptables/iptables.go`, facts 9.1, rules 1 to 6).
pub(super) fn masquerade(nets: &Nets) -> [Rule; 6] {
    use Action::{Masquerade, Return};
    use Side::{Any, In, NotIn};
    let (network, pods) = (nets.network, nets.subnet);
    [
        Rule { marked: true, ..rule(Any, Any, Return) },
        rule(In(pods), In(network), Return),
        rule(In(network), In(pods), Return),
        // Whoever is reached from outside sees from where.
        rule(NotIn(network), In(pods), Return),
        rule(In(network), NotIn(nets.multicast()), Masquerade),
        // Answers to this host's other addresses would not come back by the overlay.
        rule(NotIn(network), In(network), Masquerade),
    ]
}

/// Forwarded packets of the overlay are accepted, whatever the policy (facts 9.1).
pub(super) fn forward(nets: &Nets) -> [Rule; 2] {
    use Side::{Any, In};
    [rule(In(nets.network), Any, Action::Accept), rule(Any, In(nets.network), Action::Accept)]
}

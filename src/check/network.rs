//! The host's network: the interface that faces the peers, the port, forwarding, the tools for
//! rules, and what is in the overlay's way.

use std::net::SocketAddrV4;
use std::path::Path;

use ipnet::Ipv4Net;

use super::port::{Holder, holder};
use super::store::Stored;
use super::{Report, Severity};
use crate::backend::udp::tunnel_mtu;
use crate::cli::Options;
use crate::config::{DEFAULT_UDP_PORT, NetworkConfig};
use crate::daemon::{families, interface_wish};
use crate::dataplane::sys::socket::{Sharing, SocketError, UdpSocket, UdpWish};
use crate::host::interface::{self, ExternalInterface};
use crate::host::link::Link;
use crate::host::netlink::Host;
use crate::host::routes::RouteEntry;
use crate::host::rules::{ForwardRules, Rules, RulesError, RulesOptions};

/// What the daemon's process is called, ours and upstream's.
const DAEMON: &str = "flanneld";

/// The interface that the daemon would choose.
pub(super) async fn external(
    host: &Host,
    options: &Options,
    report: &mut Report,
) -> Option<ExternalInterface> {
    let external = match interface::select(host, &interface_wish(options)).await {
        Ok(external) => external,
        Err(error) => {
            report.failure("interface", error.to_string(), "give --iface or --public-ip");
            return None;
        }
    };
    let ExternalInterface { name, mtu, address, public_ip, .. } = &external;
    match tunnel_mtu(&external) {
        Ok(tunnel) => report.ok(
            "interface",
            format!(
                "peers reach this host at {public_ip} by {name} ({address}); its MTU of {mtu} \
                 leaves {tunnel} bytes for packets of pods"
            ),
        ),
        Err(error) => {
            report.failure("interface", error.to_string(), format!("ip link set {name} mtu 1500"));
        }
    }
    if let Ok(Some(link)) = host.link(name).await
        && !(link.up && link.carrier)
    {
        let fix = format!("ip link set {name} up, and look at its cable or its hypervisor");
        report.failure("interface", format!("{name} is down"), fix);
    }
    Some(external)
}

/// Whether the daemon could have its port.
pub(super) fn port(
    external: &ExternalInterface,
    stored: Option<&Stored>,
    device: Option<&Link>,
    report: &mut Report,
) {
    let port = stored.map_or(DEFAULT_UDP_PORT, |stored| stored.port);
    let address = SocketAddrV4::new(external.address, port);
    let plain = UdpWish { gso: false, gro: false };
    let error = match UdpSocket::bind(address, plain, Sharing::Never) {
        Ok(_) if device.is_some() => {
            return report.failure(
                "port",
                format!("the daemon runs, but nobody listens on UDP {address}"),
                "restart it with the same --iface and --public-ip as this check",
            );
        }
        Ok(_) => return report.ok("port", format!("UDP {address} is free")),
        Err(error) => error,
    };
    if !matches!(error, SocketError::InUse(_)) {
        return report.failure("port", error.to_string(), "check --iface and --public-ip");
    }
    match (holder(address), device) {
        (Some(Holder { pid, name }), Some(_)) if name == DAEMON => {
            report.ok("port", format!("UDP {address} is the daemon's, process {pid}"));
        }
        // A process that cannot be seen from here: the daemon in its container.
        (None, Some(_)) => report.ok("port", format!("UDP {address} is in use, as the device is")),
        (Some(Holder { pid, name }), _) => report.failure(
            "port",
            format!("UDP {address} is in use by {name}, process {pid}"),
            "stop that, or set another Backend.Port in the network config of all hosts",
        ),
        (None, None) => report.failure(
            "port",
            format!("UDP {address} is in use by a process that cannot be seen from here"),
            "find it as root (ss -ulpn), or set another Backend.Port in the config of all hosts",
        ),
    }
}

/// Whether the kernel forwards, and what it believes.
pub(super) fn forwarding(external: Option<&ExternalInterface>, report: &mut Report) {
    match setting("ip_forward").as_deref() {
        Some("1") => report.ok("forwarding", "net.ipv4.ip_forward is 1"),
        value => report.warning(
            "forwarding",
            format!(
                "net.ipv4.ip_forward is {}: this host answers in the overlay, its pods do not",
                value.unwrap_or("unreadable")
            ),
            "sysctl -w net.ipv4.ip_forward=1, and keep it in /etc/sysctl.d",
        ),
    }
    let Some(external) = external else { return };
    // The larger of the two counts; 1 is strict (Documentation/networking/ip-sysctl.rst).
    let level = |name: &str| setting(&format!("conf/{name}/rp_filter"));
    if level("all").max(level(&external.name)).as_deref() == Some("1") {
        report.note(
            "forwarding",
            format!(
                "rp_filter is strict on {}: where answers take another way than requests, packets \
                 of peers are dropped without a word",
                external.name
            ),
            Some("on hosts with several ways out: sysctl -w net.ipv4.conf.all.rp_filter=2"),
        );
    }
}

/// A value below `/proc/sys/net/ipv4`.
fn setting(name: &str) -> Option<String> {
    let text = std::fs::read_to_string(Path::new("/proc/sys/net/ipv4").join(name)).ok()?;
    Some(text.trim().to_owned())
}

/// Whether the wanted rules could be set.
pub(super) async fn rules(options: &Options, config: &NetworkConfig, report: &mut Report) {
    let by_default = options.rules.forward == ForwardRules::ByDefault;
    if options.rules.forward == ForwardRules::Off && !options.rules.masquerade {
        return report.ok("rules", "none are wanted");
    }
    // As if asked for: else a missing tool is only logged.
    let forward = if by_default { ForwardRules::AskedFor } else { options.rules.forward };
    let wanted = RulesOptions { forward, ..options.rules };
    let tool = if config.enable_nftables { "nftables" } else { "iptables" };
    match Rules::prepare(wanted, config.enable_nftables, families(config)).await {
        Ok(_) => report.ok("rules", format!("can be set by {tool}: {}", options.rules)),
        Err(error) => {
            let severity = match by_default && !options.rules.masquerade {
                true => Severity::Warning,
                false => Severity::Failure,
            };
            let (text, package) = match &error {
                RulesError::Missing { tool, package } => {
                    (format!("{tool} is not in PATH"), *package)
                }
                error => (error.to_string(), tool),
            };
            let fix = format!(
                "apt-get install {package}, or do without: --iptables-forward-rules=false \
                 --ip-masq=false"
            );
            report.add(severity, "rules", text, Some(fix));
        }
    }
}

/// What of this host is in the overlay's way.
pub(super) async fn overlaps(
    host: &Host,
    stored: &Stored,
    device: Option<&Link>,
    report: &mut Report,
) {
    let (links, routes) = match (host.links().await, host.routes().await) {
        (Ok(links), Ok(routes)) => (links, routes),
        (Err(error), _) | (_, Err(error)) => {
            return report.failure("overlay", error.to_string(), "run flanneld check as root");
        }
    };
    let (overlay, own) = (stored.config.network, stored.own_subnet);
    let before = report.findings.len();
    // What lies within this host's own subnet is its bridge.
    let foreign =
        |net: Ipv4Net| overlap(net, overlay) && !own.is_some_and(|own| own.contains(&net));
    let is_ours = |link: u32| device.is_some_and(|device| device.index == link);
    let choose = "choose another Network in the config, before the first host starts with it, or \
                  renumber";

    for link in links.iter().filter(|link| !is_ours(link.index)) {
        for net in link.addresses.iter().map(|address| address.net).filter(|net| foreign(*net)) {
            report.failure(
                "overlay",
                format!("{overlay} overlaps with this host's network {net} on {}", link.name),
                format!("{choose} {}", link.name),
            );
        }
    }
    for lease in &stored.leases {
        let ip = lease.attrs.public_ip;
        if overlay.contains(&ip) {
            report.failure(
                "overlay",
                format!("{overlay} contains the public address {ip} of {}", lease.subnet.v4),
                format!("{choose} that host: packets to it would go into the tunnel for ever"),
            );
        }
    }
    // The kernel's own routes come with addresses, which were looked at.
    let others = routes.iter().filter(|route| {
        !route.by_kernel && !route.link.is_some_and(is_ours) && foreign(route.network)
    });
    for route in others.filter(|route| route.network.prefix_len() > 0) {
        let to = route.network;
        let way = way(route, &links);
        let remove = format!("ip route del {to}, or {choose} that network");
        if to == overlay && route.metric == 0 {
            let text = format!("the route for the overlay network {overlay} exists already, {way}");
            report.failure("overlay", text, remove);
        } else if overlay.contains(&to) && to != overlay {
            let text = format!("a route takes {to} out of the overlay {overlay}, {way}");
            report.warning("overlay", text, remove);
        } else {
            let text = format!("the overlay {overlay} hides a part of the route {to}, {way}");
            report.note("overlay", text, Some("none is needed if nobody there is to be reached"));
        }
    }
    if report.findings.len() == before {
        report.ok("overlay", format!("{overlay} overlaps with nothing else on this host"));
    }
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

fn way(route: &RouteEntry, links: &[Link]) -> String {
    let name = route.link.and_then(|index| links.iter().find(|link| link.index == index));
    match (route.unicast, name, route.gateway) {
        (false, ..) => "a route to nowhere".into(),
        (true, Some(link), Some(gateway)) => format!("via {gateway} on {}", link.name),
        (true, Some(link), None) => format!("through {}", link.name),
        (true, None, _) => "through another device".into(),
    }
}

//! The other hosts: do they answer, and to packets of which size.
//!
//! What both sides agree on, upstream's daemons included, is an ICMP echo through the overlay to the
//! first address of the peer's subnet, which its device has: the answer proves that UDP passes both
//! ways. It needs a daemon on this host. Without one, and where the answer does not come, the
//! peer's public address is asked by an echo outside of the overlay.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use futures::future::join_all;
use ipnet::Ipv4Net;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout, timeout_at};

use super::ping::{Answer, PathMtu, Pinger, SMALL_BYTES};
use super::store::Stored;
use super::{Finding, Report, Severity};
use crate::backend::udp::tunnel_mtu;
use crate::host::interface::ExternalInterface;
use crate::host::link::Link;

/// So many peers are asked, all at once.
const PEERS_AT_MOST: usize = 32;

/// All of them together may take so long.
const TIME_LIMIT: Duration = Duration::from_secs(12);

/// How long a refusal of a datagram is waited for.
const REFUSAL_TIME: Duration = Duration::from_secs(1);

/// Where packets are sent from, and how large they may be.
struct Probes<'a> {
    external: &'a ExternalInterface,
    port: u16,
    /// Outside of the overlay.
    outer: Pinger,
    /// The external interface's MTU, as far as IPv4 can use it.
    outer_mtu: u16,
    /// Through the overlay, if a daemon runs here.
    overlay: Option<Pinger>,
    tunnel_mtu: u16,
}

/// A peer to be asked.
struct Peer {
    subnet: Ipv4Net,
    ip: Ipv4Addr,
}

/// Asks the peers.
pub(super) async fn examine(
    external: &ExternalInterface,
    stored: &Stored,
    device: Option<&Link>,
    report: &mut Report,
) {
    let peers: Vec<Peer> = stored
        .leases
        .iter()
        .filter(|lease| lease.attrs.names_one_host() && lease.attrs.public_ip != external.public_ip)
        .map(|lease| Peer { subnet: lease.subnet.v4.trunc(), ip: lease.attrs.public_ip })
        .collect();
    if peers.is_empty() {
        return report.note("peers", "there are none yet", None);
    }
    let probes = match Probes::open(external, stored, device) {
        Ok(probes) => probes,
        Err(error) => {
            let text = format!("not asked: no ICMP socket: {error}");
            let fix = "run flanneld check as root, or add CAP_NET_RAW";
            return report.note("peers", text, Some(fix));
        }
    };
    let every = peers.len().div_ceil(PEERS_AT_MOST);
    let asked: Vec<&Peer> = peers.iter().step_by(every).collect();
    if asked.len() < peers.len() {
        let text = format!("a sample of {} of {} is asked", asked.len(), peers.len());
        report.note("peers", text, None);
    }
    let deadline = Instant::now() + TIME_LIMIT;
    let answers = join_all(asked.iter().map(|peer| timeout_at(deadline, probes.ask(peer)))).await;

    let mut good = Vec::new();
    for (peer, answer) in asked.iter().zip(answers) {
        match answer {
            Ok(Ok(time)) => good.push(time),
            Ok(Err(finding)) => report.findings.push(*finding),
            Err(_) => report.note(
                "peers",
                format!("{peer}: no verdict within {} s", TIME_LIMIT.as_secs()),
                Some("run the check again"),
            ),
        }
    }
    good.sort();
    if let (Some(fastest), Some(slowest)) = (good.first(), good.last()) {
        let (way, bytes) = match probes.overlay {
            Some(_) => ("through the overlay", probes.tunnel_mtu),
            None => ("outside of the overlay (no daemon runs here)", probes.outer_mtu),
        };
        report.ok(
            "peers",
            format!(
                "{} of {} answer {way}, to packets of {bytes} bytes too, in {:.1} to {:.1} ms",
                good.len(),
                asked.len(),
                fastest.as_secs_f64() * 1e3,
                slowest.as_secs_f64() * 1e3
            ),
        );
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.ip, self.subnet)
    }
}

impl<'a> Probes<'a> {
    fn open(
        external: &'a ExternalInterface,
        stored: &Stored,
        device: Option<&Link>,
    ) -> std::io::Result<Self> {
        let own = device.and_then(|device| {
            let mut addresses = device.addresses.iter().map(|address| address.net.addr());
            addresses.find(|address| stored.config.network.contains(address))
        });
        Ok(Self {
            external,
            port: stored.port,
            outer: Pinger::open(external.address)?,
            outer_mtu: u16::try_from(external.mtu).unwrap_or(u16::MAX),
            overlay: own.map(Pinger::open).transpose()?,
            // Too small an interface has its own finding.
            tunnel_mtu: tunnel_mtu(external).unwrap_or(SMALL_BYTES),
        })
    }

    /// The time of a round trip, or what is wrong.
    async fn ask(&self, peer: &Peer) -> Result<Duration, Box<Finding>> {
        let outer = self.outer.echo_patiently(peer.ip, SMALL_BYTES, 2);
        let Some(overlay) = &self.overlay else {
            return match outer.await {
                Answer::Reply(time) => match self.outer.path_mtu(peer.ip, self.outer_mtu).await {
                    path if path.bytes == self.outer_mtu => Ok(time),
                    path => Err(self.narrow(peer, path, false)),
                },
                answer => Err(self.away(peer, answer)),
            };
        };
        let base = peer.subnet.network();
        let (inner, outer) = tokio::join!(overlay.echo_patiently(base, SMALL_BYTES, 2), outer);
        match (inner, outer) {
            (Answer::Reply(time), _) => self.sizes(peer, overlay, outer.is_reply(), time).await,
            (_, Answer::Reply(_)) => Err(self.blocked(peer).await),
            (_, answer) => Err(self.away(peer, answer)),
        }
    }

    /// Small packets pass the overlay: do the largest, and in one piece?
    async fn sizes(
        &self,
        peer: &Peer,
        overlay: &Pinger,
        outer_answers: bool,
        time: Duration,
    ) -> Result<Duration, Box<Finding>> {
        let full = overlay.echo_patiently(peer.subnet.network(), self.tunnel_mtu, 5);
        let path = async {
            if !outer_answers {
                return None;
            }
            Some(self.outer.path_mtu(peer.ip, self.outer_mtu).await)
        };
        let (full, path) = tokio::join!(full, path);
        // The peer's daemon says "too large" of what has come, but in fragments.
        let arrives = matches!(full, Answer::Reply(_) | Answer::TooLarge { .. });
        match path.filter(|path| path.bytes < self.outer_mtu) {
            Some(path) => Err(self.narrow(peer, path, !arrives)),
            None if arrives => Ok(time),
            None => Err(failure(
                format!(
                    "{peer}: small packets pass the overlay, those of {} bytes do not",
                    self.tunnel_mtu
                ),
                format!(
                    "give the interfaces of all hosts the same MTU as {} here, {} bytes, or all \
                     the smallest; restart flanneld, and make the pods anew",
                    self.external.name, self.external.mtu
                ),
            )),
        }
    }

    /// A path that does not carry what the interface does.
    fn narrow(&self, peer: &Peer, path: PathMtu, packets_vanish: bool) -> Box<Finding> {
        let PathMtu { bytes, router } = path;
        let name = &self.external.name;
        let told = match router {
            Some(router) => format!("{router} says so"),
            None => "no router says so".to_owned(),
        };
        let (result, also) = match packets_vanish {
            true => ("larger packets of pods vanish", "; or let fragments pass on the way"),
            false => ("larger packets of pods are sent in fragments, which costs speed", ""),
        };
        Box::new(Finding {
            severity: if packets_vanish { Severity::Failure } else { Severity::Warning },
            about: "mtu",
            text: format!(
                "{peer}: the path carries {bytes} bytes, {name} {}: {told}; {result}",
                self.outer_mtu
            ),
            fix: Some(format!(
                "ip link set {name} mtu {bytes} on all hosts, restart flanneld, and make the pods \
                 anew{also}"
            )),
        })
    }

    /// The host is there, the overlay does not get to it.
    async fn blocked(&self, peer: &Peer) -> Box<Finding> {
        let port = self.port;
        if self.refuses(peer.ip).await {
            return failure(
                format!("{peer} answers, but refuses UDP port {port}: no daemon listens there"),
                "start flanneld there, with the same config; its log says why it does not run"
                    .to_owned(),
            );
        }
        failure(
            format!(
                "{peer} answers, but nothing comes back through the overlay: UDP port {port} is \
                 blocked, here, there or between"
            ),
            format!(
                "allow UDP to port {port} from any source port between all hosts, both ways: \
                 iptables -I INPUT -p udp --dport {port} -j ACCEPT (a firewall that allows only \
                 source port {port}: --queues=1); then run flanneld check on that host"
            ),
        )
    }

    /// Whether somebody says that nobody listens at the peer's port. The datagram is empty: daemons
    /// drop it.
    async fn refuses(&self, ip: Ipv4Addr) -> bool {
        let ask = async {
            let socket = UdpSocket::bind(SocketAddrV4::new(self.external.address, 0)).await?;
            socket.connect(SocketAddrV4::new(ip, self.port)).await?;
            socket.send(&[]).await?;
            socket.recv(&mut [0]).await
        };
        match timeout(REFUSAL_TIME, ask).await {
            Ok(Err(error)) => error.kind() == std::io::ErrorKind::ConnectionRefused,
            _ => false,
        }
    }

    fn away(&self, peer: &Peer, answer: Answer) -> Box<Finding> {
        let why = match answer {
            Answer::Unreachable { by } => format!("{by} says that it is unreachable"),
            Answer::NotSent(kind) => format!("this host does not send to it: {kind}"),
            _ => "no answer at all".to_owned(),
        };
        Box::new(Finding {
            severity: Severity::Warning,
            about: "peers",
            text: format!("{peer}: {why}; it is down or gone, or ICMP is blocked"),
            fix: Some(format!(
                "ping {} by hand; if the host is gone for good, delete its lease, which else ends \
                 within 24 hours",
                peer.ip
            )),
        })
    }
}

fn failure(text: String, fix: String) -> Box<Finding> {
    Box::new(Finding { severity: Severity::Failure, about: "peers", text, fix: Some(fix) })
}

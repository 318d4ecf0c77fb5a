//! Watches the TUN device, so that what somebody takes away is put back.
#![forbid(unsafe_code)]

use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use ipnet::Ipv4Net;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::error::HostError;
use super::netlink::Host;

/// Kernel messages that come within this time of each other are reported as one: setting a link
/// down alone makes five. It also bounds how often two agents that disagree can go round.
const BURST: Duration = Duration::from_millis(50);

/// Wait before the kernel's messages are subscribed to anew after the socket failed.
pub(super) const REOPEN: Duration = Duration::from_secs(1);

/// What happened to the watched device since the last report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkChange {
    /// Its state, MTU, addresses or routes changed, or the route of its network did; perhaps by
    /// our own doing. Answer with [`Host::configure_tun`], which does nothing if all is well.
    Changed,
    /// It was removed or renamed.
    Vanished,
}

/// The kernel's messages.
pub(super) struct Messages {
    pub(super) queue: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    /// Reads the socket. Left to itself it would keep it until the kernel's next message.
    _connection: JoinSet<()>,
}

impl Host {
    /// Reports every change to the device `name` and to the route of `network`, until the
    /// receiver is dropped. Bursts are reported once; a report that is not taken yet absorbs the
    /// later ones, the graver change wins.
    ///
    /// Changes that the daemon makes itself are reported too. Answering with
    /// [`Host::configure_tun`] ends there, since it changes nothing the second time.
    ///
    /// # Errors
    ///
    /// If the kernel's messages cannot be subscribed to, or the device cannot be looked up.
    pub async fn watch_link(
        &self,
        name: &str,
        network: Ipv4Net,
    ) -> Result<mpsc::Receiver<LinkChange>, HostError> {
        // Subscribed first, so that nothing falls between the look-up and the first message.
        let messages = subscribe(&GROUPS)?;
        let index = self.link(name).await?.map(|link| link.index);
        let (tx, rx) = mpsc::channel(1);
        let watched = Watched { name: name.to_owned(), index, network: network.trunc() };
        tokio::spawn(watch(self.clone(), watched, messages, tx));
        Ok(rx)
    }
}

/// What a device's changes are told in.
const GROUPS: [MulticastGroup; 3] =
    [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route];

/// The kernel's messages of these groups from now on.
pub(super) fn subscribe(groups: &[MulticastGroup]) -> Result<Messages, HostError> {
    let (connection, _, queue) = new_multicast_connection(groups).map_err(HostError::Open)?;
    let mut reader = JoinSet::new();
    reader.spawn(connection);
    Ok(Messages { queue, _connection: reader })
}

async fn watch(
    host: Host,
    mut watched: Watched,
    mut messages: Messages,
    tx: mpsc::Sender<LinkChange>,
) {
    let mut pending: Option<LinkChange> = None;
    let mut burst_ends = Instant::now();
    loop {
        let deliver = async {
            sleep_until(burst_ends).await;
            tx.reserve().await
        };
        let change = tokio::select! {
            // The messages come first: a report is never older than what the kernel has said.
            biased;
            () = tx.closed() => return,
            message = messages.queue.next() => match message {
                Some((message, _)) => watched.judge(&message.payload),
                None => {
                    let Some(again) = resubscribe(&host, &mut watched, &tx).await else { return };
                    messages = again;
                    Some(LinkChange::Changed)
                }
            },
            permit = deliver, if pending.is_some() => {
                if let (Ok(permit), Some(change)) = (permit, pending.take()) {
                    permit.send(change);
                }
                None
            }
        };
        if change.is_some() && pending.is_none() {
            burst_ends = Instant::now() + BURST;
        }
        pending = pending.max(change);
    }
}

/// Subscribes anew until it works; `None` once nobody listens any more.
async fn resubscribe(
    host: &Host,
    watched: &mut Watched,
    tx: &mpsc::Sender<LinkChange>,
) -> Option<Messages> {
    tracing::warn!("the kernel's messages about {} broke off: subscribing anew", watched.name);
    loop {
        tokio::select! {
            () = tx.closed() => return None,
            () = sleep(REOPEN) => {}
        }
        if let Ok(messages) = subscribe(&GROUPS) {
            if let Ok(link) = host.link(&watched.name).await {
                watched.index = link.map(|link| link.index);
            }
            return Some(messages);
        }
    }
}

/// What is watched, and which index it has at the moment.
struct Watched {
    name: String,
    index: Option<u32>,
    network: Ipv4Net,
}

impl Watched {
    /// What a kernel message means for the device; `None` if it is about something else.
    fn judge(&mut self, payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<LinkChange> {
        let message = match payload {
            NetlinkPayload::InnerMessage(message) => message,
            // The kernel's queue ran over: anything may have happened.
            NetlinkPayload::Overrun(_) => return Some(LinkChange::Changed),
            _ => return None,
        };
        match message {
            RouteNetlinkMessage::NewLink(link) => self.judge_link(link),
            RouteNetlinkMessage::DelLink(link) if Some(link.header.index) == self.index => {
                self.index = None;
                Some(LinkChange::Vanished)
            }
            RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
                (Some(address.header.index) == self.index).then_some(LinkChange::Changed)
            }
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                self.concerns(route).then_some(LinkChange::Changed)
            }
            _ => None,
        }
    }

    fn judge_link(&mut self, link: &LinkMessage) -> Option<LinkChange> {
        let named_so = link.attributes.iter().any(
            |attribute| matches!(attribute, LinkAttribute::IfName(name) if *name == self.name),
        );
        if named_so {
            self.index = Some(link.header.index);
            Some(LinkChange::Changed)
        } else if Some(link.header.index) == self.index {
            self.index = None;
            Some(LinkChange::Vanished)
        } else {
            None
        }
    }

    fn concerns(&self, route: &RouteMessage) -> bool {
        route.attributes.iter().any(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index) == self.index,
            RouteAttribute::Destination(RouteAddress::Inet(to)) => {
                *to == self.network.addr()
                    && route.header.destination_prefix_length == self.network.prefix_len()
            }
            _ => false,
        })
    }
}

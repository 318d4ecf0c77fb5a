//! Watches whether an address is on this host.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};

use futures::StreamExt;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressAttribute;
use tokio::sync::watch;
use tokio::time::sleep;

use super::error::HostError;
use super::monitor::{Messages, REOPEN, subscribe};
use super::netlink::Host;

impl Host {
    /// Tells whether `address` is an address of this host, now and each time that this changes,
    /// until the receiver is dropped.
    ///
    /// # Errors
    ///
    /// If the kernel's messages cannot be subscribed to, or the addresses cannot be listed.
    pub async fn watch_address(
        &self,
        address: Ipv4Addr,
    ) -> Result<watch::Receiver<bool>, HostError> {
        // Subscribed first, so that nothing falls between the look and the first message.
        let messages = subscribe(&[MulticastGroup::Ipv4Ifaddr])?;
        let (tx, mut rx) = watch::channel(self.has_address(address).await?);
        // What is the case now is news as well.
        rx.mark_changed();
        tokio::spawn(follow(self.clone(), address, messages, tx));
        Ok(rx)
    }

    async fn has_address(&self, address: Ipv4Addr) -> Result<bool, HostError> {
        let all = self.addresses(None).await?;
        Ok(all.iter().any(|(_, present)| present.net.addr() == address))
    }
}

async fn follow(
    host: Host,
    address: Ipv4Addr,
    mut messages: Messages,
    present: watch::Sender<bool>,
) {
    loop {
        let message = tokio::select! {
            () = present.closed() => return,
            message = messages.queue.next() => message,
        };
        match message {
            Some((message, _)) if !concerns(&message.payload, address) => continue,
            Some(_) => {}
            // The subscription failed: anything may have happened until there is a new one.
            None => loop {
                sleep(REOPEN).await;
                if let Ok(again) = subscribe(&[MulticastGroup::Ipv4Ifaddr]) {
                    messages = again;
                    break;
                }
            },
        }
        // Asked, since another link may have the same address.
        if let Ok(now) = host.has_address(address).await {
            present.send_if_modified(|before| std::mem::replace(before, now) != now);
        }
    }
}

/// Whether a message of the kernel may be about `address`.
fn concerns(payload: &NetlinkPayload<RouteNetlinkMessage>, address: Ipv4Addr) -> bool {
    match payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewAddress(message) | RouteNetlinkMessage::DelAddress(message),
        ) => message.attributes.iter().any(|attribute| {
            matches!(attribute, AddressAttribute::Local(IpAddr::V4(local)) if *local == address)
        }),
        // The kernel's queue ran over.
        NetlinkPayload::Overrun(_) => true,
        _ => false,
    }
}

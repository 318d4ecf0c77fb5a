//! The TUN devices of daemons, running and gone. They persist: the next daemon takes its device
//! over, so that address, route and whatever refers to it outlive a restart or a crash.
#![forbid(unsafe_code)]

use ipnet::Ipv4Net;
use tracing::info;

use super::error::HostError;
use super::link::{Link, TunShape};
use super::netlink::Host;
use super::tun_setup::leads_through;

/// How a device must look to be taken over.
#[derive(Clone, Debug)]
pub struct WantedTun<'a> {
    /// Its alias: what the daemon before wrote on it.
    pub alias: &'a str,
    /// Its name; `%d` stands for any number.
    pub name: &'a str,
    /// How it was opened.
    pub shape: TunShape,
    /// The overlay network that must be routed to it.
    pub network: Ipv4Net,
    /// The device that this process itself holds already.
    pub held: Option<&'a str>,
}

impl Host {
    /// The TUN devices that a daemon with this `--tun-name` uses, or has left.
    ///
    /// [`Link::carrier`] tells them apart: the kernel takes it away with the last descriptor
    /// (`__tun_detach` in drivers/net/tun.c).
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn tuns_named(&self, pattern: &str) -> Result<Vec<Link>, HostError> {
        let mut links = self.links().await?;
        links.retain(|link| link.is_tun && is_named(&link.name, pattern));
        Ok(links)
    }

    /// The name of the device that an earlier daemon left, if it can go on being used. One that
    /// bears our alias but cannot, for the flags or the network have changed, is removed.
    ///
    /// # Errors
    ///
    /// [`HostError::TunHeld`] if another program holds it, and if the kernel cannot be asked.
    pub async fn left_tun(&self, wanted: &WantedTun<'_>) -> Result<Option<String>, HostError> {
        let mut taken = None;
        for link in self.links().await? {
            if !link.is_tun || link.alias != wanted.alias {
                continue;
            }
            if link.carrier && wanted.held != Some(&link.name) {
                return Err(HostError::TunHeld { name: link.name, alias: link.alias });
            }
            let unfit = match taken {
                Some(_) => Some("one is enough"),
                None => self.unfit(&link, wanted).await?,
            };
            if let Some(why) = unfit {
                info!("removing {}, which the daemon before left: {why}", link.name);
                self.delete_link(&link.name).await?;
            } else {
                info!("taking over {}, which the daemon before left", link.name);
                taken = Some(link.name);
            }
        }
        Ok(taken)
    }

    /// Removes the TUN devices with this alias, whatever their names are by now and whoever holds
    /// them.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked, or refuses.
    pub async fn remove_tuns(&self, alias: &str) -> Result<(), HostError> {
        for link in self.links().await? {
            if link.is_tun && link.alias == alias {
                self.delete_link(&link.name).await?;
            }
        }
        Ok(())
    }

    /// Why a device cannot be taken over, if so.
    async fn unfit(
        &self,
        link: &Link,
        wanted: &WantedTun<'_>,
    ) -> Result<Option<&'static str>, HostError> {
        if link.tun_shape != Some(wanted.shape) {
            return Ok(Some("--queues or --offload asks for another kind of device"));
        }
        if !is_named(&link.name, wanted.name) {
            return Ok(Some("it has another name by now"));
        }
        let network = wanted.network.trunc();
        let routes = self.main_routes(Some(link.index)).await?;
        let routed = routes.iter().any(|route| leads_through(route, link.index, network));
        Ok((!routed).then_some("the overlay network is not routed to it"))
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

//! Says when the network config in the store is not the one that this daemon runs by.
//!
//! Upstream reads the config at the start and never again, and so does this daemon: a changed
//! network would take their addresses away from all pods. But whoever changes it shall know.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;

use super::store::{StoreError, SubnetStore};
use crate::config::NetworkConfig;
use crate::logging::limit::LogGate;

/// An operator at work changes it a few times; more is told once a minute.
const TOLD_AT_ONCE: u32 = 5;

/// Compares the store's config with `running` each time that it is notified, until it is dropped.
/// A store that does not answer is left alone: its watch begins anew, and then this is notified.
pub async fn run(store: Arc<dyn SubnetStore>, running: NetworkConfig, look: Arc<Notify>) {
    let mut told = None;
    let mut gate = LogGate::after(TOLD_AT_ONCE);
    loop {
        look.notified().await;
        let found = match store.config().await {
            Ok(text) => difference(&running, &text),
            Err(error @ StoreError::NoConfig { .. }) => Some(error.to_string()),
            Err(_) => continue,
        };
        if found == told {
            continue;
        }
        let Some(withheld) = gate.pass(Instant::now()) else { continue };
        match &found {
            Some(found) => tracing::warn!(
                "the network config in {} was changed: {found}; this daemon goes on by the one \
                 that it started with, restart it to apply the change{withheld}",
                store.describe()
            ),
            None => tracing::info!(
                "the network config in {} is again the one that this daemon runs by{withheld}",
                store.describe()
            ),
        }
        told = found;
    }
}

/// What a restart would make of `text`; `None` if all stays as it is.
fn difference(running: &NetworkConfig, text: &str) -> Option<String> {
    let config = match NetworkConfig::parse(text) {
        Ok(config) => config,
        Err(error) => return Some(format!("it is not valid: {error}")),
    };
    let port = |config: &NetworkConfig| match config.backend.udp_port() {
        Ok(port) => port.to_string(),
        Err(error) => error.to_string(),
    };
    let ipv6 = |config: &NetworkConfig| match &config.ipv6 {
        None => "off".to_owned(),
        Some(v6) => {
            format!("{} /{} {} to {}", v6.network, v6.subnet_len, v6.subnet_min, v6.subnet_max)
        }
    };
    let fields = [
        field("Network", running.network, config.network),
        field("SubnetLen", running.subnet_len, config.subnet_len),
        field("SubnetMin", running.subnet_min, config.subnet_min),
        field("SubnetMax", running.subnet_max, config.subnet_max),
        field("IPv6", ipv6(running), ipv6(&config)),
        field("EnableNFTables", running.enable_nftables, config.enable_nftables),
        field("Backend.Type", &running.backend.kind, &config.backend.kind),
        field("Backend.Port", port(running), port(&config)),
    ];
    let changed: Vec<String> = fields.into_iter().flatten().collect();
    (!changed.is_empty()).then(|| changed.join(", "))
}

fn field<T: PartialEq + Display>(name: &str, before: T, after: T) -> Option<String> {
    (before != after).then(|| format!("{name} from {before} to {after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_restart_would_apply_is_a_difference() {
        let text = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"udp"}}"#;
        let running = NetworkConfig::parse(text).unwrap();
        let changes = [
            (r#"{ "network": "172.7.0.0/16", "SubnetLen": 24, "Unknown": 1 }"#, None),
            (
                r#"{"Network":"172.7.0.0/16","Backend":{"Type":"UDP","Port":8286}}"#,
                Some("Backend.Port from 8285 to 8286"),
            ),
            (
                r#"{"Network":"172.7.0.0/16","SubnetLen":26,"Backend":{"Type":"vxlan"}}"#,
                Some(
                    "SubnetLen from 24 to 26, SubnetMin from 172.7.1.0 to 172.7.0.64, \
                     SubnetMax from 172.7.255.0 to 172.7.255.192, Backend.Type from udp to vxlan",
                ),
            ),
            (
                r#"{"Network":"172.7.0.0/16","SubnetLen":33}"#,
                Some("it is not valid: network config: SubnetLen=33: must be at most 30"),
            ),
        ];
        for (text, wanted) in changes {
            assert_eq!(difference(&running, text).as_deref(), wanted, "{text}");
        }
    }
}

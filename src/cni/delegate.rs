//! The configuration of the plugin that does the work.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::config::{Config, invalid};
use super::error::{Code, Error};
use super::subnet_env::SubnetEnv;

const DEFAULT_TYPE: &str = "bridge";
const DEFAULT_IPAM: &str = "host-local";

/// The plugin that a delegate's configuration names.
pub(super) fn plugin_of(delegate: &Map<String, Value>) -> Result<&str, Error> {
    let plugin = delegate.get("type").map_or(Some(DEFAULT_TYPE), Value::as_str);
    // It becomes the name of a file to be run.
    plugin.filter(|name| !name.is_empty() && !name.contains(['/', '\0'])).ok_or_else(|| {
        invalid(
            "delegate.type",
            delegate.get("type").unwrap_or(&Value::Null),
            "write the name of a plugin as a string, or leave it out for bridge",
        )
    })
}

/// Builds the delegate's configuration: the operator's wishes, and for the rest what flanneld
/// says of the overlay.
pub fn delegate_config(config: &Config, env: &SubnetEnv) -> Result<Map<String, Value>, Error> {
    for key in ["name", "ipam"] {
        if let Some(value) = config.delegate.get(key) {
            let key = format!("delegate.{key}");
            let error = invalid(&key, value, "remove it, flannel sets it");
            return Err(Error { code: Code::UnsupportedField as u32, ..error });
        }
    }
    let plugin = plugin_of(&config.delegate)?.to_owned();

    let mut delegate = config.delegate.clone();
    let mut default = |key: &str, value: Value| {
        delegate.entry(key).or_insert(value);
    };
    // One of both must masquerade what leaves the overlay.
    default("ipMasq", (!env.ip_masq).into());
    default("mtu", env.mtu.into());
    if plugin == DEFAULT_TYPE {
        default("isGateway", true.into());
    }
    delegate.insert("type".into(), plugin.into());
    delegate.insert("name".into(), config.name.as_str().into());
    if let Some(version) = &config.version_text {
        delegate.insert("cniVersion".into(), version.as_str().into());
    }
    if let Some(runtime_config) = &config.runtime_config {
        delegate.insert("runtimeConfig".into(), runtime_config.clone().into());
    }
    delegate.insert("ipam".into(), ipam(config, env)?.into());
    Ok(delegate)
}

/// Addresses come from this host's subnet, and all of the overlay is reached over the interface.
fn ipam(config: &Config, env: &SubnetEnv) -> Result<Map<String, Value>, Error> {
    let mut ipam = config.ipam.clone();
    let plugin = ipam.entry("type").or_insert_with(|| DEFAULT_IPAM.into());
    if !plugin.is_string() {
        return Err(invalid(
            "ipam.type",
            plugin,
            "write the name of a plugin as a string, or leave it out for host-local",
        ));
    }
    let subnets = [env.subnet.map(IpNet::V4), env.ipv6_subnet.map(IpNet::V6)];
    let ranges = subnets.iter().flatten().map(|subnet| json!([{ "subnet": subnet.to_string() }]));
    ipam.insert("ranges".into(), ranges.collect());

    let mut routes = match ipam.remove("routes") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(routes)) => routes,
        Some(other) => return Err(invalid("ipam.routes", &other, ROUTES)),
    };
    if let Some(wrong) = routes.iter().find(|route| !is_route(route)) {
        return Err(invalid("ipam.routes", wrong, ROUTES));
    }
    let v4 = env.networks.iter().copied().map(IpNet::V4);
    let v6 = env.ipv6_networks.iter().copied().map(IpNet::V6);
    routes.extend(v4.chain(v6).map(|network| json!({ "dst": network.to_string() })));
    ipam.insert("routes".into(), routes.into());
    Ok(ipam)
}

const ROUTES: &str = r#"a list of routes is wanted, each as {"dst": "10.0.0.0/8"} or with a "gw""#;

fn is_route(route: &Value) -> bool {
    let text = |key: &str| route.get(key).map(|value| value.as_str().unwrap_or_default());
    let good_gateway = match text("gw") {
        Some(gateway) => gateway.parse::<IpAddr>().is_ok(),
        None => true,
    };
    good_gateway && text("dst").is_some_and(|dst| dst.parse::<IpNet>().is_ok())
}

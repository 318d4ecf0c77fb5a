//! What people and other daemons write.

use std::net::Ipv4Addr;

use flanneld::cni::config::Config;
use flanneld::cni::delegate::delegate_config;
use flanneld::cni::subnet_env::SubnetEnv;
use flanneld::config::NetworkConfig;
use flanneld::subnet::allocate;
use flanneld::subnet::env_file::{EnvFile, PreviousSubnet};
use flanneld::subnet::lease::{LeaseAttrs, Subnet};

/// A store's key: what is read can be written, and reads back as itself.
pub fn key(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let Ok(subnet) = Subnet::from_key_path(&text) else { return false };
    assert_eq!(subnet.to_string().parse(), Ok(subnet));
    assert!(subnet.overlaps(&subnet));
    true
}

/// A store's value: the same, and writing it again changes nothing.
pub fn value(data: &[u8]) -> bool {
    let Ok(attrs) = LeaseAttrs::from_json(data) else { return false };
    let written = attrs.to_json();
    assert_eq!(LeaseAttrs::from_json(written.as_bytes()).as_ref(), Ok(&attrs));
    true
}

/// The network config: what is accepted obeys the rules, and its first subnet may be leased,
/// written to `subnet.env` and read back.
pub fn config(data: &[u8]) -> bool {
    let Ok(config) = NetworkConfig::parse(&String::from_utf8_lossy(data)) else { return false };
    let _ = config.backend.udp_port();
    let (network, len) = (config.network, config.subnet_len);
    assert_eq!(network, network.trunc());
    assert!(network.prefix_len() > 0 && len <= 30 && len >= network.prefix_len() + 2);
    assert!(config.subnet_min <= config.subnet_max);
    for bound in [config.subnet_min, config.subnet_max] {
        assert!(network.contains(&bound), "{bound} is not in {network}");
        assert_eq!(u32::from(bound).checked_shl(len.into()).unwrap_or(0), 0, "{bound}/{len}");
    }
    if config.ipv6.is_some() {
        return true;
    }
    let first = Subnet::new(ipv4_net(config.subnet_min, len));
    assert_eq!(allocate::fits(&config, &first), Ok(()));
    let text = EnvFile::new(&config, &first, 1472, false).to_string();
    let previous = PreviousSubnet::parse(&text);
    assert_eq!((previous.network, previous.wanted()), (Some(network), Some(first)));
    true
}

fn ipv4_net(address: Ipv4Addr, len: u8) -> ipnet::Ipv4Net {
    ipnet::Ipv4Net::new(address, len).expect("the length was checked")
}

/// `subnet.env` as an operator may have written it: networks come out masked, and what the daemon
/// would write of them reads back the same.
pub fn env_file(data: &[u8]) -> bool {
    let previous = PreviousSubnet::parse(&String::from_utf8_lossy(data));
    for net in [previous.network, previous.subnet].into_iter().flatten() {
        assert_eq!(net, net.trunc());
    }
    if let (Some(network), Some(subnet)) = (previous.network, previous.subnet) {
        let ipv6 = previous.ipv6_network.zip(previous.ipv6_subnet);
        let file = EnvFile { network, subnet, ipv6, mtu: 1472, ip_masq: true };
        let again = PreviousSubnet::parse(&file.to_string());
        assert_eq!((again.network, again.subnet), (Some(network), Some(subnet)));
        assert_eq!(again.ipv6_network.zip(again.ipv6_subnet), ipv6);
    }
    previous.wanted().is_some()
}

/// A CNI network's configuration: whatever the operator wrote, the delegate's one has the network's
/// name, this host's subnet and the way to the overlay, and keeps the operator's other keys.
pub fn cni(data: &[u8]) -> bool {
    let env = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\n\
               FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";
    let env = SubnetEnv::parse(env).expect("it is whole");
    let Ok(config) = Config::parse(data) else { return false };
    let Ok(delegate) = delegate_config(&config, &env) else { return false };
    assert_eq!(delegate["name"], *config.name);
    assert!(delegate["type"].is_string());
    assert_eq!(delegate["ipam"]["ranges"].to_string(), r#"[[{"subnet":"10.1.17.0/24"}]]"#);
    let routes = delegate["ipam"]["routes"].as_array().expect("there is always one");
    assert_eq!(routes.last().expect("there is one").to_string(), r#"{"dst":"10.1.0.0/16"}"#);
    let set = ["cniVersion", "runtimeConfig"];
    for (key, value) in config.delegate.iter().filter(|(key, _)| !set.contains(&key.as_str())) {
        assert_eq!(&delegate[key], value, "{key}");
    }
    let text = serde_json::Value::from(delegate.clone()).to_string();
    assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "DEL could not read it back");
    true
}

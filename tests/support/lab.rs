//! Hosts as network namespaces, joined by veth pairs on one bridge in a namespace of its own.
//!
//! Nothing is made in the root namespace; everything vanishes when the lab is dropped.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use ipnet::Ipv4Net;
use tempfile::TempDir;

use super::daemon::{Daemon, PATIENCE};
use super::netns::Netns;
use super::traffic::End;

/// The overlay network of every lab, as in the usual tutorial. Daemons draw their subnets from its
/// first hundred, so leases that a test makes by hand lie above 172.7.100.0.
pub const NETWORK: &str = "172.7.0.0/16";

/// The network's config, as in the same tutorial.
pub const CONFIG: &str = r#"{"Network":"172.7.0.0/16","Backend":{"Type":"udp"}}"#;

/// How the hosts' links treat large buffers (facts/measured.md).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkModel {
    /// veth hands superpackets over uncut: fastest.
    #[default]
    Whole,
    /// The kernel cuts before the link and merges behind it, as with a plain network card.
    Wire,
}

/// A network of hosts.
#[derive(Debug)]
pub struct Lab {
    switch: Netns,
    hosts: Vec<LabHost>,
    dir: TempDir,
}

/// One host: 10.4.7.21, 10.4.7.22 … on `eth0`.
#[derive(Debug)]
pub struct LabHost {
    /// Its namespace.
    pub netns: Netns,
    /// Its address on `eth0`.
    pub address: Ipv4Addr,
    /// Its directory, for files such as `subnet.env`.
    pub dir: PathBuf,
    pods: Vec<Pod>,
}

/// A pod behind its host's `cni0`, set up from the host's `subnet.env`.
#[derive(Debug)]
pub struct Pod {
    /// Its namespace.
    pub netns: Netns,
    /// Its address on `eth0`.
    pub address: Ipv4Addr,
}

impl Lab {
    /// A lab of `hosts` hosts with links of 1,500 bytes.
    pub fn new(hosts: u8) -> Self {
        Self::with_links(hosts, 1500, LinkModel::Whole)
    }

    /// A lab of `hosts` hosts whose links have this MTU and this model.
    pub fn with_links(hosts: u8, mtu: u32, model: LinkModel) -> Self {
        let dir = tempfile::Builder::new().prefix("flanneld-lab-").tempdir().expect("/tmp works");
        let switch = Netns::new("switch");
        switch.ip("link add br0 type bridge");
        switch.ip(&format!("link set br0 mtu {mtu} up"));
        let hosts = (0..hosts)
            .map(|number| LabHost::new(21 + number, &switch, mtu, model, dir.path().into()))
            .collect();
        Self { switch, hosts, dir }
    }

    /// The host of that number, from 0: its address is 10.4.7.(21 + number).
    pub fn host(&self, number: usize) -> &LabHost {
        &self.hosts[number]
    }

    /// The same, for adding pods.
    pub fn host_mut(&mut self, number: usize) -> &mut LabHost {
        &mut self.hosts[number]
    }

    /// All hosts.
    pub fn hosts(&self) -> &[LabHost] {
        &self.hosts
    }

    /// The namespace with the bridge; host n's port there is called `h21`, `h22` …
    pub fn switch(&self) -> &Netns {
        &self.switch
    }

    /// A directory that lives as long as the lab: `LAB/store` for a directory store with
    /// `config` in it.
    pub fn store_dir(&self, config: &str) -> PathBuf {
        let store = self.dir.path().join("store");
        std::fs::create_dir_all(&store).expect("/tmp works");
        std::fs::write(store.join("config"), config).expect("/tmp works");
        store
    }

    /// Starts a daemon on every host, on the directory `store` and with the flags that `args`
    /// gives the host of each number. Returns when all are ready and know each other.
    pub fn start_overlay<'a>(
        &self,
        store: &Path,
        args: impl Fn(usize) -> Vec<&'a str>,
    ) -> Vec<Daemon> {
        let store = format!("--store-dir={}", store.display());
        let start = |(number, host): (usize, &LabHost)| {
            host.spawn_daemon(&[vec![store.as_str()], args(number)].concat(), &[])
        };
        let daemons: Vec<Daemon> = self.hosts.iter().enumerate().map(start).collect();
        for (host, daemon) in self.hosts.iter().zip(&daemons) {
            daemon.wait_ready();
            for peer in self.hosts.iter().filter(|peer| peer.address != host.address) {
                daemon.wait_log(&format!("at {} is up", peer.address), PATIENCE);
            }
        }
        daemons
    }

    /// Adds a pod to every host; see [`LabHost::add_pod`].
    pub fn add_pods(&mut self) {
        for host in &mut self.hosts {
            host.add_pod();
        }
    }
}

impl LabHost {
    fn new(number: u8, switch: &Netns, mtu: u32, model: LinkModel, lab: PathBuf) -> Self {
        let netns = Netns::new(&format!("h{number}"));
        let address = Ipv4Addr::new(10, 4, 7, number);
        let (port, outside) = (format!("h{number}"), switch.name());
        netns.ip(&format!("link add eth0 mtu {mtu} type veth peer name {port} netns {outside}"));
        netns.ip(&format!("addr add {address}/24 dev eth0"));
        netns.ip("link set eth0 up");
        netns.ip("route add default via 10.4.7.1");
        switch.ip(&format!("link set {port} mtu {mtu} master br0 up"));
        if model == LinkModel::Wire {
            let features = "tso off tx-udp-segmentation off tx-udp_tnl-segmentation off gro on";
            netns.exec(&format!("ethtool -K eth0 {features}"));
            switch.exec(&format!("ethtool -K {port} {features}"));
        }
        netns.sysctl("net.ipv4.ip_forward", "1");
        let dir = lab.join(format!("host-{number}"));
        std::fs::create_dir_all(&dir).expect("/tmp works");
        Self { netns, address, dir, pods: Vec::new() }
    }

    /// Where this host's daemon writes its `subnet.env`.
    pub fn subnet_file(&self) -> PathBuf {
        self.dir.join("subnet.env")
    }

    /// The variables of `subnet.env`; empty if there is no such file.
    pub fn subnet_env(&self) -> HashMap<String, String> {
        std::fs::read_to_string(self.subnet_file())
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    /// A variable of `subnet.env` that must be there.
    fn variable(&self, key: &str) -> String {
        let value = self.subnet_env().remove(key);
        value.unwrap_or_else(|| panic!("no {key} in {:?}", self.subnet_file()))
    }

    /// The bridge's address with the length of the host's subnet.
    fn bridge(&self) -> Ipv4Net {
        self.variable("FLANNEL_SUBNET").parse().expect("FLANNEL_SUBNET is a subnet")
    }

    /// The host's subnet as its key in the store names it, from `subnet.env`.
    pub fn lease(&self) -> String {
        self.variable("FLANNEL_SUBNET").replace(".1/", ".0-")
    }

    /// Starts the daemon with `--subnet-file`, `--public-ip` and `--iface` of this host and
    /// whatever `args` adds: the store at least.
    pub fn spawn_daemon(&self, args: &[&str], env: &[(&str, &str)]) -> Daemon {
        let mut command = self.daemon_command(args);
        command.envs(env.iter().copied());
        Daemon::run(command)
    }

    /// Packets so far that the kernel had no room for, in the device or in a socket: what is sent
    /// while the daemon does not get to it for long.
    pub fn dropped_by_kernel(&self) -> u64 {
        let device = self.netns.exec("cat /sys/class/net/flannel0/statistics/tx_dropped");
        device.trim().parse::<u64>().unwrap() + self.netns.counters().of("Udp", "RcvbufErrors")
    }

    /// What [`LabHost::spawn_daemon`] starts.
    pub fn daemon_command(&self, args: &[&str]) -> Command {
        self.daemon_command_by(&[], args)
    }

    /// The same by a command line that ends with the daemon's: `sh -c 'ulimit …; exec "$@"' sh`.
    pub fn daemon_command_by(&self, by: &[&str], args: &[&str]) -> Command {
        let line = [by, &[env!("CARGO_BIN_EXE_flanneld")]].concat();
        let mut command = self.netns.command(line[0]);
        command.args(&line[1..]).arg("--subnet-file").arg(self.subnet_file());
        command.args(["--public-ip", &self.address.to_string(), "--iface", "eth0"]).args(args);
        command
    }

    /// Adds a pod, as a container runtime would from `subnet.env`: the bridge `cni0` holds
    /// `FLANNEL_SUBNET` with the MTU `FLANNEL_MTU`, pods get the addresses after the bridge's.
    pub fn add_pod(&mut self) -> &Pod {
        let (bridge, mtu) = (self.bridge(), self.variable("FLANNEL_MTU"));
        if self.pods.is_empty() {
            self.netns.ip("link add cni0 type bridge");
            self.netns.ip(&format!("link set cni0 mtu {mtu} up"));
            self.netns.ip(&format!("addr add {bridge} dev cni0"));
        }
        let number = 1 + u32::try_from(self.pods.len()).expect("few pods");
        let address = Ipv4Addr::from_bits(bridge.addr().to_bits() + number);
        let [.., host] = self.address.octets();
        let netns = Netns::new(&format!("h{host}p{number}"));
        let (port, outside) = (format!("pod{number}"), self.netns.name());
        netns.ip(&format!("link add eth0 mtu {mtu} type veth peer name {port} netns {outside}"));
        netns.ip(&format!("addr add {address}/{} dev eth0", bridge.prefix_len()));
        netns.ip("link set eth0 up");
        netns.ip(&format!("route add default via {}", bridge.addr()));
        self.netns.ip(&format!("link set {port} mtu {mtu} master cni0 up"));
        self.pods.push(Pod { netns, address });
        self.pods.last().expect("it was just pushed")
    }

    /// The pod of that number, from 0.
    pub fn pod(&self, number: usize) -> &Pod {
        &self.pods[number]
    }

    /// The host as an end of traffic.
    pub fn end(&self) -> End<'_> {
        End { netns: &self.netns, address: self.address }
    }

    /// The host as an end of traffic by its own end of the tunnel: `flannel0` has the base of the
    /// host's subnet.
    pub fn tunnel(&self) -> End<'_> {
        End { netns: &self.netns, address: self.bridge().network() }
    }
}

impl Pod {
    /// The pod as an end of traffic.
    pub fn end(&self) -> End<'_> {
        End { netns: &self.netns, address: self.address }
    }
}

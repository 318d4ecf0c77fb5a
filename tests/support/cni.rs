//! The CNI plugin on a host of the lab, called as container runtimes call it.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::lab::LabHost;
use super::netns::Netns;
use super::{root_or_skip, skip};

/// Our plugin.
pub const FLANNEL: &str = env!("CARGO_BIN_EXE_flannel");

/// Where Debian's package puts its plugins.
pub const PLUGINS: &str = "/usr/lib/cni";

/// Where `recorder` is, the plugin that tells how it was called.
pub const OUR_PLUGINS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/cni");

/// Whether the real plugins can be run. Says so loudly if not.
pub fn plugins_or_skip(test: &str) -> bool {
    let plugins = ["bridge", "host-local", "portmap"].map(|plugin| Path::new(PLUGINS).join(plugin));
    let iptables = Command::new("iptables").arg("--version").output().is_ok();
    let found = iptables && plugins.iter().all(|plugin| plugin.exists());
    if !found {
        skip(test, "apt-get install iptables containernetworking-plugins");
    }
    found && root_or_skip(test)
}

/// The README's network.
fn readme_network() -> Value {
    let readme = include_str!("../../README.md");
    let (_, json) = readme.split_once("10-flannel.conflist`:\n\n```json\n").unwrap();
    serde_json::from_str(json.split_once("```").unwrap().0).unwrap()
}

/// What a plugin said: its stdout as JSON, `null` if there was none.
pub type Answer = Result<Value, Value>;

/// Runs a plugin with `config` on stdin; `command` has the variables.
pub fn run(mut command: Command, config: &str) -> Answer {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end without reading.
    let _ = child.stdin.take().unwrap().write_all(config.as_bytes());
    let output = child.wait_with_output().unwrap();
    let said = || String::from_utf8_lossy(&output.stdout).into_owned();
    let json = match output.stdout.as_slice() {
        [] => Value::Null,
        stdout => serde_json::from_slice(stdout).unwrap_or_else(|_| panic!("no JSON: {}", said())),
    };
    match output.status.code() {
        Some(0) => Ok(json),
        Some(1) => Err(json),
        _ => panic!("{:?}: {}", output.status, said()),
    }
}

/// The code and the message of an error in the specification's form.
pub fn error(answer: Answer) -> (u64, String) {
    let error = answer.expect_err("it should fail");
    assert!(error["cniVersion"].is_string(), "{error}");
    (error["code"].as_u64().unwrap(), error["msg"].as_str().unwrap().to_owned())
}

/// The container runtime of one host.
#[derive(Debug)]
pub struct Runtime<'a> {
    /// The host's namespace.
    pub netns: &'a Netns,
    /// The host's directory.
    pub dir: PathBuf,
    /// The plugin's configuration.
    pub config: Value,
    /// `CNI_PATH`.
    pub search_path: &'a str,
}

impl<'a> Runtime<'a> {
    /// On a host with a `subnet.env`; all files go into the host's directory.
    pub fn new(host: &'a LabHost) -> Self {
        // As runtimes do: each plugin gets the list's name and version.
        let mut list = readme_network();
        let mut config = list["plugins"][0].take();
        config["name"] = list["name"].take();
        config["cniVersion"] = list["cniVersion"].take();
        config["subnetFile"] = json!(host.subnet_file());
        config["dataDir"] = json!(host.dir.join("state"));
        config["ipam"] = json!({ "dataDir": host.dir.join("ipam") });
        Self { netns: &host.netns, dir: host.dir.clone(), config, search_path: PLUGINS }
    }

    /// On a host whose `subnet.env` is written by the test.
    pub fn without_daemon(host: &'a LabHost, ip_masq: bool) -> Self {
        let text = format!(
            "FLANNEL_NETWORK=172.7.0.0/16\nFLANNEL_SUBNET=172.7.21.1/24\n\
             FLANNEL_MTU=1472\nFLANNEL_IPMASQ={ip_masq}\n"
        );
        fs::write(host.subnet_file(), text).unwrap();
        Self::new(host)
    }

    /// A plugin's process on the host, without `CNI_NETNS`.
    pub fn command(&self, plugin: &str, command: &str, container: &str, ifname: &str) -> Command {
        let mut process = self.netns.command(plugin);
        process
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container)
            .env("CNI_IFNAME", ifname)
            .env("CNI_PATH", self.search_path)
            .env("RECORDER_LOG", self.dir.join("recorded"));
        process
    }

    /// Calls our plugin for the pod's `eth0`.
    pub fn call(&self, command: &str, container: &str, pod: &Netns, config: &Value) -> Answer {
        let mut process = self.command(FLANNEL, command, container, "eth0");
        process.env("CNI_NETNS", Path::new("/run/netns").join(pod.name()));
        run(process, &config.to_string())
    }

    /// ADD with the configuration as it is.
    pub fn add(&self, container: &str, pod: &Netns) -> Answer {
        self.call("ADD", container, pod, &self.config)
    }

    /// DEL with the configuration as it is.
    pub fn del(&self, container: &str, pod: &Netns) -> Answer {
        self.call("DEL", container, pod, &self.config)
    }

    /// The configuration with one more key.
    pub fn with(&self, key: &str, value: Value) -> Value {
        let mut config = self.config.clone();
        config[key] = value;
        config
    }

    /// The names of the state files.
    pub fn state(&self) -> BTreeSet<String> {
        names(&self.dir.join("state"))
    }

    /// The addresses that host-local has given out.
    pub fn addresses(&self) -> BTreeSet<String> {
        let mut names = names(&self.dir.join("ipam/cbr0"));
        names.retain(|name| name.parse::<Ipv4Addr>().is_ok());
        names
    }

    /// The host's links beside those of the lab, the daemon and the bridge itself.
    pub fn links(&self) -> Vec<String> {
        let links = self.netns.ip("-o link");
        let names = links.lines().map(|line| line.split(':').nth(1).unwrap().trim());
        let theirs = |name: &&str| {
            let name = name.split('@').next().unwrap();
            !["lo", "eth0", "flannel0", "cni0"].contains(&name)
        };
        names.filter(theirs).map(str::to_owned).collect()
    }

    /// The rules that plugins set for pods: their comments name the network.
    pub fn rules(&self) -> Vec<String> {
        let rules = self.netns.exec("iptables-save");
        rules.lines().filter(|rule| rule.contains("cbr0")).map(str::to_owned).collect()
    }

    /// Panics if a file, an address, a link or a rule of any pod is left.
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.state(), BTreeSet::new());
        assert_eq!(self.addresses(), BTreeSet::new());
        assert_eq!(self.links(), [""; 0]);
        assert_eq!(self.rules(), [""; 0]);
    }
}

fn names(dir: &Path) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(dir) else { return BTreeSet::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The address that an ADD gave.
pub fn address(result: &Value) -> Ipv4Addr {
    let address = result["ips"][0]["address"].as_str().unwrap();
    address.split('/').next().unwrap().parse().unwrap()
}

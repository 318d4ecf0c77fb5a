//! What the tests of the traffic rules share: which tools the daemon finds, and what they show.
#![forbid(unsafe_code)]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::daemon::PATIENCE;
use super::lab::CONFIG;
use super::netns::Netns;
use super::skip;

/// [`CONFIG`] for nftables.
pub const CONFIG_NFTABLES: &str =
    r#"{"Network":"172.7.0.0/16","EnableNFTables":true,"Backend":{"Type":"udp"}}"#;

/// Who sets the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `iptables` is `iptables-legacy`.
    Legacy,
    /// `iptables` is `iptables-nft`.
    Nft,
    /// `EnableNFTables`.
    Nftables,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Legacy, Self::Nft, Self::Nftables];

    /// The network config that asks for it.
    pub fn config(self) -> &'static str {
        if self == Self::Nftables { CONFIG_NFTABLES } else { CONFIG }
    }

    /// `legacy` or `nft`, as the tools of iptables are called.
    pub fn suffix(self) -> &'static str {
        if self == Self::Legacy { "legacy" } else { "nft" }
    }
}

/// The tools that the tests of rules use.
const TOOLS: [&str; 5] =
    ["iptables-legacy", "iptables-nft", "ip6tables-legacy", "ip6tables-nft", "nft"];

/// Whether all tools are there. Says so loudly if not.
pub fn tools_or_skip(test: &str) -> bool {
    let missing: Vec<&str> = TOOLS.into_iter().filter(|tool| find(tool).is_none()).collect();
    if !missing.is_empty() {
        skip(test, &missing.join(", "));
    }
    missing.is_empty()
}

fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(tool)).find(|file| file.is_file())
}

/// A directory that is the daemon's whole PATH.
#[derive(Debug)]
pub struct Toolbox(TempDir);

impl Toolbox {
    /// Nothing but `ip`, by which namespaces are entered.
    pub fn empty() -> Self {
        let toolbox = Self(tempfile::tempdir().expect("/tmp works"));
        toolbox.add("ip", "ip");
        toolbox
    }

    /// All tools, and `iptables` is what the kind says.
    pub fn new(kind: Kind) -> Self {
        let toolbox = Self::empty();
        toolbox.add("nft", "nft");
        for family in ["iptables", "ip6tables"] {
            for end in ["", "-save", "-restore"] {
                for suffix in ["legacy", "nft"] {
                    let name = format!("{family}-{suffix}{end}");
                    toolbox.add(&name, &name);
                }
                toolbox.add(&format!("{family}{end}"), &format!("{family}-{}{end}", kind.suffix()));
            }
        }
        toolbox
    }

    /// `name` runs the tool `real`.
    fn add(&self, name: &str, real: &str) {
        // All the way: the tools are links to one program that looks at the name it is called by.
        let real = find(real).and_then(|tool| tool.canonicalize().ok());
        symlink(real.expect("it is installed"), self.0.path().join(name)).expect("/tmp works");
    }

    /// The variable for the daemon.
    pub fn path(&self) -> (&str, &str) {
        ("PATH", self.0.path().to_str().expect("made of ASCII"))
    }

    /// Where the tools are.
    pub fn dir(&self) -> &Path {
        self.0.path()
    }
}

/// All rules and chains of a table, as `iptables-save` shows them, without counters and the
/// built-in chains.
pub fn saved(netns: &Netns, tool: &str, table: &str) -> Vec<String> {
    let text = netns.exec(&format!("{tool}-save -t {table}"));
    let lines = text.lines().filter(|line| line.starts_with("-A ") || line.starts_with(":FLANNEL"));
    lines.map(str::to_owned).collect()
}

/// A table of nftables without its indentation; empty if there is none.
pub fn listed(netns: &Netns, table: &str) -> Vec<String> {
    let output = netns.try_exec(&format!("nft list table {table}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

/// Waits until `read` gives what is wanted, whoever brings it about.
pub fn wait_for(what: &str, wanted: &[String], read: impl Fn() -> Vec<String>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = read();
        if now == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {now:#?} is not {wanted:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

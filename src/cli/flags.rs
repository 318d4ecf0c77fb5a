//! The table of flags: one row each, and clap's command made of it.
//!
//! Names and defaults of the first group are upstream's (flannel `main.go`, facts 1.1).
#![forbid(unsafe_code)]

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, Command, value_parser};

/// How a flag's value is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Go's words for true and false; alone it means true.
    Bool,
    /// A number in Go's syntax of literals.
    Int,
    /// A decimal number of 32 bits.
    Level,
    /// Any text; empty is as good as absent unless there is a default.
    Text,
    /// Any text, each one more item.
    List,
}

/// One flag.
#[derive(Debug)]
pub(super) struct Flag {
    /// The name without dashes.
    pub(super) name: &'static str,
    /// How its value is read.
    pub(super) kind: Kind,
    /// The value without the flag, in plain form; empty if there is none.
    default: &'static str,
    help: &'static str,
}

impl Flag {
    /// The environment variable that stands in for the flag (facts 1.3).
    pub(super) fn variable(&self) -> String {
        format!("FLANNELD_{}", self.name.to_ascii_uppercase().replace('-', "_"))
    }
}

pub(super) const fn flag(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    help: &'static str,
) -> Flag {
    Flag { name, kind, default, help }
}

use Kind::{Bool, Int, Level, List, Text};

const UPSTREAM: &[Flag] = &[
    flag(
        "etcd-endpoints",
        Text,
        "http://127.0.0.1:4001,http://127.0.0.1:2379",
        "etcd servers, a list divided by commas",
    ),
    flag("etcd-prefix", Text, "/coreos.com/network", "what all keys in etcd start with"),
    flag("etcd-keyfile", Text, "", "file with the private key for etcd (PEM)"),
    flag("etcd-certfile", Text, "", "file with the client's certificate for etcd (PEM)"),
    flag("etcd-cafile", Text, "", "file with the authorities that vouch for etcd (PEM)"),
    flag("etcd-username", Text, "", "user name for etcd"),
    flag("etcd-password", Text, "", "password for etcd"),
    flag("subnet-lease-renew-margin", Int, "60", "minutes before its end to renew the lease"),
    flag("kube-subnet-mgr", Bool, "false", "lease from Kubernetes instead of etcd"),
    flag("kube-api-url", Text, "", "Kubernetes API server"),
    flag("kube-annotation-prefix", Text, "flannel.alpha.coreos.com", "prefix of node annotations"),
    flag("kubeconfig-file", Text, "", "file with the access to Kubernetes"),
    flag(
        "net-config-path",
        Text,
        "/etc/kube-flannel/net-conf.json",
        "file with the network config, for Kubernetes",
    ),
    flag(
        "set-node-network-unavailable",
        Bool,
        "true",
        "clear the node's condition NetworkUnavailable at start",
    ),
    flag("iface", List, "", "interface, by name or address, that faces the peers; may be repeated"),
    flag("iface-regex", List, "", "the same as a regular expression; may be repeated"),
    flag("iface-can-reach", Text, "", "take the interface that leads to this address"),
    flag("public-ip", Text, "", "IPv4 address under which the peers reach this host"),
    flag("public-ipv6", Text, "", "IPv6 address under which the peers reach this host"),
    flag("subnet-file", Text, "/run/flannel/subnet.env", "file to write the subnet to"),
    flag("ip-masq", Bool, "false", "masquerade what leaves the overlay"),
    flag("ip-masq-fully-random-disable", Bool, "false", "masquerade without random ports"),
    flag("iptables-resync", Int, "5", "seconds between checks of the traffic rules"),
    flag("iptables-forward-rules", Bool, "true", "accept forwarded packets of the overlay"),
    flag("ip-blackhole-route", Bool, "false", "keep a blackhole route for the host's own subnet"),
    flag("healthz-ip", Text, "0.0.0.0", "address of the endpoints for health and metrics"),
    flag("healthz-port", Int, "0", "port of the endpoints for health and metrics, 0 for none"),
    flag("version", Bool, "false", "print the version and exit"),
    flag("v", Level, "0", "verbosity of the log"),
    flag(
        "vmodule",
        Text,
        "",
        "verbosity by source file, a list of PATTERN=LEVEL divided by commas",
    ),
    flag("log_backtrace_at", Text, "", "FILE:LINE of the source whose messages get a stack trace"),
];

const OURS: &[Flag] = &[
    flag("store-dir", Text, "", "directory that holds the leases, instead of etcd"),
    flag("offload", Text, "auto", "offloads of the TUN device: auto, tso (TCP only) or off"),
    flag(
        "udp-gso",
        Bool,
        "",
        "send many datagrams as one [default: true unless --offload=off or on Linux 7.0.0 to \
         7.1.4, which break them]",
    ),
    flag("udp-gro", Bool, "", "receive many datagrams as one [default: true unless --offload=off]"),
    flag(
        "source-check",
        Text,
        "peer",
        "off: accept datagrams from everywhere; peer: only from peers, with addresses of their \
         own subnets; strict: and with none from outside the overlay",
    ),
    flag("queues", Text, "auto", "device queues and UDP source ports: auto (16) or 1 to 63"),
    flag("threads", Text, "auto", "pairs of threads, one for each direction: auto or 1 to 16"),
    flag("busy-poll-us", Int, "50", "microseconds to look for packets before sleeping, 0 to 1000"),
    flag("tun-name", Text, "flannel%d", "name of the TUN device, %d for the first free number"),
    flag(
        "admin-socket",
        Text,
        "",
        "socket for flanneld status, empty for none [default: flanneld.sock beside --subnet-file]",
    ),
    flag("log-format", Text, "klog", "shape of the log's lines: klog, json or text"),
];

/// A flag of upstream that parses but has nothing behind it yet.
pub(super) struct NotYet {
    pub(super) name: &'static str,
    /// The only value, in plain form, that may be given.
    pub(super) accepts: &'static str,
    /// What is not there.
    pub(super) part: &'static str,
}

const fn not_yet(name: &'static str, accepts: &'static str, part: &'static str) -> NotYet {
    NotYet { name, accepts, part }
}

/// Delete a row when its part exists.
pub(super) const NOT_YET: &[NotYet] = &[
    not_yet("kube-subnet-mgr", "false", "Kubernetes"),
    not_yet("kube-api-url", "", "Kubernetes"),
    not_yet("kube-annotation-prefix", "flannel.alpha.coreos.com", "Kubernetes"),
    not_yet("kubeconfig-file", "", "Kubernetes"),
    not_yet("net-config-path", "/etc/kube-flannel/net-conf.json", "Kubernetes"),
    not_yet("set-node-network-unavailable", "true", "Kubernetes"),
    not_yet("public-ipv6", "", "IPv6"),
];

/// All flags.
pub(super) fn all() -> impl Iterator<Item = &'static Flag> {
    UPSTREAM.iter().chain(OURS)
}

/// The flag of this name.
pub(super) fn find(name: &str) -> Option<&'static Flag> {
    all().find(|flag| flag.name == name)
}

/// Clap's view of the table.
pub(super) fn command() -> Command {
    with_flags(Command::new("flanneld"))
        .about("Leases a subnet for this host and carries its packets to the other hosts.")
        .override_usage("flanneld [FLAGS]\n       flanneld COMMAND [FLAGS]")
        .after_help(
            "One dash or two make no difference. Every flag may also be given as a variable: \
             --etcd-prefix as FLANNELD_ETCD_PREFIX.",
        )
}

/// Adds the table to a command.
pub(super) fn with_flags(command: Command) -> Command {
    let group = |flags: &'static [Flag], heading: &'static str| {
        flags.iter().map(move |flag| argument(flag).help_heading(heading))
    };
    command
        .disable_help_flag(true)
        .disable_version_flag(true)
        .args_override_self(true)
        .args(group(UPSTREAM, "Flags of flannel"))
        .args(group(OURS, "Flags of this implementation"))
}

/// Clap's view of one flag.
pub(super) fn argument(flag: &Flag) -> Arg {
    let help = match NOT_YET.iter().any(|row| row.name == flag.name) {
        true => format!("{} (not supported yet)", flag.help),
        false => flag.help.to_owned(),
    };
    let (value_name, parser): (_, ValueParser) = match flag.kind {
        Bool => ("BOOL", value_parser!(bool)),
        Int => ("NUMBER", value_parser!(i64).into()),
        Level => ("LEVEL", value_parser!(i32).into()),
        Text | List => ("TEXT", value_parser!(String)),
    };
    let arg = Arg::new(flag.name).long(flag.name).help(help).value_name(value_name);
    let arg = arg.value_parser(parser).hide_possible_values(true);
    let arg = match flag.kind {
        Bool => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        List => arg.action(ArgAction::Append),
        _ => arg,
    };
    if flag.default.is_empty() { arg } else { arg.default_value(flag.default) }
}

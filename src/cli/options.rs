//! What the flags mean: the typed options of the daemon.
#![forbid(unsafe_code)]

use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

use super::{UsageError, Values};
use crate::admin;
use crate::dataplane::sys::poll::POLL_MAX;
use crate::dataplane::sys::socket::UdpWish;
use crate::dataplane::worker::SourceCheck;
use crate::host::capabilities::Need;
use crate::host::kernel;
use crate::host::rules::{ForwardRules, RulesOptions};
use crate::logging::{Format, LogOptions, Verbosity};

/// A device's name has at most 15 bytes (Linux `IFNAMSIZ`, with the final zero).
const MAX_DEVICE_NAME_BYTES: usize = 15;

/// What `--queues=auto` stands for: two flows rarely share one of so many, and each costs 350 KiB
/// of memory while it is used.
const DEFAULT_QUEUES: usize = 16;

/// Most queues: what one thread can watch.
const MAX_QUEUES: usize = POLL_MAX;

/// Most pairs of threads: more than any network card that CPUs can feed through copies needs.
const MAX_THREADS: usize = 16;

/// A longer look costs CPU time on a quiet network and gains nothing: no wake-up takes as long.
const MAX_BUSY_POLL_US: u64 = 1000;

/// A day between two checks of the rules is as good as none.
const MAX_RESYNC_SECONDS: u64 = 86_400;

/// All that the operator decides, checked.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the leases are.
    pub store: StoreOptions,
    /// How long before its end the own lease is renewed: 1 to 1439 minutes.
    pub renew_margin: Duration,
    /// Interfaces to try, by name or address, in this order.
    pub iface: Vec<String>,
    /// Regular expressions for interfaces to try after those, in this order.
    pub iface_regex: Vec<String>,
    /// Else the interface that leads to this address.
    pub iface_can_reach: Option<Ipv4Addr>,
    /// What the peers are told to send to, instead of the interface's address.
    pub public_ip: Option<Ipv4Addr>,
    /// Where `subnet.env` is written.
    pub subnet_file: PathBuf,
    /// Which traffic rules are set.
    pub rules: RulesOptions,
    /// The most that is tried of the TUN device's offloads.
    pub offload: OffloadMode,
    /// Whether to try sending many datagrams as one; `None`: unless the kernel breaks them.
    pub udp_gso: Option<bool>,
    /// Whether to try receiving many datagrams as one.
    pub udp_gro: bool,
    /// Which datagrams are accepted.
    pub source_check: SourceCheck,
    /// The TUN device's name; `%d` stands for the first free number.
    pub tun_name: String,
    /// Queues of the TUN device, and UDP source ports.
    pub queues: usize,
    /// Pairs of data-path threads, one for each direction; `None`: as many as suit the machine.
    pub threads: Option<usize>,
    /// How long a data-path thread looks for more packets before it sleeps.
    pub busy_poll: Duration,
    /// Where health and metrics are served, if they are.
    pub healthz: Option<SocketAddr>,
    /// The socket that `flanneld status` asks, if there shall be one.
    pub admin_socket: Option<PathBuf>,
    /// What is logged, and how.
    pub log: LogOptions,
}

/// Where the leases are.
#[derive(Clone, Debug)]
pub enum StoreOptions {
    /// In etcd.
    Etcd(EtcdOptions),
    /// In the files of this directory.
    Directory(PathBuf),
}

/// How etcd is reached.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// The servers' URLs; at least one.
    pub endpoints: Vec<String>,
    /// What all keys start with, without a slash at its end: append `/config`, `/subnets/…`.
    pub prefix: String,
    /// The authorities that vouch for the servers; else the system's.
    pub cafile: Option<PathBuf>,
    /// What the client shows of itself.
    pub client_cert: Option<ClientCert>,
    /// Who the client says it is.
    pub credentials: Option<Credentials>,
}

/// A client's certificate and its private key: PEM files.
#[derive(Clone, Debug)]
pub struct ClientCert {
    /// `--etcd-certfile`.
    pub certfile: PathBuf,
    /// `--etcd-keyfile`.
    pub keyfile: PathBuf,
}

/// A user of etcd.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The user's name.
    pub username: String,
    /// The user's password.
    pub password: Secret,
}

/// A text that never shows up in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself: only for whom it is meant for.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// `--offload`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffloadMode {
    /// All that the kernel has.
    Auto,
    /// TCP segmentation, no UDP segmentation.
    Tso,
    /// None: one packet per read and write.
    Off,
}

/// A word that is none of those to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("expected {0}")]
pub struct InvalidChoice(&'static str);

impl FromStr for OffloadMode {
    type Err = InvalidChoice;

    fn from_str(text: &str) -> Result<Self, InvalidChoice> {
        match text {
            "auto" => Ok(Self::Auto),
            "tso" => Ok(Self::Tso),
            "off" => Ok(Self::Off),
            _ => Err(InvalidChoice("auto, tso or off")),
        }
    }
}

impl FromStr for SourceCheck {
    type Err = InvalidChoice;

    fn from_str(text: &str) -> Result<Self, InvalidChoice> {
        match text {
            "off" => Ok(Self::Off),
            "peer" => Ok(Self::Peer),
            "strict" => Ok(Self::Strict),
            _ => Err(InvalidChoice("off, peer or strict")),
        }
    }
}

impl FromStr for Format {
    type Err = InvalidChoice;

    fn from_str(text: &str) -> Result<Self, InvalidChoice> {
        match text {
            "klog" => Ok(Self::Klog),
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err(InvalidChoice("klog, json or text")),
        }
    }
}

impl Options {
    pub(super) fn from_values(values: &Values) -> Result<Self, UsageError> {
        let margin = count(values, "subnet-lease-renew-margin", "minutes", 1..=1439)?;
        let offload = choice(values, "offload")?;
        let path = |name| match values.text(name) {
            "" => Err(values.error(name, "a file name")),
            path => Ok(PathBuf::from(path)),
        };
        let busy_poll_us = count(values, "busy-poll-us", "microseconds", 0..=MAX_BUSY_POLL_US)?;
        let subnet_file = path("subnet-file")?;
        Ok(Self {
            store: store(values)?,
            renew_margin: Duration::from_secs(margin * 60),
            iface: values.list("iface"),
            iface_regex: values.list("iface-regex"),
            iface_can_reach: ipv4(values, "iface-can-reach")?,
            public_ip: ipv4(values, "public-ip")?,
            admin_socket: admin_socket(values, &subnet_file),
            subnet_file,
            rules: rules(values)?,
            offload,
            udp_gso: values.flag("udp-gso").or((offload == OffloadMode::Off).then_some(false)),
            udp_gro: values.flag("udp-gro").unwrap_or(offload != OffloadMode::Off),
            source_check: choice(values, "source-check")?,
            queues: number(values, "queues", MAX_QUEUES)?.unwrap_or(DEFAULT_QUEUES),
            threads: number(values, "threads", MAX_THREADS)?,
            busy_poll: Duration::from_micros(busy_poll_us),
            tun_name: tun_name(values)?,
            healthz: healthz(values)?,
            log: log(values)?,
        })
    }
}

impl Options {
    /// What is asked of the UDP sockets on a kernel of this release.
    pub fn udp_wish(&self, release: &str) -> UdpWish {
        let gso = self.udp_gso.unwrap_or(!kernel::breaks_udp_segmentation(release));
        UdpWish { gso, gro: self.udp_gro }
    }

    /// The files and directories that the daemon works with.
    pub fn files(&self) -> Vec<Need> {
        // A name alone has an empty path above it: the working directory.
        let above = self.subnet_file.parent().unwrap_or(&self.subnet_file).to_owned();
        let mut files = vec![Need::Fill(above), Need::Read(self.subnet_file.clone())];
        let socket = self.admin_socket.as_deref().and_then(Path::parent);
        files.extend(socket.map(|above| Need::Fill(above.to_owned())));
        match &self.store {
            StoreOptions::Etcd(etcd) => {
                let cert = etcd.client_cert.iter().flat_map(|cert| [&cert.certfile, &cert.keyfile]);
                files.extend(etcd.cafile.iter().chain(cert).cloned().map(Need::Read));
            }
            StoreOptions::Directory(dir) => {
                files.extend([Need::Read(dir.join("config")), Need::Fill(dir.clone())]);
                files.push(Need::Fill(dir.join("subnets")));
            }
        }
        files
    }
}

/// So many of `unit`.
fn count(
    values: &Values,
    name: &str,
    unit: &str,
    allowed: RangeInclusive<u64>,
) -> Result<u64, UsageError> {
    let count = u64::try_from(values.int(name)).ok().filter(|count| allowed.contains(count));
    let (least, most) = allowed.into_inner();
    count.ok_or_else(|| values.error(name, format!("{unit} from {least} to {most}")))
}

/// A number from 1 to `most`; `None` for `auto`.
fn number(values: &Values, name: &str, most: usize) -> Result<Option<usize>, UsageError> {
    match values.text(name) {
        "auto" => Ok(None),
        text => match text.parse() {
            Ok(number) if (1..=most).contains(&number) => Ok(Some(number)),
            _ => Err(values.error(name, format!("auto, or a number from 1 to {most}"))),
        },
    }
}

fn rules(values: &Values) -> Result<RulesOptions, UsageError> {
    let on = |name| values.flag(name).unwrap_or_default();
    let resync = count(values, "iptables-resync", "seconds", 1..=MAX_RESYNC_SECONDS)?;
    Ok(RulesOptions {
        masquerade: on("ip-masq"),
        random_fully: !on("ip-masq-fully-random-disable"),
        forward: match on("iptables-forward-rules") {
            false => ForwardRules::Off,
            true if values.is_given("iptables-forward-rules") => ForwardRules::AskedFor,
            true => ForwardRules::ByDefault,
        },
        resync: Duration::from_secs(resync),
        blackhole: on("ip-blackhole-route"),
    })
}

fn log(values: &Values) -> Result<LogOptions, UsageError> {
    let backtrace_at = match values.text("log_backtrace_at") {
        "" => None,
        _ => Some(parsed(values, "log_backtrace_at")?),
    };
    Ok(LogOptions {
        format: choice(values, "log-format")?,
        verbosity: Verbosity { everywhere: values.level("v"), modules: parsed(values, "vmodule")? },
        backtrace_at,
    })
}

fn parsed<T: FromStr<Err: Display>>(values: &Values, name: &str) -> Result<T, UsageError> {
    values.text(name).parse().map_err(|expected: T::Err| values.error(name, expected.to_string()))
}

fn choice<T: FromStr<Err = InvalidChoice>>(
    values: &Values,
    name: &'static str,
) -> Result<T, UsageError> {
    values.text(name).parse().map_err(|InvalidChoice(choices)| values.error(name, choices))
}

/// An address that may be absent.
fn ipv4(values: &Values, name: &'static str) -> Result<Option<Ipv4Addr>, UsageError> {
    match values.text(name) {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| values.error(name, "an IPv4 address")),
    }
}

/// Where to listen; upstream takes every port up to 0 for none.
fn healthz(values: &Values) -> Result<Option<SocketAddr>, UsageError> {
    let ip: IpAddr = match values.text("healthz-ip").parse() {
        Ok(ip) => ip,
        Err(_) => return Err(values.error("healthz-ip", "an IP address")),
    };
    match u16::try_from(values.int("healthz-port").max(0)) {
        Ok(0) => Ok(None),
        Ok(port) => Ok(Some(SocketAddr::new(ip, port))),
        Err(_) => Err(values.error("healthz-port", "a port up to 65535, or 0 for none")),
    }
}

/// Beside `subnet.env` unless told otherwise, so that several daemons of one host do not meet.
fn admin_socket(values: &Values, subnet_file: &Path) -> Option<PathBuf> {
    match values.text("admin-socket") {
        "" if values.is_given("admin-socket") => None,
        "" => Some(admin::socket::beside(subnet_file)),
        path => Some(PathBuf::from(path)),
    }
}

fn tun_name(values: &Values) -> Result<String, UsageError> {
    let name = values.text("tun-name");
    // As the kernel's `dev_valid_name` and `__dev_alloc_name` have it.
    let valid = !matches!(name, "" | "." | "..")
        && name.len() <= MAX_DEVICE_NAME_BYTES
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control())
        && !name.replacen("%d", "", 1).contains('%');
    let expected = "a device name of at most 15 bytes, with at most one %d";
    if valid { Ok(name.to_owned()) } else { Err(values.error("tun-name", expected)) }
}

fn store(values: &Values) -> Result<StoreOptions, UsageError> {
    const ETCD_FLAGS: [&str; 7] = [
        "etcd-endpoints",
        "etcd-prefix",
        "etcd-keyfile",
        "etcd-certfile",
        "etcd-cafile",
        "etcd-username",
        "etcd-password",
    ];
    let directory = values.text("store-dir");
    if directory.is_empty() {
        return etcd(values).map(StoreOptions::Etcd);
    }
    match ETCD_FLAGS.into_iter().find(|name| values.is_given(name)) {
        None => Ok(StoreOptions::Directory(PathBuf::from(directory))),
        Some(name) => {
            Err(UsageError::Conflict { flag: values.label("store-dir"), other: values.label(name) })
        }
    }
}

fn etcd(values: &Values) -> Result<EtcdOptions, UsageError> {
    let endpoints = values.text("etcd-endpoints").split(',').map(str::trim);
    let endpoints: Vec<_> = endpoints.filter(|url| !url.is_empty()).map(str::to_owned).collect();
    if endpoints.is_empty() {
        return Err(values.error("etcd-endpoints", "at least one URL"));
    }
    let prefix = values.text("etcd-prefix");
    // The store cleans it as upstream does; here it only has to name something.
    if prefix.split('/').all(|part| matches!(part, "" | ".")) && !prefix.starts_with('/') {
        return Err(values.error("etcd-prefix", "a path such as /coreos.com/network"));
    }
    let cafile = Some(values.text("etcd-cafile")).filter(|path| !path.is_empty());
    Ok(EtcdOptions {
        endpoints,
        prefix: prefix.to_owned(),
        cafile: cafile.map(PathBuf::from),
        client_cert: both(values, "etcd-certfile", "etcd-keyfile")?
            .map(|(cert, key)| ClientCert { certfile: cert.into(), keyfile: key.into() }),
        credentials: both(values, "etcd-username", "etcd-password")?.map(|(username, password)| {
            Credentials { username: username.to_owned(), password: Secret::new(password) }
        }),
    })
}

/// Two texts of which neither makes sense alone. Upstream ignores a lonely one.
fn both<'a>(
    values: &'a Values,
    first: &'static str,
    second: &'static str,
) -> Result<Option<(&'a str, &'a str)>, UsageError> {
    let alone = |flag, other| {
        Err(UsageError::Alone { flag: values.label(flag), other: format!("--{other}") })
    };
    match (values.text(first), values.text(second)) {
        ("", "") => Ok(None),
        (_, "") => alone(first, second),
        ("", _) => alone(second, first),
        (a, b) => Ok(Some((a, b))),
    }
}

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::dataplane::worker::SourceCheck;
use crate::host::rules::{ForwardRules, RulesOptions};
use crate::logging::Format;

fn parse_with(words: &[&str], env: &[(&str, &str)]) -> Result<Command, UsageError> {
    let env: HashMap<_, _> = env.iter().copied().collect();
    parse(words.iter().map(OsString::from), |name| env.get(name).map(OsString::from))
}

fn options_with(words: &[&str], env: &[(&str, &str)]) -> Options {
    match parse_with(words, env) {
        Ok(Command::Run(options)) => *options,
        other => panic!("{words:?} {env:?} gave {other:?}"),
    }
}

fn options(words: &[&str]) -> Options {
    options_with(words, &[])
}

fn error(words: &[&str]) -> String {
    parse_with(words, &[]).unwrap_err().to_string()
}

fn etcd(options: Options) -> EtcdOptions {
    match options.store {
        StoreOptions::Etcd(etcd) => etcd,
        StoreOptions::Directory(path) => panic!("directory {path:?}"),
    }
}

#[test]
fn defaults_are_upstreams() {
    let options = options(&[]);
    assert_eq!(options.renew_margin, Duration::from_secs(3600));
    assert_eq!(options.subnet_file, Path::new("/run/flannel/subnet.env"));
    assert!(options.iface.is_empty() && options.iface_regex.is_empty());
    assert_eq!((options.iface_can_reach, options.public_ip), (None, None));
    assert_eq!(options.log.verbosity.everywhere, 0);
    let rules = RulesOptions {
        masquerade: false,
        random_fully: true,
        forward: ForwardRules::ByDefault,
        resync: Duration::from_secs(5),
        blackhole: false,
    };
    assert_eq!(options.rules, rules);
    assert_eq!(options.offload, OffloadMode::Auto);
    assert_eq!((options.udp_gso, options.udp_gro), (None, true));
    assert_eq!(options.source_check, SourceCheck::Peer);
    assert_eq!(options.tun_name, "flannel%d");
    assert_eq!((options.queues, options.threads), (16, None));
    assert_eq!(options.busy_poll, Duration::from_micros(50));
    let etcd = etcd(options);
    assert_eq!(etcd.endpoints, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
    assert_eq!(etcd.prefix, "/coreos.com/network");
    assert!(etcd.cafile.is_none() && etcd.client_cert.is_none() && etcd.credentials.is_none());
}

#[test]
fn a_usual_start_script_is_understood() {
    let options = options(&[
        "--public-ip=10.4.7.21",
        "--etcd-endpoints=https://10.4.7.12:2379,https://10.4.7.21:2379",
        "--etcd-keyfile=./cert/client-key.pem",
        "--etcd-certfile=./cert/client.pem",
        "--etcd-cafile=./cert/ca.pem",
        "--iface=eth0",
        "-iface",
        "eth1",
        "-iface-regex=^10\\.4,x",
        "-iface-can-reach=10.4.7.254",
        "--subnet-file=./subnet.env",
        "-subnet-lease-renew-margin=0x10",
        "-v=2",
    ]);
    assert_eq!(options.public_ip, Some(Ipv4Addr::new(10, 4, 7, 21)));
    assert_eq!(options.iface, ["eth0", "eth1"]);
    assert_eq!(options.iface_regex, ["^10\\.4,x"]);
    assert_eq!(options.iface_can_reach, Some(Ipv4Addr::new(10, 4, 7, 254)));
    assert_eq!(options.subnet_file, Path::new("./subnet.env"));
    assert_eq!(options.renew_margin, Duration::from_secs(16 * 60));
    assert_eq!(options.log.verbosity.everywhere, 2);
    let etcd = etcd(options);
    assert_eq!(etcd.endpoints.len(), 2);
    assert_eq!(etcd.cafile.as_deref(), Some(Path::new("./cert/ca.pem")));
    let cert = etcd.client_cert.unwrap();
    assert_eq!(cert.certfile, Path::new("./cert/client.pem"));
    assert_eq!(cert.keyfile, Path::new("./cert/client-key.pem"));
}

#[test]
fn the_last_of_repeated_flags_wins() {
    let options =
        options(&["-v=1", "-tun-name=a", "-v", "3", "--tun-name=b", "-udp-gso", "-udp-gso=0"]);
    assert_eq!((options.log.verbosity.everywhere, options.tun_name.as_str()), (3, "b"));
    assert_eq!(options.udp_gso, Some(false));
}

#[test]
fn variables_stand_in_for_flags_that_are_not_given() {
    let env = [
        ("FLANNELD_PUBLIC_IP", "10.0.0.1"),
        ("FLANNELD_IFACE", "eth0,eth1"),
        ("FLANNELD_V", "4"),
        ("FLANNELD_SUBNET_FILE", ""),
        ("FLANNELD_VERSION", "nonsense"),
        ("FLANNELD_UDP_GRO", "F"),
    ];
    let options = options_with(&["-v=1"], &env);
    assert_eq!(options.public_ip, Some(Ipv4Addr::new(10, 0, 0, 1)));
    assert_eq!(options.iface, ["eth0,eth1"], "one entry");
    assert_eq!(options.log.verbosity.everywhere, 1, "the command line wins");
    assert_eq!(options.subnet_file, Path::new("/run/flannel/subnet.env"), "empty is unset");
    assert_eq!((options.udp_gso, options.udp_gro), (None, false));

    // A flag with its default value is given all the same.
    assert_eq!(options_with(&["-v=0"], &env).log.verbosity.everywhere, 0);
}

#[test]
fn bad_variables_are_named() {
    for (variable, value, expected) in [
        ("FLANNELD_V", "x", r#"FLANNELD_V="x": expected a whole number"#),
        ("FLANNELD_UDP_GSO", "yes", r#"FLANNELD_UDP_GSO="yes": expected true or false"#),
        ("FLANNELD_OFFLOAD", "max", r#"FLANNELD_OFFLOAD="max": expected auto, tso or off"#),
        (
            "FLANNELD_KUBE_SUBNET_MGR",
            "1",
            r#"FLANNELD_KUBE_SUBNET_MGR="true": Kubernetes is not supported yet; remove it or set it to false"#,
        ),
        (
            "FLANNELD_IPTABLES_RESYNC",
            "0",
            r#"FLANNELD_IPTABLES_RESYNC="0": expected seconds from 1 to 86400"#,
        ),
    ] {
        let error = parse_with(&[], &[(variable, value)]).unwrap_err().to_string();
        assert_eq!(error, expected);
    }
}

#[test]
fn unknown_flags_suggest_a_known_one() {
    assert_eq!(
        error(&["-etcd-endpoint=http://x"]),
        r#"unknown flag "--etcd-endpoint", did you mean --etcd-endpoints?; see --help"#
    );
    assert_eq!(error(&["--qqq"]), r#"unknown flag "--qqq"; see --help"#);
    assert_eq!(error(&["-x"]), r#"unknown flag "--x"; see --help"#);
}

#[test]
fn values_are_checked() {
    for (word, expected) in [
        ("-subnet-lease-renew-margin=0", r#""0": expected minutes from 1 to 1439"#),
        ("-subnet-lease-renew-margin=1440", r#""1440": expected minutes from 1 to 1439"#),
        ("-subnet-lease-renew-margin=-5", r#""-5": expected minutes from 1 to 1439"#),
        ("-public-ip=10.0.0", r#""10.0.0": expected an IPv4 address"#),
        ("-public-ip=fd00::1", r#""fd00::1": expected an IPv4 address"#),
        ("-iface-can-reach=gw", r#""gw": expected an IPv4 address"#),
        ("-subnet-file=", r#""": expected a file name"#),
        ("-offload=", r#""": expected auto, tso or off"#),
        ("-source-check=loose", r#""loose": expected off, peer or strict"#),
        ("-etcd-endpoints=,", r#"",": expected at least one URL"#),
        ("-queues=0", r#""0": expected auto, or a number from 1 to 63"#),
        ("-queues=64", r#""64": expected auto, or a number from 1 to 63"#),
        ("-threads=17", r#""17": expected auto, or a number from 1 to 16"#),
        ("-iptables-resync=-1", r#""-1": expected seconds from 1 to 86400"#),
        ("-iptables-resync=86401", r#""86401": expected seconds from 1 to 86400"#),
        ("-busy-poll-us=1001", r#""1001": expected microseconds from 0 to 1000"#),
        ("-busy-poll-us=-1", r#""-1": expected microseconds from 0 to 1000"#),
        ("-healthz-ip=localhost", r#""localhost": expected an IP address"#),
        ("-healthz-port=65536", r#""65536": expected a port up to 65535, or 0 for none"#),
        ("-log-format=xml", r#""xml": expected klog, json or text"#),
        ("-vmodule=a=-1", r#""a=-1": expected levels from 0"#),
        (
            "-vmodule=daemon",
            r#""daemon": expected PATTERN=LEVEL, with commas between several, such as daemon=2,keep*=5"#,
        ),
        (
            "-log_backtrace_at=daemon:1",
            r#""daemon:1": expected FILE:LINE as the log shows it, such as daemon.rs:124"#,
        ),
        ("-etcd-prefix=./", r#""./": expected a path such as /coreos.com/network"#),
    ] {
        let flag = word[1..].split('=').next().unwrap();
        assert_eq!(error(&[word]), format!("--{flag}={expected}"));
    }
    for name in ["", ".", "a/b", "a b", "a:b", "%s", "%d%d", "1234567890123456"] {
        assert!(error(&["-tun-name", name]).contains("expected a device name"), "{name}");
    }
    assert_eq!(options(&["-queues=63"]).queues, 63);
    assert_eq!(options(&["-log-format=json"]).log.format, Format::Json);
    let place = "daemon.rs:7".parse().ok();
    assert_eq!(options(&["-log_backtrace_at", "daemon.rs:7"]).log.backtrace_at, place);
    assert_eq!(options(&["-threads=16"]).threads, Some(16));
    assert_eq!(options(&["-tun-name=f%d0"]).tun_name, "f%d0");
    assert_eq!(options(&["-subnet-lease-renew-margin=1439"]).renew_margin.as_secs(), 1439 * 60);
}

#[test]
fn rules_that_are_asked_for_are_told_from_those_by_default() {
    let words = [
        "-ip-masq",
        "-ip-masq-fully-random-disable",
        "-iptables-resync=0x10",
        "-iptables-forward-rules=true",
        "-ip-blackhole-route=1",
    ];
    let rules = RulesOptions {
        masquerade: true,
        random_fully: false,
        forward: ForwardRules::AskedFor,
        resync: Duration::from_secs(16),
        blackhole: true,
    };
    assert_eq!(options(&words).rules, rules);
    assert_eq!(options(&["-iptables-forward-rules=0"]).rules.forward, ForwardRules::Off);
    let env = [("FLANNELD_IPTABLES_FORWARD_RULES", "true")];
    assert_eq!(options_with(&[], &env).rules.forward, ForwardRules::AskedFor);
}

#[test]
fn a_kernel_that_breaks_trains_gets_none_unless_they_are_asked_for() {
    let gso = |args: &[&str], release| options(args).udp_wish(release).gso;
    let (broken, sound) = ("7.0.2-6-pve", "7.1.5");
    assert!(!gso(&[], broken) && gso(&[], sound));
    assert!(gso(&["--udp-gso"], broken) && !gso(&["--udp-gso=false"], sound));
    assert!(!gso(&["--offload=off"], sound));
    assert!(options(&[]).udp_wish(broken).gro);
    let env = [("FLANNELD_UDP_GSO", "true")];
    assert!(options_with(&[], &env).udp_wish(broken).gso);
}

#[test]
fn offload_off_takes_gso_and_gro_along_unless_they_are_asked_for() {
    let off = options(&["--offload=off"]);
    assert_eq!((off.offload, off.udp_gso, off.udp_gro), (OffloadMode::Off, Some(false), false));
    let gso = options(&["--offload=off", "--udp-gso"]);
    assert_eq!((gso.udp_gso, gso.udp_gro), (Some(true), false));
    let tso = options(&["--offload=tso", "--udp-gro=false", "--source-check=strict"]);
    assert_eq!((tso.offload, tso.udp_gso, tso.udp_gro), (OffloadMode::Tso, None, false));
    assert_eq!(tso.source_check, SourceCheck::Strict);
    assert_eq!(options(&["-source-check=off"]).source_check, SourceCheck::Off);
}

#[test]
fn health_is_served_where_it_is_asked_for() {
    let listen = |text: &str| Some(text.parse::<SocketAddr>().unwrap());
    assert_eq!(options(&[]).healthz, None);
    assert_eq!(options(&["-healthz-port=2401"]).healthz, listen("0.0.0.0:2401"));
    let both = ["-healthz-ip=::1", "-healthz-port=65535"];
    assert_eq!(options(&both).healthz, listen("[::1]:65535"));
    assert_eq!(options(&["-healthz-port=-1"]).healthz, None, "as upstream");
}

#[test]
fn the_admin_socket_is_beside_subnet_env_unless_told_otherwise() {
    let socket = |words: &[&str]| options(words).admin_socket;
    assert_eq!(socket(&[]).as_deref(), Some(Path::new("/run/flannel/flanneld.sock")));
    let beside = socket(&["-subnet-file=/x/other.env"]);
    assert_eq!(beside.as_deref(), Some(Path::new("/x/flanneld.sock")));
    assert_eq!(socket(&["-admin-socket=a.sock"]).as_deref(), Some(Path::new("a.sock")));
    assert_eq!(socket(&["-admin-socket="]), None);
}

#[test]
fn the_directory_store_excludes_etcd() {
    let store = options(&["--store-dir=/srv/net"]).store;
    assert!(matches!(store, StoreOptions::Directory(path) if path == Path::new("/srv/net")));
    assert_eq!(
        error(&[
            "--store-dir=/srv/net",
            "--etcd-endpoints=http://127.0.0.1:4001,http://127.0.0.1:2379"
        ]),
        "--store-dir and --etcd-endpoints exclude each other"
    );
    let env = [("FLANNELD_ETCD_PREFIX", "/x")];
    assert_eq!(
        parse_with(&["--store-dir=/srv/net"], &env).unwrap_err().to_string(),
        "--store-dir and FLANNELD_ETCD_PREFIX exclude each other"
    );
}

#[test]
fn halves_of_pairs_are_refused() {
    for (word, expected) in [
        ("-etcd-keyfile=k", "--etcd-keyfile needs --etcd-certfile as well"),
        ("-etcd-certfile=c", "--etcd-certfile needs --etcd-keyfile as well"),
        ("-etcd-username=u", "--etcd-username needs --etcd-password as well"),
        ("-etcd-password=p", "--etcd-password needs --etcd-username as well"),
    ] {
        assert_eq!(error(&[word]), expected);
    }
}

#[test]
fn secrets_stay_secret() {
    let options = options(&["-etcd-username=root", "-etcd-password=hunter2"]);
    let debug = format!("{options:?}");
    assert!(debug.contains("password: ***") && !debug.contains("hunter2"), "{debug}");
    let credentials = etcd(options).credentials.unwrap();
    assert_eq!((credentials.username.as_str(), credentials.password.expose()), ("root", "hunter2"));
}

#[test]
fn prefixes_are_handed_on_as_given() {
    for given in ["/coreos.com//network/", "network", "/"] {
        assert_eq!(etcd(options(&["-etcd-prefix", given])).prefix, given);
    }
}

#[test]
fn files_to_work_with_are_known() {
    use crate::host::capabilities::Need::{Fill, Read};

    let files = options(&["-etcd-cafile=ca", "-etcd-certfile=c", "-etcd-keyfile=k"]).files();
    let run = || Fill("/run/flannel".into());
    assert_eq!(files[..3], [run(), Read("/run/flannel/subnet.env".into()), run()]);
    assert_eq!(files[3..], ["ca", "c", "k"].map(|name| Read(name.into())));

    let words = ["-store-dir=/srv/net", "-subnet-file=subnet.env", "-admin-socket="];
    let files = options(&words).files();
    assert_eq!(files[..2], [Fill("".into()), Read("subnet.env".into())]);
    let store =
        [Read("/srv/net/config".into()), Fill("/srv/net".into()), Fill("/srv/net/subnets".into())];
    assert_eq!(files[2..], store);
}

#[test]
fn what_is_not_there_yet_is_said() {
    assert_eq!(
        error(&["-kube-subnet-mgr"]),
        r#"--kube-subnet-mgr="true": Kubernetes is not supported yet; remove it or set it to false"#
    );
    assert_eq!(
        error(&["-public-ipv6=fd00::1"]),
        r#"--public-ipv6="fd00::1": IPv6 is not supported yet; remove it"#
    );
    for word in [
        "-kube-api-url=http://x",
        "-kube-annotation-prefix=x.y",
        "-kubeconfig-file=x",
        "-net-config-path=x",
        "-set-node-network-unavailable=false",
    ] {
        assert!(error(&[word]).contains("not supported yet"), "{word}");
    }
}

#[test]
fn values_that_ask_for_nothing_are_accepted() {
    options(&[
        "-kube-subnet-mgr=false",
        "-kube-api-url=",
        "-net-config-path=/etc/kube-flannel/net-conf.json",
        "-set-node-network-unavailable=T",
        "-vmodule=",
        "-log_backtrace_at=",
    ]);
}

#[test]
fn help_shows_every_flag_in_two_groups() {
    let Ok(Command::Help(help)) = parse_with(&["-v=1", "-h", "-nonsense"], &[]) else {
        panic!("no help");
    };
    let (upstream, ours) = help.split_once("Flags of this implementation:").unwrap();
    assert!(upstream.contains("Flags of flannel:"), "{help}");
    for name in flags::all().map(|flag| flag.name) {
        assert!(help.contains(&format!("  --{name}")), "{name}");
    }
    assert!(ours.contains("--store-dir") && !upstream.contains("--store-dir"));
    assert!(upstream.contains("--ip-masq[=<BOOL>]"), "{help}");
    assert!(upstream.contains("(not supported yet)") && !ours.contains("(not supported yet)"));
}

#[test]
fn the_version_is_asked_before_the_environment() {
    let broken = [("FLANNELD_V", "x")];
    assert!(matches!(parse_with(&["--version"], &broken), Ok(Command::Version)));
    assert!(matches!(parse_with(&["-version=false"], &[]), Ok(Command::Run(_))));
    assert!(parse_with(&["--version", "-nonsense"], &[]).is_err());
}

#[test]
fn commands_are_known_by_the_first_word() {
    let Ok(Command::Check { options, json: true }) = parse_with(&["check", "-json", "-v=2"], &[])
    else {
        panic!("no check");
    };
    assert_eq!(options.log.verbosity.everywhere, 2);
    let env = [("FLANNELD_SUBNET_FILE", "/x/subnet.env"), ("FLANNELD_DRY_RUN", "1")];
    let Ok(Command::Cleanup { options, dry_run: false }) = parse_with(&["cleanup"], &env) else {
        panic!("no cleanup");
    };
    assert_eq!(options.subnet_file, Path::new("/x/subnet.env"));
    // Elsewhere the words mean nothing, as upstream has it.
    assert!(matches!(parse_with(&["-v=1", "check"], &[]), Ok(Command::Run(_))));
    assert!(matches!(parse_with(&["checks"], &[]), Ok(Command::Run(_))));
    assert_eq!(
        parse_with(&["completions", "tcsh"], &[]).unwrap_err().to_string(),
        r#"completions="tcsh": expected bash, zsh or fish"#
    );
}

#[test]
fn the_tables_agree() {
    for row in flags::NOT_YET {
        assert!(flags::find(row.name).is_some(), "{}", row.name);
    }
    tools::documented().debug_assert();
}

//! `scripts/mk-docker-opts.sh`: flannel's flags and output, byte for byte.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use support::netns::Netns;
use support::root_or_skip;
use tempfile::TempDir;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/mk-docker-opts.sh");

const SUBNET_ENV: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\n\
                          FLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";

const BIP: &str = "DOCKER_OPT_BIP=\"--bip=10.1.74.1/24\"\n";
const IP_MASQ: &str = "DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n";
const MTU: &str = "DOCKER_OPT_MTU=\"--mtu=1472\"\n";
const ALL: &str = "=\" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472\"\n";

/// A directory with a `subnet.env` where the script writes `docker_opts.env`.
struct Place(TempDir);

impl Place {
    fn new(subnet_env: &str) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::write(place.path().join("subnet.env"), subnet_env).unwrap();
        place
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs the script there, with a `PATH` but no other variable than those of `env`.
    fn run(&self, flags: &[&str], env: &[(&str, &str)]) -> Output {
        self.run_by(Command::new(SCRIPT), flags, env)
    }

    /// The same by a command that takes the script's arguments.
    fn run_by(&self, mut command: Command, flags: &[&str], env: &[(&str, &str)]) -> Output {
        command
            .args(["-f", "subnet.env", "-d", "docker_opts.env"])
            .args(flags)
            .current_dir(self.path())
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(env.iter().copied())
            .output()
            .unwrap()
    }

    /// What the script writes.
    fn written(&self, flags: &[&str], env: &[(&str, &str)]) -> String {
        let output = self.run(flags, env);
        assert!(output.status.success(), "{flags:?}: {output:?}");
        assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{flags:?}: {output:?}");
        fs::read_to_string(self.path().join("docker_opts.env")).unwrap()
    }
}

#[test]
fn each_flag_writes_what_flannels_script_writes() {
    let place = Place::new(SUBNET_ENV);
    for (flags, wanted) in [
        (&[][..], format!("{BIP}{IP_MASQ}{MTU}DOCKER_OPTS{ALL}")),
        (&["-i", "-c"], format!("{BIP}{IP_MASQ}{MTU}DOCKER_OPTS{ALL}")),
        (&["-i"], format!("{BIP}{IP_MASQ}{MTU}")),
        (&["-c"], format!("DOCKER_OPTS{ALL}")),
        (&["-k", "CUSTOM_KEY"], format!("{BIP}{IP_MASQ}{MTU}CUSTOM_KEY{ALL}")),
        (&["-ck", "CUSTOM_KEY"], format!("CUSTOM_KEY{ALL}")),
        (&["-m"], format!("{BIP}{MTU}DOCKER_OPTS=\" --bip=10.1.74.1/24 --mtu=1472\"\n")),
    ] {
        assert_eq!(place.written(flags, &[]), wanted, "{flags:?}");
    }
}

#[test]
fn other_shells_write_the_same() {
    let place = Place::new(SUBNET_ENV);
    let mut bash = Command::new("bash");
    bash.arg(SCRIPT);
    let output = place.run_by(bash, &[], &[("DOCKER_OPT_A", "--a=\\n")]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let written = fs::read_to_string(place.path().join("docker_opts.env")).unwrap();
    assert_eq!(written, place.written(&[], &[("DOCKER_OPT_A", "--a=\\n")]));
    assert!(written.starts_with("DOCKER_OPT_A=\"--a=\\n\"\n"), "{written}");
}

#[test]
fn a_subnet_that_is_routed_elsewhere_is_told() {
    if !root_or_skip("a_subnet_that_is_routed_elsewhere_is_told") {
        return;
    }
    let place = Place::new(SUBNET_ENV);
    let host = Netns::new("docker");
    let run = || place.run_by(host.command(SCRIPT), &["-i"], &[]);
    host.ip("link add eth0 type bridge");
    host.ip("addr add 10.4.7.21/24 dev eth0");
    host.ip("link set eth0 up");
    host.ip("route add 10.1.7.0/24 via 10.4.7.1");
    host.ip("route add 10.1.74.0/24 dev eth0");
    assert!(run().status.success(), "a route without a gateway is the bridge's");

    host.ip("route replace 10.1.74.0/24 via 10.4.7.1");
    fs::remove_file(place.path().join("docker_opts.env")).unwrap();
    let output = run();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("remove the route \"10.1.74.0/24 via 10.4.7.1 dev eth0"), "{stderr}");
    let written = fs::read_to_string(place.path().join("docker_opts.env")).unwrap();
    assert_eq!(written, format!("{BIP}{IP_MASQ}{MTU}"), "it is told after writing");
}

#[test]
fn files_are_named_by_f_and_d() {
    let place = Place::new(SUBNET_ENV);
    let directory = place.path().to_str().unwrap();
    fs::rename(place.path().join("subnet.env"), place.path().join("other env")).unwrap();
    let (input, output) = (format!("{directory}/other env"), format!("{directory}/other opts"));
    fs::write(&output, "what stood there before\n").unwrap();
    assert!(place.run(&["-i", "-f", &input, "-d", &output], &[]).status.success());
    assert_eq!(fs::read_to_string(&output).unwrap(), format!("{BIP}{IP_MASQ}{MTU}"));

    let nowhere = place.run(&["-f", &input, "-d", "no/such/place"], &[]);
    assert_eq!(nowhere.status.code(), Some(1));
    let stderr = String::from_utf8(nowhere.stderr).unwrap();
    assert!(stderr.contains("cannot write no/such/place: choose another file by -d"), "{stderr}");
}

#[test]
fn without_a_file_the_environment_counts() {
    let place = Place::new("");
    fs::remove_file(place.path().join("subnet.env")).unwrap();
    assert_eq!(place.written(&[], &[]), "DOCKER_OPTS=\"\"\n");
    assert_eq!(place.written(&["-i"], &[]), "");
    let env = [("FLANNEL_SUBNET", "10.1.74.1/24"), ("FLANNEL_IPMASQ", "true")];
    assert_eq!(
        place.written(&[], &env),
        format!(
            "{BIP}DOCKER_OPT_IPMASQ=\"--ip-masq=false\"\n\
             DOCKER_OPTS=\" --bip=10.1.74.1/24 --ip-masq=false\"\n"
        )
    );
}

#[test]
fn options_of_the_environment_are_kept() {
    let place = Place::new(SUBNET_ENV);
    let env = [
        ("DOCKER_OPTS", "--debug"),
        ("DOCKER_OPT_LOG", "--log-driver=none --label 'a  b'"),
        ("DOCKER_OPT_MTU", "--mtu=9000"),
        ("NO_DOCKER_OPT_X", "--not-mine"),
        ("LINES", "\nDOCKER_OPT_NONE=x"),
    ];
    let wanted = "DOCKER_OPTS=\"--debug  --bip=10.1.74.1/24 --ip-masq=true \
                  --log-driver=none --label 'a  b' --mtu=1472\"\n";
    let written = place.written(&["-c"], &env);
    assert_eq!(written, wanted);
    let log = "DOCKER_OPT_LOG=\"--log-driver=none --label 'a  b'\"\n";
    assert_eq!(place.written(&["-i"], &env), format!("{BIP}{IP_MASQ}{log}{MTU}"));
}

#[test]
fn misuse_ends_with_exit_code_1_and_one_reason() {
    let place = Place::new(SUBNET_ENV);
    for flags in [["-h", "-i"], ["-x", "-i"], ["-i", "-k"]] {
        let output = place.run(&flags, &[]);
        assert_eq!(output.status.code(), Some(1), "{flags:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("[-f FLANNEL-ENV-FILE] [-d DOCKER-ENV-FILE]"), "{stderr}");
    }
    let output = place.run(&["-k", "A;reboot"], &[]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("-k A;reboot: a variable's name has letters"), "{stderr}");
    assert!(!place.path().join("docker_opts.env").exists());

    let place = Place::new("FLANNEL_IPMASQ=yes\n");
    let output = place.run(&[], &[]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("FLANNEL_IPMASQ=yes: write true or false"), "{stderr}");
    assert_eq!(place.written(&["-m"], &[]), "DOCKER_OPTS=\"\"\n", "nobody asks for it");
}

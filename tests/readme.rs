//! The README's set-up of two hosts on etcd with TLS, run as it is written there; and its table of
//! flags against `--help`.
#![forbid(unsafe_code)]
// A helper fails its test by panicking; clippy.toml allows that only in `#[test]` functions.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use support::daemon::PATIENCE;
use support::etcd;
use support::lab::{Lab, LabHost};
use support::{root_or_skip, traffic};

const README: &str = include_str!("../README.md");

/// The fenced block behind the comment that names it.
fn block(name: &str) -> &'static str {
    let marker = format!("<!-- tests/readme.rs: {name} -->\n```");
    let (_, rest) = README.split_once(&marker).unwrap_or_else(|| panic!("no block {name}"));
    let (_, rest) = rest.split_once('\n').unwrap();
    rest.split_once("```\n").unwrap().0
}

/// The reader of the README on one of the hosts, in the daemon's folder.
struct Reader<'a> {
    host: &'a LabHost,
    number: &'static str,
}

impl Reader<'_> {
    /// The block as the README wants it on this host: "write `22` wherever `21` stands".
    fn text(&self, name: &str) -> String {
        block(name).replace("21", self.number)
    }

    fn command(&self, name: &str) -> Command {
        let mut command = self.host.netns.command("sh");
        command.args(["-euc", &self.text(name)]).current_dir(&self.host.dir).stdin(Stdio::null());
        command
    }

    /// Runs a block and returns what it prints.
    fn run(&self, name: &str) -> String {
        let output = self.command(name).output().unwrap();
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "block {name} on {}: {stdout}{stderr}", self.number);
        stdout.into_owned()
    }

    /// Runs the block that starts the daemon and waits until the log says what the README says.
    fn start(&self) -> Ended {
        let mut child = self.command("start").stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let child = Ended(child);
        let (lines, log_lines) = mpsc::channel();
        std::thread::spawn(move || {
            log.lines().map_while(Result::ok).for_each(|line| drop(lines.send(line)));
        });
        let deadline = Instant::now() + PATIENCE;
        let mut seen = String::new();
        assert!(README.contains("`flanneld is ready`"));
        while !seen.contains("flanneld is ready") {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = log_lines.recv_timeout(left);
            seen += &line.unwrap_or_else(|_| panic!("the daemon is not ready:\n{seen}"));
            seen.push('\n');
        }
        child
    }
}

/// A process that does not outlive its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn two_hosts_on_etcd_with_tls_as_written() {
    let test = "two_hosts_on_etcd_with_tls_as_written";
    if !root_or_skip(test) || !etcd::etcd_or_skip(test) {
        return;
    }
    // The third host is the machine that runs etcd.
    let mut lab = Lab::new(3);
    let certificates = tempfile::tempdir().unwrap();
    etcd::make_certificates(certificates.path());
    for host in &lab.hosts()[..2] {
        symlink(env!("CARGO_BIN_EXE_flanneld"), host.dir.join("flanneld")).unwrap();
        fs::create_dir(host.dir.join("cert")).unwrap();
        for name in ["ca.pem", "client.pem", "client-key.pem"] {
            fs::copy(certificates.path().join(name), host.dir.join("cert").join(name)).unwrap();
        }
    }
    let machine = &lab.host(2).netns;
    machine.ip("addr add 10.4.7.12/24 dev eth0");
    let url = "https://10.4.7.12:2379";
    let etcd = machine
        .command("etcd")
        .current_dir(certificates.path())
        .args(["--listen-client-urls", url, "--advertise-client-urls", url, "--data-dir=data"])
        .args(["--cert-file=server.pem", "--key-file=server-key.pem"])
        .args(["--client-cert-auth", "--trusted-ca-file=ca.pem"])
        .stdout(Stdio::null())
        .stderr(fs::File::create(certificates.path().join("log")).unwrap())
        .spawn()
        .unwrap();
    let _etcd = Ended(etcd);

    let [first, second] =
        [(0, "21"), (1, "22")].map(|(i, number)| Reader { host: lab.host(i), number });
    let deadline = Instant::now() + PATIENCE;
    // Each try of etcdctl waits for etcd as long as its own time limit allows.
    loop {
        let output = first.command("config").output().unwrap();
        if output.status.success() {
            break;
        }
        let log = || fs::read_to_string(certificates.path().join("log")).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(Instant::now() < deadline, "etcd does not take the config: {said}{}", log());
    }
    for reader in [&first, &second] {
        reader.run("subnet.env");
        reader.run("flanneld.sh");
    }
    let daemons = [first.start(), second.start()];

    assert_eq!(first.run("leases"), block("leases, output"));
    for reader in [&first, &second] {
        // What was wished for, and what the network is.
        let wish = reader.text("subnet.env");
        let written = fs::read_to_string(reader.host.subnet_file()).unwrap();
        assert_eq!(wish.lines().filter(|line| line.starts_with("FLANNEL")).collect::<Vec<_>>(), {
            written.lines().collect::<Vec<_>>()
        });
    }
    first.run("ping");

    // Step 7, with the bridges of the lab in place of Docker's.
    for host in [0, 1] {
        lab.host_mut(host).add_pod();
    }
    let [here, there] = [lab.host(0).pod(0), lab.host(1).pod(0)];
    here.netns.exec(&format!("ping -n -c 3 {}", there.address));
    traffic::tcp_transfer(there.end(), here.end(), 4 << 20);
    drop(daemons);
}

#[test]
fn the_table_of_flags_is_complete_and_true() {
    let help = Command::new(env!("CARGO_BIN_EXE_flanneld")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stderr).unwrap();
    let mut flags = 0;
    // Each flag's entry begins with its name and may go on over several lines.
    for entry in help.split("\n      --").skip(1) {
        let name: String =
            entry.chars().take_while(|c| c.is_alphanumeric() || "-_".contains(*c)).collect();
        let words: Vec<&str> = entry.split_whitespace().collect();
        let served = !words.join(" ").contains("(not supported yet)");
        let row = format!("| `--{name}` |");
        let row = README.lines().find(|line| line.starts_with(&row));
        let row = row.unwrap_or_else(|| panic!("the README does not know --{name}"));
        let state = if served { "| served |" } else { "| not yet |" };
        assert!(row.ends_with(state), "--{name} should be marked {state}: {row}");
        flags += 1;
    }
    let rows = README.lines().filter(|line| line.starts_with("| `--")).count();
    assert!(flags > 30, "--help was not understood: {help}");
    assert_eq!(rows, flags, "the README has flags that do not exist");
}

//! The service of the Debian package, run by a real systemd that boots in a container.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use support::admin::Manager;
use support::daemon::PATIENCE;
use support::debian::{Debian, PACKAGE_TOOLS, build_package, missing, run};
use support::lab::{CONFIG, Lab};
use support::running::Traffic;
use support::{root_or_skip, skip};

/// A host of the lab that booted. Killed on drop, with all that runs in it.
struct Booted {
    container: Child,
    /// The number of its systemd.
    leader: String,
    _debian: Debian,
}

impl Booted {
    /// Boots a Debian with our package in the namespace of a host, with the lab's directory at
    /// `/lab`.
    fn new(lab: &Lab, host: usize, debian: Debian) -> Self {
        let (host, root) = (lab.host(host), debian.root());
        fs::copy(build_package(), root.join("flanneld.deb")).unwrap();
        debian.exec("dpkg --install /flanneld.deb");
        let flags = format!(
            "FLANNELD_FLAGS=--store-dir=/lab/store --subnet-file=/lab/{}/subnet.env --iface=eth0",
            host.dir.file_name().unwrap().to_str().unwrap()
        );
        fs::write(root.join("etc/default/flanneld"), flags).unwrap();
        let drop_in = root.join("etc/systemd/system/flanneld.service.d");
        fs::create_dir_all(&drop_in).unwrap();
        // A watchdog that need not be waited for.
        fs::write(drop_in.join("lab.conf"), "[Service]\nReadWritePaths=/lab\nWatchdogSec=2\n")
            .unwrap();

        let manager = Manager::new(&host.dir);
        let mut command = Command::new("systemd-nspawn");
        command.args(["--quiet", "--boot", "--register=no", "--keep-unit", "--notify-ready=yes"]);
        command.args(["--capability=all", "--bind=/dev/net/tun", "--console=pipe"]);
        command.args(["--resolv-conf=off", "--timezone=off", "--machine=flanneld-test"]);
        command.arg("--directory").arg(root);
        command.arg(format!("--network-namespace-path=/run/netns/{}", host.netns.name()));
        command.arg(format!("--bind={}:/lab", host.dir.parent().unwrap().display()));
        command.env("NOTIFY_SOCKET", &manager.path);
        // As it is on today's hosts, whatever this one has.
        command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let container = command.spawn().expect("it is installed");
        let told = manager.wait("READY=1").join("\n");
        let leader = told.lines().find_map(|line| line.strip_prefix("X_NSPAWN_LEADER_PID="));
        let leader = leader.expect("it is told first").to_owned();
        Self { container, leader, _debian: debian }
    }

    /// Runs a command line inside; words are split at blanks.
    fn exec(&self, line: &str) -> String {
        let mut command = Command::new("nsenter");
        command.args(["--all", "--target", &self.leader]).args(line.split_whitespace());
        run(&mut command)
    }

    /// A property of the service.
    fn property(&self, name: &str) -> String {
        self.exec(&format!("systemctl show flanneld --value --property={name}")).trim().to_owned()
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut journal = Command::new("nsenter");
            journal.args(["--all", "--target", &self.leader, "journalctl", "--no-pager"]);
            let _ = journal.args(["--unit=flanneld"]).stdout(Stdio::inherit()).status();
        }
        let _ = self.container.kill();
        let _ = self.container.wait();
    }
}

#[test]
fn systemd_restarts_it_without_loss_and_ends_a_hang() {
    let test = "systemd_restarts_it_without_loss_and_ends_a_hang";
    if !root_or_skip(test) {
        return;
    }
    let missing = missing(&[PACKAGE_TOOLS.as_slice(), &["systemd-nspawn", "nsenter"]].concat());
    if !missing.is_empty() {
        return skip(test, &missing);
    }
    let debian = match Debian::new() {
        Ok(debian) => debian,
        Err(why) => return skip(test, &why),
    };
    let mut lab = Lab::new(2);
    let store = lab.store_dir(CONFIG);
    let other = lab.host(0).spawn_daemon(&["--store-dir", store.to_str().unwrap()], &[]);
    let booted = Booted::new(&lab, 1, debian);
    // Returns when the daemon has told that it is ready.
    booted.exec("systemctl start flanneld");
    other.wait_log("at 10.4.7.22 is up", PATIENCE);
    lab.add_pods();
    let [from, to] = [0, 1].map(|host| lab.host(host).pod(0).end());

    let dropped = || lab.host(0).dropped_by_kernel() + lab.host(1).dropped_by_kernel();
    let before = dropped();
    let traffic = Traffic::start(from, to, 8);
    for _ in 0..2 {
        booted.exec("systemctl restart flanneld");
        assert_eq!(booted.property("NFileDescriptorStore"), "24");
    }
    traffic.wait_for_all_streams();
    let outcome = traffic.stop();
    eprintln!("two restarts: {outcome:?}");
    let lost = outcome.probes_sent - outcome.probes_received;
    assert!(lost <= dropped() - before, "{outcome:?}");

    let traffic = Traffic::start(from, to, 8);
    for signal in ["KILL", "STOP"] {
        let (before, restarts) = (Instant::now(), booted.property("NRestarts"));
        booted.exec(&format!("systemctl kill --signal={signal} flanneld"));
        while booted.property("NRestarts") == restarts {
            assert!(before.elapsed() < PATIENCE, "SIG{signal} is not noticed");
        }
        let gap = traffic.wait_for_probe_after(Instant::now());
        eprintln!("SIG{signal}: restarted after {:?}, gap {gap:?}", before.elapsed());
        // Both at once would be the watchdog's doing.
        while booted.property("SubState") != "running" {
            assert!(before.elapsed() < PATIENCE, "after SIG{signal}: not up");
        }
    }
    traffic.wait_for_all_streams();
    eprintln!("killed and stopped: {:?}", traffic.stop());
    booted.exec("systemctl stop flanneld");
    assert_eq!(booted.property("Result"), "success");
}

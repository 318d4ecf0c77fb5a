//! The service of the Debian package, run by a real systemd that boots in a container.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use support::admin::{Manager, until};
use support::daemon::PATIENCE;
use support::debian::{Debian, PACKAGE_TOOLS, build_package, missing, run};
use support::lab::{CONFIG, Lab, LabHost};
use support::running::Traffic;
use support::{root_or_skip, skip};

/// A unit of a runtime, as far as systemd sees it: when it is started and stopped is what we test.
const SLEEPER: &str = "[Service]\nExecStart=/usr/bin/sleep infinity\nRestart=always\n";

/// In the place of Docker's daemon: notes what it was told.
const DOCKERD: &str = "#!/bin/sh\necho \"$*\" >>/run/dockerd.told\nexec sleep infinity\n";

/// A clean Debian, if this test can run. Says so loudly if not.
fn debian_or_skip(test: &str) -> Option<Debian> {
    if !root_or_skip(test) {
        return None;
    }
    let missing = missing(&[PACKAGE_TOOLS.as_slice(), &["systemd-nspawn", "nsenter"]].concat());
    if !missing.is_empty() {
        skip(test, &missing);
        return None;
    }
    Debian::new().inspect_err(|why| skip(test, why)).ok()
}

/// A host of the lab that booted. Killed on drop, with all that runs in it.
struct Booted {
    container: Child,
    /// The number of its systemd.
    leader: String,
    debian: Debian,
    _alone: MutexGuard<'static, ()>,
}

impl Booted {
    /// Boots a Debian with our package in the namespace of a host, with the lab's directory at
    /// `/lab`.
    fn new(lab: &Lab, host: usize, debian: Debian) -> Self {
        // With --keep-unit, two would be in one cgroup, and find each other's processes there.
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let (host, root) = (lab.host(host), debian.root());
        fs::copy(build_package(), root.join("flanneld.deb")).unwrap();
        debian.exec("dpkg --install /flanneld.deb");
        let flags = format!(
            "FLANNELD_FLAGS=--store-dir=/lab/store --subnet-file=/lab/{}/subnet.env --iface=eth0",
            host.dir.file_name().unwrap().to_str().unwrap()
        );
        fs::write(root.join("etc/default/flanneld"), flags).unwrap();
        drop_in(root, "ReadWritePaths=/lab");

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
        Self { container, leader, debian, _alone: alone }
    }

    /// Stops the service, and starts it with another setting beside the package's.
    fn start_with(&self, setting: &str) {
        self.exec("systemctl stop flanneld");
        drop_in(self.debian.root(), setting);
        self.exec("systemctl daemon-reload");
        self.exec("systemctl start flanneld");
    }

    /// Runs a command line inside; words are split at blanks.
    fn exec(&self, line: &str) -> String {
        let mut command = Command::new("nsenter");
        command.args(["--all", "--target", &self.leader]).args(line.split_whitespace());
        run(&mut command)
    }

    /// Writes a file of its root directory.
    fn write(&self, path: &str, text: &str) {
        let path = self.debian.root().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A property of the service.
    fn property(&self, name: &str) -> String {
        self.property_of("flanneld", name)
    }

    /// A property of any unit.
    fn property_of(&self, unit: &str, name: &str) -> String {
        self.exec(&format!("systemctl show {unit} --value --property={name}")).trim().to_owned()
    }
}

/// Adds a setting to those of the service, as an administrator does.
fn drop_in(root: &Path, setting: &str) {
    let folder = root.join("etc/systemd/system/flanneld.service.d");
    fs::create_dir_all(&folder).unwrap();
    let (name, _) = setting.split_once('=').unwrap();
    fs::write(folder.join(format!("{name}.conf")), format!("[Service]\n{setting}\n")).unwrap();
}

impl Drop for Booted {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut journal = Command::new("nsenter");
            journal.args(["--all", "--target", &self.leader, "journalctl", "--no-pager"]);
            let _ = journal
                .args(["--unit=flanneld", "--unit=docker"])
                .stdout(Stdio::inherit())
                .status();
        }
        let _ = self.container.kill();
        let _ = self.container.wait();
    }
}

#[test]
fn systemd_restarts_it_without_loss_and_ends_a_hang() {
    let test = "systemd_restarts_it_without_loss_and_ends_a_hang";
    let Some(debian) = debian_or_skip(test) else { return };
    let mut lab = Lab::new(2);
    let store = lab.store_dir(CONFIG);
    let other = lab.host(0).spawn_daemon(&["--store-dir", store.to_str().unwrap()], &[]);
    let booted = Booted::new(&lab, 1, debian);
    // Returns when the daemon has told that it is ready.
    booted.exec("systemctl start flanneld");
    other.wait_log("at 10.4.7.22 is up", PATIENCE);
    lab.add_pods();
    let [from, to] = [0, 1].map(|host| lab.host(host).pod(0).end());

    let dropped = || lab.hosts().iter().map(LabHost::dropped_by_kernel).sum::<u64>();
    let before = dropped();
    let traffic = Traffic::start(from, to, 8);
    for _ in 0..2 {
        booted.exec("systemctl restart flanneld");
        assert_eq!(booted.property("NFileDescriptorStore"), "24");
    }
    traffic.wait_for_all_streams();
    let outcome = traffic.stop();
    let dropped = dropped() - before;
    eprintln!("two restarts: {outcome:?}, {dropped} dropped by the kernel");
    assert!(outcome.probes_lost() <= dropped);

    // A watchdog that need not be waited for: only now, since it might bite on a busy machine.
    booted.start_with("WatchdogSec=2");
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

#[test]
fn runtimes_start_when_they_can_and_stay_up() {
    let Some(debian) = debian_or_skip("runtimes_start_when_they_can_and_stay_up") else { return };
    let lab = Lab::new(1);
    lab.store_dir(CONFIG);
    let booted = Booted::new(&lab, 0, debian);
    docker_starts_once_there_is_a_subnet(&lab, &booted);
    docker_outlives_flanneld(&booted);
    runtimes_do_not_wait_for_a_lease(&booted);
}

/// As at a boot at which flanneld's interface comes late.
fn docker_starts_once_there_is_a_subnet(lab: &Lab, booted: &Booted) {
    let dockerd = booted.debian.root().join("usr/sbin/dockerd");
    fs::write(&dockerd, DOCKERD).unwrap();
    fs::set_permissions(&dockerd, Permissions::from_mode(0o755)).unwrap();
    booted.write("etc/systemd/system/docker.service", SLEEPER);
    let drop_in = include_str!("../packaging/systemd/docker-flannel.conf");
    booted.write("etc/systemd/system/docker.service.d/flannel.conf", drop_in);
    let flags = "FLANNELD_FLAGS=--store-dir=/lab/store --iface=late0";
    booted.write("etc/default/flanneld", flags);

    booted.exec("systemctl daemon-reload");
    booted.exec("touch /run/dockerd.told");
    booted.exec("systemctl start --no-block docker");
    for unit in ["flanneld", "docker"] {
        let restarts = || booted.property_of(unit, "NRestarts");
        until(&format!("{unit} is tried again"), restarts, |restarts| restarts != "0");
    }
    let host = &lab.host(0).netns;
    host.ip("link add late0 type veth peer name late1");
    host.ip("addr add 10.4.8.21/24 dev late0");
    host.ip("link set late0 up");
    let state = || booted.property_of("docker", "ActiveState");
    until("Docker starts by itself", state, |state| state == "active");
    until("Docker runs", || booted.exec("cat /run/dockerd.told"), |told| !told.is_empty());

    let told = booted.exec("cat /run/dockerd.told");
    assert_eq!(told.lines().count(), 1, "not without a subnet: {told}");
    for option in [" --bip=172.7.", " --mtu=1472", " --ip-masq=true"] {
        assert!(told.contains(option), "{told}");
    }
}

fn docker_outlives_flanneld(booted: &Booted) {
    let process = || booted.property_of("docker", "MainPID");
    let before = process();
    booted.exec("systemctl restart flanneld");
    assert_eq!(process(), before, "after a restart of flanneld");
    let restarts = booted.property("NRestarts");
    booted.exec("systemctl kill --signal=KILL flanneld");
    until("it is restarted", || booted.property("NRestarts"), |now| *now != restarts);
    until("it is up", || booted.property("SubState"), |state| state == "running");
    assert_eq!(process(), before, "after a crash of flanneld");
    booted.exec("systemctl stop flanneld");
    assert_eq!(process(), before, "after a stop of flanneld");
}

/// etcd may run in any of them; in Docker only without our drop-in.
fn runtimes_do_not_wait_for_a_lease(booted: &Booted) {
    booted.exec("systemctl stop docker");
    booted.exec("rm /etc/systemd/system/docker.service.d/flannel.conf");
    let runtimes = ["docker", "containerd", "crio", "kubelet"];
    for runtime in runtimes {
        booted.write(&format!("etc/systemd/system/{runtime}.service"), SLEEPER);
    }
    // No host has this address.
    let flags = "FLANNELD_FLAGS=--etcd-endpoints=http://10.4.7.99:2379 --iface=eth0";
    booted.write("etc/default/flanneld", flags);
    booted.exec("systemctl daemon-reload");
    booted.exec("systemctl start --no-block flanneld");
    until("it starts", || booted.property("SubState"), |state| state == "start");
    for runtime in runtimes {
        booted.exec(&format!("timeout {} systemctl start {runtime}", PATIENCE.as_secs()));
        assert_eq!(booted.property_of(runtime, "ActiveState"), "active", "{runtime}");
    }
    assert_eq!(booted.property("SubState"), "start", "it waits for etcd");
}

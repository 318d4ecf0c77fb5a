//! Docker on the overlay: a real `dockerd` on each of two hosts, its bridge set from flanneld's
//! `subnet.env` by `mk-docker-opts.sh`.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use support::daemon::PATIENCE;
use support::lab::{CONFIG, Lab, LabHost};
use support::traffic::Noise;
use support::{root_or_skip, skip};

const MK_DOCKER_OPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/mk-docker-opts.sh");

/// Whether Docker can be run. Says so loudly if not.
fn docker_or_skip(test: &str) -> bool {
    let works = |line: &str| {
        let output = Command::new("sh").args(["-c", line]).output();
        output.is_ok_and(|output| output.status.success())
    };
    let programs = ["dockerd", "docker", "containerd", "runc", "nsenter", "iptables"];
    let missing = programs.into_iter().find(|program| !works(&format!("command -v {program}")));
    // There will be no libraries beside it.
    let is_static = works("command -v busybox && ! ldd \"$(command -v busybox)\"");
    let missing = missing.or_else(|| (!is_static).then_some("a static busybox"));
    if let Some(missing) = missing {
        let packages = "(apt-get install docker.io busybox-static iptables)";
        skip(test, &format!("{missing} {packages}"));
    }
    missing.is_none() && root_or_skip(test)
}

/// A Docker daemon on a host. Its containers and itself are ended on drop.
struct Docker<'a> {
    host: &'a LabHost,
    dir: PathBuf,
    daemon: Child,
}

impl<'a> Docker<'a> {
    /// Starts it with the options that `mk-docker-opts.sh` writes.
    fn start(host: &'a LabHost) -> Self {
        let dir = host.dir.join("docker");
        fs::create_dir(&dir).unwrap();
        let options = host
            .netns
            .command(MK_DOCKER_OPTS)
            .args(["-c", "-f"])
            .arg(host.subnet_file())
            .arg("-d")
            .arg(dir.join("options"))
            .status();
        assert!(options.unwrap().success());

        // dockerd says there when it is ready.
        let notify = UnixDatagram::bind(dir.join("notify")).unwrap();
        notify.set_read_timeout(Some(PATIENCE)).unwrap();
        let log = File::create(dir.join("log")).unwrap();
        let script = "set -e; . ./options; exec dockerd $DOCKER_OPTS \
                      --data-root=$PWD/data --exec-root=$PWD/exec --pidfile=$PWD/pid \
                      --host=unix://$PWD/socket --storage-driver=vfs";
        // Not `ip netns exec`, which hides the cgroups.
        let daemon = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", host.netns.name()))
            .args(["sh", "-c", script])
            .current_dir(&dir)
            .env("NOTIFY_SOCKET", dir.join("notify"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let docker = Self { host, dir, daemon };
        let mut message = [0; 1024];
        loop {
            let length = notify.recv(&mut message).expect("dockerd does not get ready");
            if message[..length].starts_with(b"READY=1") {
                return docker;
            }
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        let socket = format!("unix://{}", self.dir.join("socket").display());
        command.args(["--host", &socket]).args(args).stdin(Stdio::null());
        command
    }

    /// Runs `docker ARGS`; returns what it prints on both streams. Panics if it fails.
    fn run(&self, args: &[&str]) -> String {
        let output = self.command(args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "docker {args:?}: {text}");
        text.trim().to_owned()
    }

    /// Starts the container `web`, which serves the image's `/www`; returns its address.
    fn serve(&self) -> String {
        let httpd = ["busybox", "httpd", "-f", "-vv", "-p", "80", "-h", "/www"];
        self.run(&[&["run", "--detach", "--name", "web", "box"][..], &httpd].concat());
        self.run(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}", "web"])
    }

    /// Runs a command line in `web`.
    fn exec(&self, line: &str) -> String {
        self.run(&["exec", "web", "sh", "-c", line])
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        // They live in namespaces of their own, and would outlive the daemon.
        let _ = self.command(&["rm", "--force", "web"]).output();
        let _ = kill_process(Pid::from_child(&self.daemon), Signal::TERM);
        let _ = self.daemon.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            eprintln!("--- dockerd on {} ---\n{log}", self.host.address);
        }
    }
}

#[test]
fn containers_of_two_docker_hosts_talk() {
    if !docker_or_skip("containers_of_two_docker_hosts_talk") {
        return;
    }
    let lab = Lab::new(2);
    // The daemon masquerades, so that Docker does not: it would hide containers from each other.
    let _daemons = lab.start_overlay(&lab.store_dir(CONFIG), |_| vec!["--ip-masq"]);

    // An image of busybox, which is static, and a file that does not fit into one packet.
    let image = lab.host(0).dir.join("image");
    fs::create_dir_all(image.join("www")).unwrap();
    let mut file = vec![0; 3_000_000];
    Noise::new(1).fill(&mut file);
    fs::write(image.join("www/file"), &file).unwrap();
    let script = "mkdir bin; cp \"$(command -v busybox)\" bin; ln -s busybox bin/sh; \
                  tar -cf ../image.tar .; sha256sum www/file";
    let made = Command::new("sh").args(["-euc", script]).current_dir(&image).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let digest = String::from_utf8(made.stdout).unwrap()[..64].to_owned();
    let tar = lab.host(0).dir.join("image.tar");

    let dockers = [0, 1].map(|host| Docker::start(lab.host(host)));
    let addresses = dockers.each_ref().map(|docker| {
        docker.run(&["import", tar.to_str().unwrap(), "box"]);
        docker.serve()
    });
    for (docker, address) in dockers.iter().zip(&addresses) {
        let env = docker.host.subnet_env();
        let bridge = docker.host.netns.ip("-o addr show docker0");
        assert!(bridge.contains(&format!(" {} ", env["FLANNEL_SUBNET"])), "{bridge}");
        let link = docker.exec("busybox ip link show eth0");
        assert!(link.contains(&format!(" mtu {} ", env["FLANNEL_MTU"])), "{link}");
        let subnet = env["FLANNEL_SUBNET"].rsplit_once('.').unwrap().0;
        assert!(address.starts_with(subnet), "{address} is not in {subnet}");
    }

    for (here, there) in [(0, 1), (1, 0)] {
        let (from, to) = (&addresses[here], &addresses[there]);
        let pinged = dockers[here].exec(&format!("busybox ping -c 3 -W 10 {to}"));
        assert!(pinged.contains("3 packets transmitted, 3 packets received"), "{pinged}");
        let fetch = format!("busybox wget -q -O - http://{to}/file | busybox sha256sum");
        assert_eq!(dockers[here].exec(&fetch)[..64], digest);
        // The server saw the container itself, not a host.
        let served = dockers[there].run(&["logs", "web"]);
        assert!(served.contains(&format!("{from}]:")), "{from} is not in {served}");
    }
}

//! The static binary on Debian's stock Linux 6.1, in a virtual machine with next to nothing else:
//! scripts/old-kernel.sh. No vxlan, no USO (Linux 6.2), no trains of more than 64 datagrams (6.9), and
//! none at all where the network card computes no checksums (6.11).
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{root_or_skip, skip};

/// What is sent from one host to the other each time, compared there.
const BYTES: &str = "2097152";

/// Lines that a daemon logs in all that time: a start, a stop, and what is missing in the machine.
const FEW_LINES: usize = 20;

/// What scripts/old-kernel.sh ends with if what it needs of Debian is not to be had.
const UNAVAILABLE: i32 = 77;

/// What the machine printed.
struct Console(String);

impl Console {
    /// What was told under `topic`, in order.
    fn told(&self, topic: &str) -> Vec<&str> {
        let told = self.0.lines().filter_map(|line| line.trim_end().strip_prefix('@'));
        told.filter_map(|line| line.strip_prefix(topic)?.strip_prefix(' ')).collect()
    }

    /// The log of a host's daemons.
    fn log(&self, host: u8) -> Vec<&str> {
        self.0.lines().filter_map(|line| line.strip_prefix(&format!("{host}: "))).collect()
    }

    /// A field of a host's status at the end of a phase.
    fn status(&self, phase: &str, host: u8, field: &str) -> Value {
        let told = self.told(&format!("status {phase} {host}"));
        let status: Value = serde_json::from_str(told[0]).unwrap();
        status[field].clone()
    }
}

#[test]
fn linux_6_1_carries_packets() {
    let test = "linux_6_1_carries_packets";
    if !root_or_skip(test) {
        return;
    }
    if std::env::consts::ARCH != "x86_64" {
        return skip(test, "x86-64");
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        return skip(test, "apt-get, to get a kernel");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/old-kernel.sh");
    let output = Command::new(script).arg("dev").stdin(Stdio::null()).output().unwrap();
    if output.status.code() == Some(UNAVAILABLE) {
        let why = String::from_utf8_lossy(&output.stderr);
        return skip(test, &format!("a kernel of Debian's mirror: {}", why.trim_end()));
    }
    let console = Console(String::from_utf8_lossy(&output.stdout).into_owned());
    eprintln!("{}\n{}", console.0, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}", output.status);

    assert!(console.told("kernel")[0].starts_with("6.1."));
    assert_eq!(console.told("vxlan"), ["absent"]);
    assert_eq!(console.told("gave-up"), [""; 0]);
    assert_eq!(console.told("ping"), ["21", "22"]);
    let phases = ["whole", "small", "no-checksums", "after-crash"];
    let ways = phases.map(|phase| ["21 22", "22 21"].map(|way| format!("{phase} {way} {BYTES}")));
    assert_eq!(console.told("transfer"), ways.concat());

    let mut offload = json!({
        "tun_tso": true, "tun_uso": false, "merging": true, "udp_gso": true, "udp_gro": true
    });
    for phase in phases {
        assert_eq!(console.status(phase, 22, "offload"), offload, "{phase}");
    }
    // Each phase sends trains: they are counted from the daemon's start.
    let mut trains = 0;
    for phase in ["whole", "small"] {
        assert_eq!(console.status(phase, 21, "offload"), offload, "{phase}");
        let so_far = console.status(phase, 21, "egress")["superpackets_out"].as_u64().unwrap();
        assert!(so_far > trains, "{phase}: {so_far} after {trains}");
        trains = so_far;
    }
    offload["udp_gso"] = json!(false);
    for phase in ["no-checksums", "after-crash"] {
        assert_eq!(console.status(phase, 21, "offload"), offload, "{phase}");
    }
    let lines = |host, text| console.log(host).iter().filter(|line| line.contains(text)).count();
    assert_eq!(lines(21, "the way to the peers refuses UDP segmentation"), 1);
    assert_eq!(lines(22, "taking over flannel0"), 1);
    assert!(console.log(21).len() <= FEW_LINES);
    assert!(console.log(22).len() <= 2 * FEW_LINES);
    assert_eq!(console.told("exit"), ["21 0", "22 0"]);
}

//! What a daemon tells about itself: by HTTP, by `flanneld status`, to systemd.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use super::daemon::PATIENCE;
use super::lab::LabHost;
use super::netns::Netns;

/// Where the tests' daemons answer, and the flags for it.
pub const HEALTHZ: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8471);
pub const HEALTHZ_FLAGS: [&str; 2] = ["--healthz-ip=127.0.0.1", "--healthz-port=8471"];

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// Sends one request, `GET /healthz` for example. `None` if nobody answers.
pub fn request(netns: &Netns, what: &str) -> Option<Answer> {
    let mut stream = netns.connect(HEALTHZ).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "{what} HTTP/1.1\r\nHost: test\r\n\r\n").ok()?;
    read_answer(&mut stream)
}

/// Reads an answer to its end.
pub fn read_answer(stream: &mut impl Read) -> Option<Answer> {
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { status, head: head.to_lowercase(), body: body.to_owned() })
}

/// Asks until the answer is as wanted, and returns it.
pub fn until<T: std::fmt::Debug>(
    what: &str,
    mut ask: impl FnMut() -> T,
    wanted: impl Fn(&T) -> bool,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = ask();
        if wanted(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: still {answer:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until `/readyz` gives this status and a body that contains `text`.
pub fn wait_readyz(netns: &Netns, status: u16, text: &str) {
    until(
        &format!("readyz {status} {text}"),
        || request(netns, "GET /readyz"),
        |answer| answer.as_ref().is_some_and(|a| a.status == status && a.body.contains(text)),
    );
}

/// Whether there is a parser of Prometheus' text. Says so loudly if not.
pub fn parser_or_skip(test: &str) -> bool {
    let import = ["-c", "import prometheus_client"];
    let found = Command::new("/usr/bin/python3").args(import).output();
    let found = found.is_ok_and(|output| output.status.success());
    if !found {
        let line = format!("SKIPPED {test}: needs the package python3-prometheus-client\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
    found
}

/// The samples of `/metrics` as a real parser of Prometheus' format reads them, by name and labels
/// in alphabetical order: `flanneld_drops_total{direction="egress",reason="no_route"}`.
pub fn metrics(netns: &Netns) -> BTreeMap<String, f64> {
    const PARSE: &str = r#"
import json, sys
from prometheus_client.parser import text_string_to_metric_families
samples = {}
for family in text_string_to_metric_families(sys.stdin.read()):
    assert family.type in ("counter", "gauge"), family
    assert family.documentation, family
    for s in family.samples:
        labels = ",".join('%s="%s"' % item for item in sorted(s.labels.items()))
        name = s.name + ("{%s}" % labels if labels else "")
        assert name not in samples, name
        samples[name] = s.value
print(json.dumps(samples))
"#;
    let answer = request(netns, "GET /metrics").expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    let output = feed("/usr/bin/python3", &["-c", PARSE], &answer.body);
    assert!(output.status.success(), "{output:?}\n{}", answer.body);
    serde_json::from_slice(&output.stdout).expect("it is JSON")
}

/// Runs a command with this input.
pub fn feed(program: &str, args: &[&str], input: &str) -> Output {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().expect("it is piped").write_all(input.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends")
}

/// The socket of this host's daemon.
pub fn socket(host: &LabHost) -> PathBuf {
    host.dir.join("flanneld.sock")
}

/// Runs `flanneld status` for this host's daemon; any namespace will do.
pub fn status(host: &LabHost, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flanneld"))
        .args(["status", "--subnet-file"])
        .arg(host.subnet_file())
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("it starts")
}

/// `flanneld status --json`.
pub fn report(host: &LabHost) -> serde_json::Value {
    let output = status(host, &["--json"]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// A service manager's end of the notifications.
pub struct Manager {
    socket: UnixDatagram,
    /// `NOTIFY_SOCKET`.
    pub path: String,
}

impl Manager {
    pub fn new(dir: &Path) -> Self {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).expect("/tmp works");
        Self { socket, path: path.to_str().expect("made of ASCII").to_owned() }
    }

    /// The next message, if one comes within `timeout`.
    pub fn next(&self, timeout: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(timeout)).expect("not zero");
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..length].to_vec()).expect("it is text"))
    }

    /// Waits for a message that has this line, and returns all up to it.
    pub fn wait(&self, line: &str) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {line}; only {seen:?}");
            let Some(message) = self.next(left) else { continue };
            let found = message.lines().any(|told| told == line);
            seen.push(message);
            if found {
                return seen;
            }
        }
    }
}

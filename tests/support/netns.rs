//! Network namespaces that vanish when the test ends, however it ends.
#![forbid(unsafe_code)]

use std::fs::{File, read_to_string};
use std::net::{SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// All our namespaces are called `flanneld-test-PID-N-LABEL`.
const PREFIX: &str = "flanneld-test-";

/// A named network namespace with its loopback up. Removed on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a fresh one; `label` only helps a person who looks at `ip netns`.
    pub fn new(label: &str) -> Self {
        static REAP: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        REAP.call_once(reap_leftovers);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{label}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]));
        let netns = Self { name };
        netns.ip("link set lo up");
        netns
    }

    /// The name that `ip netns exec` takes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip ARGS` inside; words are split at blanks. Panics if it fails.
    pub fn ip(&self, args: &str) -> String {
        let output = run(Command::new("ip").args(["-n", &self.name]).args(args.split_whitespace()));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A command to be run inside, with `/sys` showing this namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs a command line inside; words are split at blanks. Panics if it fails.
    pub fn exec(&self, line: &str) -> String {
        let output = self.try_exec(line);
        assert!(output.status.success(), "{line} in {}: {}", self.name, both(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a command line inside, whatever comes of it.
    pub fn try_exec(&self, line: &str) -> Output {
        let mut words = line.split_whitespace();
        let program = words.next().expect("a command line has a first word");
        self.command(program).args(words).output().expect("ip netns exec starts")
    }

    /// Sets `/proc/sys/KEY`, dots or slashes, inside.
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = Path::new("/proc/sys").join(key.replace('.', "/"));
        self.enter(|| std::fs::write(&path, value))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// What the kernel has counted inside.
    pub fn counters(&self) -> Counters {
        // Plain /proc/net would be that of the process's first thread.
        Counters(self.enter(|| read_to_string("/proc/thread-self/net/snmp")).unwrap())
    }

    /// Drops from now on what passes this `hook` of IPv4 (`input`, `output`) and matches `rule`.
    pub fn block(&self, hook: &str, rule: &str) {
        self.exec("nft add table ip fault");
        self.exec(&format!(
            "nft add chain ip fault {hook} {{ type filter hook {hook} priority -300 ; }}"
        ));
        self.exec(&format!("nft add rule ip fault {hook} {rule} drop"));
    }

    /// Undoes every [`Netns::block`].
    pub fn unblock(&self) {
        self.exec("nft delete table ip fault");
    }

    /// Calls `inside` on a thread of its own that lives in this namespace. Sockets made there
    /// stay in the namespace, wherever they are used later. A panic is passed on.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        let netns = File::open(Path::new("/run/netns").join(&self.name)).expect("it exists");
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("root may enter");
                inside()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a future inside, on a runtime of its own with one thread.
    pub fn block_on<F>(&self, future: impl FnOnce() -> F + Send) -> F::Output
    where
        F: Future<Output: Send>,
    {
        self.enter(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime can be built")
                .block_on(future())
        })
    }

    /// A UDP socket inside; port 0 picks one. Reads end after half a minute.
    pub fn udp(&self, local: SocketAddrV4) -> UdpSocket {
        let socket = self.enter(|| UdpSocket::bind(local)).expect("the address is here");
        socket.set_read_timeout(Some(Duration::from_secs(30))).expect("not zero");
        socket
    }

    /// A listening TCP socket inside; port 0 picks one.
    pub fn listen(&self, local: SocketAddrV4) -> TcpListener {
        self.enter(|| TcpListener::bind(local)).expect("the address is here")
    }

    /// A TCP connection from inside, or why there is none within half a minute.
    pub fn connect(&self, to: SocketAddrV4) -> std::io::Result<TcpStream> {
        self.enter(|| TcpStream::connect_timeout(&to.into(), Duration::from_secs(30)))
    }
}

/// The text of `/proc/net/snmp`: a line of names and a line of values for each protocol.
#[derive(Debug)]
pub struct Counters(String);

impl Counters {
    /// A counter: `Udp` `RcvbufErrors`.
    pub fn of(&self, protocol: &str, name: &str) -> u64 {
        let mut lines =
            self.0.lines().filter_map(|line| line.strip_prefix(protocol)?.strip_prefix(':'));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let place = names.split_whitespace().position(|word| word == name);
        let place = place.unwrap_or_else(|| panic!("this kernel does not count {protocol} {name}"));
        values.split_whitespace().nth(place).unwrap().parse().unwrap()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Ends what still runs in the namespace, and removes it.
fn remove(name: &str) {
    if let Ok(output) = Command::new("ip").args(["netns", "pids", name]).output() {
        for pid in String::from_utf8_lossy(&output.stdout).split_whitespace() {
            let pid = pid.parse().ok().and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid.filter(|pid| *pid != rustix::process::getpid()) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
    let _ = Command::new("ip").args(["netns", "del", name]).status();
}

/// Removes what tests left behind that were killed before they could.
fn reap_leftovers() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for name in entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&name);
        }
    }
}

/// Runs it to its end. Panics if it fails.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", both(&output));
    output
}

fn both(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

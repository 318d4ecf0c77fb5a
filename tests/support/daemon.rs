//! The real `flanneld`, running in a namespace, with its log at hand.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, waitid,
};

use super::netns::Netns;

/// How long anything may take that is awaited: far longer than a slow machine needs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running daemon. Killed on drop.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
}

/// A daemon that ended.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// Everything that it logged.
    pub log: String,
}

#[derive(Debug, Default)]
struct Log {
    written: Mutex<Written>,
    grew: Condvar,
}

#[derive(Debug, Default)]
struct Written {
    lines: Vec<String>,
    closed: bool,
}

impl Daemon {
    /// Starts `flanneld ARGS` inside `netns`, with the variables of `env` beside the inherited ones.
    pub fn spawn(netns: &Netns, args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = netns.command(env!("CARGO_BIN_EXE_flanneld"));
        command.args(args).envs(env.iter().copied());
        Self::run(command)
    }

    /// Starts a command that becomes the daemon.
    pub fn run(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ip netns exec starts");
        let stderr = child.stderr.take().expect("it is piped");
        let log = Arc::new(Log::default());
        let reader = {
            let log = Arc::clone(&log);
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    log.written.lock().unwrap().lines.push(line);
                    log.grew.notify_all();
                }
                log.written.lock().unwrap().closed = true;
                log.grew.notify_all();
            })
        };
        Self { child, log, reader: Some(reader) }
    }

    /// Its process id: `ip netns exec` becomes the daemon, it does not fork.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A figure of its memory in KiB: `VmRSS`, `RssAnon` or another of proc_pid_status(5).
    pub fn memory_kib(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        status
            .lines()
            .filter_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .find_map(|value| value.trim().strip_suffix(" kB")?.parse().ok())
            .unwrap_or_else(|| panic!("no {field} in {status}"))
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.log.written.lock().unwrap().lines.join("\n")
    }

    /// How many of the lines so far contain `text`.
    pub fn count(&self, text: &str) -> usize {
        let written = self.log.written.lock().unwrap();
        written.lines.iter().filter(|line| line.contains(text)).count()
    }

    /// Waits for a line that contains `text`, from the first line on, and returns it. Panics if
    /// the daemon ends or `timeout` passes before; its log is printed then, as on every panic.
    pub fn wait_log(&self, text: &str, timeout: Duration) -> String {
        self.wait_nth_log(text, 1, timeout)
    }

    /// Waits for the `n`th line that contains `text`: for things that happen again.
    pub fn wait_nth_log(&self, text: &str, n: usize, timeout: Duration) -> String {
        let deadline = Instant::now() + timeout;
        let mut written = self.log.written.lock().unwrap();
        loop {
            if let Some(line) = written.lines.iter().filter(|line| line.contains(text)).nth(n - 1) {
                return line.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if written.closed || left.is_zero() {
                let how = if written.closed { "ended" } else { "took too long" };
                // Drop prints the log, and a panic under the lock would take that away.
                drop(written);
                panic!("flanneld {how} before its log said {text:?} (time {n})");
            }
            written = self.log.grew.wait_timeout(written, left).unwrap().0;
        }
    }

    /// Waits until the overlay works on this host.
    pub fn wait_ready(&self) {
        self.wait_log("flanneld is ready", PATIENCE);
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.rustix_pid(), signal).expect("it is our child");
    }

    /// Stops it by SIGSTOP. Returns when it stands still.
    pub fn freeze(&self) {
        freeze(&self.child);
    }

    /// Waits until it stands still that stops itself.
    pub fn wait_frozen(&self) {
        wait_frozen(&self.child);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        thaw(&self.child);
    }

    /// Asks it to stop by SIGTERM and waits for that.
    pub fn stop(self) -> Ended {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Ends it as a crash would.
    pub fn kill9(self) -> Ended {
        self.signal(Signal::KILL);
        self.wait()
    }

    /// Waits for it to end by itself. Panics if it does not.
    pub fn wait(mut self) -> Ended {
        assert!(self.ends_within(PATIENCE), "flanneld does not end");
        let status = self.child.wait().expect("it is our child");
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader does not panic");
        }
        Ended { status, log: self.log() }
    }

    fn ends_within(&self, timeout: Duration) -> bool {
        // Cannot be another process by now: a child's id is kept until it is waited for.
        let pidfd = pidfd_open(self.rustix_pid(), PidfdFlags::empty()).expect("it is our child");
        let timeout = Timespec::try_from(timeout).expect("small enough");
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        poll(&mut fds, Some(&timeout)).expect("poll works") == 1
    }

    fn rustix_pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

/// Stops a child by SIGSTOP. Returns when none of its threads runs any more: the signal by itself is
/// only sent.
pub fn freeze(child: &Child) {
    kill_process(Pid::from_child(child), Signal::STOP).expect("it is our child");
    wait_frozen(child);
}

/// The kernel reports a process as stopped when the last of its threads is.
fn wait_frozen(child: &Child) {
    let stopped = waitid(WaitId::Pid(Pid::from_child(child)), WaitIdOptions::STOPPED);
    assert!(stopped.expect("it is our child").is_some(), "without NOHANG there is an answer");
}

/// Lets a child go on that stands still.
pub fn thaw(child: &Child) {
    kill_process(Pid::from_child(child), Signal::CONT).expect("it is our child");
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- flanneld {} ---\n{}", self.child.id(), self.log());
        }
    }
}

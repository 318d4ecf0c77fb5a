//! systemd's part in a restart: keeps the descriptors that a service hands it, and passes them to
//! the next process.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use command_fds::{CommandFdExt, FdMapping};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::daemon::{Daemon, PATIENCE};
use super::lab::LabHost;

/// What ends the thread; systemd knows no such message.
const END: &str = "END=1";

/// Keeps descriptors for one service (sd_notify(3), FDSTORE and its kin).
#[derive(Debug)]
pub struct ServiceManager {
    path: String,
    /// Leads there even when the path is gone.
    end: UnixDatagram,
    store: Arc<Store>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Store {
    names: Mutex<BTreeMap<String, Kept>>,
    changed: Condvar,
}

/// What goes by one name.
#[derive(Debug, Default)]
struct Kept {
    fds: Vec<OwnedFd>,
    /// How often all of it was to be let go.
    removals: usize,
}

impl ServiceManager {
    /// Listens in a directory of `host`.
    pub fn new(host: &LabHost) -> Self {
        let path = host.dir.join("manager");
        let socket = UnixDatagram::bind(&path).expect("/tmp works");
        let end = UnixDatagram::unbound().unwrap();
        end.connect(&path).expect("it was just bound");
        let store = Arc::new(Store::default());
        let thread = {
            let store = Arc::clone(&store);
            std::thread::spawn(move || while store.take_in(&socket) {})
        };
        let path = path.to_str().expect("made of ASCII").to_owned();
        Self { path, end, store, thread: Some(thread) }
    }

    /// How many descriptors are kept, by their names.
    pub fn kept(&self) -> BTreeMap<String, usize> {
        let names = self.store.names.lock().unwrap();
        names.iter().map(|(name, kept)| (name.clone(), kept.fds.len())).collect()
    }

    /// How often so far whatever is kept by this name was to be let go.
    pub fn removals(&self, name: &str) -> usize {
        self.store.names.lock().unwrap().get(name).map_or(0, |kept| kept.removals)
    }

    /// Waits until so many are kept by this name.
    pub fn wait_kept(&self, name: &str, count: usize) {
        self.wait_kept_anew(name, count, 0);
    }

    /// The same, after whatever was kept by it was let go for the `removals`th time.
    pub fn wait_kept_anew(&self, name: &str, count: usize, removals: usize) {
        let deadline = Instant::now() + PATIENCE;
        let mut names = self.store.names.lock().unwrap();
        let there = |kept: &Kept| kept.fds.len() == count && kept.removals >= removals;
        while !names.get(name).is_some_and(there) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "not {count} of {name}, {removals} removals: {names:?}");
            names = self.store.changed.wait_timeout(names, left).unwrap().0;
        }
    }

    /// Starts the service on a host, with all that is kept.
    pub fn start(&self, host: &LabHost, args: &[&str]) -> Daemon {
        let daemon = host.daemon_command(args);
        // Only the process itself knows its number before it runs; ip and sh become the daemon.
        let mut command = Command::new("sh");
        command.args(["-c", r#"LISTEN_PID=$$ exec "$@""#, "sh"]);
        command.arg(daemon.get_program()).args(daemon.get_args());
        let mut names = Vec::new();
        let mut mappings = Vec::new();
        for (name, kept) in &*self.store.names.lock().unwrap() {
            for fd in &kept.fds {
                let child_fd = 3 + i32::try_from(mappings.len()).expect("few");
                mappings.push(FdMapping { parent_fd: fd.try_clone().unwrap(), child_fd });
                names.push(name.clone());
            }
        }
        command.env("NOTIFY_SOCKET", &self.path);
        command.env("LISTEN_FDS", names.len().to_string());
        command.env("LISTEN_FDNAMES", names.join(":"));
        command.fd_mappings(mappings).expect("no number is given twice");
        Daemon::run(command)
    }
}

impl Drop for ServiceManager {
    fn drop(&mut self) {
        let _ = self.end.send(END.as_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Store {
    /// Does what the next message says; `false` if that is to end.
    fn take_in(&self, socket: &UnixDatagram) -> bool {
        let mut text = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut text)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let length = recvmsg(socket, &mut into, &mut control, flags).expect("it is ours").bytes;
        let fds: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect();
        let text = String::from_utf8_lossy(&text[..length]);
        let told = |line: &str| text.lines().any(|told| told == line);
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored");
        let mut names = self.names.lock().unwrap();
        if told("FDSTOREREMOVE=1") {
            let kept = names.entry(name.to_owned()).or_default();
            kept.fds.clear();
            kept.removals += 1;
        } else if told("FDSTORE=1") {
            names.entry(name.to_owned()).or_default().fds.extend(fds);
        }
        self.changed.notify_all();
        // What came with anything else, a barrier, is closed now.
        !told(END)
    }
}

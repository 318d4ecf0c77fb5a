//! The notifications that systemd's `Type=notify` services send (sd_notify(3)): READY, STATUS,
//! WATCHDOG, STOPPING. There is no RELOADING, for nothing can be reloaded. [`fd_store`] sends those
//! about descriptors.
//!
//! They are sent from the daemon's own loop: a loop that hangs sends none, and systemd restarts the
//! daemon. Sending them never waits. Children must not inherit [`VARIABLES`].
#![forbid(unsafe_code)]

mod fd_store;

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::net::{
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg_addr,
};
use tokio::time::Instant;
use tracing::{info, warn};

use self::fd_store::SCM_MAX_FD;
use super::state::{Missing, State};

/// What systemd tells its services by.
pub const VARIABLES: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
];

/// How long a manager that does not read may hold up those messages that must not be lost.
const SEND_PATIENCE: Duration = Duration::from_secs(1);

/// Time between two looks at the state.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The service manager, if there is one that listens.
#[derive(Debug)]
pub struct Supervisor {
    line: Option<Line>,
}

#[derive(Debug)]
struct Line {
    socket: UnixDatagram,
    address: SocketAddrUnix,
    told_ready: bool,
    status: String,
    next_look: Instant,
    watchdog: Option<Watchdog>,
}

#[derive(Debug)]
struct Watchdog {
    period: Duration,
    next: Instant,
}

impl Supervisor {
    /// Reads what systemd has set. Without `NOTIFY_SOCKET` nothing is ever sent.
    pub fn new(env: impl Fn(&str) -> Option<OsString>) -> Supervisor {
        let Some(name) = env("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Supervisor { line: None };
        };
        let now = Instant::now();
        let line = open(&name).map(|(socket, address)| Line {
            socket,
            address,
            told_ready: false,
            status: String::new(),
            next_look: now,
            watchdog: watchdog_period(&env).map(|period| Watchdog { period, next: now }),
        });
        let line = line
            .inspect_err(|error| warn!("NOTIFY_SOCKET={}: {error}", name.to_string_lossy()))
            .ok();
        if let Some(watchdog) = line.as_ref().and_then(|line| line.watchdog.as_ref()) {
            info!("the watchdog is told every {:?} that all is well", watchdog.period);
        }
        Supervisor { line }
    }

    /// Waits until [`Supervisor::tell`] has something to look at.
    pub async fn due(&self) {
        match &self.line {
            Some(line) => {
                let watchdog = line.watchdog.as_ref().map(|watchdog| watchdog.next);
                let next = watchdog.map_or(line.next_look, |next| next.min(line.next_look));
                tokio::time::sleep_until(next).await;
            }
            None => std::future::pending().await,
        }
    }

    /// Tells what changed, and the watchdog that the daemon lives: that its loop does is shown by
    /// this call, that the data path does by the state.
    pub fn tell(&mut self, state: &State) {
        let Some(line) = &mut self.line else { return };
        let now = Instant::now();
        let missing = state.missing();
        if let Some(watchdog) = &mut line.watchdog
            && watchdog.next <= now
        {
            watchdog.next = now + watchdog.period;
            if !missing.contains(&Missing::DataPath) {
                line.send("WATCHDOG=1\n");
            }
        }
        line.next_look = now + LOOK_EVERY;
        let mut message = String::new();
        if !line.told_ready && missing.is_empty() {
            message.push_str("READY=1\n");
        }
        let status = state.summary();
        if status != line.status {
            message.push_str(&format!("STATUS={status}\n"));
        }
        // What did not get through is told by the next look.
        if !message.is_empty() && line.send(&message) {
            line.told_ready |= message.starts_with("READY");
            line.status = status;
        }
    }

    /// The daemon ends.
    pub fn stopping(&self) {
        if let Some(line) = &self.line {
            line.send("STOPPING=1\nSTATUS=stopping\n");
        }
    }
}

impl Line {
    /// Says whether it was sent: a manager that does not read must not hold up the daemon.
    fn send(&self, message: &str) -> bool {
        self.post(message, &[], SendFlags::DONTWAIT).is_ok()
    }

    /// Sends a message with up to [`SCM_MAX_FD`] descriptors.
    fn post(&self, message: &str, fds: &[BorrowedFd<'_>], flags: SendFlags) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SCM_MAX_FD))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let message = [IoSlice::new(message.as_bytes())];
        sendmsg_addr(&self.socket, &self.address, &message, &mut control, flags)?;
        Ok(())
    }
}

/// A socket to send by, and where to: a path, or with `@` in front a name of the abstract space.
fn open(name: &OsString) -> io::Result<(UnixDatagram, SocketAddrUnix)> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
        path => SocketAddrUnix::new(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(SEND_PATIENCE))?;
    Ok((socket, address))
}

/// Half of what systemd waits for, as sd_watchdog_enabled(3) recommends.
fn watchdog_period(env: &impl Fn(&str) -> Option<OsString>) -> Option<Duration> {
    let number = |name| env(name)?.to_str()?.parse::<u64>().ok();
    let for_us = env("WATCHDOG_PID").is_none()
        || number("WATCHDOG_PID") == Some(u64::from(std::process::id()));
    let limit = number("WATCHDOG_USEC").filter(|&limit_us| for_us && limit_us > 0)?;
    Some(Duration::from_micros(limit.div_ceil(2)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    use super::*;

    #[test]
    fn the_watchdog_is_for_the_process_that_it_names() {
        let own = std::process::id().to_string();
        for (usec, pid, wanted) in [
            (Some("3000000"), None, Some(1_500)),
            (Some("3000000"), Some(own.as_str()), Some(1_500)),
            (Some("3000000"), Some("1"), None),
            (Some("3000000"), Some("x"), None),
            (Some("0"), None, None),
            (Some("soon"), None, None),
            (None, None, None),
        ] {
            let env: HashMap<&str, &str> = [("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)]
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?)))
                .collect();
            let period = watchdog_period(&|name: &str| env.get(name).map(OsString::from));
            assert_eq!(period, wanted.map(Duration::from_millis), "{usec:?} {pid:?}");
        }
    }

    #[tokio::test]
    async fn abstract_names_work_and_a_full_queue_does_not_block() {
        let name = format!("flanneld-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        let mut supervisor = Supervisor::new(|variable| match variable {
            "NOTIFY_SOCKET" => Some(format!("@{name}").into()),
            "WATCHDOG_USEC" => Some("1".into()),
            _ => None,
        });
        let state = State::new();
        // Far more than the queue of a socket holds (net.unix.max_dgram_qlen).
        for _ in 0..100_000 {
            supervisor.tell(&state);
        }
        let mut buffer = [0; 256];
        let mut next = || {
            let length = manager.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        assert_eq!(next(), "WATCHDOG=1\n");
        assert_eq!(next(), "STATUS=not ready: the store has not answered yet\n");
    }
}

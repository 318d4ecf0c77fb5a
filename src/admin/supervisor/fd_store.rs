//! systemd's descriptor store (`FileDescriptorStoreMax=` in systemd.service(5)): what is put there
//! stays open while the service restarts, and is passed to its next process.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::SendFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use tracing::{debug, warn};

use super::Supervisor;

/// Descriptors that one message holds at most (`SCM_MAX_FD` in include/net/scm.h).
pub(super) const SCM_MAX_FD: usize = 253;

/// How long a manager may take to do what it was told.
const PATIENCE: Duration = Duration::from_secs(2);

impl Supervisor {
    /// Has these kept open, by this name, instead of what was kept by it before.
    ///
    /// They are not watched (`FDPOLL=0`): a socket that has an ICMP error to tell would be thrown
    /// away. What does not get through costs the next start the packets that wait in them.
    pub fn keep(&self, name: &str, fds: &[BorrowedFd<'_>]) {
        self.forget(name);
        let Some(line) = &self.line else { return };
        let message = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}\n");
        for fds in fds.chunks(SCM_MAX_FD) {
            if let Err(error) = line.post(&message, fds, SendFlags::empty()) {
                return warn!("a restart will lose packets: systemd does not take {name}: {error}");
            }
        }
        debug!("systemd keeps {} descriptors by the name {name}", fds.len());
    }

    /// Has nothing kept by this name.
    pub fn forget(&self, name: &str) {
        let Some(line) = &self.line else { return };
        let message = format!("FDSTOREREMOVE=1\nFDNAME={name}\n");
        if let Err(error) = line.post(&message, &[], SendFlags::empty()) {
            warn!("systemd does not let go of the descriptors named {name}: {error}");
        }
    }

    /// Waits until all that was told is done (`BARRIER=1` in sd_notify(3)): systemd closes what it
    /// gets with this when it has read everything before.
    pub fn settle(&self) {
        let Some(line) = &self.line else { return };
        let settled = || -> io::Result<bool> {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
            line.post("BARRIER=1", &[writer.as_fd()], SendFlags::empty())?;
            drop(writer);
            let patience = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
            Ok(poll(&mut [PollFd::new(&reader, PollFlags::IN)], Some(&patience))? == 1)
        };
        match settled() {
            Ok(true) => {}
            // Before systemd 246.
            Ok(false) => debug!("NOTIFY_SOCKET: BARRIER=1 is not answered"),
            Err(error) => warn!("NOTIFY_SOCKET: BARRIER=1: {error}"),
        }
    }
}

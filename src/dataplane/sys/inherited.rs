//! Descriptors that the service manager passes to this process (sd_listen_fds(3)).

use std::ffi::OsString;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::io::{FdFlags, fcntl_setfd};

/// The first one that is passed (`SD_LISTEN_FDS_START` in systemd's sd-daemon.h).
const FIRST: RawFd = 3;

/// The name of one that was given none.
const NAMELESS: &str = "unknown";

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes what was passed, each with its name (`FDNAME` of sd_pid_notify_with_fds(3)); nothing the
/// second time. Children do not inherit it.
///
/// `env` says how many follow the first, and is not believed further: what this process has opened
/// itself stays with its owner. All that Rust's library, this crate and those that it uses open is
/// closed by `exec` (`FD_CLOEXEC`); what came through one is not. The first that is ends the list.
pub fn take(env: impl Fn(&str) -> Option<OsString>) -> Vec<(String, OwnedFd)> {
    let number = |name| env(name)?.to_str()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) || TAKEN.swap(true, Relaxed) {
        return Vec::new();
    }
    let names = env("LISTEN_FDNAMES").and_then(|names| names.into_string().ok());
    let mut names = names.as_deref().unwrap_or_default().split(':').filter(|name| !name.is_empty());
    let count = number("LISTEN_FDS").and_then(|count| RawFd::try_from(count).ok()).unwrap_or(0);
    (FIRST..FIRST.saturating_add(count))
        .map_while(|fd| {
            if !came_through_exec(fd) {
                return None;
            }
            // SAFETY: it is open, nobody here has opened it, and it has not been taken before, for
            // TAKEN was not set.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            fcntl_setfd(&fd, FdFlags::CLOEXEC).ok()?;
            Some((names.next().unwrap_or(NAMELESS).to_owned(), fd))
        })
        .collect()
}

/// Whether a descriptor of this number is open, and was before this process began.
fn came_through_exec(fd: RawFd) -> bool {
    // SAFETY: F_GETFD takes a number and no pointer, and is an error for one that is not open.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    flags >= 0 && flags & libc::FD_CLOEXEC == 0
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn what_this_process_opened_is_not_taken() {
        let own = std::fs::File::open("/dev/null").unwrap();
        assert!(!came_through_exec(own.as_raw_fd()));
        fcntl_setfd(&own, FdFlags::empty()).unwrap();
        assert!(came_through_exec(own.as_raw_fd()), "nobody can tell any more");
        assert!(!came_through_exec(RawFd::MAX));
    }
}

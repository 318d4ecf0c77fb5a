//! Descriptors that the service manager passes to this process (sd_listen_fds(3)).

use std::ffi::OsString;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
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
/// To be called before this process opens anything: by the protocol, the numbers from 3 on that
/// the environment tells were open before it began.
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
            // SAFETY: the kernel answers EBADF for a number that is not open; nothing else is done
            // with it then.
            let open = unsafe { BorrowedFd::borrow_raw(fd) };
            fcntl_setfd(open, FdFlags::CLOEXEC).ok()?;
            // SAFETY: it is open, as the call above shows, and was so before this process opened
            // anything; it has not been taken before, for TAKEN was not set.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            Some((names.next().unwrap_or(NAMELESS).to_owned(), fd))
        })
        .collect()
}

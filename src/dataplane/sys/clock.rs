//! Whether the machine's clock is kept right.

use std::io;

/// Whether something (NTP, the hypervisor) keeps the clock right: the kernel's `STA_UNSYNC` is not
/// set.
///
/// # Errors
/// What `adjtimex` reports; reading needs no capability.
pub fn is_synchronised() -> io::Result<bool> {
    // SAFETY: timex is a C structure of integers; all zeros is valid, and with no modes set the
    // call only reads the clock's state into it.
    let state = unsafe {
        let mut timex: libc::timex = std::mem::zeroed();
        libc::adjtimex(&raw mut timex)
    };
    match state {
        -1 => Err(io::Error::last_os_error()),
        state => Ok(state != libc::TIME_ERROR),
    }
}

//! Looking again for a moment before going to sleep.
//!
//! Waking a thread costs more than carrying a packet: the CPU has to leave its idle state, which
//! on a virtual machine is a trip through the hypervisor. So a thread that has just worked looks
//! for more a while before it sleeps, and gives its turn away (`sched_yield`) between two looks,
//! so that a busy host loses nothing by it (docs/decisions/008).
#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::thread::yield_now;
use std::time::{Duration, Instant};

use super::sys::poll::{Ready, StopSignal};

/// How long one thread goes on looking.
#[derive(Clone, Copy, Debug)]
pub(super) struct BusyPoll {
    window: Duration,
}

impl BusyPoll {
    /// Looks again for `window` after the last packet; not at all if that is zero.
    pub(super) fn new(window: Duration) -> BusyPoll {
        BusyPoll { window }
    }

    /// Which of `fds` hold something: at once if the thread is `busy` with something else, else
    /// after looking again for the window, or waiting. Who is busy with its only descriptor does
    /// not look at all.
    #[inline]
    pub(super) fn look<'fd, I>(self, stop: &'fd StopSignal, fds: I, busy: bool) -> Ready
    where
        I: ExactSizeIterator<Item = BorrowedFd<'fd>> + Clone,
    {
        if busy && fds.len() == 1 {
            return Ready::default();
        }
        if !busy && self.window.is_zero() {
            return stop.wait_any(fds);
        }
        let mut idle_since = None;
        loop {
            let found = stop.look(fds.clone());
            if busy || !found.is_empty() {
                return found;
            }
            let now = Instant::now();
            if !self.looks_again(*idle_since.get_or_insert(now), now) {
                return stop.wait_any(fds);
            }
            yield_now();
        }
    }

    /// There was nothing since `idle_since`: whether to look again rather than to sleep.
    #[inline]
    fn looks_again(self, idle_since: Instant, now: Instant) -> bool {
        now.saturating_duration_since(idle_since) < self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_for_the_window_and_then_until_there_was_work_no_more() {
        let window = Duration::from_micros(50);
        let (busy_poll, start) = (BusyPoll::new(window), Instant::now());
        assert!(busy_poll.looks_again(start, start));
        assert!(busy_poll.looks_again(start, start + window / 2));
        assert!(!busy_poll.looks_again(start, start + window));
        assert!(!busy_poll.looks_again(start, start + 9 * window));
        assert!(busy_poll.looks_again(start + 10 * window, start + 10 * window));
    }

    #[test]
    fn a_window_of_zero_never_looks_again() {
        let now = Instant::now();
        assert!(!BusyPoll::new(Duration::ZERO).looks_again(now, now));
    }

    #[test]
    fn who_was_woken_looks_again_afterwards() {
        let stop = StopSignal::new().unwrap();
        let busy_poll = BusyPoll::new(Duration::from_nanos(1));
        std::thread::scope(|scope| {
            scope.spawn(|| stop.set());
            assert!(!busy_poll.look(&stop, std::iter::empty(), false).is_empty());
        });
        let now = Instant::now();
        assert!(busy_poll.looks_again(now, now));
    }
}

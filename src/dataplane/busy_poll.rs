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
#[derive(Debug)]
pub(super) struct BusyPoll {
    window: Duration,
    idle_since: Option<Instant>,
}

impl BusyPoll {
    /// Looks again for `window` after the last packet; not at all if that is zero.
    pub(super) fn new(window: Duration) -> BusyPoll {
        BusyPoll { window, idle_since: None }
    }

    /// Which of `fds` hold something: at once if the thread is `busy` with something else, else
    /// after looking again for the window, or waiting.
    #[inline]
    pub(super) fn look<'fd, I>(&mut self, stop: &'fd StopSignal, fds: I, busy: bool) -> Ready
    where
        I: Iterator<Item = BorrowedFd<'fd>> + Clone,
    {
        loop {
            let found = stop.look(fds.clone());
            if busy || !found.is_empty() {
                self.idle_since = None;
                return found;
            }
            if !self.looks_again(Instant::now()) {
                self.idle_since = None;
                return stop.wait_any(fds);
            }
            yield_now();
        }
    }

    /// There was nothing at `now`: whether to look again rather than to sleep.
    #[inline]
    fn looks_again(&mut self, now: Instant) -> bool {
        if self.window.is_zero() {
            return false;
        }
        let since = *self.idle_since.get_or_insert(now);
        now.saturating_duration_since(since) < self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_for_the_window_and_then_until_there_was_work_no_more() {
        let window = Duration::from_micros(50);
        let (mut busy_poll, start) = (BusyPoll::new(window), Instant::now());
        assert!(busy_poll.looks_again(start));
        assert!(busy_poll.looks_again(start + window / 2));
        assert!(!busy_poll.looks_again(start + window));
        assert!(!busy_poll.looks_again(start + 9 * window));
        busy_poll.idle_since = None;
        assert!(busy_poll.looks_again(start + 10 * window));
    }

    #[test]
    fn a_window_of_zero_never_looks_again() {
        assert!(!BusyPoll::new(Duration::ZERO).looks_again(Instant::now()));
    }

    #[test]
    fn who_was_woken_looks_again_afterwards() {
        let stop = StopSignal::new().unwrap();
        let mut busy_poll = BusyPoll::new(Duration::from_nanos(1));
        std::thread::scope(|scope| {
            scope.spawn(|| stop.set());
            assert!(!busy_poll.look(&stop, std::iter::empty(), false).is_empty());
        });
        let now = Instant::now();
        assert!(busy_poll.looks_again(now));
    }
}

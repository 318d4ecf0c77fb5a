//! Waiting for a descriptor, and being told to stop meanwhile.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

/// Tells every data-path thread to stop.
#[derive(Debug)]
pub struct StopSignal {
    /// Stays readable once it was set: wakes threads that wait.
    eventfd: OwnedFd,
    /// The same for threads that never wait, at the price of a load.
    set: AtomicBool,
}

/// Why [`StopSignal::wait_writable`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The descriptor is ready, or has an error that the next call on it reports.
    Ready,
    /// The thread shall stop.
    Stop,
}

/// Descriptors that one thread watches at most.
pub const POLL_MAX: usize = 63;

/// Which descriptors hold something: a bit for each, and the highest for the stop signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready(u64);

impl StopSignal {
    /// A signal that is not set.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<StopSignal> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(StopSignal { eventfd, set: AtomicBool::new(false) })
    }

    /// Sets the signal, for good.
    pub fn set(&self) {
        self.set.store(true, Relaxed);
        // Adding 1 to an eventfd fails only when the sum would overflow: then it is set already.
        let _ = rustix::io::write(&self.eventfd, &1_u64.to_ne_bytes());
    }

    /// Waits until `fd` can be written.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub fn wait_writable(&self, fd: impl AsFd) -> io::Result<Wake> {
        let mut fds = [PollFd::new(&fd, PollFlags::OUT), PollFd::new(&self.eventfd, PollFlags::IN)];
        loop {
            match poll(&mut fds, None) {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(_) if !fds[1].revents().is_empty() => return Ok(Wake::Stop),
                Ok(_) => return Ok(Wake::Ready),
            }
        }
    }

    /// Waits a moment, or until the signal is set: for an error that nobody can wait out, so that
    /// it cannot become a busy loop.
    #[cold]
    pub fn pause(&self) {
        const MOMENT: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
        let _ = poll(&mut [PollFd::new(&self.eventfd, PollFlags::IN)], Some(&MOMENT));
    }

    /// Which of several descriptors hold something now. Those beyond [`POLL_MAX`] are left out.
    #[inline]
    pub fn look<'fd>(&'fd self, fds: impl Iterator<Item = BorrowedFd<'fd>>) -> Ready {
        self.poll_all(fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
    }

    /// Waits until one of several descriptors holds something or the signal is set. Those beyond
    /// [`POLL_MAX`] are left out.
    pub fn wait_any<'fd>(&'fd self, fds: impl Iterator<Item = BorrowedFd<'fd>>) -> Ready {
        self.poll_all(fds, None)
    }

    /// `poll`, not `epoll`: that would stay in the wait queue of each descriptor, and be woken by
    /// each packet that comes while the thread is busy (docs/decisions/009).
    #[inline]
    fn poll_all<'fd>(
        &'fd self,
        fds: impl Iterator<Item = BorrowedFd<'fd>>,
        timeout: Option<&Timespec>,
    ) -> Ready {
        let mut fds = fds.take(POLL_MAX).fuse();
        let mut count = 0;
        let mut polled: [PollFd<'_>; POLL_MAX + 1] = std::array::from_fn(|_| {
            let fd = fds.next().inspect(|_| count += 1);
            PollFd::from_borrowed_fd(fd.unwrap_or(self.eventfd.as_fd()), PollFlags::IN)
        });
        // The first that is none of the caller's is the signal.
        let polled = &mut polled[..=count];
        match poll(polled, timeout) {
            // An interruption counts as nothing being ready: the callers look again.
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return self.all_of(count),
        }
        let mut ready = 0;
        for (index, fd) in polled.iter().enumerate() {
            let bit = if index == count { POLL_MAX } else { index };
            ready |= u64::from(!fd.revents().is_empty()) << bit;
        }
        Ready(ready)
    }

    /// That which of `count` descriptors hold something cannot be known: each may, a moment later.
    /// So it is where memory is short, or the limit on descriptors (`RLIMIT_NOFILE`) was lowered
    /// below their number.
    #[cold]
    fn all_of(&self, count: usize) -> Ready {
        const MOMENT: Duration = Duration::from_millis(1);
        std::thread::sleep(MOMENT);
        Ready(((1 << count) - 1) | (u64::from(self.is_set()) << POLL_MAX))
    }

    /// Whether the signal is set.
    #[inline]
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.set.load(Relaxed)
    }
}

/// Waits until `fd` can be written, up to `deadline` at most; says whether it can, or has an error
/// that the next call on it reports.
pub fn wait_writable_until(fd: impl AsFd, deadline: Instant) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::OUT)];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // More seconds than the kernel counts are none here.
        match poll(&mut fds, Some(&Timespec::try_from(left).unwrap_or_default())) {
            Err(Errno::INTR) => {}
            ready => return ready.is_ok_and(|count| count > 0),
        }
    }
}

impl Ready {
    /// Whether nothing is ready.
    #[inline]
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the descriptor of that number is.
    #[inline]
    #[must_use]
    pub fn contains(self, index: usize) -> bool {
        index < POLL_MAX && self.0 & 1 << index != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_wakes_a_thread_that_waits() {
        let stop = StopSignal::new().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        assert_eq!(stop.wait_writable(&writer).unwrap(), Wake::Ready);
        assert!(!stop.is_set());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| stop.wait_any(std::iter::once(reader.as_fd())));
            stop.set();
            assert!(!waiting.join().unwrap().is_empty());
        });
        assert!(stop.is_set());
        assert_eq!(stop.wait_writable(&writer).unwrap(), Wake::Stop);
    }

    #[test]
    fn a_deadline_ends_the_wait_for_what_stays_full() {
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        assert!(wait_writable_until(&writer, Instant::now()));
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        while rustix::io::write(&writer, &[0; 65_536]).is_ok() {}
        let deadline = Instant::now() + Duration::from_millis(10);
        assert!(!wait_writable_until(&writer, deadline));
        assert!(Instant::now() >= deadline);
        assert!(!wait_writable_until(&writer, deadline));
    }

    #[test]
    fn it_tells_who_of_many_holds_something() {
        let stop = StopSignal::new().unwrap();
        let (first, _first_writer) = rustix::pipe::pipe().unwrap();
        let (second, writer) = rustix::pipe::pipe().unwrap();
        let both = || [first.as_fd(), second.as_fd()].into_iter();
        assert!(stop.look(both()).is_empty());
        rustix::io::write(&writer, b"x").unwrap();
        let ready = stop.wait_any(both());
        assert!(!ready.contains(0) && ready.contains(1) && !ready.contains(2));
        rustix::io::read(&second, &mut [0; 1]).unwrap();
        assert!(stop.look(both()).is_empty());
        stop.set();
        let ready = stop.wait_any(both());
        assert!(!ready.is_empty() && (0..=POLL_MAX).all(|index| !ready.contains(index)));
    }

    #[test]
    fn more_than_it_can_watch_does_not_hide_the_signal() {
        let stop = StopSignal::new().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let many = || std::iter::repeat_n(reader.as_fd(), 2 * POLL_MAX);
        rustix::io::write(&writer, b"x").unwrap();
        assert!((0..POLL_MAX).all(|index| stop.look(many()).contains(index)));
        rustix::io::read(&reader, &mut [0; 1]).unwrap();
        stop.set();
        assert!(!stop.wait_any(many()).is_empty());
    }
}

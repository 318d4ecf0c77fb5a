//! Waiting for a descriptor, and being told to stop meanwhile.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

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

/// Why [`StopSignal::wait`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The descriptor is ready, or has an error that the next call on it reports.
    Ready,
    /// The thread shall stop.
    Stop,
}

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

    /// Waits until `fd` can be read.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub fn wait_readable(&self, fd: impl AsFd) -> io::Result<Wake> {
        self.wait(fd, PollFlags::IN)
    }

    /// Waits until `fd` can be written.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub fn wait_writable(&self, fd: impl AsFd) -> io::Result<Wake> {
        self.wait(fd, PollFlags::OUT)
    }

    /// Waits a moment, or until the signal is set: for an error that nobody can wait out, so that
    /// it cannot become a busy loop.
    #[cold]
    pub fn pause(&self) {
        const MOMENT: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
        let _ = poll(&mut [PollFd::new(&self.eventfd, PollFlags::IN)], Some(&MOMENT));
    }

    fn wait(&self, fd: impl AsFd, interest: PollFlags) -> io::Result<Wake> {
        let mut fds = [PollFd::new(&fd, interest), PollFd::new(&self.eventfd, PollFlags::IN)];
        loop {
            match poll(&mut fds, None) {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(_) if !fds[1].revents().is_empty() => return Ok(Wake::Stop),
                Ok(_) => return Ok(Wake::Ready),
            }
        }
    }

    /// Whether the signal is set.
    #[inline]
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.set.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_wakes_a_thread_that_waits_for_data() {
        let stop = StopSignal::new().unwrap();
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert!(!stop.is_set());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| stop.wait_readable(&reader).unwrap());
            stop.set();
            assert_eq!(waiting.join().unwrap(), Wake::Stop);
        });
        assert!(stop.is_set());
        assert_eq!(stop.wait_readable(&reader).unwrap(), Wake::Stop);
    }

    #[test]
    fn data_wakes_the_thread() {
        let stop = StopSignal::new().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&writer, b"x").unwrap();
        assert_eq!(stop.wait_readable(&reader).unwrap(), Wake::Ready);
    }
}

//! Waiting for a descriptor, and being told to stop meanwhile.
#![forbid(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
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

/// Watches several descriptors of which each may hold something, and the stop signal.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

/// Descriptors that one poller watches at most.
pub const POLLER_MAX: usize = 63;

/// In [`Ready`]: the stop signal.
const STOP: u64 = POLLER_MAX as u64;

/// Which descriptors hold something: a bit for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready(u64);

impl Poller {
    /// A poller of `stop` alone.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new(stop: &StopSignal) -> io::Result<Poller> {
        let poller = Poller { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? };
        poller.add(&stop.eventfd, STOP)?;
        Ok(poller)
    }

    /// Watches `fd` for something to read, under the number `index`.
    ///
    /// # Errors
    /// When the kernel has no memory for it; `InvalidInput` for an index of [`POLLER_MAX`] or more.
    pub fn watch(&self, fd: impl AsFd, index: usize) -> io::Result<()> {
        if index >= POLLER_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.add(fd, index as u64)
    }

    fn add(&self, fd: impl AsFd, number: u64) -> io::Result<()> {
        let data = epoll::EventData::new_u64(number);
        Ok(epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)?)
    }

    /// Which descriptors hold something now.
    #[inline]
    #[must_use]
    pub fn look(&self) -> Ready {
        self.wait_for(Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
    }

    /// Waits until a descriptor holds something or the signal is set.
    #[must_use]
    pub fn wait(&self) -> Ready {
        self.wait_for(None)
    }

    #[inline]
    fn wait_for(&self, timeout: Option<&Timespec>) -> Ready {
        // The kernel takes turns among more than these.
        let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; 16];
        // A signal interrupts the wait, as if nothing were ready; there is no other way to fail.
        let ready = match epoll::wait(&self.epoll, &mut events[..], timeout) {
            Ok((events, _)) => events.iter().fold(0, |mask, event| mask | 1 << event.data.u64()),
            Err(_) => 0,
        };
        Ready(ready)
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
        index < POLLER_MAX && self.0 & 1 << index != 0
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

    #[test]
    fn a_poller_tells_who_holds_something() {
        let stop = StopSignal::new().unwrap();
        let poller = Poller::new(&stop).unwrap();
        let (first, _first_writer) = rustix::pipe::pipe().unwrap();
        let (second, writer) = rustix::pipe::pipe().unwrap();
        poller.watch(&first, 0).unwrap();
        poller.watch(&second, 1).unwrap();
        assert!(poller.look().is_empty());
        rustix::io::write(&writer, b"x").unwrap();
        let ready = poller.wait();
        assert!(!ready.contains(0) && ready.contains(1));
        rustix::io::read(&second, &mut [0; 1]).unwrap();
        assert!(poller.look().is_empty());
        stop.set();
        let ready = poller.wait();
        assert!(!ready.is_empty() && !ready.contains(0) && !ready.contains(1));
    }

    #[test]
    fn a_poller_refuses_a_number_that_it_cannot_tell() {
        let stop = StopSignal::new().unwrap();
        let poller = Poller::new(&stop).unwrap();
        assert!(poller.watch(&stop.eventfd, POLLER_MAX).is_err());
        assert!(!poller.look().contains(POLLER_MAX));
    }
}

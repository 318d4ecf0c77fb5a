//! The threads of the data path: starting, stopping, joining them.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tracing::info;

use super::egress::Egress;
use super::ingress::Ingress;
use super::routes::SharedRoutes;
use super::stats::Stats;
use super::sys::poll::StopSignal;
use super::sys::socket::{Sharing, SocketError, UdpSocket, UdpWish};
use super::sys::tun::{Tun, TunOffload};

/// How much of what arrives is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceCheck {
    /// Everything is delivered, as flannel does.
    Off,
    /// Only from peers, for our subnet, and no inner source that is another peer's.
    Peer,
    /// Besides, no inner source outside the overlay network.
    Strict,
}

/// What both directions need to know.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The largest inner packet, in bytes.
    pub mtu: u16,
    /// What is checked on arrival.
    pub source_check: SourceCheck,
    /// How long a thread looks for more packets before it sleeps.
    pub busy_poll: Duration,
    /// One packet per system call: the plain loop of a kernel without any help.
    pub one_by_one: bool,
}

/// How wide a data path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Width {
    /// Queues of the TUN device, and UDP source ports: the flows are spread over them, and a flow
    /// waits for those that share its queue only. With 1, the packets leave by the port where
    /// datagrams arrive, as flannel's do.
    pub queues: usize,
    /// Pairs of threads, one for each direction, which share out the queues.
    pub pairs: usize,
}

/// Sockets that share the port, at most: flows of different source ports mostly arrive in
/// different ones. Each has a receive buffer.
const MAX_RECEIVERS: usize = 8;

/// The sockets of a data path.
#[derive(Debug)]
pub struct Sockets {
    receivers: Vec<Arc<UdpSocket>>,
    /// One for each queue of the device: a flow keeps its queue, and so its source port, by which
    /// network cards and receivers tell flows apart. The receiving one if there is one queue.
    senders: Vec<Arc<UdpSocket>>,
    pairs: usize,
}

impl Sockets {
    /// Binds to `address` what a data path of this width needs, or takes what the process before
    /// `left` open, if it is the same.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(
        address: SocketAddrV4,
        wish: UdpWish,
        width: Width,
        left: Vec<OwnedFd>,
    ) -> Result<Sockets, SocketError> {
        let pairs = width.pairs.clamp(1, width.queues.max(1));
        let count = width.queues.clamp(1, MAX_RECEIVERS.max(pairs));
        let sharing = if count == 1 { Sharing::Never } else { Sharing::Group };
        let adopted: Option<Vec<_>> = (left.len() == count)
            .then(|| left.into_iter().map(|fd| UdpSocket::adopt(fd, address, wish, sharing)))
            .and_then(Iterator::collect);
        let receivers = match adopted {
            Some(receivers) => receivers,
            None => bind_group(address, wish, sharing, count)?,
        };
        let pairs = pairs.min(receivers.len());
        let receivers: Vec<_> = receivers.into_iter().map(Arc::new).collect();
        let senders = match sharing {
            Sharing::Never => receivers.clone(),
            Sharing::Group => (0..width.queues)
                .map(|_| UdpSocket::sender(*address.ip(), wish).map(Arc::new))
                .collect::<Result<_, _>>()?,
        };
        Ok(Sockets { receivers, senders, pairs })
    }

    /// Those that receive.
    pub fn receivers(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.receivers.iter().map(|socket| socket.as_fd())
    }

    /// Bytes of all receive buffers that the kernel granted, its own book-keeping included.
    #[must_use]
    pub fn receive_buffer_bytes(&self) -> usize {
        self.receivers.iter().map(|socket| socket.receive_buffer_bytes()).sum()
    }
}

/// Binds so many sockets to one address, or one if the kernel cannot do that; none if another process
/// has one there.
fn bind_group(
    address: SocketAddrV4,
    wish: UdpWish,
    sharing: Sharing,
    count: usize,
) -> Result<Vec<UdpSocket>, SocketError> {
    if sharing == Sharing::Group {
        // Sharing would hide another daemon's sockets: this one finds them.
        drop(UdpSocket::bind(address, wish, Sharing::Never)?);
    }
    match (0..count).map(|_| UdpSocket::bind(address, wish, sharing)).collect() {
        Err(error @ SocketError::NoSharing(_)) => {
            info!("{error}: one socket and one pair of threads receive everything");
            Ok(vec![UdpSocket::bind(address, wish, Sharing::Never)?])
        }
        bound => bound,
    }
}

/// What the threads of one pair share.
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) tun: Arc<Tun>,
    /// Of the sockets that receive, those of this pair: one at least.
    pub(super) receivers: Vec<Arc<UdpSocket>>,
    pub(super) stats: Arc<Stats>,
    pub(super) stop: Arc<StopSignal>,
}

/// Why a thread ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// It was told to.
    Stopped,
    /// The TUN device was deleted.
    DeviceGone,
}

/// A running data path. Dropping it stops its threads.
#[derive(Debug)]
pub struct Dataplane {
    tun: Arc<Tun>,
    stop: Arc<StopSignal>,
    threads: Vec<JoinHandle<()>>,
    stats: Arc<Stats>,
}

/// Notes the panic of the thread that it lives on.
struct PanicNote(Arc<Stats>);

impl Drop for PanicNote {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.panicked.store(true, Relaxed);
        }
    }
}

impl Dataplane {
    /// Starts the pairs of threads, and shares queues and sockets out among them.
    ///
    /// When the device is deleted from outside, each thread that notices calls `on_device_gone` and
    /// ends: one of egress at once, one of ingress when it has a packet to write. Without any it
    /// stays until it is told to stop.
    ///
    /// # Errors
    /// When there is no descriptor or no thread to be had.
    pub fn start(
        settings: Settings,
        tun: Tun,
        sockets: &Sockets,
        routes: &SharedRoutes,
        stats: &Arc<Stats>,
        on_device_gone: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Dataplane> {
        let rungs = &stats.rungs;
        let offload = tun.offload();
        rungs.tun_tso.store(offload >= TunOffload::Tso, Relaxed);
        rungs.tun_uso.store(offload >= TunOffload::TsoUso, Relaxed);
        rungs.merging.store(offload >= TunOffload::Tso, Relaxed);
        rungs.udp_gso.store(sockets.senders.iter().all(|socket| socket.segments()), Relaxed);
        rungs.udp_gro.store(sockets.receivers.iter().all(|socket| socket.merges()), Relaxed);

        let (tun, stop) = (Arc::new(tun), Arc::new(StopSignal::new()?));
        stats.panicked.store(false, Relaxed);
        let mut dataplane = Dataplane {
            tun: Arc::clone(&tun),
            stop: Arc::clone(&stop),
            threads: Vec::new(),
            stats: Arc::clone(stats),
        };
        let on_device_gone = Arc::new(on_device_gone);
        let ended = move |exit: Exit| {
            if exit == Exit::DeviceGone {
                on_device_gone();
            }
        };
        for pair in 0..sockets.pairs {
            let mine = |count| (pair..count).step_by(sockets.pairs);
            let receivers =
                mine(sockets.receivers.len()).map(|n| Arc::clone(&sockets.receivers[n])).collect();
            // A device without offload has one queue, whatever was wished.
            let queues = mine(tun.queues().min(sockets.senders.len()))
                .map(|queue| (queue, Arc::clone(&sockets.senders[queue])))
                .collect();
            let shared = Shared {
                settings,
                tun: Arc::clone(&tun),
                receivers,
                stats: Arc::clone(stats),
                stop: Arc::clone(&stop),
            };
            let ingress = Ingress::new(&shared, routes.reader());
            let egress = Egress::new(&shared, queues, routes.reader());
            let (egress_ended, ingress_ended) = (ended.clone(), ended.clone());
            // Thread names are cut to 15 bytes in /proc and ps.
            dataplane.spawn("flannel-egress", pair, move || egress_ended(egress.run()))?;
            dataplane.spawn("flannel-ingress", pair, move || ingress_ended(ingress.run()))?;
        }
        Ok(dataplane)
    }

    /// The queues of its device.
    pub fn queues(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        (0..self.tun.queues()).map(|queue| self.tun.queue(queue))
    }

    /// Has the device stay when this process ends.
    ///
    /// # Errors
    /// See [`Tun::set_persistent`].
    pub fn persist_device(&self) -> io::Result<()> {
        self.tun.set_persistent(true)
    }

    fn spawn(
        &mut self,
        name: &str,
        pair: usize,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let name = if pair == 0 { name.to_owned() } else { format!("{name}{pair}") };
        let note = PanicNote(Arc::clone(&self.stats));
        self.threads.push(thread::Builder::new().name(name).spawn(move || {
            let _note = note;
            body();
        })?);
        Ok(())
    }

    /// Stops the threads like [`Dataplane::stop`], and lets the kernel remove the device.
    pub fn stop_and_remove_device(self) {
        // An error means that there is no device any more.
        let _ = self.tun.set_persistent(false);
        self.stop();
    }

    /// Stops the threads and waits for them: each ends with the batch that it is at. A device that
    /// persists stays, for the next daemon to take over.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.set();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                // The panic hook has printed where and why.
                tracing::error!("a data-path thread panicked");
            }
        }
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.end();
    }
}

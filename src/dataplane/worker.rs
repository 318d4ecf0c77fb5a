//! The threads of the data path: starting, stopping, joining them.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::egress::Egress;
use super::ingress::Ingress;
use super::routes::SharedRoutes;
use super::stats::Stats;
use super::sys::poll::StopSignal;
use super::sys::socket::UdpSocket;
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
    stop: Arc<StopSignal>,
    threads: Vec<JoinHandle<()>>,
}

impl Dataplane {
    /// Starts one thread per direction. When the device is deleted from outside both end, and
    /// `on_device_gone` is called by each.
    ///
    /// # Errors
    /// When there is no descriptor or no thread to be had.
    pub fn start(
        settings: Settings,
        tun: Tun,
        socket: Arc<UdpSocket>,
        routes: &SharedRoutes,
        stats: &Arc<Stats>,
        on_device_gone: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<Dataplane> {
        let rungs = &stats.rungs;
        rungs.tun_tso.store(tun.offload() >= TunOffload::Tso, Relaxed);
        rungs.tun_uso.store(tun.offload() >= TunOffload::TsoUso, Relaxed);
        rungs.merging.store(tun.offload() >= TunOffload::Tso, Relaxed);
        rungs.udp_gso.store(socket.segments(), Relaxed);
        rungs.udp_gro.store(socket.merges(), Relaxed);

        let tun = Arc::new(tun);
        let mut dataplane = Dataplane { stop: Arc::new(StopSignal::new()?), threads: Vec::new() };
        let on_device_gone = Arc::new(on_device_gone);
        let ended = move |exit: Exit| {
            if exit == Exit::DeviceGone {
                on_device_gone();
            }
        };
        let (stop, reader) = (&dataplane.stop, || routes.reader());
        let egress = Egress::new(
            settings,
            Arc::clone(&tun),
            Arc::clone(&socket),
            reader(),
            Arc::clone(stats),
            Arc::clone(stop),
        );
        let ingress =
            Ingress::new(settings, tun, socket, reader(), Arc::clone(stats), Arc::clone(stop));
        let egress_ended = ended.clone();
        // Thread names are cut to 15 bytes in /proc and ps.
        dataplane.spawn("flannel-egress", move || egress_ended(egress.run()))?;
        dataplane.spawn("flannel-ingress", move || ended(ingress.run()))?;
        Ok(dataplane)
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.threads.push(thread::Builder::new().name(name.to_owned()).spawn(body)?);
        Ok(())
    }

    /// Stops the threads and waits for them: each ends with the batch that it is at.
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

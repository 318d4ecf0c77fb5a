//! The TUN device: opening it, its offloads, one packet in, one packet out.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use libc::{c_uint, iovec};
use rustix::fs::{Mode, OFlags};
use thiserror::Error;

use crate::dataplane::offload::limits::{TCP_MERGE_MAX_SEGMENTS, VNET_HDR_BYTES};

/// The most pieces of one write: virtio header, head, and a body per merged packet.
const MAX_PIECES: usize = 2 + TCP_MERGE_MAX_SEGMENTS;

/// What of a device's flags tells how it was opened.
const SHAPE_FLAGS: libc::c_int =
    libc::IFF_TUN | libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;

/// What the TUN device may do for us, from much to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TunOffload {
    /// One packet per call, every checksum complete, no header in front: any kernel.
    None,
    /// TCP superpackets and partial checksums.
    Tso,
    /// UDP superpackets besides (Linux 6.2).
    TsoUso,
}

/// Why the device could not be opened.
#[derive(Debug, Error)]
pub enum TunError {
    /// `/dev/net/tun` is missing.
    #[error(
        "/dev/net/tun does not exist: load the driver with `modprobe tun`, or, in a container, \
         pass the device in"
    )]
    NoDriver,
    /// No right to make devices.
    #[error(
        "may not create the TUN device {name}: flanneld needs CAP_NET_ADMIN (run it as root), \
         and read and write permission on /dev/net/tun"
    )]
    NotPermitted {
        /// The wanted name.
        name: String,
    },
    /// Another program holds that name.
    #[error(
        "the device name {name} is taken by something else: stop the other daemon, delete the \
         device with `ip link delete {name}`, or choose another name with --tun-name"
    )]
    NameTaken {
        /// The wanted name.
        name: String,
    },
    /// Anything else.
    #[error("cannot create the TUN device {name}: {source}")]
    Other {
        /// The wanted name.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// An open TUN device, with a descriptor for each of its queues. The kernel removes it when the
/// last descriptor is closed, unless it [persists](Tun::set_persistent).
#[derive(Debug)]
pub struct Tun {
    queues: Vec<OwnedFd>,
    name: String,
    offload: TunOffload,
}

impl Tun {
    /// Creates the device with the most offload up to `most` that this kernel has, and so many
    /// queues: the kernel spreads the flows over them. Without offload it has one.
    ///
    /// `name` may hold `%d`, which the kernel replaces by the first free number. A device of that
    /// name that persists, and has the shape that [`Tun::shape`] tells, is attached to.
    ///
    /// # Errors
    /// See [`TunError`].
    pub fn create(name: &str, most: TunOffload, queues: usize) -> Result<Tun, TunError> {
        if most == TunOffload::None {
            return Tun::open(name, false);
        }
        let mut tun =
            if queues > 1 { Tun::open_queues(name, queues)? } else { Tun::open(name, true)? };
        // The offloads are the device's, whichever queue they are set by.
        tun.offload = probe_offload(tun.queue(0), most);
        if tun.offload == TunOffload::None {
            // There is nothing that the header could say: open without it. The device of the
            // first try goes with its descriptors, also if an earlier daemon left it. An error
            // means that it never persisted.
            let _ = tun.set_persistent(false);
            drop(tun);
            return Tun::open(name, false);
        }
        Ok(tun)
    }

    /// The device that these are the queues of, as an earlier process left them open, if it has the
    /// shape that [`Tun::shape`] tells. Otherwise they are closed.
    #[must_use]
    pub fn adopt(queues: Vec<OwnedFd>, most: TunOffload, count: usize) -> Option<Tun> {
        let (multi_queue, with_header) = Tun::shape(most, count);
        let mut wanted = libc::IFF_TUN | libc::IFF_NO_PI;
        wanted |= if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
        wanted |= if with_header { libc::IFF_VNET_HDR } else { 0 };
        let (name, _) = interface_of(queues.first()?.as_fd())?;
        let fits = |fd: &OwnedFd| {
            interface_of(fd.as_fd())
                .is_some_and(|(its, flags)| its == name && flags & SHAPE_FLAGS == wanted)
        };
        if !queues.iter().all(fits) || queues.len() != if multi_queue { count } else { 1 } {
            return None;
        }
        let offload = match most {
            TunOffload::None => TunOffload::None,
            most => probe_offload(queues[0].as_fd(), most),
        };
        ((offload != TunOffload::None) == with_header).then_some(Tun { queues, name, offload })
    }

    /// Whether a device for this wish has several queues, and a virtio header.
    #[must_use]
    pub fn shape(most: TunOffload, queues: usize) -> (bool, bool) {
        let with_header = most != TunOffload::None;
        (with_header && queues > 1, with_header)
    }

    fn open(name: &str, with_header: bool) -> Result<Tun, TunError> {
        let mut configuration = tun::Configuration::default();
        configuration.tun_name(name).platform_config(|platform| {
            // Addresses, MTU and routes are set by netlink (`host::netlink`), not by this crate.
            platform.vnet_hdr(with_header).ensure_root_privileges(false);
        });
        let explain = |error: tun::Error| explain(name, io::Error::from(error));
        let device = tun::create(&configuration).map_err(explain)?;
        let given = tun::AbstractDevice::tun_name(&device).map_err(explain)?;
        // SAFETY: into_raw_fd gives up ownership of an open descriptor, which nobody else holds.
        let fd = unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) };
        rustix::io::ioctl_fionbio(&fd, true).map_err(|errno| self::explain(name, errno.into()))?;
        Ok(Tun { queues: vec![fd], name: given, offload: TunOffload::None })
    }

    /// The `tun` crate has no queues (since 0.7), so these are opened here.
    fn open_queues(name: &str, queues: usize) -> Result<Tun, TunError> {
        let (first, given) = open_queue(name).map_err(|error| explain(name, error))?;
        let mut tun = Tun { queues: vec![first], name: given, offload: TunOffload::None };
        while tun.queues.len() < queues {
            let (queue, _) = open_queue(&tun.name).map_err(|error| explain(name, error))?;
            tun.queues.push(queue);
        }
        Ok(tun)
    }

    /// Whether the device, with its addresses and routes, stays when its last descriptor is closed.
    ///
    /// # Errors
    /// What the kernel reports; nothing that an open device is known to meet.
    pub fn set_persistent(&self, persistent: bool) -> io::Result<()> {
        let fd = self.queue(0).as_raw_fd();
        // SAFETY: TUNSETPERSIST takes its argument by value (drivers/net/tun.c, __tun_chr_ioctl).
        match unsafe { libc::ioctl(fd, libc::TUNSETPERSIST, libc::c_ulong::from(persistent)) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The name that the kernel gave.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the kernel agreed to.
    #[must_use]
    pub fn offload(&self) -> TunOffload {
        self.offload
    }

    /// How many queues the device has: 1 at least.
    #[must_use]
    pub fn queues(&self) -> usize {
        self.queues.len()
    }

    /// The descriptor of one queue, counted from 0.
    #[must_use]
    pub fn queue(&self, queue: usize) -> BorrowedFd<'_> {
        self.queues[queue].as_fd()
    }

    /// The queue that packets of the flow with this number are written to. What answers them comes
    /// out of the same one: the kernel remembers it (drivers/net/tun.c, tun_flow_update).
    #[inline]
    #[must_use]
    pub fn queue_of(&self, flow: u32) -> usize {
        ((u64::from(flow) * self.queues.len() as u64) >> 32) as usize
    }

    /// Reads from `queue` one packet or superpacket behind its virtio header into `buffer`; returns
    /// the bytes of both. A device without the header gets one of zeros.
    ///
    /// # Errors
    /// What `read` reports; `WouldBlock` when nothing waits.
    #[inline]
    pub fn read(&self, queue: usize, buffer: &mut [u8]) -> io::Result<usize> {
        let fd = &self.queues[queue];
        if self.offload != TunOffload::None {
            return Ok(rustix::io::read(fd, buffer)?);
        }
        let (header, packet) =
            buffer.split_at_mut_checked(VNET_HDR_BYTES).ok_or(io::ErrorKind::InvalidInput)?;
        let bytes = rustix::io::read(fd, packet)?;
        header.fill(0);
        Ok(VNET_HDR_BYTES + bytes)
    }
}

/// Opens one queue of a device, which is made if there is none of that name, or attached to if it
/// has many queues.
fn open_queue(name: &str) -> io::Result<(OwnedFd, String)> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
    // SAFETY: ifreq is a C structure of integers and pointers; all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq (drivers/net/tun.c, __tun_chr_ioctl).
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((fd, name_in(&request)))
}

/// The name of the device that a descriptor is a queue of, and its `IFF_` flags; none if there is no
/// such device.
fn interface_of(fd: BorrowedFd<'_>) -> Option<(String, libc::c_int)> {
    // SAFETY: as in open_queue.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one ifreq (drivers/net/tun.c, __tun_chr_ioctl). What is no TUN
    // descriptor refuses it.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) } != 0 {
        return None;
    }
    // SAFETY: the flags are the part of the union that TUNGETIFF fills.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Some((name_in(&request), libc::c_int::from(flags as u16)))
}

fn name_in(request: &libc::ifreq) -> String {
    let name = request.ifr_name.iter().map(|&byte| byte as u8).take_while(|&byte| byte != 0);
    String::from_utf8_lossy(&name.collect::<Vec<u8>>()).into_owned()
}

/// Asks for the offloads by setting them: USO in a second step, since a kernel that does not know
/// it refuses the whole mask.
fn probe_offload(fd: BorrowedFd<'_>, most: TunOffload) -> TunOffload {
    let tso = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    let uso = tso | libc::TUN_F_USO4 | libc::TUN_F_USO6;
    if !set_offload(fd, tso) {
        return TunOffload::None;
    }
    if most == TunOffload::TsoUso && set_offload(fd, uso) {
        return TunOffload::TsoUso;
    }
    TunOffload::Tso
}

fn set_offload(fd: BorrowedFd<'_>, mask: c_uint) -> bool {
    // SAFETY: TUNSETOFFLOAD takes its argument by value (drivers/net/tun.c, __tun_chr_ioctl).
    unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(mask)) == 0 }
}

fn explain(name: &str, source: io::Error) -> TunError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => TunError::NoDriver,
        Some(libc::EPERM | libc::EACCES) => TunError::NotPermitted { name },
        // Busy: attached by another process. Invalid: a device of another kind has the name.
        Some(libc::EBUSY | libc::EINVAL | libc::EEXIST) => TunError::NameTaken { name },
        _ => TunError::Other { name, source },
    }
}

/// The array that `writev` reads, allocated once and used for ever.
pub struct TunWriter {
    pieces: Box<[iovec]>,
}

// SAFETY: the pointers in `pieces` are only valid, and only used, while a `TunWrite` borrows them.
unsafe impl Send for TunWriter {}

impl TunWriter {
    /// Room for the pieces of the largest merged packet.
    #[must_use]
    pub fn new() -> TunWriter {
        let none = iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        TunWriter { pieces: vec![none; MAX_PIECES].into() }
    }

    /// Gathers one packet for a queue of `tun`: its virtio header, which is left out if the device has none,
    /// and the pieces of the packet.
    #[inline]
    pub fn gather<'w, 'data>(
        &'w mut self,
        tun: &'w Tun,
        queue: usize,
        vnet_hdr: &'data [u8; VNET_HDR_BYTES],
        packet: impl IntoIterator<Item = &'data [u8]>,
    ) -> TunWrite<'w, 'data> {
        let with_header = tun.offload != TunOffload::None;
        let header = with_header.then_some(vnet_hdr.as_slice());
        let mut write = TunWrite {
            writer: self,
            tun,
            queue,
            count: 0,
            bytes: 0,
            fits: true,
            data: PhantomData,
        };
        for piece in header.into_iter().chain(packet) {
            let Some(slot) = write.writer.pieces.get_mut(write.count) else {
                write.fits = false;
                break;
            };
            *slot = iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() };
            write.count += 1;
            write.bytes += piece.len();
        }
        write
    }
}

impl Default for TunWriter {
    fn default() -> TunWriter {
        TunWriter::new()
    }
}

/// One packet that is ready to be written; borrows its pieces.
pub struct TunWrite<'w, 'data> {
    writer: &'w mut TunWriter,
    tun: &'w Tun,
    queue: usize,
    count: usize,
    bytes: usize,
    fits: bool,
    data: PhantomData<&'data [u8]>,
}

impl TunWrite<'_, '_> {
    /// Writes the packet by one `writev`; may be called again when that failed.
    ///
    /// # Errors
    /// What `writev` reports; `InvalidInput` for more pieces than any merged packet has, and
    /// `WriteZero` if the kernel took a part only, which a TUN device never does.
    #[inline]
    pub fn write(&mut self) -> io::Result<()> {
        if !self.fits {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: the first `count` entries point at slices that live for 'data; writev only reads
        // from them.
        let written = unsafe {
            libc::writev(
                self.tun.queue(self.queue).as_raw_fd(),
                self.writer.pieces.as_ptr(),
                self.count as libc::c_int,
            )
        };
        match usize::try_from(written) {
            Err(_) => Err(io::Error::last_os_error()),
            Ok(written) if written < self.bytes => Err(io::ErrorKind::WriteZero.into()),
            Ok(_) => Ok(()),
        }
    }
}

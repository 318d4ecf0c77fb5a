//! The UDP socket: creating, tuning and probing it.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use libc::c_int;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use thiserror::Error;

/// Bytes of socket buffer that are asked for, each way: 10 Gbit/s for 5 ms, the time that a busy
/// two-core host may leave our thread waiting for its turn. The kernel doubles the figure for its
/// own book-keeping.
pub const SOCKET_BUFFER_BYTES: usize = 6 << 20;

/// The same for each socket of a group, which gets a part of the traffic: a flood must fill all of
/// them to take the most memory.
const GROUP_BUFFER_BYTES: usize = 3 << 20;

/// Figures of `SO_MEMINFO` (include/uapi/linux/sock_diag.h), up to the drops.
const SK_MEMINFO_VARS: usize = libc::SK_MEMINFO_DROPS as usize + 1;

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another program listens there.
    #[error(
        "UDP port {0} is in use: stop the other daemon (`ss -ulpn` shows it), or set another \
         Backend.Port in the network config of all hosts"
    )]
    InUse(SocketAddrV4),
    /// The kernel cannot give several sockets one address.
    #[error("this kernel cannot share UDP port {0} among several sockets (SO_REUSEPORT)")]
    NoSharing(SocketAddrV4),
    /// The address is not on this host.
    #[error("{0} is no address of this host: check --iface and --public-ip")]
    NoSuchAddress(SocketAddrV4),
    /// Anything else.
    #[error("cannot open the UDP socket {address}: {source}")]
    Other {
        /// Where it should listen.
        address: SocketAddrV4,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The bound socket and what the kernel can do for it.
#[derive(Debug)]
pub struct UdpSocket {
    fd: OwnedFd,
    segments: bool,
    merges: bool,
    /// What the kernel had dropped there when it was last counted.
    drops: AtomicU32,
}

/// Which of the kernel's services to ask for.
#[derive(Clone, Copy, Debug)]
pub struct UdpWish {
    /// Segment what we send (`UDP_SEGMENT`, Linux 4.18).
    pub gso: bool,
    /// Merge what we receive (`UDP_GRO`, Linux 5.0).
    pub gro: bool,
}

/// Whether other sockets may have the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// None.
    Never,
    /// Those that say so too: the kernel spreads the senders over them (`SO_REUSEPORT`, Linux 3.9).
    Group,
}

impl UdpSocket {
    /// A socket on a free port of `address` that only sends: what arrives there is dropped by the
    /// kernel, for nobody reads it.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn sender(address: Ipv4Addr, wish: UdpWish) -> Result<UdpSocket, SocketError> {
        let address = SocketAddrV4::new(address, 0);
        let socket = UdpSocket::bind(address, UdpWish { gro: false, ..wish }, Sharing::Never)?;
        // The classic BPF program "return 0": keep nothing of any packet.
        let drop_all = [SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, 0)];
        let socket_ref = socket2::SockRef::from(&socket.fd);
        if socket_ref.attach_filter(&drop_all).is_err() {
            // Then the smallest buffer there is fills, once. What the kernel says to this as well
            // costs memory only.
            let _ = socket_ref.set_recv_buffer_size(0);
        }
        Ok(socket)
    }

    /// Binds to `address` and asks the kernel for what is wished.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(
        address: SocketAddrV4,
        wish: UdpWish,
        sharing: Sharing,
    ) -> Result<UdpSocket, SocketError> {
        let explain = |source: io::Error| match source.raw_os_error() {
            Some(libc::EADDRINUSE) => SocketError::InUse(address),
            Some(libc::EADDRNOTAVAIL) => SocketError::NoSuchAddress(address),
            _ => SocketError::Other { address, source },
        };
        // socket2 sets close-on-exec.
        let socket =
            Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).map_err(explain)?;
        if sharing == Sharing::Group {
            socket.set_reuse_port(true).map_err(|_| SocketError::NoSharing(address))?;
        }
        socket.bind(&address.into()).map_err(explain)?;
        socket.set_nonblocking(true).map_err(explain)?;

        Ok(UdpSocket::tuned(socket, wish, sharing))
    }

    /// A socket that an earlier process left open, if it is what [`UdpSocket::bind`] would make.
    /// Otherwise it is closed.
    #[must_use]
    pub fn adopt(
        fd: OwnedFd,
        address: SocketAddrV4,
        wish: UdpWish,
        sharing: Sharing,
    ) -> Option<UdpSocket> {
        let socket = Socket::from(fd);
        let fits = socket.r#type().ok()? == Type::DGRAM
            && socket.local_addr().ok()?.as_socket_ipv4() == Some(address)
            && socket.reuse_port().ok()? == (sharing == Sharing::Group);
        if !fits {
            return None;
        }
        let merged = get(&socket, libc::SOL_UDP, libc::UDP_GRO).is_ok_and(|[value]| value != 0);
        let drops = drops_so_far(&socket);
        let socket = UdpSocket { drops, ..UdpSocket::tuned(socket, wish, sharing) };
        // What waits there was merged or not, whatever the option is from now on.
        (socket.merges == merged).then_some(socket)
    }

    /// Asks the kernel for what is wished.
    fn tuned(socket: Socket, wish: UdpWish, sharing: Sharing) -> UdpSocket {
        for (force, plain) in
            [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
        {
            let bytes = match sharing {
                Sharing::Never => SOCKET_BUFFER_BYTES as c_int,
                Sharing::Group => GROUP_BUFFER_BYTES as c_int,
            };
            // Without CAP_NET_ADMIN the sysctl's limit holds: smaller bursts survive, no more.
            let _ = set(&socket, libc::SOL_SOCKET, force, bytes)
                .or_else(|_| set(&socket, libc::SOL_SOCKET, plain, bytes));
        }
        // Tells what the kernel dropped here; only a figure, so a kernel without it is no trouble.
        let _ = set(&socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1);

        // What a narrow path does not carry, its routers shall cut: if they dropped it, many could
        // not say so, for ICMP is often filtered (decision 018). Never fails since Linux 2.2.
        let _ = set(&socket, libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT);
        // Tells what was cut, so that its sender can be told (Linux 4.10).
        let _ = set(&socket, libc::SOL_IP, libc::IP_RECVFRAGSIZE, 1);

        // 0 is what the option is anyway, so the probe leaves nothing behind.
        let segments = wish.gso && set(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok();
        let merges = wish.gro && set(&socket, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
        UdpSocket { fd: socket.into(), segments, merges, drops: AtomicU32::new(0) }
    }

    /// How many of the `drops` of a message that was received here have not been counted yet. One
    /// thread at a time may ask.
    #[inline]
    #[must_use]
    pub fn uncounted(&self, drops: u32) -> u32 {
        let new = drops.wrapping_sub(self.drops.load(Relaxed));
        // A message that waited when the socket was adopted tells an older figure.
        if new > u32::MAX / 2 {
            return 0;
        }
        self.drops.store(drops, Relaxed);
        new
    }

    /// Whether the kernel knows `UDP_SEGMENT`, and it was wished.
    #[must_use]
    pub fn segments(&self) -> bool {
        self.segments
    }

    /// Whether the kernel merges for us with `UDP_GRO`, and it was wished.
    #[must_use]
    pub fn merges(&self) -> bool {
        self.merges
    }

    /// Bytes of the receive buffer that the kernel granted, its own book-keeping included.
    #[must_use]
    pub fn receive_buffer_bytes(&self) -> usize {
        socket2::SockRef::from(&self.fd).recv_buffer_size().unwrap_or(0)
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What the kernel has dropped at an open socket (`SO_MEMINFO`, Linux 4.12; before, what an earlier
/// process saw dropped is counted again).
fn drops_so_far(socket: &Socket) -> AtomicU32 {
    let figures = get::<SK_MEMINFO_VARS>(socket, libc::SOL_SOCKET, libc::SO_MEMINFO);
    let drops = figures.map_or(0, |figures| figures[libc::SK_MEMINFO_DROPS as usize]);
    AtomicU32::new(drops.cast_unsigned())
}

/// Reads an option that consists of `N` ints.
fn get<const N: usize>(socket: &Socket, level: c_int, option: c_int) -> io::Result<[c_int; N]> {
    let mut value = [0; N];
    let mut length = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to a live array of that size, and the length
    // to a live integer.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

fn set(socket: &Socket, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the kernel reads sizeof(c_int) bytes of a live c_int.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: UdpWish = UdpWish { gso: true, gro: true };

    #[test]
    fn a_port_in_use_is_named() {
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let first = UdpSocket::bind(any, BOTH, Sharing::Never).unwrap();
        let address = address_of(&first);
        let error = UdpSocket::bind(address, BOTH, Sharing::Never).unwrap_err();
        assert!(error.to_string().contains(&format!("UDP port {address} is in use")), "{error}");
    }

    #[test]
    fn a_foreign_address_is_named() {
        let foreign = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 0);
        let error = UdpSocket::bind(foreign, BOTH, Sharing::Never).unwrap_err();
        assert!(error.to_string().contains("192.0.2.1:0 is no address of this host"), "{error}");
    }

    #[test]
    fn what_is_not_wished_is_not_used() {
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let socket =
            UdpSocket::bind(any, UdpWish { gso: false, gro: false }, Sharing::Never).unwrap();
        assert!(!socket.segments() && !socket.merges());
    }

    #[test]
    fn only_a_group_shares_a_port() {
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let first = UdpSocket::bind(any, BOTH, Sharing::Group).unwrap();
        let address = address_of(&first);
        let second = UdpSocket::bind(address, BOTH, Sharing::Group).unwrap();
        assert_eq!(address_of(&second), address);
        let stranger = UdpSocket::bind(address, BOTH, Sharing::Never);
        assert!(matches!(stranger, Err(SocketError::InUse(_))));
    }

    #[test]
    fn nothing_is_queued_at_a_sender() {
        let sender = UdpSocket::sender(Ipv4Addr::LOCALHOST, BOTH).unwrap();
        let other = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        other.send_to(b"x", address_of(&sender)).unwrap();
        // Loopback has delivered, or dropped, when the call returns.
        assert_eq!(rustix::io::ioctl_fionread(&sender.fd).unwrap(), 0);
        assert!(!sender.merges());
    }

    fn address_of(socket: &UdpSocket) -> SocketAddrV4 {
        socket2::SockRef::from(&socket.fd).local_addr().unwrap().as_socket_ipv4().unwrap()
    }
}

//! The UDP socket: creating, tuning and probing it.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libc::c_int;
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

/// Bytes of socket buffer that are asked for, each way: 10 Gbit/s for 5 ms, the time that a busy
/// two-core host may leave our thread waiting for its turn. The kernel doubles the figure for its
/// own book-keeping.
pub const SOCKET_BUFFER_BYTES: usize = 6 << 20;

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another program listens there.
    #[error(
        "UDP port {0} is in use: stop the other daemon (`ss -ulpn` shows it), or set another \
         Backend.Port in the network config of all hosts"
    )]
    InUse(SocketAddrV4),
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
}

/// Which of the kernel's services to ask for.
#[derive(Clone, Copy, Debug)]
pub struct UdpWish {
    /// Segment what we send (`UDP_SEGMENT`, Linux 4.18).
    pub gso: bool,
    /// Merge what we receive (`UDP_GRO`, Linux 5.0).
    pub gro: bool,
}

impl UdpSocket {
    /// Binds to `address` and asks the kernel for what is wished.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(address: SocketAddrV4, wish: UdpWish) -> Result<UdpSocket, SocketError> {
        let explain = |source: io::Error| match source.raw_os_error() {
            Some(libc::EADDRINUSE) => SocketError::InUse(address),
            Some(libc::EADDRNOTAVAIL) => SocketError::NoSuchAddress(address),
            _ => SocketError::Other { address, source },
        };
        // socket2 sets close-on-exec.
        let socket =
            Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).map_err(explain)?;
        socket.bind(&address.into()).map_err(explain)?;
        socket.set_nonblocking(true).map_err(explain)?;

        for (force, plain) in
            [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
        {
            let bytes = SOCKET_BUFFER_BYTES as c_int;
            // Without CAP_NET_ADMIN the sysctl's limit holds: smaller bursts survive, no more.
            let _ = set(&socket, libc::SOL_SOCKET, force, bytes)
                .or_else(|_| set(&socket, libc::SOL_SOCKET, plain, bytes));
        }
        // Counts what the kernel dropped because the buffer was full; only a figure, so a kernel
        // without it is no trouble.
        let _ = set(&socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1);

        // 0 is what the option is anyway, so the probe leaves nothing behind.
        let segments = wish.gso && set(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok();
        let merges = wish.gro && set(&socket, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok();
        Ok(UdpSocket { fd: socket.into(), segments, merges })
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
    use std::net::Ipv4Addr;

    use super::*;

    const BOTH: UdpWish = UdpWish { gso: true, gro: true };

    #[test]
    fn a_port_in_use_is_named() {
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let first = UdpSocket::bind(any, BOTH).unwrap();
        let address =
            socket2::SockRef::from(&first.fd).local_addr().unwrap().as_socket_ipv4().unwrap();
        let error = UdpSocket::bind(address, BOTH).unwrap_err();
        assert!(error.to_string().contains(&format!("UDP port {address} is in use")), "{error}");
    }

    #[test]
    fn a_foreign_address_is_named() {
        let foreign = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 0);
        let error = UdpSocket::bind(foreign, BOTH).unwrap_err();
        assert!(error.to_string().contains("192.0.2.1:0 is no address of this host"), "{error}");
    }

    #[test]
    fn what_is_not_wished_is_not_used() {
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let socket = UdpSocket::bind(any, UdpWish { gso: false, gro: false }).unwrap();
        assert!(!socket.segments() && !socket.merges());
    }
}

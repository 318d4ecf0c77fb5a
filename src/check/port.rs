//! Who listens on a UDP port.

use std::net::SocketAddrV4;
use std::path::PathBuf;

/// A process that has a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) pid: u32,
    /// Its name in `ps`.
    pub(super) name: String,
}

/// The process that holds `address`, or the port on all addresses; `None` if it is not to be seen
/// from here.
pub(super) fn holder(address: SocketAddrV4) -> Option<Holder> {
    let table = std::fs::read_to_string("/proc/net/udp").ok()?;
    let wanted: Vec<PathBuf> =
        sockets(&table, address).map(|inode| PathBuf::from(format!("socket:[{inode}]"))).collect();
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let descriptors = std::fs::read_dir(process.path().join("fd")).into_iter().flatten();
        let holds = descriptors.flatten().any(|descriptor| {
            std::fs::read_link(descriptor.path()).is_ok_and(|target| wanted.contains(&target))
        });
        if holds {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(Holder { pid, name: name.trim().to_owned() });
        }
    }
    None
}

/// The inodes of the sockets in `/proc/net/udp` that are in the way of `address`.
fn sockets(table: &str, address: SocketAddrV4) -> impl Iterator<Item = &str> {
    table.lines().skip(1).filter_map(move |line| {
        let mut fields = line.split_whitespace();
        let (ip, port) = fields.nth(1)?.split_once(':')?;
        // The address is printed as a number of the machine's own byte order.
        let ip = u32::from_str_radix(ip, 16).ok()?.to_ne_bytes();
        let same = ip == address.ip().octets() || ip == [0; 4];
        (same && u16::from_str_radix(port, 16).ok()? == address.port())
            .then(|| fields.nth(7))
            .flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_port_is_found() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let std::net::SocketAddr::V4(address) = socket.local_addr().unwrap() else {
            panic!("bound to IPv4")
        };
        assert_eq!(holder(address).map(|holder| holder.pid), Some(std::process::id()));
        drop(socket);
        assert_eq!(holder(SocketAddrV4::new(*address.ip(), 0)), None);
    }
}

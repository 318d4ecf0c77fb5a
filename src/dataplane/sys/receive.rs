//! Receiving a batch of datagrams, or trains of datagrams, with one `recvmmsg`.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd};

use libc::{c_uint, iovec, mmsghdr, sockaddr_in};

use super::cmsg::{self, ReceiveControl};

/// One received message: a datagram, or a train of datagrams that the kernel merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where it begins in the slab, in bytes.
    pub offset: usize,
    /// Its length, in bytes.
    pub len: usize,
    /// The length of each datagram of the train; the last one may be shorter. Never 0.
    pub stride: usize,
    /// Who sent it.
    pub source: SocketAddrV4,
    /// It was longer than its slot and is cut.
    pub truncated: bool,
    /// How many datagrams, or trains, the kernel had dropped at the socket when this one was queued:
    /// because the buffer was full, or the UDP checksum wrong.
    pub kernel_drops: Option<u32>,
    /// The size of the largest fragment in bytes, IP header included, if it came in several: the
    /// path carries no more.
    pub fragment_bytes: Option<u16>,
}

/// The slab and the arrays that `recvmmsg` fills, allocated once and used for ever.
pub struct Receiver {
    slab: Box<[u8]>,
    slot_bytes: usize,
    messages: Box<[mmsghdr]>,
    names: Box<[sockaddr_in]>,
    controls: Box<[ReceiveControl]>,
    pieces: Box<[iovec]>,
}

// SAFETY: the pointers inside are set anew by each `receive` and used only within it.
unsafe impl Send for Receiver {}

impl Receiver {
    /// Room for `slots` messages of up to `slot_bytes` each.
    #[must_use]
    pub fn new(slots: usize, slot_bytes: usize) -> Receiver {
        // SAFETY: these are C structures of integers and pointers; all zeros is a valid value.
        let (message, name): (mmsghdr, sockaddr_in) = unsafe { (mem::zeroed(), mem::zeroed()) };
        let piece = iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Receiver {
            slab: vec![0; slots * slot_bytes].into(),
            slot_bytes,
            messages: vec![message; slots].into(),
            names: vec![name; slots].into(),
            controls: vec![ReceiveControl([0; cmsg::RECEIVE_BYTES]); slots].into(),
            pieces: vec![piece; slots].into(),
        }
    }

    /// Receives what waits, up to one message per slot, and returns how many came.
    ///
    /// # Errors
    /// What the kernel said; `WouldBlock` when nothing waits.
    #[inline]
    pub fn receive(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let slots = self.slab.chunks_exact_mut(self.slot_bytes);
        for (i, slot) in slots.enumerate() {
            self.pieces[i] = iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
            let header = &mut self.messages[i].msg_hdr;
            header.msg_iov = &raw mut self.pieces[i];
            header.msg_iovlen = 1;
            header.msg_name = (&raw mut self.names[i]).cast();
            // The kernel overwrites both lengths, so each call sets them anew.
            header.msg_namelen = size_of::<sockaddr_in>() as libc::socklen_t;
            header.msg_control = self.controls[i].0.as_mut_ptr().cast();
            header.msg_controllen = cmsg::RECEIVE_BYTES as _;
        }
        // SAFETY: every pointer was just set to an array of `self`, which is borrowed exclusively;
        // the lengths beside them are those of the arrays.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                self.messages.as_mut_ptr(),
                self.messages.len() as c_uint,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// The message in slot `index`, one that the last [`Receiver::receive`] filled.
    #[inline]
    #[must_use]
    pub fn message(&self, index: usize) -> Message {
        let header = &self.messages[index].msg_hdr;
        let len = (self.messages[index].msg_len as usize).min(self.slot_bytes);
        // On 32-bit targets this length is no usize.
        #[allow(clippy::unnecessary_cast)]
        let control_bytes = (header.msg_controllen as usize).min(cmsg::RECEIVE_BYTES);
        let control = cmsg::parse(&self.controls[index].0[..control_bytes]);
        let name = &self.names[index];
        Message {
            offset: index * self.slot_bytes,
            len,
            // 0 or more than there is would be a kernel's mistake; it must not become our loop.
            stride: control.stride_bytes.unwrap_or(len).clamp(1, len.max(1)),
            source: SocketAddrV4::new(
                Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr)),
                u16::from_be(name.sin_port),
            ),
            truncated: header.msg_flags & libc::MSG_TRUNC != 0,
            kernel_drops: control.dropped,
            fragment_bytes: control.fragment_bytes,
        }
    }

    /// All slots.
    #[inline]
    #[must_use]
    pub fn slab(&self) -> &[u8] {
        &self.slab
    }

    /// All slots, to be changed in place.
    #[inline]
    pub fn slab_mut(&mut self) -> &mut [u8] {
        &mut self.slab
    }
}

#[cfg(test)]
mod tests {
    use super::super::send::Sender;
    use super::super::socket::{Sharing, UdpSocket, UdpWish};
    use super::*;

    fn pair(gso: bool, gro: bool) -> (UdpSocket, UdpSocket, SocketAddrV4) {
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let a = UdpSocket::bind(any, UdpWish { gso, gro }, Sharing::Never).unwrap();
        let b = UdpSocket::bind(any, UdpWish { gso, gro }, Sharing::Never).unwrap();
        let to = socket2::SockRef::from(&b).local_addr().unwrap().as_socket_ipv4().unwrap();
        (a, b, to)
    }

    /// Everything that was sent, datagram by datagram. Loopback delivers before `send` returns.
    fn drain(receiver: &mut Receiver, socket: &UdpSocket) -> Vec<Vec<u8>> {
        let mut datagrams = Vec::new();
        while let Ok(count) = receiver.receive(socket) {
            for message in (0..count).map(|i| receiver.message(i)) {
                let bytes = &receiver.slab()[message.offset..][..message.len];
                datagrams.extend(bytes.chunks(message.stride).map(<[u8]>::to_vec));
            }
        }
        datagrams
    }

    #[test]
    fn a_batch_of_runs_arrives_datagram_by_datagram() {
        for gro in [false, true] {
            let (a, b, to) = pair(true, gro);
            let mut sender = Sender::new(4, 16);
            let (head, body, tail) = ([1_u8; 20], [2_u8; 80], [3_u8; 50]);
            let mut batch = sender.batch();
            assert!(batch.push(to, Some(100), [&head[..], &body, &head, &body, &tail]));
            assert!(batch.push(to, None, [&tail[..]]));
            assert_eq!(batch.send(&a, 0).unwrap(), 2);
            let datagrams = drain(&mut Receiver::new(8, 65_536), &b);
            let whole = [&head[..], &body].concat();
            assert_eq!(datagrams, [whole.clone(), whole, tail.to_vec(), tail.to_vec()]);
        }
    }

    #[test]
    fn a_send_resumes_behind_the_message_that_failed() {
        let (a, b, to) = pair(true, false);
        let mut sender = Sender::new(4, 16);
        let payload = [7_u8; 32];
        let nowhere = SocketAddrV4::new(Ipv4Addr::BROADCAST, 9); // EACCES without SO_BROADCAST
        let mut batch = sender.batch();
        for peer in [to, nowhere, to] {
            assert!(batch.push(peer, None, [&payload[..]]));
        }
        assert_eq!(batch.send(&a, 0).unwrap(), 1);
        assert_eq!(batch.send(&a, 1).unwrap_err().raw_os_error(), Some(libc::EACCES));
        assert_eq!(batch.send(&a, 2).unwrap(), 1);
        assert_eq!(batch.send(&a, 3).unwrap(), 0);
        assert_eq!(drain(&mut Receiver::new(8, 2048), &b).len(), 2);
    }

    #[test]
    fn a_full_batch_refuses_and_keeps_what_it_has() {
        let (a, b, to) = pair(false, false);
        let mut sender = Sender::new(2, 3);
        let payload = [7_u8; 32];
        let mut batch = sender.batch();
        assert!(batch.push(to, None, [&payload[..], &payload]));
        assert!(!batch.push(to, None, [&payload[..], &payload]), "too many pieces");
        assert!(batch.push(to, None, [&payload[..]]));
        assert!(!batch.push(to, None, [&payload[..]]), "too many messages");
        assert_eq!(batch.len(), 2);
        assert_eq!(batch.send(&a, 0).unwrap(), 2);
        let lengths: Vec<usize> =
            drain(&mut Receiver::new(8, 2048), &b).iter().map(Vec::len).collect();
        assert_eq!(lengths, [64, 32]);
    }

    #[test]
    fn a_datagram_longer_than_its_slot_is_marked() {
        let (a, b, to) = pair(false, false);
        let mut sender = Sender::new(1, 1);
        let mut batch = sender.batch();
        assert!(batch.push(to, None, [&[7_u8; 2000][..]]));
        assert_eq!(batch.send(&a, 0).unwrap(), 1);
        let mut receiver = Receiver::new(4, 1473);
        assert_eq!(receiver.receive(&b).unwrap(), 1);
        let message = receiver.message(0);
        assert!(message.truncated);
        assert_eq!((message.len, message.stride), (1473, 1473));
    }

    #[test]
    fn an_empty_datagram_is_no_endless_train() {
        let (a, b, to) = pair(false, true);
        let mut sender = Sender::new(1, 1);
        let mut batch = sender.batch();
        assert!(batch.push(to, None, []));
        assert_eq!(batch.send(&a, 0).unwrap(), 1);
        let mut receiver = Receiver::new(4, 65_536);
        assert_eq!(receiver.receive(&b).unwrap(), 1);
        assert_eq!((receiver.message(0).len, receiver.message(0).stride), (0, 1));
    }

    #[test]
    fn what_an_earlier_process_saw_dropped_is_not_counted() {
        let any = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let wish = UdpWish { gso: false, gro: false };
        let first = UdpSocket::bind(any, wish, Sharing::Never).unwrap();
        let socket_ref = socket2::SockRef::from(&first);
        let address = socket_ref.local_addr().unwrap().as_socket_ipv4().unwrap();
        let other = std::net::UdpSocket::bind(any).unwrap();
        let send = |times| (0..times).for_each(|_| _ = other.send_to(b"x", address).unwrap());
        let mut receiver = Receiver::new(8, 64);
        let mut uncounted = |socket: &UdpSocket| {
            let mut sum = 0;
            while let Ok(count) = receiver.receive(socket) {
                let drops = (0..count).filter_map(|index| receiver.message(index).kernel_drops);
                sum += drops.map(|drops| socket.uncounted(drops)).sum::<u32>();
            }
            sum
        };
        // Dropped, queued with that figure, and dropped again.
        socket_ref.set_recv_buffer_size(0).unwrap();
        send(100);
        assert_eq!(uncounted(&first), 0, "the last one queued knew of no drop");
        send(100);
        let adopted = first.as_fd().try_clone_to_owned().unwrap();
        let second = UdpSocket::adopt(adopted, address, wish, Sharing::Never).unwrap();
        assert_eq!(uncounted(&second), 0);
        send(1);
        assert_eq!(uncounted(&second), 0);

        socket2::SockRef::from(&second).set_recv_buffer_size(0).unwrap();
        send(100);
        uncounted(&second);
        send(1);
        let queued = 100 - uncounted(&second);
        assert!(queued < 50, "{queued}");
    }
}

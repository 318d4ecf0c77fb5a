//! Sending a batch of runs to peers with one `sendmmsg`.

use std::io;
use std::marker::PhantomData;
use std::mem;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, AsRawFd};

use libc::{c_uint, iovec, mmsghdr, sockaddr_in};

use super::cmsg::SegmentSize;

/// The arrays that `sendmmsg` reads, allocated once and used for ever.
pub struct Sender {
    messages: Box<[mmsghdr]>,
    names: Box<[sockaddr_in]>,
    controls: Box<[SegmentSize]>,
    pieces: Box<[iovec]>,
}

// SAFETY: the pointers inside are only valid, and only used, while a `SendBatch` borrows them.
unsafe impl Send for Sender {}

impl Sender {
    /// Room for `messages` runs made of `pieces` slices together.
    #[must_use]
    pub fn new(messages: usize, pieces: usize) -> Sender {
        // SAFETY: these are C structures of integers and pointers; all zeros is a valid value.
        let (message, name): (mmsghdr, sockaddr_in) = unsafe { (mem::zeroed(), mem::zeroed()) };
        let piece = iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Sender {
            messages: vec![message; messages].into(),
            names: vec![name; messages].into(),
            controls: vec![SegmentSize::new(0); messages].into(),
            pieces: vec![piece; pieces].into(),
        }
    }

    /// Starts a new batch; what the last one held is forgotten.
    pub fn batch<'data>(&mut self) -> SendBatch<'_, 'data> {
        SendBatch { sender: self, messages: 0, pieces: 0, data: PhantomData }
    }
}

/// A batch that is being filled and sent; borrows the slices of its messages.
pub struct SendBatch<'s, 'data> {
    sender: &'s mut Sender,
    messages: usize,
    pieces: usize,
    data: PhantomData<&'data [u8]>,
}

impl<'data> SendBatch<'_, 'data> {
    /// Adds one message to `peer`: the slices one after the other, cut by the kernel into
    /// datagrams of `segment_bytes` if that is given. Says whether there was room.
    #[inline]
    pub fn push(
        &mut self,
        peer: SocketAddrV4,
        segment_bytes: Option<u16>,
        slices: impl IntoIterator<Item = &'data [u8]>,
    ) -> bool {
        let index = self.messages;
        let first_piece = self.pieces;
        if index == self.sender.messages.len() {
            return false;
        }
        for slice in slices.into_iter().filter(|slice| !slice.is_empty()) {
            let Some(piece) = self.sender.pieces.get_mut(self.pieces) else {
                self.pieces = first_piece;
                return false;
            };
            *piece = iovec { iov_base: slice.as_ptr().cast_mut().cast(), iov_len: slice.len() };
            self.pieces += 1;
        }
        self.sender.names[index] = sockaddr(peer);
        let header = &mut self.sender.messages[index].msg_hdr;
        header.msg_name = (&raw mut self.sender.names[index]).cast();
        header.msg_namelen = size_of::<sockaddr_in>() as libc::socklen_t;
        header.msg_iov = self.sender.pieces[first_piece..].as_mut_ptr();
        header.msg_iovlen = (self.pieces - first_piece) as _;
        if let Some(bytes) = segment_bytes {
            self.sender.controls[index] = SegmentSize::new(bytes);
            header.msg_control = (&raw mut self.sender.controls[index]).cast();
            header.msg_controllen = SegmentSize::BYTES as _;
        } else {
            header.msg_control = std::ptr::null_mut();
            header.msg_controllen = 0;
        }
        self.messages += 1;
        true
    }

    /// How many messages were pushed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages
    }

    /// Whether none was pushed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Sends the messages from `first` on; returns how many were sent. The next call begins with
    /// `first` plus that, so nothing is sent twice.
    ///
    /// # Errors
    /// What the kernel said about the message `first`.
    #[inline]
    pub fn send(&mut self, socket: impl AsFd, first: usize) -> io::Result<usize> {
        let Some(pending) = self.sender.messages[..self.messages].get_mut(first..) else {
            return Ok(0);
        };
        // SAFETY: each message's pointers were set by `push` and lead to arrays of `sender`, which
        // is borrowed, and to slices that live for 'data; the kernel only reads from them.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_fd().as_raw_fd(),
                pending.as_mut_ptr(),
                pending.len() as c_uint,
                libc::MSG_DONTWAIT as _,
            )
        };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

fn sockaddr(address: SocketAddrV4) -> sockaddr_in {
    sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
        sin_zero: [0; 8],
    }
}

// sendmmsg takes `unsigned int vlen` and clamps it to UIO_MAXIOV (net/socket.c).

//! What each errno means for each descriptor of the data path: one pure table.
//!
//! Nothing here ends the loop: an error is waited out, costs one packet, switches one capability
//! off, or means that the device is gone.
#![forbid(unsafe_code)]

use libc::{
    EAGAIN, EBADF, EBADFD, EINTR, EINVAL, EIO, EMSGSIZE, ENOBUFS, ENODEV, ENOMEM, ENOPROTOOPT,
    ENXIO, EOPNOTSUPP,
};

/// What to do after a failed send to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendVerdict {
    /// Call again: a signal came in between.
    Retry,
    /// Wait until the socket is writable, then call again; a few times, then drop.
    Wait,
    /// The kernel is short of memory: call again a few times, then drop.
    RetryThenDrop,
    /// Send the datagrams of this run one by one; if that happens often, segmentation rests.
    SplitRun,
    /// Send the datagrams of this run one by one, and switch segmentation off for all sockets of
    /// the thread.
    DisableSegmentation,
    /// This destination cannot be reached: drop the run, go on with the next.
    Drop,
}

/// Classifies an errno of `sendmsg` or `sendmmsg` on the UDP socket.
///
/// `segmented`: whether the message carried `UDP_SEGMENT`.
#[must_use]
pub fn on_send(errno: i32, segmented: bool) -> SendVerdict {
    match errno {
        EINTR => SendVerdict::Retry,
        EAGAIN => SendVerdict::Wait,
        ENOBUFS | ENOMEM => SendVerdict::RetryThenDrop,
        // A kernel or filter that does not know the option at all.
        EOPNOTSUPP | ENOPROTOOPT if segmented => SendVerdict::DisableSegmentation,
        // The path to one peer (net/ipv4/udp.c, udp_send_skb): IPsec, or up to 6.10 a device that
        // computes no checksums (EIO); narrower than a segment (EINVAL before 6.14, EMSGSIZE
        // since). Or a limit of this kernel is lower than ours (EINVAL).
        EIO | EINVAL | EMSGSIZE if segmented => SendVerdict::SplitRun,
        _ => SendVerdict::Drop,
    }
}

/// What to do after a failed receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveVerdict {
    /// Call again.
    Retry,
    /// Nothing there: wait for more.
    Wait,
    /// A pending error was reported and cleared: count it and go on.
    Count,
}

/// Classifies an errno of `recvmmsg` on the UDP socket.
#[must_use]
pub fn on_receive(errno: i32) -> ReceiveVerdict {
    match errno {
        EINTR => ReceiveVerdict::Retry,
        EAGAIN => ReceiveVerdict::Wait,
        _ => ReceiveVerdict::Count,
    }
}

/// What to do after a failed read from the TUN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunReadVerdict {
    /// Call again.
    Retry,
    /// Nothing there: wait for more.
    Wait,
    /// The device was deleted: nothing will come from this descriptor any more.
    Gone,
    /// One packet was lost: count it and go on.
    Count,
}

/// Classifies an errno of `read` on the TUN device (`drivers/net/tun.c`).
#[must_use]
pub fn on_tun_read(errno: i32) -> TunReadVerdict {
    match errno {
        EINTR => TunReadVerdict::Retry,
        EAGAIN => TunReadVerdict::Wait,
        EBADFD | EBADF | ENODEV | ENXIO => TunReadVerdict::Gone,
        _ => TunReadVerdict::Count,
    }
}

/// What to do after a failed write to the TUN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunWriteVerdict {
    /// Call again.
    Retry,
    /// Wait until the device takes more, then call again.
    Wait,
    /// The kernel refuses merged packets: write the parts, and merge no more.
    DisableMerging,
    /// The device was deleted.
    Gone,
    /// Drop this packet; the device may be down (`EIO`) or the packet refused.
    Drop,
}

/// Classifies an errno of `writev` on the TUN device (`drivers/net/tun.c`).
///
/// `merged`: whether the packet was merged from several. Kernels with e269d79c7d35 but without
/// 89add40066f9 refuse some of those with `EINVAL`.
#[must_use]
pub fn on_tun_write(errno: i32, merged: bool) -> TunWriteVerdict {
    match errno {
        EINTR => TunWriteVerdict::Retry,
        EAGAIN => TunWriteVerdict::Wait,
        EINVAL if merged => TunWriteVerdict::DisableMerging,
        EBADFD | EBADF | ENODEV | ENXIO => TunWriteVerdict::Gone,
        _ => TunWriteVerdict::Drop,
    }
}

#[cfg(test)]
mod tests {
    use libc::{EACCES, EHOSTUNREACH, ENETDOWN, ENETUNREACH, EPERM};

    use super::*;

    #[test]
    fn one_bad_destination_costs_nobody_else() {
        for errno in [ENETUNREACH, EHOSTUNREACH, ENETDOWN, EPERM, EACCES, 9999] {
            for segmented in [false, true] {
                assert_eq!(on_send(errno, segmented), SendVerdict::Drop, "{errno}");
            }
        }
    }

    #[test]
    fn what_one_path_refuses_splits_the_run_and_keeps_segmentation() {
        for errno in [EIO, EINVAL, EMSGSIZE] {
            assert_eq!(on_send(errno, true), SendVerdict::SplitRun);
            assert_eq!(on_send(errno, false), SendVerdict::Drop);
        }
    }

    #[test]
    fn a_kernel_that_does_not_know_the_option_ends_segmentation() {
        for errno in [EOPNOTSUPP, ENOPROTOOPT] {
            assert_eq!(on_send(errno, true), SendVerdict::DisableSegmentation);
            assert_eq!(on_send(errno, false), SendVerdict::Drop);
        }
    }

    #[test]
    fn pressure_is_waited_out() {
        assert_eq!(on_send(EINTR, true), SendVerdict::Retry);
        assert_eq!(on_send(EAGAIN, true), SendVerdict::Wait);
        assert_eq!(on_send(ENOBUFS, true), SendVerdict::RetryThenDrop);
        assert_eq!(on_receive(EINTR), ReceiveVerdict::Retry);
        assert_eq!(on_receive(EAGAIN), ReceiveVerdict::Wait);
        assert_eq!(on_receive(libc::ECONNREFUSED), ReceiveVerdict::Count);
    }

    #[test]
    fn a_deleted_device_is_told_from_a_bad_packet() {
        for errno in [EBADFD, ENODEV, EBADF, ENXIO] {
            assert_eq!(on_tun_read(errno), TunReadVerdict::Gone);
            assert_eq!(on_tun_write(errno, true), TunWriteVerdict::Gone);
        }
        assert_eq!(on_tun_read(EIO), TunReadVerdict::Count);
        assert_eq!(on_tun_write(EIO, false), TunWriteVerdict::Drop);
        assert_eq!(on_tun_write(EINVAL, true), TunWriteVerdict::DisableMerging);
        assert_eq!(on_tun_write(EINVAL, false), TunWriteVerdict::Drop);
    }
}

//! Control messages: the segment size of a send; the stride, the drop count and the size of the
//! fragments of a receive.

use std::mem;

use libc::{c_int, cmsghdr};

/// Space for the one control message of a send: `UDP_SEGMENT`, a `u16`.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct SegmentSize {
    header: cmsghdr,
    segment_bytes: u16,
    /// `CMSG_SPACE` rounds up to the header's alignment; the kernel wants the rest zeroed.
    padding: [u16; 3],
}

impl SegmentSize {
    pub(super) const BYTES: usize = size_of::<SegmentSize>();

    pub(super) fn new(segment_bytes: u16) -> SegmentSize {
        // SAFETY: cmsghdr holds integers only; all zeros is a valid value on every libc.
        let mut header: cmsghdr = unsafe { mem::zeroed() };
        // SAFETY: CMSG_LEN is arithmetic on a constant.
        header.cmsg_len = unsafe { libc::CMSG_LEN(size_of::<u16>() as u32) } as _;
        header.cmsg_level = libc::SOL_UDP;
        header.cmsg_type = libc::UDP_SEGMENT;
        SegmentSize { header, segment_bytes, padding: [0; 3] }
    }
}

/// Bytes of control data that one received message may carry: `UDP_GRO` and `IP_RECVFRAGSIZE`, an
/// `int` each, and `SO_RXQ_OVFL`, a `u32`; aligned as the kernel aligns them.
pub(super) const RECEIVE_BYTES: usize = 3 * (size_of::<cmsghdr>() + 8);

/// A buffer of that size.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct ReceiveControl(pub(super) [u8; RECEIVE_BYTES]);

/// What the control messages of one received message said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Bytes of each merged datagram but the last; `None` if nothing was merged.
    pub stride_bytes: Option<usize>,
    /// How many datagrams the socket dropped since it was made.
    pub dropped: Option<u32>,
    /// Bytes of the largest fragment, IP header included; `None` if it came in one piece.
    pub fragment_bytes: Option<u16>,
}

/// Walks the control messages in `control`, the part that the kernel filled.
///
/// The layout is `struct cmsghdr` of `include/linux/socket.h`: a length that counts the header,
/// level, type, data; the next one starts at the next multiple of the word size. Of two messages of
/// one type the later holds.
pub fn parse(control: &[u8]) -> Received {
    const HEADER: usize = size_of::<cmsghdr>();
    const WORD: usize = size_of::<usize>();
    let mut received = Received::default();
    let mut rest = control;
    while let Some((header, after)) = rest.split_at_checked(HEADER) {
        let (length, level_and_type) = header.split_at(WORD);
        let length = usize::from_ne_bytes(array(length));
        let level = c_int::from_ne_bytes(array(&level_and_type[..4]));
        let kind = c_int::from_ne_bytes(array(&level_and_type[4..]));
        let Some(data) = length.checked_sub(HEADER).and_then(|bytes| after.get(..bytes)) else {
            break;
        };
        match (level, kind) {
            (libc::SOL_UDP, libc::UDP_GRO) if data.len() >= 4 => {
                received.stride_bytes = usize::try_from(c_int::from_ne_bytes(array(data))).ok();
            }
            (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) if data.len() >= 4 => {
                received.dropped = Some(u32::from_ne_bytes(array(data)));
            }
            (libc::SOL_IP, libc::IP_RECVFRAGSIZE) if data.len() >= 4 => {
                received.fragment_bytes = u16::try_from(c_int::from_ne_bytes(array(data))).ok();
            }
            _ => {}
        }
        let Some(next) = rest.get(length.next_multiple_of(WORD)..) else { break };
        rest = next;
    }
    received
}

/// The first `N` bytes; zeros where there are fewer.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.first_chunk().copied().unwrap_or([0; N])
}

// The layout that `parse` walks and `SegmentSize` writes.
const _: () = {
    assert!(size_of::<cmsghdr>() == size_of::<usize>() + 8);
    // SAFETY: CMSG_SPACE is arithmetic on a constant.
    assert!(SegmentSize::BYTES == unsafe { libc::CMSG_SPACE(2) } as usize);
    // SAFETY: as above.
    assert!(RECEIVE_BYTES == 3 * unsafe { libc::CMSG_SPACE(4) } as usize);
};

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize, level: c_int, kind: c_int, data: &[u8]) -> Vec<u8> {
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn all_messages_are_found_in_any_order() {
        let gro = message(20, libc::SOL_UDP, libc::UDP_GRO, &1452_i32.to_ne_bytes());
        let drops = message(20, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, &7_u32.to_ne_bytes());
        let fragment = message(20, libc::SOL_IP, libc::IP_RECVFRAGSIZE, &1396_i32.to_ne_bytes());
        let want =
            Received { stride_bytes: Some(1452), dropped: Some(7), fragment_bytes: Some(1396) };
        assert_eq!(parse(&[&gro[..], &drops, &fragment].concat()), want);
        assert_eq!(parse(&[&fragment[..], &drops, &gro].concat()), want);
    }

    #[test]
    fn nonsense_ends_the_walk() {
        assert_eq!(parse(&[]), Received::default());
        assert_eq!(parse(&[0; 40]), Received::default());
        let wraps = message(usize::MAX, libc::SOL_UDP, libc::UDP_GRO, &[1; 4]);
        assert_eq!(parse(&wraps), Received::default());
        let short = message(18, libc::SOL_UDP, libc::UDP_GRO, &[1; 2]);
        assert_eq!(parse(&short), Received::default());
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_are_harmless(bytes in proptest::collection::vec(0_u8..=255, 0..96)) {
            parse(&bytes);
        }
    }
}

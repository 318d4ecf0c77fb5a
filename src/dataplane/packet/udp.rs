//! The UDP header (RFC 768): a checked view.
#![forbid(unsafe_code)]

use super::{Malformed, be16, be32};

/// Length of the header, in bytes.
pub const HEADER_BYTES: usize = 8;

/// A datagram whose UDP header was checked for its length field; not for its checksum.
#[derive(Clone, Copy, Debug)]
pub struct UdpView<'a> {
    fixed: &'a [u8; HEADER_BYTES],
    /// The datagram, cut to the length that its header claims.
    datagram: &'a [u8],
}

impl<'a> UdpView<'a> {
    /// Checks that `bytes`, the whole payload of an IP packet, begin with a UDP header.
    ///
    /// The slice may be longer than the datagram; what that means is the caller's decision.
    ///
    /// # Errors
    /// [`Malformed`] for a length field below 8 or beyond the slice.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let Some(fixed) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(Malformed::Truncated {
                header: "UDP",
                needed: HEADER_BYTES,
                got: bytes.len(),
            });
        };
        let length = usize::from(be16(fixed, 4));
        match bytes.get(..length) {
            Some(datagram) if length >= HEADER_BYTES => Ok(Self { fixed, datagram }),
            _ => Err(Malformed::Length { header: "UDP", claimed: length, got: bytes.len() }),
        }
    }

    /// Source and destination port as they stand in the header.
    #[inline]
    pub fn ports(&self) -> u32 {
        be32(self.fixed, 0)
    }

    /// Length of header and data, in bytes.
    #[inline]
    pub fn length(&self) -> usize {
        self.datagram.len()
    }

    /// The checksum field; 0 means that the sender computed none (RFC 768).
    #[inline]
    pub fn checksum(&self) -> u16 {
        be16(self.fixed, 6)
    }

    /// The data.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.datagram[HEADER_BYTES..]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn view_reads_every_field_and_cuts_padding() {
        let bytes = [0, 1, 0, 2, 0, 10, 0xab, 0xcd, b'h', b'i', 0, 0];
        let view = UdpView::parse(&bytes).unwrap();
        assert_eq!((view.ports(), view.length()), (0x0001_0002, 10));
        assert_eq!((view.checksum(), view.payload()), (0xabcd, &b"hi"[..]));
    }

    #[test]
    fn hostile_lengths_are_refused() {
        for length in [0, 7, 11, 255] {
            let bytes = [0, 1, 0, 2, 0, length, 0, 0, b'h', b'i'];
            assert!(UdpView::parse(&bytes).is_err(), "length {length}");
        }
        assert!(UdpView::parse(&[0; 7]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(view) = UdpView::parse(&bytes) {
                prop_assert_eq!(view.payload().len() + HEADER_BYTES, view.length());
            }
        }
    }
}

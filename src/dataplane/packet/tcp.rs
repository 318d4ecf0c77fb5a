//! The TCP header (RFC 9293): a checked view.
#![forbid(unsafe_code)]

use super::{Malformed, be16, be32};

/// Length of the header without options, in bytes.
pub const HEADER_BYTES: usize = 20;
/// Length of the longest header, in bytes: the data offset counts 15 words.
pub const HEADER_MAX_BYTES: usize = 60;

/// No more data from the sender.
pub const FIN: u8 = 0x01;
/// Opens a connection.
pub const SYN: u8 = 0x02;
/// Aborts a connection.
pub const RST: u8 = 0x04;
/// Push: hand the data to the application now.
pub const PSH: u8 = 0x08;
/// The acknowledgement number is valid.
pub const ACK: u8 = 0x10;
/// The urgent pointer is valid.
pub const URG: u8 = 0x20;
/// Congestion was echoed (RFC 3168).
pub const ECE: u8 = 0x40;
/// The congestion window was reduced (RFC 3168).
pub const CWR: u8 = 0x80;

/// A segment whose TCP header was checked for its length; not for its checksum.
#[derive(Clone, Copy, Debug)]
pub struct TcpView<'a> {
    fixed: &'a [u8; HEADER_BYTES],
    segment: &'a [u8],
    header_len: usize,
}

impl<'a> TcpView<'a> {
    /// Checks that `segment`, the whole payload of an IP packet, begins with a TCP header.
    ///
    /// # Errors
    /// [`Malformed`] for a data offset below 5 or beyond the slice.
    #[inline]
    pub fn parse(segment: &'a [u8]) -> Result<Self, Malformed> {
        let Some(fixed) = segment.first_chunk::<HEADER_BYTES>() else {
            return Err(Malformed::Truncated {
                header: "TCP",
                needed: HEADER_BYTES,
                got: segment.len(),
            });
        };
        let header_len = usize::from(fixed[12] >> 4) * 4;
        if header_len < HEADER_BYTES {
            return Err(Malformed::HeaderLength { header: "TCP", bytes: header_len });
        }
        if header_len > segment.len() {
            return Err(Malformed::Truncated {
                header: "TCP",
                needed: header_len,
                got: segment.len(),
            });
        }
        Ok(Self { fixed, segment, header_len })
    }

    /// Length of the header with its options, in bytes: 20 to 60.
    #[inline]
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// The data.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.segment[self.header_len..]
    }

    /// The options, padding included.
    #[inline]
    pub fn options(&self) -> &'a [u8] {
        &self.segment[HEADER_BYTES..self.header_len]
    }

    /// Source and destination port as they stand in the header.
    #[inline]
    pub fn ports(&self) -> u32 {
        be32(self.fixed, 0)
    }

    /// The sequence number of the first byte of data.
    #[inline]
    pub fn seq(&self) -> u32 {
        be32(self.fixed, 4)
    }

    /// The acknowledgement number.
    #[inline]
    pub fn ack(&self) -> u32 {
        be32(self.fixed, 8)
    }

    /// Data offset, reserved bits and the accurate-ECN bit, as one byte.
    #[inline]
    pub fn offset_byte(&self) -> u8 {
        self.fixed[12]
    }

    /// The flags, [`FIN`] to [`CWR`].
    #[inline]
    pub fn flags(&self) -> u8 {
        self.fixed[13]
    }

    /// The window, unscaled.
    #[inline]
    pub fn window(&self) -> u16 {
        be16(self.fixed, 14)
    }

    /// The urgent pointer, valid or not.
    #[inline]
    pub fn urgent(&self) -> u16 {
        be16(self.fixed, 18)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn view_reads_every_field() {
        let mut header = etherparse::TcpHeader::new(1, 2, 3, 4);
        header.acknowledgment_number = 5;
        header.ack = true;
        header.psh = true;
        header.urgent_pointer = 6;
        header.set_options_raw(&[1, 1, 1, 0]).unwrap();
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(b"data");
        let view = TcpView::parse(&bytes).unwrap();
        assert_eq!((view.ports(), view.seq(), view.ack()), (0x0001_0002, 3, 5));
        assert_eq!((view.window(), view.urgent()), (4, 6));
        assert_eq!((view.flags(), view.offset_byte()), (ACK | PSH, 0x60));
        assert_eq!(view.options(), [1, 1, 1, 0]);
        assert_eq!((view.header_len(), view.payload()), (24, &b"data"[..]));
    }

    #[test]
    fn hostile_data_offsets_are_refused() {
        let mut bytes = etherparse::TcpHeader::new(1, 2, 3, 4).to_bytes().to_vec();
        assert!(TcpView::parse(&bytes[..19]).is_err());
        for offset in [0, 4, 6, 15] {
            bytes[12] = offset << 4;
            assert!(TcpView::parse(&bytes).is_err(), "offset {offset}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(view) = TcpView::parse(&bytes) {
                prop_assert_eq!(view.header_len() + view.payload().len(), bytes.len());
                prop_assert_eq!(view.options().len() + HEADER_BYTES, view.header_len());
            }
        }
    }
}

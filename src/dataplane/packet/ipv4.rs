//! The IPv4 header (RFC 791): a checked view, and the one change that forwarding makes to it.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;

use super::{Malformed, be16, checksum};

/// Length of the header without options, in bytes.
pub const HEADER_BYTES: usize = 20;
/// Length of the longest header, in bytes: the IHL field counts 15 words.
pub const HEADER_MAX_BYTES: usize = 60;

/// Protocol number of ICMP (IANA).
pub const ICMP: u8 = 1;
/// Protocol number of TCP (IANA).
pub const TCP: u8 = 6;
/// Protocol number of UDP (IANA).
pub const UDP: u8 = 17;

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET_MASK: u16 = 0x1fff;

/// Of [`Ipv4View::flags_and_offset`]: not zero in a fragment only.
pub(super) const FRAGMENT_MASK: u16 = MORE_FRAGMENTS | OFFSET_MASK;

/// A packet whose IPv4 header was checked for version and lengths; not for its checksum.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4View<'a> {
    fixed: &'a [u8; HEADER_BYTES],
    /// The packet, cut to its total length.
    packet: &'a [u8],
    header_len: usize,
}

impl<'a> Ipv4View<'a> {
    /// Checks that `bytes` begin with an IPv4 header whose lengths fit into the slice.
    ///
    /// The slice may be longer than the packet; what that means is the caller's decision
    /// ([`Self::total_len`] against the slice's length).
    ///
    /// # Errors
    /// [`Malformed`] for another version, an IHL below 5, or a total length that is shorter than
    /// the header or longer than the slice.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let Some(fixed) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(Malformed::Truncated {
                header: "IPv4",
                needed: HEADER_BYTES,
                got: bytes.len(),
            });
        };
        let version = fixed[0] >> 4;
        if version != 4 {
            return Err(Malformed::Version(version));
        }
        let header_len = usize::from(fixed[0] & 0x0f) * 4;
        if header_len < HEADER_BYTES {
            return Err(Malformed::HeaderLength { header: "IPv4", bytes: header_len });
        }
        let total_len = usize::from(be16(fixed, 2));
        match bytes.get(..total_len) {
            Some(packet) if total_len >= header_len => Ok(Self { fixed, packet, header_len }),
            _ => Err(Malformed::Length { header: "IPv4", claimed: total_len, got: bytes.len() }),
        }
    }

    /// The packet without what may follow it in the slice.
    #[inline]
    pub fn packet(&self) -> &'a [u8] {
        self.packet
    }

    /// The header with its options.
    #[inline]
    pub fn header(&self) -> &'a [u8] {
        &self.packet[..self.header_len]
    }

    /// What follows the header, up to the total length.
    #[inline]
    pub fn payload(&self) -> &'a [u8] {
        &self.packet[self.header_len..]
    }

    /// Length of the header with its options, in bytes: 20 to 60.
    #[inline]
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Length of header and payload, in bytes.
    #[inline]
    pub fn total_len(&self) -> usize {
        self.packet.len()
    }

    /// The whole ToS byte: DSCP and ECN.
    #[inline]
    pub fn tos(&self) -> u8 {
        self.fixed[1]
    }

    /// The identification field.
    #[inline]
    pub fn id(&self) -> u16 {
        be16(self.fixed, 4)
    }

    /// The field of flags and fragment offset as it stands.
    #[inline]
    pub fn flags_and_offset(&self) -> u16 {
        be16(self.fixed, 6)
    }

    /// Whether routers must not fragment the packet.
    #[inline]
    pub fn dont_fragment(&self) -> bool {
        self.flags_and_offset() & DONT_FRAGMENT != 0
    }

    /// Whether more fragments follow this one.
    #[inline]
    pub fn more_fragments(&self) -> bool {
        self.flags_and_offset() & MORE_FRAGMENTS != 0
    }

    /// The fragment's offset in the original payload, in units of 8 bytes.
    #[inline]
    pub fn fragment_offset(&self) -> u16 {
        self.flags_and_offset() & OFFSET_MASK
    }

    /// Whether the packet is a piece of a larger one, the first piece included.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.flags_and_offset() & FRAGMENT_MASK != 0
    }

    /// Time to live, in hops.
    #[inline]
    pub fn ttl(&self) -> u8 {
        self.fixed[8]
    }

    /// The payload's protocol number.
    #[inline]
    pub fn protocol(&self) -> u8 {
        self.fixed[9]
    }

    /// The sender.
    #[inline]
    pub fn src(&self) -> Ipv4Addr {
        Ipv4Addr::new(self.fixed[12], self.fixed[13], self.fixed[14], self.fixed[15])
    }

    /// The receiver.
    #[inline]
    pub fn dst(&self) -> Ipv4Addr {
        Ipv4Addr::new(self.fixed[16], self.fixed[17], self.fixed[18], self.fixed[19])
    }

    /// Whether the header, options included, sums to what RFC 791 demands.
    #[inline]
    pub fn header_checksum_ok(&self) -> bool {
        let options = &self.packet[HEADER_BYTES..self.header_len];
        let fixed = checksum::sum_header(self.fixed);
        checksum::fold(checksum::sum(options, fixed)) == 0xffff
    }
}

/// The packet has no hop left: it must not be forwarded (RFC 1812, 5.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("time to live is used up")]
pub struct TtlExpired;

/// Takes one hop from the packet and patches its header checksum (RFC 1624).
///
/// The checksum stays canonical: 0x0000 is written where the sum could also be 0xFFFF, as upstream
/// and the kernel's `ip_decrease_ttl` do (facts 5.3). A wrong checksum stays wrong by the same
/// amount.
///
/// # Errors
/// [`TtlExpired`] for a TTL of 0 or 1 on entry, and for a slice that holds no IPv4 header; the
/// bytes are then untouched.
#[inline]
pub fn decrement_ttl(header: &mut [u8]) -> Result<(), TtlExpired> {
    let fixed = header.first_chunk_mut::<HEADER_BYTES>().ok_or(TtlExpired)?;
    if fixed[8] <= 1 {
        return Err(TtlExpired);
    }
    fixed[8] -= 1;
    let sum = u32::from(be16(fixed, 10)) + 0x0100;
    let carried = sum + u32::from(sum >= 0xffff);
    fixed[10..12].copy_from_slice(&(carried as u16).to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(ttl: u8, id: u16) -> Vec<u8> {
        let mut header = etherparse::Ipv4Header::new(
            0,
            ttl,
            etherparse::IpNumber::UDP,
            [10, 5, 1, 2],
            [10, 5, 2, 3],
        )
        .unwrap();
        header.identification = id;
        header.header_checksum = header.calc_header_checksum();
        header.to_bytes().to_vec()
    }

    #[test]
    fn view_reads_every_field() {
        let mut packet = header(64, 0xbeef);
        packet[1] = 0xb9;
        packet[6..8].copy_from_slice(&0x6005_u16.to_be_bytes());
        packet[2..4].copy_from_slice(&24_u16.to_be_bytes());
        packet.extend_from_slice(b"datamore");
        let view = Ipv4View::parse(&packet).unwrap();
        assert_eq!((view.header_len(), view.total_len()), (20, 24));
        assert_eq!((view.tos(), view.id(), view.ttl()), (0xb9, 0xbeef, 64));
        assert!(view.dont_fragment() && view.more_fragments() && view.is_fragment());
        assert_eq!((view.fragment_offset(), view.protocol()), (5, UDP));
        assert_eq!(view.src(), Ipv4Addr::new(10, 5, 1, 2));
        assert_eq!(view.dst(), Ipv4Addr::new(10, 5, 2, 3));
        assert_eq!((view.header().len(), view.payload()), (20, &b"data"[..]));
    }

    #[test]
    fn header_checksum_covers_options() {
        let mut packet = header(64, 1);
        assert!(Ipv4View::parse(&packet).unwrap().header_checksum_ok());
        packet[0] = 0x46;
        packet[2..4].copy_from_slice(&24_u16.to_be_bytes());
        packet.extend_from_slice(&[1, 1, 1, 0]);
        packet[10..12].copy_from_slice(&[0, 0]);
        let sum = !checksum::fold(checksum::sum(&packet, 0));
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        assert!(Ipv4View::parse(&packet).unwrap().header_checksum_ok());
        packet[22] = 2;
        assert!(!Ipv4View::parse(&packet).unwrap().header_checksum_ok());
    }

    #[test]
    fn hostile_lengths_are_refused() {
        let good = header(64, 1);
        for cut in 0..HEADER_BYTES {
            assert!(Ipv4View::parse(&good[..cut]).is_err());
        }
        for (at, value) in [(0, 0x65), (0, 0x44), (0, 0x4f), (3, 19), (3, 21), (2, 0xff)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(Ipv4View::parse(&bad).is_err(), "byte {at} = {value:#x}");
        }
    }

    #[test]
    fn ttl_0_and_1_expire_untouched() {
        for ttl in [0, 1] {
            let mut packet = header(ttl, 7);
            let before = packet.clone();
            assert_eq!(decrement_ttl(&mut packet), Err(TtlExpired));
            assert_eq!(packet, before);
        }
        assert_eq!(decrement_ttl(&mut [0x45; 19]), Err(TtlExpired));
    }

    #[test]
    fn ttl_patch_equals_a_fresh_checksum_for_every_ttl_and_id() {
        for ttl in 2..=255_u8 {
            for id in (0..=0xffff_u16).step_by(if ttl == 64 { 1 } else { 257 }) {
                let mut packet = header(ttl, id);
                decrement_ttl(&mut packet).unwrap();
                assert_eq!(packet, header(ttl - 1, id), "ttl {ttl} id {id}");
            }
        }
    }

    #[test]
    fn ttl_patch_writes_the_canonical_zero() {
        let mut packet = header(64, 1);
        packet[10..12].copy_from_slice(&0xfeff_u16.to_be_bytes());
        decrement_ttl(&mut packet).unwrap();
        assert_eq!(packet[10..12], [0, 0]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), lead in any::<u8>()) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() { *first = lead; }
            if let Ok(view) = Ipv4View::parse(&bytes) {
                prop_assert_eq!(view.header().len() + view.payload().len(), view.total_len());
                view.header_checksum_ok();
            }
            let _ = decrement_ttl(&mut bytes);
        }
    }
}

//! The Internet checksum (RFC 1071), accumulated unfolded.
//!
//! # Byte order
//!
//! An accumulator holds 16-bit words *as this machine loads them from memory*, because the sum of
//! swapped words is the swapped sum (RFC 1071, 2.B) and loads without a swap are faster. Bytes
//! enter it through [`sum`], numbers through [`word`] and [`dword`], and [`fold`] gives the number
//! that stands in the packet in network order: write it with `to_be_bytes`.
//!
//! # Range
//!
//! [`sum`] adds less than 2^35 to its accumulator whatever it is fed, so accumulators may be added
//! with a plain `+`: 2^29 of them fit into a `u64`.
#![forbid(unsafe_code)]

use crate::dataplane::sys;

/// Below this length the choice of a variant costs more than it saves, in bytes.
const VECTORS_FROM_BYTES: usize = 64;

/// Adds the words of `bytes` to `initial`, by the widest vectors that the processor has.
///
/// An odd last byte counts as the high half of a word, so only the last piece of a message may
/// have an odd length.
#[inline]
pub fn sum(bytes: &[u8], initial: u64) -> u64 {
    if bytes.len() < VECTORS_FROM_BYTES {
        sum_words(bytes, initial)
    } else {
        sys::checksum::sum(bytes, initial)
    }
}

/// [`sum`] by the vectors that every processor of the target has: SSE2 on x86-64, NEON on AArch64.
pub(crate) fn sum_portable(bytes: &[u8], initial: u64) -> u64 {
    sum_words(bytes, initial)
}

/// [`sum`] as one loop, so plain that the compiler makes of it what intrinsics would be: every
/// 64-bit word is added whole, modulo 2^64, and its upper half again, exactly. The sum of the
/// lower halves is the difference, so that no carry is ever looked at. Both hold for fewer than
/// 2^32 words.
#[inline(always)]
pub(crate) fn sum_words(bytes: &[u8], initial: u64) -> u64 {
    let (words, mut rest) = bytes.as_chunks::<8>();
    let (mut whole, mut high) = (0_u64, 0_u64);
    for word in words {
        let word = u64::from_ne_bytes(*word);
        whole = whole.wrapping_add(word);
        high = high.wrapping_add(word >> 32);
    }
    let mut last = 0;
    if let Some((word, behind)) = rest.split_first_chunk::<4>() {
        last = u64::from(u32::from_ne_bytes(*word));
        rest = behind;
    }
    if let Some((word, behind)) = rest.split_first_chunk::<2>() {
        last += u64::from(u16::from_ne_bytes(*word));
        rest = behind;
    }
    if let Some(byte) = rest.first() {
        last += u64::from(u16::from_ne_bytes([*byte, 0]));
    }
    let low = whole.wrapping_sub(high << 32);
    add(initial, halve(low) + halve(high) + last)
}

/// Adds the 20 bytes of a header without options to nothing.
#[inline(always)]
pub(crate) fn sum_header(header: &[u8; 20]) -> u64 {
    let (words, _) = header.as_chunks::<4>();
    words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum()
}

/// The 16-bit number `value` as a word of an accumulator.
#[inline(always)]
pub fn word(value: u16) -> u64 {
    u64::from(value.to_be())
}

/// The 32-bit number `value` as two words of an accumulator.
#[inline(always)]
pub fn dword(value: u32) -> u64 {
    u64::from(value.to_be())
}

/// Folds an accumulator to 16 bits: the number to write in network order, not yet complemented.
#[inline(always)]
pub fn fold(accumulator: u64) -> u16 {
    let folded = halve(halve(accumulator));
    let folded = (folded & 0xffff) + (folded >> 16);
    u16::from_be(((folded & 0xffff) + (folded >> 16)) as u16)
}

/// The words of the IPv4 pseudo header (RFC 793, RFC 768): addresses and protocol as they stand
/// in the IP header, `len` the bytes of the TCP segment or UDP datagram.
#[inline(always)]
pub fn pseudo_header_v4(src: [u8; 4], dst: [u8; 4], protocol: u8, len: u16) -> u64 {
    u64::from(u32::from_ne_bytes(src))
        + u64::from(u32::from_ne_bytes(dst))
        + word(u16::from(protocol))
        + word(len)
}

/// The value for UDP's checksum field: 0 would mean "none" there, so the other zero of ones'
/// complement is written (RFC 768).
#[inline(always)]
pub fn finish_udp(accumulator: u64) -> u16 {
    match !fold(accumulator) {
        0 => 0xffff,
        sum => sum,
    }
}

/// The value for TCP's checksum field.
#[inline(always)]
pub fn finish(accumulator: u64) -> u16 {
    !fold(accumulator)
}

/// 64 bits as the sum of their halves: at most 33 bits, the same modulo 0xFFFF.
#[inline(always)]
fn halve(sum: u64) -> u64 {
    (sum & 0xffff_ffff) + (sum >> 32)
}

/// Ones' complement addition: a carry out of the top comes in again at the bottom.
#[inline(always)]
fn add(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 read literally: big-endian words, one at a time.
    pub(crate) fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// Bytes without a pattern that a wrong sum could hide in.
    pub(crate) fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect()
    }

    /// Holds `sum` against [`naive`] for every length to 2100, every alignment to 63, 64 KiB,
    /// and the extremes of all bits set.
    pub(crate) fn check(sum: impl Fn(&[u8], u64) -> u64) {
        let bytes = noise(65536 + 64);
        for len in 0..=2100 {
            let expected = naive(&bytes[..len]);
            assert_eq!(fold(sum(&bytes[..len], 0)), expected, "length {len}");
        }
        for at in 0..64 {
            for len in [0, 1, 7, 8, 20, 31, 32, 63, 127, 128, 129, 576, 1448, 1449, 65536] {
                let piece = &bytes[at..at + len];
                assert_eq!(fold(sum(piece, 0)), naive(piece), "{len} at {at}");
            }
        }
        let ones = vec![0xff; 1 << 20];
        for len in [1, 2, 3, 8, 127, 128, 65535, 65536, 1 << 20] {
            assert_eq!(fold(sum(&ones[..len], 0)), naive(&ones[..len]), "{len} ones");
            assert!(sum(&ones[..len], 0) < 1 << 35);
        }
        assert_eq!(sum(&[0; 4000], 0), 0);
        assert_eq!(fold(sum(b"ab", u64::MAX)), naive(b"ab"));
    }

    #[test]
    fn dispatched_variant_equals_the_naive_one() {
        check(sum);
    }

    #[test]
    fn rfc_1071_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes, 0)), 0xddf2);
        assert_eq!(finish(sum(&bytes, 0)), 0x220d);
    }

    #[test]
    fn numbers_enter_as_their_bytes_do() {
        assert_eq!(fold(word(0x1234)), 0x1234);
        assert_eq!(fold(dword(0x1234_5678)), naive(&[0x12, 0x34, 0x56, 0x78]));
        let mut pseudo = vec![10, 5, 1, 2, 10, 5, 2, 3, 0, 6];
        pseudo.extend_from_slice(&0x0203_u16.to_be_bytes());
        let sum = pseudo_header_v4([10, 5, 1, 2], [10, 5, 2, 3], 6, 0x0203);
        assert_eq!(fold(sum), naive(&pseudo));
    }

    #[test]
    fn fold_carries_at_the_extremes() {
        assert_eq!(fold(u64::MAX), 0xffff);
        assert_eq!(fold(0), 0);
        assert_eq!(fold(0xffff), 0xffff);
        assert_eq!(fold(0x1_0000), word(1) as u16);
    }

    #[test]
    fn udp_checksum_zero_is_sent_as_ffff() {
        assert_eq!(finish_udp(word(0xffff)), 0xffff);
        assert_eq!(finish(word(0xffff)), 0);
        assert_eq!(finish_udp(word(0xfffe)), 1);
    }

    proptest! {
        #[test]
        fn pieces_of_even_length_add_up(bytes in prop::collection::vec(any::<u8>(), 0..600), cut in 0..300_usize) {
            let cut = (cut * 2).min(bytes.len() & !1);
            let (a, b) = bytes.split_at(cut);
            prop_assert_eq!(fold(sum(b, sum(a, 0))), naive(&bytes));
            prop_assert_eq!(fold(sum(b, 0) + sum(a, 0)), naive(&bytes));
        }
    }
}

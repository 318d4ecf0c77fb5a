//! Bytes that both ends of a flow know without telling each other.
#![forbid(unsafe_code)]

use std::fmt;

use crate::support::traffic::Noise;

/// The longest piece: longer than any payload of a UDP datagram.
pub(crate) const PIECE_BYTES: usize = 65_536;

/// Bytes from which pieces are cut. Cutting costs nothing, so that neither end of a flow, built
/// without optimisation, is what limits it.
const NOISE_BYTES: usize = 1 << 20;

/// A block of noise from which every piece of every flow is cut, each from a place of its own.
pub(crate) struct Pattern(Box<[u8]>);

impl Pattern {
    /// The same seed gives the same pieces.
    pub(crate) fn new(seed: u64) -> Self {
        let mut noise = vec![0; NOISE_BYTES + PIECE_BYTES];
        Noise::new(seed).fill(&mut noise);
        Self(noise.into())
    }

    /// Piece `number` of the flow `key`.
    pub(crate) fn piece(&self, key: u64, number: u64) -> &[u8] {
        let start = mix(key, number) as usize % NOISE_BYTES;
        &self.0[start..start + PIECE_BYTES]
    }

    /// A stream of the flow `key`, from its first byte on.
    pub(crate) fn stream(&self, key: u64) -> Stream<'_> {
        Stream { pattern: self, key, position: 0 }
    }
}

/// A number that looks random, from two that do not.
pub(crate) fn mix(a: u64, b: u64) -> u64 {
    let mut bytes = [0; 8];
    // The multiplier, the golden ratio's, keeps neighbours apart.
    Noise::new(a ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15)).fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// An endless stream of pieces, and a place in it.
pub(crate) struct Stream<'p> {
    pattern: &'p Pattern,
    key: u64,
    position: u64,
}

/// The first byte of a stream that is not what it should be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// Which, from 0.
    pub(crate) offset: u64,
    /// What it should be.
    pub(crate) wanted: u8,
    /// What it is.
    pub(crate) got: u8,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Wrong { offset, wanted, got } = self;
        write!(f, "CORRUPT: byte {offset} is {got:#04x} and should be {wanted:#04x}")
    }
}

impl<'p> Stream<'p> {
    /// How many bytes were taken or compared.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The bytes from here to the end of the piece.
    fn ahead(&self) -> &'p [u8] {
        let piece = self.pattern.piece(self.key, self.position / PIECE_BYTES as u64);
        &piece[(self.position % PIECE_BYTES as u64) as usize..]
    }

    /// Takes the next bytes, at most `bytes` of them and at least one.
    pub(crate) fn take(&mut self, bytes: u64) -> &'p [u8] {
        let ahead = self.ahead();
        let taken = &ahead[..ahead.len().min(usize::try_from(bytes).unwrap_or(usize::MAX))];
        self.position += taken.len() as u64;
        taken
    }

    /// Compares what arrived with the next bytes.
    pub(crate) fn check(&mut self, mut got: &[u8]) -> Result<(), Wrong> {
        while !got.is_empty() {
            let offset = self.position;
            let wanted = self.take(got.len() as u64);
            let (now, later) = got.split_at(wanted.len());
            // Equal slices are the rule, and comparing them whole is fast in every profile.
            if now != wanted {
                let at = now.iter().zip(wanted).take_while(|(got, wanted)| got == wanted).count();
                let offset = offset + at as u64;
                return Err(Wrong { offset, wanted: wanted[at], got: now[at] });
            }
            got = later;
        }
        Ok(())
    }
}

//! A piece of a slab, by offset.
#![forbid(unsafe_code)]

/// A piece of a slab, in bytes. It outlives any borrow of the slab, so arrays of spans can be
/// wired once and reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Where the piece begins in its slab.
    pub offset: u32,
    /// How long it is.
    pub len: u32,
}

impl Span {
    /// The piece of `len` bytes from `offset` on.
    #[inline]
    pub fn new(offset: u32, len: u32) -> Self {
        Self { offset, len }
    }

    /// The bytes in `slab`; none if the slab does not hold the whole piece.
    #[inline]
    pub fn of<'a>(&self, slab: &'a [u8]) -> &'a [u8] {
        let start = self.offset as usize;
        start
            .checked_add(self.len as usize)
            .and_then(|end| slab.get(start..end))
            .unwrap_or_default()
    }

    /// Whether the piece has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_checked_against_its_slab() {
        let slab = b"0123456789";
        assert_eq!(Span::new(2, 3).of(slab), b"234");
        assert_eq!(Span::new(10, 0).of(slab), b"");
        for (offset, len) in [(8, 3), (11, 0), (u32::MAX, u32::MAX), (0, u32::MAX)] {
            assert_eq!(Span::new(offset, len).of(slab), b"", "{offset} {len}");
        }
    }
}

//! Room for headers that are written anew, taken front to back and given back all at once.
#![forbid(unsafe_code)]

use super::span::Span;

/// A slab for headers. It never grows: what does not fit is refused, and the caller sends what it
/// has and clears the arena.
#[derive(Debug)]
pub struct HeaderArena {
    bytes: Box<[u8]>,
    used: usize,
}

impl HeaderArena {
    /// An arena of `capacity` bytes, at most 4 GiB because spans count in 32 bits.
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.min(u32::MAX as usize);
        Self { bytes: vec![0; capacity].into_boxed_slice(), used: 0 }
    }

    /// Forgets all headers; their spans mean nothing any more.
    #[inline]
    pub fn clear(&mut self) {
        self.used = 0;
    }

    /// The slab that the arena's spans point into.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes that are still free.
    #[inline]
    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.used
    }

    /// Takes `len` bytes; `None`, and nothing taken, if they are not free. They hold whatever was
    /// there before.
    #[inline]
    pub(super) fn take(&mut self, len: usize) -> Option<(Span, &mut [u8])> {
        let room = self.bytes.get_mut(self.used..)?.get_mut(..len)?;
        let span = Span::new(self.used as u32, len as u32);
        self.used += len;
        Some((span, room))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_arena_refuses_and_keeps_what_it_has() {
        let mut arena = HeaderArena::new(10);
        let (first, room) = arena.take(6).unwrap();
        room.copy_from_slice(b"header");
        assert!(arena.take(5).is_none());
        assert_eq!(arena.remaining(), 4);
        assert!(arena.take(usize::MAX).is_none());
        assert_eq!(first.of(arena.bytes()), b"header");
        arena.clear();
        assert_eq!(arena.take(10).unwrap().0, Span::new(0, 10));
    }
}

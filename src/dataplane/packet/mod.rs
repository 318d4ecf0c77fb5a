//! Views of packets and the arithmetic of their headers. Pure: bytes in, bytes out.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod flow;
pub mod icmp;
pub mod ipv4;
pub mod tcp;
pub mod udp;

/// Why bytes are not the header that they were taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The slice ends before the header does.
    #[error("{header} header needs {needed} bytes, {got} are there")]
    Truncated {
        /// Which header was being read.
        header: &'static str,
        /// Bytes that it needs at least.
        needed: usize,
        /// Bytes that there are.
        got: usize,
    },
    /// Not IP version 4.
    #[error("IP version {0}, only 4 is carried")]
    Version(u8),
    /// A header that claims to be shorter than its fixed part.
    #[error("{header} header length {bytes} is below the fixed part")]
    HeaderLength {
        /// Which header was being read.
        header: &'static str,
        /// The length that it claims, in bytes.
        bytes: usize,
    },
    /// A length field that contradicts the header or the bytes that came.
    #[error("{header} length field says {claimed} bytes, {got} are there")]
    Length {
        /// Which header was being read.
        header: &'static str,
        /// What the field says.
        claimed: usize,
        /// Bytes that there are.
        got: usize,
    },
}

/// The big-endian 16-bit field at `at` of a fixed header; `at` is a constant of the caller.
#[inline(always)]
pub(crate) fn be16(header: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([header[at], header[at + 1]])
}

/// The big-endian 32-bit field at `at` of a fixed header; `at` is a constant of the caller.
#[inline(always)]
pub(crate) fn be32(header: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

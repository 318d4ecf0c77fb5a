//! The only unsafe code of the crate: batched system calls and vector instructions.
//!
//! Each wrapper takes borrowed slices and fills the kernel's structures within one call, so that
//! no pointer outlives what it points at.

pub mod checksum;
mod cmsg;
pub mod poll;
pub mod receive;
pub mod send;
pub mod socket;
pub mod tun;

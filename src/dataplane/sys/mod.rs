//! The only unsafe code of the crate: batched system calls, vector instructions, and what no safe
//! crate has.
//!
//! Each wrapper takes borrowed slices and fills the kernel's structures within one call, so that
//! no pointer outlives what it points at.

pub mod checksum;
pub mod clock;
pub mod cmsg;
pub mod inherited;
pub mod poll;
pub mod receive;
pub mod send;
pub mod socket;
pub mod tun;

//! The only unsafe code of the crate: batched system calls, vector instructions, and what no safe
//! crate has.
//!
//! A wrapper puts the addresses of slices into the kernel's structures only while it borrows them:
//! until its call returns, or as long as the value lives that borrows them for a later call
//! (`SendBatch`, `TunWrite`). So no pointer is used after what it points at is gone.

pub mod checksum;
pub mod clock;
pub mod cmsg;
pub mod inherited;
pub mod poll;
pub mod receive;
pub mod send;
pub mod socket;
pub mod tun;

//! What is set in the kernel: links, addresses, routes, and which interface faces the peers.
#![forbid(unsafe_code)]

pub mod error;
pub mod interface;
pub mod link;
pub mod monitor;
pub mod netlink;
pub mod tun_setup;

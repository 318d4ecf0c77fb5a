//! What is set in the kernel: links, addresses, routes, traffic rules, and which interface faces
//! the peers.
#![forbid(unsafe_code)]

mod address;
pub mod blackhole;
pub mod capabilities;
pub mod error;
pub mod interface;
pub mod kernel;
pub mod link;
pub mod monitor;
pub mod netlink;
pub mod routes;
pub mod rules;
pub mod tun_devices;
pub mod tun_setup;

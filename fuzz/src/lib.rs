//! What each fuzz target does with its bytes.
//!
//! A target is a function here, so that `tests/corpus.rs` of the daemon can replay the seeds by a
//! plain `cargo test`, and `tests/differential` can do with the kernel what is done here without.
//! The oracles are etherparse and a checksum of two lines: nothing of the daemon judges itself.
//! Each returns whether the bytes got past the parser; for `coalesce`, whether anything merged.
#![forbid(unsafe_code)]

mod coalesce;
mod packets;
mod script;
mod texts;

pub use coalesce::{Merged, assert_same_flows, assert_same_packets, coalesce, merge};
pub use packets::{cmsg, cut, cut_all, packet, virtio};
pub use script::Script;
pub use texts::{cni, config, env_file, key, value};

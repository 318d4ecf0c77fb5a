//! What each fuzz target does with its bytes.
//!
//! A target is a function here, so that `tests/corpus.rs` of the daemon can replay the seeds by a
//! plain `cargo test`. The oracles are etherparse and a checksum of two lines: nothing of the
//! daemon judges itself. Each returns whether the bytes got past the parser; for `coalesce`, whether
//! anything merged.
#![forbid(unsafe_code)]

mod coalesce;
mod packets;
mod texts;

pub use coalesce::coalesce;
pub use packets::{cmsg, cut, packet, virtio};
pub use texts::{cni, config, env_file, key, value};

//! A model of the control plane: up to ten thousand daemons on one store, in simulated time.
//!
//! The daemons are the real ones from the network config to the table of peers: `acquire`, the
//! keeper with its driver, `Peers`, and all pauses. Simulated are etcd, the network, the clocks
//! and chance. Whatever happens to them,
//!
//! - no two leases in the store ever overlap (looked at with each write),
//! - no host that reaches the store takes for its own what the store gives to another for longer
//!   than [`truth::BOUND`],
//! - when it is over each host holds one subnet, and its table is the store's,
//! - the store is not asked for more than it can give.
//!
//! `FLANNELD_SIM_DAEMONS` says how many hosts there are in each scenario, `FLANNELD_SIM_SEEDS` how
//! often each is played; `FLANNELD_SIM_SEED` repeats one run. `--nocapture` shows the load. Ten
//! thousand need a release build: `FLANNELD_SIM_DAEMONS=10000 cargo test --release --test
//! simulation -- --nocapture --test-threads=1`.
#![forbid(unsafe_code)]
// A helper fails its test by panicking; clippy.toml allows that only in `#[test]` functions.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cluster;
mod conflicts;
mod etcd;
mod herds;
mod host;
mod link;
mod load;
mod store;
mod truth;

//! What goes wrong on hosts and networks, done to real daemons while traffic runs through them:
//! each case asserts what was promised, and prints what was measured (docs/reliability.md).
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod attacks;
mod backlog;
mod cluster;
mod counters;
mod device;
mod failed_start;
mod handed_device;
mod handover;
mod host;
mod leases;
mod network;
mod path;
mod refusals;
mod restart;
mod rungs;
mod store;
#[path = "../support/mod.rs"]
mod support;
mod trial;

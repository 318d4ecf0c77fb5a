//! Who owns which subnet: leases, the stores that hold them, and how this host gets its own.
//!
//! Pure modules ([`lease`], [`allocate`], [`peers`], [`keeper`]'s state, [`env_file`]'s text) take
//! bytes and time as arguments; the stores and the keeper's driver do the waiting.
#![forbid(unsafe_code)]

pub mod allocate;
pub(crate) mod backoff;
pub mod config_watch;
pub mod directory;
pub mod env_file;
pub mod etcd;
pub mod keeper;
pub mod lease;
#[cfg(test)]
mod logged;
mod once;
pub mod peers;
pub mod reconnect;
pub mod store;

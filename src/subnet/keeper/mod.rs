//! The own lease: won at start, renewed in time, won back when it is lost.
//!
//! [`acquire`] wins a lease. [`Keeper`] is the pure state machine that says what to ask of the
//! store and when; [`run`] lets it loose on a real store and a real clock, [`run_by`] on
//! a simulated one.
#![forbid(unsafe_code)]

pub mod acquire;
mod drive;
mod state;

pub use drive::{Update, now, run, run_by};
pub use state::{Keeper, Moment, Outcome, Poll, Step, Timing};

//! What the tests of the whole daemon share.
//!
//! ```no_run
//! # use support::{lab::Lab, root_or_skip};
//! if !root_or_skip("two_hosts_talk") { return; }
//! let mut lab = Lab::new(2);
//! let daemon = lab.host(0).spawn_daemon(&["--store-dir", "/tmp/store"], &[]);
//! daemon.wait_ready();
//! ```
#![forbid(unsafe_code)]
// Each test binary has its own copy, exports nothing and uses only a part.
#![allow(dead_code, unreachable_pub)]
// A helper fails its test by panicking; clippy.toml allows that only in `#[test]` functions.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod admin;
pub mod cgroup;
pub mod cni;
pub mod daemon;
pub mod debian;
pub mod etcd;
pub mod events;
pub mod keeping;
pub mod lab;
pub mod leases;
pub mod netns;
pub mod relay;
pub mod routed;
pub mod rules;
pub mod running;
pub mod seccomp;
pub mod service_manager;
pub mod traffic;
pub mod wire;

use std::io::Write;

/// Says loudly that a test is not run, and what it `needs`: past libtest's capture, which would
/// swallow the line of a passing test.
pub fn skip(test: &str, needs: &str) {
    // In one piece: other tests write at the same time.
    let _ = std::io::stderr().write_all(format!("SKIPPED {test}: needs {needs}\n").as_bytes());
}

/// Whether the test may run. Says so loudly if not.
pub fn root_or_skip(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        skip(test, "root");
    }
    root
}

//! `flanneld`: flags, logging, runtime, daemon, exit code.
#![forbid(unsafe_code)]

fn main() {}

//! A userspace overlay network: flannel's UDP backend, in Rust.
//!
//! `flanneld` runs on every host. It leases a subnet for the host's pods from a store that all
//! hosts share, opens the TUN device `flannel0` with a route for the whole overlay network, and
//! carries every IP packet that the kernel sends there to the host that owns the destination's
//! subnet: as the payload of one UDP datagram, nothing added.
//!
//! ```text
//! pod ─ veth ─ cni0 ─┐                                            ┌─ cni0 ─ veth ─ pod
//!                flannel0 (TUN)                              flannel0 (TUN)
//!                    │ egress thread                              ▲ ingress thread
//!                    ▼ read · look up · cut · batch               │ check · merge · write
//!                UDP socket :8285 ══════ one network ══════▶ UDP socket :8285
//!
//! store (etcd │ directory) ──events──▶ subnet::peers ──changes──▶ backend ──publish──▶ dataplane::routes
//! ```
//!
//! # The rooms
//!
//! - [`cli`], [`config`]: what the operator says: flags, environment, the network's JSON.
//! - [`subnet`]: who owns which subnet. Control plane, async.
//! - [`backend`]: what is done with the peers' leases.
//! - [`dataplane`]: the hot loop. Plain threads; no tokio, no lock, no allocation per packet.
//! - [`host`]: what is set in the kernel: links, addresses, routes, traffic rules, the external
//!   interface.
//! - [`admin`]: what the daemon tells: health, metrics, `flanneld status`, systemd.
//! - [`daemon`]: the order of starting, supervising and stopping.
//! - [`check`], [`cleanup`]: commands for the host's administrator, beside the daemon.
//! - [`cni`]: the second program, which container runtimes call to attach pods to the overlay.
//!
//! # Unsafe code
//!
//! Only `dataplane::sys` contains `unsafe`: the system calls that the hot loop batches and the
//! vector instructions of the checksum. Every other module forbids it.

pub mod admin;
pub mod backend;
pub mod check;
pub mod cleanup;
pub mod cli;
pub mod cni;
pub mod config;
pub mod daemon;
pub mod dataplane;
mod go_json;
pub mod host;
pub mod logging;
pub mod subnet;

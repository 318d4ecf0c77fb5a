//! The hot path: packets between the TUN device and the peers. Plain threads; no tokio, no lock,
//! no allocation per packet.
//!
//! Follow a packet out: [`egress`] reads it from the device, finds its peer in [`routes`], cuts it
//! ([`offload::segment`]) and plans its sending ([`offload::run`]); [`outbox`] sends the batch.
//! Follow a packet in: [`ingress`] receives it, [`admission`] checks it, [`offload::coalesce`]
//! merges it with its neighbours, and [`ingress`] writes it to the device.
//!
//! The flows are spread over lanes: on the way out a lane is a queue of the device and a UDP source
//! port, on the way in a socket. A thread serves its lanes in turns (docs/decisions/009).
//!
//! The face to the rest of the daemon is small: [`worker::Dataplane`] starts and stops,
//! [`routes::SharedRoutes`] takes new routes, [`stats::Stats`] shows the counters.

mod admission;
mod answers;
mod busy_poll;
mod egress;
pub mod errno;
mod ingress;
pub mod limit;
pub mod offload;
mod outbox;
pub mod packet;
pub mod routes;
mod segmentation;
pub mod stats;
pub mod sys;
pub mod worker;

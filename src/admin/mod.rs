//! What the daemon tells about itself: health and metrics by HTTP, everything by the admin socket,
//! and the state by systemd's notifications.
//!
//! [`state`] is filled by the daemon and by those whom it hands out; [`report`] is what it looks
//! like at one moment. [`http`] serves it, to the network as [`metrics`] and as health, and to
//! [`socket`] as JSON, which [`status`] asks for and shows. [`supervisor`] tells systemd.
//!
//! Nothing here is on the way of a packet: the data path's counters are read where they are, and
//! [`rates`] makes speeds and last sights of them once a second.
#![forbid(unsafe_code)]

mod http;
mod metrics;
mod rates;
pub mod report;
pub mod socket;
pub mod state;
pub mod status;
pub mod supervisor;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use thiserror::Error;
use tokio::net::TcpListener;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use self::http::serve;
use self::socket::{Place, RootOnly};
use self::state::State;

/// Why nobody can be told anything.
#[derive(Debug, Error)]
#[error(
    "cannot listen for health checks on {address}: {reason}; \
     set another --healthz-ip or --healthz-port, or --healthz-port=0 for none"
)]
pub struct ListenError {
    address: SocketAddr,
    reason: std::io::Error,
}

/// The doors that are open. Dropping it removes the socket; the tasks end with the runtime.
#[derive(Debug)]
pub struct Admin {
    /// What is told; to be filled.
    pub state: Arc<State>,
    _place: Option<Place>,
}

impl Admin {
    /// Opens the doors. A socket that cannot be opened is a warning: the overlay is worth more
    /// than `flanneld status`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If health checks shall be answered, and cannot be.
    pub async fn start(
        healthz: Option<SocketAddr>,
        socket: Option<&Path>,
    ) -> Result<Admin, ListenError> {
        let state = Arc::new(State::new());
        if let Some(address) = healthz {
            let listener = TcpListener::bind(address)
                .await
                .map_err(|reason| ListenError { address, reason })?;
            info!("health and metrics are served on {address}");
            tokio::spawn(serve(listener, http::for_the_network(&state)));
        }
        let place = socket.and_then(|path| match socket::open(path) {
            Ok((listener, place)) => {
                tokio::spawn(serve(RootOnly(listener), http::for_root(&state)));
                Some(place)
            }
            Err(error) => {
                warn!("flanneld status will not work: {error}");
                None
            }
        });
        if healthz.is_some() || place.is_some() {
            tokio::spawn(sample(Arc::clone(&state)));
        }
        Ok(Admin { state, _place: place })
    }
}

/// Looks at the counters once in each period.
async fn sample(state: Arc<State>) {
    let mut ticks = interval(rates::PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        state.sample(Instant::now(), SystemTime::now());
    }
}

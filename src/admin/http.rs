//! The HTTP server: small answers, and nothing that a client could use up.
//!
//! One request per connection, a time limit for the whole of it, a bound on the header, on the
//! number of connections, and on how often the long answer is made. Who comes when all places are
//! taken gets the place of whoever has had one longest: slow clients cannot keep a probe out.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::metrics;
use super::state::State;

/// Connections that are served at a time.
const MAX_CONNECTIONS: usize = 64;

/// A connection's whole life, from being accepted to the last byte of the answer.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// Bytes that are buffered of a request: the least that hyper takes.
const MAX_REQUEST_BYTES: usize = 8192;

/// Metrics are not made more often than this: they tell nothing new, since speeds and last sights
/// are looked at once a second.
const METRICS_INTERVAL: Duration = Duration::from_secs(1);

/// Pause when the system has no descriptor for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Prometheus' text format (<https://prometheus.io/docs/instrumenting/exposition_formats/>).
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Where connections come from.
pub(super) trait Accept: Send {
    /// A connection.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next one.
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Io>> + Send;
}

impl Accept for TcpListener {
    type Io = tokio::net::TcpStream;

    async fn accept(&mut self) -> io::Result<Self::Io> {
        TcpListener::accept(self).await.map(|(stream, _)| stream)
    }
}

/// Serves whoever comes, for ever.
pub(super) async fn serve<A: Accept>(mut listener: A, answers: Router) {
    let mut http = http1::Builder::new();
    http.keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(TIME_LIMIT)
        .max_buf_size(MAX_REQUEST_BYTES);
    let mut connections: VecDeque<JoinHandle<()>> = VecDeque::new();
    loop {
        let Ok(stream) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        connections.retain(|connection| !connection.is_finished());
        if connections.len() >= MAX_CONNECTIONS
            && let Some(oldest) = connections.pop_front()
        {
            oldest.abort();
            // Its descriptor is free only then; who connects faster than tasks end waits so long.
            let _ = oldest.await;
        }
        let answers = TowerToHyperService::new(answers.clone());
        let connection = http.serve_connection(TokioIo::new(stream), answers);
        connections.push_back(tokio::spawn(async move {
            // What a client does wrong is its own affair.
            let _ = timeout(TIME_LIMIT, connection).await;
        }));
    }
}

/// What the network may know.
pub(super) fn for_the_network(state: &Arc<State>) -> Router {
    let page = Arc::new(MetricsPage { state: Arc::clone(state), last: Mutex::new(None) });
    Router::new()
        .route("/metrics", get(metrics_page).with_state(page))
        .route("/healthz", get("flanneld is running"))
        .route("/readyz", get(readyz))
        .with_state(Arc::clone(state))
}

/// What root may know: all.
pub(super) fn for_root(state: &Arc<State>) -> Router {
    for_the_network(state).route("/status", get(status).with_state(Arc::clone(state)))
}

async fn readyz(Shared(state): Shared<Arc<State>>) -> Response {
    match state.missing().first() {
        None => "flanneld is ready".into_response(),
        Some(missing) => {
            let text = format!("flanneld is not ready yet: {missing}");
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

async fn status(Shared(state): Shared<Arc<State>>) -> Response {
    match serde_json::to_vec(&state.report().await) {
        Ok(json) => ([(CONTENT_TYPE, "application/json")], json).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// The metrics, made once and handed out to all who ask within a second.
struct MetricsPage {
    state: Arc<State>,
    last: Mutex<Option<(Instant, Bytes)>>,
}

async fn metrics_page(Shared(page): Shared<Arc<MetricsPage>>) -> Response {
    let mut last = page.last.lock().await;
    let text = match &*last {
        Some((made, text)) if made.elapsed() < METRICS_INTERVAL => text.clone(),
        _ => {
            let text = Bytes::from(metrics::page(&page.state.report().await));
            *last = Some((Instant::now(), text.clone()));
            text
        }
    };
    ([(CONTENT_TYPE, METRICS_TYPE)], text).into_response()
}

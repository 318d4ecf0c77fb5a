//! Getting one request answered by one of the endpoints, within bounded time.
//!
//! One endpoint is used at a time, as long as it serves; then the next one's turn comes. The
//! balancer of the gRPC library is not used for that: it takes an endpoint that cannot be reached
//! for ready, and lets requests fail there while others would answer.
#![forbid(unsafe_code)]

use std::future::Future;
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::EtcdConfig;
use super::endpoint::{Endpoints, Tls};
use crate::subnet::store::{Contact, StoreError};

/// One request to one endpoint. Upstream waits for ever (facts 1.4).
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Opening a connection, less than a request so that the reason is a better one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A member that stops answering without closing is noticed after the sum of both. etcd takes
/// pings closer than 5 s for abuse (`--grpc-keepalive-min-time`), and any without a request open.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// gRPC status codes (grpc `doc/statuscodes.md`).
mod code {
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(super) const FAILED_PRECONDITION: i32 = 9;
    pub(super) const OUT_OF_RANGE: i32 = 11;
    pub(super) const UNIMPLEMENTED: i32 = 12;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

/// Connections to one etcd cluster, one at a time.
pub(super) struct Transport {
    endpoints: Endpoints,
    tls: Option<Tls>,
    user: Option<(String, String)>,
    state: Mutex<State>,
    contact: Contact,
}

struct State {
    /// The endpoint whose turn it is.
    turn: usize,
    /// Counts connections, so that one that failed is dropped once, not its successor.
    number: u64,
    client: Option<Client>,
}

/// A connection, and its number for [`Transport::give_up`].
#[derive(Clone)]
pub(super) struct Session {
    pub(super) client: Client,
    number: u64,
}

/// What to do about an error of a request.
pub(super) enum Fault {
    /// Another endpoint, or another time, may help.
    Retry(String),
    /// The answer is larger than the gRPC library takes.
    TooLarge(String),
    /// No.
    Refused(String),
}

impl Fault {
    pub(super) fn reason(self) -> String {
        match self {
            Self::Retry(reason) | Self::TooLarge(reason) | Self::Refused(reason) => reason,
        }
    }
}

impl Transport {
    /// Reads the files that the config names, but does not talk to etcd yet.
    pub(super) async fn new(config: &EtcdConfig) -> Result<Self, StoreError> {
        let endpoints = Endpoints::parse(&config.endpoints, config.tls.is_set())
            .map_err(|reason| StoreError::Refused { store: "etcd".into(), reason })?;
        let refused = |reason| StoreError::Refused { store: endpoints.describe(), reason };
        let tls = Tls::new(&config.tls, &endpoints).map_err(refused)?;
        let user = match (config.username.is_empty(), config.password.is_empty()) {
            (false, false) => Some((config.username.clone(), config.password.clone())),
            (true, true) => None,
            _ => {
                tracing::warn!("etcd user name and password work only together: using neither");
                None
            }
        };
        let turn = rand::random_range(0..endpoints.len());
        let state = Mutex::new(State { turn, number: 0, client: None });
        let this = Self { endpoints, tls, user, state, contact: Contact::default() };
        // Finds wrong certificates now; without a user it does not open a connection.
        let first = this.endpoints.get(0);
        Client::connect([first], Some(this.options(None).map_err(|e| this.refused(e))?))
            .await
            .map_err(|e| this.refused(explain(&e)))?;
        Ok(this)
    }

    pub(super) fn describe(&self) -> String {
        self.endpoints.describe()
    }

    /// Whether etcd answers.
    pub(super) fn contact(&self) -> &Contact {
        &self.contact
    }

    pub(super) fn unreachable(&self, reason: impl Into<String>) -> StoreError {
        let mut reason = reason.into();
        // A server that wants another kind of client closes, with TLS 1.3 only after the handshake,
        // and what is seen of that here is left to chance.
        let signs = ["connection closed", "fatal alert", "broken pipe", "reset"];
        if signs.iter().any(|sign| reason.contains(sign)) {
            reason.push_str(match &self.tls {
                None => "; if etcd speaks TLS there, use https://",
                Some(tls) if tls.is_anonymous() => {
                    "; if etcd asks for a client certificate, give --etcd-certfile and --etcd-keyfile"
                }
                Some(_) => "",
            });
        }
        StoreError::Unreachable { store: self.describe(), reason }
    }

    pub(super) fn refused(&self, reason: impl Into<String>) -> StoreError {
        StoreError::Refused { store: self.describe(), reason: reason.into() }
    }

    /// Sends a request, to each endpoint in turn until one answers; to a single endpoint twice, as
    /// the connection may have gone stale unnoticed.
    pub(super) async fn call<T, F>(&self, request: impl Fn(Client) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        match self.try_call(request).await {
            Ok(answer) => Ok(answer),
            Err(Fault::Refused(reason)) => Err(self.refused(reason)),
            Err(Fault::Retry(reason) | Fault::TooLarge(reason)) => Err(self.unreachable(reason)),
        }
    }

    /// As [`Self::call`], for who can do something about an answer that is too large.
    pub(super) async fn try_call<T, F>(&self, request: impl Fn(Client) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let answer = self.attempt(request).await;
        match &answer {
            Err(Fault::Retry(reason) | Fault::Refused(reason)) => {
                self.contact.lost(reason.as_str());
            }
            Ok(_) | Err(Fault::TooLarge(_)) => self.contact.made(),
        }
        answer
    }

    /// As [`Self::try_call`], but [`Self::contact`] does not hear of it.
    pub(super) async fn attempt<T, F>(&self, request: impl Fn(Client) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut last = None;
        for _ in 0..self.endpoints.len().max(2) {
            let session = match self.session().await {
                Ok(session) => session,
                Err(Fault::Retry(reason)) => {
                    last = Some(reason);
                    continue;
                }
                Err(fault) => return Err(fault),
            };
            let answer = timeout(REQUEST_TIMEOUT, request(session.client.clone())).await;
            let fault = match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => classify(&error),
                Err(_) => Fault::Retry(format!("no answer within {REQUEST_TIMEOUT:?}")),
            };
            match fault {
                Fault::Retry(reason) => {
                    self.give_up(&session).await;
                    last = Some(reason);
                }
                fault => return Err(fault),
            }
        }
        Err(Fault::Retry(last.unwrap_or_else(|| "no endpoint".into())))
    }

    /// The connection in use, or a new one to the endpoint whose turn it is.
    pub(super) async fn session(&self) -> Result<Session, Fault> {
        let mut state = self.state.lock().await;
        if let Some(client) = &state.client {
            return Ok(Session { client: client.clone(), number: state.number });
        }
        let endpoint = self.endpoints.get(state.turn);
        match timeout(REQUEST_TIMEOUT, self.connect(endpoint)).await {
            Ok(Ok(client)) => {
                state.number += 1;
                state.client = Some(client.clone());
                Ok(Session { client, number: state.number })
            }
            Ok(Err(fault)) => {
                state.turn = self.endpoints.after(state.turn);
                Err(fault)
            }
            Err(_) => {
                state.turn = self.endpoints.after(state.turn);
                Err(Fault::Retry(format!("no answer within {REQUEST_TIMEOUT:?}")))
            }
        }
    }

    /// The session does not serve: the next request opens another one, to the next endpoint.
    pub(super) async fn give_up(&self, session: &Session) {
        let mut state = self.state.lock().await;
        if state.client.is_some() && state.number == session.number {
            state.client = None;
            state.turn = self.endpoints.after(state.turn);
        }
    }

    /// Opens a connection, and logs in if there is a user. Certificates are read each time, so
    /// that new ones serve without a restart.
    async fn connect(&self, endpoint: &str) -> Result<Client, Fault> {
        let options = self.options(self.user.as_ref()).map_err(Fault::Retry)?;
        match Client::connect([endpoint], Some(options)).await {
            Ok(client) => Ok(client),
            // As upstream: a user that nobody asks for is no error (facts 3.8).
            Err(error) if is_auth_disabled(&error) => {
                tracing::info!("{}: authentication is off, no login needed", self.describe());
                let options = self.options(None).map_err(Fault::Retry)?;
                Client::connect([endpoint], Some(options)).await.map_err(|e| classify(&e))
            }
            Err(error) => Err(classify(&error)),
        }
    }

    fn options(&self, user: Option<&(String, String)>) -> Result<ConnectOptions, String> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(PING_EVERY, PING_TIMEOUT)
            .with_keep_alive_while_idle(false)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some(tls) = &self.tls {
            options = options.with_tls(tls.load()?);
        }
        if let Some((name, password)) = user {
            options = options.with_user(name, password);
        }
        Ok(options)
    }
}

fn is_auth_disabled(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status)
        if i32::from(status.code()) == code::FAILED_PRECONDITION
            && status.message().contains("authentication is not enabled"))
}

pub(super) fn classify(error: &Error) -> Fault {
    let reason = explain(error);
    let status = match error {
        Error::GRpcStatus(status) => status,
        Error::InvalidArgs(_) | Error::InvalidUri(_) => return Fault::Refused(reason),
        _ => return Fault::Retry(reason),
    };
    match i32::from(status.code()) {
        // The token's user changed since: a new login helps.
        code::INVALID_ARGUMENT if reason.contains("revision of auth store is old") => {
            Fault::Retry(reason)
        }
        code::INVALID_ARGUMENT if reason.contains("authentication failed") => {
            Fault::Refused(format!("{reason}: check --etcd-username and --etcd-password"))
        }
        code::INVALID_ARGUMENT if reason.contains("user name is empty") => {
            Fault::Refused(format!("{reason}: give --etcd-username and --etcd-password"))
        }
        code::PERMISSION_DENIED => Fault::Refused(format!(
            "{reason}: grant the user read and write access to all keys under --etcd-prefix"
        )),
        // The library's own limit, and etcd's.
        code::OUT_OF_RANGE | code::RESOURCE_EXHAUSTED
            if reason.contains("larger than") || reason.contains("too large") =>
        {
            Fault::TooLarge(reason)
        }
        code::RESOURCE_EXHAUSTED if reason.contains("database space exceeded") => {
            Fault::Retry(format!(
                "{reason}: etcd refuses all writes until it was compacted and defragmented and \
                 `etcdctl alarm disarm` was given"
            ))
        }
        code::INVALID_ARGUMENT | code::UNIMPLEMENTED => Fault::Refused(reason),
        code::UNAUTHENTICATED => Fault::Retry(reason),
        _ => Fault::Retry(reason),
    }
}

/// The error and its causes in one line: the outermost alone says "transport error".
fn explain(error: &Error) -> String {
    let mut text = String::new();
    let mut add = |part: &str| {
        if !part.is_empty() && !text.contains(part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(part);
        }
    };
    let mut source: Option<&(dyn std::error::Error + 'static)> = match error {
        Error::GRpcStatus(status) => {
            add(status.message());
            std::error::Error::source(status)
        }
        Error::TransportError(e) => Some(e),
        error => {
            add(&error.to_string());
            None
        }
    };
    while let Some(cause) = source {
        add(&cause.to_string());
        source = cause.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}

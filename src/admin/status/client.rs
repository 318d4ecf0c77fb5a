//! The question: one HTTP request over the admin socket.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::admin::report::Report;

/// A daemon answers in milliseconds, or hangs.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// More than the report of 100,000 peers.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// HTTP/1.0: the answer comes in one piece and ends with the connection.
const REQUEST: &str = "GET /status HTTP/1.0\r\n\r\n";

/// Why there is no answer.
#[derive(Debug, Error)]
pub(super) enum AskError {
    #[error(
        "no daemon listens on {0}: start flanneld, or name its socket by --admin-socket or \
         its --subnet-file"
    )]
    Nobody(PathBuf),
    #[error("{0} is for root alone: run as root (sudo flanneld status)")]
    NotRoot(PathBuf),
    #[error("the daemon at {socket} does not answer: {reason}; its log may say why")]
    Silent { socket: PathBuf, reason: String },
}

/// The daemon's report, and the JSON that it came as.
pub(super) fn ask(socket: &Path) -> Result<(String, Report), AskError> {
    let place = || socket.to_owned();
    let answer = exchange(socket).map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => AskError::Nobody(place()),
        ErrorKind::PermissionDenied => AskError::NotRoot(place()),
        ErrorKind::WouldBlock => {
            AskError::Silent { socket: place(), reason: format!("none within {TIME_LIMIT:?}") }
        }
        _ => AskError::Silent { socket: place(), reason: error.to_string() },
    })?;
    if answer.is_empty() {
        // The daemon hangs up on whoever is neither root nor its own user.
        return Err(AskError::NotRoot(place()));
    }
    let silent = |reason: &str| AskError::Silent { socket: place(), reason: reason.to_owned() };
    let (head, json) = answer.split_once("\r\n\r\n").ok_or_else(|| silent("a broken answer"))?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        return Err(silent(status));
    }
    let report = serde_json::from_str(json).map_err(|error| silent(&error.to_string()))?;
    Ok((json.to_owned(), report))
}

fn exchange(socket: &Path) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIME_LIMIT))?;
    stream.set_write_timeout(Some(TIME_LIMIT))?;
    let mut answer = String::new();
    let written = stream.write_all(REQUEST.as_bytes());
    match written.and_then(|()| stream.take(MAX_ANSWER_BYTES).read_to_string(&mut answer)) {
        // Hung up on before anything was said.
        Err(error)
            if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset)
                && answer.is_empty() =>
        {
            Ok(answer)
        }
        result => result.map(|_| answer),
    }
}

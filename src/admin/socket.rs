//! The admin socket: a Unix socket for root alone.
#![forbid(unsafe_code)]

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};

use super::http::Accept;

/// The socket's name beside `subnet.env`.
const NAME: &str = "flanneld.sock";

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Another daemon listens there.
    #[error(
        "another flanneld listens on {path}: give each of a host's daemons its own \
         --subnet-file or --admin-socket"
    )]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something stands there that is no socket.
    #[error("{path} is no socket: remove it, or choose another --admin-socket")]
    Foreign {
        /// What stands there.
        path: PathBuf,
    },
    /// Anything else.
    #[error("cannot listen on {path}: {source}; choose another --admin-socket, or none (empty)")]
    Other {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Where the socket is by default: beside this `subnet.env`.
pub fn beside(subnet_file: &Path) -> PathBuf {
    subnet_file.with_file_name(NAME)
}

/// The socket's name in the file system; removed on drop, if it still is this socket's.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    /// Device and inode.
    identity: Option<(u64, u64)>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.identity.is_some() && self.identity == identify(&self.path) {
            // What cannot be removed now is replaced by the next daemon.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at `path`, in place of a daemon that is dead.
pub(super) fn open(path: &Path) -> Result<(UnixListener, Place), SocketError> {
    let path = path.to_owned();
    match listen(&path) {
        Ok(listener) => {
            let identity = identify(&path);
            Ok((listener, Place { path, identity }))
        }
        Err(ListenError::InUse) => Err(SocketError::InUse { path }),
        Err(ListenError::Foreign) => Err(SocketError::Foreign { path }),
        Err(ListenError::Io(source)) => Err(SocketError::Other { path, source }),
    }
}

enum ListenError {
    InUse,
    Foreign,
    Io(io::Error),
}

impl From<io::Error> for ListenError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    if let Some(parent) = path.parent().filter(|parent| *parent != Path::new("")) {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => return Err(ListenError::Foreign),
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(ListenError::InUse),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(error) => return Err(error.into()),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let listener = UnixListener::bind(path)?;
    // Until then whoever connects is told from root by the credentials of the connection.
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn identify(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Lets root in, and the user that the daemon runs as.
pub(super) struct RootOnly(pub(super) UnixListener);

impl Accept for RootOnly {
    type Io = UnixStream;

    async fn accept(&mut self) -> io::Result<UnixStream> {
        let own = rustix::process::geteuid().as_raw();
        loop {
            let (stream, _) = self.0.accept().await?;
            if stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own) {
                return Ok(stream);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_daemons_socket_is_replaced_and_a_living_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = beside(&dir.path().join("run/subnet.env"));
        let (listener, place) = open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = open(&path).unwrap_err();
        assert!(matches!(error, SocketError::InUse { .. }), "{error}");

        // As after a crash: the name is left.
        drop(listener);
        std::mem::forget(place);
        let (_listener, successor) = open(&path).unwrap();
        // Who comes last must not remove what another made.
        drop(Place { path: path.clone(), identity: Some((0, 0)) });
        assert!(path.exists());
        drop(successor);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes");
        fs::write(&path, "dear diary").unwrap();
        let error = open(&path).unwrap_err();
        assert!(error.to_string().contains("is no socket: remove it"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "dear diary");

        let long = dir.path().join("x".repeat(200));
        let error = open(&long).unwrap_err().to_string();
        assert!(error.contains("choose another --admin-socket"), "{error}");
    }
}

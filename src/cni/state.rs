//! What is remembered from ADD to DEL: the delegate's configuration, one file per attachment.
//!
//! `dataDir/CONTAINER:INTERFACE`. Neither name can hold a colon, so no two attachments share a file
//! and none is taken for one of flannel's own plugin, which has one file per container,
//! `dataDir/CONTAINER`. Those are still read, so that pods outlive the change of plugins.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};

use super::error::{Code, Error};
use super::request::Attachment;
use crate::subnet::env_file::replace;

/// Who may read a delegate's configuration: it may hold whatever an operator wrote there.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// Writing a file takes far less: what is as old as this was left behind by a process that was
/// killed.
const UNFINISHED_AFTER: Duration = Duration::from_secs(600);

/// The interface of containers whose file does not say: CRI runtimes call the first one so.
const USUAL_INTERFACE: &str = "eth0";

/// The directory with the files.
#[derive(Clone, Copy, Debug)]
pub(super) struct State<'a>(pub(super) &'a Path);

/// One of the files, read.
#[derive(Debug)]
pub(super) struct Saved {
    path: PathBuf,
    /// Of flannel's own plugin: any interface of the container.
    by_flannel: bool,
    /// The delegate's configuration, or why the text is none.
    pub(super) delegate: Result<Map<String, Value>, serde_json::Error>,
}

impl State<'_> {
    fn path(&self, attachment: &Attachment) -> PathBuf {
        self.0.join(format!("{}:{}", attachment.container_id, attachment.ifname))
    }

    /// Remembers a configuration in one step. Clears away what other writes left behind.
    pub(super) fn save(&self, attachment: &Attachment, delegate: &str) -> Result<(), Error> {
        let path = self.path(attachment);
        replace(&path, delegate.as_bytes(), FILE_MODE, DIRECTORY_MODE)
            .map_err(|error| failed("write", &path, &error))?;
        // Litter is no reason not to start a pod.
        if let Err(error) = self.remove_unfinished() {
            eprintln!("flannel: removing unfinished files of {}: {error}", self.0.display());
        }
        Ok(())
    }

    /// Removes files that [`replace`] began and that nobody will finish.
    fn remove_unfinished(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.0)? {
            let entry = entry?;
            if !is_unfinished(&entry.file_name().to_string_lossy()) {
                continue;
            }
            // One that has just been finished or removed is not there any more.
            let Ok(modified) = entry.metadata().and_then(|file| file.modified()) else { continue };
            if modified.elapsed().is_ok_and(|age| age >= UNFINISHED_AFTER) {
                match fs::remove_file(entry.path()) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// What is remembered of the attachment.
    pub(super) fn load(&self, attachment: &Attachment) -> Result<Option<Saved>, Error> {
        match Saved::read(self.path(attachment), false)? {
            None => Saved::read(self.0.join(&attachment.container_id), true),
            saved => Ok(saved),
        }
    }

    /// Everything that is remembered, and whose it is.
    pub(super) fn list(&self) -> Result<Vec<(Attachment, Saved)>, Error> {
        let entries = match fs::read_dir(self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("read", self.0, &error)),
        };
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| failed("read", self.0, &error))?;
            if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
                continue;
            }
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let (container_id, ifname) = match name.split_once(':') {
                Some((container_id, ifname)) => (container_id, Some(ifname)),
                None => (&*name, None),
            };
            // Files that are being written have other names.
            if let Ok(attachment) = Attachment::new(container_id, ifname.unwrap_or(USUAL_INTERFACE))
                && let Some(saved) = Saved::read(entry.path(), ifname.is_none())?
            {
                all.push((attachment, saved));
            }
        }
        Ok(all)
    }
}

impl Saved {
    fn read(path: PathBuf, by_flannel: bool) -> Result<Option<Self>, Error> {
        match fs::read(&path) {
            Ok(text) => {
                Ok(Some(Self { path, by_flannel, delegate: serde_json::from_slice(&text) }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &path, &error)),
        }
    }

    /// Whether this, listed as `listed`'s, may be `attachment`'s.
    pub(super) fn may_be_of(&self, attachment: &Attachment, listed: &Attachment) -> bool {
        attachment == listed || self.by_flannel && attachment.container_id == listed.container_id
    }

    /// Where it stands.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Forgets it.
    pub(super) fn remove(&self) -> Result<(), Error> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("remove", &self.path, &error))
            }
            _ => Ok(()),
        }
    }
}

/// Whether [`replace`] names an attachment's file so until it is finished:
/// `.CONTAINER:INTERFACE.xxxxxx`.
fn is_unfinished(name: &str) -> bool {
    let attachment =
        name.strip_prefix('.').and_then(|name| name.rsplit_once('.')?.0.split_once(':'));
    attachment.is_some_and(|(container_id, ifname)| Attachment::new(container_id, ifname).is_ok())
}

fn failed(verb: &str, path: &Path, error: &io::Error) -> Error {
    let path = path.display();
    Error::new(
        Code::Io,
        format!("cannot {verb} {path}: {error}; see to it, or name another directory by dataDir"),
    )
}

//! Places in the source, as the log names them.

use std::path::Path;
use std::str::FromStr;

use thiserror::Error;
use tracing::Metadata;

/// A file's name without its folder, and a line: `daemon.rs:124`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    file: String,
    line: u32,
}

/// A text that names no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("FILE:LINE as the log shows it, such as daemon.rs:124")]
pub struct InvalidPlace;

impl FromStr for Place {
    type Err = InvalidPlace;

    fn from_str(text: &str) -> Result<Self, InvalidPlace> {
        let (file, line) = text.split_once(':').ok_or(InvalidPlace)?;
        let line = line.parse().ok().filter(|&line| line > 0).ok_or(InvalidPlace)?;
        // klog's own check; a folder could never match.
        if !file.contains('.') || file.contains('/') {
            return Err(InvalidPlace);
        }
        Ok(Self { file: file.to_owned(), line })
    }
}

impl Place {
    /// Is this where the event comes from?
    pub(super) fn is_of(&self, metadata: &Metadata<'_>) -> bool {
        metadata.line() == Some(self.line) && file_name(metadata) == Some(&self.file)
    }
}

/// The name of the file that an event comes from, without its folder.
pub(super) fn file_name<'m>(metadata: &Metadata<'m>) -> Option<&'m str> {
    Path::new(metadata.file()?).file_name()?.to_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_klog_does() {
        let place = Place { file: "daemon.rs".to_owned(), line: 124 };
        assert_eq!("daemon.rs:124".parse(), Ok(place));
        for text in ["", "daemon.rs", "daemon.rs:", "daemon.rs:0", "daemon.rs:-1", "daemon:1", ":1"]
        {
            assert_eq!(text.parse::<Place>(), Err(InvalidPlace), "{text:?}");
        }
        for text in ["a.rs:1:2", "src/daemon.rs:124", "daemon.rs:99999999999"] {
            assert_eq!(text.parse::<Place>(), Err(InvalidPlace), "{text:?}");
        }
    }
}

//! Errors as container runtimes read them.
#![forbid(unsafe_code)]

use serde::Deserialize;
use serde_json::json;
use thiserror::Error;

use super::config::CniVersion;

/// What kind of error it is: the codes of CNI's specification 1.1.0 that occur here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The configuration is of a version that does not know what is asked for.
    IncompatibleVersion = 1,
    /// A key that must not be there.
    UnsupportedField = 2,
    /// The container was not added, or was deleted.
    UnknownContainer = 3,
    /// A variable `CNI_…` is missing or malformed.
    InvalidEnvironment = 4,
    /// A file could not be read or written.
    Io = 5,
    /// Text that is not what it should be.
    Decoding = 6,
    /// A value in the configuration breaks a rule.
    InvalidConfig = 7,
    /// It will work once the daemon is up.
    TryAgainLater = 11,
    /// What `STATUS` says if no pod can be added now.
    NotAvailable = 50,
    /// Everything else. Not from the specification: the reference implementation's number.
    Internal = 999,
}

/// An error of this plugin, or of the one that it called.
#[derive(Clone, Debug, PartialEq, Eq, Error, Deserialize)]
#[error("{msg}")]
pub struct Error {
    /// One of [`Code`], or whatever the called plugin said.
    pub code: u32,
    /// What happened, in one line.
    pub msg: String,
    /// More about it; may be empty.
    #[serde(default)]
    pub details: String,
}

impl Error {
    pub(super) fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code: code as u32, msg: msg.into(), details: String::new() }
    }

    pub(super) fn with_details(self, details: impl Into<String>) -> Self {
        Self { details: details.into(), ..self }
    }

    /// The same error with words in front of its message.
    pub(super) fn context(self, words: &str) -> Self {
        Self { msg: format!("{words}: {}", self.msg), ..self }
    }

    /// The specification's JSON object.
    pub fn to_json(&self, version: CniVersion) -> String {
        let mut object =
            json!({ "cniVersion": version.as_str(), "code": self.code, "msg": self.msg });
        if !self.details.is_empty() {
            object["details"] = self.details.as_str().into();
        }
        object.to_string()
    }
}

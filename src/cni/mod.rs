//! `flannel`, the CNI plugin: pods on the overlay.
//!
//! A *meta plugin*: it reads its network configuration and flanneld's `subnet.env`, makes a
//! configuration for another plugin of it, the *delegate* (by default `bridge`, with addresses
//! from `host-local`), and runs that. CNI's specification, version 1.1.0, is
//! <https://github.com/containernetworking/cni/blob/spec-v1.1.0/SPEC.md>; facts 11 has flannel's
//! own plugin.
//!
//! ```text
//! runtime ── CNI_…, JSON ──▶ flannel ── CNI_…, JSON of [`delegate`] ──▶ bridge ──▶ host-local
//!                             │    ▲
//!              dataDir/ID:IF ◀┘    └─ subnet.env
//! ```
//!
//! Nothing here is async: a call lives for some milliseconds and does one thing after the other.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::{Read, Write};
use std::process::ExitCode;

use serde_json::json;

pub mod config;
pub mod delegate;
pub mod error;
mod exec;
mod plugin;
pub mod request;
mod state;
pub mod subnet_env;

use config::{CniVersion, Config};
use error::{Code, Error};
use request::Request;

/// The longest configuration that is read, in bytes. With `GC` it lists a host's attachments, of
/// about 100 bytes each.
const MAX_CONFIG_BYTES: u64 = 16 * 1024 * 1024;

/// The plugin's `main`: reads the variables and stdin, does what they say, writes the result or
/// the error to `stdout`.
pub fn run(
    variable: impl Fn(&str) -> Option<OsString>,
    stdin: &mut impl Read,
    stdout: &mut impl Write,
) -> ExitCode {
    let mut version = CniVersion::LATEST;
    let (text, code) = match answer(variable, stdin, &mut version) {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (error.to_json(version).into_bytes(), ExitCode::FAILURE),
    };
    match stdout.write_all(&text).and_then(|()| stdout.flush()) {
        Ok(()) => code,
        Err(error) => {
            eprintln!("flannel: cannot write the result to stdout: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What goes to stdout. `version` becomes the one that the configuration asks for.
fn answer(
    variable: impl Fn(&str) -> Option<OsString>,
    stdin: &mut impl Read,
    version: &mut CniVersion,
) -> Result<Vec<u8>, Error> {
    let (command, search_path) = match Request::from_env(variable)? {
        Request::About => {
            let all = CniVersion::ALL.map(CniVersion::as_str).join(", ");
            eprintln!(
                "CNI plugin flannel of flanneld {}\nCNI protocol versions supported: {all}",
                env!("CARGO_PKG_VERSION")
            );
            return Ok(Vec::new());
        }
        // As the reference implementation: without looking at stdin, where nothing may come.
        Request::Version => {
            let all = CniVersion::ALL.map(CniVersion::as_str);
            let answer = json!({ "cniVersion": version.as_str(), "supportedVersions": all });
            return Ok(answer.to_string().into_bytes());
        }
        Request::Work { command, search_path } => (command, search_path),
    };
    let mut text = Vec::new();
    stdin.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut text).map_err(|error| {
        Error::new(Code::Io, format!("cannot read the network configuration on stdin: {error}"))
    })?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        return Err(Error::new(
            Code::Decoding,
            format!("the network configuration on stdin has more than {MAX_CONFIG_BYTES} bytes"),
        ));
    }
    let config = Config::parse(&text)?;
    *version = config.version;
    plugin::run(&command, &config, &search_path)
}

#[cfg(test)]
mod tests;

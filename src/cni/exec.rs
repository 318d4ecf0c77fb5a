//! Running another plugin, as the specification's section on delegation says.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Map, Value};

use super::error::{Code, Error};
use super::request::Attachment;
use crate::go_json::excerpt;

/// Another plugin's file.
#[derive(Debug)]
pub(super) struct Plugin<'a> {
    name: &'a str,
    path: PathBuf,
}

/// Which of its variables the other plugin does not share with this one.
#[derive(Debug)]
pub(super) enum Whom<'a> {
    /// All are shared.
    AsCalled,
    /// An attachment whose namespace is gone or unknown.
    Stale(&'a Attachment),
}

impl<'a> Plugin<'a> {
    /// Looks for it in the directories of `CNI_PATH`.
    pub(super) fn find(name: &'a str, search_path: &str) -> Result<Self, Error> {
        let directories = search_path.split(':').filter(|directory| !directory.is_empty());
        let mut paths = directories.map(|directory| Path::new(directory).join(name));
        match paths.find(|path| path.is_file()) {
            Some(path) => Ok(Self { name, path }),
            None => Err(Error::new(
                Code::Internal,
                format!(
                    "found no plugin {name} in CNI_PATH={search_path}: install it there \
                     (package containernetworking-plugins), or name another by delegate.type"
                ),
            )),
        }
    }

    /// Runs it with `CNI_COMMAND=command` and `config` on its stdin; returns its stdout. Its
    /// stderr is ours.
    pub(super) fn call(
        &self,
        command: &str,
        whom: Whom<'_>,
        config: &Map<String, Value>,
    ) -> Result<Vec<u8>, Error> {
        let words = format!("failed to delegate {}: {}", command.to_lowercase(), self.name);
        let mut process = Command::new(&self.path);
        process.env("CNI_COMMAND", command);
        if let Whom::Stale(attachment) = whom {
            process
                .env("CNI_CONTAINERID", &attachment.container_id)
                .env("CNI_IFNAME", &attachment.ifname)
                .env_remove("CNI_NETNS");
        }
        let output = run(process, &to_text(config)).map_err(|error| {
            let path = self.path.display();
            Error::new(Code::Internal, format!("{words}: cannot run {path}: {error}"))
        })?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let error = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
            let said = excerpt(&String::from_utf8_lossy(&output.stdout));
            let status = output.status;
            Error::new(Code::Internal, format!("{status}, and no error in CNI's form: {said}"))
        });
        Err(error.context(&words))
    }

    /// The same for ADD, which has a result: a JSON object.
    pub(super) fn add(&self, config: &Map<String, Value>) -> Result<Vec<u8>, Error> {
        let result = self.call("ADD", Whom::AsCalled, config)?;
        match serde_json::from_slice::<Map<String, Value>>(&result) {
            Ok(_) => Ok(result),
            Err(error) => Err(Error::new(
                Code::Decoding,
                format!(
                    "failed to delegate add: {}: its result is no JSON object: {error}",
                    self.name
                ),
            )),
        }
    }
}

/// A configuration as JSON on one line.
pub(super) fn to_text(config: &Map<String, Value>) -> String {
    Value::from(config.clone()).to_string()
}

fn run(mut process: Command, config: &str) -> io::Result<Output> {
    let mut child = process.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let stdin = child.stdin.take();
    std::thread::scope(|scope| {
        // Beside reading: either pipe may fill up while the other end waits for the other one.
        scope.spawn(move || {
            // Whoever does not read its configuration is judged by what it says, as all are.
            let _ = stdin.map(|mut stdin| stdin.write_all(config.as_bytes()));
        });
        child.wait_with_output()
    })
}

//! Runs the tools that set the rules: short, with a time limit, their complaints kept.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::RulesError;
use crate::admin::supervisor;

/// A tool that takes longer hangs. They wait for each other's lock, see [`super::iptables`], and
/// some take seconds on hosts with ten thousands of rules.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// Where `name` is in PATH.
pub(in crate::host) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Runs a tool with `input` as its standard input, and returns what came of it, good or bad.
pub(super) async fn run(tool: &Path, args: &[&str], input: &str) -> Result<Output, RulesError> {
    let failed = |source| RulesError::Run { command: line(tool, args), source };
    let mut command = Command::new(tool);
    for variable in supervisor::VARIABLES {
        command.env_remove(variable);
    }
    let mut child = command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let stdin = child.stdin.take();
    let feed = async move {
        if let Some(mut stdin) = stdin {
            // A tool that refuses its input says why on stderr.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    match timeout(TIME_LIMIT, both).await {
        Ok(output) => output.map_err(failed),
        Err(_) => Err(failed(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no end after {} s", TIME_LIMIT.as_secs()),
        ))),
    }
}

/// Runs a tool that must succeed, and returns what it printed.
pub(super) async fn output_of(
    tool: &Path,
    args: &[&str],
    input: &str,
) -> Result<String, RulesError> {
    let output = run(tool, args, input).await?;
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(refused(tool, args, &output))
    }
}

/// The error of a tool that said no.
pub(super) fn refused(tool: &Path, args: &[&str], output: &Output) -> RulesError {
    let said = text(&output.stderr);
    let said: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    RulesError::Refused {
        command: line(tool, args),
        status: output.status,
        said: if said.is_empty() { "without a word".into() } else { said.join("; ") },
    }
}

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn line(tool: &Path, args: &[&str]) -> String {
    let name = tool.file_name().unwrap_or(OsStr::new("?")).to_string_lossy();
    format!("{name} {}", args.join(" ")).trim_end().to_owned()
}

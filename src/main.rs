//! `flanneld`: flags, logging, rights, runtime, daemon or command, exit code.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use flanneld::admin::status;
use flanneld::cli::{self, Command, Options};
use flanneld::dataplane::sys::inherited;
use flanneld::host::capabilities;
use flanneld::{check, cleanup, daemon, logging};
use tokio::runtime::Runtime;

/// Threads of the control plane; packets have threads of their own.
const CONTROL_THREADS: usize = 2;

/// Exit code of a usage error, as getopt's and clap's programs have it.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os().skip(1), |name| std::env::var_os(name)) {
        Ok(Command::Run(options)) => {
            let passed = inherited::take(|name| std::env::var_os(name));
            run(*options, passed)
        }
        Ok(Command::Status(options)) => status::run(&options),
        Ok(Command::Check { options, json }) => report(check(&options, json)),
        Ok(Command::Cleanup { options, dry_run }) => report(cleanup(&options, dry_run)),
        Ok(Command::Print(text)) => report(print(text.as_bytes()).map(|()| true)),
        Ok(Command::Help(text)) => {
            // As upstream: on stderr, and no error.
            eprint!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Command::Version) => {
            eprintln!("{}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("flanneld: {error}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn run(options: Options, passed: Vec<(String, OwnedFd)>) -> ExitCode {
    if let Err(error) = logging::init(options.log.clone()) {
        eprintln!("flanneld: cannot log: {error}");
        return ExitCode::FAILURE;
    }
    // Before there are more threads: capabilities belong to threads.
    if let Err(error) = capabilities::drop_unneeded(&options.files()) {
        tracing::error!("cannot give up capabilities: {error}");
        return ExitCode::FAILURE;
    }
    let result = runtime().and_then(|runtime| {
        let result = runtime.block_on(daemon::run(options, passed));
        // A request to the store that hangs must not hold up the end.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("flannel-control")
        .enable_all()
        .build()
        .map_err(|error| anyhow::Error::new(error).context("cannot start the runtime"))
}

/// The exit code of a command: says why it failed, unless it did so itself.
fn report(result: anyhow::Result<bool>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("flanneld: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says whether nothing failed.
fn check(options: &Options, json: bool) -> anyhow::Result<bool> {
    let runtime = runtime()?;
    let report = runtime.block_on(check::run(options));
    runtime.shutdown_background();
    let mut text = Vec::new();
    if json {
        report.write_json(&mut text)?;
    } else {
        report.write_text(&mut text)?;
    }
    print(&text)?;
    Ok(!report.failed())
}

/// Says whether all could be removed.
fn cleanup(options: &Options, dry_run: bool) -> anyhow::Result<bool> {
    let cleaned = runtime()?.block_on(cleanup::run(options, dry_run))?;
    let mut text = Vec::new();
    cleaned.write(&mut text, dry_run)?;
    print(&text)?;
    Ok(cleaned.failed.is_empty())
}

/// Prints on stdout, without colours unless that is a terminal that wants them. A reader that went
/// away, as `head` does, is no error.
fn print(text: &[u8]) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

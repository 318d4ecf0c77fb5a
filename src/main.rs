//! `flanneld`: flags, logging, runtime, daemon, exit code.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use flanneld::cli::{self, Command};
use flanneld::{daemon, logging};

/// Threads of the control plane; packets have threads of their own.
const CONTROL_THREADS: usize = 2;

/// Exit code of a usage error, as getopt's and clap's programs have it.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let options = match cli::parse(std::env::args_os().skip(1), |name| std::env::var_os(name)) {
        Ok(Command::Run(options)) => options,
        Ok(Command::Help(text)) => {
            // As upstream: on stderr, and no error.
            eprint!("{text}");
            return ExitCode::SUCCESS;
        }
        Ok(Command::Version) => {
            eprintln!("{}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("flanneld: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if let Err(error) = logging::init(options.verbosity) {
        eprintln!("flanneld: cannot log: {error}");
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("flannel-control")
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(daemon::run(*options));
            // A request to the store that hangs must not hold up the end.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(anyhow::Error::new(error).context("cannot start the runtime")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

//! `flannel`: the CNI plugin. Everything is in [`flanneld::cni`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    flanneld::cni::run(
        |name| std::env::var_os(name),
        &mut std::io::stdin().lock(),
        &mut std::io::stdout().lock(),
    )
}

//! Root without root's powers: after this the process can do what the overlay needs and no more.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs,
};
use tracing::{info, warn};

use super::rules::find_tool;

/// What the daemon works with: device, routes and rules; ports below 1024.
const NEEDED: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_BIND_SERVICE);

/// What the tools that it runs may take up besides: iptables-legacy opens a raw socket.
const FOR_TOOLS: CapabilitySet = CapabilitySet::NET_RAW;

/// Kept only where it is needed.
const FOR_FILES: CapabilitySet = CapabilitySet::DAC_OVERRIDE;

/// A file or directory that the daemon works with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// It is read, if it is there.
    Read(PathBuf),
    /// Files are made in it. If it is missing, it is made in the nearest directory that exists.
    Fill(PathBuf),
}

/// Gives up, for this thread and all that it starts from now on, every capability that the daemon
/// does not need, and with them (`no_new_privs`) what running a program could bring back.
///
/// Capabilities belong to threads: to be called before there is a second one.
///
/// # Errors
/// If the kernel refuses.
pub fn drop_unneeded(needs: &[Need]) -> io::Result<()> {
    load_modules();
    set_no_new_privs(true)?;
    let now = capabilities(None)?;
    let mut effective = NEEDED & now.permitted;
    // What is permitted still can be taken back.
    set_capabilities(None, CapabilitySets { effective, ..now })?;
    if !tells_what_is_withheld() {
        info!("CAP_DAC_OVERRIDE is kept: before Linux 5.8 nothing tells whether it is needed");
        effective |= FOR_FILES & now.permitted;
    } else if let Some(path) = needs.iter().find_map(Need::withheld) {
        warn!(
            "root needs CAP_DAC_OVERRIDE for {}: it is kept; chown it to root, with the \
             directories above it, to do without",
            path.display()
        );
        effective |= FOR_FILES & now.permitted;
    }
    let permitted = effective | (FOR_TOOLS & now.permitted);
    // Without root's user id, tools have only what is inherited.
    let inheritable = now.inheritable & permitted;
    set_capabilities(None, CapabilitySets { effective, permitted, inheritable })?;
    Ok(())
}

/// Whether the kernel has `faccessat2` (Linux 5.8), by which [`Need::withheld`] asks. What stands in
/// for it goes by the permitted capabilities.
fn tells_what_is_withheld() -> bool {
    // Nothing stands in for it with this second flag.
    let flags = AtFlags::EACCESS | AtFlags::SYMLINK_NOFOLLOW;
    accessat(CWD, "/", Access::EXISTS, flags) != Err(Errno::NOSYS)
}

impl Need {
    /// The path that this thread may not use as it must, if so. That it is missing, or on a disk
    /// that is read-only, is told by whoever uses it.
    fn withheld(&self) -> Option<&Path> {
        let refused = |path: &Path, access| {
            // The effective capabilities count, not the permitted ones.
            accessat(CWD, path, access, AtFlags::EACCESS) == Err(Errno::ACCESS)
        };
        match self {
            Self::Read(path) => refused(path, Access::READ_OK).then_some(path),
            Self::Fill(dir) => {
                let dir = dir.ancestors().find(|dir| dir.exists() || dir.as_os_str().is_empty())?;
                let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
                refused(dir, Access::WRITE_OK | Access::EXEC_OK).then_some(dir)
            }
        }
    }
}

/// iptables-legacy loads its first module by running modprobe, which it may not any more.
fn load_modules() {
    let legacy = find_tool("iptables")
        .and_then(|tool| tool.canonicalize().ok())
        .is_some_and(|tool| tool.ends_with("xtables-legacy-multi"));
    if legacy && !Path::new("/proc/net/ip_tables_names").exists() {
        // If it fails, iptables will say what it misses.
        let _ = Command::new("modprobe")
            .args(["-q", "-a", "ip_tables", "ip6_tables"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A thread of its own, as what is given up is gone.
    fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(work).join().unwrap())
    }

    #[test]
    fn only_what_is_needed_is_left() {
        on_a_thread(|| {
            let before = capabilities(None).unwrap();
            drop_unneeded(&[]).unwrap();
            let after = capabilities(None).unwrap();
            assert_eq!(after.effective, NEEDED & before.permitted);
            assert_eq!(after.permitted, (NEEDED | FOR_TOOLS) & before.permitted);
            assert!(after.permitted.contains(after.inheritable));
            assert!(rustix::thread::no_new_privs().unwrap());
            // Twice is as good as once.
            drop_unneeded(&[]).unwrap();
            assert_eq!(capabilities(None).unwrap(), after);
        });
    }

    #[test]
    fn files_that_are_missing_or_open_need_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for need in [
            Need::Read(dir.path().join("missing")),
            Need::Fill(dir.path().join("missing/below")),
            Need::Fill(dir.path().to_owned()),
            Need::Fill(PathBuf::new()),
        ] {
            assert_eq!(need.withheld(), None, "{need:?}");
        }
    }

    #[test]
    fn files_of_others_are_seen() {
        if !rustix::process::geteuid().is_root() {
            let line = "SKIPPED files_of_others_are_seen: needs root\n";
            let _ = io::stderr().write_all(line.as_bytes());
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (file, inside) = (dir.path().join("key.pem"), dir.path().join("inside"));
        std::fs::write(&file, "").unwrap();
        std::fs::create_dir(&inside).unwrap();
        for path in [&file, &inside] {
            std::os::unix::fs::chown(path, Some(65_534), None).unwrap();
        }
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        let below = inside.join("below");
        for (need, path) in [(Need::Read(file.clone()), &file), (Need::Fill(below), &inside)] {
            assert_eq!(need.withheld(), None, "with all powers: {need:?}");
            on_a_thread(|| {
                drop_unneeded(std::slice::from_ref(&need)).unwrap();
                let kept = capabilities(None).unwrap();
                assert!(kept.effective.contains(FOR_FILES), "{need:?}");
                set_capabilities(None, CapabilitySets { effective: NEEDED, ..kept }).unwrap();
                assert_eq!(need.withheld(), Some(path.as_path()));
            });
        }
    }
}

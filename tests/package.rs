//! The Debian package, installed and removed in a clean Debian.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::root_or_skip;

const NAME: &str = "the_package_installs_and_leaves_nothing_behind";

/// What must be there once the package is installed, and what may be executed of it.
const FILES: [(&str, bool); 11] = [
    ("usr/sbin/flanneld", true),
    ("usr/lib/cni/flannel", true),
    ("usr/libexec/flannel/mk-docker-opts.sh", true),
    ("usr/lib/systemd/system/flanneld.service", false),
    ("etc/default/flanneld", false),
    ("usr/share/doc/flanneld/copyright", false),
    ("usr/share/doc/flanneld/examples/docker-flannel.conf", false),
    ("usr/share/man/man8/flanneld.8.gz", false),
    ("usr/share/bash-completion/completions/flanneld", false),
    ("usr/share/zsh/vendor-completions/_flanneld", false),
    ("usr/share/fish/vendor_completions.d/flanneld.fish", false),
];

fn skip(why: &str) {
    let _ = std::io::stderr().write_all(format!("SKIPPED {NAME}: {why}\n").as_bytes());
}

fn target() -> PathBuf {
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tmp.parent().expect("it is target/tmp").to_owned()
}

fn has(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = target().join("tools/bin");
    std::env::split_paths(&path).chain([own]).any(|dir| dir.join(tool).is_file())
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", both(&output));
    both(&output)
}

fn both(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

/// A directory that is removed in the end.
struct Root(PathBuf);

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Root {
    /// Runs a command line inside; words are split at blanks.
    fn exec(&self, line: &str) -> String {
        let mut command = Command::new("chroot");
        command.arg(&self.0).args(line.split_whitespace()).env("DEBIAN_FRONTEND", "noninteractive");
        run(&mut command)
    }

    /// All files and folders, but for what dpkg and ldconfig write themselves and what a boot
    /// clears.
    fn files(&self) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        let mut folders = vec![self.0.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                }
                found.insert(entry.path().strip_prefix(&self.0).unwrap().to_owned());
            }
        }
        let others = ["var/lib/dpkg", "var/cache", "run"];
        found.retain(|path| !others.iter().any(|other| path.starts_with(other)));
        found
    }
}

/// A minimal Debian with systemd, of the release that this one is; made once.
fn pristine() -> Result<PathBuf, String> {
    let release = fs::read_to_string("/etc/os-release").unwrap();
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let suite = suite.filter(|_| release.contains("\nID=debian\n")).ok_or("needs Debian")?;
    let tar = target().join(format!("debian-{suite}.tar"));
    if tar.exists() {
        return Ok(tar);
    }
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    let output = Command::new("debootstrap")
        .args(["--variant=minbase", "--include=systemd", suite])
        .arg(&root)
        .output()
        .unwrap();
    if !output.status.success() {
        return Err(format!("debootstrap failed: {}", both(&output)));
    }
    // In one step: a test that is killed leaves none or all.
    let unfinished = folder.path().join("tar");
    run(Command::new("tar").arg("-cf").arg(&unfinished).arg("-C").arg(&root).arg("."));
    fs::copy(&unfinished, tar.with_extension("part")).unwrap();
    fs::rename(tar.with_extension("part"), &tar).unwrap();
    Ok(tar)
}

/// Builds the package from the binaries that this test was built with.
fn build() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_BIN_EXE_flanneld")).parent().unwrap();
    let script = source.join("scripts/package.sh");
    let said = run(Command::new(script).arg("--binaries").arg(folder));
    let path = said.lines().map(str::trim).rfind(|line| line.ends_with(".deb"));
    PathBuf::from(path.unwrap_or_else(|| panic!("no package in {said}")))
}

#[test]
fn the_package_installs_and_leaves_nothing_behind() {
    if !root_or_skip(NAME) {
        return;
    }
    let tools = ["cargo-deb", "debootstrap", "dpkg-deb", "dpkg-shlibdeps", "tar", "chroot"];
    let missing: Vec<&str> = tools.into_iter().filter(|tool| !has(tool)).collect();
    if !missing.is_empty() {
        return skip(&format!("needs {}", missing.join(", ")));
    }
    let tar = match pristine() {
        Ok(tar) => tar,
        Err(why) => return skip(&why),
    };
    let package = build();

    let folder = tempfile::tempdir_in(target()).unwrap();
    let root = Root(folder.path().join("root"));
    fs::create_dir(&root.0).unwrap();
    run(Command::new("tar").arg("-xf").arg(tar).arg("-C").arg(&root.0));
    let before = root.files();
    fs::copy(&package, root.0.join("flanneld.deb")).unwrap();

    root.exec("dpkg --install /flanneld.deb");
    for (file, executable) in FILES {
        let mode = fs::metadata(root.0.join(file)).map(|meta| {
            use std::os::unix::fs::PermissionsExt;
            meta.permissions().mode()
        });
        let mode = mode.unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(mode & 0o777, if executable { 0o755 } else { 0o644 }, "{file}");
    }
    let version = root.exec("flanneld --version");
    assert_eq!(version.trim(), env!("CARGO_PKG_VERSION"));
    assert!(root.exec("/usr/lib/cni/flannel").contains("CNI"), "the plugin runs");
    // Whatever it finds to say about the unit is an error.
    let said = root.exec("systemd-analyze verify --man=no flanneld.service");
    assert_eq!(said, "", "the unit is not right");
    let enabled = root.0.join("etc/systemd/system/multi-user.target.wants/flanneld.service");
    assert!(fs::symlink_metadata(enabled).is_err(), "nobody asked for it");

    // A second time: an upgrade keeps what the operator set.
    let settings = root.0.join("etc/default/flanneld");
    fs::write(&settings, "FLANNELD_IP_MASQ=true\n").unwrap();
    root.exec("dpkg --install /flanneld.deb");
    assert_eq!(fs::read_to_string(&settings).unwrap(), "FLANNELD_IP_MASQ=true\n");

    root.exec("dpkg --remove flanneld");
    assert!(settings.exists(), "settings outlive the removal");
    root.exec("dpkg --purge flanneld");
    fs::remove_file(root.0.join("flanneld.deb")).unwrap();
    let left: Vec<_> = root.files().difference(&before).cloned().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

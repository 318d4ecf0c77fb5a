//! A clean Debian in a directory, and our package for it.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::netns;

/// What [`build_package`] needs.
pub const PACKAGE_TOOLS: [&str; 3] = ["cargo-deb", "dpkg-deb", "dpkg-shlibdeps"];

/// A minimal Debian with systemd, of the release that this one is. Removed on drop.
#[derive(Debug)]
pub struct Debian {
    folder: tempfile::TempDir,
}

impl Debian {
    /// Unpacks it; or says what is missing for it.
    pub fn new() -> Result<Self, String> {
        let missing = missing(&["debootstrap", "tar", "chroot"]);
        if !missing.is_empty() {
            return Err(missing);
        }
        let tar = pristine()?;
        let folder = tempfile::tempdir_in(target()).unwrap();
        run(Command::new("tar").arg("-xf").arg(tar).arg("-C").arg(folder.path()));
        Ok(Self { folder })
    }

    /// Its root directory.
    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    /// Runs a command line inside, without booting it; words are split at blanks.
    pub fn exec(&self, line: &str) -> String {
        let mut command = Command::new("chroot");
        command.arg(self.root()).args(line.split_whitespace());
        run(command.env("DEBIAN_FRONTEND", "noninteractive"))
    }
}

/// Builds the package from the binaries that this test was built with; [`missing`] tells what that
/// needs.
pub fn build_package() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = Path::new(env!("CARGO_BIN_EXE_flanneld")).parent().unwrap();
    let script = source.join("scripts/package.sh");
    let said = run(Command::new(script).arg("--binaries").arg(folder));
    let path = said.lines().map(str::trim).rfind(|line| line.ends_with(".deb"));
    PathBuf::from(path.unwrap_or_else(|| panic!("no package in {said}")))
}

/// Those of the tools that are not there, for a person to read; empty if all are.
pub fn missing(tools: &[&str]) -> String {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = target().join("tools/bin");
    let folders: Vec<PathBuf> = std::env::split_paths(&path).chain([own]).collect();
    let has = |tool: &&&str| folders.iter().any(|folder| folder.join(tool).is_file());
    tools.iter().filter(|tool| !has(tool)).copied().collect::<Vec<_>>().join(", ")
}

/// The Debian, packed; made once.
fn pristine() -> Result<PathBuf, String> {
    let release = fs::read_to_string("/etc/os-release").unwrap();
    let suite = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let suite = suite.filter(|_| release.contains("\nID=debian\n")).ok_or("Debian")?;
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
        return Err(format!("debootstrap failed: {}", printed(&output)));
    }
    // In one step: a test that is killed leaves none or all.
    let unfinished = folder.path().join("tar");
    run(Command::new("tar").arg("-cf").arg(&unfinished).arg("-C").arg(&root).arg("."));
    fs::copy(&unfinished, tar.with_extension("part")).unwrap();
    fs::rename(tar.with_extension("part"), &tar).unwrap();
    Ok(tar)
}

fn target() -> PathBuf {
    let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tmp.parent().expect("it is target/tmp").to_owned()
}

/// Runs it, and returns what it printed. Panics if it fails.
pub fn run(command: &mut Command) -> String {
    printed(&netns::run(command))
}

fn printed(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

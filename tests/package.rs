//! The Debian package, installed and removed in a clean Debian.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use support::debian::{Debian, PACKAGE_TOOLS, build_package, missing};
use support::{root_or_skip, skip};

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

/// All files and folders, but for what dpkg and ldconfig write themselves and what a boot clears.
fn files(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
            found.insert(entry.path().strip_prefix(root).unwrap().to_owned());
        }
    }
    let others = ["var/lib/dpkg", "var/cache", "run"];
    found.retain(|path| !others.iter().any(|other| path.starts_with(other)));
    found
}

#[test]
fn the_package_installs_and_leaves_nothing_behind() {
    let test = "the_package_installs_and_leaves_nothing_behind";
    if !root_or_skip(test) {
        return;
    }
    let missing = missing(&PACKAGE_TOOLS);
    if !missing.is_empty() {
        return skip(test, &missing);
    }
    let debian = match Debian::new() {
        Ok(debian) => debian,
        Err(why) => return skip(test, &why),
    };
    let (root, package) = (debian.root(), build_package());
    let before = files(root);
    fs::copy(&package, root.join("flanneld.deb")).unwrap();

    debian.exec("dpkg --install /flanneld.deb");
    for (file, executable) in FILES {
        let mode = fs::metadata(root.join(file)).map(|meta| {
            use std::os::unix::fs::PermissionsExt;
            meta.permissions().mode()
        });
        let mode = mode.unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(mode & 0o777, if executable { 0o755 } else { 0o644 }, "{file}");
    }
    let version = debian.exec("flanneld --version");
    assert_eq!(version.trim(), env!("CARGO_PKG_VERSION"));
    assert!(debian.exec("/usr/lib/cni/flannel").contains("CNI"), "the plugin runs");
    // Whatever it finds to say about the unit is an error.
    let said = debian.exec("systemd-analyze verify --man=no flanneld.service");
    assert_eq!(said, "", "the unit is not right");
    let enabled = root.join("etc/systemd/system/multi-user.target.wants/flanneld.service");
    assert!(fs::symlink_metadata(enabled).is_err(), "nobody asked for it");

    // A second time: an upgrade keeps what the operator set.
    let settings = root.join("etc/default/flanneld");
    fs::write(&settings, "FLANNELD_IP_MASQ=true\n").unwrap();
    debian.exec("dpkg --install /flanneld.deb");
    assert_eq!(fs::read_to_string(&settings).unwrap(), "FLANNELD_IP_MASQ=true\n");

    debian.exec("dpkg --remove flanneld");
    assert!(settings.exists(), "settings outlive the removal");
    debian.exec("dpkg --purge flanneld");
    fs::remove_file(root.join("flanneld.deb")).unwrap();
    let left: Vec<_> = files(root).difference(&before).cloned().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#!/usr/bin/env bash
# Builds the Debian package: scripts/package.sh [--binaries FOLDER]
#
# Without a folder the binaries are built first, as for a release. The package is
# target/debian/flanneld_VERSION_ARCH.deb; man page and completions are what the daemon prints.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

folder='' flags=()
case ${1:-} in
    '') ;;
    # Not for release: need not be small.
    --binaries) folder=$(realpath "${2:?--binaries needs a folder}") flags=(--fast) ;;
    *) die "unknown flag $1; usage: $0 [--binaries FOLDER]" ;;
esac

install_build_tools
install_missing dpkg-shlibdeps:dpkg-dev
find_cargo
install_cargo_deb
cd "$ROOT"

if [[ -z $folder ]]; then
    cargo build --locked --bins --release </dev/null
    folder=target/release
fi

# All that Cargo.toml's list takes from here.
mkdir -p target/package
install -s "$folder/flanneld" "$folder/flannel" target/package
target/package/flanneld man >target/package/flanneld.8
for shell in bash zsh fish; do
    target/package/flanneld completions "$shell" >"target/package/flanneld.$shell"
done

cargo deb --locked --no-build "${flags[@]}" </dev/null
